//! The end of the very first start: a VM `hello`, shown as it boots.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hearth_types::{ErrorKind, Name};
use plasmavmc_client::types::{Vm, VmCreate};
use plasmavmc_client::{Console, PlasmaClient};

use super::layout::Layout;
use crate::commands::vm::{WAIT_LIMIT, wait_settled};
use crate::output::{Progress, note};

pub(crate) const NAME: &str = "hello";
/// Its login prompt shows within this time, also under emulation on a loaded machine.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// A console that shows nothing for so long is sent a line feed: the prompt may be there already.
const SILENCE: Duration = Duration::from_secs(4);

/// Creates it (again, when an earlier attempt was cut short) and follows it to its login.
pub(crate) async fn run(layout: &Layout, client: &PlasmaClient, project: &Name) -> Result<Vm> {
    let name: Name = NAME.parse().context("the first VM's name")?;
    let request = VmCreate::new(NAME, "tiny");
    match client.create_vm(project, &request, None).await {
        Ok(_) => {}
        Err(error) if error.kind() == Some(ErrorKind::AlreadyExists) => {}
        Err(error) => return Err(error).context("cannot create the VM `hello`"),
    }
    let mut progress = Progress::new();
    let vm = wait_settled(client, project, &name, WAIT_LIMIT, &mut progress).await?;
    drop(progress);
    let mut console = client
        .console(project, &name)
        .await
        .context("cannot open the console of `hello`")?;
    note(format!("the console of `{NAME}`:"));
    let followed = follow(&mut console).await;
    console.close().await;
    followed?;
    // Only now: a start that was cut short shows it again.
    note_decided(layout)?;
    Ok(vm)
}

/// Whether it was shown, or left out on request: later starts do not make it again.
pub(crate) fn is_decided(layout: &Layout) -> bool {
    marker(layout).exists()
}

pub(crate) fn note_decided(layout: &Layout) -> Result<()> {
    std::fs::write(marker(layout), b"the first VM was shown or left out\n")
        .context("cannot leave a note in the data folder")
}

fn marker(layout: &Layout) -> std::path::PathBuf {
    layout.data.join("first-vm")
}

/// Shows whole lines until the login prompt.
async fn follow(console: &mut Console) -> Result<()> {
    let begin = Instant::now();
    let mut line = String::new();
    while begin.elapsed() < BOOT_LIMIT {
        match tokio::time::timeout(SILENCE, console.recv()).await {
            Err(_) => console.send("\r").await?,
            Ok(bytes) => {
                let Some(bytes) = bytes? else {
                    anyhow::bail!("the console ended before the login prompt")
                };
                for c in String::from_utf8_lossy(&bytes).chars() {
                    match c {
                        '\n' => show(&mut line),
                        c if !c.is_control() => line.push(c),
                        _ => {}
                    }
                }
                if line.contains("login:") {
                    show(&mut line);
                    return Ok(());
                }
            }
        }
    }
    anyhow::bail!(
        "no login prompt within {} s; `hearth vm console hello` shows its console",
        BOOT_LIMIT.as_secs()
    )
}

fn show(line: &mut String) {
    if !line.trim().is_empty() {
        note(format!("  | {}", line.trim_end()));
    }
    line.clear();
}
