//! The engine's promises, on disk and in memory alike.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use kv_engine::{Batch, Engine, EngineConfig, EngineError, Keyspace, MemoryDisk, Snapshot};
use proptest::prelude::*;

fn both(test: impl Fn(Engine)) {
    test(Engine::memory(&MemoryDisk::new()));
    let folder = tempfile::tempdir().unwrap();
    test(Engine::open(folder.path(), &EngineConfig::default()).unwrap());
}

fn put(engine: &Engine, keyspace: &Keyspace, pairs: &[(&str, &str)]) {
    let mut batch = Batch::new();
    for (k, v) in pairs {
        batch.put(keyspace, k.as_bytes().to_vec(), v.as_bytes().to_vec());
    }
    engine.write(batch).unwrap();
}

fn all(snapshot: &Snapshot, keyspace: &Keyspace) -> Vec<(String, String)> {
    let text = |b: Bytes| String::from_utf8(b.to_vec()).unwrap();
    let range = snapshot
        .range(keyspace, (Bound::Unbounded, Bound::Unbounded))
        .unwrap();
    range
        .map(|pair| pair.map(|(k, v)| (text(k), text(v))).unwrap())
        .collect()
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

#[test]
fn a_batch_spans_keyspaces_and_the_last_change_of_a_key_wins() {
    both(|engine| {
        let (a, b) = (engine.keyspace("a").unwrap(), engine.keyspace("b").unwrap());
        put(&engine, &a, &[("k1", "old"), ("k2", "old"), ("k3", "old")]);
        let mut batch = Batch::new();
        batch.put(&a, "k2", "put before the range delete");
        batch.put(&a, "k9", "outside");
        batch.delete_range(&a, (Bound::Included(b"k1"), Bound::Excluded(b"k3")));
        batch.put(&a, "k1", "put after it");
        batch.put(&b, "x", "1");
        batch.delete(&b, "x");
        batch.put(&b, "y", "2");
        engine.write(batch).unwrap();
        let snapshot = engine.snapshot().unwrap();
        assert_eq!(
            all(&snapshot, &a),
            pairs(&[("k1", "put after it"), ("k3", "old"), ("k9", "outside")])
        );
        assert_eq!(all(&snapshot, &b), pairs(&[("y", "2")]));
        assert_eq!(engine.get(&b, b"x").unwrap(), None);
        assert!(engine.disk_bytes().unwrap() > 0);
    });
}

#[test]
fn ranges_run_both_ways_and_prefixes_end_where_they_should() {
    both(|engine| {
        let a = engine.keyspace("a").unwrap();
        put(
            &engine,
            &a,
            &[("a", "1"), ("b", "2"), ("ba", "3"), ("bz", "4"), ("c", "5")],
        );
        let snapshot = engine.snapshot().unwrap();
        let keys = |range: &mut dyn Iterator<Item = Result<(Bytes, Bytes), EngineError>>| -> Vec<Bytes> {
            range.map(|r| r.unwrap().0).collect()
        };
        assert_eq!(keys(&mut snapshot.prefix(&a, b"b").unwrap()), ["b", "ba", "bz"]);
        assert_eq!(
            keys(&mut snapshot.prefix(&a, b"b").unwrap().rev()),
            ["bz", "ba", "b"]
        );
        assert_eq!(keys(&mut snapshot.prefix(&a, b"").unwrap()).len(), 5);
        let bounds = (Bound::Excluded(&b"b"[..]), Bound::Included(&b"c"[..]));
        assert_eq!(keys(&mut snapshot.range(&a, bounds).unwrap()), ["ba", "bz", "c"]);
        let backwards = (Bound::Included(&b"c"[..]), Bound::Excluded(&b"a"[..]));
        assert_eq!(keys(&mut snapshot.range(&a, backwards).unwrap()).len(), 0);
        let mut both_ends = snapshot.prefix(&a, b"b").unwrap();
        assert_eq!(both_ends.next().unwrap().unwrap().0, "b");
        assert_eq!(both_ends.next_back().unwrap().unwrap().0, "bz");
        assert_eq!(both_ends.next().unwrap().unwrap().0, "ba");
        assert!(both_ends.next().is_none() && both_ends.next_back().is_none());
        put(&engine, &a, &[("\u{7f}", "after")]);
        assert_eq!(snapshot.prefix(&a, &[0xFF]).unwrap().count(), 0);
    });
}

#[test]
fn a_snapshot_does_not_see_later_writes() {
    both(|engine| {
        let a = engine.keyspace("a").unwrap();
        put(&engine, &a, &[("k", "before")]);
        let snapshot = engine.snapshot().unwrap();
        put(&engine, &a, &[("k", "after"), ("l", "new")]);
        assert_eq!(all(&snapshot, &a), pairs(&[("k", "before")]));
        assert_eq!(snapshot.get(&a, b"l").unwrap(), None);
        assert_eq!(engine.get(&a, b"k").unwrap().unwrap(), "after");
    });
}

#[test]
fn bad_names_and_keys_are_refused() {
    both(|engine| {
        for name in ["", "a.b", "A", "#generations"] {
            assert!(
                matches!(engine.keyspace(name), Err(EngineError::Name(_))),
                "{name}"
            );
        }
        let a = engine.keyspace("a").unwrap();
        let mut batch = Batch::new();
        batch.put(&a, "", "v");
        assert!(matches!(engine.write(batch), Err(EngineError::Key(0))));
    });
}

fn export(engine: &Engine, keyspaces: &[Keyspace], chunk: usize) -> Vec<u8> {
    let mut export = engine.snapshot().unwrap().export(keyspaces);
    let mut bytes = Vec::new();
    while let Some(chunk) = export.next_chunk(chunk).unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    bytes
}

#[test]
fn an_import_replaces_everything_in_one_step_or_not_at_all() {
    let source = Engine::memory(&MemoryDisk::new());
    let (a, b) = (source.keyspace("a").unwrap(), source.keyspace("b").unwrap());
    put(&source, &a, &[("1", "one"), ("2", "two"), ("3", "three")]);
    put(&source, &b, &[("x", "y")]);
    let bytes = export(&source, &[a.clone(), b.clone()], 10);
    both(|engine| {
        let (a, b) = (engine.keyspace("a").unwrap(), engine.keyspace("b").unwrap());
        let other = engine.keyspace("other").unwrap();
        put(&engine, &a, &[("stale", "1")]);
        put(&engine, &other, &[("kept", "1")]);
        let before = engine.snapshot().unwrap();

        let mut dropped = engine.import(&[a.clone(), b.clone()]).unwrap();
        dropped.feed(&bytes[..bytes.len() / 2]).unwrap();
        drop(dropped);
        let mut short = engine.import(&[a.clone(), b.clone()]).unwrap();
        short.feed(&bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(short.finish(), Err(EngineError::Import(_))));
        let mut flipped = bytes.clone();
        flipped[20] ^= 1;
        let mut damaged = engine.import(&[a.clone(), b.clone()]).unwrap();
        assert!(matches!(damaged.feed(&flipped), Err(EngineError::Import(_))));
        drop(damaged);
        assert_eq!(all(&engine.snapshot().unwrap(), &a), pairs(&[("stale", "1")]));

        let mut import = engine.import(&[a.clone(), b.clone()]).unwrap();
        for piece in bytes.chunks(7) {
            import.feed(piece).unwrap();
        }
        import.finish().unwrap();
        let after = engine.snapshot().unwrap();
        assert_eq!(
            all(&after, &a),
            pairs(&[("1", "one"), ("2", "two"), ("3", "three")])
        );
        assert_eq!(all(&after, &b), pairs(&[("x", "y")]));
        assert_eq!(all(&after, &other), pairs(&[("kept", "1")]));
        assert_eq!(
            all(&before, &a),
            pairs(&[("stale", "1")]),
            "a snapshot outlives an import"
        );
        put(&engine, &a, &[("4", "four")]);
        assert_eq!(all(&engine.snapshot().unwrap(), &a).len(), 4);
    });
}

#[test]
fn what_was_synced_is_there_after_a_new_open() {
    let folder = tempfile::tempdir().unwrap();
    let config = EngineConfig::default();
    let engine = Engine::open(folder.path(), &config).unwrap();
    let a = engine.keyspace("a").unwrap();
    put(&engine, &a, &[("k", "v")]);
    let bytes = export(&engine, std::slice::from_ref(&a), 100);
    let mut import = engine.import(std::slice::from_ref(&a)).unwrap();
    import.feed(&bytes).unwrap();
    import.finish().unwrap();
    put(&engine, &a, &[("l", "w")]);
    engine.persist().unwrap();
    assert!(matches!(
        Engine::open(folder.path(), &config),
        Err(EngineError::Locked { .. })
    ));
    drop(engine);
    let engine = Engine::open(folder.path(), &config).unwrap();
    let a = engine.keyspace("a").unwrap();
    assert_eq!(
        all(&engine.snapshot().unwrap(), &a),
        pairs(&[("k", "v"), ("l", "w")])
    );
}

#[test]
fn damage_gives_a_message_with_the_folder_and_the_cure() {
    let folder = tempfile::tempdir().unwrap();
    let config = EngineConfig::default();
    let engine = Engine::open(folder.path(), &config).unwrap();
    let a = engine.keyspace("a").unwrap();
    put(&engine, &a, &[("k", "v")]);
    engine.persist().unwrap();
    drop(engine);
    std::fs::write(folder.path().join("version"), b"garbage").unwrap();
    let error = Engine::open(folder.path(), &config).unwrap_err().to_string();
    assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
    assert!(error.contains("; "), "{error}");
}

/// The states in which a process can be killed that makes a new database.
#[test]
fn a_database_that_was_never_finished_is_made_anew() {
    for left in [
        &["lock"][..],
        &["lock", "keyspaces/"],
        &["lock", "keyspaces/", "0.jnl"],
        &["lock", "keyspaces/", "0.jnl", "version"],
    ] {
        let folder = tempfile::tempdir().unwrap();
        for name in left {
            let path = folder.path().join(name);
            if name.ends_with('/') {
                std::fs::create_dir(path).unwrap();
            } else {
                std::fs::write(path, "").unwrap();
            }
        }
        for _ in 0..2 {
            let engine = Engine::open(folder.path(), &EngineConfig::default())
                .unwrap_or_else(|error| panic!("{left:?}: {error}"));
            let a = engine.keyspace("a").unwrap();
            put(&engine, &a, &[("k", "v")]);
            engine.persist().unwrap();
        }
    }
}

#[test]
fn a_database_without_its_marker_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let config = EngineConfig::default();
    let engine = Engine::open(folder.path(), &config).unwrap();
    let a = engine.keyspace("a").unwrap();
    put(&engine, &a, &[("k", "v")]);
    engine.persist().unwrap();
    drop(engine);
    let marker = folder.path().join("version");
    let content = std::fs::read(&marker).unwrap();
    for damage in [None, Some("")] {
        std::fs::remove_file(&marker).unwrap();
        if let Some(text) = damage {
            std::fs::write(&marker, text).unwrap();
        }
        let error = Engine::open(folder.path(), &config).unwrap_err();
        assert!(matches!(error, EngineError::Damaged { .. }), "{error}");
        std::fs::write(&marker, &content).unwrap();
    }
    let engine = Engine::open(folder.path(), &config).unwrap();
    let a = engine.keyspace("a").unwrap();
    assert_eq!(engine.get(&a, b"k").unwrap().unwrap(), "v");
}

#[test]
fn a_crash_of_the_memory_disk_keeps_a_prefix() {
    let disk = MemoryDisk::new();
    let engine = Engine::memory(&disk);
    let a = engine.keyspace("a").unwrap();
    put(&engine, &a, &[("0", "synced")]);
    engine.persist().unwrap();
    for n in 1..=5 {
        put(&engine, &a, &[(&n.to_string(), "unsynced")]);
    }
    assert_eq!(disk.unsynced(), 5);
    disk.crash(2);
    assert!(matches!(engine.get(&a, b"0"), Err(EngineError::Crashed)));
    let engine = Engine::memory(&disk);
    let keys: Vec<String> = all(&engine.snapshot().unwrap(), &a)
        .into_iter()
        .map(|(k, _)| k)
        .collect();
    assert_eq!(keys, ["0", "1", "2"]);
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    DeleteRange(u8, u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..20, any::<u8>()).prop_map(|(k, v)| Step::Put(k, v)),
        1 => (0u8..20).prop_map(Step::Delete),
        1 => (0u8..20, 0u8..20).prop_map(|(a, b)| Step::DeleteRange(a, b)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn both_engines_do_what_a_map_does(
        batches in prop::collection::vec(prop::collection::vec(step(), 0..12), 1..12)
    ) {
        let folder = tempfile::tempdir().unwrap();
        let engines = [
            Engine::memory(&MemoryDisk::new()),
            Engine::open(folder.path(), &EngineConfig::default()).unwrap(),
        ];
        let mut model: BTreeMap<u8, u8> = BTreeMap::new();
        for steps in &batches {
            for engine in &engines {
                let keyspace = engine.keyspace("a").unwrap();
                let mut batch = Batch::new();
                for step in steps {
                    match *step {
                        Step::Put(k, v) => batch.put(&keyspace, vec![k], vec![v]),
                        Step::Delete(k) => batch.delete(&keyspace, vec![k]),
                        Step::DeleteRange(a, b) => {
                            batch.delete_range(&keyspace, (Bound::Included(&[a]), Bound::Excluded(&[b])));
                        }
                    }
                }
                engine.write(batch).unwrap();
            }
            for step in steps {
                match *step {
                    Step::Put(k, v) => drop(model.insert(k, v)),
                    Step::Delete(k) => drop(model.remove(&k)),
                    Step::DeleteRange(a, b) => model.retain(|k, _| *k < a || *k >= b),
                }
            }
            for engine in &engines {
                let keyspace = engine.keyspace("a").unwrap();
                let range = engine.snapshot().unwrap();
                let range = range.range(&keyspace, (Bound::Unbounded, Bound::Unbounded)).unwrap();
                let found: Vec<(u8, u8)> = range.map(|r| r.map(|(k, v)| (k[0], v[0])).unwrap()).collect();
                let expected: Vec<(u8, u8)> = model.iter().map(|(k, v)| (*k, *v)).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
