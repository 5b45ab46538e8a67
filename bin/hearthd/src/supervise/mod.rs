//! Starts the processes of one machine in order and restarts what dies, where no systemd does that.
//!
//! ```text
//! stage 1 ready -> stage 2 ready -> ...        SIGTERM: last stage first, each with a deadline
//! each process:  Down --start--> Running --exit--> Waiting(back-off) --time--> Running
//! ```
//!
//! Processes live in sessions of their own and are known by pid and start time (DATA/run/NAME.pid): a
//! supervisor that was killed leaves them running, and the next one takes them over. Signals go to one
//! process each, never to a group, so guests of an agent are not touched.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hearth_service::config::ServiceConfig;
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{SignalKind, signal};

mod pidfile;
mod plan;
mod probe;
mod process;

use plan::Plan;
use process::Process;

/// How often processes are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long a stage may take to become ready before the next is started all the same: services wait
/// for one another by themselves, the order only makes the start quiet.
const STAGE_LIMIT: Duration = Duration::from_secs(60);
/// How long a process gets between SIGTERM and SIGKILL.
const STOP_LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn run(data_dir: &Path, detach: bool) -> Result<()> {
    if detach {
        nix::unistd::setsid().context("cannot open a session of its own")?;
    }
    hearth_service::telemetry::init(&ServiceConfig {
        name: "supervisor".into(),
        data_dir: data_dir.into(),
        log_level: "info".into(),
        shutdown_grace_s: STOP_LIMIT.as_secs(),
        renew_certificate_at: None,
    });
    for folder in ["run", "log"] {
        fs::create_dir_all(data_dir.join(folder))
            .with_context(|| format!("cannot make {}", data_dir.join(folder).display()))?;
    }
    let plan = Plan::load(data_dir)?;
    let _lock = lock(data_dir)?;
    let pid_file = data_dir.join("run/supervisor.pid");
    pidfile::write(&pid_file, std::process::id())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(Supervisor::new(data_dir, plan)?.run());
    let _ = fs::remove_file(pid_file);
    outcome
}

/// One supervisor per data folder.
fn lock(data_dir: &Path) -> Result<Flock<File>> {
    let path = data_dir.join("run/supervisor.lock");
    let file = File::options().create(true).append(true).open(&path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => bail!(
            "another supervisor already runs the data folder {}; `hearth status` shows it, `hearth down` stops it",
            data_dir.display()
        ),
        Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

struct Supervisor {
    stages: Vec<Vec<Process>>,
    probe: probe::Probe,
    data_dir: PathBuf,
}

impl Supervisor {
    fn new(data_dir: &Path, plan: Plan) -> Result<Supervisor> {
        let probe = probe::Probe::new(&plan.tls)?;
        let mut stages: Vec<Vec<Process>> = vec![];
        let mut processes = plan.process;
        // A stable sort: the order within a stage is the file's.
        processes.sort_by_key(|p| p.stage);
        let mut last = None;
        for wanted in processes {
            if last != Some(wanted.stage) {
                stages.push(vec![]);
            }
            last = Some(wanted.stage);
            if let Some(stage) = stages.last_mut() {
                stage.push(Process::new(wanted, data_dir));
            }
        }
        Ok(Supervisor {
            stages,
            probe,
            data_dir: data_dir.into(),
        })
    }

    async fn run(mut self) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stopped = async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        };
        tokio::pin!(stopped);
        tokio::select! {
            () = &mut stopped => {}
            () = self.keep() => {}
        }
        tracing::info!("stopping");
        self.stop().await
    }

    /// Starts the stages in order, then keeps everything running; ends only by being dropped.
    async fn keep(&mut self) {
        for started in 1..=self.stages.len() {
            let begin = Instant::now();
            while begin.elapsed() < STAGE_LIMIT {
                self.tick(started);
                if self.stage_is_ready(started).await {
                    break;
                }
                tokio::time::sleep(TICK).await;
            }
            let ready = begin.elapsed() < STAGE_LIMIT;
            tracing::info!(
                stage = started,
                ready,
                took_ms = begin.elapsed().as_millis(),
                "stage started"
            );
        }
        let marker = self.data_dir.join("run/started");
        if let Err(error) = File::create(marker).and_then(|mut f| f.write_all(b"all stages were started\n")) {
            tracing::warn!(%error, "cannot leave a note that all stages were started");
        }
        loop {
            self.tick(self.stages.len());
            tokio::time::sleep(TICK).await;
        }
    }

    fn tick(&mut self, stages: usize) {
        let now = Instant::now();
        for process in self.stages.iter_mut().take(stages).flatten() {
            process.tick(now);
        }
    }

    async fn stage_is_ready(&mut self, number: usize) -> bool {
        let Some(stage) = self.stages.get(number - 1) else {
            return true;
        };
        for process in stage {
            if !self.probe.is_ready(&process.wanted.ready).await {
                return false;
            }
        }
        true
    }

    /// Last stage first; a stage's processes together.
    async fn stop(mut self) -> Result<()> {
        let _ = fs::remove_file(self.data_dir.join("run/started"));
        while let Some(mut stage) = self.stages.pop() {
            stage.iter_mut().for_each(Process::ask_to_stop);
            let begin = Instant::now();
            while stage.iter_mut().any(Process::is_alive) {
                if begin.elapsed() > STOP_LIMIT {
                    stage.iter_mut().for_each(Process::kill);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            stage.iter_mut().for_each(Process::forget);
        }
        tracing::info!("all processes have ended");
        Ok(())
    }
}
