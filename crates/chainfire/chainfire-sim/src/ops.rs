//! Random operations.

use bytes::Bytes;
use chainfire_client::wire::etcdserverpb::{
    self as pb, compare::CompareResult, compare::CompareTarget, compare::TargetUnion,
    range_request::SortOrder, range_request::SortTarget, request_op::Request,
};
use chainfire_server::simulation::Command;
use testkit::sim::SimRng;

/// Keys that everybody uses.
const KEYS: u64 = 6;
/// Registers, used with single-key operations only, at one time.
const REGISTERS: u64 = 2;
/// Registers change so often, lest an operation of unknown outcome makes later searches long; microseconds.
const EPOCH_US: u64 = 4_000_000;

/// What a client wants.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    /// Goes through the log.
    Write(Command),
    /// A read; the message says whether serializable.
    Range(pb::RangeRequest),
    /// A transaction that only reads, linearizable.
    Read(pb::TxnRequest),
}

/// What the operations are made of: things seen lately.
#[derive(Debug)]
pub(crate) struct Ops {
    rng: SimRng,
    next_value: u64,
    /// The newest revision that any answer named.
    pub(crate) revision: i64,
    /// Leases that live, as far as is known.
    pub(crate) leases: Vec<i64>,
    next_lease: i64,
    /// Ids of leases that were revoked: may be granted again.
    pub(crate) ended: Vec<i64>,
    /// The last value written to each register.
    registers: Vec<Bytes>,
}

/// The key of a shared name.
fn key(number: u64) -> Bytes {
    format!("k/{number}").into()
}

impl Ops {
    pub(crate) fn new(rng: SimRng) -> Ops {
        Ops {
            rng,
            next_value: 1,
            revision: 1,
            leases: Vec::new(),
            next_lease: 1,
            ended: Vec::new(),
            registers: vec![Bytes::new(); usize::try_from(REGISTERS).unwrap_or(1)],
        }
    }

    pub(crate) fn rng(&mut self) -> &mut SimRng {
        &mut self.rng
    }

    /// The next operation at true time `now`.
    pub(crate) fn next(&mut self, now: u64) -> Asked {
        match self.rng.below(100) {
            0..=15 => Asked::Write(Command::Put(self.put())),
            16..=21 => Asked::Write(Command::Delete(self.delete())),
            22..=35 => self.txn_or_read(),
            36..=57 => Asked::Range(self.range(false)),
            58..=65 => Asked::Range(self.range(true)),
            66..=68 => Asked::Write(Command::Compact(self.compaction())),
            69..=74 => Asked::Write(self.grant()),
            75..=76 => self.revoke(),
            _ => self.register(now),
        }
    }

    fn value(&mut self) -> Bytes {
        self.next_value += 1;
        format!("v{}", self.next_value).into()
    }

    fn any_key(&mut self) -> Bytes {
        key(self.rng.below(KEYS))
    }

    /// One key, some, or all.
    fn keys(&mut self) -> (Bytes, Bytes) {
        let start = self.rng.below(KEYS);
        match self.rng.below(4) {
            0 => ("k/".into(), "k0".into()),
            1 => (key(start), key(start + self.rng.below(KEYS))),
            2 if self.rng.chance(300) => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            _ => (key(start), Bytes::new()),
        }
    }

    fn put(&mut self) -> pb::PutRequest {
        let lease = if self.rng.chance(350) {
            self.rng.pick(&self.leases).copied().unwrap_or(0)
        } else {
            0
        };
        let ignore_value = self.rng.chance(80);
        let ignore_lease = lease == 0 && self.rng.chance(80);
        let value = self.value();
        pb::PutRequest {
            key: self.any_key(),
            value: if ignore_value { Bytes::new() } else { value },
            lease,
            prev_kv: self.rng.chance(400),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let (key, range_end) = if self.rng.chance(700) {
            (self.any_key(), Bytes::new())
        } else {
            // Not everything: registers are not deleted.
            let start = self.rng.below(KEYS);
            (key(start), key(start + 1 + self.rng.below(KEYS - 1)))
        };
        pb::DeleteRangeRequest {
            key,
            range_end,
            prev_kv: self.rng.chance(400),
        }
    }

    fn past(&mut self) -> i64 {
        let back = i64::try_from(self.rng.below(40)).unwrap_or(0);
        (self.revision - back + 2).max(1)
    }

    fn range(&mut self, serializable: bool) -> pb::RangeRequest {
        let (key, range_end) = self.keys();
        let mut range = pb::RangeRequest {
            key,
            range_end,
            serializable,
            keys_only: self.rng.chance(100),
            count_only: self.rng.chance(80),
            ..Default::default()
        };
        if self.rng.chance(250) {
            range.revision = self.past();
        }
        if self.rng.chance(250) {
            range.limit = i64::try_from(self.rng.between(1, 4)).unwrap_or(1);
        }
        if self.rng.chance(250) {
            let descend = self.rng.chance(500);
            range.sort_order = if descend {
                SortOrder::Descend
            } else {
                SortOrder::Ascend
            }
            .into();
            let targets = [
                SortTarget::Key,
                SortTarget::Version,
                SortTarget::Create,
                SortTarget::Mod,
                SortTarget::Value,
            ];
            range.sort_target = self.rng.pick(&targets).copied().unwrap_or(SortTarget::Key).into();
        }
        if self.rng.chance(80) {
            range.min_mod_revision = self.past();
        }
        if self.rng.chance(80) {
            range.max_create_revision = self.past();
        }
        range
    }

    fn compare(&mut self) -> pb::Compare {
        let (target, target_union) = match self.rng.below(5) {
            0 => {
                let version = i64::try_from(self.rng.below(4)).unwrap_or(0);
                (CompareTarget::Version, TargetUnion::Version(version))
            }
            1 => (CompareTarget::Create, TargetUnion::CreateRevision(self.past())),
            2 => (CompareTarget::Mod, TargetUnion::ModRevision(self.past())),
            3 => {
                let value = format!("v{}", self.next_value.saturating_sub(self.rng.below(12)));
                (CompareTarget::Value, TargetUnion::Value(value.into()))
            }
            _ => (CompareTarget::Version, TargetUnion::Version(0)),
        };
        let results = [
            CompareResult::Equal,
            CompareResult::Greater,
            CompareResult::Less,
            CompareResult::NotEqual,
        ];
        let (key, range_end) = if self.rng.chance(800) {
            (self.any_key(), Bytes::new())
        } else {
            self.keys()
        };
        pb::Compare {
            result: self
                .rng
                .pick(&results)
                .copied()
                .unwrap_or(CompareResult::Equal)
                .into(),
            target: target.into(),
            key,
            range_end,
            target_union: Some(target_union),
        }
    }

    fn ops(&mut self, depth: u64, writes: bool) -> Vec<pb::RequestOp> {
        let count = self.rng.below(4);
        let mut puts = self.rng.below(KEYS);
        let ops = (0..count).map(|_| {
            let request = match self.rng.below(10) {
                0..=4 if writes => {
                    // Neighbours, so that they rarely meet: a key may be written once only.
                    puts += 1;
                    let key = key(puts % KEYS);
                    Request::RequestPut(pb::PutRequest { key, ..self.put() })
                }
                5..=6 if writes => {
                    puts += 1;
                    Request::RequestDeleteRange(pb::DeleteRangeRequest {
                        key: key(puts % KEYS),
                        range_end: Bytes::new(),
                        prev_kv: self.rng.chance(300),
                    })
                }
                7 if depth < 2 => Request::RequestTxn(self.txn(depth + 1, writes)),
                _ => {
                    let mut range = self.range(false);
                    range.revision = 0;
                    Request::RequestRange(range)
                }
            };
            pb::RequestOp {
                request: Some(request),
            }
        });
        ops.collect()
    }

    fn txn(&mut self, depth: u64, writes: bool) -> pb::TxnRequest {
        pb::TxnRequest {
            compare: (0..self.rng.below(3)).map(|_| self.compare()).collect(),
            success: self.ops(depth, writes),
            failure: self.ops(depth, writes),
        }
    }

    /// Puts a key, and then asks in a nested transaction whether it has been put: the answer must be about before.
    fn nested_question(&mut self) -> pb::TxnRequest {
        let put = self.put();
        let asked = pb::Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Value.into(),
            key: put.key.clone(),
            range_end: Bytes::new(),
            target_union: Some(TargetUnion::Value(put.value.clone())),
        };
        let nested = pb::TxnRequest {
            compare: vec![asked],
            ..Default::default()
        };
        let op = |request| pb::RequestOp {
            request: Some(request),
        };
        pb::TxnRequest {
            compare: Vec::new(),
            success: vec![op(Request::RequestPut(put)), op(Request::RequestTxn(nested))],
            failure: Vec::new(),
        }
    }

    fn txn_or_read(&mut self) -> Asked {
        let txn = match self.rng.below(10) {
            0..=1 => self.nested_question(),
            2 => self.txn(0, false),
            _ => self.txn(0, true),
        };
        if chainfire_server::simulation::Member::is_read_only(&txn) {
            Asked::Read(txn)
        } else {
            Asked::Write(Command::Txn(txn))
        }
    }

    fn compaction(&mut self) -> pb::CompactionRequest {
        pb::CompactionRequest {
            revision: self.past(),
            physical: self.rng.chance(500),
        }
    }

    fn grant(&mut self) -> Command {
        let again = if self.rng.chance(300) {
            self.ended.pop()
        } else {
            None
        };
        let id = again.unwrap_or_else(|| {
            self.next_lease += 1;
            self.next_lease
        });
        // What is left of long ones is stored for the next leader.
        let ttl = if self.rng.chance(200) {
            self.rng.between(10, 12)
        } else {
            self.rng.between(1, 4)
        };
        let ttl = i64::try_from(ttl).unwrap_or(2);
        Command::Grant(pb::LeaseGrantRequest { ttl, id })
    }

    fn revoke(&mut self) -> Asked {
        match self.rng.pick(&self.leases).copied() {
            Some(id) => Asked::Write(Command::Revoke(pb::LeaseRevokeRequest { id })),
            None => Asked::Write(self.grant()),
        }
    }

    /// Put, get or exchange of one register.
    fn register(&mut self, now: u64) -> Asked {
        let slot = self.rng.below(REGISTERS);
        let key: Bytes = format!("r/{}", now / EPOCH_US * REGISTERS + slot).into();
        let value = self.value();
        let last = self.registers.get_mut(usize::try_from(slot).unwrap_or(0));
        let old = last.as_ref().map(|last| (**last).clone()).unwrap_or_default();
        let wrote = |value: &Bytes| {
            if let Some(last) = last {
                *last = value.clone();
            }
        };
        match self.rng.below(10) {
            0..=3 => {
                wrote(&value);
                Asked::Write(Command::Put(pb::PutRequest {
                    key,
                    value,
                    ..Default::default()
                }))
            }
            4..=7 => Asked::Range(pb::RangeRequest {
                key,
                ..Default::default()
            }),
            _ => {
                wrote(&value);
                let compare = pb::Compare {
                    result: CompareResult::Equal.into(),
                    target: CompareTarget::Value.into(),
                    key: key.clone(),
                    range_end: Bytes::new(),
                    target_union: Some(TargetUnion::Value(old)),
                };
                let put = Request::RequestPut(pb::PutRequest {
                    key,
                    value,
                    ..Default::default()
                });
                Asked::Write(Command::Txn(pb::TxnRequest {
                    compare: vec![compare],
                    success: vec![pb::RequestOp { request: Some(put) }],
                    failure: Vec::new(),
                }))
            }
        }
    }
}
