//! The state: revisions, keys, leases; and how commands change it.

use bytes::Bytes;

use crate::{
    Command, DeleteOutcome, DeleteRange, Event, EventKind, KeyIndex, KeyRange, KeyValue, Leases, OpError,
    Point, Put, PutOutcome, Range, RangeOutcome, Reply, SortOrder, SortTarget, Txn, TxnOutcome, Version,
    auth::{Auth, AuthChange, By},
    planted::{self, Bug},
    storage::{RevisionReader, RevisionStore},
};

/// Events read from storage at a time when the index is rebuilt.
const REBUILD_PAGE: usize = 1024;

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
    #[cfg(feature = "planted-bugs")]
    planted: Option<crate::faulty::PlantedBug>,
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

/// A range, resolved against the index: which versions to fetch.
#[derive(Debug, Clone)]
pub struct RangePlan {
    revision: i64,
    count: i64,
    entries: Vec<(Bytes, Version)>,
    keys_only: bool,
    /// Sorting by value has to wait for the values.
    by_value: Option<SortOrder>,
    limit: usize,
}

impl RangePlan {
    /// How many pairs it will fetch.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing to fetch.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Fetches the values. `None` when a version has been compacted away since the plan was made: plan again.
    pub fn fetch<S: RevisionReader>(self, storage: &S) -> Result<Option<RangeOutcome>, S::Error> {
        let mut kvs = Vec::with_capacity(self.entries.len());
        for (key, version) in self.entries {
            let value = if self.keys_only && self.by_value.is_none() {
                Bytes::new()
            } else {
                let Some(event) = storage.get(version.at)? else {
                    return Ok(None);
                };
                event.kv.value
            };
            kvs.push(pair(key, version, value));
        }
        match self.by_value {
            Some(SortOrder::Descend) => kvs.sort_by(|a, b| b.value.cmp(&a.value)),
            Some(_) => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
            None => {}
        }
        let more = kvs.len() > self.limit;
        kvs.truncate(self.limit);
        if self.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(Some(RangeOutcome {
            revision: self.revision,
            kvs,
            more,
            count: self.count,
        }))
    }
}

/// A stretch of a range in order of keys, resolved against the index without looking at what follows it.
#[derive(Debug, Clone)]
pub struct Page {
    /// Revision of the store when it was made.
    pub now: i64,
    entries: Vec<(Bytes, Version)>,
    more: bool,
}

impl Page {
    /// Fetches pairs until they weigh `max_bytes` (one pair at least), and whether pairs follow. `None` when a version
    /// has been compacted away since.
    pub fn fetch<S: RevisionReader>(
        self,
        storage: &S,
        keys_only: bool,
        max_bytes: usize,
    ) -> Result<Option<(Vec<KeyValue>, bool)>, S::Error> {
        let (mut kvs, mut bytes) = (Vec::new(), 0);
        for (key, version) in self.entries {
            if bytes >= max_bytes {
                return Ok(Some((kvs, true)));
            }
            let value = if keys_only {
                Bytes::new()
            } else {
                let Some(event) = storage.get(version.at)? else {
                    return Ok(None);
                };
                event.kv.value
            };
            bytes += key.len() + value.len();
            kvs.push(pair(key, version, value));
        }
        Ok(Some((kvs, self.more)))
    }
}

fn pair(key: Bytes, version: Version, value: Bytes) -> KeyValue {
    KeyValue {
        key,
        create_revision: version.create_revision,
        mod_revision: version.at.main,
        version: version.version,
        value,
        lease: version.lease,
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

    /// Rebuilds the state from storage and what was saved beside it: revision, compacted revision, leases (id, time to
    /// live, remaining time).
    pub fn open(
        storage: S,
        revision: i64,
        compacted: i64,
        leases: impl IntoIterator<Item = (i64, i64, i64)>,
    ) -> Result<Store<S>, S::Error> {
        let mut store = Store {
            revision,
            compacted,
            ..Store::new(storage)
        };
        for (id, ttl_s, remaining_s) in leases {
            store.leases.restore(id, ttl_s, remaining_s);
        }
        let mut from = Point { main: 0, sub: 0 };
        loop {
            let page = store.storage.scan(from, REBUILD_PAGE)?;
            let Some((last, _)) = page.last() else { break };
            from = Point {
                main: last.main,
                sub: last.sub + 1,
            };
            for (at, event) in &page {
                store.index_event(*at, event);
            }
        }
        Ok(store)
    }

    fn index_event(&mut self, at: Point, event: &Event) {
        let key = &event.kv.key;
        if let Some(old) = self.index.at(key, i64::MAX)
            && !planted::is(Bug::StaysAttached)
        {
            self.leases.detach(old.lease, key);
        }
        self.leases.attach(event.kv.lease, key);
        self.index.push(key, Version::of(at, event));
    }

    /// Goes on at `revision`, far ahead, and forgets all history before it; keys and leases stay as they are. For a
    /// state that becomes another cluster's first: a watcher with a revision of the old cluster, also one that this
    /// state never had, is told that it is compacted.
    pub fn jump(&mut self, revision: i64) -> Result<(), S::Error> {
        assert!(revision > self.revision, "revisions only grow");
        self.revision = revision;
        match self.compact(revision) {
            Ok(_) | Err(Failure::Refused(_)) => Ok(()),
            Err(Failure::Storage(error)) => Err(error),
        }
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
        let at = self.readable(revision, self.revision)?;
        let mut found = self.index.range(keys, at);
        let entries = found
            .by_ref()
            .take(limit)
            .map(|(key, version)| (key.clone(), version))
            .collect();
        Ok(Page {
            now: self.revision,
            entries,
            more: found.next().is_some(),
        })
    }

    /// How many keys of a range exist at a revision (0 or less: now).
    pub fn count(&self, keys: &KeyRange, revision: i64) -> Result<i64, OpError> {
        let at = self.readable(revision, self.revision)?;
        let count = self.index.range(keys, at).count();
        Ok(i64::try_from(count).unwrap_or(i64::MAX))
    }

    /// The revision that a read asks for, if it can be read.
    fn readable(&self, revision: i64, now: i64) -> Result<i64, OpError> {
        let at = if revision <= 0 { now } else { revision };
        if at > now {
            return Err(OpError::FutureRevision);
        }
        if at < self.compacted {
            return Err(OpError::Compacted);
        }
        Ok(at)
    }

    fn plan_at(&self, range: &Range, now: i64) -> Result<RangePlan, OpError> {
        let at = self.readable(range.revision, now)?;
        let limit = usize::try_from(range.limit)
            .ok()
            .filter(|limit| *limit > 0)
            .unwrap_or(usize::MAX);
        let filtered = [
            range.min_mod_revision,
            range.max_mod_revision,
            range.min_create_revision,
            range.max_create_revision,
        ]
        .iter()
        .any(|bound| *bound != 0);
        // With an order or a filter everything is looked at; else one pair more than wanted tells `more`. A sort
        // target without an order sorts what the limit let through: odd, and etcd's way.
        let fetch = if range.sort_order != SortOrder::None || filtered {
            usize::MAX
        } else {
            limit.saturating_add(1)
        };
        let mut count = 0;
        let mut entries = Vec::new();
        for (key, version) in self.index.range(&range.keys, at) {
            count += 1;
            if !range.count_only && entries.len() < fetch {
                entries.push((key.clone(), version));
            }
        }
        if planted::is(Bug::CountLimited) {
            count = count.min(i64::try_from(limit).unwrap_or(i64::MAX));
        }
        entries.retain(|(_, version)| passes(range, version));
        let by_value = sort(range, &mut entries);
        if by_value.is_none() {
            entries.truncate(limit.saturating_add(1));
        }
        Ok(RangePlan {
            revision: now,
            count,
            entries,
            keys_only: range.keys_only,
            by_value,
            limit,
        })
    }

    /// The pair at `key` as it was just before revision `at`: what a watcher calls `prev_kv`.
    pub fn before(&self, key: &[u8], at: i64) -> Result<Option<KeyValue>, S::Error> {
        let Some(version) = self.index.at(key, at - 1) else {
            return Ok(None);
        };
        Ok(self.storage.get(version.at)?.map(|event| event.kv))
    }

    /// A checksum over the stored changes up to `revision` (0: all): equal on members whose state is equal.
    pub fn hash(&self, revision: i64) -> Result<u32, S::Error> {
        let until = if revision == 0 { self.revision } else { revision };
        let mut hash = Fnv::default();
        let mut from = Point { main: 0, sub: 0 };
        loop {
            let page = self.storage.scan(from, REBUILD_PAGE)?;
            let Some((last, _)) = page.last() else {
                return Ok(hash.0);
            };
            from = Point {
                main: last.main,
                sub: last.sub + 1,
            };
            for (at, event) in &page {
                if at.main > until {
                    return Ok(hash.0);
                }
                hash.event(*at, event);
            }
        }
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
        let reply = match command {
            Command::Put(put) => self.write(&mut applied, |writer| {
                writer.check_lease(put.lease)?;
                writer.put(put).map(Reply::Put)
            }),
            Command::Delete(delete) => {
                self.write(&mut applied, |writer| writer.delete(delete).map(Reply::Delete))
            }
            Command::Txn(txn) => self.write(&mut applied, |writer| writer.txn(txn).map(Reply::Txn)),
            Command::Compact { revision } => self.compact(*revision),
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

    fn compact(&mut self, revision: i64) -> Result<Reply, Failure<S::Error>> {
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
            let eaten = self
                .index
                .range(&all, revision)
                .next()
                .map(|(_, version)| version.at);
            if let Some(point) = eaten {
                self.storage.delete(point).map_err(Failure::Storage)?;
            }
        }
        for point in self.index.compact(revision) {
            self.storage.delete(point).map_err(Failure::Storage)?;
        }
        Ok(Reply::Compacted {
            revision: self.revision,
        })
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

fn passes(range: &Range, version: &Version) -> bool {
    let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(version.at.main, range.min_mod_revision, range.max_mod_revision)
        && within(
            version.create_revision,
            range.min_create_revision,
            range.max_create_revision,
        )
}

/// Sorts by what the index knows; else says in which order the values are to be sorted.
fn sort(range: &Range, entries: &mut [(Bytes, Version)]) -> Option<SortOrder> {
    let order = match (range.sort_order, range.sort_target) {
        (SortOrder::None, SortTarget::Key) => return None,
        (SortOrder::None, _) if planted::is(Bug::SortDescends) => SortOrder::Descend,
        (SortOrder::None, _) => SortOrder::Ascend,
        (order, _) => order,
    };
    let by = |of: fn(&Version) -> i64, entries: &mut [(Bytes, Version)]| match order {
        SortOrder::Descend => entries.sort_by_key(|entry| std::cmp::Reverse(of(&entry.1))),
        _ => entries.sort_by_key(|entry| of(&entry.1)),
    };
    match range.sort_target {
        SortTarget::Key if order == SortOrder::Descend => entries.reverse(),
        SortTarget::Key => {}
        SortTarget::Version => by(|version| version.version, entries),
        SortTarget::Create => by(|version| version.create_revision, entries),
        SortTarget::Mod => by(|version| version.at.main, entries),
        SortTarget::Value => return Some(order),
    }
    None
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
        let old = self.store.index.at(&put.key, i64::MAX);
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
        self.record(Event {
            kind: EventKind::Put,
            kv,
        })?;
        Ok(PutOutcome {
            revision,
            prev_kv: prev.filter(|_| put.prev_kv),
        })
    }

    pub(crate) fn delete(&mut self, delete: &DeleteRange) -> Result<DeleteOutcome, Failure<S::Error>> {
        let doomed: Vec<(Bytes, Version)> = self
            .store
            .index
            .range(&delete.keys, i64::MAX)
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
        for (key, _) in doomed {
            let kv = KeyValue {
                key,
                mod_revision,
                ..KeyValue::default()
            };
            self.record(Event {
                kind: EventKind::Delete,
                kv,
            })?;
        }
        Ok(DeleteOutcome {
            revision: self.now(),
            deleted,
            prev_kvs,
        })
    }

    fn record(&mut self, event: Event) -> Result<(), Failure<S::Error>> {
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

/// FNV-1a, 32 bits: small, and the same everywhere.
struct Fnv(u32);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0x811c_9dc5)
    }
}

impl Fnv {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }

    fn event(&mut self, at: Point, event: &Event) {
        let kv = &event.kv;
        for number in [
            at.main,
            i64::from(at.sub),
            kv.create_revision,
            kv.version,
            kv.lease,
        ] {
            self.bytes(&number.to_le_bytes());
        }
        for part in [&kv.key, &kv.value] {
            self.bytes(&part.len().to_le_bytes());
            self.bytes(part);
        }
    }
}
