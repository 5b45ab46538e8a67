//! Transactions: compare, then one list of operations or the other, all at one revision.

use bytes::Bytes;

use crate::{
    Client, KeyValue, Result,
    conn::{CallKind, kv_stub, request},
    kv::{prefix_range, revision_of},
    wire::etcdserverpb::{
        self as pb, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseOp, TxnRequest,
        TxnResponse, compare, request_op::Request as OpRequest, response_op::Response as OpResponse,
    },
};

/// One condition of a transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Compare(pb::Compare);

/// A property of a key, waiting for what it is compared with.
#[derive(Debug, Clone)]
pub struct CompareTarget<V> {
    key: Bytes,
    range_end: Bytes,
    target: compare::CompareTarget,
    wrap: fn(V) -> compare::TargetUnion,
}

impl Compare {
    /// Revision of the key's last change; 0 when it does not exist.
    pub fn mod_revision(key: impl AsRef<[u8]>) -> CompareTarget<i64> {
        target(
            key,
            compare::CompareTarget::Mod,
            compare::TargetUnion::ModRevision,
        )
    }

    /// Revision that brought the key into being; 0 when it does not exist.
    pub fn create_revision(key: impl AsRef<[u8]>) -> CompareTarget<i64> {
        target(
            key,
            compare::CompareTarget::Create,
            compare::TargetUnion::CreateRevision,
        )
    }

    /// Number of puts since creation; 0 when it does not exist.
    pub fn version(key: impl AsRef<[u8]>) -> CompareTarget<i64> {
        target(
            key,
            compare::CompareTarget::Version,
            compare::TargetUnion::Version,
        )
    }

    /// Lease the key hangs on; 0 for none.
    pub fn lease(key: impl AsRef<[u8]>) -> CompareTarget<i64> {
        target(key, compare::CompareTarget::Lease, compare::TargetUnion::Lease)
    }

    /// The value; false for every comparison when the key does not exist.
    pub fn value(key: impl AsRef<[u8]>) -> CompareTarget<Vec<u8>> {
        target(key, compare::CompareTarget::Value, |value: Vec<u8>| {
            compare::TargetUnion::Value(value.into())
        })
    }

    /// The key exists.
    pub fn exists(key: impl AsRef<[u8]>) -> Compare {
        Compare::create_revision(key).greater(0)
    }

    /// The key does not exist.
    pub fn absent(key: impl AsRef<[u8]>) -> Compare {
        Compare::create_revision(key).equal(0)
    }
}

fn target<V>(
    key: impl AsRef<[u8]>,
    target: compare::CompareTarget,
    wrap: fn(V) -> compare::TargetUnion,
) -> CompareTarget<V> {
    CompareTarget {
        key: Bytes::copy_from_slice(key.as_ref()),
        range_end: Bytes::new(),
        target,
        wrap,
    }
}

impl<V> CompareTarget<V> {
    /// Takes the key as a prefix: the condition must hold for every key under it. Where there is none, it is compared
    /// as a key that does not exist.
    #[must_use]
    pub fn of_prefix(mut self) -> Self {
        (self.key, self.range_end) = prefix_range(&self.key);
        self
    }

    /// Equal to `value`.
    pub fn equal(self, value: impl Into<V>) -> Compare {
        self.build(compare::CompareResult::Equal, value)
    }

    /// Not equal to `value`.
    pub fn not_equal(self, value: impl Into<V>) -> Compare {
        self.build(compare::CompareResult::NotEqual, value)
    }

    /// Greater than `value`.
    pub fn greater(self, value: impl Into<V>) -> Compare {
        self.build(compare::CompareResult::Greater, value)
    }

    /// Less than `value`.
    pub fn less(self, value: impl Into<V>) -> Compare {
        self.build(compare::CompareResult::Less, value)
    }

    fn build(self, result: compare::CompareResult, value: impl Into<V>) -> Compare {
        Compare(pb::Compare {
            result: result.into(),
            target: self.target.into(),
            key: self.key,
            range_end: self.range_end,
            target_union: Some((self.wrap)(value.into())),
        })
    }
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Op(OpRequest);

impl Op {
    /// Stores a value without a lease.
    pub fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Op {
        Op::put_with_lease(key, value, 0)
    }

    /// Stores a value that lives as long as the lease.
    pub fn put_with_lease(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, lease: i64) -> Op {
        Op(OpRequest::RequestPut(PutRequest {
            key: Bytes::copy_from_slice(key.as_ref()),
            value: Bytes::copy_from_slice(value.as_ref()),
            lease,
            ..Default::default()
        }))
    }

    /// Deletes one key.
    pub fn delete(key: impl AsRef<[u8]>) -> Op {
        Op(OpRequest::RequestDeleteRange(DeleteRangeRequest {
            key: Bytes::copy_from_slice(key.as_ref()),
            ..Default::default()
        }))
    }

    /// Deletes all keys under a prefix.
    pub fn delete_prefix(prefix: impl AsRef<[u8]>) -> Op {
        let (key, range_end) = prefix_range(prefix.as_ref());
        Op(OpRequest::RequestDeleteRange(DeleteRangeRequest {
            key,
            range_end,
            prev_kv: false,
        }))
    }

    /// Reads one key; sees the transaction's earlier writes.
    pub fn get(key: impl AsRef<[u8]>) -> Op {
        Op(OpRequest::RequestRange(RangeRequest {
            key: Bytes::copy_from_slice(key.as_ref()),
            ..Default::default()
        }))
    }

    /// Reads all keys under a prefix; sees the transaction's earlier writes.
    pub fn list(prefix: impl AsRef<[u8]>) -> Op {
        let (key, range_end) = prefix_range(prefix.as_ref());
        Op(OpRequest::RequestRange(RangeRequest {
            key,
            range_end,
            ..Default::default()
        }))
    }

    /// Reads all keys under a prefix without their values; sees the transaction's earlier writes.
    pub fn list_keys(prefix: impl AsRef<[u8]>) -> Op {
        let (key, range_end) = prefix_range(prefix.as_ref());
        Op(OpRequest::RequestRange(RangeRequest {
            key,
            range_end,
            keys_only: true,
            ..Default::default()
        }))
    }

    /// A transaction within the transaction.
    pub fn txn(txn: Txn) -> Op {
        Op(OpRequest::RequestTxn(txn.into()))
    }
}

/// A transaction under construction.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Txn {
    compare: Vec<Compare>,
    success: Vec<Op>,
    failure: Vec<Op>,
}

impl Txn {
    /// Without conditions: the `then` branch always runs.
    pub fn new() -> Txn {
        Txn::default()
    }

    /// Adds conditions; all must hold.
    #[must_use]
    pub fn when(mut self, compares: impl IntoIterator<Item = Compare>) -> Txn {
        self.compare.extend(compares);
        self
    }

    /// Adds operations for when all conditions hold. At most 128 in a branch; a key may be written once.
    #[must_use]
    pub fn then(mut self, ops: impl IntoIterator<Item = Op>) -> Txn {
        self.success.extend(ops);
        self
    }

    /// Adds operations for when a condition does not hold.
    #[must_use]
    pub fn otherwise(mut self, ops: impl IntoIterator<Item = Op>) -> Txn {
        self.failure.extend(ops);
        self
    }

    /// Whether no branch can change anything: such a transaction may be repeated freely.
    fn only_reads(&self) -> bool {
        let reads = |op: &Op| matches!(op.0, OpRequest::RequestRange(_));
        self.success.iter().all(reads) && self.failure.iter().all(reads)
    }
}

impl From<Txn> for TxnRequest {
    fn from(txn: Txn) -> TxnRequest {
        let ops = |ops: Vec<Op>| {
            ops.into_iter()
                .map(|op| RequestOp { request: Some(op.0) })
                .collect()
        };
        TxnRequest {
            compare: txn.compare.into_iter().map(|compare| compare.0).collect(),
            success: ops(txn.success),
            failure: ops(txn.failure),
        }
    }
}

/// What a transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnOutcome {
    /// Whether the conditions held and `then` ran; otherwise `otherwise` ran.
    pub succeeded: bool,
    /// Store revision afterwards; the revision of the transaction's writes if it wrote.
    pub revision: i64,
    /// One entry for each operation of the branch that ran, in order.
    pub responses: Vec<OpOutcome>,
}

/// What one operation of a transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpOutcome {
    /// A put happened.
    Put,
    /// Keys deleted.
    Delete {
        /// How many.
        deleted: i64,
    },
    /// Pairs read.
    Get {
        /// The pairs in key order.
        kvs: Vec<KeyValue>,
    },
    /// A nested transaction ran.
    Txn(TxnOutcome),
}

impl TxnOutcome {
    /// The first pair read by operation number `index` of the branch that ran.
    pub fn get(&self, index: usize) -> Option<&KeyValue> {
        match self.responses.get(index) {
            Some(OpOutcome::Get { kvs }) => kvs.first(),
            _ => None,
        }
    }
}

impl From<TxnResponse> for TxnOutcome {
    fn from(reply: TxnResponse) -> TxnOutcome {
        TxnOutcome {
            succeeded: reply.succeeded,
            revision: revision_of(reply.header.as_ref()),
            responses: reply.responses.into_iter().filter_map(outcome).collect(),
        }
    }
}

fn outcome(op: ResponseOp) -> Option<OpOutcome> {
    Some(match op.response? {
        OpResponse::ResponsePut(_) => OpOutcome::Put,
        OpResponse::ResponseDeleteRange(delete) => OpOutcome::Delete {
            deleted: delete.deleted,
        },
        OpResponse::ResponseRange(range) => OpOutcome::Get {
            kvs: range.kvs.into_iter().map(KeyValue::from).collect(),
        },
        OpResponse::ResponseTxn(txn) => OpOutcome::Txn(txn.into()),
    })
}

impl Client {
    /// Runs a transaction.
    pub async fn txn(&self, txn: Txn) -> Result<TxnOutcome> {
        let kind = if txn.only_reads() {
            CallKind::Idempotent
        } else {
            CallKind::Write
        };
        let txn = TxnRequest::from(txn);
        let reply = self
            .call(kind, |channel| {
                let message = request(txn.clone());
                async move { Ok(kv_stub(channel).txn(message).await?.into_inner()) }
            })
            .await?;
        Ok(reply.into())
    }
}
