//! The state: revisions, keys, leases; and how commands change it.

use bytes::Bytes;

use crate::{
    Alarm, AlarmChange, Alarms, Command, DeleteOutcome, DeleteRange, Event, EventKind, KeyIndex, KeyRange,
    KeyValue, Leases, OpError, Page, Point, Put, PutOutcome, Range, RangeOutcome, RangePlan, Reply, Txn,
    TxnOutcome, Version,
    auth::{Auth, AuthChange, By},
    check, plan,
    planted::{self, Bug},
    storage::RevisionStore,
};

/// The whole replicated state over some storage.
#[derive(Debug, Clone)]
pub struct Store<S> {
    storage: S,
    index: KeyIndex,
    leases: Leases,
    auth: Auth,
    revision: i64,
    /// Revisions below are forgotten; -1 before the first compaction.
    compacted: i64,
    alarms: Alarms,
    #[cfg(feature = "planted-bugs")]
    planted: Option<crate::faulty::PlantedBug>,
}

/// What has to be saved beside the events and the keys.
#[derive(Debug, Clone, Default)]
pub struct Saved {
    /// Revision of the last change.
    pub revision: i64,
    /// Oldest readable revision; -1 before the first compaction.
    pub compacted: i64,
    /// Leases: id, time to live and remaining time in seconds.
    pub leases: Vec<(i64, i64, i64)>,
    /// Alarms that are on.
    pub alarms: Vec<Alarm>,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The answer for whoever proposed it.
    pub reply: Reply,
    /// The changes, by revision, in order.
    pub changes: Vec<(i64, Vec<Event>)>,
    /// Leases granted, with their time to live in seconds.
    pub granted: Option<(i64, i64)>,
    /// Leases whose remaining time was stored or cleared: id, time to live, remaining time, in seconds.
    pub checkpoints: Vec<(i64, i64, i64)>,
    /// Leases that ended.
    pub ended: Vec<i64>,
    /// Revisions before this one were forgotten.
    pub compacted: Option<i64>,
    /// Alarms that went on (true) or off.
    pub alarms: Vec<(Alarm, bool)>,
    /// What changed in [`Store::auth`].
    pub auth: Vec<AuthChange>,
}

impl Applied {
    /// A reply and nothing done yet.
    fn new(reply: Reply) -> Applied {
        Applied {
            reply,
            changes: Vec::new(),
            granted: None,
            ended: Vec::new(),
            checkpoints: Vec::new(),
            auth: Vec::new(),
            compacted: None,
            alarms: Vec::new(),
        }
    }
}

/// Why a step failed.
#[derive(Debug)]
pub enum Failure<E> {
    /// The request cannot be done; nothing has changed.
    Refused(OpError),
    /// Storage failed; the state is unusable.
    Storage(E),
}

impl<E> From<OpError> for Failure<E> {
    fn from(error: OpError) -> Failure<E> {
        Failure::Refused(error)
    }
}

impl<S: RevisionStore> Store<S> {
    /// The state before any command, at revision 1.
    pub fn new(storage: S) -> Store<S> {
        Store {
            storage,
            index: KeyIndex::default(),
            leases: Leases::default(),
            auth: Auth::default(),
            revision: 1,
            compacted: -1,
            alarms: Alarms::default(),
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }

    /// Plants a bug, for tests of the checkers.
    #[cfg(feature = "planted-bugs")]
    pub fn plant(&mut self, bug: Option<crate::faulty::PlantedBug>) {
        self.planted = bug;
    }

    /// The bug that was planted.
    #[cfg(feature = "planted-bugs")]
    pub fn planted(&self) -> Option<crate::faulty::PlantedBug> {
        self.planted
    }

    /// Brings back the state from what was saved beside the events, and from the live keys, which come in order and own
    /// their memory.
    pub fn open(
        storage: S,
        saved: Saved,
        keys: impl Iterator<Item = Result<(Bytes, Version), S::Error>>,
    ) -> Result<Store<S>, S::Error> {
        let mut leases = Leases::default();
        for (id, ttl_s, remaining_s) in saved.leases {
            leases.restore(id, ttl_s, remaining_s);
        }
        let keys = keys.inspect(|pair| {
            if let Ok((key, version)) = pair {
                leases.attach(version.lease, key);
            }
        });
        Ok(Store {
            index: KeyIndex::load(keys)?,
            storage,
            leases,
            revision: saved.revision,
            compacted: saved.compacted,
            alarms: Alarms::restore(saved.alarms),
            auth: Auth::default(),
            #[cfg(feature = "planted-bugs")]
            planted: None,
        })
    }

    /// Makes an event its key's newest.
    fn index_event(&mut self, at: Point, event: &Event) {
        let key = &event.kv.key;
        if let Some(old) = self.index.record(key, Version::of(at, event))
            && !planted::is(Bug::StaysAttached)
        {
            self.leases.detach(old.lease, key);
        }
        self.leases.attach(event.kv.lease, key);
    }

    /// Goes on at `revision`, far ahead, and forgets all history before it; keys and leases stay as they are. For a
    /// state that becomes another cluster's first: a watcher with a revision of the old cluster, also one that this
    /// state never had, is told that it is compacted. Auth's revision goes as far: a token of the old cluster, also one
    /// made after this state was saved, is void.
    pub fn jump(&mut self, revision: i64) {
        assert!(revision > self.revision, "revisions only grow");
        self.auth.revision += revision.abs_diff(self.revision);
        self.revision = revision;
        self.compacted = revision;
    }

    /// Revision of the last change.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Oldest readable revision; -1 before the first compaction.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// The leases.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// The alarms.
    pub fn alarms(&self) -> &Alarms {
        &self.alarms
    }

    /// Users, roles and permissions.
    pub fn auth(&self) -> &Auth {
        &self.auth
    }

    /// Puts back what was stored of auth.
    pub fn restore_auth(&mut self, auth: Auth) {
        self.auth = auth;
    }

    /// The storage.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// The storage, for whoever commits what has been written to it.
    pub fn storage_mut(&mut self) -> &mut S {
        &mut self.storage
    }

    /// The keys.
    pub fn index(&self) -> &KeyIndex {
        &self.index
    }

    /// Resolves a range now, without touching storage.
    pub fn plan(&self, range: &Range) -> Result<RangePlan, OpError> {
        self.plan_at(range, self.revision)
    }

    /// Answers a range.
    pub fn range(&self, range: &Range) -> Result<RangeOutcome, Failure<S::Error>> {
        self.range_at(range, self.revision)
    }

    pub(crate) fn range_at(&self, range: &Range, now: i64) -> Result<RangeOutcome, Failure<S::Error>> {
        let plan = self.plan_at(range, now)?;
        // Nothing can be compacted between plan and fetch: both borrow the store.
        plan.fetch(&self.storage)
            .map_err(Failure::Storage)?
            .ok_or(Failure::Refused(OpError::Compacted))
    }

    /// The first `limit` pairs of a range at a revision (0 or less: now), in order of keys.
    pub fn page(&self, keys: &KeyRange, revision: i64, limit: usize) -> Result<Page, OpError> {
        let at = plan::readable(revision, self.revision, self.compacted)?;
        Ok(if at == self.revision {
            Page::now(at, self.index.range(keys), limit)
        } else {
            Page::past(self.revision, keys, at, limit)
        })
    }

    fn plan_at(&self, range: &Range, now: i64) -> Result<RangePlan, OpError> {
        let at = plan::readable(range.revision, now, self.compacted)?;
        Ok(if at == now {
            RangePlan::now(range, now, self.index.range(&range.keys))
        } else {
            RangePlan::past(range, now, at)
        })
    }

    /// Applies a committed command on somebody's behalf: their rights are checked here and now, whatever was checked
    /// before it was proposed.
    pub fn apply_by(&mut self, by: &By, command: &Command) -> Result<Applied, S::Error> {
        match self.auth.permit(by, &self.leases, command) {
            Ok(()) => self.apply(command),
            Err(error) => Ok(Applied::new(Reply::Refused(error))),
        }
    }

    /// Applies a committed command of the members themselves. An error is of storage, and fatal; what the command
    /// asked wrongly is in the reply.
    pub fn apply(&mut self, command: &Command) -> Result<Applied, S::Error> {
        let before = self.revision;
        let mut applied = Applied::new(Reply::Revoked);
        if let Some(error) = self.alarms.refuse(command) {
            applied.reply = Reply::Refused(error);
            return Ok(applied);
        }
        let reply = match command {
            Command::Put(put) => self.write(&mut applied, |writer| {
                writer.check_lease(put.lease)?;
                writer.put(put).map(Reply::Put)
            }),
            Command::Delete(delete) => {
                self.write(&mut applied, |writer| writer.delete(delete).map(Reply::Delete))
            }
            Command::Txn(txn) => self.write(&mut applied, |writer| writer.txn(txn).map(Reply::Txn)),
            Command::Compact { revision } => self.compact(*revision, &mut applied),
            Command::Alarm(change) => Ok(Reply::Alarms(self.change_alarms(*change, &mut applied))),
            Command::LeaseGrant { id, ttl_s } => match self.leases.grant(*id, *ttl_s) {
                Ok(ttl_s) => {
                    applied.granted = Some((*id, ttl_s));
                    Ok(Reply::Granted { id: *id, ttl_s })
                }
                Err(error) => Err(error.into()),
            },
            Command::LeaseRevoke { id } => match self.end_lease(*id, &mut applied) {
                Ok(true) => Ok(Reply::Revoked),
                Ok(false) => Err(OpError::LeaseNotFound.into()),
                Err(error) => Err(Failure::Storage(error)),
            },
            Command::LeaseCheckpoint { leases } => {
                let known = leases
                    .iter()
                    .filter_map(|(id, remaining_s)| self.leases.checkpoint(*id, *remaining_s));
                applied.checkpoints.extend(known);
                Ok(Reply::Checkpointed)
            }
            Command::LeaseExpire { ids } => {
                let mut ended = 0;
                for id in ids {
                    ended += u64::from(self.end_lease(*id, &mut applied)?);
                }
                Ok(Reply::Expired { ended })
            }
            Command::Auth(command) => match self.auth.apply(command) {
                Ok(changes) => {
                    applied.auth = changes;
                    Ok(Reply::Auth)
                }
                Err(error) => Err(error.into()),
            },
        };
        applied.reply = match reply {
            Ok(reply) => reply,
            Err(Failure::Refused(error)) => {
                assert_eq!(self.revision, before, "a refused command changes nothing");
                Reply::Refused(error)
            }
            Err(Failure::Storage(error)) => return Err(error),
        };
        Ok(applied)
    }

    /// Runs one revision's worth of writing.
    fn write(
        &mut self,
        applied: &mut Applied,
        run: impl FnOnce(&mut Writer<'_, S>) -> Result<Reply, Failure<S::Error>>,
    ) -> Result<Reply, Failure<S::Error>> {
        let mut writer = Writer {
            store: self,
            events: Vec::new(),
        };
        let reply = run(&mut writer)?;
        let events = writer.events;
        if !events.is_empty() || (planted::is(Bug::EmptyDeleteCounts) && matches!(reply, Reply::Delete(_))) {
            self.revision += 1;
            applied.changes.push((self.revision, events));
        }
        Ok(reply)
    }

    /// Forgets the revisions before one: from now on they cannot be read. What they held is reclaimed later and apart
    /// (see [`crate::reclaim`]).
    fn compact(&mut self, revision: i64, applied: &mut Applied) -> Result<Reply, Failure<S::Error>> {
        if revision <= self.compacted {
            return Err(OpError::Compacted.into());
        }
        if revision > self.revision {
            return Err(OpError::FutureRevision.into());
        }
        self.compacted = revision;
        #[cfg(feature = "planted-bugs")]
        if self.planted == Some(crate::faulty::PlantedBug::CompactionEatsKey) {
            let all = KeyRange::new(Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
            let mut old = self
                .index
                .range(&all)
                .filter(|(_, version)| version.at.main <= revision);
            let eaten = old.next().map(|(_, version)| version.at);
            drop(old);
            if let Some(point) = eaten {
                self.storage.eat(point).map_err(Failure::Storage)?;
            }
        }
        applied.compacted = Some(revision);
        Ok(Reply::Compacted {
            revision: self.revision,
        })
    }

    /// Switches an alarm on or off; the alarms that the answer names: one switched on, or one that was on.
    fn change_alarms(&mut self, change: AlarmChange, applied: &mut Applied) -> Vec<Alarm> {
        let (alarm, on, changed) = match change {
            AlarmChange::Raise(alarm) => (alarm, true, self.alarms.raise(alarm)),
            AlarmChange::Clear(alarm) => (alarm, false, self.alarms.clear(alarm)),
        };
        if changed {
            applied.alarms.push((alarm, on));
        }
        (changed || on).then_some(alarm).into_iter().collect()
    }

    /// Ends a lease and deletes its keys in one revision; false when there is no such lease.
    fn end_lease(&mut self, id: i64, applied: &mut Applied) -> Result<bool, S::Error> {
        let Some(lease) = self.leases.remove(id) else {
            return Ok(false);
        };
        applied.ended.push(id);
        let done = self.write(applied, |writer| {
            for key in lease.keys {
                writer.delete(&DeleteRange {
                    keys: KeyRange::single(key),
                    prev_kv: false,
                })?;
            }
            Ok(Reply::Revoked)
        });
        match done {
            Err(Failure::Storage(error)) => Err(error),
            // A deletion of single keys cannot be refused.
            Ok(_) | Err(Failure::Refused(_)) => Ok(true),
        }
    }

    /// Answers a transaction that only reads.
    pub fn read_txn(&self, txn: &Txn) -> Result<TxnOutcome, Failure<S::Error>> {
        assert!(txn.is_read_only(), "only reading transactions bypass the log");
        crate::txn::read(self, txn)
    }
}

/// Collects the changes of one revision; they are in the index and in storage at once, so later steps see them.
pub(crate) struct Writer<'a, S> {
    pub(crate) store: &'a mut Store<S>,
    pub(crate) events: Vec<Event>,
}

impl<S: RevisionStore> Writer<'_, S> {
    /// The revision that reads see now: the new one as soon as something was written.
    pub(crate) fn now(&self) -> i64 {
        self.store.revision + i64::from(!self.events.is_empty())
    }

    pub(crate) fn check_lease(&self, id: i64) -> Result<(), OpError> {
        if id != 0 && self.store.leases.get(id).is_none() {
            Err(OpError::LeaseNotFound)
        } else {
            Ok(())
        }
    }

    fn fetch(&self, version: Version) -> Result<KeyValue, Failure<S::Error>> {
        let event = self.store.storage.get(version.at).map_err(Failure::Storage)?;
        event
            .map(|event| event.kv)
            .ok_or(Failure::Refused(OpError::Corrupt))
    }

    pub(crate) fn put(&mut self, put: &Put) -> Result<PutOutcome, Failure<S::Error>> {
        // Checked before it was proposed; refused here too, whoever proposed it: storage cannot hold such a key.
        check::storable(&put.key)?;
        let old = self.store.index.get(&put.key);
        if (put.ignore_value || put.ignore_lease) && old.is_none() {
            return Err(OpError::KeyNotFound.into());
        }
        let prev = match old {
            Some(version) if put.ignore_value || put.prev_kv => Some(self.fetch(version)?),
            _ => None,
        };
        let value = match &prev {
            Some(prev) if put.ignore_value => prev.value.clone(),
            _ => put.value.clone(),
        };
        let lease = match old {
            Some(old) if put.ignore_lease => old.lease,
            _ => put.lease,
        };
        let revision = self.store.revision + 1;
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision: old.map_or(revision, |old| old.create_revision),
            mod_revision: revision,
            version: old.map_or(1, |old| old.version + 1),
            value,
            lease,
        };
        self.record(EventKind::Put, kv, old)?;
        Ok(PutOutcome {
            revision,
            prev_kv: prev.filter(|_| put.prev_kv),
        })
    }

    pub(crate) fn delete(&mut self, delete: &DeleteRange) -> Result<DeleteOutcome, Failure<S::Error>> {
        let doomed: Vec<(Bytes, Version)> = self
            .store
            .index
            .range(&delete.keys)
            .map(|(key, version)| (key.clone(), version))
            .collect();
        let mut prev_kvs = Vec::new();
        if delete.prev_kv {
            for (_, version) in &doomed {
                prev_kvs.push(self.fetch(*version)?);
            }
        }
        let deleted = i64::try_from(doomed.len()).unwrap_or(i64::MAX);
        let mod_revision = self.store.revision + 1;
        for (key, old) in doomed {
            let kv = KeyValue {
                key,
                mod_revision,
                ..KeyValue::default()
            };
            self.record(EventKind::Delete, kv, Some(old))?;
        }
        Ok(DeleteOutcome {
            revision: self.now(),
            deleted,
            prev_kvs,
        })
    }

    fn record(
        &mut self,
        kind: EventKind,
        kv: KeyValue,
        old: Option<Version>,
    ) -> Result<(), Failure<S::Error>> {
        let event = Event {
            kind,
            kv,
            prev: old.map(|old| old.at),
        };
        let sub = u32::try_from(self.events.len()).map_err(|_| Failure::Refused(OpError::TooManyOps))?;
        let at = Point {
            main: self.store.revision + 1,
            sub,
        };
        self.store.storage.put(at, &event).map_err(Failure::Storage)?;
        self.store.index_event(at, &event);
        self.events.push(event);
        Ok(())
    }
}
