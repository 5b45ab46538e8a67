//! Differences between versions of etcd and Chainfire that are known, one by one, with their reasons.

use std::fmt;

use chainfire_client::wire::{
    etcdserverpb::{self as pb, range_request::SortTarget, request_op::Request, response_op::Response},
    mvccpb::KeyValue,
};

use chainfire_core::OpError;

use crate::server::{Answer, Step};

/// Major and minor number of the etcd that is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Version {
    pub fn parse(text: &str) -> Version {
        let mut numbers = text.split('.').map(|number| number.parse().unwrap_or(0));
        Version(numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }

    pub fn has_range_stream(self) -> bool {
        self >= Version(3, 7)
    }

    /// Whether a compaction removes a deletion of the very revision that it keeps: a watcher that begins there, as it
    /// may, then misses it. Later releases of etcd keep it, as Chainfire does.
    pub fn forgets_deletion_compacted_to(self) -> bool {
        self < Version(3, 5)
    }
}

/// What the watchers' comparison leaves out: etcd names the oldest revision left when it ends a watcher that wants a
/// forgotten one, and no reason; Chainfire gives the reason too (etcd's own text for it).
pub fn reason(reason: &str, compact_revision: i64) -> &str {
    if compact_revision == 0 { reason } else { "" }
}

/// Why the answers may differ, when they may.
pub fn explained(version: Version, step: &Step, ours: &Answer, theirs: &Answer) -> Option<&'static str> {
    let equal_without_leases = || {
        let (mut ours, mut theirs) = (ours.clone(), theirs.clone());
        without_leases(&mut ours);
        without_leases(&mut theirs);
        ours == theirs
    };
    if version >= Version(3, 7) && equal_without_leases() {
        return Some("etcd 3.7 answers keys_only from its index, which does not know the keys' leases");
    }
    if equal_but_for_ties(step, ours, theirs) {
        return Some(
            "etcd sorts more than 12 pairs with a sort that is not stable: equal ones come in any order",
        );
    }
    if version >= Version(3, 6) && refused_for_two_reasons(ours, theirs) {
        return Some(
            "a transaction wrong in two ways: etcd 3.6 looks at its ranges first, 3.4 and Chainfire at its puts",
        );
    }
    None
}

fn refused_for_two_reasons(ours: &Answer, theirs: &Answer) -> bool {
    let puts = [OpError::LeaseNotFound, OpError::KeyNotFound];
    let ranges = [OpError::Compacted, OpError::FutureRevision];
    let is_one_of = |answer: &Answer, errors: &[OpError]| match answer {
        Answer::Refused(_, text) => errors.iter().any(|error| error.text() == text),
        _ => false,
    };
    is_one_of(ours, &puts) && is_one_of(theirs, &ranges)
}

/// Blanks the leases of pairs without a value in ranges.
fn without_leases(answer: &mut Answer) {
    match answer {
        Answer::Range(reply) => in_range(reply),
        Answer::Txn(reply) => in_txn(reply),
        _ => {}
    }
}

fn in_range(reply: &mut pb::RangeResponse) {
    for kv in reply.kvs.iter_mut().filter(|kv| kv.value.is_empty()) {
        kv.lease = 0;
    }
}

fn in_txn(reply: &mut pb::TxnResponse) {
    for op in &mut reply.responses {
        match &mut op.response {
            Some(Response::ResponseRange(reply)) => in_range(reply),
            Some(Response::ResponseTxn(reply)) => in_txn(reply),
            _ => {}
        }
    }
}

/// From so many pairs on Go's sort is not stable.
const UNSTABLE: i64 = 13;

fn equal_but_for_ties(step: &Step, ours: &Answer, theirs: &Answer) -> bool {
    match (step, ours, theirs) {
        (Step::Range(asked), Answer::Range(ours), Answer::Range(theirs)) => same_range(asked, ours, theirs),
        (Step::Txn(asked), Answer::Txn(ours), Answer::Txn(theirs)) => same_txn(asked, ours, theirs),
        _ => false,
    }
}

fn same_txn(asked: &pb::TxnRequest, ours: &pb::TxnResponse, theirs: &pb::TxnResponse) -> bool {
    let ops = if ours.succeeded {
        &asked.success
    } else {
        &asked.failure
    };
    let replies = ours.responses.iter().zip(&theirs.responses);
    let same_op = |(op, (ours, theirs)): (&pb::RequestOp, (&pb::ResponseOp, &pb::ResponseOp))| match (
        &op.request,
        &ours.response,
        &theirs.response,
    ) {
        (
            Some(Request::RequestRange(asked)),
            Some(Response::ResponseRange(ours)),
            Some(Response::ResponseRange(theirs)),
        ) => same_range(asked, ours, theirs),
        (
            Some(Request::RequestTxn(asked)),
            Some(Response::ResponseTxn(ours)),
            Some(Response::ResponseTxn(theirs)),
        ) => same_txn(asked, ours, theirs),
        _ => ours == theirs,
    };
    (ours.succeeded, &ours.header, ours.responses.len())
        == (theirs.succeeded, &theirs.header, theirs.responses.len())
        && ops.iter().zip(replies).all(same_op)
}

/// The same pairs in an order that the request allows; where the limit cut between equal ones, any of them.
fn same_range(asked: &pb::RangeRequest, ours: &pb::RangeResponse, theirs: &pb::RangeResponse) -> bool {
    if ours == theirs {
        return true;
    }
    fn ranks(target: SortTarget, reply: &pb::RangeResponse) -> Vec<(i64, &[u8])> {
        reply.kvs.iter().map(|kv| rank(target, kv)).collect()
    }
    let sorted = |reply: &pb::RangeResponse| {
        let mut kvs = reply.kvs.clone();
        kvs.sort_by(|a, b| a.key.cmp(&b.key));
        kvs
    };
    ours.count >= UNSTABLE
        && asked.sort_target() != SortTarget::Key
        && (&ours.header, ours.more, ours.count) == (&theirs.header, theirs.more, theirs.count)
        && ranks(asked.sort_target(), ours) == ranks(asked.sort_target(), theirs)
        && (ours.more || sorted(ours) == sorted(theirs))
}

fn rank(target: SortTarget, kv: &KeyValue) -> (i64, &[u8]) {
    match target {
        SortTarget::Key => (0, &kv.key),
        SortTarget::Version => (kv.version, &[]),
        SortTarget::Create => (kv.create_revision, &[]),
        SortTarget::Mod => (kv.mod_revision, &[]),
        SortTarget::Value => (0, &kv.value),
    }
}
