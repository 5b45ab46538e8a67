//! The replicated state machine, and what of it the services read.
//!
//! The Raft thread owns [`Machine`] and is the only writer. Services read [`Shared`]: the store under a lock that is
//! held only to look at the index, values from the engine outside it, changes from the ring.

use std::{
    any::Any,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use chainfire_client::wire::etcdserverpb as pb;
use chainfire_core::{Applied, Digest, Event, Reply, Saved, Store, auth::AuthChange, watch::EventRing};
use kv_engine::{Engine, EngineConfig, Export, Import};
use prost::Message;
use raft_host::{Committed, MachineError, Payload, SnapshotSink, SnapshotSource, StateMachine};
use tokio::sync::{Notify, watch};

use crate::{
    auth::{AuthState, record::CallerRecord},
    clock::Clock,
    convert,
    digests::{Digests, Stamp},
    leading::Leading,
    members::table::MemberTable,
    migrate::{LAYOUT, migrate},
    reclaim::Reclaimer,
    record::{LogBody, LogRecord, MetaRecord, ReplyBody, ReplyRecord, TokenReply},
    storage::EngineStore,
    tables::{StorageError, Tables},
};

/// Memory for recent changes that watchers share, unless the configuration says otherwise, bytes.
pub(crate) const RING_BYTES: usize = 8 << 20;
/// Sized for a store of metadata on a machine that runs nine other services.
pub(crate) const ENGINE: EngineConfig = EngineConfig {
    cache_bytes: 8 << 20,
    memtable_bytes: 4 << 20,
    workers: 2,
};

/// What the services see of the state.
#[derive(Debug)]
pub(crate) struct Shared {
    store: RwLock<Store<EngineStore>>,
    ring: RwLock<EventRing>,
    /// The newest revision whose changes are in the ring.
    revision: watch::Sender<i64>,
    leading: Mutex<Option<Leading>>,
    members: RwLock<MemberTable>,
    /// The set of leases changed.
    pub(crate) leases_changed: Notify,
    pub(crate) auth: Arc<AuthState>,
    pub(crate) tables: Tables,
    pub(crate) reclaimer: Reclaimer,
    digests: Mutex<Digests>,
    /// Logical bytes of all events ever stored.
    stored_bytes: AtomicU64,
    clock: Clock,
}

impl Shared {
    pub(crate) fn store(&self) -> RwLockReadGuard<'_, Store<EngineStore>> {
        self.store.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn store_mut(&self) -> RwLockWriteGuard<'_, Store<EngineStore>> {
        self.store.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ring(&self) -> RwLockReadGuard<'_, EventRing> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring_mut(&self) -> RwLockWriteGuard<'_, EventRing> {
        self.ring.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest revision whose changes are in the ring: of the store, but for the moment of an apply. Nobody has been
    /// told of a newer one.
    pub(crate) fn revision(&self) -> i64 {
        *self.revision.borrow()
    }

    pub(crate) fn leading(&self) -> MutexGuard<'_, Option<Leading>> {
        self.leading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of every id that was ever a member's.
    pub(crate) fn members(&self) -> RwLockReadGuard<'_, MemberTable> {
        self.members.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn members_mut(&self) -> RwLockWriteGuard<'_, MemberTable> {
        self.members.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hash after an entry, if it is remembered; that of the newest one for an index beyond it.
    pub(crate) fn stamp(&self, index: u64) -> Option<Stamp> {
        let digests = self.digests();
        digests.at(index.min(digests.newest().index))
    }

    fn digests(&self) -> MutexGuard<'_, Digests> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logical bytes that count against the quota: what is stored and not given back yet.
    pub(crate) fn live_bytes(&self) -> u64 {
        let stored = self.stored_bytes.load(Ordering::Relaxed);
        stored.saturating_sub(self.reclaimer.freed_bytes())
    }

    pub(crate) fn revisions(&self) -> watch::Receiver<i64> {
        self.revision.subscribe()
    }

    /// Milliseconds on the clock of lease timers.
    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Takes note of a round that was committed.
    fn note(&self, stored_bytes: u64, stamps: Vec<Stamp>, compacted: bool) {
        self.stored_bytes.store(stored_bytes, Ordering::Relaxed);
        let mut digests = self.digests();
        stamps.into_iter().for_each(|stamp| digests.push(stamp));
        drop(digests);
        if compacted {
            self.reclaimer.wake.notify_one();
        }
    }

    fn publish(&self, changes: Vec<(i64, Vec<Event>)>, revision: i64) {
        if changes.is_empty() {
            return;
        }
        let mut ring = self.ring_mut();
        for (revision, events) in changes {
            ring.push(revision, events);
        }
        drop(ring);
        self.revision.send_replace(revision);
    }
}

/// The writer of [`Shared`].
pub(crate) struct Machine {
    shared: Arc<Shared>,
    applied: u64,
}

impl Machine {
    /// Opens the state in the folder `dir`.
    pub(crate) fn on_disk(dir: &Path, ring_bytes: usize) -> Result<(Machine, Arc<Shared>), StorageError> {
        Machine::open(Engine::open(dir, &ENGINE)?, Clock::start(), ring_bytes)
    }

    /// Opens the state that an engine holds.
    pub(crate) fn open(
        engine: Engine,
        clock: Clock,
        ring_bytes: usize,
    ) -> Result<(Machine, Arc<Shared>), StorageError> {
        let tables = Tables::open(engine)?;
        let loaded = load(&tables)?;
        let revision = loaded.store.revision();
        let auth = AuthState::new(loaded.store.auth().clone(), loaded.stamp.index);
        let shared = Arc::new(Shared {
            auth: Arc::new(auth),
            ring: RwLock::new(EventRing::new(revision, ring_bytes)),
            revision: watch::Sender::new(revision),
            stored_bytes: AtomicU64::new(loaded.store.storage().stored_bytes()),
            store: RwLock::new(loaded.store),
            leading: Mutex::new(None),
            members: RwLock::new(tables.members()?),
            leases_changed: Notify::new(),
            reclaimer: Reclaimer::new(tables.clone())?,
            digests: Mutex::new(Digests::new(loaded.stamp)),
            tables,
            clock,
        });
        Ok((
            Machine {
                shared: shared.clone(),
                applied: loaded.stamp.index,
            },
            shared,
        ))
    }

    /// Makes the state the beginning of another cluster: its log is as good as empty (entry `applied` is the first that
    /// there could be), its revision `bump` higher, and all history before that is forgotten. Returns the revision.
    pub(crate) fn rebase(&mut self, applied: u64, bump: u32) -> Result<i64, MachineError> {
        let mut store = self.shared.store_mut();
        let revision = store
            .revision()
            .checked_add(i64::from(bump))
            .ok_or("there are no revisions left")?;
        store.jump(revision);
        let auth = store.auth().clone();
        store.storage_mut().put_auth(&auth, &[AuthChange::Settings]);
        // Leases get their full time again; who the members are begins anew, under ids never used before.
        let leases: Vec<(i64, i64)> = store
            .leases()
            .iter()
            .map(|(id, lease)| (id, lease.ttl_s))
            .collect();
        for (id, ttl_s) in leases {
            store.storage_mut().put_lease(id, ttl_s, 0);
        }
        store.storage_mut().forget_members();
        let stamp = Stamp {
            index: applied,
            since: applied,
            digest: Digest::default(),
        };
        // Alarms were about members that are none any more.
        let meta = MetaRecord {
            alarms: Vec::new(),
            ..meta_of(&store, stamp)
        };
        store.storage_mut().commit(&meta)?;
        drop(store);
        *self.shared.members_mut() = MemberTable::default();
        self.applied = applied;
        self.shared.tables.engine.persist()?;
        Ok(revision)
    }

    /// Stores what an entry changed of auth; the token that it gave out, if it did.
    fn take_auth(
        &self,
        store: &mut Store<EngineStore>,
        index: u64,
        changes: &[AuthChange],
    ) -> Option<String> {
        if changes.is_empty() {
            return None;
        }
        let auth = store.auth().clone();
        store.storage_mut().put_auth(&auth, changes);
        self.shared.auth.take(index, changes)
    }

    /// Plants a bug, for tests of the simulator's checkers.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn plant(&self, bug: Option<chainfire_core::faulty::PlantedBug>) {
        self.shared.store_mut().plant(bug);
    }

    fn note_leases(&self, granted: &[(i64, i64)], ended: &[i64]) {
        if granted.is_empty() && ended.is_empty() {
            return;
        }
        let now_ms = self.shared.now_ms();
        if let Some(leading) = self.shared.leading().as_mut() {
            granted
                .iter()
                .for_each(|(id, ttl_s)| leading.timers.set(*id, *ttl_s, now_ms));
            ended.iter().for_each(|id| leading.timers.remove(*id));
        }
        self.shared.leases_changed.notify_one();
    }
}

/// What the tables hold.
struct Loaded {
    store: Store<EngineStore>,
    stamp: Stamp,
}

fn load(tables: &Tables) -> Result<Loaded, StorageError> {
    migrate(tables)?;
    let Some(meta) = tables.meta()? else {
        return Ok(Loaded {
            store: Store::new(EngineStore::new(tables.clone(), 0)),
            stamp: Stamp {
                index: 0,
                since: 0,
                digest: Digest::default(),
            },
        });
    };
    let saved = Saved {
        revision: meta.revision,
        compacted: meta.compacted,
        leases: tables.leases()?,
        alarms: meta.alarms.iter().filter_map(convert::stored_alarm).collect(),
    };
    let storage = EngineStore::new(tables.clone(), meta.stored_bytes);
    let mut store = Store::open(storage, saved, tables.live_keys()?)?;
    store.restore_auth(tables.auth()?);
    Ok(Loaded {
        store,
        stamp: Stamp {
            index: meta.applied,
            since: meta.digest_since,
            digest: Digest::resume(meta.digest),
        },
    })
}

/// What is stored beside the changes of a round.
fn meta_of(store: &Store<EngineStore>, stamp: Stamp) -> MetaRecord {
    MetaRecord {
        applied: stamp.index,
        revision: store.revision(),
        compacted: store.compacted(),
        layout: LAYOUT,
        stored_bytes: store.storage().stored_bytes(),
        digest: stamp.digest.value(),
        digest_since: stamp.since,
        alarms: store.alarms().iter().map(convert::alarm_record).collect(),
    }
}

/// What one entry does.
enum Effect {
    Nothing,
    /// Something about members.
    Members(ReplyBody),
    Command(Applied),
}

/// Applies one entry. What it changes goes into the hash.
fn apply_entry(
    store: &mut Store<EngineStore>,
    members: &mut MemberTable,
    entry: &Committed<'_>,
    stamp: &mut Stamp,
) -> Result<Effect, MachineError> {
    let bytes = match entry.payload {
        Payload::Command(bytes) => bytes,
        Payload::Noop => return Ok(Effect::Nothing),
        Payload::Membership(membership) => {
            store.storage_mut().put_members(members.changed(membership));
            return Ok(Effect::Nothing);
        }
    };
    let record = LogRecord::decode(bytes).map_err(|error| {
        format!(
            "log entry {} cannot be read ({error}); was it written by a newer release?",
            entry.index
        )
    })?;
    let body = record.body.ok_or_else(|| {
        format!(
            "log entry {} is of a kind that this release does not know; update it",
            entry.index
        )
    })?;
    let by_clock_of = match &body {
        LogBody::Expire(expire) => Some(expire.term),
        LogBody::Checkpoint(checkpoint) => Some(checkpoint.term),
        _ => None,
    };
    let void = by_clock_of.is_some_and(|term| term != entry.term);
    #[cfg(feature = "planted-bugs")]
    let void = void && store.planted() != Some(chainfire_core::faulty::PlantedBug::OldLeadersClock);
    if void {
        return Ok(Effect::Nothing);
    }
    let body = match body {
        LogBody::RestartDigest(_) => {
            (stamp.since, stamp.digest) = (entry.index, Digest::default());
            return Ok(Effect::Nothing);
        }
        LogBody::Members(change) => {
            return Ok(Effect::Members(match members.apply(change) {
                Ok(writes) => {
                    store.storage_mut().put_members(writes);
                    ReplyBody::Done(store.revision())
                }
                Err(refusal) => ReplyBody::refused(refusal),
            }));
        }
        body => body,
    };
    let command = convert::command(body)
        .map_err(|error| format!("log entry {} is not a valid command: {error}", entry.index))?;
    let applied = store.apply_by(&CallerRecord::by(record.caller), &command)?;
    if let Some((id, ttl_s)) = applied.granted {
        store.storage_mut().put_lease(id, ttl_s, 0);
    }
    for (id, ttl_s, remaining_s) in &applied.checkpoints {
        store.storage_mut().put_lease(*id, *ttl_s, *remaining_s);
    }
    for id in &applied.ended {
        store.storage_mut().delete_lease(*id);
    }
    stamp.digest.add_applied(&applied);
    for change in &applied.auth {
        if let Some((key, record)) = crate::auth::record::stored(store.auth(), change) {
            let on = i64::from(record.is_some());
            stamp.digest.add(
                chainfire_core::Effect::Auth,
                &[on],
                &[&key, &record.unwrap_or_default()],
            );
        }
    }
    Ok(Effect::Command(applied))
}

fn encode_reply(reply: Reply, revision: i64) -> Bytes {
    let body = match reply {
        Reply::Put(outcome) => ReplyBody::Put(convert::put_reply(outcome)),
        Reply::Delete(outcome) => ReplyBody::Delete(convert::delete_reply(outcome)),
        Reply::Txn(outcome) => ReplyBody::Txn(convert::txn_reply(outcome)),
        Reply::Granted { id, ttl_s } => ReplyBody::Granted(pb::LeaseGrantResponse {
            header: Some(pb::ResponseHeader {
                revision,
                ..Default::default()
            }),
            id,
            ttl: ttl_s,
            error: String::new(),
        }),
        Reply::Compacted { .. }
        | Reply::Revoked
        | Reply::Checkpointed
        | Reply::Expired { .. }
        | Reply::Auth => ReplyBody::Done(revision),
        Reply::Alarms(alarms) => ReplyBody::Alarms(pb::AlarmResponse {
            header: None,
            alarms: alarms.into_iter().map(convert::alarm).collect(),
        }),
        Reply::Refused(error) => ReplyBody::refused(error),
    };
    ReplyRecord { body: Some(body) }.encode_to_vec().into()
}

fn token_reply(token: String, revision: i64) -> Bytes {
    let body = Some(ReplyBody::Token(TokenReply { token, revision }));
    ReplyRecord { body }.encode_to_vec().into()
}

impl StateMachine for Machine {
    fn applied_index(&self) -> u64 {
        self.applied
    }

    fn apply(&mut self, entries: &[Committed<'_>]) -> Result<Vec<Bytes>, MachineError> {
        let mut replies = Vec::with_capacity(entries.len());
        let (mut changes, mut granted, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        let mut compacted = false;
        let mut stamps = Vec::with_capacity(entries.len());
        let mut stamp = self.shared.digests().newest();
        let mut auth_changed = None;
        let mut store = self.shared.store_mut();
        let mut members = self.shared.members_mut();
        #[cfg(feature = "planted-bugs")]
        let applied_before = self.applied;
        for entry in entries {
            replies.push(match apply_entry(&mut store, &mut members, entry, &mut stamp)? {
                Effect::Nothing => Bytes::new(),
                Effect::Members(body) => ReplyRecord { body: Some(body) }.encode_to_vec().into(),
                Effect::Command(applied) => {
                    if !applied.auth.is_empty() {
                        auth_changed = Some(entry.index);
                    }
                    compacted |= applied.compacted.is_some();
                    changes.extend(applied.changes);
                    granted.extend(applied.granted);
                    ended.extend(applied.ended);
                    match self.take_auth(&mut store, entry.index, &applied.auth) {
                        Some(token) => token_reply(token, store.revision()),
                        None => encode_reply(applied.reply, store.revision()),
                    }
                }
            });
            stamp.index = entry.index;
            stamps.push(stamp);
            self.applied = entry.index;
        }
        let revision = store.revision();
        let meta = meta_of(&store, stamp);
        #[cfg(feature = "planted-bugs")]
        let meta = match store.planted() {
            Some(chainfire_core::faulty::PlantedBug::AppliedIndexApart) => MetaRecord {
                applied: applied_before,
                ..meta
            },
            _ => meta,
        };
        store.storage_mut().commit(&meta)?;
        if let Some(index) = auth_changed {
            // Before the lock goes: whoever sees what was applied after a change of rights sees the change.
            self.shared.auth.publish(store.auth(), index);
        }
        drop(members);
        drop(store);
        self.shared.note(meta.stored_bytes, stamps, compacted);
        self.note_leases(&granted, &ended);
        self.shared.publish(changes, revision);
        Ok(replies)
    }

    fn persist(&mut self) -> Result<u64, MachineError> {
        self.shared.tables.engine.persist()?;
        Ok(self.applied)
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        let tables = &self.shared.tables;
        Ok(Box::new(Source(tables.engine.snapshot()?.export(tables.all()))))
    }

    fn receive(&mut self) -> Result<Box<dyn SnapshotSink>, MachineError> {
        let tables = &self.shared.tables;
        Ok(Box::new(Sink(tables.engine.import(tables.all())?)))
    }

    fn restore(&mut self, index: u64, sink: Box<dyn SnapshotSink>) -> Result<(), MachineError> {
        let sink: Box<dyn Any> = sink;
        let sink = sink
            .downcast::<Sink>()
            .map_err(|_| "the sink is not of this machine")?;
        let tables = &self.shared.tables;
        // Readers wait: what they fetch must fit the index that they looked at.
        let mut store = self.shared.store_mut();
        let pause = self.shared.reclaimer.pause();
        sink.0.finish()?;
        #[cfg(feature = "planted-bugs")]
        let planted = store.planted();
        let Loaded {
            store: restored,
            stamp,
        } = load(tables)?;
        let applied = stamp.index;
        if applied != index {
            return Err(format!("the snapshot of entry {index} holds the state of entry {applied}").into());
        }
        let revision = restored.revision();
        *self.shared.members_mut() = tables.members()?;
        self.shared.auth.replace(restored.auth(), index);
        self.shared
            .stored_bytes
            .store(restored.storage().stored_bytes(), Ordering::Relaxed);
        *self.shared.digests() = Digests::new(stamp);
        self.shared.reclaimer.reload()?;
        *store = restored;
        #[cfg(feature = "planted-bugs")]
        store.plant(planted);
        drop(pause);
        drop(store);
        self.applied = applied;
        self.shared.ring_mut().clear(revision);
        self.shared.revision.send_replace(revision);
        Ok(())
    }
}

struct Sink(Import);

impl SnapshotSink for Sink {
    fn feed(&mut self, data: &[u8]) -> Result<(), MachineError> {
        Ok(self.0.feed(data)?)
    }
}

struct Source(Export);

impl SnapshotSource for Source {
    fn next_chunk(&mut self, max: usize) -> Result<Option<Bytes>, MachineError> {
        Ok(self.0.next_chunk(max)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_an_unknown_kind_stops_the_member() {
        let engine = Engine::memory(&kv_engine::MemoryDisk::new());
        let (mut machine, _) = Machine::open(engine, Clock::start(), RING_BYTES).unwrap();
        // Field 1000, a message of no bytes: what a later release might write.
        let unknown = [0xc2, 0x3e, 0x00];
        let entry = Committed {
            index: 2,
            term: 2,
            payload: Payload::Command(&unknown),
        };
        let why = machine.apply(&[entry]).unwrap_err().to_string();
        assert_eq!(
            why,
            "log entry 2 is of a kind that this release does not know; update it"
        );
    }
}
