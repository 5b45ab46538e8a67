//! The task that owns the state: applies what the feeds bring, publishes snapshots, saves them, answers the
//! API's questions.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use flashdns_core::{DnsName, RrSet, Snapshot};
use hearth_service::{
    health::Health,
    tasks::{TaskError, Tasks, chain},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    cookies,
    keys::Keyring,
    metrics::Metrics,
    persist,
    state::{Change, Entry, Source, State},
};

pub(crate) use crate::state::{Listed, NamePage};

/// Events waiting for the keeper.
pub(crate) const QUEUE: usize = 256;
/// At most one save in this time: a save writes everything.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// Callers that may wait for a revision at once; further ones do not wait.
const MAX_WAITERS: usize = 1024;

/// All that reaches the keeper.
#[derive(Debug)]
pub(crate) enum Event {
    /// A source was listed.
    Listed {
        source: Source,
        cluster: u64,
        revision: i64,
        entries: Vec<Entry>,
    },
    /// A source changed; without changes: it is known up to this revision.
    Changed {
        source: Source,
        revision: i64,
        changes: Vec<Change>,
    },
    /// A source cannot be reached.
    Lost(Source),
    /// The API wants names of a zone.
    List {
        zone: DnsName,
        after: Option<String>,
        limit: usize,
        reply: oneshot::Sender<NamePage>,
    },
    /// An update wants to know what names would answer with if these records were stored at them.
    Answers {
        stored: Vec<(DnsName, Vec<RrSet>)>,
        reply: oneshot::Sender<BTreeMap<DnsName, Vec<RrSet>>>,
    },
    /// The API wants to know when a revision of our own records is served here.
    Served {
        revision: i64,
        reply: oneshot::Sender<()>,
    },
}

pub(crate) struct Keeper {
    pub(crate) state: State,
    pub(crate) published: Arc<ArcSwap<Snapshot>>,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) folder: PathBuf,
    pub(crate) mark: watch::Sender<i64>,
    pub(crate) settle: watch::Sender<u64>,
    pub(crate) serial: watch::Sender<u32>,
    pub(crate) keys: Arc<ArcSwap<Keyring>>,
    pub(crate) cookies: cookies::Shared,
    pub(crate) live: [bool; 2],
    pub(crate) waiters: Vec<(i64, oneshot::Sender<()>)>,
}

impl Keeper {
    /// Runs until the stop; the last state is saved then.
    pub(crate) async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        tasks: Tasks,
    ) -> Result<(), TaskError> {
        self.publish();
        let mut dirty = false;
        let mut saving: Option<JoinHandle<()>> = None;
        let mut next_save = Instant::now();
        loop {
            if dirty && saving.is_none() && next_save <= Instant::now() {
                dirty = false;
                next_save = Instant::now() + SAVE_INTERVAL;
                saving = Some(self.save());
            }
            tokio::select! {
                () = tasks.stopping() => break,
                event = events.recv() => match event {
                    Some(event) => dirty |= self.handle(event),
                    None => break,
                },
                () = finished(&mut saving) => saving = None,
                () = tokio::time::sleep_until(next_save), if dirty && saving.is_none() => {}
            }
        }
        finished_now(saving).await;
        if dirty {
            finished_now(Some(self.save())).await;
        }
        Ok(())
    }

    /// Returns true when there is something new to save.
    fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::Listed {
                source,
                cluster,
                revision,
                entries,
            } => {
                self.state.set_cluster(cluster);
                self.state.listed(source, revision, entries);
                self.set_live(source, true);
            }
            Event::Changed {
                source,
                revision,
                changes,
            } => {
                let is_news = !changes.is_empty();
                self.set_live(source, true);
                self.state.changed(source, revision, changes);
                if !is_news {
                    self.wake();
                    return false;
                }
            }
            Event::Lost(source) => {
                self.set_live(source, false);
                return false;
            }
            Event::List {
                zone,
                after,
                limit,
                reply,
            } => {
                // A caller that has gone needs no answer.
                let _ = reply.send(self.state.list(&zone, after.as_deref(), limit));
                return false;
            }
            Event::Answers { stored, reply } => {
                let _ = reply.send(self.state.answers(stored));
                return false;
            }
            Event::Served { revision, reply } => {
                if self.waiters.len() < MAX_WAITERS {
                    self.waiters.retain(|(_, waiting)| !waiting.is_closed());
                    self.waiters.push((revision, reply));
                }
                self.wake();
                return false;
            }
        }
        self.publish();
        true
    }

    /// Swaps in the state as it is now, once there is anything to answer from: before that every question
    /// is refused, so that no resolver learns that a name does not exist.
    fn publish(&mut self) {
        if !self.state.is_filled() {
            return;
        }
        if let Some(keys) = self.state.take_keys() {
            self.keys.store(Arc::new(keys));
        }
        if let Some(secrets) = self.state.take_secrets() {
            self.cookies.store(Arc::new(secrets));
        }
        let snapshot = self.state.snapshot();
        let serial = snapshot.serial();
        self.metrics.serial.set(snapshot.serial().into());
        self.metrics
            .names
            .set(i64::try_from(snapshot.names()).unwrap_or(i64::MAX));
        self.metrics.batches.inc();
        self.published.store(Arc::new(snapshot));
        self.health.ready();
        self.serial
            .send_if_modified(|told| std::mem::replace(told, serial) != serial);
        if self.state.take_unsettled() {
            self.settle.send_modify(|asked| *asked += 1);
        }
        self.wake();
        if let Some(revision) = self.state.mark_due()
            && self.live.iter().all(|live| *live)
        {
            self.mark.send_replace(revision);
        }
    }

    /// Notes whether a source can be followed, and says so when that changes.
    fn set_live(&mut self, source: Source, is_live: bool) {
        let was_live = std::mem::replace(&mut self.live[source as usize], is_live);
        match (was_live, is_live) {
            (false, true) => tracing::info!(?source, "following Chainfire"),
            (true, false) => tracing::warn!(?source, "Chainfire is silent; answering from the last state"),
            _ => {}
        }
        let live = self.live.iter().filter(|live| **live).count();
        self.metrics.feeds.set(i64::try_from(live).unwrap_or(0));
    }

    fn wake(&mut self) {
        let served = self.state.revision(Source::Zones);
        for (_, reply) in self.waiters.extract_if(.., |(revision, _)| *revision <= served) {
            let _ = reply.send(());
        }
    }

    fn save(&self) -> JoinHandle<()> {
        let (folder, saved) = (self.folder.clone(), self.state.saved());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = persist::store(&folder, &saved) {
                tracing::error!(folder = %folder.display(), error = %chain(&error), "the last state cannot be saved");
            }
        })
    }
}

/// Ends with the save that runs; never when there is none.
async fn finished(saving: &mut Option<JoinHandle<()>>) {
    match saving {
        // A save that panicked has said so; the next one follows.
        Some(handle) => drop(handle.await),
        None => std::future::pending().await,
    }
}

async fn finished_now(saving: Option<JoinHandle<()>>) {
    if let Some(handle) = saving {
        drop(handle.await);
    }
}
