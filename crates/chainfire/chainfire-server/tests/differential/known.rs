//! Differences between versions of etcd and Chainfire that are known, one by one, with their reasons.

use std::fmt;

use chainfire_client::wire::etcdserverpb::{self as pb, response_op::Response};

use crate::server::Answer;

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
}

/// What the watchers' comparison leaves out: etcd names the oldest revision left when it ends a watcher that wants a
/// forgotten one, and no reason; Chainfire gives the reason too (etcd's own text for it).
pub fn reason(reason: &str, compact_revision: i64) -> &str {
    if compact_revision == 0 { reason } else { "" }
}

/// Why the answers may differ, when they may.
pub fn explained(version: Version, ours: &Answer, theirs: &Answer) -> Option<&'static str> {
    let equal_without_leases = || {
        let (mut ours, mut theirs) = (ours.clone(), theirs.clone());
        without_leases(&mut ours);
        without_leases(&mut theirs);
        ours == theirs
    };
    if version >= Version(3, 7) && equal_without_leases() {
        return Some("etcd 3.7 answers keys_only from its index, which does not know the keys' leases");
    }
    None
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
