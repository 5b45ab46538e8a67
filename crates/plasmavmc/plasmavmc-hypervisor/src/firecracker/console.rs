//! The serial console: Firecracker's own standard input and output.
//!
//! Output goes to a file, opened for appending, so that nobody has to be there to take it. Input comes
//! from a named pipe that Firecracker itself holds open for writing too: it never ends. So both survive
//! the owner, and the next one opens them again.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::Mode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::time::{Sleep, sleep};

use crate::HypervisorError;
use crate::serial::CONSOLE_LOG;

/// The pipe, in the machine's folder.
pub(super) const INPUT: &str = "console.in";
/// Pauses between looks at the file: short while there is output, longer in silence.
const BUSY: Duration = Duration::from_millis(10);
const QUIET: Duration = Duration::from_millis(250);

/// Makes what Firecracker gets as its standard input and output.
pub(super) fn make(folder: &Path) -> Result<(File, File), HypervisorError> {
    let (input, output) = (folder.join(INPUT), folder.join(CONSOLE_LOG));
    match nix::unistd::mkfifo(&input, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(HypervisorError::io("make", input)(error.into())),
    }
    // Both ways: opening does not wait for a writer, and reading never sees an end.
    let stdin = OpenOptions::new().read(true).write(true).open(&input);
    let stdin = stdin.map_err(HypervisorError::io("open", input))?;
    let stdout = OpenOptions::new().create(true).append(true).open(&output);
    let stdout = stdout.map_err(HypervisorError::io("open", output))?;
    Ok((stdin, stdout))
}

/// Follows the output from now on, and writes to the input.
#[derive(Debug)]
pub(super) struct Follow {
    file: File,
    at: u64,
    pause: Duration,
    wait: Pin<Box<Sleep>>,
    input: pipe::Sender,
}

impl Follow {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let mut file = File::open(folder.join(CONSOLE_LOG))?;
        let at = file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            at,
            pause: BUSY,
            wait: Box::pin(sleep(Duration::ZERO)),
            input: pipe::OpenOptions::new().open_sender(folder.join(INPUT))?,
        })
    }

    /// Reads what is there. Few bytes of a file that was written a moment ago: this does not wait for a disk.
    fn read_now(&mut self, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
        if self.file.metadata()?.len() < self.at {
            // The log was cut short.
            self.at = self.file.seek(SeekFrom::Start(0))?;
        }
        let count = self.file.read(buffer.initialize_unfilled())?;
        buffer.advance(count);
        self.at += count as u64;
        Ok(count)
    }
}

impl AsyncRead for Follow {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.wait.as_mut().poll(cx));
            if self.read_now(buffer)? > 0 {
                self.pause = BUSY;
                return Poll::Ready(Ok(()));
            }
            self.wait = Box::pin(sleep(self.pause));
            self.pause = (self.pause * 2).min(QUIET);
        }
    }
}

impl AsyncWrite for Follow {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.input).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn output_is_followed_over_a_cut_and_input_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let (mut stdin, mut stdout) = make(dir.path()).unwrap();
        stdout.write_all(b"before").unwrap();
        let mut console = Follow::open(dir.path()).unwrap();
        stdout.write_all(b"one two three").unwrap();
        let mut buffer = [0; 13];
        console.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"one two three");
        stdout.set_len(0).unwrap();
        stdout.write_all(b"four").unwrap();
        let mut buffer = [0; 4];
        console.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"four");
        console.write_all(b"keys").await.unwrap();
        let mut keys = [0; 4];
        stdin.read_exact(&mut keys).unwrap();
        assert_eq!(&keys, b"keys");
    }
}
