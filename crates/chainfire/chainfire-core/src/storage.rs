//! Where the changes of all revisions are kept: behind a trait, with an implementation in memory.

use std::{collections::BTreeMap, ops::ControlFlow};

use bytes::Bytes;

use crate::{Event, KeyRange, Point, Version, reclaim::superfluous};

/// Reads the [`Event`] kept for each [`Point`] that has not been reclaimed.
pub trait RevisionReader {
    /// Why storage failed. Fatal: the member stops.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The event at a point.
    fn get(&self, at: Point) -> Result<Option<Event>, Self::Error>;

    /// Up to `limit` events from a point on, in order.
    fn scan(&self, from: Point, limit: usize) -> Result<Vec<(Point, Event)>, Self::Error>;

    /// Shows the keys of a range that existed at the end of `revision`, in order, with their versions then, until `show`
    /// has enough. False, and
    /// nothing or only a part shown, when that revision has been compacted away.
    fn versions_at(
        &self,
        keys: &KeyRange,
        revision: i64,
        show: &mut dyn FnMut(&Bytes, Version) -> ControlFlow<()>,
    ) -> Result<bool, Self::Error>;
}

/// Keeps the events.
///
/// Writes made through it must be visible to its own reads at once, and must become durable together with whatever
/// else the command changed (the server commits them in one batch).
pub trait RevisionStore: RevisionReader {
    /// Stores an event, the newest of its key.
    fn put(&mut self, at: Point, event: &Event) -> Result<(), Self::Error>;

    /// Loses an event, for a bug on purpose (see [`crate::faulty`]).
    #[cfg(feature = "planted-bugs")]
    fn eat(&mut self, _at: Point) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// Everything in memory.
#[derive(Debug, Default, Clone)]
pub struct MemoryStore(BTreeMap<Point, Event>);

impl MemoryStore {
    /// Events kept.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops what compaction to `compacted` lets go of the events from `from` on, at most `limit` of them; where to go
    /// on, or `None` when everything has been walked.
    pub fn reclaim(&mut self, from: Point, compacted: i64, limit: usize) -> Option<Point> {
        let walked: Vec<(Point, Event)> = self
            .0
            .range(from..)
            .take_while(|(at, _)| at.main <= compacted)
            .take(limit)
            .map(|(at, event)| (*at, event.clone()))
            .collect();
        for (at, event) in &walked {
            for gone in superfluous(*at, event, compacted) {
                self.0.remove(&gone);
            }
        }
        let (last, _) = walked.last()?;
        Some(last.next())
    }
}

impl RevisionReader for MemoryStore {
    type Error = std::convert::Infallible;

    fn get(&self, at: Point) -> Result<Option<Event>, Self::Error> {
        Ok(self.0.get(&at).cloned())
    }

    fn scan(&self, from: Point, limit: usize) -> Result<Vec<(Point, Event)>, Self::Error> {
        Ok(self
            .0
            .range(from..)
            .take(limit)
            .map(|(at, event)| (*at, event.clone()))
            .collect())
    }

    fn versions_at(
        &self,
        keys: &KeyRange,
        revision: i64,
        show: &mut dyn FnMut(&Bytes, Version) -> ControlFlow<()>,
    ) -> Result<bool, Self::Error> {
        let mut then = BTreeMap::new();
        for (at, event) in self.0.iter().take_while(|(at, _)| at.main <= revision) {
            if keys.contains(&event.kv.key) {
                then.insert(&event.kv.key, Version::of(*at, event));
            }
        }
        for (key, version) in then {
            if !version.is_deletion() && show(key, version).is_break() {
                break;
            }
        }
        Ok(true)
    }
}

impl RevisionStore for MemoryStore {
    fn put(&mut self, at: Point, event: &Event) -> Result<(), Self::Error> {
        self.0.insert(at, event.clone());
        Ok(())
    }
}
