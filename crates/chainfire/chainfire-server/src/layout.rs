//! Keys in the engine: how they are written so that bytes sort as what they stand for.
//!
//! ```text
//!   revisions   revision u64 BE | sub u32 BE                            -> EventRecord
//!   history     key, each 00 as 00 FF | 00 01 | revision | sub          -> HistoryRecord
//!   keys        key                                                     -> KeyRecord
//!   leases      id i64 BE                                               -> seconds i64 BE
//!   auth        see [`crate::auth::record`]
//!   members     id u64 BE, or "level"                                   -> MemberRecord, level u32 BE
//!   meta        "state" -> MetaRecord, "reclaim" -> ReclaimRecord
//! ```
//! The end mark `00 01` sorts before every byte that may follow in a longer key, so a key's versions stand together and
//! keys stand in their own order. A key may be [`chainfire_core::check::MAX_KEY_BYTES`] long, zeros counted twice: with
//! mark and point that fits the engine's limit.

use std::ops::Bound;

use chainfire_core::{KeyRange, Point};

/// Bytes of a point in a key.
const POINT: usize = 12;
/// What ends a key.
const END: [u8; 2] = [0, 1];

const _: () = assert!(
    chainfire_core::check::MAX_KEY_BYTES + END.len() + POINT <= kv_engine::MAX_KEY_BYTES,
    "every key that the core accepts can be stored"
);

/// Key of a change: sorts as the point does.
pub(crate) fn point_key(at: Point) -> [u8; POINT] {
    let mut key = [0; POINT];
    let (main, sub) = key.split_at_mut(8);
    main.copy_from_slice(&at.main.to_be_bytes());
    sub.copy_from_slice(&at.sub.to_be_bytes());
    key
}

/// The point of a key.
pub(crate) fn key_point(key: &[u8]) -> Option<Point> {
    let (main, rest) = key.split_first_chunk::<8>()?;
    let sub: [u8; 4] = rest.try_into().ok()?;
    Some(Point {
        main: i64::from_be_bytes(*main),
        sub: u32::from_be_bytes(sub),
    })
}

/// What all versions of a key begin with, and of no other key.
pub(crate) fn history_prefix(key: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(key.len() + END.len() + POINT);
    for byte in key {
        escaped.push(*byte);
        if *byte == 0 {
            escaped.push(0xFF);
        }
    }
    escaped.extend(END);
    escaped
}

/// Key of a version.
pub(crate) fn history_key(key: &[u8], at: Point) -> Vec<u8> {
    let mut escaped = history_prefix(key);
    escaped.extend(point_key(at));
    escaped
}

/// Splits a version's key into its prefix and its point.
pub(crate) fn split_history_key(key: &[u8]) -> Option<(&[u8], Point)> {
    let (prefix, point) = key.split_at_checked(key.len().checked_sub(POINT)?)?;
    Some((prefix, key_point(point)?))
}

/// The key that a prefix was made of.
pub(crate) fn unescape(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut rest = prefix.strip_suffix(&END)?;
    let mut key = Vec::with_capacity(rest.len());
    while let Some((byte, after)) = rest.split_first() {
        key.push(*byte);
        rest = match byte {
            0 => after.strip_prefix(&[0xFF])?,
            _ => after,
        };
    }
    Some(key)
}

/// Start and end in a keyspace.
pub(crate) type OwnedBounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// Bounds of all versions of a range's keys; `None` when it has no key.
pub(crate) fn history_bounds(keys: &KeyRange) -> Option<OwnedBounds> {
    let (start, end) = keys.bounds()?;
    let last_of = |prefix: Vec<u8>| [prefix, vec![0xFF; POINT]].concat();
    let start = start.map(history_prefix);
    let end = match end {
        Bound::Included(key) => Bound::Included(last_of(history_prefix(key))),
        Bound::Excluded(key) => Bound::Excluded(history_prefix(key)),
        Bound::Unbounded => Bound::Unbounded,
    };
    Some((start, end))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_of_points_sort_and_come_back() {
        let points = [(1, 0), (1, 1), (1, 256), (2, 0), (300, 0), (i64::MAX, u32::MAX)];
        let points = points.map(|(main, sub)| Point { main, sub });
        let keys: Vec<[u8; POINT]> = points.iter().map(|at| point_key(*at)).collect();
        assert!(keys.is_sorted());
        for (point, key) in points.iter().zip(&keys) {
            assert_eq!(key_point(key), Some(*point));
        }
        assert_eq!(key_point(b"short"), None);
    }

    /// Few different bytes, the dangerous ones among them, so that keys are often prefixes of each other.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0, 1, 2, b'a', 0xFE, 0xFF]), 1..6)
    }

    fn point() -> impl Strategy<Value = Point> {
        (0i64..1 << 62, any::<u32>()).prop_map(|(main, sub)| Point { main, sub })
    }

    fn inside(bounds: &OwnedBounds, key: &[u8]) -> bool {
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) = (
            bounds.0.as_ref().map(Vec::as_slice),
            bounds.1.as_ref().map(Vec::as_slice),
        );
        std::ops::RangeBounds::<[u8]>::contains(&bounds, key)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn versions_sort_by_key_and_then_by_point(a in key(), b in key(), at_a in point(), at_b in point()) {
            let (first, second) = (history_key(&a, at_a), history_key(&b, at_b));
            prop_assert_eq!(first.cmp(&second), (&a, at_a).cmp(&(&b, at_b)));
            let (prefix, at) = split_history_key(&first).unwrap();
            prop_assert_eq!((unescape(prefix), at), (Some(a.clone()), at_a));
            prop_assert_eq!(first.starts_with(&history_prefix(&b)), a == b);
        }

        #[test]
        fn bounds_hold_exactly_the_keys_of_the_range(start in key(), end in key(), kind in 0u8..3, k in key(), at in point()) {
            let end = match kind {
                0 => Bytes::new(),
                1 => Bytes::from_static(b"\0"),
                _ => Bytes::from(end),
            };
            let range = KeyRange::new(Bytes::from(start), end);
            let found = history_bounds(&range).is_some_and(|bounds| inside(&bounds, &history_key(&k, at)));
            prop_assert_eq!(found, range.contains(&k));
        }
    }

    #[test]
    fn damaged_keys_are_noticed() {
        assert_eq!(split_history_key(b"short"), None);
        for damaged in [&b"k"[..], b"k\0", b"k\0\x02\0\x01", b"\0\x01\0\x01"] {
            assert_eq!(unescape(damaged), None);
        }
        assert_eq!(unescape(b"\0\xFFk\0\x01").as_deref(), Some(&b"\0k"[..]));
    }
}
