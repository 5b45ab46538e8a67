//! Iteration over keys in order.

use std::ops::Bound;

use bytes::Bytes;

use crate::EngineError;
use crate::disk::DiskRange;
use crate::memory::MemoryRange;

/// Keys and values in order; from both ends.
#[derive(Debug)]
pub struct Range {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Nothing,
    Disk(DiskRange),
    Memory(MemoryRange),
}

impl Range {
    pub(crate) fn nothing() -> Range {
        Range { kind: Kind::Nothing }
    }

    pub(crate) fn disk(range: DiskRange) -> Range {
        Range {
            kind: Kind::Disk(range),
        }
    }

    pub(crate) fn memory(range: MemoryRange) -> Range {
        Range {
            kind: Kind::Memory(range),
        }
    }
}

impl Iterator for Range {
    type Item = Result<(Bytes, Bytes), EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.kind {
            Kind::Nothing => None,
            Kind::Disk(range) => range.next(),
            Kind::Memory(range) => range.next().map(Ok),
        }
    }
}

impl DoubleEndedIterator for Range {
    fn next_back(&mut self) -> Option<Self::Item> {
        match &mut self.kind {
            Kind::Nothing => None,
            Kind::Disk(range) => range.next_back(),
            Kind::Memory(range) => range.next_back().map(Ok),
        }
    }
}

/// Whether no key can lie in `bounds`.
pub(crate) fn is_empty(bounds: (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    match bounds {
        (Bound::Included(a), Bound::Included(b)) => a > b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => a >= b,
        _ => false,
    }
}

/// Whether `key` lies in `bounds`.
pub(crate) fn contains(bounds: (Bound<&[u8]>, Bound<&[u8]>), key: &[u8]) -> bool {
    let from = match bounds.0 {
        Bound::Included(a) => key >= a,
        Bound::Excluded(a) => key > a,
        Bound::Unbounded => true,
    };
    let to = match bounds.1 {
        Bound::Included(b) => key <= b,
        Bound::Excluded(b) => key < b,
        Bound::Unbounded => true,
    };
    from && to
}

/// The first key after all keys that begin with `prefix`; `None`: there is none.
pub(crate) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let keep = prefix.iter().rposition(|b| *b != 0xFF)?;
    let mut end = prefix.get(..=keep)?.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    Some(end)
}
