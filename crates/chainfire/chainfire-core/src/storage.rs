//! Where the changes of all revisions are kept: behind a trait, with an implementation in memory.

use std::collections::BTreeMap;

use crate::{Event, Point};

/// Reads the [`Event`] kept for each [`Point`] that has not been compacted away.
pub trait RevisionReader {
    /// Why storage failed. Fatal: the member stops.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The event at a point.
    fn get(&self, at: Point) -> Result<Option<Event>, Self::Error>;

    /// Up to `limit` events from a point on, in order.
    fn scan(&self, from: Point, limit: usize) -> Result<Vec<(Point, Event)>, Self::Error>;
}

/// Keeps the events.
///
/// Writes made through it must be visible to its own reads at once, and must become durable together with whatever
/// else the command changed (the server commits them in one batch).
pub trait RevisionStore: RevisionReader {
    /// Stores an event.
    fn put(&mut self, at: Point, event: &Event) -> Result<(), Self::Error>;

    /// Drops an event.
    fn delete(&mut self, at: Point) -> Result<(), Self::Error>;
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
}

impl RevisionStore for MemoryStore {
    fn put(&mut self, at: Point, event: &Event) -> Result<(), Self::Error> {
        self.0.insert(at, event.clone());
        Ok(())
    }

    fn delete(&mut self, at: Point) -> Result<(), Self::Error> {
        self.0.remove(&at);
        Ok(())
    }
}
