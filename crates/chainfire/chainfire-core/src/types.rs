//! Pairs, events, and where in history they stand.

use bytes::Bytes;

/// A stored pair.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// Revision that brought it into being.
    pub create_revision: i64,
    /// Revision of the last put.
    pub mod_revision: i64,
    /// 1 at creation, one more with each put.
    pub version: i64,
    /// The value.
    pub value: Bytes,
    /// Lease it hangs on; 0: none.
    pub lease: i64,
}

/// A place in history: the revision, and the place of the change within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// The revision.
    pub main: i64,
    /// 0 for the first change of the revision, and so on.
    pub sub: u32,
}

impl Point {
    /// The first possible place after this one.
    pub fn next(self) -> Point {
        match self.sub.checked_add(1) {
            Some(sub) => Point { sub, ..self },
            None => Point {
                main: self.main + 1,
                sub: 0,
            },
        }
    }
}

/// What an event did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// The key was put.
    Put,
    /// The key was deleted; the event's pair holds its key and the revision only.
    Delete,
}

/// One change of one key. This is also what storage keeps, one for each [`Point`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The pair afterwards.
    pub kv: KeyValue,
    /// Where the version that it replaced stands, if the key existed before.
    pub prev: Option<Point>,
}

impl Event {
    /// Bytes it holds, for bounds.
    pub fn weight(&self) -> usize {
        size_of::<Event>() + self.kv.key.len() + self.kv.value.len()
    }
}
