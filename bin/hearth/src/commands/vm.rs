//! Virtual machines.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hearth_types::{ErrorKind, Labels, Name};
use plasmavmc_client::PlasmaClient;
use plasmavmc_client::types::{Explanation, NodeExplanation, Vm, VmCreate, VmState, VmStop};

use super::{Env, console, op};
use crate::cli::{Vm as Command, VmCreate as CreateArgs, Wait};
use crate::failure::fail;
use crate::output::{Format, Progress, Row, bytes, note};

/// Longest wait where the user gives none.
pub(crate) const WAIT_LIMIT: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(250);
/// A failure that lasts so long is reported; the node goes on trying.
const FAILED_FOR: Duration = Duration::from_secs(10);
/// Most VMs that a listing shows.
const LIST_LIMIT: usize = 100_000;

impl Row for Vm {
    const HEADER: &'static [&'static str] = &[
        "name", "state", "address", "node", "cpus", "memory", "image", "dns",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            state(self),
            self.address.map_or_else(|| "-".to_owned(), |a| a.to_string()),
            self.node.clone().unwrap_or_else(|| "-".to_owned()),
            self.vcpus.to_string(),
            bytes(self.memory_bytes),
            self.image.clone(),
            self.dns_name.clone(),
        ]
    }
}

/// A guest that stands still runs, but not for people.
fn state(vm: &Vm) -> String {
    if vm.paused {
        "paused".to_owned()
    } else {
        vm.state.to_string()
    }
}

pub(crate) async fn run(env: &Env, command: Command) -> Result<()> {
    let client = env.plasmavmc().await?;
    let project = env.context.project(env.global.project.as_ref())?;
    match command {
        Command::Create(args) => create(env, &client, &project, *args).await,
        Command::List => env.out.list(&client.all_vms(&project, LIST_LIMIT).await?),
        Command::Show { name } => show(env, &client.get_vm(&project, &existing(&name)?).await?),
        Command::Start { name, wait } => {
            let name = existing(&name)?;
            let vm = client.start_vm(&project, &name).await?;
            settle(env, &client, vm, &wait).await
        }
        Command::Stop {
            name,
            force,
            grace,
            wait,
        } => {
            let name = existing(&name)?;
            let vm = client
                .stop_vm(
                    &project,
                    &name,
                    &VmStop {
                        force,
                        timeout_s: grace,
                    },
                )
                .await?;
            settle(env, &client, vm, &wait).await
        }
        Command::Reset { name, wait } => {
            let vm = client.reset_vm(&project, &existing(&name)?).await?;
            settle(env, &client, vm, &wait).await
        }
        Command::Pause { name, wait } => {
            let vm = client.pause_vm(&project, &existing(&name)?).await?;
            settle(env, &client, vm, &wait).await
        }
        Command::Resume { name, wait } => {
            let vm = client.resume_vm(&project, &existing(&name)?).await?;
            settle(env, &client, vm, &wait).await
        }
        Command::Delete { name, wait } => delete(&client, &project, &existing(&name)?, &wait).await,
        Command::Console { name } => console::run(&client, &project, &existing(&name)?).await,
        Command::Explain { name } => explained(env, &client.explain_vm(&project, &existing(&name)?).await?),
    }
}

/// A name that no VM can have is a VM that does not exist; saying why helps more.
fn existing(name: &str) -> Result<Name> {
    name.parse().map_err(|error| {
        fail(
            ErrorKind::InvalidArgument,
            format!("`{name}` cannot be a VM's name: {error}"),
            "`hearth vm list` shows the names",
        )
    })
}

async fn create(env: &Env, client: &PlasmaClient, project: &Name, args: CreateArgs) -> Result<()> {
    let mut request = VmCreate::new(args.name, args.image);
    request.vcpus = args.cpus;
    request.memory_bytes = args.memory;
    request.disk_bytes = args.disk.unwrap_or(0);
    for file in &args.ssh_key {
        let keys = read(file)?;
        request.ssh_keys.extend(
            keys.lines()
                .map(str::trim)
                .filter(|k| !k.is_empty())
                .map(str::to_owned),
        );
    }
    if let Some(file) = &args.user_data {
        request.user_data = read(file)?;
    }
    request.labels = labels(args.label)?;
    request.node_selector = labels(args.node_label)?;
    request.groups = args.group;
    request.architecture = args.architecture;
    request.features = args.feature;
    request.one_numa_cell = args.one_numa_cell;
    request.ha = args.ha;
    if args.explain {
        return explained(env, &client.explain_creation(project, &request).await?);
    }
    let vm = client.create_vm(project, &request, None).await?;
    settle(env, client, vm, &args.wait).await
}

fn labels(pairs: Vec<(String, String)>) -> Result<Labels> {
    let pairs: BTreeMap<String, String> = pairs.into_iter().collect();
    Labels::try_from(pairs).map_err(|error| {
        fail(
            ErrorKind::InvalidArgument,
            error.to_string(),
            "labels are KEY=VALUE",
        )
    })
}

impl Row for NodeExplanation {
    const HEADER: &'static [&'static str] = &["node", "fits", "weight", "why"];

    fn cells(&self) -> Vec<String> {
        let millionths = |weight: u64| format!("{}.{:02} %", weight / 10_000, weight / 100 % 100);
        let why = match &self.weight {
            Some(weight) => {
                let parts = [
                    ("room", weight.room),
                    ("groups", weight.groups),
                    ("image", weight.image),
                ];
                let parts = parts.iter().filter(|(_, weight)| *weight > 0);
                let parts: Vec<_> = parts
                    .map(|(what, weight)| format!("{what} {}", millionths(*weight)))
                    .collect();
                parts.join(", ")
            }
            None => self.reasons.join(", "),
        };
        vec![
            format!("{}{}", self.node, if self.current { " (is there)" } else { "" }),
            if self.fits { "yes" } else { "no" }.to_owned(),
            self.weight
                .map_or_else(|| "-".to_owned(), |weight| millionths(weight.total)),
            why,
        ]
    }
}

/// Shows the nodes; what stands against all of them goes beside the table.
fn explained(env: &Env, explanation: &Explanation) -> Result<()> {
    if env.out.format != Format::Table {
        return env.out.one(explanation, &[]);
    }
    if let Some(quota) = &explanation.quota {
        note(format!("the quota does not allow it: {quota}"));
    } else if !explanation.placeable {
        note("no node can take it");
    }
    if let Some(restart) = &explanation.restart_elsewhere {
        note(format!("restart on another node: {restart}"));
    }
    env.out.list(&explanation.nodes)
}

fn read(file: &PathBuf) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))
}

/// Waits when asked to, then shows the VM.
async fn settle(env: &Env, client: &PlasmaClient, vm: Vm, wait: &Wait) -> Result<()> {
    if !wait.wait {
        return show(env, &vm);
    }
    let mut progress = Progress::new();
    let limit = Duration::from_secs(wait.timeout);
    let vm = match &vm.operation {
        Some(operation) => {
            op::wait(client, &vm.project, operation, limit, &mut progress).await?;
            client.get_vm(&vm.project, &vm.name).await?
        }
        // A server of before there were operations.
        None => wait_settled(client, &vm.project, &vm.name, limit, &mut progress).await?,
    };
    drop(progress);
    show(env, &vm)
}

/// Until the VM is as it is wanted. Losing the connection meanwhile loses nothing.
pub(crate) async fn wait_settled(
    client: &PlasmaClient,
    project: &Name,
    name: &Name,
    limit: Duration,
    progress: &mut Progress,
) -> Result<Vm> {
    let begin = Instant::now();
    let mut failed_since = None;
    let mut last = VmState::Scheduled;
    while begin.elapsed() < limit {
        match client.get_vm(project, name).await {
            Ok(vm) if vm.is_settled() => return Ok(vm),
            Ok(vm) => {
                let why = vm.state_reason.clone().unwrap_or_default();
                progress.show(format!(
                    "{name}: {}{}{why}",
                    vm.state,
                    if why.is_empty() { "" } else { ", " }
                ));
                last = vm.state;
                if vm.state != VmState::Failed {
                    failed_since = None;
                } else if failed_since.get_or_insert_with(Instant::now).elapsed() > FAILED_FOR {
                    return Err(fail(
                        ErrorKind::FailedPrecondition,
                        format!("the VM `{name}` could not be made so: {why}"),
                        format!(
                            "its node tries again; `hearth vm show {name}` shows it, `hearth vm delete {name}` gives up"
                        ),
                    ));
                }
            }
            Err(error) if error.kind() == Some(ErrorKind::Unavailable) => {
                progress.show(format!("{name}: waiting for PlasmaVMC"));
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(fail(
        ErrorKind::DeadlineExceeded,
        format!("the VM `{name}` was still {last} after {} s", limit.as_secs()),
        format!("it goes on; `hearth vm show {name}` shows it, --timeout waits longer"),
    ))
}

async fn delete(client: &PlasmaClient, project: &Name, name: &Name, wait: &Wait) -> Result<()> {
    let vm = client.delete_vm(project, name).await?;
    if !wait.wait {
        note(format!("deleting the VM `{name}`"));
        return Ok(());
    }
    let mut progress = Progress::new();
    let limit = Duration::from_secs(wait.timeout);
    if let Some(operation) = &vm.operation {
        op::wait(client, project, operation, limit, &mut progress).await?;
        drop(progress);
        note(format!("deleted the VM `{name}`"));
        return Ok(());
    }
    let begin = Instant::now();
    while begin.elapsed() < limit {
        match client.get_vm(project, name).await {
            Err(error) if error.is_not_found() => {
                drop(progress);
                note(format!("deleted the VM `{name}`"));
                return Ok(());
            }
            // Somebody made a new one of the same name: ours is gone.
            Ok(now) if now.id != vm.id => return Ok(()),
            Ok(now) => progress.show(format!("{name}: {}", now.state)),
            Err(error) if error.kind() == Some(ErrorKind::Unavailable) => {
                progress.show(format!("{name}: waiting for PlasmaVMC"));
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(fail(
        ErrorKind::DeadlineExceeded,
        format!("the VM `{name}` was still being deleted after {} s", wait.timeout),
        "it goes on; the same command waits for it again",
    ))
}

fn show(env: &Env, vm: &Vm) -> Result<()> {
    let people = [
        ("name", vm.name.to_string()),
        ("id", vm.id.to_string()),
        ("project", vm.project.to_string()),
        ("state", state(vm)),
        ("why", vm.state_reason.clone().unwrap_or_default()),
        ("address", vm.address.map(|a| a.to_string()).unwrap_or_default()),
        ("dns name", vm.dns_name.clone()),
        ("node", vm.node.clone().unwrap_or_default()),
        ("groups", vm.groups.join(", ")),
        (
            "when its node is lost",
            if vm.ha {
                "restarted elsewhere, from its image"
            } else {
                "waits for it"
            }
            .to_owned(),
        ),
        ("cpus", vm.vcpus.to_string()),
        ("memory", bytes(vm.memory_bytes)),
        ("disk", bytes(vm.disk_bytes)),
        ("image", vm.image.clone()),
        ("accelerator", vm.accelerator.clone().unwrap_or_default()),
        ("created", vm.created_at.clone()),
        ("started", vm.started_at.clone().unwrap_or_default()),
    ];
    env.out.one(vm, &people)
}
