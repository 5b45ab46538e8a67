//! Where watchers read: the ring, else storage. The store's lock is held only to look at the index.

use std::sync::Arc;

use chainfire_core::{
    Event, KeyValue, Point,
    watch::{Change, Page, Source},
};

use crate::{machine::Shared, node::previous, tables::StorageError};

/// Changes taken from the ring at a time.
const RING_PAGE: usize = 256;
/// Events read from storage at a time.
const STORED_EVENTS: usize = 1024;
/// Bytes of events read from storage at a time, about. One revision may be larger.
const STORED_BYTES: usize = 256 << 10;

#[derive(Clone)]
pub(super) struct Reader {
    shared: Arc<Shared>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Reader {
        Reader { shared }
    }

    /// Whole revisions from `from` on, as many as fit.
    fn page(&self, from: i64, until: i64) -> Result<Page, StorageError> {
        let first = Point { main: from, sub: 0 };
        let (mut events, mut bytes) = (STORED_EVENTS, STORED_BYTES);
        loop {
            let (mut found, more) = self.shared.tables.scan_bounded(first, until, events, bytes)?;
            if !more {
                return Ok(Page {
                    changes: group(found),
                    through: until,
                });
            }
            // The last revision may go on behind the page.
            let last = found.last().map(|(at, _)| at.main);
            found.retain(|(at, _)| Some(at.main) != last);
            let changes = group(found);
            if let Some(through) = changes.last().map(|change| change.revision) {
                return Ok(Page { changes, through });
            }
            (events, bytes) = (events * 4, bytes * 4);
        }
    }
}

impl Source for Reader {
    type Error = StorageError;

    fn compacted(&self) -> i64 {
        self.shared.store().compacted()
    }

    fn recent(&self, from: i64, until: i64) -> Option<Page> {
        self.shared.ring().page(from, until, RING_PAGE)
    }

    fn stored(&self, from: i64, until: i64) -> Result<Option<Page>, StorageError> {
        let page = self.page(from, until)?;
        // What was compacted while the page was read may be missing from it.
        Ok((from >= self.compacted()).then_some(page))
    }

    fn before(&self, event: &Event) -> Result<Option<KeyValue>, StorageError> {
        previous(&self.shared, event)
    }
}

/// Groups events by revision.
fn group(page: Vec<(Point, Event)>) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut page = page.into_iter().peekable();
    while let Some((at, event)) = page.next() {
        let mut events = vec![event];
        while let Some((_, event)) = page.next_if(|(next, _)| next.main == at.main) {
            events.push(event);
        }
        changes.push(Change {
            revision: at.main,
            events: events.into(),
        });
    }
    changes
}
