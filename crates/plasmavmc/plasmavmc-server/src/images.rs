//! The bytes of images on this server's disk, by their SHA-256.
//!
//! ```text
//! DATA/images/SHA256        whole images; a file here is complete and has this hash
//! DATA/images/incoming/ID   uploads under way; emptied at start
//! DATA/images/.lock         held by the one server that uses the folder
//! ```
//!
//! An upload becomes an image by one rename, after it was hashed, looked into and synced. Bytes are kept per server
//! for now: an upload to one replica is fetched from that replica.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use plasmavmc_client::types::ImageFormat;
use sha2::{Digest, Sha256};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::sync::Mutex;

use crate::qcow2;

/// Bytes looked at of an image's beginning.
const HEAD_BYTES: usize = 4096;
/// Bytes sent to an agent at once (the protocol allows 1 MiB).
pub(crate) const FETCH_CHUNK: usize = 256 << 10;

/// How long the sender of an upload may be silent.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// What images are held to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ImageLimits {
    pub(crate) max_bytes: u64,
    pub(crate) max_virtual_bytes: u64,
}

/// Why bytes did not become an image. Nothing of them is left.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("the image is larger than {max} bytes, which is the limit of this server")]
    TooLarge { max: u64 },
    #[error("the image's SHA-256 is {actual}, not {expected}: it was changed or cut short on its way")]
    Checksum { expected: String, actual: String },
    #[error("the upload broke off after {bytes} bytes: {why}")]
    Broken { bytes: u64, why: String },
    #[error(transparent)]
    Content(#[from] qcow2::Refused),
    #[error("cannot write the image to disk")]
    Disk(#[from] std::io::Error),
}

/// What an image turned out to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inspected {
    pub(crate) size_bytes: u64,
    pub(crate) virtual_size_bytes: u64,
}

/// The folder of images. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct ImageFiles {
    folder: PathBuf,
    limits: ImageLimits,
    /// Locked as long as this server lives.
    _lock: Arc<std::fs::File>,
    /// Held while a file and its record come or go together.
    pub(crate) changing: Arc<Mutex<()>>,
}

/// An upload that has been checked and waits to be kept.
#[derive(Debug)]
pub(crate) struct Checked {
    path: PathBuf,
    pub(crate) inspected: Inspected,
}

impl Drop for Checked {
    fn drop(&mut self) {
        remove_quietly(&self.path);
    }
}

/// Whatever is left behind is removed at the next start.
fn remove_quietly(path: &Path) {
    if path.as_os_str().is_empty() {
        return;
    }
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "an unfinished upload stays until the next start");
    }
}

impl ImageFiles {
    /// Opens the folder and removes what interrupted uploads have left.
    pub(crate) async fn open(data_dir: &Path, limits: ImageLimits) -> std::io::Result<Self> {
        let folder = data_dir.join("images");
        fs::create_dir_all(&folder).await?;
        let lock = std::fs::File::create(folder.join(".lock"))?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => std::io::Error::new(
                std::io::ErrorKind::ResourceBusy,
                "another server uses it; give each its own",
            ),
            std::fs::TryLockError::Error(error) => error,
        })?;
        let incoming = folder.join("incoming");
        match fs::remove_dir_all(&incoming).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(&incoming).await?;
        Ok(Self {
            folder,
            limits,
            _lock: Arc::new(lock),
            changing: Arc::new(Mutex::new(())),
        })
    }

    pub(crate) fn path(&self, sha256: &str) -> PathBuf {
        self.folder.join(sha256)
    }

    /// Takes an upload in: writes, hashes, checks and syncs it. It is an image only after [`Self::keep`].
    pub(crate) async fn receive<E: std::fmt::Display>(
        &self,
        body: impl Stream<Item = Result<Bytes, E>>,
        format: ImageFormat,
        expected_sha256: &str,
    ) -> Result<Checked, ImageError> {
        let path = self
            .folder
            .join("incoming")
            .join(uuid::Uuid::now_v7().to_string());
        let mut file = File::create_new(&path).await?;
        // From here on the file goes with this value, also when the upload is cut.
        let mut checked = Checked {
            path,
            inspected: Inspected::default(),
        };
        let (mut hash, mut bytes, mut head) = (Sha256::new(), 0_u64, Vec::new());
        let mut body = std::pin::pin!(body);
        while let Some(chunk) = next_chunk(&mut body, bytes).await? {
            let chunk = chunk.map_err(|error| ImageError::Broken {
                bytes,
                why: error.to_string(),
            })?;
            bytes += chunk.len() as u64;
            if bytes > self.limits.max_bytes {
                return Err(ImageError::TooLarge {
                    max: self.limits.max_bytes,
                });
            }
            let wanted = HEAD_BYTES.saturating_sub(head.len()).min(chunk.len());
            head.extend_from_slice(chunk.get(..wanted).unwrap_or_default());
            hash.update(&chunk);
            file.write_all(&chunk).await?;
        }
        let actual = hex::encode(hash.finalize());
        if actual != expected_sha256 {
            return Err(ImageError::Checksum {
                expected: expected_sha256.to_owned(),
                actual,
            });
        }
        let virtual_size_bytes = qcow2::inspect(&head, bytes, format, self.limits.max_virtual_bytes)?;
        file.flush().await?;
        file.sync_all().await?;
        checked.inspected = Inspected {
            size_bytes: bytes,
            virtual_size_bytes,
        };
        Ok(checked)
    }

    /// Makes a checked upload an image file: one rename, then the folder is synced.
    pub(crate) async fn keep(&self, mut checked: Checked, sha256: &str) -> std::io::Result<()> {
        let path = std::mem::take(&mut checked.path);
        let renamed = fs::rename(&path, self.path(sha256)).await;
        if renamed.is_err() {
            checked.path = path;
        }
        renamed?;
        File::open(&self.folder).await?.sync_all().await
    }

    /// Removes an image's bytes; that they are not here is no error.
    pub(crate) async fn remove(&self, sha256: &str) -> std::io::Result<()> {
        match fs::remove_file(self.path(sha256)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// An image's bytes from an offset on, in chunks. `None` when they are not here.
    pub(crate) async fn read(
        &self,
        sha256: &str,
        offset: u64,
    ) -> std::io::Result<Option<impl Stream<Item = std::io::Result<Bytes>> + Send + use<>>> {
        if !is_sha256(sha256) {
            return Ok(None);
        }
        let mut file = match File::open(self.path(sha256)).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        file.seek(std::io::SeekFrom::Start(offset)).await?;
        Ok(Some(futures::stream::try_unfold(file, |mut file| async move {
            let mut chunk = bytes::BytesMut::with_capacity(FETCH_CHUNK);
            while chunk.len() < FETCH_CHUNK && file.read_buf(&mut chunk).await? > 0 {}
            Ok((!chunk.is_empty()).then(|| (chunk.freeze(), file)))
        })))
    }
}

/// The next piece of an upload, unless the sender has fallen silent.
async fn next_chunk<T>(
    body: &mut (impl Stream<Item = T> + Unpin),
    bytes: u64,
) -> Result<Option<T>, ImageError> {
    let silent = |_| ImageError::Broken {
        bytes,
        why: format!("nothing came for {} seconds", MAX_SILENCE.as_secs()),
    };
    tokio::time::timeout(MAX_SILENCE, body.next())
        .await
        .map_err(silent)
}

/// True for 64 lower-case hexadecimal digits; nothing else ever becomes a part of a path.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
