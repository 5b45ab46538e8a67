//! The machine on an engine against the core in memory, which `chainfire-core/tests/model.rs` holds against a model:
//! rounds of several entries, crashes with lost writes, space being reclaimed, snapshots, and states of an earlier
//! release must not make a difference to anything that can be read.

use bytes::Bytes;
use chainfire_client::wire::etcdserverpb::{self as pb, request_op::Request as OpRequest};
use chainfire_core::{Command, KeyRange, Point, Range, Store, storage::MemoryStore};
use kv_engine::{Batch, Engine, MemoryDisk};
use proptest::prelude::*;
use prost::Message;
use raft_host::{Committed, Payload, StateMachine};
use std::{ops::Bound, sync::Arc};

use crate::{
    clock::Clock,
    convert,
    hash::{hash_all, hash_kv},
    machine::{Machine, Shared},
    record::{EventRecord, LogBody, LogRecord, META_KEY, MetaRecord, RECLAIM_KEY},
};

/// A member without Raft: a disk, a machine on it, and the log.
struct Member {
    disk: MemoryDisk,
    machine: Machine,
    shared: Arc<Shared>,
    log: Vec<Vec<u8>>,
}

impl Member {
    fn new() -> Member {
        let disk = MemoryDisk::new();
        let (machine, shared) = open(&disk);
        Member {
            disk,
            machine,
            shared,
            log: Vec::new(),
        }
    }

    /// Applies log entries from the applied one on, in one round.
    fn catch_up(&mut self) {
        let from = usize::try_from(self.machine.applied_index()).unwrap();
        let entries: Vec<Committed<'_>> = self
            .log
            .iter()
            .enumerate()
            .skip(from)
            .map(|(place, data)| Committed {
                index: place as u64 + 1,
                term: 1,
                payload: Payload::Command(data),
            })
            .collect();
        if !entries.is_empty() {
            self.machine.apply(&entries).unwrap();
        }
    }

    fn append(&mut self, bodies: &[LogBody]) {
        for body in bodies {
            let record = LogRecord {
                body: Some(body.clone()),
                caller: None,
            };
            self.log.push(record.encode_to_vec());
        }
    }

    fn reopen(&mut self) {
        (self.machine, self.shared) = open(&self.disk);
    }

    fn reclaim(&self) {
        while self.shared.reclaimer.step().unwrap() {}
    }
}

fn open(disk: &MemoryDisk) -> (Machine, Arc<Shared>) {
    Machine::open(Engine::memory(disk), Clock::start(), 1 << 16).unwrap()
}

fn everything() -> KeyRange {
    KeyRange::new(Bytes::from_static(b"\0"), Bytes::from_static(b"\0"))
}

/// Everything that a client can read must be what the model has.
fn compare(member: &Member, model: &Store<MemoryStore>) {
    let store = member.shared.store();
    assert_eq!(
        (store.revision(), store.compacted()),
        (model.revision(), model.compacted())
    );
    let keys = [
        everything(),
        KeyRange::new(Bytes::from_static(b"a"), Bytes::from_static(b"b")),
        KeyRange::single(Bytes::from_static(b"a\0")),
        KeyRange::single(Bytes::from_static(b"a")),
    ];
    for revision in 0..=model.revision() + 1 {
        for keys in &keys {
            let range = Range {
                revision,
                ..Range::of(keys.clone())
            };
            let found = store
                .plan(&range)
                .map(|plan| plan.fetch(&member.shared.tables).unwrap());
            let expected = model
                .plan(&range)
                .map(|plan| plan.fetch(model.storage()).unwrap());
            assert_eq!(found, expected, "at {revision}");
        }
    }
    assert!(store.leases().iter().eq(model.leases().iter()));
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec![&b"a"[..], b"a\0", b"a\0\x01", b"ab", b"b"]).prop_map(Bytes::from_static)
}

fn put() -> impl Strategy<Value = pb::PutRequest> {
    (key(), prop::collection::vec(any::<u8>(), 0..4), 0i64..2).prop_map(|(key, value, lease)| {
        pb::PutRequest {
            key,
            value: value.into(),
            lease,
            ..Default::default()
        }
    })
}

fn delete() -> impl Strategy<Value = pb::DeleteRangeRequest> {
    (key(), any::<bool>()).prop_map(|(key, range)| pb::DeleteRangeRequest {
        key,
        range_end: if range {
            Bytes::from_static(b"b")
        } else {
            Bytes::new()
        },
        ..Default::default()
    })
}

/// Reads the past and writes: the read must not see what is staged after its revision, and must see what is staged
/// before.
fn txn() -> impl Strategy<Value = pb::TxnRequest> {
    (put(), 0i64..30).prop_map(|(put, revision)| {
        let read = pb::RangeRequest {
            key: Bytes::from_static(b"\0"),
            range_end: Bytes::from_static(b"\0"),
            revision,
            ..Default::default()
        };
        pb::TxnRequest {
            success: vec![
                pb::RequestOp {
                    request: Some(OpRequest::RequestPut(put)),
                },
                pb::RequestOp {
                    request: Some(OpRequest::RequestRange(read)),
                },
            ],
            ..Default::default()
        }
    })
}

fn body() -> impl Strategy<Value = LogBody> {
    prop_oneof![
        6 => put().prop_map(LogBody::Put),
        3 => delete().prop_map(LogBody::Delete),
        2 => txn().prop_map(LogBody::Txn),
        2 => (0i64..40).prop_map(|revision| LogBody::Compact(pb::CompactionRequest { revision, physical: false })),
        1 => Just(LogBody::Grant(pb::LeaseGrantRequest { id: 1, ttl: 10 })),
        1 => Just(LogBody::Revoke(pb::LeaseRevokeRequest { id: 1 })),
    ]
}

#[derive(Debug, Clone)]
enum Step {
    Round(Vec<LogBody>),
    /// Steps of the reclaiming worker.
    Reclaim(usize),
    Persist,
    /// A crash that keeps so many of the writes that were not synced.
    Crash(usize),
    /// The state travels to an empty member.
    Snapshot,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(body(), 1..5).prop_map(Step::Round),
        3 => (1usize..4).prop_map(Step::Reclaim),
        1 => Just(Step::Persist),
        1 => (0usize..6).prop_map(Step::Crash),
        1 => Just(Step::Snapshot),
    ]
}

fn transfer(from: &mut Member) -> Member {
    let mut to = Member::new();
    to.log = from.log.clone();
    let mut source = from.machine.snapshot().unwrap();
    let mut sink = to.machine.receive().unwrap();
    while let Some(chunk) = source.next_chunk(100).unwrap() {
        sink.feed(&chunk).unwrap();
    }
    let index = from.machine.applied_index();
    to.machine.restore(index, sink).unwrap();
    to
}

/// Makes of a state what an earlier release would have left: no `history`, no `keys`, no `prev`, no hash.
fn age(member: &mut Member) {
    member.reclaim();
    let tables = member.shared.tables.clone();
    let mut batch = Batch::new();
    let all = (Bound::Unbounded, Bound::Unbounded);
    batch.delete_range(&tables.history, all);
    batch.delete_range(&tables.keys, all);
    for pair in tables
        .engine
        .snapshot()
        .unwrap()
        .range(&tables.revisions, all)
        .unwrap()
    {
        let (key, value) = pair.unwrap();
        let record = EventRecord {
            prev_main: 0,
            prev_sub: 0,
            ..EventRecord::decode(value).unwrap()
        };
        batch.put(&tables.revisions, key, record.encode_to_vec());
    }
    batch.delete(&tables.meta, RECLAIM_KEY);
    let meta = tables.meta().unwrap().unwrap();
    let meta = MetaRecord {
        applied: meta.applied,
        revision: meta.revision,
        compacted: meta.compacted,
        ..MetaRecord::default()
    };
    batch.put(&tables.meta, META_KEY, meta.encode_to_vec());
    tables.engine.write(batch).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_the_engine_reads_are_those_of_the_core(steps in prop::collection::vec(step(), 1..25)) {
        let mut member = Member::new();
        let mut model = Store::new(MemoryStore::default());
        let mut replies = Vec::new();
        for step in steps {
            match step {
                Step::Round(bodies) => {
                    member.append(&bodies);
                    for body in bodies {
                        let command: Command = convert::command(body).unwrap();
                        replies.push(model.apply(&command).unwrap().reply);
                    }
                    member.catch_up();
                }
                Step::Reclaim(steps) => {
                    for _ in 0..steps {
                        member.shared.reclaimer.step().unwrap();
                    }
                }
                Step::Persist => { member.machine.persist().unwrap(); }
                Step::Crash(keep) => {
                    member.disk.crash(keep);
                    member.reopen();
                    member.catch_up();
                }
                Step::Snapshot => member = transfer(&mut member),
            }
            compare(&member, &model);
        }

        // Members at other places of reclaiming, and one that took no detour, agree on every checksum.
        let mut straight = Member::new();
        straight.log = member.log.clone();
        straight.catch_up();
        if model.revision() > 1 {
            for revision in model.compacted().max(1)..=model.revision() {
                prop_assert_eq!(
                    hash_kv(&member.shared.tables, revision).unwrap(),
                    hash_kv(&straight.shared.tables, revision).unwrap()
                );
            }
            prop_assert_eq!(
                member.shared.stamp(u64::MAX).unwrap(),
                straight.shared.stamp(u64::MAX).unwrap()
            );
        }
        let hash = hash_all(&straight.shared.tables).unwrap();
        member.reclaim();
        straight.reclaim();
        compare(&member, &model);
        prop_assert_eq!(hash_all(&straight.shared.tables).unwrap(), hash);
        prop_assert_eq!(hash_all(&member.shared.tables).unwrap(), hash);
        // What is counted against the quota is what is stored.
        let stored = stored_bytes(&member);
        prop_assert_eq!(member.shared.live_bytes(), stored);
        prop_assert_eq!(straight.shared.live_bytes(), stored);

        // A state of an earlier release is brought up to date, also when that is cut short and begun again.
        if member.machine.applied_index() > 0 {
            age(&mut member);
            member.machine.persist().unwrap();
            for keep in 0..3 {
                member.reopen();
                member.disk.crash(keep);
            }
            member.reopen();
            compare(&member, &model);
            prop_assert_eq!(hash_all(&member.shared.tables).unwrap(), hash);
            prop_assert_eq!(member.shared.live_bytes(), stored);
            prop_assert_eq!(member.shared.stamp(u64::MAX).unwrap().since, member.machine.applied_index());
        }
    }
}

fn stored_bytes(member: &Member) -> u64 {
    let tables = &member.shared.tables;
    let snapshot = tables.engine.snapshot().unwrap();
    let events = tables.events_in(&snapshot, Point { main: 0, sub: 0 }).unwrap();
    events
        .map(|pair| {
            let kv = pair.unwrap().1.kv;
            crate::storage::logical_bytes(kv.key.len(), kv.value.len())
        })
        .sum()
}

/// A key with so many versions that walks through history leap over it, beside others that must not be lost.
#[test]
fn reads_of_the_past_leap_over_keys_with_many_versions() {
    let mut member = Member::new();
    let mut model = Store::new(MemoryStore::default());
    let put = |key: &'static str, n: usize| {
        LogBody::Put(pb::PutRequest {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::from(n.to_string()),
            ..Default::default()
        })
    };
    let mut bodies = Vec::new();
    for n in 0..120 {
        bodies.push(put(if n % 3 == 0 { "a" } else { "a\0" }, n));
        if n % 40 == 0 {
            bodies.push(put("ab", n));
            bodies.push(put("0", n));
        }
    }
    member.append(&bodies);
    member.catch_up();
    for body in bodies {
        model.apply(&convert::command(body).unwrap()).unwrap();
    }
    compare(&member, &model);
}

/// A token of the old cluster must never become valid in the new one, also not one made after the backup.
#[test]
fn a_state_that_becomes_another_clusters_voids_older_tokens() {
    let mut member = Member::new();
    let before = member.shared.store().auth().revision();
    member.machine.rebase(1, 1000).unwrap();
    assert_eq!(member.shared.store().auth().revision(), before + 1000);
    let (_, reopened) = open(&member.disk);
    assert_eq!(reopened.store().auth().revision(), before + 1000);
}
