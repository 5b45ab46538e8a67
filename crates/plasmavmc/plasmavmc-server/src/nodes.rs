//! The picture of all nodes that placements are decided on, kept by watch.
//!
//! It may be behind: the store is the judge of every placement, and what it says when it refuses one is put in here
//! at once. Before a VM is refused for want of a node, [`NodeBook::refresh`] makes sure that nothing was missed.
//!
//! Every key carries the revision that it was last seen at, and only something newer changes it: what arrives twice
//! or in the wrong order (a watch, a transaction's answer, a refresh) does no harm.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chainfire_client::{KeyValue, WatchEvent, WatchOptions, WatchUpdate};
use hearth_service::tasks::{Tasks, chain};
use hearth_types::{Name, VmId};
use plasmavmc_core::{Cluster, Decision, NoPlace, NodeVerdict, Pick, Placement, Policy};

use crate::store::node::{NodeSnapshot, name_of, no_claims};
use crate::store::records::{AllocRecord, NodeRecord, Record};
use crate::store::{Store, StoreError, Stored, decode, keys};

/// Pause before a broken watch is begun anew.
const RETRY: Duration = Duration::from_secs(1);

/// The picture. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct NodeBook(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    entries: BTreeMap<Name, Entry>,
    cluster: Cluster,
}

/// One node's keys: what they hold, and the revision that this was seen at.
#[derive(Debug, Default)]
struct Entry {
    info: Option<Stored<NodeRecord>>,
    info_seen: i64,
    alloc: Option<Stored<AllocRecord>>,
    alloc_seen: i64,
    alive: bool,
    session_seen: i64,
    /// The claims cannot be read: nothing may be placed there.
    damaged: bool,
}

enum Part {
    Info,
    Alloc,
    Session,
}

/// Which part of which node a key is.
fn part_of(key: &[u8]) -> Option<(Name, Part)> {
    if key.starts_with(keys::SESSIONS.as_bytes()) {
        return Some((keys::last(key)?, Part::Session));
    }
    if let Some(name) = name_of(key, "/info") {
        return Some((name, Part::Info));
    }
    Some((name_of(key, "/alloc")?, Part::Alloc))
}

impl Entry {
    fn seen(&mut self, part: &Part) -> &mut i64 {
        match part {
            Part::Info => &mut self.info_seen,
            Part::Alloc => &mut self.alloc_seen,
            Part::Session => &mut self.session_seen,
        }
    }

    fn snapshot(&self, name: &Name) -> Option<NodeSnapshot> {
        if self.damaged {
            return None;
        }
        Some(NodeSnapshot {
            name: name.clone(),
            alive: self.alive,
            info: self.info.clone()?,
            alloc: self.alloc.clone().unwrap_or(Stored {
                value: no_claims(),
                revision: 0,
            }),
        })
    }
}

/// A node's record, if it can be read.
fn readable<T: Record>(kv: &KeyValue) -> Option<Stored<T>> {
    decode(kv)
        .inspect_err(|error| tracing::error!(error = %chain(error), "a node cannot be used"))
        .ok()
}

impl Inner {
    /// Puts a key in, unless something newer is known of it. A record that cannot be read takes its node out of the
    /// picture, and no other.
    fn put(&mut self, kv: &KeyValue) {
        let Some((name, part)) = part_of(&kv.key) else {
            return;
        };
        let entry = self.entries.entry(name.clone()).or_default();
        if *entry.seen(&part) >= kv.mod_revision {
            return;
        }
        *entry.seen(&part) = kv.mod_revision;
        match part {
            Part::Info => entry.info = readable(kv),
            Part::Alloc => {
                entry.alloc = readable(kv);
                entry.damaged = entry.alloc.is_none();
            }
            Part::Session => entry.alive = true,
        }
        self.show(&name);
    }

    /// Notes that a key was not there at a revision, unless something newer is known of it.
    fn deleted(&mut self, key: &[u8], revision: i64) {
        let Some((name, part)) = part_of(key) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        if *entry.seen(&part) >= revision {
            return;
        }
        match part {
            Part::Info => entry.info = None,
            Part::Alloc => {
                entry.alloc = None;
                entry.damaged = false;
            }
            Part::Session => entry.alive = false,
        }
        *entry.seen(&part) = revision;
        self.show(&name);
    }

    /// Gives the scheduler the node as it is known now.
    fn show(&mut self, name: &Name) {
        match self.entries.get(name).and_then(|entry| entry.snapshot(name)) {
            Some(node) => self.cluster.upsert(node.view()),
            None => drop(self.cluster.remove(name.as_str())),
        }
    }
}

impl NodeBook {
    pub(crate) fn new(policy: Policy) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            entries: BTreeMap::new(),
            cluster: Cluster::new(policy),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the picture until the server stops.
    pub(crate) async fn keep(self, store: Store, tasks: Tasks) {
        while !tasks.is_stopping() {
            let followed = async {
                if let Err(error) = self.follow(&store).await {
                    tracing::warn!(error = %chain(&error), "the watch of nodes broke; beginning anew");
                }
                tokio::time::sleep(RETRY).await;
            };
            tokio::select! {
                () = followed => {}
                () = tasks.stopping() => return,
            }
        }
    }

    /// Loads everything, then watches until that breaks.
    async fn follow(&self, store: &Store) -> Result<(), StoreError> {
        let revision = self.refresh(store).await?;
        let watch = async |prefix: &str| -> Result<(), StoreError> {
            let options = WatchOptions::prefix(prefix).from_revision(revision + 1);
            let mut watcher = store.client().watch_with(options);
            loop {
                let update = watcher.next().await;
                match update.map_err(crate::store::while_doing("watching nodes"))? {
                    WatchUpdate::Events { events, .. } => self.events(&events),
                    WatchUpdate::Progress { .. } => {}
                    WatchUpdate::Compacted { .. } => return Ok(()),
                }
            }
        };
        tokio::select! {
            ended = watch(keys::NODES) => ended,
            ended = watch(keys::SESSIONS) => ended,
        }
    }

    fn events(&self, events: &[WatchEvent]) {
        let mut inner = self.lock();
        for event in events {
            match event {
                WatchEvent::Put { kv, .. } => inner.put(kv),
                WatchEvent::Delete {
                    key, mod_revision, ..
                } => inner.deleted(key, *mod_revision),
            }
        }
    }

    /// Takes over what a transaction said of keys.
    pub(crate) fn learn(&self, kvs: &[KeyValue]) {
        let mut inner = self.lock();
        kvs.iter().for_each(|kv| inner.put(kv));
    }

    /// Takes over that a key was not there at a revision.
    pub(crate) fn learn_absent(&self, key: &str, revision: i64) {
        self.lock().deleted(key.as_bytes(), revision);
    }

    /// Takes over the claims that a transaction of our own has written.
    pub(crate) fn learn_claims(&self, node: &Name, alloc: Stored<AllocRecord>) {
        let mut inner = self.lock();
        let entry = inner.entries.entry(node.clone()).or_default();
        if entry.alloc_seen < alloc.revision {
            entry.alloc_seen = alloc.revision;
            entry.alloc = Some(alloc);
            entry.damaged = false;
            inner.show(node);
        }
    }

    /// Compares the revisions of all keys with the store's and reads what differs: afterwards the picture is at least
    /// as new as the call. The revision that it is of.
    pub(crate) async fn refresh(&self, store: &Store) -> Result<i64, StoreError> {
        let (revision, there) = store.node_revisions().await?;
        let missed: Vec<Vec<u8>> = {
            let mut inner = self.lock();
            let mut missed = Vec::new();
            for (key, mod_revision) in &there {
                let Some((name, part)) = part_of(key) else {
                    continue;
                };
                let seen = inner.entries.get_mut(&name).map_or(0, |entry| *entry.seen(&part));
                if seen < *mod_revision {
                    missed.push(key.clone());
                }
            }
            let known: Vec<Name> = inner.entries.keys().cloned().collect();
            for name in known {
                for key in [
                    keys::node_info(&name),
                    keys::node_alloc(&name),
                    keys::session(&name),
                ] {
                    if !there.contains_key(key.as_bytes()) {
                        inner.deleted(key.as_bytes(), revision);
                    }
                }
            }
            missed
        };
        for kv in store.read_keys(&missed).await? {
            self.lock().put(&kv);
        }
        Ok(revision)
    }

    /// Chooses a node, and gives it as it was decided on.
    pub(crate) fn decide(
        &self,
        wanted: &Placement,
        pick: Pick,
        random: u64,
    ) -> Result<(Decision, NodeSnapshot), NoPlace> {
        let inner = self.lock();
        let decision = inner.cluster.decide(wanted, pick, random)?;
        let name = decision.node.parse::<Name>().ok();
        let node = name.and_then(|name| inner.entries.get(&name)?.snapshot(&name));
        match node {
            Some(node) => Ok((decision, node)),
            // Cannot be: the scheduler's picture is made of the entries. Then there is no node, not a panic.
            None => Err(NoPlace { rejected: Vec::new() }),
        }
    }

    /// What the scheduler thinks of every node; without the claim of one VM, if it is about that VM.
    pub(crate) fn explain(&self, wanted: &Placement, without: Option<(&Name, VmId)>) -> Vec<NodeVerdict> {
        let (mut cluster, freed) = {
            let inner = self.lock();
            let freed = without.and_then(|(name, vm)| {
                let mut node = inner.entries.get(name)?.snapshot(name)?;
                node.alloc.value.alloc.release(vm);
                Some(node.view())
            });
            (inner.cluster.clone(), freed)
        };
        if let Some(node) = freed {
            cluster.upsert(node);
        }
        cluster.explain(wanted)
    }
}
