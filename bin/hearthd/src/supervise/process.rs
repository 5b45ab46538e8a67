//! One supervised process: started, looked at, restarted with a growing delay, stopped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::pidfile::{self, Known};
use super::plan::Wanted;

/// First delay before a restart; doubles up to `LONGEST_DELAY`.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(15);
/// A process that ran this long has recovered: its delay starts over.
const SOUND_AFTER: Duration = Duration::from_secs(30);
/// A log above this size is set aside (one old file is kept) before the process starts again.
const LOG_LIMIT_BYTES: u64 = 64 << 20;

enum State {
    Down,
    Running {
        known: Known,
        child: Option<Child>,
        since: Instant,
    },
    Waiting {
        until: Instant,
    },
}

pub(crate) struct Process {
    pub(crate) wanted: Wanted,
    state: State,
    delay: Duration,
    pid_file: PathBuf,
    log: PathBuf,
}

impl Process {
    pub(crate) fn new(wanted: Wanted, data_dir: &Path) -> Process {
        let pid_file = data_dir.join(format!("run/{}.pid", wanted.name));
        let log = data_dir.join(format!("log/{}.log", wanted.name));
        Process {
            wanted,
            state: State::Down,
            delay: FIRST_DELAY,
            pid_file,
            log,
        }
    }

    /// Starts it if it should run and does not; notices its end.
    pub(crate) fn tick(&mut self, now: Instant) {
        match &mut self.state {
            State::Down => match pidfile::read(&self.pid_file) {
                Some(known) => {
                    tracing::info!(process = self.wanted.name, pid = known.pid, "taken over");
                    self.state = State::Running {
                        known,
                        child: None,
                        since: now,
                    };
                }
                None => self.start(now),
            },
            State::Waiting { until } if now >= *until => self.start(now),
            State::Waiting { .. } => {}
            State::Running { since, .. } => {
                let ran = now.saturating_duration_since(*since);
                if !self.is_alive() {
                    self.ended(now, ran);
                }
            }
        }
    }

    fn start(&mut self, now: Instant) {
        match self.spawn() {
            Ok((known, child)) => {
                tracing::info!(process = self.wanted.name, pid = known.pid, "started");
                self.state = State::Running {
                    known,
                    child: Some(child),
                    since: now,
                };
            }
            Err(error) => {
                tracing::error!(
                    process = self.wanted.name,
                    error = format!("{error:#}"),
                    "cannot start"
                );
                self.wait(now);
            }
        }
    }

    fn spawn(&self) -> Result<(Known, Child)> {
        if fs::metadata(&self.log).is_ok_and(|m| m.len() > LOG_LIMIT_BYTES) {
            fs::rename(&self.log, self.log.with_extension("log.1"))?;
        }
        let log = File::options().create(true).append(true).open(&self.log)?;
        let own = std::env::current_exe().context("cannot find this program")?;
        let program = self.wanted.program.clone().unwrap_or(own);
        let mut child = Command::new(&program)
            .args(&self.wanted.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        if let Err(error) = pidfile::write(&self.pid_file, child.id()) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        let known = Known::now(child.id()).context("it ended at once; its log says why")?;
        Ok((known, child))
    }

    fn ended(&mut self, now: Instant, ran: Duration) {
        let status = match &mut self.state {
            State::Running {
                child: Some(child), ..
            } => child.try_wait().ok().flatten(),
            _ => None,
        };
        let status = status.map_or_else(|| "unknown".to_owned(), |s| s.to_string());
        tracing::warn!(
            process = self.wanted.name,
            status,
            ran_s = ran.as_secs(),
            log = %self.log.display(),
            "ended by itself; it is started again"
        );
        if ran > SOUND_AFTER {
            self.delay = FIRST_DELAY;
        }
        self.wait(now);
    }

    fn wait(&mut self, now: Instant) {
        self.state = State::Waiting {
            until: now + self.delay,
        };
        self.delay = (self.delay * 2).min(LONGEST_DELAY);
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        match &mut self.state {
            // Reaps a child that has ended; one that was taken over is looked up.
            State::Running {
                child: Some(child), ..
            } => matches!(child.try_wait(), Ok(None)),
            State::Running { known, .. } => known.is_alive(),
            State::Down | State::Waiting { .. } => false,
        }
    }

    pub(crate) fn ask_to_stop(&mut self) {
        self.signal(Signal::SIGTERM);
    }

    pub(crate) fn kill(&mut self) {
        if self.is_alive() {
            tracing::warn!(process = self.wanted.name, "did not end in time and is killed");
            self.signal(Signal::SIGKILL);
        }
    }

    /// To this one process, never to a group: an agent's guests go on.
    fn signal(&mut self, signal: Signal) {
        if let State::Running { known, .. } = &self.state
            && known.is_alive()
            && let Ok(pid) = i32::try_from(known.pid)
        {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// After it has ended for good.
    pub(crate) fn forget(&mut self) {
        self.state = State::Down;
        let _ = fs::remove_file(&self.pid_file);
    }
}
