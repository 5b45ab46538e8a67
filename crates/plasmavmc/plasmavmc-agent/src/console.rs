//! Serial consoles: one connection to the guest, any number of viewers, each with a bounded backlog.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hearth_service::tasks::{Kind, Tasks};
use plasmavmc_hypervisor::ConsoleStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{broadcast, mpsc};

/// Output that a new viewer sees first.
pub(crate) const HISTORY_BYTES: usize = 64 << 10;
/// Pieces that a slow viewer may be behind; then it loses some, and is told.
const MAX_BEHIND: usize = 256;
/// Pieces of input waiting for the guest; then viewers wait.
const MAX_INPUT: usize = 64;
const READ_BYTES: usize = 4096;

/// Nobody can be connected, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the VM is not running: it has no console")]
pub(crate) struct NoConsole;

/// A viewer's side.
#[derive(Debug)]
pub(crate) struct Viewer {
    /// What was shown before.
    pub(crate) history: Bytes,
    /// What is shown from now on; no byte is missing or double between the two.
    pub(crate) output: broadcast::Receiver<Bytes>,
    /// Key strokes.
    pub(crate) input: mpsc::Sender<Bytes>,
}

#[derive(Debug)]
struct Live {
    history: VecDeque<u8>,
    output: broadcast::Sender<Bytes>,
    input: mpsc::Sender<Bytes>,
}

impl Live {
    fn show(&mut self, piece: Bytes) {
        self.history.extend(piece.iter());
        let excess = self.history.len().saturating_sub(HISTORY_BYTES);
        self.history.drain(..excess);
        // An error only says that nobody looks.
        let _ = self.output.send(piece);
    }
}

/// The console of one VM; empty while it does not run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Console(Arc<Mutex<Option<Live>>>);

impl Console {
    /// Takes over a fresh connection to the guest's serial port. Ends by itself with the machine.
    pub(crate) fn connect(&self, stream: Box<dyn ConsoleStream>, history: Vec<u8>, tasks: &Tasks) {
        let (input, keys) = mpsc::channel(MAX_INPUT);
        let live = Live {
            history: history.into(),
            output: broadcast::channel(MAX_BEHIND).0,
            input,
        };
        let own = live.output.clone();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(live);
        let console = self.clone();
        let stopping = tasks.clone();
        tasks.spawn("console", Kind::Background, async move {
            tokio::select! {
                () = console.serve(stream, keys, &own) => {}
                () = stopping.stopping() => {}
            }
            let mut slot = console.0.lock().unwrap_or_else(PoisonError::into_inner);
            if slot.as_ref().is_some_and(|live| live.output.same_channel(&own)) {
                *slot = None;
            }
            Ok(())
        });
    }

    /// Joins the viewers.
    pub(crate) fn attach(&self) -> Result<Viewer, NoConsole> {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let live = slot.as_ref().ok_or(NoConsole)?;
        Ok(Viewer {
            history: live.history.iter().copied().collect(),
            output: live.output.subscribe(),
            input: live.input.clone(),
        })
    }

    async fn serve(
        &self,
        stream: Box<dyn ConsoleStream>,
        mut keys: mpsc::Receiver<Bytes>,
        own: &broadcast::Sender<Bytes>,
    ) {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut buffer = vec![0; READ_BYTES];
        let output = async {
            // Always read, viewer or not: a guest whose console is not read stands still.
            while let Ok(n @ 1..) = reader.read(&mut buffer).await {
                let piece = Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default());
                let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                match slot.as_mut() {
                    Some(live) if live.output.same_channel(own) => live.show(piece),
                    _ => break,
                }
            }
        };
        let input = async {
            while let Some(piece) = keys.recv().await {
                if writer.write_all(&piece).await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = output => {}
            () = input => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::net::UnixStream;

    async fn read(viewer: &mut Viewer) -> Bytes {
        tokio::time::timeout(Duration::from_secs(5), viewer.output.recv())
            .await
            .unwrap()
            .unwrap()
    }

    #[tokio::test]
    async fn viewers_see_history_then_everything_and_all_may_type() {
        let (tasks, console) = (Tasks::new(), Console::default());
        assert_eq!(console.attach().unwrap_err(), NoConsole);
        let (ours, mut guest) = UnixStream::pair().unwrap();
        console.connect(Box::new(ours), b"earlier ".to_vec(), &tasks);
        let mut first = console.attach().unwrap();
        guest.write_all(b"boot").await.unwrap();
        assert_eq!(read(&mut first).await, "boot");
        let mut second = console.attach().unwrap();
        assert_eq!(second.history, "earlier boot");
        for viewer in [&first, &second] {
            viewer.input.send(Bytes::from_static(b"x")).await.unwrap();
        }
        let mut typed = [0; 2];
        guest.read_exact(&mut typed).await.unwrap();
        guest.write_all(b"login").await.unwrap();
        assert_eq!(
            (read(&mut first).await, read(&mut second).await),
            ("login".into(), "login".into())
        );
        drop(guest);
        while console.attach().is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn nobody_looking_does_not_stop_the_guest_and_history_is_bounded() {
        let (tasks, console) = (Tasks::new(), Console::default());
        let (ours, mut guest) = UnixStream::pair().unwrap();
        console.connect(Box::new(ours), Vec::new(), &tasks);
        let lines = vec![b'a'; 4 * HISTORY_BYTES];
        tokio::time::timeout(Duration::from_secs(10), guest.write_all(&lines))
            .await
            .unwrap()
            .unwrap();
        guest.write_all(b"end").await.unwrap();
        let mut viewer = console.attach().unwrap();
        while !viewer.history.ends_with(b"end") {
            tokio::time::sleep(Duration::from_millis(5)).await;
            viewer = console.attach().unwrap();
        }
        assert_eq!(viewer.history.len(), HISTORY_BYTES);
    }
}
