//! Ranges of keys as etcd writes them: a key and an end that may be empty, `\0`, or exclusive.

use std::ops::Bound;

use bytes::Bytes;

/// Start and end of a range in an ordered map.
pub type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// A set of consecutive keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    start: Bytes,
    end: End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// Only the start itself.
    Single,
    /// Every key from the start on.
    Unbounded,
    /// Every key before this one.
    Before(Bytes),
}

impl KeyRange {
    /// From the two fields of a request: no end means one key, the end `\0` means everything from `key` on.
    pub fn new(key: Bytes, range_end: Bytes) -> KeyRange {
        let end = match range_end.as_ref() {
            [] => End::Single,
            [0] => End::Unbounded,
            _ => End::Before(range_end),
        };
        KeyRange { start: key, end }
    }

    /// One key.
    pub fn single(key: Bytes) -> KeyRange {
        KeyRange {
            start: key,
            end: End::Single,
        }
    }

    /// Whether it can only hold its first key.
    pub fn is_single(&self) -> bool {
        self.end == End::Single
    }

    /// The key that ends a range, exclusive; `None` when nothing does, and for a single key.
    pub(crate) fn end_before(&self) -> Option<&Bytes> {
        match &self.end {
            End::Single | End::Unbounded => None,
            End::Before(end) => Some(end),
        }
    }

    /// The same range in memory of its own.
    pub(crate) fn to_owned_bytes(&self) -> KeyRange {
        let end = match &self.end {
            End::Before(end) => End::Before(Bytes::copy_from_slice(end)),
            other => other.clone(),
        };
        KeyRange {
            start: Bytes::copy_from_slice(&self.start),
            end,
        }
    }

    /// What of it lies after `key`, which is in it.
    pub fn after(&self, key: &[u8]) -> KeyRange {
        let mut next = Vec::with_capacity(key.len() + 1);
        next.extend_from_slice(key);
        next.push(0);
        KeyRange {
            start: next.into(),
            end: match &self.end {
                // Nothing does: an end that is not after its start.
                End::Single => End::Before(Bytes::new()),
                end => end.clone(),
            },
        }
    }

    /// Its first key.
    pub fn start(&self) -> &Bytes {
        &self.start
    }

    /// Whether `key` lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start.as_ref()
            && match &self.end {
                End::Single => key == self.start.as_ref(),
                End::Unbounded => true,
                End::Before(end) => key < end.as_ref(),
            }
    }

    /// Whether it holds no key at all (its end is not after its start).
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, End::Before(end) if *end <= self.start)
    }

    /// Whether every key of it begins with `prefix`.
    pub fn within_prefix(&self, prefix: &[u8]) -> bool {
        if !self.start.starts_with(prefix) {
            return prefix.is_empty();
        }
        match &self.end {
            End::Single => true,
            End::Unbounded => prefix.is_empty(),
            End::Before(end) => match prefix_end(prefix) {
                None => true,
                Some(limit) => end.as_ref() <= limit.as_slice(),
            },
        }
    }

    /// Whether some key of it begins with `prefix`.
    pub fn touches_prefix(&self, prefix: &[u8]) -> bool {
        if self.is_empty() {
            return false;
        }
        let starts_before_end = match prefix_end(prefix) {
            None => true,
            Some(limit) => self.start.as_ref() < limit.as_slice(),
        };
        starts_before_end
            && match &self.end {
                End::Single => self.start.starts_with(prefix),
                End::Unbounded => true,
                End::Before(end) => end.as_ref() > prefix,
            }
    }

    /// As bounds of an ordered map; `None` for the empty range, whose bounds such maps refuse.
    pub fn bounds(&self) -> Option<Bounds<'_>> {
        if self.is_empty() {
            return None;
        }
        let start = Bound::Included(self.start.as_ref());
        Some(match &self.end {
            End::Single => (start, start),
            End::Unbounded => (start, Bound::Unbounded),
            End::Before(end) => (start, Bound::Excluded(end.as_ref())),
        })
    }
}

/// The smallest key after all keys with this prefix; `None` when there is none.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static [u8], end: &'static [u8]) -> KeyRange {
        KeyRange::new(Bytes::from_static(key), Bytes::from_static(end))
    }

    #[test]
    fn containment() {
        assert!(range(b"a", b"").contains(b"a") && !range(b"a", b"").contains(b"aa"));
        assert!(range(b"a", b"\0").contains(b"zzz") && !range(b"b", b"\0").contains(b"a"));
        assert!(range(b"a", b"b").contains(b"azz") && !range(b"a", b"b").contains(b"b"));
        assert!(range(b"b", b"a").is_empty() && !range(b"b", b"a").contains(b"b"));
    }

    #[test]
    fn after_a_key_the_rest_of_the_range_comes() {
        assert_eq!(range(b"a", b"c").after(b"b"), range(b"b\0", b"c"));
        assert_eq!(range(b"a", b"\0").after(b"b"), range(b"b\0", b"\0"));
        assert!(range(b"a", b"b").after(b"a").contains(b"aa"));
        assert!(range(b"a", b"").after(b"a").is_empty());
    }

    #[test]
    fn a_range_stays_within_a_prefix_or_does_not() {
        assert!(range(b"/aegis/x", b"").within_prefix(b"/aegis/"));
        assert!(range(b"/aegis/", b"/aegis0").within_prefix(b"/aegis/"));
        assert!(!range(b"/aegis/", b"/aegis1").within_prefix(b"/aegis/"));
        assert!(!range(b"/aegis/", b"\0").within_prefix(b"/aegis/"));
        assert!(!range(b"/aegi", b"").within_prefix(b"/aegis/"));
        assert!(range(b"/x", b"\0").within_prefix(b""));
    }

    #[test]
    fn a_range_touches_a_prefix_or_does_not() {
        assert!(range(b"/", b"\0").touches_prefix(b"/aegis/"));
        assert!(range(b"/a", b"/b").touches_prefix(b"/aegis/"));
        assert!(range(b"/aegis/secret", b"").touches_prefix(b"/aegis/"));
        assert!(!range(b"/aegis0", b"\0").touches_prefix(b"/aegis/"));
        assert!(!range(b"/a", b"/aegis/").touches_prefix(b"/aegis/"));
        assert!(!range(b"/other", b"").touches_prefix(b"/aegis/"));
    }
}
