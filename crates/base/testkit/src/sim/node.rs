//! One member: its disks, and the host while it runs.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kv_engine::MemoryDisk;
use raft_host::{GroupConfig, Host, HostConfig, Input, LogConfig, Output, Peer, PlantedBug, Role};

use super::disk::{Disk, SimFileSystem};
use super::journal::SharedJournal;
use super::options::HostBug;
use super::service::{Boot, Service};

/// The one group of the simulation.
pub const GROUP: u64 = 1;

thread_local! {
    /// A panic in a host is one of the things that are simulated: it must not fill the terminal.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Whether panics of simulated hosts are printed all the same.
static SHOW_PANICS: AtomicBool = AtomicBool::new(false);

/// Prints the panics of simulated hosts, for somebody who looks into one seed.
pub fn show_panics(show: bool) {
    SHOW_PANICS.store(show, Ordering::Relaxed);
}

/// Keeps the panics of simulated hosts from being printed; all others are, as before.
pub(crate) fn install_panic_hook() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.with(Cell::get) || SHOW_PANICS.load(Ordering::Relaxed) {
                before(info);
            }
        }));
    });
}

fn quietly<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    QUIET.with(|q| q.set(true));
    let result = catch_unwind(AssertUnwindSafe(run));
    QUIET.with(|q| q.set(false));
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic")
            .to_owned()
    })
}

/// What a member is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It runs.
    Up,
    /// It was killed; it will be started again.
    Down,
    /// Its log was found damaged: it must be replaced.
    Dead,
    /// It is no member any more.
    Removed,
}

/// Who waits for a reply of a host.
#[derive(Debug)]
pub(crate) enum Waiter<A> {
    Service(A),
    Admin,
}

pub(crate) struct Node<S: Service> {
    pub(crate) id: u64,
    pub(crate) state: State,
    pub(crate) host: Option<Host<SimFileSystem>>,
    pub(crate) view: Option<S::View>,
    pub(crate) disk: Disk,
    pub(crate) state_disk: MemoryDisk,
    dir: PathBuf,
    initial: Vec<Peer>,
    /// Counts starts; events for an earlier start are void.
    pub(crate) life: u64,
    pub(crate) inbox: Vec<Input>,
    /// When the inbox will be looked at, if that is set.
    pub(crate) wake_at: Option<u64>,
    pub(crate) busy_until: u64,
    pub(crate) paused_until: u64,
    pub(crate) tick_us: u64,
    pub(crate) waiting: BTreeMap<u64, Waiter<S::Ask>>,
    /// A bit of its log was flipped at some time.
    pub(crate) flipped: bool,
    /// First log index and applied index seen last, to notice compactions and snapshots.
    pub(crate) first_index: u64,
    pub(crate) applied: u64,
}

impl<S: Service> Node<S> {
    pub(crate) fn new(id: u64, dir: PathBuf, initial: Vec<Peer>, plant: Option<HostBug>) -> Node<S> {
        Node {
            id,
            state: State::Down,
            host: None,
            view: None,
            disk: Disk::new(plant == Some(HostBug::SkippedFsync)),
            state_disk: MemoryDisk::new(),
            dir,
            initial,
            life: 0,
            inbox: Vec::new(),
            wake_at: None,
            busy_until: 0,
            paused_until: 0,
            tick_us: 100_000,
            waiting: BTreeMap::new(),
            flipped: false,
            first_index: 0,
            applied: 0,
        }
    }

    /// Starts the process. An error says why the host would not open.
    pub(crate) fn start(
        &mut self,
        incarnation: u64,
        seed: u64,
        journal: SharedJournal,
        plant: Option<HostBug>,
        service: &mut S,
    ) -> Result<(), String> {
        let boot = Boot {
            node: self.id,
            disk: &self.state_disk,
            journal,
            tick_us: self.tick_us,
        };
        let (machine, view) = quietly(|| service.open(&boot))
            .and_then(|opened| opened)
            .map_err(|e| format!("the state machine did not open: {e}"))?;
        let config = HostConfig {
            node: self.id,
            log_dir: self.dir.clone(),
            incarnation,
            seed,
            request_timeout_ticks: 20,
            compact_entries: 60,
            keep_entries: 15,
            snapshot_chunk_bytes: 200,
            max_append_bytes: 2_000,
            log: LogConfig {
                file_bytes: 12 << 10,
                purge_bytes: 36 << 10,
                prefill_bytes: 0,
            },
            planted: match plant {
                Some(HostBug::DoubleVote) => Some(PlantedBug::ForgetHardState),
                Some(HostBug::ReusedReadContext) => Some(PlantedBug::ReuseReadContext),
                Some(HostBug::AckBeforeCommit) => Some(PlantedBug::AckBeforeCommit),
                _ => None,
            },
            ..HostConfig::default()
        };
        let group = GroupConfig {
            id: GROUP,
            initial: self.initial.clone(),
            machine,
        };
        let file_system = self.disk.file_system();
        super::block_cache::evict()?;
        let opened = quietly(|| Host::open(config, file_system, vec![group]))
            .map_err(|panic| format!("opening panicked: {panic}"))?;
        self.host = Some(opened.map_err(|e| e.to_string())?);
        self.view = Some(view);
        self.state = State::Up;
        self.life += 1;
        self.busy_until = 0;
        Ok(())
    }

    /// Ends the process. Whoever waited for it never gets an answer.
    pub(crate) fn stop(&mut self, state: State) -> Vec<Waiter<S::Ask>> {
        self.disk.detach();
        // The log engine's threads end here; what it still writes goes nowhere.
        let host = self.host.take();
        let _ = quietly(move || drop(host));
        self.view = None;
        self.state = state;
        self.life += 1;
        self.inbox.clear();
        self.wake_at = None;
        self.paused_until = 0;
        std::mem::take(&mut self.waiting).into_values().collect()
    }

    /// One round over everything that waits. `Err` says why the host stopped.
    pub(crate) fn round(&mut self) -> Result<(Output, Duration), String> {
        super::block_cache::evict()?;
        let inputs = std::mem::take(&mut self.inbox);
        let Some(host) = &mut self.host else {
            return Err("not running".to_owned());
        };
        let output = quietly(|| host.round(inputs)).and_then(|r| r.map_err(|fatal| fatal.what));
        output.map(|output| (output, self.disk.take_waited()))
    }

    pub(crate) fn leads(&self) -> Option<u64> {
        let info = self.host.as_ref()?.leader(GROUP)?;
        (info.role == Role::Leader).then_some(info.term)
    }
}

impl<S: Service> Drop for Node<S> {
    /// The log engine syncs when it goes; on a disk that is about to fail a sync that would be a loud end.
    fn drop(&mut self) {
        self.stop(State::Removed);
    }
}
