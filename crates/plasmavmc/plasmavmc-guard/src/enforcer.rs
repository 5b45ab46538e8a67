//! The guard's hands: one thread that makes the level true.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use plasmavmc_core::fence::Level;
use plasmavmc_hypervisor::{MovableMachine, ProcessIdentity, movable_machines};
use tokio::sync::oneshot;

use crate::shared::Shared;

const TICK: Duration = Duration::from_millis(100);
/// As long as all is well, how often it is looked which guests there are.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Starts the thread; the channel ends with it.
pub(crate) fn start(shared: Arc<Shared>, agent_data_dir: PathBuf) -> std::io::Result<oneshot::Receiver<()>> {
    let (alive, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("enforcer".to_owned())
        .spawn(move || {
            let mut enforcer = Enforcer {
                shared,
                agent_data_dir,
                machines: Vec::new(),
                looked_at: None,
            };
            // It ends with the process.
            while !alive.is_closed() {
                enforcer.tick();
                std::thread::sleep(TICK);
            }
        })?;
    Ok(ended)
}

struct Enforcer {
    shared: Arc<Shared>,
    agent_data_dir: PathBuf,
    machines: Vec<MovableMachine>,
    looked_at: Option<Instant>,
}

impl Enforcer {
    fn tick(&mut self) {
        let (level, mut still) = self.shared.level();
        // First those that are known: the look at the records may have to wait for a disk.
        let mut killed = act(level, &self.machines, &mut still);
        if level != Level::Run || self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            self.looked_at = Some(Instant::now());
            match movable_machines(&self.agent_data_dir) {
                Ok(machines) => self.machines = machines,
                Err(error) => tracing::error!(%error, "cannot see which guests there are"),
            }
            killed += act(level, &self.machines, &mut still);
        }
        self.machines.retain(|machine| machine.process.is_alive());
        still.retain(ProcessIdentity::is_alive);
        self.shared.note(level, still, self.machines.len(), killed);
    }
}

/// Makes the level true for these machines; how many were killed.
fn act(level: Level, machines: &[MovableMachine], still: &mut Vec<ProcessIdentity>) -> u64 {
    let mut killed = 0;
    if level == Level::Run {
        for process in still.drain(..) {
            tracing::info!(
                pid = process.pid,
                "the node holds its lease again; its guest goes on"
            );
            if let Err(error) = process.go_on() {
                tracing::error!(pid = process.pid, %error, "cannot let a guest go on");
            }
        }
        return killed;
    }
    for machine in machines {
        let process = &machine.process;
        let outcome = match level {
            Level::Pause if !still.contains(process) => {
                tracing::warn!(vm = %machine.id, pid = process.pid, "no lease; the guest stands still");
                still.push(process.clone());
                process.stand_still()
            }
            Level::Kill if process.is_alive() => {
                tracing::warn!(vm = %machine.id, pid = process.pid, epoch = machine.epoch, "no lease; the guest is ended");
                killed += 1;
                process.kill()
            }
            _ => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::error!(vm = %machine.id, pid = process.pid, %error, "cannot stop a guest");
        }
    }
    killed
}

/// How many movable guests live; an error counts as one.
pub(crate) fn movable_alive(agent_data_dir: &Path) -> usize {
    movable_machines(agent_data_dir).map_or(1, |machines| machines.len())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use plasmavmc_hypervisor::MachineId;

    use super::*;

    fn sleeper() -> (Child, MovableMachine) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let machine = MovableMachine {
            id: MachineId::try_from("a".to_owned()).unwrap(),
            epoch: 1,
            process: ProcessIdentity::of(child.id()).unwrap(),
        };
        (child, machine)
    }

    fn state(child: &Child) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        stat[stat.rfind(')').unwrap() + 2..].chars().next().unwrap()
    }

    fn wait_for(child: &Child, wanted: char) {
        let begin = Instant::now();
        while state(child) != wanted {
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "it is {}",
                state(child)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_guest_stands_still_goes_on_and_is_killed() {
        let (mut child, machine) = sleeper();
        let machines = [machine];
        let mut still = vec![];
        assert_eq!(act(Level::Run, &machines, &mut still), 0);
        assert_eq!(act(Level::Pause, &machines, &mut still), 0);
        wait_for(&child, 'T');
        assert_eq!((act(Level::Pause, &machines, &mut still), still.len()), (0, 1));
        assert_eq!((act(Level::Run, &machines, &mut still), still.len()), (0, 0));
        wait_for(&child, 'S');
        act(Level::Pause, &machines, &mut still);
        assert_eq!(act(Level::Kill, &machines, &mut still), 1);
        wait_for(&child, 'Z');
        assert_eq!(act(Level::Kill, &machines, &mut still), 0, "it is dead");
        child.wait().unwrap();
    }

    #[test]
    fn a_namesake_of_its_pid_is_not_touched() {
        let (mut child, mut machine) = sleeper();
        machine.process.start_ticks += 1;
        assert_eq!(act(Level::Kill, &[machine], &mut vec![]), 0);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(state(&child), 'S');
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
