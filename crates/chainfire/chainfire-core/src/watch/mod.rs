//! Who is told of what.
//!
//! ```text
//!   storage (older)        EventRing: shared, bounded        now
//!  ──────────────────┬───────────────────────────────────────┤
//!        ^ a watcher that lags reads here │ ^ the others read here
//!
//!   ring ──> hub (one for each member): which watchers does a change concern? ── marks ──> Stream ──> responses
//! ```
//!
//! A watcher is a cursor; it costs nothing while nothing happens to its keys, and being slow costs only itself.

mod matcher;
mod ring;
mod stream;

pub use matcher::Matcher;
pub use ring::{Change, EventRing};
pub use stream::{
    Create, Enrol, Limits, Mark, NO_WATCHER, Page, Pull, Response, Say, Source, Stream, WatchEvent,
};

use crate::{
    Event, EventKind, KeyRange,
    planted::{self, Bug},
};

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
    /// Everything that happens to these keys.
    pub fn all(keys: KeyRange) -> Interest {
        Interest {
            keys,
            no_put: false,
            no_delete: false,
        }
    }

    /// Whether it wants to hear of this event.
    pub fn matches(&self, event: &Event) -> bool {
        let unwanted = match event.kind {
            EventKind::Put => self.no_put,
            EventKind::Delete => self.no_delete || planted::is(Bug::DeletionUntold),
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
            prev: None,
        }
    }

    #[test]
    fn filters() {
        let keys = KeyRange::new(Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        let interest = Interest {
            no_put: true,
            ..Interest::all(keys)
        };
        assert!(interest.matches(&event("a1", EventKind::Delete)));
        assert!(!interest.matches(&event("a1", EventKind::Put)));
        assert!(!interest.matches(&event("b", EventKind::Delete)));
    }
}
