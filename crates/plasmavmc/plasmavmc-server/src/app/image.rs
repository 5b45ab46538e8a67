//! Images: import, listing, deletion.

use bytes::Bytes;
use futures::{Stream, StreamExt};
use hearth_service::error::{ApiError, ErrorKind};
use hearth_types::{ImageId, Name};
use iam_client::OpContext;
use plasmavmc_client::types::{Image, ImageList, ImageQuery};

use super::once::{Once, RequestKey};
use super::vm::now_ms;
use super::{App, wire};
use crate::images::{ImageError, is_sha256};
use crate::store::records::{ImageRecord, VERSION};
use crate::store::{MAX_CONTENTION, Store, Stored, keys, unchanged};

/// How much of a refused upload is read on, so that a client that is still sending gets to see the answer.
const MAX_DRAIN_BYTES: u64 = 64 << 20;
const MAX_DRAIN: std::time::Duration = std::time::Duration::from_secs(5);

fn no_image(name: &str) -> ApiError {
    ApiError::new(ErrorKind::NotFound, format!("there is no image `{name}`"))
        .hint("`hearth image list` shows the images there are")
}

fn refused(error: ImageError) -> ApiError {
    let (kind, hint) = match &error {
        ImageError::TooLarge { .. } => (
            ErrorKind::InvalidArgument,
            "shrink it, for example with `qemu-img convert -c`, or raise max_image_bytes",
        ),
        ImageError::Checksum { .. } => (
            ErrorKind::InvalidArgument,
            "check the file and the checksum, then import it again",
        ),
        ImageError::Broken { .. } => (ErrorKind::InvalidArgument, "import it again"),
        ImageError::Content(_) => (
            ErrorKind::InvalidArgument,
            "`qemu-img info FILE` shows what the file is",
        ),
        ImageError::Disk(source) => {
            if matches!(
                source.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            ) {
                let message = "the disk for images is full";
                return ApiError::new(ErrorKind::ResourceExhausted, message)
                    .hint("delete images that are not needed, or give the data folder more room")
                    .source(error);
            }
            return ApiError::internal("storing the image", error);
        }
    };
    ApiError::new(kind, error.to_string()).hint(hint).source(error)
}

pub(crate) async fn list(app: &App, ctx: &OpContext) -> Result<ImageList, ApiError> {
    let store = app.in_cluster(ctx, "vmc.image.list")?;
    let images = store.images().await?;
    let shown = images.iter().filter(|image| !image.value.deleting);
    Ok(ImageList {
        items: shown.map(|image| wire::image(&image.value)).collect(),
    })
}

pub(crate) async fn get(app: &App, ctx: &OpContext, name: &str) -> Result<Image, ApiError> {
    let store = app.in_cluster(ctx, "vmc.image.list")?;
    Ok(wire::image(&find(store, name).await?.value))
}

async fn find(store: &Store, name: &str) -> Result<Stored<ImageRecord>, ApiError> {
    let parsed: Name = name.parse().map_err(|_| no_image(name))?;
    store.image_by_name(&parsed).await?.ok_or_else(|| no_image(name))
}

/// Imports an upload under a name. The same bytes under the same name again are no error; other bytes are.
pub(crate) async fn import<E: std::fmt::Display>(
    app: &App,
    ctx: &OpContext,
    name: &str,
    query: &ImageQuery,
    key: &RequestKey,
    body: impl Stream<Item = Result<Bytes, E>> + Unpin,
) -> Result<Image, ApiError> {
    let mut body = body;
    let outcome = import_from(app, ctx, name, query, key, &mut body).await;
    // What was answered without its bytes being needed leaves them unread, too.
    if outcome.is_err() || key.as_deref().is_some() {
        let mut drained = 0;
        let drain = async {
            while let Some(Ok(chunk)) = body.next().await {
                drained += chunk.len() as u64;
                if drained > MAX_DRAIN_BYTES {
                    break;
                }
            }
        };
        // Whether the sender is heard out or not, it has been refused.
        let _ = tokio::time::timeout(MAX_DRAIN, drain).await;
    }
    outcome
}

async fn import_from<E: std::fmt::Display>(
    app: &App,
    ctx: &OpContext,
    name: &str,
    query: &ImageQuery,
    key: &RequestKey,
    body: impl Stream<Item = Result<Bytes, E>>,
) -> Result<Image, ApiError> {
    let store = app.in_cluster(ctx, "vmc.image.import")?;
    let name: Name = name.parse().map_err(|error: hearth_types::NameError| {
        ApiError::new(
            ErrorKind::InvalidArgument,
            format!("the image cannot be named so: {error}"),
        )
    })?;
    let sha256 = query.sha256.to_ascii_lowercase();
    if !is_sha256(&sha256) {
        return Err(
            ApiError::new(ErrorKind::InvalidArgument, format!("`{sha256}` is no SHA-256"))
                .hint("give 64 hexadecimal digits, as `sha256sum FILE` prints them"),
        );
    }
    let what = (&name, query.format, &sha256);
    let once = Once::new(store, None, key, "import_image", &what)?;
    if let Some(earlier) = once.earlier().await? {
        return Ok(earlier);
    }
    let checked = app
        .images()
        .receive(body, query.format, &sha256)
        .await
        .map_err(refused)?;
    let inspected = checked.inspected;
    let changing = app.images().changing.lock().await;
    app.images()
        .keep(checked, &sha256)
        .await
        .map_err(|error| refused(error.into()))?;
    let record = ImageRecord {
        version: VERSION,
        id: ImageId::from_uuid(uuid::Uuid::now_v7()),
        name: name.clone(),
        format: query.format,
        sha256: sha256.clone(),
        size_bytes: inspected.size_bytes,
        virtual_size_bytes: inspected.virtual_size_bytes,
        created_at_ms: now_ms(),
        deleting: false,
    };
    let answer = wire::image(&record);
    if store.create_image(&record, once.along(&answer)?).await? {
        tracing::info!(image = %name, sha256, bytes = inspected.size_bytes, "image imported");
        return Ok(answer);
    }
    if let Some(earlier) = once.earlier().await? {
        return Ok(earlier);
    }
    let existing = store.image_by_name(&name).await?;
    if let Some(existing) = existing
        && existing.value.sha256 == sha256
        && existing.value.format == query.format
        && !existing.value.deleting
    {
        let answer = wire::image(&existing.value);
        let guard = unchanged(&keys::image(existing.value.id), existing.revision);
        // When somebody has changed it in this moment, the answer was true before.
        once.keep(&answer, vec![guard]).await?;
        return Ok(answer);
    }
    drop_bytes(app, store, &sha256).await?;
    drop(changing);
    Err(ApiError::new(
        ErrorKind::AlreadyExists,
        format!("there is another image named `{name}` already"),
    )
    .hint("choose another name, or delete that image first"))
}

/// Removes bytes that no record speaks of. The caller holds the lock on changes.
async fn drop_bytes(app: &App, store: &Store, sha256: &str) -> Result<(), ApiError> {
    if store
        .images()
        .await?
        .iter()
        .any(|image| image.value.sha256 == sha256)
    {
        return Ok(());
    }
    app.images()
        .remove(sha256)
        .await
        .map_err(|error| ApiError::internal("removing the image's bytes", error))
}

/// Deletes an image that no VM was made from: it is marked first, so that no VM can be made from it while it is
/// looked for VMs that were.
pub(crate) async fn delete(app: &App, ctx: &OpContext, name: &str, key: &RequestKey) -> Result<(), ApiError> {
    let store = app.in_cluster(ctx, "vmc.image.delete")?;
    let once = Once::new(store, None, key, "delete_image", &name)?;
    for _ in 0..MAX_CONTENTION {
        if let Some(()) = once.earlier().await? {
            return Ok(());
        }
        let image = find(store, name).await?;
        let Some(marked) = store.mark_image(&image, true).await? else {
            continue;
        };
        if let Some(user) = store.user_of_image(marked.value.id).await? {
            store.mark_image(&marked, false).await?;
            let message = format!(
                "image `{name}` is in use by VM `{}` of project `{}`",
                user.name, user.project
            );
            return Err(ApiError::new(ErrorKind::FailedPrecondition, message).hint("delete that VM first"));
        }
        let _changing = app.images().changing.lock().await;
        if store.remove_image(&marked, once.along(&())?).await? {
            return drop_bytes(app, store, &marked.value.sha256).await;
        }
    }
    Err(ApiError::new(
        ErrorKind::Unavailable,
        format!("image `{name}` is being changed by too many at once"),
    )
    .hint("try again"))
}
