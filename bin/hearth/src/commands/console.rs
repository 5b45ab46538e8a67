//! A VM's serial console on this terminal.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hearth_types::Name;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use plasmavmc_client::{Console, PlasmaClient};
use tokio::io::AsyncReadExt;

use crate::output::note;

/// Ctrl-].
const LEAVE: u8 = 0x1d;
/// After the end of piped input, the guest gets so long without a word before the console is left.
const SILENCE: Duration = Duration::from_secs(2);

/// The terminal in raw mode; as it was when dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Result<Raw> {
        let before = tcgetattr(std::io::stdin()).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw).context("cannot set the terminal")?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

pub(crate) async fn run(client: &PlasmaClient, project: &Name, name: &Name) -> Result<()> {
    let mut console = client.console(project, name).await?;
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        note(format!("console of `{name}`; Ctrl-] leaves it"));
    }
    let raw = if terminal { Some(Raw::enter()?) } else { None };
    let outcome = follow(&mut console, terminal).await;
    console.close().await;
    drop(raw);
    if terminal {
        note("");
    }
    outcome
}

async fn follow(console: &mut Console, terminal: bool) -> Result<()> {
    let mut stdin = tokio::io::stdin();
    let mut buffer = [0; 1024];
    let mut open = true;
    loop {
        tokio::select! {
            // Both are cancel-safe: nothing is lost when the other is first.
            read = stdin.read(&mut buffer), if open => {
                let n = read.context("cannot read standard input")?;
                let typed = buffer.get(..n).unwrap_or_default();
                if n == 0 {
                    open = false;
                } else if let Some(end) = typed.iter().position(|b| terminal && *b == LEAVE) {
                    console.send(typed.get(..end).unwrap_or_default().to_vec()).await?;
                    return Ok(());
                } else {
                    console.send(typed.to_vec()).await?;
                }
            }
            received = console.recv() => {
                let Some(bytes) = received? else {
                    note("\r\nthe console has ended");
                    return Ok(());
                };
                let mut out = std::io::stdout().lock();
                out.write_all(&bytes).and_then(|()| out.flush()).context("cannot write to standard output")?;
            }
            () = tokio::time::sleep(SILENCE), if !open => return Ok(()),
        }
    }
}
