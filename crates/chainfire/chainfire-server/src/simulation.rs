//! A member without its sockets and tasks, for the simulator (`chainfire-sim`): the replicated machine on an engine in
//! memory, and what the services do with it, each step a call that does not wait. Not for anybody else.

use std::sync::{Arc, atomic::AtomicU64};

use bytes::Bytes;
use chainfire_client::wire::etcdserverpb as pb;
use chainfire_core::{
    Event, Failure, KeyValue, OpError, Point, check,
    storage::RevisionReader,
    watch::{Change, Page, Source},
};
use kv_engine::Engine;
use prost::Message;
use raft_host::{LeaderInfo, StateMachine};

use crate::{
    clock::Clock,
    convert,
    hash::hash_all,
    leading::Due,
    machine::{Machine, Shared},
    node::previous,
    record::{CheckpointLeases, ExpireLeases, LogBody, LogRecord, ReplyBody, ReplyRecord},
    tables::StorageError,
};

/// Memory for recent changes: so little that watchers often have to read storage.
const RING_BYTES: usize = 4 << 10;
/// Changes read for a watcher at a time.
const PAGE: usize = 16;

/// What is proposed.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are those of etcd's calls")]
pub enum Command {
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    /// Ids and the term of the leader by whose clock they ran out.
    Expire(Vec<i64>, u64),
    /// Ids, what is left of each in seconds (0 clears), and the term of the leader by whose clock.
    Checkpoint(Vec<i64>, Vec<i64>, u64),
}

/// What the machine answered.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are those of etcd's calls")]
pub enum Answer {
    Put(pb::PutResponse),
    Delete(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Granted(pb::LeaseGrantResponse),
    /// The revision afterwards.
    Done(i64),
}

impl Command {
    /// What a service checks before it proposes, and the entry.
    pub fn encode(&self) -> Result<Bytes, OpError> {
        let body = match self.clone() {
            Command::Put(message) => {
                check::put(&convert::put(message.clone()))?;
                LogBody::Put(message)
            }
            Command::Delete(message) => {
                check::delete(&convert::delete(message.clone()))?;
                LogBody::Delete(message)
            }
            Command::Txn(message) => {
                check::txn(&convert::txn(message.clone())?)?;
                LogBody::Txn(message)
            }
            Command::Compact(message) => LogBody::Compact(message),
            Command::Grant(message) => LogBody::Grant(message),
            Command::Revoke(message) => LogBody::Revoke(message),
            Command::Expire(ids, term) => LogBody::Expire(ExpireLeases { ids, term }),
            Command::Checkpoint(ids, remaining_s, term) => LogBody::Checkpoint(CheckpointLeases {
                ids,
                remaining_s,
                term,
            }),
        };
        let record = LogRecord {
            body: Some(body),
            caller: None,
        };
        Ok(record.encode_to_vec().into())
    }

    /// The command of an entry; `None` for what the simulator's clients never ask for.
    pub fn decode(entry: &[u8]) -> Option<Command> {
        Some(match LogRecord::decode(entry).ok()?.body? {
            LogBody::Put(message) => Command::Put(message),
            LogBody::Delete(message) => Command::Delete(message),
            LogBody::Txn(message) => Command::Txn(message),
            LogBody::Compact(message) => Command::Compact(message),
            LogBody::Grant(message) => Command::Grant(message),
            LogBody::Revoke(message) => Command::Revoke(message),
            LogBody::Expire(message) => Command::Expire(message.ids, message.term),
            LogBody::Checkpoint(message) => {
                Command::Checkpoint(message.ids, message.remaining_s, message.term)
            }
            _ => return None,
        })
    }
}

impl Answer {
    /// What the machine's bytes say.
    pub fn decode(bytes: &[u8]) -> Result<Answer, OpError> {
        let reply = ReplyRecord::decode(bytes).map_err(|_| OpError::Corrupt)?;
        Ok(match reply.body.ok_or(OpError::Corrupt)? {
            ReplyBody::Refused(place) => return Err(ReplyBody::error(place)),
            ReplyBody::Put(reply) => Answer::Put(reply),
            ReplyBody::Delete(reply) => Answer::Delete(reply),
            ReplyBody::Txn(reply) => Answer::Txn(reply),
            ReplyBody::Granted(reply) => Answer::Granted(reply),
            ReplyBody::Done(revision) => Answer::Done(revision),
            _ => return Err(OpError::Corrupt),
        })
    }
}

/// What is to be done about leases.
#[derive(Clone, Debug)]
pub enum LeaseStep {
    /// Propose the end of these.
    Expire(Command, Vec<i64>),
    /// Propose this; once it is applied, tell [`Member::checkpointed`] of it.
    Checkpoint(Command),
    /// Nothing for so many milliseconds.
    Wait(u64),
}

/// A running member, as its services see it.
#[derive(Clone, Debug)]
pub struct Member {
    shared: Arc<Shared>,
}

impl Member {
    /// Opens the state of an engine. `clock` is the member's own, in milliseconds.
    pub fn open(
        engine: Engine,
        clock: Arc<AtomicU64>,
        #[cfg(feature = "planted-bugs")] plant: Option<chainfire_core::faulty::PlantedBug>,
    ) -> Result<(Box<dyn StateMachine>, Member), String> {
        let (machine, shared) =
            Machine::open(engine, Clock::Simulated(clock), RING_BYTES).map_err(|e| e.to_string())?;
        #[cfg(feature = "planted-bugs")]
        machine.plant(plant);
        Ok((Box::new(machine), Member { shared }))
    }

    /// Revision of the last change.
    pub fn revision(&self) -> i64 {
        self.shared.store().revision()
    }

    /// Oldest readable revision.
    pub fn compacted(&self) -> i64 {
        self.shared.store().compacted()
    }

    /// The newest revision that watchers may be told of.
    pub fn published(&self) -> i64 {
        *self.shared.revisions().borrow()
    }

    /// Leases and their granted time, and how many keys each has.
    pub fn leases(&self) -> Vec<(i64, i64, usize)> {
        let store = self.shared.store();
        let leases = store.leases();
        leases
            .iter()
            .map(|(id, lease)| (id, lease.ttl_s, lease.keys.len()))
            .collect()
    }

    /// Checksum of everything that is replicated.
    pub fn digest(&self) -> Result<u64, String> {
        let hashed = hash_all(&self.shared.tables).map_err(|e| e.to_string())?;
        let store = self.shared.store();
        let mut digest = u64::from(hashed.hash);
        let mut mix = |number: u64| digest = (digest ^ number).wrapping_mul(0x0100_0000_01B3).rotate_left(17);
        mix(store.revision().cast_unsigned());
        mix(store.compacted().cast_unsigned());
        for (id, lease) in store.leases().iter() {
            mix(id.cast_unsigned());
            mix(lease.ttl_s.cast_unsigned());
            mix(lease.remaining_s.cast_unsigned());
            lease
                .keys
                .iter()
                .flat_map(|key| key.iter())
                .for_each(|byte| mix(u64::from(*byte)));
        }
        Ok(digest)
    }

    /// The running hash over everything applied up to a log index, if it is remembered.
    pub fn state_hash(&self, index: u64) -> Option<u64> {
        let stamp = self.shared.stamp(index)?;
        (stamp.index == index).then(|| stamp.digest.value())
    }

    /// Takes one step of giving space back after a compaction; false when there is nothing to do.
    pub fn reclaim(&self) -> Result<bool, String> {
        self.shared.reclaimer.step().map_err(|e| e.to_string())
    }

    /// Answers a range from the local state; a linearizable one after a barrier.
    pub fn range(&self, message: pb::RangeRequest) -> Result<pb::RangeResponse, OpError> {
        let range = convert::range(message)?;
        check::range(&range)?;
        let outcome = self.shared.store().range(&range).map_err(refused)?;
        Ok(convert::range_reply(outcome))
    }

    /// Whether a transaction only reads, and may be answered with [`Member::read_txn`].
    pub fn is_read_only(message: &pb::TxnRequest) -> bool {
        convert::txn(message.clone()).is_ok_and(|txn| txn.is_read_only())
    }

    /// Answers a transaction that only reads, after a barrier.
    pub fn read_txn(&self, message: pb::TxnRequest) -> Result<pb::TxnResponse, OpError> {
        let txn = convert::txn(message)?;
        check::txn(&txn)?;
        let outcome = self.shared.store().read_txn(&txn).map_err(refused)?;
        Ok(convert::txn_reply(outcome))
    }

    /// This member leads `term`, and a barrier of that term has passed.
    pub fn begin_leading(&self, term: u64) {
        self.shared.begin_leading(term);
    }

    /// This member leads no more.
    pub fn end_leading(&self) {
        self.shared.end_leading();
    }

    /// The leader's next step about leases.
    pub fn due(&self) -> LeaseStep {
        match self.shared.due() {
            Due::Expire(expire) => {
                let ids = expire.ids.clone();
                LeaseStep::Expire(Command::Expire(expire.ids, expire.term), ids)
            }
            Due::Checkpoint(checkpoint) => LeaseStep::Checkpoint(Command::Checkpoint(
                checkpoint.ids,
                checkpoint.remaining_s,
                checkpoint.term,
            )),
            Due::Wait(wait) => LeaseStep::Wait(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// The proposal of an expiry failed.
    pub fn not_expired(&self, ids: &[i64]) {
        self.shared.not_expired(ids);
    }

    /// A checkpoint was applied.
    pub fn checkpointed(&self, command: &Command) {
        if let Command::Checkpoint(ids, remaining_s, term) = command.clone() {
            let checkpoint = CheckpointLeases {
                ids,
                remaining_s,
                term,
            };
            self.shared.checkpointed(&checkpoint);
        }
    }

    /// Renews a lease after a barrier; [`OpError::NotLeader`] also when the caller is to ask again after the next step.
    pub fn renew(&self, id: i64, info: LeaderInfo) -> Result<i64, OpError> {
        let answers = self.shared.renew(&[id], info)?;
        answers.first().copied().flatten().ok_or(OpError::NotLeader)
    }

    /// What is left of a lease, after a barrier.
    pub fn remaining(&self, id: i64, info: LeaderInfo) -> Result<i64, OpError> {
        self.shared.remaining(id, info)
    }
}

fn refused(failure: Failure<StorageError>) -> OpError {
    match failure {
        Failure::Refused(error) => error,
        Failure::Storage(_) => OpError::Corrupt,
    }
}

/// Stored state cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReadError(String);

impl From<StorageError> for ReadError {
    fn from(error: StorageError) -> ReadError {
        ReadError(error.to_string())
    }
}

/// Where watch streams read.
impl Source for Member {
    type Error = ReadError;

    fn compacted(&self) -> i64 {
        Member::compacted(self)
    }

    fn recent(&self, from: i64, until: i64) -> Option<Page> {
        self.shared.ring().page(from, until, PAGE)
    }

    fn stored(&self, from: i64, until: i64) -> Result<Option<Page>, ReadError> {
        if from < self.compacted() {
            return Ok(None);
        }
        let events = self
            .shared
            .tables
            .scan(Point { main: from, sub: 0 }, usize::MAX)?;
        let mut changes: Vec<(i64, Vec<Event>)> = Vec::new();
        for (at, event) in events {
            let same = changes.last().is_some_and(|(revision, _)| *revision == at.main);
            if !same && (at.main > until || changes.len() == PAGE) {
                break;
            }
            if !same {
                changes.push((at.main, Vec::new()));
            }
            if let Some((_, events)) = changes.last_mut() {
                events.push(event);
            }
        }
        let full = changes.len() == PAGE;
        let last = changes.last().map(|(revision, _)| *revision);
        Ok(Some(Page {
            changes: changes
                .into_iter()
                .map(|(revision, events)| Change {
                    revision,
                    events: events.into(),
                })
                .collect(),
            through: last.filter(|_| full).unwrap_or(until.max(from)),
        }))
    }

    fn before(&self, event: &Event) -> Result<Option<KeyValue>, ReadError> {
        Ok(previous(&self.shared, event)?)
    }
}
