//! What a machine's serial console leaves on disk, and connections to sockets in machines' folders.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use crate::intent::write_durably;

/// The console's log is cut to [`KEPT_LOG`] when it is larger than this.
const MAX_LOG: u64 = 1 << 20;
/// What is kept of it.
const KEPT_LOG: usize = 256 << 10;
/// File names in a machine's folder.
pub(crate) const CONSOLE_LOG: &str = "console.log";
const OLD_LOG: &str = "console.log.old";

/// Both directions of a serial console.
pub trait ConsoleStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ConsoleStream for T {}

/// Connects to a socket in `folder`, however long the folder's path is.
pub(crate) async fn connect(folder: &Path, name: &str) -> io::Result<UnixStream> {
    let handle = File::open(folder)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", handle.as_raw_fd())).await
}

/// The last `max` bytes of a file; empty when there is none.
pub(crate) fn tail(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let skip = file.metadata()?.len().saturating_sub(max as u64);
    file.seek(SeekFrom::Start(skip))?;
    let mut bytes = Vec::new();
    file.take(max as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The last bytes of the console of a folder, at most `max`.
pub(crate) fn history(folder: &Path, max: usize) -> io::Result<Vec<u8>> {
    let recent = tail(&folder.join(CONSOLE_LOG), max)?;
    if recent.len() >= max {
        return Ok(recent);
    }
    let mut bytes = tail(&folder.join(OLD_LOG), max - recent.len())?;
    bytes.extend_from_slice(&recent);
    Ok(bytes)
}

/// Cuts the console's log of a folder when it has grown too large.
pub(crate) fn trim(folder: &Path) -> io::Result<()> {
    let path = folder.join(CONSOLE_LOG);
    let size = match fs::metadata(&path) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if size > MAX_LOG {
        write_durably(folder, OLD_LOG, &tail(&path, KEPT_LOG)?)?;
        OpenOptions::new().write(true).open(&path)?.set_len(0)?;
    }
    Ok(())
}
