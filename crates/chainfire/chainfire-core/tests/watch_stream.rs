//! Watch streams as scripts: what is done on the left, what the client hears below it.
//!
//! ```text
//!   put K[=V] .. | del K ..         one revision with these changes
//!   hub                             what happened is marked and published
//!   ring R                          memory reaches back to revision R only
//!   compact R
//!   watch ID K[..END] [from=R] [prev] [fragment] [notify] [noput] [nodelete] [denied]
//!   cancel ID | progress | tick | recheck PREFIX      (who may read only PREFIX)
//!   pull                            all that can be sent without storage
//!   deep                            one page from storage
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{collections::BTreeMap, convert::Infallible};

use bytes::Bytes;
use chainfire_core::{
    Event, EventKind, KeyRange, KeyValue, OpError,
    watch::{Change, Create, Interest, Limits, Mark, Page, Pull, Response, Say, Source, Stream},
};
use expect_test::{Expect, expect};
use proptest::prelude::*;

/// Changes that one page holds.
const PAGE: usize = 2;

#[derive(Default)]
struct History {
    changes: Vec<Change>,
    ring_from: i64,
    compacted: i64,
}

impl History {
    fn page(&self, from: i64, until: i64) -> Page {
        let wanted = self
            .changes
            .iter()
            .filter(|change| (from..=until).contains(&change.revision));
        let changes: Vec<Change> = wanted.take(PAGE).cloned().collect();
        let full = changes.len() == PAGE;
        let through = changes
            .last()
            .filter(|_| full)
            .map_or(until, |change| change.revision);
        Page { changes, through }
    }

    fn revision(&self) -> i64 {
        self.changes.last().map_or(1, |change| change.revision)
    }

    fn at(&self, key: &[u8], revision: i64) -> Option<KeyValue> {
        let events = self
            .changes
            .iter()
            .filter(|change| change.revision <= revision)
            .flat_map(|change| change.events.iter());
        let last = events.filter(|event| event.kv.key == key).last()?;
        (last.kind == EventKind::Put).then(|| last.kv.clone())
    }

    fn write(&mut self, changes: &[(&str, Option<&str>)]) {
        let revision = self.revision() + 1;
        let events = changes.iter().map(|(key, value)| {
            let old = self.at(key.as_bytes(), revision - 1);
            let key = Bytes::copy_from_slice(key.as_bytes());
            let kv = match value {
                Some(value) => KeyValue {
                    key,
                    create_revision: old.as_ref().map_or(revision, |old| old.create_revision),
                    version: old.map_or(1, |old| old.version + 1),
                    mod_revision: revision,
                    value: Bytes::copy_from_slice(value.as_bytes()),
                    lease: 0,
                },
                None => KeyValue {
                    key,
                    mod_revision: revision,
                    ..KeyValue::default()
                },
            };
            let kind = if value.is_some() {
                EventKind::Put
            } else {
                EventKind::Delete
            };
            Event { kind, kv, prev: None }
        });
        let events = events.collect();
        self.changes.push(Change { revision, events });
    }
}

impl Source for History {
    type Error = Infallible;

    fn compacted(&self) -> i64 {
        self.compacted
    }

    fn recent(&self, from: i64, until: i64) -> Option<Page> {
        (from >= self.ring_from).then(|| self.page(from, until))
    }

    fn stored(&self, from: i64, until: i64) -> Result<Option<Page>, Infallible> {
        Ok((from >= self.compacted).then(|| self.page(from, until)))
    }

    fn before(&self, event: &Event) -> Result<Option<KeyValue>, Infallible> {
        let before = event.kv.mod_revision - 1;
        Ok(self
            .at(&event.kv.key, before)
            .filter(|_| before >= self.compacted))
    }
}

struct World {
    history: History,
    stream: Stream,
    /// The hub: who watches what, and up to where it has told.
    known: BTreeMap<i64, KeyRange>,
    matched: i64,
}

impl World {
    fn new(limits: Limits) -> World {
        World {
            history: History::default(),
            stream: Stream::new(limits, 1),
            known: BTreeMap::new(),
            matched: 1,
        }
    }

    fn hub(&mut self) {
        for change in &self.history.changes {
            if change.revision <= self.matched {
                continue;
            }
            for (id, keys) in &self.known {
                if change.events.iter().any(|event| keys.contains(&event.kv.key)) {
                    let (first, last) = (change.revision, change.revision);
                    self.stream.mark(*id, Mark { first, last });
                }
            }
        }
        self.matched = self.history.revision();
        self.stream.published(self.matched);
    }

    fn create(&mut self, create: Create, permitted: Result<(), OpError>) {
        if let Some(enrol) = self.stream.create(create, self.history.revision(), permitted) {
            self.known.insert(enrol.watch_id, enrol.keys);
            self.stream.enrolled(enrol.watch_id, self.matched);
            self.stream.published(self.matched);
        }
    }

    fn withdraw(&mut self) {
        for id in self.stream.take_withdrawn() {
            self.known.remove(&id);
        }
    }

    fn pull(&mut self) -> Vec<Response> {
        let mut said = Vec::new();
        loop {
            match self.stream.pull(&self.history).unwrap() {
                Pull::Response(response) => said.push(response),
                Pull::Again => {}
                Pull::Idle => break,
            }
        }
        self.withdraw();
        said
    }

    fn deep(&mut self) -> Vec<Response> {
        let said = self.stream.pull_stored(&self.history).unwrap();
        self.withdraw();
        said.into_iter().collect()
    }

    fn step(&mut self, line: &str) -> Vec<Response> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |place: usize| words[place].parse::<i64>().unwrap();
        let now = self.history.revision();
        match words[0] {
            "put" | "del" => {
                let mut put = true;
                let mut changes = Vec::new();
                for word in &words {
                    match *word {
                        "put" => put = true,
                        "del" => put = false,
                        word => {
                            let (key, value) = word.split_once('=').unwrap_or((word, "v"));
                            changes.push((key, put.then_some(value)));
                        }
                    }
                }
                self.history.write(&changes);
            }
            "hub" => self.hub(),
            "ring" => self.history.ring_from = number(1),
            "compact" => self.history.compacted = number(1),
            "watch" => {
                let denied = words.contains(&"denied");
                let permitted = if denied {
                    Err(OpError::PermissionDenied)
                } else {
                    Ok(())
                };
                self.create(create(&words), permitted);
            }
            "cancel" => self.stream.cancel(number(1), now),
            "progress" => self.stream.request_progress(now),
            "tick" => self.stream.notify_progress(),
            "recheck" => self
                .stream
                .recheck(now, |keys| keys.within_prefix(words[1].as_bytes())),
            "pull" => return self.pull(),
            "deep" => return self.deep(),
            other => panic!("{other}"),
        }
        self.withdraw();
        Vec::new()
    }
}

fn create(words: &[&str]) -> Create {
    let (key, end) = words[2].split_once("..").unwrap_or((words[2], ""));
    let keys = KeyRange::new(
        Bytes::copy_from_slice(key.as_bytes()),
        Bytes::copy_from_slice(end.as_bytes()),
    );
    let has = |word| words.contains(&word);
    let from = words.iter().find_map(|word| word.strip_prefix("from="));
    Create {
        watch_id: words[1].parse().unwrap(),
        interest: Interest {
            keys,
            no_put: has("noput"),
            no_delete: has("nodelete"),
        },
        start_revision: from.map_or(0, |from| from.parse().unwrap()),
        prev_kv: has("prev"),
        fragment: has("fragment"),
        progress_notify: has("notify"),
    }
}

fn show(response: &Response) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let what = match &response.say {
        Say::Created => "created".to_owned(),
        Say::Refused { reason } => format!("refused: {reason}"),
        Say::Canceled {
            reason,
            compact_revision,
        } => format!("canceled: {reason} {compact_revision}"),
        Say::Progress => "progress".to_owned(),
        Say::Events { events, fragment } => {
            let events = events.iter().map(|told| {
                let kv = &told.event.kv;
                let prev = told
                    .prev
                    .as_ref()
                    .map(|prev| format!(" (was {}@{})", text(&prev.value), prev.mod_revision));
                let what = match told.event.kind {
                    EventKind::Put => format!("{}={}", text(&kv.key), text(&kv.value)),
                    EventKind::Delete => format!("-{}", text(&kv.key)),
                };
                format!("{what}@{}{}", kv.mod_revision, prev.unwrap_or_default())
            });
            let part = if *fragment { " .." } else { "" };
            events.collect::<Vec<_>>().join(", ") + part
        }
    };
    format!("{} at {}: {what}", response.watch_id, response.revision)
}

const SMALL: Limits = Limits {
    watchers: 4,
    page_bytes: 200,
};

fn check(script: &str, expected: Expect) {
    let mut world = World::new(SMALL);
    let mut said = String::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        for response in world.step(line) {
            said += &show(&response);
            said.push('\n');
        }
        if line == "pull" || line == "deep" {
            said += "--\n";
        }
    }
    expected.assert_eq(&said);
}

#[test]
fn creation_comes_first_and_refusals_say_why() {
    check(
        "put a=1
         hub
         watch 0 a from=1
         watch 0 a
         watch 7 b..c
         watch 7 x
         watch 0 c..b
         watch 0 x from=-1
         watch 0 x denied
         watch 0 x
         watch 0 x
         pull",
        expect![[r#"
            0 at 2: created
            1 at 2: created
            7 at 2: created
            -1 at 2: refused: mvcc: duplicate watch ID provided on the WatchStream
            -1 at 2: refused: mvcc: watcher range is empty
            -1 at 2: refused: etcdserver: mvcc: required revision has been compacted
            -1 at 2: refused: etcdserver: permission denied
            2 at 2: created
            -1 at 2: refused: etcdserver: too many requests
            0 at 2: a=1@2
            --
        "#]],
    );
}

#[test]
fn only_what_is_wanted_from_the_start_on() {
    check(
        "put a=1
         put a=2 b=2
         hub
         watch 1 a
         watch 2 a from=2
         watch 3 a..c from=3 noput
         watch 4 a..c from=3 nodelete
         pull
         del a
         put c
         pull
         hub
         pull",
        expect![[r#"
            1 at 3: created
            2 at 3: created
            3 at 3: created
            4 at 3: created
            2 at 3: a=1@2, a=2@3
            4 at 3: a=2@3, b=2@3
            --
            --
            1 at 5: -a@4
            2 at 5: -a@4
            3 at 5: -a@4
            --
        "#]],
    );
}

#[test]
fn the_future_shows_nothing_older_and_no_progress() {
    check(
        "watch 1 a from=4 notify
         progress
         pull
         put a=2
         put a=3
         hub
         tick
         pull
         put a=4
         hub
         pull
         tick
         tick
         pull",
        expect![[r#"
            1 at 1: created
            --
            --
            1 at 4: a=4@4
            -1 at 4: progress
            --
            1 at 4: progress
            --
        "#]],
    );
}

#[test]
fn the_pair_before_comes_along_where_it_is_stored() {
    check(
        "put a=1
         put a=2
         del a
         put a=3
         hub
         watch 1 a from=2 prev
         pull
         compact 3
         watch 2 a from=3 prev
         pull",
        expect![[r#"
            1 at 5: created
            1 at 5: a=1@2, a=2@3 (was 1@2)
            1 at 5: -a@4 (was 2@3), a=3@5
            --
            2 at 5: created
            2 at 5: a=2@3, -a@4 (was 2@3)
            2 at 5: a=3@5
            --
        "#]],
    );
}

#[test]
fn compacted_history_ends_a_watcher() {
    check(
        "put a=1
         put a=2
         put a=3
         hub
         compact 3
         watch 1 a from=2
         watch 2 a from=3
         pull
         deep
         pull",
        expect![[r#"
            1 at 4: created
            2 at 4: created
            2 at 4: a=2@3, a=3@4
            --
            1 at 4: canceled: etcdserver: mvcc: required revision has been compacted 3
            --
            --
        "#]],
    );
    // Who was told of everything and lags a little is served from the ring, compacted or not; who lags too far is not.
    check(
        "watch 1 a
         put a=1
         hub
         put a=2
         hub
         compact 3
         pull
         put a=3
         hub
         put a=4
         hub
         ring 6
         compact 5
         pull
         deep
         pull",
        expect![[r#"
            1 at 1: created
            1 at 3: a=1@2, a=2@3
            --
            --
            1 at 5: canceled: etcdserver: mvcc: required revision has been compacted 5
            --
            --
        "#]],
    );
}

#[test]
fn cancellation_is_the_last_word_also_while_catching_up() {
    check(
        "put a=1
         put a=2
         put a=3
         put a=4
         put a=5
         hub
         ring 9
         watch 1 a from=2
         pull
         deep
         cancel 1
         cancel 1
         deep
         pull
         watch 1 a from=6
         put a=6
         hub
         pull
         deep
         pull
         deep",
        expect![[r#"
            1 at 6: created
            --
            1 at 6: a=1@2, a=2@3
            --
            --
            1 at 6: canceled:  0
            --
            1 at 6: created
            --
            1 at 7: a=5@6, a=6@7
            --
            --
            --
        "#]],
    );
}

#[test]
fn all_of_a_revision_in_one_response_or_in_fragments() {
    // About three events fill a response.
    check(
        "put a=1
         put a1 a2 a3 a4 a5 a6 a7
         put a=3
         hub
         watch 1 a..b from=2
         watch 2 a..b from=2 fragment
         pull",
        expect![[r#"
            1 at 4: created
            2 at 4: created
            1 at 4: a=1@2
            2 at 4: a=1@2
            1 at 4: a1=v@3, a2=v@3, a3=v@3, a4=v@3, a5=v@3, a6=v@3, a7=v@3
            2 at 4: a1=v@3, a2=v@3, a3=v@3 ..
            1 at 4: a=3@4
            2 at 4: a4=v@3, a5=v@3, a6=v@3 ..
            2 at 4: a7=v@3
            2 at 4: a=3@4
            --
        "#]],
    );
}

#[test]
fn progress_never_overtakes_an_event() {
    check(
        "watch 1 a
         watch 2 b from=2
         pull
         put b=2
         put a=3
         progress
         pull
         hub
         pull
         ring 9
         put a=4
         put x
         hub
         progress
         pull
         put b=6
         hub
         deep
         pull
         deep
         pull",
        expect![[r#"
            1 at 1: created
            2 at 1: created
            --
            --
            2 at 3: b=2@2
            1 at 3: a=3@3
            -1 at 3: progress
            --
            --
            1 at 6: a=4@4
            --
            -1 at 5: progress
            --
            2 at 6: b=6@6
            --
            --
        "#]],
    );
}

#[test]
fn progress_is_complete_up_to_its_revision_although_more_has_happened() {
    check(
        "watch 1 a
         pull
         put a=2
         hub
         pull
         progress
         put a=3
         hub
         pull",
        expect![[r#"
            1 at 1: created
            --
            1 at 2: a=2@2
            --
            -1 at 2: progress
            1 at 3: a=3@3
            --
        "#]],
    );
    // Nobody watches: nobody's progress.
    check(
        "progress\npull\nwatch 1 a\npull",
        expect![[r#"
        --
        1 at 1: created
        --
    "#]],
    );
}

#[test]
fn idle_watchers_are_notified_when_they_wish() {
    check(
        "watch 1 a notify
         watch 2 b
         watch 3 c notify
         put a
         hub
         pull
         tick
         pull
         tick
         pull
         put a
         hub
         tick
         pull",
        expect![[r#"
            1 at 1: created
            2 at 1: created
            3 at 1: created
            1 at 2: a=v@2
            --
            3 at 2: progress
            --
            1 at 2: progress
            3 at 2: progress
            --
            3 at 3: progress
            1 at 3: a=v@3
            --
        "#]],
    );
}

#[test]
fn lost_rights_end_watchers() {
    check(
        "put a=1
         hub
         watch 1 a from=2
         watch 2 b..c
         recheck a
         put b
         put a
         hub
         pull",
        expect![[r#"
            1 at 2: created
            2 at 2: created
            2 at 2: canceled: etcdserver: permission denied 0
            1 at 4: a=1@2
            1 at 4: a=v@4
            --
        "#]],
    );
}

#[test]
fn one_that_lags_far_holds_up_nobody_on_its_stream() {
    check(
        "put a=1
         put a=2
         put a=3
         put a=4
         put a=5
         hub
         ring 6
         watch 1 a from=2
         watch 2 b
         pull
         put b
         hub
         pull
         deep
         put b
         hub
         pull
         deep
         pull
         deep
         pull",
        expect![[r#"
            1 at 6: created
            2 at 6: created
            --
            2 at 7: b=v@7
            --
            1 at 7: a=1@2, a=2@3
            --
            2 at 8: b=v@8
            --
            1 at 8: a=3@4, a=4@5
            --
            1 at 8: a=5@6
            --
            --
            --
        "#]],
    );
}

/// What may happen to a stream, for the random test.
#[derive(Debug, Clone)]
enum Act {
    Write(Vec<(u8, bool)>),
    Hub,
    Ring(i64),
    Watch(usize, i64, bool),
    Cancel(usize),
    Progress,
    Pull,
    Deep,
}

const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const RANGES: [&str; 5] = ["a", "c", "a..c", "b..f", "d"];

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let changes = proptest::collection::btree_map(0..6_u8, any::<bool>(), 1..4);
    let act = prop_oneof![
        4 => changes.prop_map(|changes| Act::Write(changes.into_iter().collect())),
        3 => Just(Act::Hub),
        1 => (0..6_i64).prop_map(Act::Ring),
        2 => (0..5_usize, -3..3_i64, any::<bool>()).prop_map(|(range, from, fragment)| Act::Watch(range, from, fragment)),
        1 => (0..3_usize).prop_map(Act::Cancel),
        1 => Just(Act::Progress),
        4 => Just(Act::Pull),
        3 => Just(Act::Deep),
    ];
    proptest::collection::vec(act, 1..60)
}

/// A watcher's keys, its first revision, and what it was told.
type Watched = (KeyRange, i64, Vec<(i64, Bytes)>);

/// What a client may conclude from what it was told.
#[derive(Default)]
struct Client {
    watchers: BTreeMap<i64, Watched>,
    created: Vec<i64>,
    canceled: Vec<i64>,
    /// What each watcher that existed then was promised.
    progress: BTreeMap<i64, i64>,
}

impl Client {
    fn hear(&mut self, response: &Response, history: &History) {
        let id = response.watch_id;
        match &response.say {
            Say::Created => self.created.push(id),
            Say::Canceled { .. } => self.canceled.push(id),
            Say::Refused { .. } => panic!("everything is permitted here"),
            Say::Progress => {
                assert_eq!(id, -1);
                for id in self.created.iter().filter(|id| !self.canceled.contains(id)) {
                    let before = self.progress.insert(*id, response.revision);
                    assert!(before <= Some(response.revision), "progress goes back");
                    self.complete(*id, response.revision, history);
                }
            }
            Say::Events { events, .. } => {
                assert!(self.created.contains(&id) && !self.canceled.contains(&id));
                for told in events {
                    let kv = &told.event.kv;
                    assert!(
                        self.progress
                            .get(&id)
                            .is_none_or(|progress| kv.mod_revision > *progress),
                        "progress has overtaken an event"
                    );
                    let watcher = self.watchers.get_mut(&id).unwrap();
                    watcher.2.push((kv.mod_revision, kv.key.clone()));
                }
                let last = events.last().unwrap().event.kv.mod_revision;
                assert!(response.revision >= last);
            }
        }
    }

    /// The watcher was told exactly what happened to its keys up to a revision.
    fn complete(&self, id: i64, revision: i64, history: &History) {
        let (keys, from, told) = &self.watchers[&id];
        let happened: Vec<(i64, Bytes)> = history
            .changes
            .iter()
            .filter(|change| (*from..=revision).contains(&change.revision))
            .flat_map(|change| change.events.iter())
            .filter(|event| keys.contains(&event.kv.key))
            .map(|event| (event.kv.mod_revision, event.kv.key.clone()))
            .collect();
        let told: Vec<_> = told.iter().filter(|(at, _)| *at <= revision).cloned().collect();
        assert_eq!(told, happened, "watcher {id} from {from} at {revision}");
    }
}

proptest! {
    #[test]
    fn every_watcher_hears_everything_once_in_order_whatever_happens(acts in acts()) {
        let mut world = World::new(Limits { watchers: 100, page_bytes: 150 });
        let mut client = Client::default();
        let mut next_id = 1;
        for act in acts.into_iter().chain([Act::Hub]) {
            let now = world.history.revision();
            let said = match act {
                Act::Write(changes) => {
                    let changes: Vec<_> = changes.iter().map(|(key, put)| (KEYS[usize::from(*key)], put.then_some("v"))).collect();
                    world.history.write(&changes);
                    Vec::new()
                }
                Act::Hub => { world.hub(); Vec::new() }
                Act::Ring(back) => {
                    world.history.ring_from = world.history.ring_from.max(now - back);
                    Vec::new()
                }
                Act::Watch(range, from, fragment) => {
                    let from = (now + from).max(1);
                    let flag = if fragment { "fragment" } else { "" };
                    let line = format!("watch {next_id} {} from={from} {flag}", RANGES[range]);
                    let words: Vec<&str> = line.split_whitespace().collect();
                    let create = create(&words);
                    client.watchers.insert(next_id, (create.interest.keys.clone(), from, Vec::new()));
                    world.create(create, Ok(()));
                    next_id += 1;
                    Vec::new()
                }
                Act::Cancel(place) => {
                    if let Some(id) = world.known.keys().nth(place).copied() {
                        world.stream.cancel(id, now);
                        world.withdraw();
                    }
                    Vec::new()
                }
                Act::Progress => { world.stream.request_progress(now); Vec::new() }
                Act::Pull => world.pull(),
                Act::Deep => world.deep(),
            };
            said.iter().for_each(|response| client.hear(response, &world.history));
        }
        // At rest, everybody knows everything.
        loop {
            let mut said = world.pull();
            let deep = world.stream.wants_storage();
            said.extend(world.deep());
            said.iter().for_each(|response| client.hear(response, &world.history));
            if !deep {
                break;
            }
        }
        for id in client.created.iter().filter(|id| !client.canceled.contains(id)) {
            client.complete(*id, world.history.revision(), &world.history);
        }
    }
}
