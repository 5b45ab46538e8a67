//! Sets of keys, as unions of ranges.

use std::ops::Bound;

use bytes::Bytes;

use crate::KeyRange;

/// A set of keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeSet {
    /// In order, and with keys between each two: what touches is one span.
    spans: Vec<Span>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    start: Bytes,
    /// Exclusive; `None`: no end.
    end: Option<Bytes>,
}

impl Span {
    fn reaches(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_none_or(|end| key <= end.as_ref())
    }
}

impl RangeSet {
    /// The union of some ranges; empty ones add nothing.
    pub fn union<'a>(ranges: impl IntoIterator<Item = &'a KeyRange>) -> RangeSet {
        let mut spans: Vec<Span> = ranges.into_iter().filter_map(span).collect();
        spans.sort_by(|a, b| a.start.cmp(&b.start));
        let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
        for span in spans {
            match merged.last_mut() {
                Some(last) if last.reaches(&span.start) => {
                    if !span.end.as_ref().is_some_and(|end| last.reaches(end)) {
                        last.end = span.end;
                    }
                }
                _ => merged.push(span),
            }
        }
        RangeSet { spans: merged }
    }

    /// Whether every key of `keys` is in the set. A range without keys is where its start is.
    pub fn covers(&self, keys: &KeyRange) -> bool {
        let start = keys.start().as_ref();
        let after = self.spans.partition_point(|span| span.start.as_ref() <= start);
        let Some(span) = after.checked_sub(1).and_then(|place| self.spans.get(place)) else {
            return false;
        };
        let holds_start = span.end.as_ref().is_none_or(|end| start < end.as_ref());
        holds_start
            && match keys.bounds() {
                None | Some((_, Bound::Included(_))) => true,
                Some((_, Bound::Excluded(end))) => span.reaches(end),
                Some((_, Bound::Unbounded)) => span.end.is_none(),
            }
    }
}

fn span(keys: &KeyRange) -> Option<Span> {
    let (_, end) = keys.bounds()?;
    let end = match end {
        Bound::Included(key) => Some([key, b"\0"].concat().into()),
        Bound::Excluded(end) => Some(Bytes::copy_from_slice(end)),
        Bound::Unbounded => None,
    };
    Some(Span {
        start: keys.start().clone(),
        end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> KeyRange {
        let (key, end) = text.split_once("..").unwrap_or((text, ""));
        let end = if end == "*" { "\0" } else { end };
        KeyRange::new(Bytes::from(key.to_owned()), Bytes::from(end.to_owned()))
    }

    /// Permitted ranges; what is asked; whether it is covered.
    #[test]
    fn what_a_set_covers() {
        let table: &[(&[&str], &str, bool)] = &[
            (&["a"], "a", true),
            (&["a"], "b", false),
            (&["a"], "a..b", false),
            (&["a"], "a..*", false),
            (&["a"], "a..a\0", true),
            (&["a"], "a..a\0\0", false),
            (&["a..c"], "a", true),
            (&["a..c"], "b..c", true),
            (&["a..c"], "c", false),
            (&["a..c"], "a..d", false),
            (&["a..c"], "a..*", false),
            (&["a..c", "c..e"], "b..d", true),
            (&["a..c", "d..e"], "b..e", false),
            (&["a..c", "b..e"], "a..e", true),
            (&["b..e", "a..z", "c..d"], "c..y", true),
            (&["a", "a\0"], "a..a\0\0", true),
            (&["b..*"], "b..*", true),
            (&["b..*"], "a..*", false),
            (&["b..*"], "zzz..*", true),
            (&["b..*", "a..c"], "a..*", true),
            (&["\0..*"], "\0..*", true),
            (&["c..a"], "c", false),
            (&["a..c"], "b..a", true),
            (&["a..c"], "d..a", false),
            (&[], "a", false),
            (&[], "b..a", false),
        ];
        for (permitted, asked, covered) in table {
            let permitted: Vec<KeyRange> = permitted.iter().map(|text| range(text)).collect();
            let set = RangeSet::union(&permitted);
            assert_eq!(set.covers(&range(asked)), *covered, "{permitted:?} {asked}");
        }
    }
}
