//! The store against a model so simple that it is evidently right: one full copy of all pairs for each revision.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;

use bytes::Bytes;
use chainfire_core::storage::RevisionReader;
use chainfire_core::{
    Command, Compare, CompareOp, CompareTarget, DeleteRange, EventKind, KeyRange, KeyValue, Op, OpError,
    OpReply, Point, Put, Range, Reply, Saved, Store, Txn, Version, check, storage::MemoryStore,
};
use proptest::prelude::*;

type Pairs = BTreeMap<Bytes, KeyValue>;

/// Every revision's pairs; index 0 is revision 1.
struct Model {
    history: Vec<Pairs>,
    compacted: i64,
    leases: Vec<i64>,
}

impl Model {
    fn revision(&self) -> i64 {
        self.history.len() as i64
    }

    fn now(&self) -> &Pairs {
        self.history.last().unwrap()
    }

    fn put(pairs: &mut Pairs, put: &Put, revision: i64) {
        let old = pairs.get(&put.key);
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision: old.map_or(revision, |old| old.create_revision),
            mod_revision: revision,
            version: old.map_or(1, |old| old.version + 1),
            value: if put.ignore_value {
                old.unwrap().value.clone()
            } else {
                put.value.clone()
            },
            lease: if put.ignore_lease {
                old.unwrap().lease
            } else {
                put.lease
            },
        };
        pairs.insert(put.key.clone(), kv);
    }

    fn delete(pairs: &mut Pairs, keys: &KeyRange) -> i64 {
        let before = pairs.len();
        pairs.retain(|key, _| !keys.contains(key));
        (before - pairs.len()) as i64
    }

    fn refuses(&self, put: &Put) -> Option<OpError> {
        if put.lease != 0 && !self.leases.contains(&put.lease) {
            return Some(OpError::LeaseNotFound);
        }
        let missing = (put.ignore_value || put.ignore_lease) && !self.now().contains_key(&put.key);
        missing.then_some(OpError::KeyNotFound)
    }
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["a", "b", "ba", "c", "d"]).prop_map(|key| Bytes::from_static(key.as_bytes()))
}

fn keys() -> impl Strategy<Value = KeyRange> {
    let end = prop::sample::select(vec!["", "b", "c", "z", "\0", "a"]);
    (key(), end).prop_map(|(key, end)| KeyRange::new(key, Bytes::from_static(end.as_bytes())))
}

fn put() -> impl Strategy<Value = Put> {
    (key(), 0u8..5, 0i64..4, any::<bool>(), 0u8..6).prop_map(|(key, value, lease, prev_kv, ignore)| Put {
        key,
        value: if ignore == 0 {
            Bytes::new()
        } else {
            Bytes::from(vec![b'0' + value])
        },
        lease: if ignore == 1 { 0 } else { lease % 3 },
        prev_kv,
        ignore_value: ignore == 0,
        ignore_lease: ignore == 1,
    })
}

fn compare() -> impl Strategy<Value = Compare> {
    let target = prop_oneof![
        (0i64..3).prop_map(CompareTarget::Version),
        (0i64..9).prop_map(CompareTarget::Create),
        (0i64..9).prop_map(CompareTarget::Mod),
        (0u8..5).prop_map(|value| CompareTarget::Value(Bytes::from(vec![b'0' + value]))),
        (0i64..3).prop_map(CompareTarget::Lease),
    ];
    let op = prop::sample::select(vec![
        CompareOp::Equal,
        CompareOp::Greater,
        CompareOp::Less,
        CompareOp::NotEqual,
    ]);
    (keys(), op, target).prop_map(|(keys, op, target)| Compare { keys, op, target })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        put().prop_map(Op::Put),
        keys().prop_map(|keys| Op::Delete(DeleteRange { keys, prev_kv: false })),
        keys().prop_map(|keys| Op::Range(Range::of(keys))),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let ops = || prop::collection::vec(op(), 0..4);
    let txn =
        (prop::collection::vec(compare(), 0..3), ops(), ops()).prop_map(|(compare, success, failure)| {
            Command::Txn(Txn {
                compare,
                success,
                failure,
            })
        });
    prop_oneof![
        4 => put().prop_map(Command::Put),
        2 => keys().prop_map(|keys| Command::Delete(DeleteRange { keys, prev_kv: true })),
        4 => txn,
        1 => (0i64..20).prop_map(|revision| Command::Compact { revision }),
        1 => (1i64..3).prop_map(|id| Command::LeaseGrant { id, ttl_s: 5 }),
        1 => (1i64..3).prop_map(|id| Command::LeaseRevoke { id }),
    ]
}

fn holds(pairs: &Pairs, compare: &Compare) -> bool {
    let found: Vec<&KeyValue> = pairs
        .values()
        .filter(|kv| compare.keys.contains(&kv.key))
        .collect();
    let missing = KeyValue::default();
    let found = match (&compare.target, found.is_empty()) {
        (CompareTarget::Value(_), true) => return false,
        (_, true) => vec![&missing],
        (_, false) => found,
    };
    found.into_iter().all(|kv| {
        let ordering = match &compare.target {
            CompareTarget::Version(value) => kv.version.cmp(value),
            CompareTarget::Create(value) => kv.create_revision.cmp(value),
            CompareTarget::Mod(value) => kv.mod_revision.cmp(value),
            CompareTarget::Value(value) => kv.value.cmp(value),
            CompareTarget::Lease(value) => kv.lease.cmp(value),
        };
        match compare.op {
            CompareOp::Equal => ordering.is_eq(),
            CompareOp::NotEqual => ordering.is_ne(),
            CompareOp::Greater => ordering.is_gt(),
            CompareOp::Less => ordering.is_lt(),
        }
    })
}

/// Applies a command to the model and compares the reply.
fn step(model: &mut Model, command: &Command, reply: &Reply) {
    let next = model.revision() + 1;
    let mut pairs = model.now().clone();
    match command {
        Command::Put(put) => match model.refuses(put) {
            Some(error) => assert_eq!(*reply, Reply::Refused(error)),
            None => {
                let prev = pairs.get(&put.key).cloned().filter(|_| put.prev_kv);
                Model::put(&mut pairs, put, next);
                let Reply::Put(outcome) = reply else {
                    panic!("{reply:?}")
                };
                assert_eq!((outcome.revision, &outcome.prev_kv), (next, &prev));
            }
        },
        Command::Delete(delete) => {
            let prev: Vec<KeyValue> = pairs
                .values()
                .filter(|kv| delete.keys.contains(&kv.key))
                .cloned()
                .collect();
            let deleted = Model::delete(&mut pairs, &delete.keys);
            let Reply::Delete(outcome) = reply else {
                panic!("{reply:?}")
            };
            assert_eq!((outcome.deleted, &outcome.prev_kvs), (deleted, &prev));
        }
        Command::Txn(txn) => step_txn(model, &mut pairs, txn, reply),
        Command::Compact { revision } => {
            let expected = if *revision <= model.compacted {
                Reply::Refused(OpError::Compacted)
            } else if *revision > model.revision() {
                Reply::Refused(OpError::FutureRevision)
            } else {
                model.compacted = *revision;
                Reply::Compacted {
                    revision: model.revision(),
                }
            };
            assert_eq!(*reply, expected);
        }
        Command::LeaseGrant { id, ttl_s } if model.leases.contains(id) => {
            assert_eq!(*reply, Reply::Refused(OpError::LeaseExists), "{ttl_s}");
        }
        Command::LeaseGrant { id, .. } => model.leases.push(*id),
        Command::LeaseRevoke { id } if model.leases.contains(id) => {
            model.leases.retain(|lease| lease != id);
            pairs.retain(|_, kv| kv.lease != *id);
        }
        Command::LeaseRevoke { .. } => assert_eq!(*reply, Reply::Refused(OpError::LeaseNotFound)),
        Command::LeaseExpire { .. }
        | Command::LeaseCheckpoint { .. }
        | Command::Auth(_)
        | Command::Alarm(_) => {
            unreachable!("not generated")
        }
    }
    if pairs != *model.now() {
        model.history.push(pairs);
    }
}

fn step_txn(model: &Model, pairs: &mut Pairs, txn: &Txn, reply: &Reply) {
    let succeeded = txn.compare.iter().all(|compare| holds(pairs, compare));
    let ops = if succeeded { &txn.success } else { &txn.failure };
    for op in ops {
        if let Op::Put(put) = op
            && let Some(error) = model.refuses(put)
        {
            assert!(
                matches!(
                    reply,
                    Reply::Refused(OpError::LeaseNotFound | OpError::KeyNotFound)
                ),
                "{error}"
            );
            return;
        }
    }
    let Reply::Txn(outcome) = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(outcome.succeeded, succeeded);
    let next = model.revision() + 1;
    for (op, reply) in ops.iter().zip(&outcome.replies) {
        match (op, reply) {
            (Op::Put(put), OpReply::Put(_)) => Model::put(pairs, put, next),
            (Op::Delete(delete), OpReply::Delete(outcome)) => {
                assert_eq!(Model::delete(pairs, &delete.keys), outcome.deleted);
            }
            (Op::Range(range), OpReply::Range(outcome)) => {
                let expected: Vec<&KeyValue> =
                    pairs.values().filter(|kv| range.keys.contains(&kv.key)).collect();
                assert_eq!(outcome.kvs.iter().collect::<Vec<_>>(), expected);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Every revision that is still readable reads as the model has it, with a limit too.
fn compare_history(store: &Store<MemoryStore>, model: &Model, keys: &KeyRange, limit: i64) {
    for revision in 1..=model.revision() + 1 {
        let read = store.range(&Range {
            revision,
            limit,
            ..Range::of(keys.clone())
        });
        if revision > model.revision() {
            assert!(read.is_err(), "the future must not be readable");
            continue;
        }
        if revision < model.compacted {
            assert!(read.is_err(), "what is compacted must not be readable");
            continue;
        }
        let pairs = &model.history[revision as usize - 1];
        let expected: Vec<KeyValue> = pairs
            .values()
            .filter(|kv| keys.contains(&kv.key))
            .cloned()
            .collect();
        let read = read.unwrap();
        let shown = if limit == 0 {
            expected.len()
        } else {
            expected.len().min(limit as usize)
        };
        assert_eq!(read.kvs, expected[..shown]);
        assert_eq!(
            (read.count, read.more),
            (expected.len() as i64, shown < expected.len())
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_model_does(
        commands in prop::collection::vec(command(), 1..40),
        keys in keys(),
        limit in 0i64..3,
        reclaimed in prop::collection::vec(0usize..4, 40),
    ) {
        let mut store = Store::new(MemoryStore::default());
        let mut model = Model { history: vec![Pairs::new()], compacted: -1, leases: vec![] };
        let mut mark = Walk { next: Point { main: 0, sub: 0 }, target: 0, done: -1 };
        for (command, walk) in commands.iter().zip(reclaimed) {
            if let Command::Txn(txn) = command && check::txn(txn).is_err() {
                continue;
            }
            let before = store.revision();
            let applied = store.apply(command).unwrap();
            step(&mut model, command, &applied.reply);
            prop_assert_eq!(store.revision(), model.revision());
            // A put that changes nothing but counters is still a change, so revisions and events agree exactly.
            let events: usize = applied.changes.iter().map(|(_, events)| events.len()).sum();
            prop_assert_eq!(store.revision() > before, events > 0);
            for (revision, events) in &applied.changes {
                for event in events {
                    prop_assert_eq!(event.kv.mod_revision, *revision);
                    prop_assert_eq!(event.kind == EventKind::Delete, event.kv.version == 0);
                    let before = &model.history[*revision as usize - 2];
                    prop_assert_eq!(event.prev.map(|at| at.main), before.get(&event.kv.key).map(|kv| kv.mod_revision));
                }
            }
            // Space is reclaimed behind the commands, at any distance.
            reclaim(&mut store, &mut mark, walk);
            compare_history(&store, &model, &keys, limit);
        }
        compare_history(&store, &model, &keys, limit);
        for (id, lease) in store.leases().iter() {
            let attached: Vec<&Bytes> = model.now().values().filter(|kv| kv.lease == id).map(|kv| &kv.key).collect();
            prop_assert_eq!(lease.keys.iter().collect::<Vec<_>>(), attached);
        }

        // When everything is reclaimed, nothing is kept that no revision can see, but deletions at the mark.
        while reclaim(&mut store, &mut mark, 1) {}
        compare_history(&store, &model, &keys, limit);
        prop_assert_eq!(store.storage().len(), visible(&store, &model));

        // What storage holds beside the live keys is enough to build the same state again.
        let saved = Saved {
            revision: store.revision(),
            compacted: store.compacted(),
            leases: store.leases().iter().map(|(id, lease)| (id, lease.ttl_s, lease.remaining_s)).collect(),
            alarms: vec![],
        };
        let everything = KeyRange::new(Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
        let live: Vec<(Bytes, Version)> =
            store.index().range(&everything).map(|(key, version)| (key.clone(), version)).collect();
        let again = Store::open(store.storage().clone(), saved, live.into_iter().map(Ok)).unwrap();
        compare_history(&again, &model, &keys, limit);
        prop_assert_eq!(again.leases().iter().collect::<Vec<_>>(), store.leases().iter().collect::<Vec<_>>());
    }
}

/// How far the reclaiming of space is: where the walk goes on, to which compacted revision it goes, and the one that is
/// done. A compaction during a walk waits for the next one.
struct Walk {
    next: Point,
    target: i64,
    done: i64,
}

/// Walks up to `limit` events towards a compacted revision; false when there is nothing left to walk.
fn reclaim(store: &mut Store<MemoryStore>, walk: &mut Walk, limit: usize) -> bool {
    let compacted = store.compacted();
    if limit == 0 || walk.done >= compacted {
        return false;
    }
    if walk.target <= walk.done {
        walk.target = compacted;
    }
    match store.storage_mut().reclaim(walk.next, walk.target, limit) {
        Some(next) => walk.next = next,
        None => {
            // The next walk begins with the events of the compacted revision again.
            walk.done = walk.target;
            walk.next = Point {
                main: walk.target,
                sub: 0,
            };
        }
    }
    walk.done < compacted
}

/// Events that some readable revision, or a watcher that begins at one, can see.
fn visible(store: &Store<MemoryStore>, model: &Model) -> usize {
    let compacted = store.compacted().max(1);
    let current = model.history[compacted as usize - 1]
        .values()
        .filter(|kv| kv.mod_revision < compacted)
        .count();
    let later = store
        .storage()
        .scan(
            Point {
                main: compacted,
                sub: 0,
            },
            usize::MAX,
        )
        .unwrap()
        .len();
    current + later
}

#[test]
fn nested_conditions_see_the_state_before_the_first_write_and_reads_see_the_writes() {
    let mut store = Store::new(MemoryStore::default());
    let key = Bytes::from_static(b"k");
    let write = Op::Put(Put {
        key: key.clone(),
        value: Bytes::from_static(b"v"),
        ..Put::default()
    });
    let absent = Compare {
        keys: KeyRange::single(key.clone()),
        op: CompareOp::Equal,
        target: CompareTarget::Create(0),
    };
    let read = Op::Range(Range::of(KeyRange::single(key)));
    let nested = Op::Txn(Txn {
        compare: vec![absent],
        success: vec![read],
        failure: vec![],
    });
    let txn = Txn {
        compare: vec![],
        success: vec![write, nested],
        failure: vec![],
    };
    let Reply::Txn(outcome) = store.apply(&Command::Txn(txn)).unwrap().reply else {
        panic!("refused")
    };
    let OpReply::Txn(nested) = &outcome.replies[1] else {
        panic!("{outcome:?}")
    };
    assert!(nested.succeeded, "the condition was judged before the write");
    assert_eq!(nested.revision, 0, "etcd leaves a nested header empty");
    let OpReply::Range(range) = &nested.replies[0] else {
        panic!("{nested:?}")
    };
    assert_eq!(
        (range.kvs.len(), range.revision),
        (1, 2),
        "the read sees the write"
    );
}

#[test]
fn a_bad_read_in_a_transaction_leaves_nothing_behind() {
    let mut store = Store::new(MemoryStore::default());
    let write = Op::Put(Put {
        key: Bytes::from_static(b"k"),
        ..Put::default()
    });
    let future = Op::Range(Range {
        revision: 99,
        ..Range::of(KeyRange::single(Bytes::from_static(b"k")))
    });
    let txn = Txn {
        compare: vec![],
        success: vec![write, future],
        failure: vec![],
    };
    let applied = store.apply(&Command::Txn(txn)).unwrap();
    assert_eq!(applied.reply, Reply::Refused(OpError::FutureRevision));
    assert_eq!(
        (store.revision(), store.storage().len(), applied.changes.len()),
        (1, 0, 0)
    );
}

#[test]
fn a_batch_of_expired_leases_makes_one_revision_for_each_lease_with_keys() {
    let mut store = Store::new(MemoryStore::default());
    for id in 1..=3 {
        store.apply(&Command::LeaseGrant { id, ttl_s: 1 }).unwrap();
    }
    for (key, lease) in [("a", 1), ("b", 1), ("c", 2)] {
        let put = Put {
            key: Bytes::from_static(key.as_bytes()),
            lease,
            ..Put::default()
        };
        store.apply(&Command::Put(put)).unwrap();
    }
    let applied = store
        .apply(&Command::LeaseExpire {
            ids: vec![1, 2, 3, 99],
        })
        .unwrap();
    assert_eq!(applied.reply, Reply::Expired { ended: 3 });
    assert_eq!(applied.ended, [1, 2, 3]);
    let shape: Vec<(i64, usize)> = applied
        .changes
        .iter()
        .map(|(revision, events)| (*revision, events.len()))
        .collect();
    assert_eq!(shape, [(5, 2), (6, 1)]);
}
