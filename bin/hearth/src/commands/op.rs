//! Operations: what was asked of VMs, and what became of it.

use std::time::{Duration, Instant};

use anyhow::Result;
use hearth_types::{ErrorKind, Name};
use plasmavmc_client::PlasmaClient;
use plasmavmc_client::types::{Operation, OperationState};

use super::Env;
use crate::cli::Op as Command;
use crate::failure::fail;
use crate::output::{Progress, Row};

const LOOK: Duration = Duration::from_millis(250);
/// Trouble that lasts so long is reported; the node goes on trying.
const TROUBLE_FOR: Duration = Duration::from_secs(10);
/// Most operations that a listing shows.
const LIST_LIMIT: usize = 20_000;

impl Row for Operation {
    const HEADER: &'static [&'static str] = &["id", "kind", "vm", "state", "who", "begun", "ended", "why"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.kind.clone(),
            self.vm.to_string(),
            self.state.as_str().to_owned(),
            self.who.clone(),
            self.created_at.clone(),
            self.ended_at.clone().unwrap_or_else(|| "-".to_owned()),
            self.error.clone().unwrap_or_default(),
        ]
    }
}

pub(crate) async fn run(env: &Env, command: Command) -> Result<()> {
    let client = env.plasmavmc().await?;
    let project = env.context.project(env.global.project.as_ref())?;
    match command {
        Command::List { vm } => {
            let mut all = client.all_operations(&project, LIST_LIMIT).await?;
            all.retain(|one| vm.as_ref().is_none_or(|vm| one.vm.as_str() == vm));
            env.out.list(&all)
        }
        Command::Show { id } => show(env, &client.get_operation(&project, &id).await?),
        Command::Wait { id, timeout } => {
            let mut progress = Progress::new();
            let limit = Duration::from_secs(timeout);
            let ended = wait(&client, &project, &id, limit, &mut progress).await;
            drop(progress);
            show(env, &ended?)
        }
    }
}

fn show(env: &Env, operation: &Operation) -> Result<()> {
    let steps: Vec<String> = operation
        .steps
        .iter()
        .map(|step| format!("{} {}", step.at, step.name))
        .collect();
    let people = [
        ("id", operation.id.clone()),
        ("kind", operation.kind.clone()),
        ("project", operation.project.to_string()),
        ("vm", operation.vm.to_string()),
        ("vm id", operation.vm_id.to_string()),
        ("who", operation.who.clone()),
        ("state", operation.state.as_str().to_owned()),
        ("why", operation.error.clone().unwrap_or_default()),
        ("steps", steps.join(", ")),
        ("begun", operation.created_at.clone()),
        ("ended", operation.ended_at.clone().unwrap_or_default()),
    ];
    env.out.one(operation, &people)
}

/// Until an operation is done. Losing the connection meanwhile loses nothing.
pub(crate) async fn wait(
    client: &PlasmaClient,
    project: &Name,
    id: &str,
    limit: Duration,
    progress: &mut Progress,
) -> Result<Operation> {
    let begin = Instant::now();
    let mut trouble_since = None;
    while begin.elapsed() < limit {
        match client.get_operation(project, id).await {
            Ok(operation) if operation.state == OperationState::Done => return Ok(operation),
            Ok(operation) => {
                let (kind, vm) = (&operation.kind, &operation.vm);
                let why = operation.error.clone().unwrap_or_default();
                if operation.state == OperationState::Failed {
                    return Err(fail(
                        ErrorKind::FailedPrecondition,
                        format!("`{kind}` of the VM `{vm}` has failed: {why}"),
                        format!("`hearth op show {id}` shows its steps, `hearth vm show {vm}` the VM"),
                    ));
                }
                let step = operation.steps.last().map_or("", |step| step.name.as_str());
                let comma = if why.is_empty() { "" } else { ", " };
                progress.show(format!("{vm}: {kind}: {step}{comma}{why}"));
                if why.is_empty() {
                    trouble_since = None;
                } else if trouble_since.get_or_insert_with(Instant::now).elapsed() > TROUBLE_FOR {
                    return Err(fail(
                        ErrorKind::FailedPrecondition,
                        format!("the VM `{vm}` could not be made so: {why}"),
                        format!(
                            "its node tries again; `hearth vm show {vm}` shows it, `hearth vm delete {vm}` gives up"
                        ),
                    ));
                }
            }
            Err(error) if error.kind() == Some(ErrorKind::Unavailable) => {
                progress.show("waiting for PlasmaVMC".to_owned());
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(fail(
        ErrorKind::DeadlineExceeded,
        format!("the operation {id} had not ended after {} s", limit.as_secs()),
        format!("it goes on; `hearth op wait {id}` waits for it again"),
    ))
}
