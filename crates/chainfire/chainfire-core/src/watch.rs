//! Who is told of what: the ring of recent changes that all watchers share, and what one watcher is interested in.
//!
//! ```text
//!   storage (older)        ring: shared, bounded            now
//!  ──────────────────┬───────────────────────────────────────┤
//!        ^ a watcher that lags reads here │ ^ the others have a cursor here
//! ```
//!
//! A watcher is a cursor (the next revision it wants); it costs nothing while nothing happens, and being slow costs
//! only itself.

use std::{collections::VecDeque, sync::Arc};

use crate::{Event, EventKind, KeyRange};

/// The changes of one revision, shared.
#[derive(Debug, Clone)]
pub struct Change {
    /// The revision.
    pub revision: i64,
    /// The changes in order.
    pub events: Arc<[Event]>,
}

/// The newest changes, as many as fit into a bound of bytes.
#[derive(Debug)]
pub struct EventRing {
    changes: VecDeque<Change>,
    bytes: usize,
    max_bytes: usize,
    /// Every change from this revision on is in the ring.
    start: i64,
}

impl EventRing {
    /// An empty ring for a store at `revision`.
    pub fn new(revision: i64, max_bytes: usize) -> EventRing {
        EventRing {
            changes: VecDeque::new(),
            bytes: 0,
            max_bytes,
            start: revision + 1,
        }
    }

    /// Adds the newest revision's changes and drops the oldest beyond the bound.
    pub fn push(&mut self, revision: i64, events: Vec<Event>) {
        let newest = self
            .changes
            .back()
            .map_or(self.start - 1, |change| change.revision);
        assert!(revision > newest, "revisions come in order");
        self.bytes += events.iter().map(Event::weight).sum::<usize>();
        self.changes.push_back(Change {
            revision,
            events: events.into(),
        });
        while self.bytes > self.max_bytes
            && let Some(oldest) = self.changes.pop_front()
        {
            self.bytes -= oldest.events.iter().map(Event::weight).sum::<usize>();
            self.start = oldest.revision + 1;
        }
    }

    /// Up to `limit` changes from revision `from` on; `None` when the ring no longer reaches back so far: read storage.
    pub fn since(&self, from: i64, limit: usize) -> Option<Vec<Change>> {
        if from < self.start {
            return None;
        }
        let first = self.changes.partition_point(|change| change.revision < from);
        Some(self.changes.iter().skip(first).take(limit).cloned().collect())
    }
}

/// What a watcher wants to hear of.
#[derive(Debug, Clone)]
pub struct Interest {
    /// The keys.
    pub keys: KeyRange,
    /// Leave out puts.
    pub no_put: bool,
    /// Leave out deletions.
    pub no_delete: bool,
}

impl Interest {
    /// Whether it wants to hear of this event.
    pub fn matches(&self, event: &Event) -> bool {
        let unwanted = match event.kind {
            EventKind::Put => self.no_put,
            EventKind::Delete => self.no_delete,
        };
        !unwanted && self.keys.contains(&event.kv.key)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::KeyValue;

    fn event(key: &'static str, kind: EventKind) -> Event {
        Event {
            kind,
            kv: KeyValue {
                key: Bytes::from_static(key.as_bytes()),
                ..KeyValue::default()
            },
        }
    }

    #[test]
    fn the_ring_says_when_it_no_longer_reaches_back() {
        let weight = event("k", EventKind::Put).weight();
        let mut ring = EventRing::new(1, weight * 3);
        assert!(ring.since(1, 9).is_none());
        assert_eq!(ring.since(2, 9).unwrap().len(), 0);
        for revision in 2..=6 {
            ring.push(revision, vec![event("k", EventKind::Put)]);
        }
        assert!(ring.since(3, 9).is_none());
        let revisions: Vec<i64> = ring
            .since(4, 2)
            .unwrap()
            .iter()
            .map(|change| change.revision)
            .collect();
        assert_eq!(revisions, [4, 5]);
        assert!(ring.since(7, 9).unwrap().is_empty());
    }

    #[test]
    fn one_change_larger_than_the_ring_is_served_from_storage() {
        let mut ring = EventRing::new(1, 1);
        ring.push(2, vec![event("k", EventKind::Put)]);
        assert!(ring.since(2, 9).is_none());
        assert!(ring.since(3, 9).unwrap().is_empty());
    }

    #[test]
    fn filters() {
        let keys = KeyRange::new(Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        let interest = Interest {
            keys,
            no_put: true,
            no_delete: false,
        };
        assert!(interest.matches(&event("a1", EventKind::Delete)));
        assert!(!interest.matches(&event("a1", EventKind::Put)));
        assert!(!interest.matches(&event("b", EventKind::Delete)));
    }
}
