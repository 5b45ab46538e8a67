//! A guest as its user sees it: its serial console, ping, TCP, its name.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{Cmd, wait};

/// What the tiny guest prints first and last.
const ENDS_OF_A_BOOT: [&str; 3] = [
    "hearth-tiny: kernel is up",
    "hearth-tiny: powering off",
    "reboot: Power down",
];

/// An open `hearth vm console`.
#[derive(Debug)]
pub struct Console {
    child: Child,
    stdin: Option<std::process::ChildStdin>,
    seen: Arc<Mutex<Vec<u8>>>,
    errors: File,
}

impl Console {
    /// Starts `hearth vm console NAME`, given as `command`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn open(command: Cmd) -> Result<Console> {
        let errors = tempfile::tempfile()?;
        let mut child = command
            .into_command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors.try_clone()?)
            .spawn()
            .context("cannot start the console")?;
        let seen = Arc::new(Mutex::new(vec![]));
        let mut stdout = child.stdout.take().context("no output")?;
        let sink = seen.clone();
        // Ends when the console's process does.
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut chunk) {
                let bytes = chunk.get(..count).unwrap_or_default();
                sink.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(bytes);
            }
        });
        let stdin = child.stdin.take();
        Ok(Console {
            child,
            stdin,
            seen,
            errors,
        })
    }

    /// Everything that was shown so far.
    #[must_use]
    pub fn text(&self) -> String {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&seen).into_owned()
    }

    /// Types a line.
    ///
    /// # Errors
    /// When the console has ended.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the console is closed")?;
        stdin.write_all(line.as_bytes())?;
        stdin.write_all(b"\r")?;
        stdin.flush().context("the console took no input")
    }

    /// Waits until `wanted` has been shown.
    ///
    /// # Errors
    /// At the limit; with what was shown.
    pub fn expect(&mut self, wanted: &str, seconds: u64) -> Result<()> {
        let found = wait::until(&format!("`{wanted}` on the console"), seconds, || {
            if self.text().contains(wanted) {
                return Ok(Some(()));
            }
            if let Some(status) = self.child.try_wait()? {
                // Its last words may still be on their way through the pipe.
                std::thread::sleep(Duration::from_millis(200));
                ensure!(self.text().contains(wanted), "the console ended: {status}");
            }
            Ok(None)
        });
        found.with_context(|| format!("shown so far:\n{}\nerrors:\n{}", self.text(), self.errors()))
    }

    /// Signs in as `root` (the tiny image asks for no password on its console).
    ///
    /// # Errors
    /// When there is no prompt.
    pub fn log_in(&mut self, name: &str) -> Result<()> {
        self.expect_prompt(&format!("{name} login:"))?;
        // A shell that an earlier console left open answers, too: the line is then an unknown command.
        self.type_line("root")?;
        self.run("true").map(drop)
    }

    /// The console's history reaches back beyond the last boot: only what was shown since then counts.
    fn expect_prompt(&mut self, prompt: &str) -> Result<()> {
        let found = wait::until_ok(&format!("`{prompt}` since the last boot"), 90, || {
            let text = self.text();
            let boot = ENDS_OF_A_BOOT.iter().filter_map(|end| text.rfind(end)).max();
            ensure!(
                text.get(boot.unwrap_or(0)..).unwrap_or_default().contains(prompt),
                "not yet"
            );
            Ok(())
        });
        found.with_context(|| format!("shown so far:\n{}\nerrors:\n{}", self.text(), self.errors()))
    }

    /// Runs one line in the guest's shell; what it printed, white space trimmed.
    ///
    /// # Errors
    /// When its end is not seen in time.
    pub fn run(&mut self, line: &str) -> Result<String> {
        let from = self.text().len();
        // The marker is computed in the guest, so that the echo of what was typed does not match it.
        let marker = format!("done-{}", from + 7);
        // The shell may not be there yet right after the sign-in: type again until it answers.
        for attempt in 0..5 {
            let begin = self.text().len();
            self.type_line(&format!(
                "echo begin-$(({from} + 7)); {line}; echo done-$(({from} + 7))"
            ))?;
            match self.expect(&marker, 6 + attempt * 3) {
                Ok(()) => {
                    let text = self.text();
                    let part = text.get(begin..).unwrap_or_default();
                    let (_, part) = part
                        .rsplit_once(&format!("begin-{}", from + 7))
                        .context("no begin")?;
                    let (part, _) = part.split_once(&marker).context("no end")?;
                    return Ok(part.trim().to_owned());
                }
                Err(error) if attempt == 4 => return Err(error),
                Err(_) => {}
            }
        }
        anyhow::bail!("not reached: the last attempt returns")
    }

    fn errors(&self) -> String {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; 4096];
        let count = self.errors.read_at(&mut bytes, 0).unwrap_or(0);
        bytes.truncate(count);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until the guest answers a ping.
///
/// # Errors
/// At the limit.
pub fn answers_ping(address: IpAddr, seconds: u64) -> Result<()> {
    wait::until_ok(&format!("ping {address}"), seconds, || {
        Cmd::new("ping")
            .words("-n -c 1 -W 2")
            .arg(address.to_string())
            .ok()
            .map(drop)
    })
}

/// Waits until the guest's echo service on TCP port 7 gives back what it was sent.
///
/// # Errors
/// At the limit.
pub fn answers_echo(address: IpAddr, seconds: u64) -> Result<()> {
    wait::until_ok(&format!("echo from {address}"), seconds, || {
        let limit = Duration::from_secs(3);
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, 7), limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"from the test\n")?;
        let mut answer = [0; 14];
        stream.read_exact(&mut answer)?;
        ensure!(&answer == b"from the test\n", "another answer: {answer:?}");
        Ok(())
    })
}

/// What the platform's name server says: `dig +short` with these words.
///
/// # Errors
/// When it does not answer.
pub fn dig(words: &str) -> Result<Vec<String>> {
    let output = Cmd::new("dig")
        .words("@127.0.0.1 -p 5300 +short +tries=1 +time=3")
        .words(words)
        .ok()?;
    Ok(output.stdout.lines().map(str::to_owned).collect())
}
