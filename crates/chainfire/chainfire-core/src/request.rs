//! What is asked and what is answered. Fields mean what etcd's fields of the same names mean.

use bytes::Bytes;

use crate::{Alarm, KeyRange, KeyValue, OpError, auth::AuthCommand};

/// Direction of a sorted range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SortOrder {
    /// As the keys lie; on another target than the key it means ascending.
    #[default]
    None,
    /// Smallest first.
    Ascend,
    /// Largest first.
    Descend,
}

/// What a range is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the names are the fields of a pair")]
pub enum SortTarget {
    #[default]
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// A read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "etcd's RangeRequest, field by field; 0 switches a bound off"
)]
pub struct Range {
    pub keys: KeyRange,
    pub limit: i64,
    pub revision: i64,
    pub sort_order: SortOrder,
    pub sort_target: SortTarget,
    pub keys_only: bool,
    pub count_only: bool,
    pub min_mod_revision: i64,
    pub max_mod_revision: i64,
    pub min_create_revision: i64,
    pub max_create_revision: i64,
}

impl Range {
    /// All of `keys` now.
    pub fn of(keys: KeyRange) -> Range {
        Range {
            keys,
            limit: 0,
            revision: 0,
            sort_order: SortOrder::None,
            sort_target: SortTarget::Key,
            keys_only: false,
            count_only: false,
            min_mod_revision: 0,
            max_mod_revision: 0,
            min_create_revision: 0,
            max_create_revision: 0,
        }
    }
}

/// Answer to a [`Range`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeOutcome {
    /// Store revision at which it was answered.
    pub revision: i64,
    /// The pairs.
    pub kvs: Vec<KeyValue>,
    /// The limit cut the answer short.
    pub more: bool,
    /// Size of the whole range.
    pub count: i64,
}

/// A write of one key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "etcd's PutRequest, field by field")]
pub struct Put {
    pub key: Bytes,
    pub value: Bytes,
    pub lease: i64,
    pub prev_kv: bool,
    pub ignore_value: bool,
    pub ignore_lease: bool,
}

/// Answer to a [`Put`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutOutcome {
    /// Its revision.
    pub revision: i64,
    /// The pair before, if asked for.
    pub prev_kv: Option<KeyValue>,
}

/// A deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "etcd's DeleteRangeRequest, field by field")]
pub struct DeleteRange {
    pub keys: KeyRange,
    pub prev_kv: bool,
}

/// Answer to a [`DeleteRange`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeleteOutcome {
    /// Store revision afterwards.
    pub revision: i64,
    /// Keys deleted.
    pub deleted: i64,
    /// The pairs before, if asked for.
    pub prev_kvs: Vec<KeyValue>,
}

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum CompareOp {
    Equal,
    Greater,
    Less,
    NotEqual,
}

/// What of a pair is compared with what.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the fields of a pair")]
pub enum CompareTarget {
    Version(i64),
    Create(i64),
    Mod(i64),
    Value(Bytes),
    Lease(i64),
}

/// A condition on every pair of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Compare {
    pub keys: KeyRange,
    pub op: CompareOp,
    pub target: CompareTarget,
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Op {
    Range(Range),
    Put(Put),
    Delete(DeleteRange),
    Txn(Txn),
    /// A message that names no operation: refused by [`crate::check`], with etcd's odd error.
    Nothing,
}

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "etcd's TxnRequest, field by field")]
pub struct Txn {
    pub compare: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
}

impl Txn {
    /// Whether neither branch can change anything.
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match op {
            Op::Range(_) => true,
            Op::Put(_) | Op::Delete(_) | Op::Nothing => false,
            Op::Txn(txn) => txn.is_read_only(),
        })
    }
}

/// Answer to a [`Txn`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TxnOutcome {
    /// Store revision afterwards; 0 in a nested transaction, as etcd has it.
    pub revision: i64,
    /// Whether the conditions held.
    pub succeeded: bool,
    /// One for each operation of the branch that ran.
    pub replies: Vec<OpReply>,
}

/// Answer to an [`Op`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum OpReply {
    Range(RangeOutcome),
    Put(PutOutcome),
    Delete(DeleteOutcome),
    Txn(TxnOutcome),
}

/// What the log carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Write a key.
    Put(Put),
    /// Delete keys.
    Delete(DeleteRange),
    /// Run a transaction.
    Txn(Txn),
    /// Forget history before this revision.
    Compact {
        /// The revision; itself stays readable.
        revision: i64,
    },
    /// Create a lease.
    LeaseGrant {
        /// Its id, not 0: whoever proposes chooses.
        id: i64,
        /// Seconds.
        ttl_s: i64,
    },
    /// End a lease by request.
    LeaseRevoke {
        /// Its id.
        id: i64,
    },
    /// Store what is left of leases for the next leader: ids and seconds; 0 clears. Unknown ids are skipped.
    LeaseCheckpoint {
        /// They.
        leases: Vec<(i64, i64)>,
    },
    /// End all leases that ran out, in one entry. Unknown ids are skipped.
    LeaseExpire {
        /// Their ids.
        ids: Vec<i64>,
    },
    /// Change users, roles or permissions, or give out a token.
    Auth(AuthCommand),
    /// Switch alarms on or off.
    Alarm(AlarmChange),
}

/// A change of alarms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlarmChange {
    /// Switch one on.
    Raise(Alarm),
    /// Switch one off.
    Clear(Alarm),
}

/// Answer to a [`Command`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Reply {
    Put(PutOutcome),
    Delete(DeleteOutcome),
    Txn(TxnOutcome),
    Compacted { revision: i64 },
    Granted { id: i64, ttl_s: i64 },
    Revoked,
    Checkpointed,
    Expired { ended: u64 },
    Auth,
    Alarms(Vec<Alarm>),
    Refused(OpError),
}
