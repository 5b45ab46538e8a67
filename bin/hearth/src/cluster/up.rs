//! `hearth up`: from whatever state to a running cluster that this command line is signed in to.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::future::join_all;
use hearth_types::{ErrorKind, Name};
use plasmavmc_client::types::{ImageFormat, NodeState, Vm};
use plasmavmc_client::{ImageUpload, PlasmaClient};

use super::first_vm;
use super::init::{self, Wanted};
use super::layout::Layout;
use super::sign_in::{self, PROJECT, credentials_file};
use super::status::{Asker, PartStatus};
use crate::context::Context;
use crate::failure::fail;
use crate::output::{Progress, note, print, table};
use crate::processes::Known;

/// How long all services may take to become ready.
const READY_LIMIT: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(200);
/// Lines of a log that are shown when its process does not come up.
const LOG_LINES: usize = 12;

pub(crate) struct Options {
    pub(crate) wanted: Wanted,
    pub(crate) first_vm: bool,
    pub(crate) image: Option<PathBuf>,
}

pub(crate) async fn run(data: &Path, options: &Options, context: &Context) -> Result<()> {
    let begin = Instant::now();
    let (layout, new) = init::run(data, &options.wanted)?;
    if new {
        note(format!("made a new cluster in {}", layout.data.display()));
    }
    let tiny = tiny_image(options.image.as_deref());
    if let Some(tiny) = &tiny {
        copy_probe_image(&layout, tiny)?;
    }
    start_supervisor(&layout)?;
    wait_ready(&layout).await?;
    note(format!(
        "all services are ready after {:.1} s",
        begin.elapsed().as_secs_f64()
    ));
    if !sign_in::run(&layout, context).await? {
        return summary(&layout, None);
    }
    let client = context.plasmavmc().await?;
    wait_nodes(&layout, &client).await?;
    let image = register_image(&client, tiny).await?;
    if !options.first_vm {
        first_vm::note_decided(&layout)?;
    }
    let mut vm = None;
    if image && !first_vm::is_decided(&layout) {
        let project: Name = PROJECT.parse().context("the project's name")?;
        vm = Some(first_vm::run(&layout, &client, &project).await?);
    }
    summary(&layout, vm.as_ref())
}

/// Starts the supervisor in a session of its own, unless it runs.
fn start_supervisor(layout: &Layout) -> Result<()> {
    if Known::from_file(&layout.pid_file("supervisor")).is_some() {
        return Ok(());
    }
    let adopted = layout
        .parts()
        .iter()
        .any(|p| Known::from_file(&layout.pid_file(&p.name)).is_some());
    // Processes that outlived their supervisor hold their ports rightly; the supervisor takes them over.
    if !adopted {
        init::ports_are_free(layout)?;
    }
    let program = hearthd()?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(layout.log("supervisor"))?;
    Command::new(&program)
        .args(["supervise", "--detach", "--data-dir"])
        .arg(&layout.data)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .current_dir("/")
        .spawn()
        .with_context(|| format!("cannot start `{}`", program.display()))?;
    Ok(())
}

/// The server program beside this one.
pub(crate) fn hearthd() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let program = own.with_file_name("hearthd");
    if program.exists() {
        return Ok(program);
    }
    Err(fail(
        ErrorKind::FailedPrecondition,
        format!("the server program `{}` is not there", program.display()),
        "`./hearth up` builds both programs",
    ))
}

async fn wait_ready(layout: &Layout) -> Result<()> {
    let asker = Asker::new(layout)?;
    let parts = layout.parts();
    let begin = Instant::now();
    let mut progress = Progress::new();
    let mut reported = vec![];
    loop {
        let all = join_all(parts.iter().map(|part| asker.part(layout, part))).await;
        for part in all.iter().filter(|p| p.ready) {
            if !reported.contains(&part.name) {
                progress.done(format!("  {:<14} ready", part.name));
                reported.push(part.name.clone());
            }
        }
        let waiting: Vec<&PartStatus> = all.iter().filter(|p| !p.ready).collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let supervised = Known::from_file(&layout.pid_file("supervisor")).is_some();
        if begin.elapsed() > READY_LIMIT || (!supervised && begin.elapsed() > Duration::from_secs(5)) {
            drop(progress);
            return Err(not_ready(layout, &waiting, supervised));
        }
        let names: Vec<&str> = waiting.iter().map(|p| p.name.as_str()).collect();
        progress.show(format!("waiting for {}", names.join(", ")));
        tokio::time::sleep(LOOK).await;
    }
}

fn not_ready(layout: &Layout, waiting: &[&PartStatus], supervised: bool) -> anyhow::Error {
    let mut logs: Vec<String> = waiting.iter().take(3).map(|p| p.name.clone()).collect();
    if !supervised {
        logs.insert(0, "supervisor".to_owned());
    }
    for name in &logs {
        let path = layout.log(name);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        note(format!("--- the end of {}", path.display()));
        for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES)) {
            note(format!("  | {line}"));
        }
    }
    let why: Vec<String> = waiting
        .iter()
        .map(|p| format!("{} ({})", p.name, p.detail))
        .collect();
    fail(
        ErrorKind::Unavailable,
        format!("not everything became ready: {}", why.join(", ")),
        "the logs above say why; `hearth doctor` looks for common causes; `hearth up` tries again",
    )
}

/// VMs can be placed once every node has reported itself.
async fn wait_nodes(layout: &Layout, client: &PlasmaClient) -> Result<()> {
    let begin = Instant::now();
    let mut progress = Progress::new();
    loop {
        let nodes = client.list_nodes().await.context("cannot list the nodes")?.items;
        let ready = nodes.iter().filter(|n| n.state == NodeState::Ready).count();
        if u32::try_from(ready).unwrap_or(u32::MAX) >= layout.choices.nodes {
            if let Some(node) = nodes.first() {
                progress.done(format!(
                    "nodes: {ready}; guests run with {} ({}), network: {}",
                    node.accelerator, node.accelerator_reason, node.network_mode
                ));
            }
            return Ok(());
        }
        if begin.elapsed() > READY_LIMIT {
            return Err(fail(
                ErrorKind::Unavailable,
                format!(
                    "{ready} of {} nodes have reported themselves",
                    layout.choices.nodes
                ),
                format!("the agents' logs are in {}", layout.data.join("log").display()),
            ));
        }
        progress.show(format!("waiting for nodes: {ready} of {}", layout.choices.nodes));
        tokio::time::sleep(LOOK).await;
    }
}

/// The file named, else the one that `./hearth` makes beside the built programs.
fn tiny_image(given: Option<&Path>) -> Option<PathBuf> {
    let beside = || {
        Some(
            std::env::current_exe()
                .ok()?
                .parent()?
                .parent()?
                .join("images/tiny.qcow2"),
        )
    };
    given
        .map(Path::to_path_buf)
        .or_else(beside)
        .filter(|path| path.exists())
}

/// The agents' own copy: the clone with the build may go away.
fn copy_probe_image(layout: &Layout, tiny: &Path) -> Result<()> {
    let path = layout.probe_image();
    if path.exists() {
        return Ok(());
    }
    let new = path.with_extension("new");
    std::fs::copy(tiny, &new)
        .and_then(|_| std::fs::rename(&new, &path))
        .with_context(|| format!("cannot copy the tiny image to `{}`", path.display()))
}

/// Registers the tiny image when it is absent; false when there is no file to register.
async fn register_image(client: &PlasmaClient, tiny: Option<PathBuf>) -> Result<bool> {
    let name: Name = "tiny".parse().context("the image's name")?;
    match client.get_image(&name).await {
        Ok(_) => return Ok(true),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error).context("cannot look for the image `tiny`"),
    }
    let Some(path) = tiny else {
        note(
            "there is no file of the tiny image: make it with images/tiny/build.sh and import it with `hearth image import FILE --name tiny`",
        );
        return Ok(false);
    };
    let upload = ImageUpload {
        name,
        format: ImageFormat::Qcow2,
        path,
        sha256: None,
    };
    let image = client
        .upload_image(&upload, |_, _| {})
        .await
        .context("cannot register the image `tiny`")?;
    note(format!(
        "registered the image `tiny` ({})",
        crate::output::bytes(image.size_bytes)
    ));
    Ok(true)
}

fn summary(layout: &Layout, vm: Option<&Vm>) -> Result<()> {
    let mut rows = vec![
        ("sign-in and rights", layout.aegis_url()),
        ("virtual machines", layout.plasmavmc_url()),
        ("store (etcd v3)", layout.chainfire_endpoints().join(", ")),
        (
            "DNS",
            format!("127.0.0.1:{} for {}", layout.dns_port(), layout.choices.domain),
        ),
        (
            "administrator",
            format!("name and password in {}", credentials_file(layout).display()),
        ),
        ("data", layout.data.display().to_string()),
        ("logs", layout.data.join("log").display().to_string()),
    ];
    if let Some(vm) = vm {
        let address = vm.address.map_or_else(|| "-".to_owned(), |a| a.to_string());
        rows.push(("first VM", format!("{} at {address}, {}", vm.name, vm.dns_name)));
        rows.push((
            "its console",
            format!("hearth vm console {} (leave with Ctrl-])", vm.name),
        ));
        rows.push((
            "its name",
            format!("dig @127.0.0.1 -p {} {}", layout.dns_port(), vm.dns_name),
        ));
    }
    rows.push((
        "next",
        "hearth vm create web --image tiny --wait; hearth status; hearth down".to_owned(),
    ));
    let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]);
    print(&table(&["what", "where"], rows))
}
