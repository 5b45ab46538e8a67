//! What the guard's tasks and its enforcer share, and the file in which it is left for the agent and for the next guard.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use plasmavmc_client::guard::{self, GuardState, StoppedProcess};
use plasmavmc_core::fence::{Guard, GuardInput, Level, Said, TIMES};
use plasmavmc_hypervisor::{ProcessIdentity, host_boot_id};

use crate::clock::now_ms;

/// How often the file is compared with what is.
const WRITE_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Inner {
    guard: Guard,
    /// Guests that stand still because of us.
    still: Vec<ProcessIdentity>,
    movable: usize,
    level: Level,
    killed: u64,
    trouble: String,
}

/// The state machine behind a lock that is held for no longer than it takes to look.
#[derive(Debug)]
pub(crate) struct Shared {
    inner: Mutex<Inner>,
    boot_id: String,
}

/// What people are told.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Standing {
    pub(crate) level: &'static str,
    pub(crate) lease_held: bool,
    pub(crate) fenced: bool,
    pub(crate) without_proof_ms: Option<u64>,
    pub(crate) movable_guests: usize,
    pub(crate) guests_still: usize,
    pub(crate) guests_killed: u64,
    /// Why there is no lease; empty when there is one.
    pub(crate) trouble: String,
}

impl Shared {
    /// Goes on where an earlier guard of this boot has stopped.
    pub(crate) fn open(data_dir: &Path) -> Self {
        let boot_id = host_boot_id();
        let earlier = guard::read_state(data_dir).filter(|state| state.boot_id == boot_id);
        let earlier = earlier.unwrap_or_default();
        let still = earlier.stopped.iter().map(|process| ProcessIdentity {
            pid: process.pid,
            start_ticks: process.start_ticks,
            boot_id: boot_id.clone(),
        });
        let inner = Inner {
            guard: Guard::new(TIMES, earlier.basis_ms, earlier.held_since_ms),
            still: still.collect(),
            movable: 0,
            level: Level::Kill,
            killed: 0,
            trouble: "the store was not asked yet".to_owned(),
        };
        Self {
            inner: Mutex::new(inner),
            boot_id,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn hear(&self, input: GuardInput) {
        let mut inner = self.lock();
        if matches!(input, GuardInput::Held { .. }) {
            inner.trouble.clear();
        }
        inner.guard.hear(input, now_ms());
    }

    pub(crate) fn hear_round(&self, began_ms: u64, said: &[Said]) {
        self.lock().guard.hear_round(began_ms, now_ms(), said);
    }

    pub(crate) fn note_trouble(&self, trouble: String) {
        self.lock().trouble = trouble;
    }

    pub(crate) fn may_acquire(&self, fenced: bool, movable_alive: usize) -> bool {
        self.lock().guard.may_acquire(fenced, movable_alive)
    }

    /// Time since the last renewal; what rounds have proved does not count.
    pub(crate) fn without_renewal_ms(&self) -> Option<u64> {
        let until = self.lock().guard.may_start_until_ms()?;
        Some((now_ms() + TIMES.start_ms).saturating_sub(until))
    }

    /// What movable guests may do, and which of them stand still because of us.
    pub(crate) fn level(&self) -> (Level, Vec<ProcessIdentity>) {
        let inner = self.lock();
        (inner.guard.level(now_ms()), inner.still.clone())
    }

    /// What the enforcer has done.
    pub(crate) fn note(&self, level: Level, still: Vec<ProcessIdentity>, movable: usize, killed: u64) {
        let mut inner = self.lock();
        inner.level = level;
        inner.still = still;
        inner.movable = movable;
        inner.killed += killed;
    }

    pub(crate) fn standing(&self) -> Standing {
        let inner = self.lock();
        let now = now_ms();
        let level = match inner.level {
            Level::Run => "run",
            Level::Pause => "pause",
            Level::Kill => "kill",
        };
        Standing {
            level,
            lease_held: inner.guard.may_start_until_ms().is_some_and(|until| now < until),
            fenced: inner.guard.is_fenced(),
            without_proof_ms: inner.guard.without_proof_ms(now),
            movable_guests: inner.movable,
            guests_still: inner.still.len(),
            guests_killed: inner.killed,
            trouble: inner.trouble.clone(),
        }
    }

    fn state(&self) -> GuardState {
        let inner = self.lock();
        GuardState {
            format: guard::FORMAT,
            boot_id: self.boot_id.clone(),
            basis_ms: inner.guard.basis_ms(),
            start_until_ms: inner.guard.may_start_until_ms(),
            held_since_ms: inner.guard.held_since_ms(),
            stopped: inner
                .still
                .iter()
                .map(|process| StoppedProcess {
                    pid: process.pid,
                    start_ticks: process.start_ticks,
                })
                .collect(),
        }
    }
}

/// Keeps the file as it should be. A failure is said and tried again: the agent then starts nothing movable.
pub(crate) async fn keep_file(shared: Arc<Shared>, data_dir: PathBuf) {
    let mut written = GuardState::default();
    let mut failing = false;
    loop {
        let state = shared.state();
        if state != written {
            let (folder, wanted) = (data_dir.clone(), state.clone());
            let outcome = tokio::task::spawn_blocking(move || replace(&folder, &wanted)).await;
            match outcome.map_err(io::Error::other).and_then(|done| done) {
                Ok(()) => (written, failing) = (state, false),
                Err(error) if !failing => {
                    failing = true;
                    tracing::error!(%error, "cannot write the guard's state; no movable guest can be started");
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(WRITE_EVERY).await;
    }
}

/// Whole or not at all. Not synced: what it says is worth nothing after the next boot.
fn replace(folder: &Path, state: &GuardState) -> io::Result<()> {
    let part = folder.join(format!("{}.part", guard::STATE_FILE));
    let bytes = serde_json::to_vec(state).map_err(io::Error::other)?;
    File::create(&part)?.write_all(&bytes)?;
    std::fs::rename(&part, folder.join(guard::STATE_FILE))
}
