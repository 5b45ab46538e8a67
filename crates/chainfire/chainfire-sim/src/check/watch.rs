//! The nine properties of watches: ordered, unique, atomic, reliable, resumable, bookmarkable, filtered, with the pair
//! before, and creations told as such.

use chainfire_client::wire::mvccpb::{Event as PbEvent, KeyValue as PbKeyValue, event::EventType};
use chainfire_core::watch::{Response, Say, WatchEvent};
use chainfire_core::{EventKind, KeyValue};
use testkit::sim::{Mode, World};

use super::Replay;
use crate::Chainfire;
use crate::model::within;
use crate::watchers::{Watcher, Wish};

pub(super) fn check(world: &World<'_, Chainfire>, replay: &Replay) -> Result<(), String> {
    for (number, watcher) in world.service.watchers.all.iter().enumerate() {
        // Everything must have arrived where nothing hinders it.
        let complete = watcher.open && world.options().mode == Mode::Safety;
        one(watcher, replay, complete).map_err(|why| {
            format!(
                "watcher {number} on session {} at node {} from {} ({:?}): {why}",
                watcher.session, watcher.node, watcher.start, watcher.wish
            )
        })?;
    }
    Ok(())
}

/// An event that a watcher should be told.
struct Expected<'a> {
    revision: i64,
    event: &'a PbEvent,
    /// It is the last of its revision.
    last: bool,
}

fn expected<'a>(wish: &'a Wish, replay: &'a Replay, start: i64) -> Vec<Expected<'a>> {
    let mut all: Vec<Expected<'_>> = Vec::new();
    for (revision, events) in replay.model.events(start) {
        let wanted = events.iter().filter(|event| {
            let key = event.kv.as_ref().map(|kv| kv.key.clone()).unwrap_or_default();
            let unwanted = match event.r#type() {
                EventType::Put => wish.no_put,
                EventType::Delete => wish.no_delete,
            };
            !unwanted && within(&key, &wish.key, &wish.range_end)
        });
        let before = all.len();
        all.extend(wanted.map(|event| Expected {
            revision,
            event,
            last: false,
        }));
        if all.len() > before
            && let Some(last) = all.last_mut()
        {
            last.last = true;
        }
    }
    all
}

/// Where one watcher stands while its responses are read.
struct Reader<'a> {
    wish: &'a Wish,
    replay: &'a Replay,
    wanted: Vec<Expected<'a>>,
    /// How many of them have been told.
    told: usize,
    fragment: bool,
    start: i64,
    over: bool,
}

fn one(watcher: &Watcher, replay: &Replay, complete: bool) -> Result<(), String> {
    let mut reader: Option<Reader<'_>> = None;
    for (at, response) in &watcher.told {
        match (&mut reader, &response.say) {
            (None, Say::Created) => {
                let start = if watcher.start == 0 {
                    response.revision + 1
                } else {
                    watcher.start
                };
                reader = Some(Reader {
                    wish: &watcher.wish,
                    replay,
                    wanted: expected(&watcher.wish, replay, start),
                    told: 0,
                    fragment: false,
                    start,
                    over: false,
                });
            }
            (None, say) => return Err(format!("{say:?} came before its creation")),
            (Some(_), Say::Created) => return Err("it was created twice".to_owned()),
            (Some(reader), _) => reader.hears(*at, response)?,
        }
    }
    match reader {
        Some(reader) if complete && !reader.over => reader.is_complete(),
        None if complete => Err("it was never created".to_owned()),
        _ => Ok(()),
    }
}

impl Reader<'_> {
    fn hears(&mut self, at: u64, response: &Response) -> Result<(), String> {
        if self.over {
            return Err(format!("{response:?} came after its cancellation"));
        }
        match &response.say {
            Say::Events { events, fragment } => self.events(at, response.revision, events, *fragment),
            Say::Progress => self.progress(response.revision),
            Say::Canceled { compact_revision, .. } => {
                self.over = true;
                self.canceled(at, *compact_revision)
            }
            Say::Created | Say::Refused { .. } => Err("it was refused after its creation".to_owned()),
        }
    }

    /// The next events, each the one that is due: ordered, unique, reliable, filtered. A revision is whole.
    fn events(
        &mut self,
        at: u64,
        revision: i64,
        events: &[WatchEvent],
        fragment: bool,
    ) -> Result<(), String> {
        if events.is_empty() {
            return Err("it was told no events".to_owned());
        }
        if fragment && !self.wish.fragment {
            return Err("it was sent a fragment and wants none".to_owned());
        }
        for event in events {
            let due = self
                .wanted
                .get(self.told)
                .ok_or_else(|| format!("{event:?} never happened"))?;
            if due.revision > revision {
                return Err(format!("the header says {revision}, an event {}", due.revision));
            }
            same(event, due.event)
                .map_err(|why| format!("{why}: it was told {event:?}, due was {:?}", due.event))?;
            self.previous(at, event, due)?;
            self.told += 1;
        }
        let whole = self
            .told
            .checked_sub(1)
            .and_then(|last| self.wanted.get(last))
            .is_none_or(|due| due.last);
        if whole == fragment {
            return Err("a revision came in parts that are not marked as such".to_owned());
        }
        self.fragment = fragment;
        Ok(())
    }

    /// The pair before, where wished for and not compacted.
    fn previous(&self, at: u64, told: &WatchEvent, due: &Expected<'_>) -> Result<(), String> {
        let kv = due.event.kv.clone().unwrap_or_default();
        let created = due.event.r#type() == EventType::Put && kv.version == 1;
        // As etcd has it: the pair before the revision, also where the revision changes the key twice.
        let was = self
            .replay
            .model
            .pair_at(&kv.key, due.revision - 1)
            .filter(|_| !created);
        match (&told.prev, was) {
            (None, None) => Ok(()),
            (Some(told), Some(was)) if self.wish.prev_kv && equal(told, was) => Ok(()),
            (None, Some(_)) if !self.wish.prev_kv || self.replay.compacted_at(at) >= due.revision => Ok(()),
            (told, was) => Err(format!(
                "the pair before revision {} was {was:?}, it was told {told:?}",
                due.revision
            )),
        }
    }

    /// Nothing up to here is missing.
    fn progress(&self, revision: i64) -> Result<(), String> {
        if self.fragment {
            return Err("progress was told in the middle of a revision".to_owned());
        }
        match self.wanted.get(self.told) {
            Some(due) if due.revision <= revision && due.revision >= self.start => Err(format!(
                "progress {revision} overtook the event of revision {}",
                due.revision
            )),
            _ => Ok(()),
        }
    }

    /// A watcher is cancelled for history's sake only when what it wants next is gone.
    fn canceled(&self, at: u64, compact_revision: i64) -> Result<(), String> {
        if compact_revision == 0 {
            return Ok(());
        }
        if compact_revision > self.replay.compacted_at(at) {
            return Err(format!("nothing was ever compacted at {compact_revision}"));
        }
        let last = self.told.checked_sub(1).and_then(|last| self.wanted.get(last));
        let next = last.map_or(self.start, |last| last.revision + 1);
        if next >= compact_revision {
            return Err(format!(
                "it was cancelled, but {next} is readable after {compact_revision}"
            ));
        }
        Ok(())
    }

    fn is_complete(&self) -> Result<(), String> {
        match self.wanted.get(self.told) {
            None => Ok(()),
            Some(due) => Err(format!(
                "it was never told of {:?} at revision {}",
                due.event, due.revision
            )),
        }
    }
}

fn equal(told: &KeyValue, was: &PbKeyValue) -> bool {
    told.key == was.key
        && told.value == was.value
        && told.create_revision == was.create_revision
        && told.mod_revision == was.mod_revision
        && told.version == was.version
        && told.lease == was.lease
}

fn same(told: &WatchEvent, due: &PbEvent) -> Result<(), &'static str> {
    let kv = &told.event.kv;
    let kind = match told.event.kind {
        EventKind::Put => EventType::Put,
        EventKind::Delete => EventType::Delete,
    };
    if kind == EventType::Put && (kv.version == 1) != (kv.create_revision == kv.mod_revision) {
        return Err("a creation is not told as one");
    }
    match &due.kv {
        Some(was) if kind == due.r#type() && equal(kv, was) => Ok(()),
        _ => Err("another event was due"),
    }
}
