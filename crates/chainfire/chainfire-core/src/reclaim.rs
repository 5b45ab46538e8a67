//! What compaction lets go. It only moves a mark; whoever keeps the events walks those up to the mark in order, and
//! each one says by itself what it made superfluous: the version that it replaced, and, if it is a deletion, itself.
//!
//! ```text
//!   revisions     1 ........ from ........ compacted ........ newest
//!                 walked before │  walked now  │   kept whole
//! ```

use crate::{
    Event, EventKind, Point,
    planted::{self, Bug},
};

/// The points that nobody can see any more because of the event at `at`, once everything before `compacted` is
/// forgotten. `at` must not lie after `compacted`.
///
/// A deletion made exactly at `compacted` stays, since a watcher may begin there: the next walk begins with the events
/// of `compacted` again.
pub fn superfluous(at: Point, event: &Event, compacted: i64) -> impl Iterator<Item = Point> {
    assert!(at.main <= compacted, "only what is compacted is reclaimed");
    let own = (event.kind == EventKind::Delete && at.main < compacted || planted::is(Bug::CompactsTooMuch))
        .then_some(at);
    event.prev.into_iter().chain(own)
}
