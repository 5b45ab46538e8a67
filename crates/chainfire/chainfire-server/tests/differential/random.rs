//! Random requests: the same seed gives the same ones.

use bytes::Bytes;
use chainfire_client::wire::etcdserverpb::{self as pb, compare::TargetUnion, request_op::Request as Op};

/// Bytes of a value that is refused wherever it is put.
const TOO_LARGE: usize = 1_700_000;
/// Bytes of the largest value that is put.
const LARGE: u64 = 300_000;

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    pub fn number(&mut self, end: u64) -> i64 {
        self.below(end).cast_signed()
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick(&mut self, from: &[&'static [u8]]) -> Bytes {
        let n = usize::try_from(self.below(from.len() as u64)).unwrap();
        Bytes::from_static(from[n])
    }

    pub fn key(&mut self) -> Bytes {
        match self.below(80) {
            0 => Bytes::new(),
            1 => self.pick(&[b"\0", b"\xff", b"\xff\xff", b"a\0", b"c\xff"]),
            2..=15 => Bytes::from(format!("k{:02}", self.below(40))),
            _ => self.pick(&[b"a", b"aa", b"ab", b"b", b"b\0", b"c", b"d"]),
        }
    }

    pub fn end(&mut self) -> Bytes {
        self.pick(&[
            b"", b"", b"", b"", b"b", b"c", b"z", b"\0", b"a", b"k20", b"l", b"\xff", b"\0\0",
        ])
    }

    /// Around the newest revision, a little beyond included.
    fn revision(&mut self, newest: i64) -> i64 {
        if self.one_in(2) {
            0
        } else {
            (newest + 2 - self.number(30)).max(0)
        }
    }

    pub fn lease_id(&mut self) -> i64 {
        1 + self.number(6)
    }

    fn lease(&mut self) -> i64 {
        if self.one_in(3) { self.lease_id() } else { 0 }
    }

    pub fn range(&mut self, newest: i64) -> pb::RangeRequest {
        let filter = |random: &mut Random| {
            if random.one_in(6) {
                (newest - random.number(20)).max(0)
            } else {
                0
            }
        };
        pb::RangeRequest {
            key: self.key(),
            range_end: self.end(),
            limit: if self.one_in(2) { self.number(5) } else { 0 },
            revision: self.revision(newest),
            sort_order: i32::try_from(self.below(3)).unwrap(),
            sort_target: i32::try_from(self.below(5)).unwrap(),
            serializable: self.one_in(4),
            keys_only: self.one_in(4),
            count_only: self.one_in(6),
            min_mod_revision: filter(self),
            max_mod_revision: filter(self),
            min_create_revision: filter(self),
            max_create_revision: filter(self),
        }
    }

    fn value(&mut self) -> Bytes {
        match self.below(400) {
            0 => {
                let length = usize::try_from(self.below(LARGE)).unwrap();
                Bytes::from(vec![b'L'; length])
            }
            1 if self.one_in(20) => Bytes::from(vec![b'X'; TOO_LARGE]),
            _ => self.pick(&[b"", b"x", b"y", b"zz"]),
        }
    }

    pub fn put(&mut self) -> pb::PutRequest {
        let ignore_value = self.one_in(8);
        let ignore_lease = self.one_in(8);
        pb::PutRequest {
            key: self.key(),
            // Sometimes both are given, which is an error.
            value: if ignore_value && !self.one_in(8) {
                Bytes::new()
            } else {
                self.value()
            },
            lease: if ignore_lease && !self.one_in(8) {
                0
            } else {
                self.lease()
            },
            prev_kv: self.one_in(2),
            ignore_value,
            ignore_lease,
        }
    }

    pub fn delete(&mut self, in_txn: bool) -> pb::DeleteRangeRequest {
        let mut key = self.key();
        let mut range_end = self.end();
        // A tool without a certificate may not delete across the prefixes of Hearth's own services.
        if key.starts_with(b"\0") && !range_end.is_empty() {
            key = Bytes::from_static(b"a");
        }
        // The known differences of etcd 3.4 that `main.rs` names.
        if in_txn && !range_end.is_empty() && (range_end == "\0" || range_end <= key) {
            range_end = Bytes::new();
        }
        pb::DeleteRangeRequest {
            key,
            range_end,
            prev_kv: self.one_in(2),
        }
    }

    fn compare(&mut self, newest: i64) -> pb::Compare {
        use pb::compare::CompareTarget as Target;
        let near = (newest - self.number(10)).max(0);
        let (target, value) = match self.below(5) {
            0 => (Target::Version, TargetUnion::Version(self.number(4))),
            1 => (Target::Create, TargetUnion::CreateRevision(near * self.number(2))),
            2 => (Target::Mod, TargetUnion::ModRevision(near * self.number(2))),
            3 => (Target::Value, TargetUnion::Value(self.pick(&[b"", b"x", b"y"]))),
            _ => (Target::Lease, TargetUnion::Lease(self.lease())),
        };
        pb::Compare {
            result: i32::try_from(self.below(4)).unwrap(),
            target: target.into(),
            key: self.key(),
            target_union: if self.one_in(10) { None } else { Some(value) },
            range_end: self.end(),
        }
    }

    fn ops(&mut self, newest: i64, depth: u64) -> Vec<pb::RequestOp> {
        let count = if self.one_in(150) { 130 } else { self.below(4) };
        (0..count)
            .map(|_| {
                let request = match self.below(if depth < 3 { 8 } else { 6 }) {
                    0 | 1 => Op::RequestRange(self.range(newest)),
                    2..=4 => Op::RequestPut(self.put()),
                    5 => Op::RequestDeleteRange(self.delete(true)),
                    _ => Op::RequestTxn(self.txn(newest, depth + 1)),
                };
                pb::RequestOp {
                    request: if self.one_in(100) { None } else { Some(request) },
                }
            })
            .collect()
    }

    pub fn txn(&mut self, newest: i64, depth: u64) -> pb::TxnRequest {
        let compares = self.below(3);
        pb::TxnRequest {
            compare: (0..compares).map(|_| self.compare(newest)).collect(),
            success: self.ops(newest, depth),
            failure: self.ops(newest, depth),
        }
    }

    /// A watcher with random wishes; `id` is new, but for an error now and then.
    pub fn watcher(&mut self, newest: i64, id: i64) -> pb::WatchCreateRequest {
        let mut filters = Vec::new();
        for filter in 0..2 {
            if self.one_in(5) {
                filters.push(filter);
            }
        }
        pb::WatchCreateRequest {
            key: self.key(),
            range_end: self.end(),
            start_revision: match self.below(6) {
                0 => (newest - self.number(40)).max(1),
                1 => newest + 1 + self.number(10),
                2 => 1,
                _ => 0,
            },
            progress_notify: false,
            filters,
            prev_kv: self.one_in(2),
            watch_id: if id > 1 && self.one_in(10) { id - 1 } else { id },
            fragment: self.one_in(3),
        }
    }
}
