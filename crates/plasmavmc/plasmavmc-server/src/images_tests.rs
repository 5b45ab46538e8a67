//! Uploads to disk: what is kept, and that nothing is left of what is not.

use super::*;

async fn files() -> (tempfile::TempDir, ImageFiles) {
    let folder = tempfile::tempdir().unwrap();
    let limits = ImageLimits {
        max_bytes: 1 << 20,
        max_virtual_bytes: 1 << 30,
    };
    let files = ImageFiles::open(folder.path(), limits).await.unwrap();
    (folder, files)
}

fn body(parts: &[&'static [u8]]) -> impl Stream<Item = Result<Bytes, std::io::Error>> + use<> {
    futures::stream::iter(
        parts
            .iter()
            .map(|part| Ok(Bytes::from_static(part)))
            .collect::<Vec<_>>(),
    )
}

fn leftovers(folder: &tempfile::TempDir) -> usize {
    let images = folder.path().join("images");
    // The lock and the folder of uploads stay.
    let incoming = std::fs::read_dir(images.join("incoming")).unwrap().count();
    incoming + std::fs::read_dir(images).unwrap().count() - 2
}

const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[tokio::test]
async fn an_upload_is_kept_and_read_back_from_any_offset() {
    let (_folder, files) = files().await;
    let checked = files
        .receive(body(&[b"a", b"bc"]), ImageFormat::Raw, ABC)
        .await
        .unwrap();
    assert_eq!(
        checked.inspected,
        Inspected {
            size_bytes: 3,
            virtual_size_bytes: 512
        }
    );
    assert!(!files.path(ABC).exists());
    files.keep(checked, ABC).await.unwrap();
    assert!(files.path(ABC).exists());
    let read = files.read(ABC, 1).await.unwrap().unwrap();
    let chunks: Vec<_> = read.map(|chunk| chunk.unwrap()).collect().await;
    assert_eq!(chunks.concat(), b"bc");
    files.remove(ABC).await.unwrap();
    files.remove(ABC).await.unwrap();
    assert!(files.read(ABC, 0).await.unwrap().is_none());
    assert!(files.read("../../etc/passwd", 0).await.unwrap().is_none());
}

#[tokio::test]
async fn nothing_is_left_of_what_is_refused_or_breaks_off() {
    let (folder, files) = files().await;
    let wrong = files
        .receive(body(&[b"abd"]), ImageFormat::Raw, ABC)
        .await
        .unwrap_err();
    assert!(matches!(wrong, ImageError::Checksum { .. }));
    let hostile = files
        .receive(body(&[b"abc"]), ImageFormat::Qcow2, ABC)
        .await
        .unwrap_err();
    assert!(matches!(hostile, ImageError::Content(qcow2::Refused::NotQcow2)));
    let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![0; 65536])));
    let large = files.receive(endless, ImageFormat::Raw, ABC).await.unwrap_err();
    assert!(matches!(large, ImageError::TooLarge { .. }));
    let broken = body(&[b"ab"]).chain(futures::stream::iter([Err(std::io::Error::other("reset"))]));
    let broken = files.receive(broken, ImageFormat::Raw, ABC).await.unwrap_err();
    assert!(matches!(broken, ImageError::Broken { bytes: 2, .. }));
    let cut = files.receive(
        futures::stream::pending::<Result<Bytes, std::io::Error>>(),
        ImageFormat::Raw,
        ABC,
    );
    tokio::time::timeout(Duration::from_millis(20), cut)
        .await
        .unwrap_err();
    drop(
        files
            .receive(body(&[b"abc"]), ImageFormat::Raw, ABC)
            .await
            .unwrap(),
    );
    assert_eq!(leftovers(&folder), 0);
    std::fs::write(folder.path().join("images/incoming/old"), b"x").unwrap();
    let second = ImageFiles::open(folder.path(), files.limits).await.unwrap_err();
    assert_eq!(second.kind(), std::io::ErrorKind::ResourceBusy);
    let limits = files.limits;
    drop(files);
    ImageFiles::open(folder.path(), limits).await.unwrap();
    assert_eq!(leftovers(&folder), 0);
}
