//! One group's part of the log, and the Raft library's view of it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use prost::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use raft_engine::env::FileSystem;
use raft_engine::{Command, Engine};

use super::{Batch, EntryExt};
use crate::convert::{membership_from, membership_to};
use crate::wire::MembershipRecord;
use crate::{Found, Membership, OpenError};

/// Term, vote, commit.
pub(super) const KEY_HARD_STATE: &[u8] = b"h";
/// [`GroupRecord`].
pub(super) const KEY_GROUP: &[u8] = b"g";
/// Newest entries kept in memory: as many as these bytes hold.
const CACHE_BYTES: usize = 16 << 20;
/// Index and term where a new group's log begins. Not 0: a member that joins with an empty log must get a
/// snapshot (with the members in it), never the bare entries.
const FIRST: u64 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct HardStateRecord {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    vote: u64,
    #[prost(uint64, tag = "3")]
    commit: u64,
}

/// A place in the log with the members that held there.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Snapshotted {
    #[prost(uint64, tag = "1")]
    pub(crate) index: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) term: u64,
    #[prost(message, optional, tag = "3")]
    pub(crate) membership: Option<MembershipRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MembershipAt {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(message, optional, tag = "2")]
    membership: Option<MembershipRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GroupRecord {
    /// The log begins after this entry.
    #[prost(uint64, tag = "1")]
    truncated_index: u64,
    #[prost(uint64, tag = "2")]
    truncated_term: u64,
    /// Every membership that a replay may begin with, oldest first.
    #[prost(message, repeated, tag = "3")]
    memberships: Vec<MembershipAt>,
    /// A snapshot whose content is being installed in the state machine.
    #[prost(message, optional, tag = "4")]
    installing: Option<Snapshotted>,
}

pub(crate) struct GroupLog<F: FileSystem> {
    engine: Arc<Engine<F>>,
    group: u64,
    hard: HardState,
    record: GroupRecord,
    /// Shares of the two records, as written, in the log's digest.
    digests: [u32; 2],
    last: u64,
    last_term: u64,
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    /// Applied index and membership there, for the snapshots that the library asks for.
    applied: u64,
    membership: Membership,
    /// The first read error; the library cannot pass it on faithfully.
    damage: RefCell<Option<String>>,
}

impl<F: FileSystem> GroupLog<F> {
    pub(super) fn open(
        engine: Arc<Engine<F>>,
        dir: &Path,
        group: u64,
        initial: &Membership,
        batch: &mut Batch,
    ) -> Result<GroupLog<F>, OpenError> {
        let damaged = |what: String| OpenError::Damaged {
            dir: dir.to_owned(),
            what,
        };
        let mut log = GroupLog {
            hard: HardState::default(),
            record: GroupRecord::default(),
            digests: [0; 2],
            last: 0,
            last_term: 0,
            cache: VecDeque::new(),
            cache_bytes: 0,
            applied: 0,
            membership: Membership::default(),
            damage: RefCell::new(None),
            group,
            engine,
        };
        match log.engine.get(group, KEY_GROUP) {
            None => log.create(initial, batch).map_err(damaged)?,
            Some(bytes) => {
                log.record = GroupRecord::decode(bytes.as_slice())
                    .map_err(|e| damaged(format!("the record of group {group}: {e}")))?;
                let hard = log.engine.get(group, KEY_HARD_STATE).unwrap_or_default();
                log.digests = [
                    super::digest(group, KEY_GROUP, &bytes),
                    super::digest(group, KEY_HARD_STATE, &hard),
                ];
                let hard = HardStateRecord::decode(hard.as_slice())
                    .map_err(|e| damaged(format!("the hard state of group {group}: {e}")))?;
                log.hard.term = hard.term;
                log.hard.vote = hard.vote;
                log.hard.commit = hard.commit;
            }
        }
        log.last = log.engine.last_index(group).unwrap_or(log.record.truncated_index);
        if log
            .engine
            .first_index(group)
            .is_some_and(|first| first > log.record.truncated_index + 1)
            || log.last < log.record.truncated_index
            || log.hard.commit > log.last
        {
            return Err(damaged(format!(
                "group {group} has entries from {:?} to {}, but should have all from {} to at least {}",
                log.engine.first_index(group),
                log.last,
                log.record.truncated_index + 1,
                log.hard.commit
            )));
        }
        log.last_term = log
            .term(log.last)
            .map_err(|e| damaged(format!("group {group}: {e}")))?;
        Ok(log)
    }

    fn create(&mut self, initial: &Membership, batch: &mut Batch) -> Result<(), String> {
        if !initial.members.is_empty() {
            self.record.truncated_index = FIRST;
            self.record.truncated_term = FIRST;
            self.hard.term = FIRST;
            self.hard.commit = FIRST;
        }
        let index = self.record.truncated_index;
        self.record.memberships = vec![MembershipAt {
            index,
            membership: Some(membership_to(initial)),
        }];
        self.put_record(batch)?;
        self.put_hard_state(batch)
    }

    /// Whether the state machine may be older than the log's beginning: only when nothing was ever applied.
    pub(crate) fn is_beginning(&self) -> bool {
        self.record.truncated_index <= FIRST
    }

    pub(crate) fn truncated(&self) -> u64 {
        self.record.truncated_index
    }

    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    pub(crate) fn membership(&self) -> &Membership {
        &self.membership
    }

    pub(crate) fn installing(&self) -> Option<&Snapshotted> {
        self.record.installing.as_ref()
    }

    /// The first error that reading the log met, if any; then the group cannot go on.
    pub(crate) fn damage(&self) -> Option<String> {
        self.damage.borrow().clone()
    }

    /// Sets where the replay begins: at `applied`, with the members that held there.
    ///
    /// A commit index is lost with the power, a membership is not; it was written because its entry was committed. With an
    /// older one, a member would ask for votes of those that have been removed, and perhaps are no more.
    pub(crate) fn begin_at(&mut self, applied: u64) {
        self.applied = applied;
        let changed = self.record.memberships.last().map_or(0, |newest| newest.index);
        self.hard.commit = self.hard.commit.max(applied).max(changed.min(self.last));
        let at = self.record.memberships.iter().rev().find(|m| m.index <= applied);
        let record = at.and_then(|m| m.membership.as_ref());
        self.membership = record.map(membership_from).unwrap_or_default();
    }

    /// Takes everything for committed (in memory; it is written with the next change of the hard state).
    pub(crate) fn commit_everything(&mut self) {
        self.hard.commit = self.last;
    }

    /// What is in it.
    pub(crate) fn found(&self) -> Found {
        let newest = self.record.memberships.last().and_then(|m| m.membership.as_ref());
        Found {
            term: self.hard.term,
            committed: self.hard.commit,
            first_index: self.record.truncated_index + 1,
            last_index: self.last,
            last_term: self.last_term,
            membership: newest.map(membership_from).unwrap_or_default(),
        }
    }

    pub(crate) fn set_applied(&mut self, index: u64) {
        self.applied = index;
    }

    /// Adds entries and hard state to a batch. A changed commit index alone is not worth a write: it is found
    /// again by asking the leader.
    pub(crate) fn append(
        &mut self,
        batch: &mut Batch,
        entries: Vec<Entry>,
        hard: Option<&HardState>,
        forget_hard_state: bool,
    ) -> Result<(), String> {
        let mut write_hard = !entries.is_empty();
        if let Some(hard) = hard {
            write_hard |= hard.term != self.hard.term || hard.vote != self.hard.vote;
            self.hard = hard.clone();
        }
        if write_hard && !forget_hard_state {
            self.put_hard_state(batch)?;
        }
        let Some(first) = entries.first().map(|e| e.index) else {
            return Ok(());
        };
        batch
            .records
            .add_entries::<EntryExt>(self.group, &entries)
            .map_err(|e| e.to_string())?;
        while self.cache.back().is_some_and(|e| e.index >= first) {
            self.cache_bytes -= self.cache.pop_back().map_or(0, |e| size(&e));
        }
        for entry in entries {
            self.last = entry.index;
            self.last_term = entry.term;
            self.cache_bytes += size(&entry);
            self.cache.push_back(entry);
        }
        while self.cache_bytes > CACHE_BYTES && self.cache.len() > 1 {
            self.cache_bytes -= self.cache.pop_front().map_or(0, |e| size(&e));
        }
        Ok(())
    }

    /// Notes the members that hold from entry `index` on.
    pub(crate) fn set_membership(
        &mut self,
        batch: &mut Batch,
        index: u64,
        membership: Membership,
    ) -> Result<(), String> {
        self.record.memberships.retain(|m| m.index < index);
        self.record.memberships.push(MembershipAt {
            index,
            membership: Some(membership_to(&membership)),
        });
        self.membership = membership;
        self.put_record(batch)
    }

    /// Drops entries up to and including `index`, which the state machine has on disk.
    pub(crate) fn compact(&mut self, batch: &mut Batch, index: u64) -> Result<(), String> {
        let term = self.term(index).map_err(|e| format!("entry {index}: {e}"))?;
        self.record.truncated_index = index;
        self.record.truncated_term = term;
        let keep_from = self
            .record
            .memberships
            .iter()
            .rposition(|m| m.index <= index)
            .unwrap_or(0);
        self.record.memberships.drain(..keep_from);
        self.put_record(batch)?;
        batch
            .records
            .add_command(self.group, Command::Compact { index: index + 1 });
        while self.cache.front().is_some_and(|e| e.index <= index) {
            self.cache_bytes -= self.cache.pop_front().map_or(0, |e| size(&e));
        }
        Ok(())
    }

    /// Notes that the state machine is about to be replaced by a snapshot.
    pub(crate) fn begin_install(&mut self, batch: &mut Batch, snapshot: Snapshotted) -> Result<(), String> {
        self.record.installing = Some(snapshot);
        self.put_record(batch)
    }

    /// The state machine has the snapshot on disk: the log begins anew after it.
    pub(crate) fn finish_install(&mut self, batch: &mut Batch) -> Result<(), String> {
        let Some(snapshot) = self.record.installing.take() else {
            return Ok(());
        };
        batch.records.add_command(self.group, Command::Clean);
        let membership = snapshot.membership;
        self.membership = membership.as_ref().map(membership_from).unwrap_or_default();
        self.record = GroupRecord {
            truncated_index: snapshot.index,
            truncated_term: snapshot.term,
            memberships: vec![MembershipAt {
                index: snapshot.index,
                membership,
            }],
            installing: None,
        };
        self.cache.clear();
        self.cache_bytes = 0;
        self.last = snapshot.index;
        self.last_term = snapshot.term;
        self.applied = snapshot.index;
        self.hard.commit = self.hard.commit.max(snapshot.index);
        self.hard.term = self.hard.term.max(snapshot.term);
        self.put_record(batch)?;
        self.put_hard_state(batch)
    }

    /// The state machine does not have the snapshot: forget that it was coming.
    pub(crate) fn abort_install(&mut self, batch: &mut Batch) -> Result<(), String> {
        self.record.installing = None;
        self.put_record(batch)
    }

    fn put_record(&mut self, batch: &mut Batch) -> Result<(), String> {
        let bytes = self.record.encode_to_vec();
        self.put(batch, 0, KEY_GROUP, bytes)
    }

    fn put_hard_state(&mut self, batch: &mut Batch) -> Result<(), String> {
        let record = HardStateRecord {
            term: self.hard.term,
            vote: self.hard.vote,
            commit: self.hard.commit,
        };
        self.put(batch, 1, KEY_HARD_STATE, record.encode_to_vec())
    }

    fn put(&mut self, batch: &mut Batch, place: usize, key: &[u8], value: Vec<u8>) -> Result<(), String> {
        if let Some(share) = self.digests.get_mut(place) {
            let new = super::digest(self.group, key, &value);
            batch.digest ^= *share ^ new;
            *share = new;
        }
        batch
            .records
            .put(self.group, key.to_vec(), value)
            .map_err(|e| e.to_string())
    }

    fn cached(&self, index: u64) -> Option<&Entry> {
        let first = self.cache.front()?.index;
        self.cache.get(usize::try_from(index.checked_sub(first)?).ok()?)
    }

    fn failed(&self, index: u64, error: &str) -> raft::Error {
        let what = format!("reading entry {index} of group {} failed: {error}", self.group);
        self.damage.borrow_mut().get_or_insert(what.clone());
        raft::Error::Store(StorageError::Other(what.into()))
    }
}

fn size(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + 64
}

impl<F: FileSystem> Storage for GroupLog<F> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), self.membership.conf_state()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.record.truncated_index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let max = max_size.into().unwrap_or(u64::MAX);
        let mut found = Vec::new();
        let mut bytes = 0u64;
        for index in low..high {
            let entry = match self.cached(index) {
                Some(entry) => entry.clone(),
                None => match self.engine.get_entry::<EntryExt>(self.group, index) {
                    Ok(Some(entry)) if entry.index == index => entry,
                    Ok(_) => return Err(self.failed(index, "it is missing")),
                    Err(e) => return Err(self.failed(index, &e.to_string())),
                },
            };
            bytes += size(&entry) as u64;
            if bytes > max && !found.is_empty() {
                break;
            }
            found.push(entry);
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.record.truncated_index {
            return Ok(self.record.truncated_term);
        }
        if index < self.record.truncated_index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if index > self.last {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        if index == self.last && self.last_term > 0 {
            return Ok(self.last_term);
        }
        if let Some(entry) = self.cached(index) {
            return Ok(entry.term);
        }
        match self.engine.get_entry::<EntryExt>(self.group, index) {
            Ok(Some(entry)) => Ok(entry.term),
            Ok(None) => Err(self.failed(index, "it is missing")),
            Err(e) => Err(self.failed(index, &e.to_string())),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.record.truncated_index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    /// Only describes the snapshot: its content is read from the state machine when the message is sent, before
    /// anything further is applied.
    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if self.applied < request_index {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = Snapshot::default();
        let conf: ConfState = self.membership.conf_state();
        let metadata = snapshot.mut_metadata();
        metadata.index = self.applied;
        metadata.term = self.term(self.applied)?;
        metadata.set_conf_state(conf);
        Ok(snapshot)
    }
}
