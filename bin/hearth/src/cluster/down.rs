//! `hearth down`: guests stopped in good order, then every process, then a look whether all are gone.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::join_all;
use hearth_types::ErrorKind;
use nix::sys::signal::Signal;

use super::control;
use super::layout::Layout;
use crate::failure::fail;
use crate::output::{Progress, note};
use crate::processes::{Known, that_use};

/// How long the supervisor may take for all its processes.
const SUPERVISOR_LIMIT: Duration = Duration::from_secs(120);
const PROCESS_LIMIT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(100);

pub(crate) async fn run(data: &Path, guest_deadline: Duration) -> Result<()> {
    let layout = Layout::load(data)?;
    let mut progress = Progress::new();
    stop_guests(&layout, guest_deadline, &mut progress).await;
    progress.show("stopping the services");
    if let Some(supervisor) = Known::from_file(&layout.pid_file("supervisor")) {
        supervisor.signal(Signal::SIGTERM);
        wait_gone(supervisor, SUPERVISOR_LIMIT).await;
    }
    // Without a supervisor (it was killed) its processes live on: last stage first.
    for part in layout.parts().iter().rev() {
        if let Some(process) = Known::from_file(&layout.pid_file(&part.name)) {
            process.signal(Signal::SIGTERM);
            if !wait_gone(process, PROCESS_LIMIT).await {
                process.signal(Signal::SIGKILL);
                wait_gone(process, PROCESS_LIMIT).await;
            }
        }
    }
    drop(progress);
    verify(&layout)?;
    note(format!(
        "everything has ended; data stays in {}",
        layout.data.display()
    ));
    Ok(())
}

async fn stop_guests(layout: &Layout, deadline: Duration, progress: &mut Progress) {
    progress.show("stopping the guests");
    let agents: Vec<_> = layout.parts().into_iter().filter(|p| p.role == "agent").collect();
    let stops = agents.iter().map(|agent| async {
        let socket = layout.control_socket(&agent.name);
        if !control::answers(&socket).await {
            return (agent.name.clone(), None);
        }
        (
            agent.name.clone(),
            Some(control::stop_guests(&socket, deadline).await),
        )
    });
    for (agent, outcome) in join_all(stops).await {
        match outcome {
            None => {}
            Some(Ok(report)) => {
                if !report.stopped.is_empty() {
                    progress.done(format!("{agent}: {} guests switched off", report.stopped.len()));
                }
                for vm in &report.forced {
                    progress.done(format!(
                        "{agent}: guest {vm} did not react in time and was switched off"
                    ));
                }
                for vm in &report.failed {
                    progress.done(format!("{agent}: guest {vm} could not be stopped"));
                }
            }
            Some(Err(error)) => progress.done(format!("{agent}: its guests could not be stopped: {error:#}")),
        }
    }
}

async fn wait_gone(process: Known, limit: Duration) -> bool {
    let begin = Instant::now();
    while process.is_alive() {
        if begin.elapsed() > limit {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
    true
}

/// Nothing of ours may be left, guests included.
fn verify(layout: &Layout) -> Result<()> {
    let left = that_use(&layout.data);
    if left.is_empty() {
        return Ok(());
    }
    let pids: Vec<String> = left.iter().map(u32::to_string).collect();
    Err(fail(
        ErrorKind::FailedPrecondition,
        format!(
            "these processes of the cluster are still there: {}",
            pids.join(" ")
        ),
        "an agent that is down cannot stop its guests: run `hearth up` and `hearth down` again, or end them yourself",
    ))
}
