//! The ring of recent changes that all watchers share.

use std::{collections::VecDeque, sync::Arc};

use super::Page;
use crate::Event;

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

    /// Forgets everything: the store is at `revision` now.
    pub fn clear(&mut self, revision: i64) {
        *self = EventRing::new(revision, self.max_bytes);
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

    /// Up to `limit` changes from revision `from` to `until`; `None` when the ring no longer reaches back so far: read
    /// storage. `until` has been pushed.
    pub fn page(&self, from: i64, until: i64, limit: usize) -> Option<Page> {
        if from < self.start {
            return None;
        }
        let first = self.changes.partition_point(|change| change.revision < from);
        let wanted = self.changes.range(first..).take(limit);
        let changes: Vec<Change> = wanted
            .take_while(|change| change.revision <= until)
            .cloned()
            .collect();
        let cut = changes.last().filter(|_| changes.len() == limit);
        let through = cut.map_or(until, |last| last.revision);
        Some(Page { changes, through })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{EventKind, KeyValue};

    fn event() -> Event {
        Event {
            kind: EventKind::Put,
            kv: KeyValue {
                key: Bytes::from_static(b"k"),
                ..KeyValue::default()
            },
            prev: None,
        }
    }

    fn shape(page: Option<Page>) -> Option<(Vec<i64>, i64)> {
        page.map(|page| {
            let revisions = page.changes.iter().map(|change| change.revision);
            (revisions.collect(), page.through)
        })
    }

    #[test]
    fn the_ring_says_when_it_no_longer_reaches_back() {
        let mut ring = EventRing::new(1, event().weight() * 3);
        assert!(ring.page(1, 1, 9).is_none());
        assert_eq!(shape(ring.page(2, 1, 9)), Some((vec![], 1)));
        for revision in 2..=6 {
            ring.push(revision, vec![event()]);
        }
        assert!(ring.page(3, 6, 9).is_none());
        assert_eq!(shape(ring.page(4, 6, 2)), Some((vec![4, 5], 5)));
        assert_eq!(shape(ring.page(4, 5, 9)), Some((vec![4, 5], 5)));
        assert_eq!(shape(ring.page(6, 6, 9)), Some((vec![6], 6)));
        assert_eq!(shape(ring.page(7, 6, 9)), Some((vec![], 6)));
    }

    #[test]
    fn one_change_larger_than_the_ring_is_served_from_storage() {
        let mut ring = EventRing::new(1, 1);
        ring.push(2, vec![event()]);
        assert!(ring.page(2, 2, 9).is_none());
        assert_eq!(shape(ring.page(3, 2, 9)), Some((vec![], 2)));
    }
}
