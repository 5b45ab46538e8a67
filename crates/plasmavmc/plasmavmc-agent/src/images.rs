//! Images on this node: fetched once by their sha256, verified, kept while used and while there is room.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, Shared};
use plasmavmc_client::agent::ImageRef;
use sha2::{Digest, Sha256};
use tokio::time::timeout;

/// Longest wait for the next piece of an image.
const CHUNK_LIMIT: Duration = Duration::from_secs(30);
/// Attempts at one image before the failure is reported; each goes on where the last one broke off.
const ATTEMPTS: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Largest image that is fetched: 256 GiB.
const MAX_IMAGE_BYTES: u64 = 256 << 30;

/// Why an image cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ImageError {
    /// The reference itself is unusable.
    #[error("image reference: {0}")]
    Reference(String),
    /// What came is not what was promised.
    #[error("image {sha256} was refused: {reason}")]
    Wrong { sha256: String, reason: String },
    /// The disk of this node is full.
    #[error("the disk of this node is full: image {sha256} needs {size_bytes} bytes")]
    DiskFull { sha256: String, size_bytes: u64 },
    /// The file system refused.
    #[error("cannot {action} the image {sha256}: {source}")]
    Io {
        action: &'static str,
        sha256: String,
        source: Arc<io::Error>,
    },
    /// The control plane could not deliver it.
    #[error("cannot fetch the image {sha256}: {reason}")]
    Fetch { sha256: String, reason: String },
}

/// Most images that the control plane is told of.
const MAX_TOLD: usize = 256;

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Where the bytes of images come from; the seam to the control plane.
pub(crate) trait ImageSource: Send + Sync + std::fmt::Debug {
    /// Opens a stream of pieces from `offset` on.
    fn open(&self, sha256: &str, offset: u64) -> BoxFuture<'_, Result<Box<dyn ImageStream>, String>>;
}

/// A running delivery.
pub(crate) trait ImageStream: Send {
    /// The next piece; `None` at the end.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, String>>;
}

type Fetch = Shared<BoxFuture<'static, Result<PathBuf, ImageError>>>;

/// The cache.
#[derive(Debug)]
pub(crate) struct ImageCache {
    folder: PathBuf,
    limit_bytes: u64,
    source: Arc<dyn ImageSource>,
    running: Mutex<BTreeMap<String, Fetch>>,
}

impl ImageCache {
    /// Opens the folder and removes what an earlier run left half-made.
    pub(crate) fn open(folder: &Path, limit_mib: u64, source: Arc<dyn ImageSource>) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let folder = folder.canonicalize()?;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "part") {
                fs::remove_file(path)?;
            }
        }
        Ok(Self {
            folder,
            limit_bytes: limit_mib << 20,
            source,
            running: Mutex::default(),
        })
    }

    /// SHA-256 of the images that are here, at most [`MAX_TOLD`].
    pub(crate) fn held(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut held: Vec<String> = names.filter(|name| is_sha256(name)).collect();
        // Always the same ones: a control plane that hears of others each time would write each time.
        held.sort();
        held.truncate(MAX_TOLD);
        held
    }

    /// The verified file of an image. However many ask at once, it is fetched once. A caller may go
    /// away; whoever still waits carries the fetch on.
    pub(crate) async fn ensure(
        &self,
        image: &ImageRef,
        in_use: &BTreeSet<String>,
    ) -> Result<PathBuf, ImageError> {
        let sha256 = image.sha256.to_ascii_lowercase();
        if !is_sha256(&sha256) {
            return Err(ImageError::Reference(format!(
                "`{}` is not a sha256",
                image.sha256
            )));
        }
        if image.size_bytes == 0 || image.size_bytes > MAX_IMAGE_BYTES {
            return Err(ImageError::Reference(format!(
                "its size is {} bytes",
                image.size_bytes
            )));
        }
        let target = self.folder.join(&sha256);
        if target.is_file() {
            touch(&target);
            return Ok(target);
        }
        let fetch = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running
                .entry(sha256.clone())
                .or_insert_with(|| {
                    let job = Job {
                        source: self.source.clone(),
                        folder: self.folder.clone(),
                        sha256: sha256.clone(),
                        size: image.size_bytes,
                    };
                    job.run().boxed().shared()
                })
                .clone()
        };
        let result = fetch.clone().await;
        {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if running.get(&sha256).is_some_and(|f| f.ptr_eq(&fetch)) {
                running.remove(&sha256);
            }
        }
        if result.is_ok() {
            let mut keep = in_use.clone();
            keep.insert(sha256);
            if let Err(error) = self.evict(&keep) {
                tracing::warn!(%error, "cannot clean the image cache");
            }
        }
        result
    }

    /// Removes unused images, least recently used first, until the cache fits its limit.
    fn evict(&self, keep: &BTreeSet<String>) -> io::Result<()> {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if entry.path().extension().is_none() {
                files.push((meta.modified()?, meta.len(), entry.path()));
            }
        }
        let mut total: u64 = files.iter().map(|f| f.1).sum();
        files.sort();
        for (_, size, path) in files {
            if total <= self.limit_bytes {
                break;
            }
            let used = path
                .file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| keep.contains(n));
            if !used {
                fs::remove_file(&path)?;
                tracing::info!(image = %path.display(), "removed an unused image");
                total = total.saturating_sub(size);
            }
        }
        Ok(())
    }
}

/// The time of last use is the file's modification time; a failure only makes eviction less exact.
fn touch(path: &Path) {
    let touched = File::open(path).and_then(|f| f.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!(%error, "cannot note the use of an image");
    }
}

/// One fetch of one image.
struct Job {
    source: Arc<dyn ImageSource>,
    folder: PathBuf,
    sha256: String,
    size: u64,
}

impl Job {
    async fn run(self) -> Result<PathBuf, ImageError> {
        let part = self.folder.join(format!("{}.part", self.sha256));
        let result = self.fetch(&part).await;
        if result.is_err() {
            // Half an image helps nobody, least of all on a full disk.
            let _ = fs::remove_file(&part);
        }
        result
    }

    async fn fetch(&self, part: &Path) -> Result<PathBuf, ImageError> {
        let mut file = File::create(part).map_err(self.io("make"))?;
        let mut digest = Sha256::new();
        let mut received = 0;
        let mut last = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            match self.stream(&mut file, &mut digest, &mut received).await? {
                Ok(()) if received == self.size => return self.finish(&file, part, digest),
                Ok(()) => last = format!("it ended after {received} of {} bytes", self.size),
                Err(reason) => last = reason,
            }
        }
        Err(ImageError::Fetch {
            sha256: self.sha256.clone(),
            reason: last,
        })
    }

    /// Copies one stream. The inner error is worth another attempt, the outer one is not.
    async fn stream(
        &self,
        file: &mut File,
        digest: &mut Sha256,
        received: &mut u64,
    ) -> Result<Result<(), String>, ImageError> {
        let opened = timeout(CHUNK_LIMIT, self.source.open(&self.sha256, *received)).await;
        let mut stream = match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(reason)) => return Ok(Err(reason)),
            Err(_) => return Ok(Err("no answer in time".to_owned())),
        };
        loop {
            let piece = match timeout(CHUNK_LIMIT, stream.next()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) => return Ok(Ok(())),
                Ok(Err(reason)) => return Ok(Err(reason)),
                Err(_) => return Ok(Err("the delivery stood still".to_owned())),
            };
            *received += piece.len() as u64;
            if *received > self.size {
                let reason = format!("it is longer than {} bytes", self.size);
                return Err(ImageError::Wrong {
                    sha256: self.sha256.clone(),
                    reason,
                });
            }
            digest.update(&piece);
            file.write_all(&piece).map_err(self.io("write"))?;
        }
    }

    fn finish(&self, file: &File, part: &Path, digest: Sha256) -> Result<PathBuf, ImageError> {
        let found = hex::encode(digest.finalize());
        if found != self.sha256 {
            let reason = format!("its sha256 is {found}");
            return Err(ImageError::Wrong {
                sha256: self.sha256.clone(),
                reason,
            });
        }
        file.sync_all().map_err(self.io("sync"))?;
        let mut permissions = file.metadata().map_err(self.io("look at"))?.permissions();
        permissions.set_readonly(true);
        file.set_permissions(permissions).map_err(self.io("protect"))?;
        let target = self.folder.join(&self.sha256);
        fs::rename(part, &target).map_err(self.io("keep"))?;
        File::open(&self.folder)
            .and_then(|f| f.sync_all())
            .map_err(self.io("keep"))?;
        Ok(target)
    }

    fn io(&self, action: &'static str) -> impl FnOnce(io::Error) -> ImageError {
        let (sha256, size_bytes) = (self.sha256.clone(), self.size);
        move |source| {
            if source.kind() == io::ErrorKind::StorageFull {
                ImageError::DiskFull { sha256, size_bytes }
            } else {
                ImageError::Io {
                    action,
                    sha256,
                    source: Arc::new(source),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Delivers `data` in pieces of 10 bytes and breaks off after `pieces` of them, `breaks` times.
    #[derive(Debug)]
    struct Shop {
        data: Vec<u8>,
        opened: AtomicU32,
        breaks: u32,
    }

    struct Delivery {
        rest: Vec<Bytes>,
        breaks: bool,
    }

    impl ImageStream for Delivery {
        fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, String>> {
            let next = match self.rest.pop() {
                Some(piece) => Ok(Some(piece)),
                None if self.breaks => Err("broken".to_owned()),
                None => Ok(None),
            };
            async move {
                tokio::task::yield_now().await;
                next
            }
            .boxed()
        }
    }

    impl ImageSource for Shop {
        fn open(&self, _: &str, offset: u64) -> BoxFuture<'_, Result<Box<dyn ImageStream>, String>> {
            let n = self.opened.fetch_add(1, Ordering::SeqCst);
            let from = usize::try_from(offset).unwrap();
            let mut rest: Vec<Bytes> = self.data[from..].chunks(10).map(Bytes::copy_from_slice).collect();
            let breaks = n < self.breaks;
            if breaks {
                rest.truncate(2);
            }
            rest.reverse();
            async move { Ok(Box::new(Delivery { rest, breaks }) as Box<dyn ImageStream>) }.boxed()
        }
    }

    fn shop(data: &[u8], breaks: u32) -> (Arc<Shop>, ImageRef) {
        let shop = Shop {
            data: data.to_vec(),
            opened: AtomicU32::new(0),
            breaks,
        };
        let sha256 = hex::encode(Sha256::digest(data));
        let image = ImageRef {
            sha256,
            size_bytes: data.len() as u64,
            ..Default::default()
        };
        (Arc::new(shop), image)
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .flatten()
            .map(|e| e.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn many_ask_and_it_is_fetched_once_across_broken_streams() {
        let dir = tempfile::tempdir().unwrap();
        let (shop, image) = shop(&[5; 95], 2);
        let cache = ImageCache::open(dir.path(), 1, shop.clone()).unwrap();
        let none = BTreeSet::new();
        let all = futures::future::join_all((0..20).map(|_| cache.ensure(&image, &none))).await;
        for path in all {
            assert_eq!(fs::read(path.unwrap()).unwrap(), [5; 95]);
        }
        assert_eq!(
            shop.opened.load(Ordering::SeqCst),
            3,
            "one fetch: two broken streams and a whole one"
        );
        assert_eq!(names(dir.path()), std::slice::from_ref(&image.sha256));
        cache.ensure(&image, &none).await.unwrap();
        assert_eq!(shop.opened.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_wrong_image_is_refused_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let (shop, mut image) = shop(b"a good image", 0);
        let cache = ImageCache::open(dir.path(), 1, shop).unwrap();
        image.sha256 = "0".repeat(64);
        let error = cache.ensure(&image, &BTreeSet::new()).await.unwrap_err();
        assert!(error.to_string().contains("its sha256 is"), "{error}");
        image.size_bytes = 5;
        let error = cache.ensure(&image, &BTreeSet::new()).await.unwrap_err();
        assert!(error.to_string().contains("longer than 5 bytes"), "{error}");
        image.sha256 = "../../etc/passwd".to_owned();
        assert!(matches!(
            cache.ensure(&image, &BTreeSet::new()).await,
            Err(ImageError::Reference(_))
        ));
        assert!(names(dir.path()).is_empty());
    }

    /// Runs the test below with a file system of 64 KiB in a mount namespace of its own.
    #[test]
    fn a_full_disk_is_said_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let script = "mount -t tmpfs -o size=64k none \"$1\" && cd \"$1\" && \
                      exec \"$0\" --exact images::tests::a_full_disk_inside --ignored";
        let exe = std::env::current_exe().unwrap();
        let mut command = std::process::Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", script])
            .arg(exe)
            .arg(dir.path());
        match command.output() {
            Ok(output) if output.status.success() => {
                assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
            }
            Ok(output) if String::from_utf8_lossy(&output.stderr).contains("not permitted") => {
                println!("SKIPPED: no privilege for mount namespaces");
            }
            Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stdout)),
            Err(error) => println!("SKIPPED: cannot start `unshare`: {error}"),
        }
    }

    #[tokio::test]
    #[ignore = "run by `a_full_disk_is_said_and_leaves_no_file` on a tiny file system"]
    async fn a_full_disk_inside() {
        let here = std::env::current_dir().unwrap();
        let (shop, image) = shop(&[9; 200_000], 0);
        let cache = ImageCache::open(&here.join("images"), 1, shop).unwrap();
        let error = cache.ensure(&image, &BTreeSet::new()).await.unwrap_err();
        assert!(
            error.to_string().starts_with("the disk of this node is full"),
            "{error}"
        );
        assert!(names(&here.join("images")).is_empty());
    }

    #[tokio::test]
    async fn only_unused_images_are_evicted() {
        let dir = tempfile::tempdir().unwrap();
        let (shop, image) = shop(b"newest", 0);
        for (name, age_s) in [("old-used", 300), ("old-unused", 200)] {
            let path = dir.path().join(name);
            fs::write(&path, vec![0; 1 << 20]).unwrap();
            let then = SystemTime::now() - Duration::from_secs(age_s);
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(then)
                .unwrap();
        }
        fs::write(dir.path().join("half.part"), b"x").unwrap();
        let cache = ImageCache::open(dir.path(), 1, shop).unwrap();
        let used = BTreeSet::from(["old-used".to_owned()]);
        cache.ensure(&image, &used).await.unwrap();
        assert_eq!(names(dir.path()), [image.sha256, "old-used".to_owned()]);
    }
}
