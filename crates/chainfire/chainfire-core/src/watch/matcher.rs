//! Finds the watchers that an event concerns: a map for single keys, a tree of intervals for ranges.
//!
//! Watchers of the same keys form a group, so that a thousand watchers of one prefix cost one look-up. The tree is a
//! treap in the order of the ranges' starts; each node knows the furthest end below it, so that subtrees which end
//! before a key are skipped. Its priorities come from a fixed sequence: there is no randomness here.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use bytes::Bytes;

use super::{Change, Mark};
use crate::KeyRange;

/// Who watches what. `W` names a watcher.
#[derive(Debug)]
pub struct Matcher<W> {
    singles: HashMap<Bytes, usize>,
    ranges: Tree,
    groups: Vec<Group<W>>,
    /// Places in `groups` that are not in use.
    free: Vec<usize>,
    group_of: HashMap<W, usize>,
}

#[derive(Debug)]
struct Group<W> {
    keys: Option<KeyRange>,
    members: BTreeSet<W>,
}

impl<W> Default for Matcher<W> {
    fn default() -> Matcher<W> {
        Matcher {
            singles: HashMap::new(),
            ranges: Tree::default(),
            groups: Vec::new(),
            free: Vec::new(),
            group_of: HashMap::new(),
        }
    }
}

impl<W: Copy + Ord + std::hash::Hash> Matcher<W> {
    /// Adds a watcher; its keys are not an empty range. One of the same name is replaced.
    pub fn insert(&mut self, who: W, keys: &KeyRange) {
        assert!(!keys.is_empty(), "nobody watches nothing");
        self.remove(who);
        // A copy: the keys are slices of a whole request, which must not stay in memory for them.
        let keys = keys.to_owned_bytes();
        let next = self.free.last().copied().unwrap_or(self.groups.len());
        let group = if keys.is_single() {
            *self.singles.entry(keys.start().clone()).or_insert(next)
        } else {
            self.ranges.insert(keys.start(), keys.end_before(), next)
        };
        if group == next {
            let new = Group {
                keys: Some(keys),
                members: BTreeSet::new(),
            };
            match self.free.pop() {
                Some(_) => {
                    if let Some(place) = self.groups.get_mut(group) {
                        *place = new;
                    }
                }
                None => self.groups.push(new),
            }
        }
        if let Some(group) = self.groups.get_mut(group) {
            group.members.insert(who);
        }
        self.group_of.insert(who, group);
    }

    /// Forgets a watcher; false when it was not known.
    pub fn remove(&mut self, who: W) -> bool {
        let Some(place) = self.group_of.remove(&who) else {
            return false;
        };
        let Some(group) = self.groups.get_mut(place) else {
            return false;
        };
        group.members.remove(&who);
        if group.members.is_empty()
            && let Some(keys) = group.keys.take()
        {
            if keys.is_single() {
                self.singles.remove(keys.start());
            } else {
                self.ranges.remove(keys.start(), keys.end_before());
            }
            self.free.push(place);
        }
        true
    }

    /// How many watchers there are.
    pub fn len(&self) -> usize {
        self.group_of.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.group_of.is_empty()
    }

    /// Calls `found` for every watcher that the changes concern, with the revisions between which they do.
    pub fn concerned(&self, changes: &[Change], mut found: impl FnMut(W, Mark)) {
        let mut touched: BTreeMap<usize, Mark> = BTreeMap::new();
        for change in changes {
            let mark = Mark {
                first: change.revision,
                last: change.revision,
            };
            let mut touch = |group: usize| {
                let entry = touched.entry(group).or_insert(mark);
                *entry = entry.join(mark);
            };
            for event in change.events.iter() {
                let key = &event.kv.key;
                self.singles.get(key).copied().into_iter().for_each(&mut touch);
                self.ranges.containing(key, &mut touch);
            }
        }
        for (group, mark) in touched {
            let members = self.groups.get(group).map(|group| &group.members);
            members.into_iter().flatten().for_each(|who| found(*who, mark));
        }
    }
}

/// The end of a range; `None` is behind every key.
type End = Option<Bytes>;

fn cmp_end(a: Option<&Bytes>, b: Option<&Bytes>) -> Ordering {
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(a), Some(b)) => a.cmp(b),
    }
}

fn ends_behind(end: Option<&Bytes>, key: &[u8]) -> bool {
    end.is_none_or(|end| end.as_ref() > key)
}

type Link = Option<Box<Node>>;

#[derive(Debug)]
struct Node {
    start: Bytes,
    end: End,
    /// The furthest end in this subtree.
    reach: End,
    group: usize,
    priority: u64,
    left: Link,
    right: Link,
}

impl Node {
    fn cmp(&self, start: &Bytes, end: Option<&Bytes>) -> Ordering {
        self.start
            .cmp(start)
            .then_with(|| cmp_end(self.end.as_ref(), end))
    }

    fn update(&mut self) {
        let mut reach = self.end.clone();
        for child in [&self.left, &self.right].into_iter().flatten() {
            if cmp_end(child.reach.as_ref(), reach.as_ref()) == Ordering::Greater {
                reach.clone_from(&child.reach);
            }
        }
        self.reach = reach;
    }
}

#[derive(Debug)]
struct Tree {
    root: Link,
    sequence: u64,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree {
            root: None,
            sequence: 0x9e37_79b9_7f4a_7c15,
        }
    }
}

impl Tree {
    /// Adds a range under `group`, unless it is there already: then the group that it has.
    fn insert(&mut self, start: &Bytes, end: Option<&Bytes>, group: usize) -> usize {
        if let Some(known) = self.find(start, end) {
            return known;
        }
        // xorshift64
        self.sequence ^= self.sequence << 13;
        self.sequence ^= self.sequence >> 7;
        self.sequence ^= self.sequence << 17;
        let node = Box::new(Node {
            start: start.clone(),
            end: end.cloned(),
            reach: end.cloned(),
            group,
            priority: self.sequence,
            left: None,
            right: None,
        });
        let (before, behind) = split(self.root.take(), start, end);
        self.root = merge(merge(before, Some(node)), behind);
        group
    }

    fn find(&self, start: &Bytes, end: Option<&Bytes>) -> Option<usize> {
        let mut link = &self.root;
        while let Some(node) = link {
            link = match node.cmp(start, end) {
                Ordering::Equal => return Some(node.group),
                Ordering::Less => &node.right,
                Ordering::Greater => &node.left,
            };
        }
        None
    }

    fn remove(&mut self, start: &Bytes, end: Option<&Bytes>) {
        self.root = without(self.root.take(), start, end);
    }

    /// The groups of the ranges in which a key lies.
    fn containing(&self, key: &[u8], found: &mut impl FnMut(usize)) {
        visit(self.root.as_deref(), key, found);
    }
}

fn visit(node: Option<&Node>, key: &[u8], found: &mut impl FnMut(usize)) {
    let Some(node) = node.filter(|node| ends_behind(node.reach.as_ref(), key)) else {
        return;
    };
    visit(node.left.as_deref(), key, found);
    if node.start.as_ref() <= key {
        if ends_behind(node.end.as_ref(), key) {
            found(node.group);
        }
        visit(node.right.as_deref(), key, found);
    }
}

/// Nodes before a range, and those from it on.
fn split(link: Link, start: &Bytes, end: Option<&Bytes>) -> (Link, Link) {
    let Some(mut node) = link else {
        return (None, None);
    };
    if node.cmp(start, end) == Ordering::Less {
        let (before, behind) = split(node.right.take(), start, end);
        node.right = before;
        node.update();
        (Some(node), behind)
    } else {
        let (before, behind) = split(node.left.take(), start, end);
        node.left = behind;
        node.update();
        (before, Some(node))
    }
}

/// One tree of two; everything in the first lies before everything in the second.
fn merge(before: Link, behind: Link) -> Link {
    match (before, behind) {
        (None, link) | (link, None) => link,
        (Some(mut a), Some(mut b)) => Some(if a.priority > b.priority {
            a.right = merge(a.right.take(), Some(b));
            a.update();
            a
        } else {
            b.left = merge(Some(a), b.left.take());
            b.update();
            b
        }),
    }
}

fn without(link: Link, start: &Bytes, end: Option<&Bytes>) -> Link {
    let mut node = link?;
    match node.cmp(start, end) {
        Ordering::Equal => return merge(node.left.take(), node.right.take()),
        Ordering::Less => node.right = without(node.right.take(), start, end),
        Ordering::Greater => node.left = without(node.left.take(), start, end),
    }
    node.update();
    Some(node)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Event, EventKind, KeyValue};

    fn change(revision: i64, keys: &[u8]) -> Change {
        let events = keys.iter().map(|key| Event {
            kind: EventKind::Put,
            kv: KeyValue {
                key: Bytes::copy_from_slice(&[*key]),
                ..KeyValue::default()
            },
            prev: None,
        });
        Change {
            revision,
            events: events.collect(),
        }
    }

    fn range(start: u8, end: Option<u8>) -> KeyRange {
        let end = end.map_or(Bytes::new(), |end| Bytes::copy_from_slice(&[end]));
        KeyRange::new(Bytes::copy_from_slice(&[start]), end)
    }

    proptest! {
        #[test]
        fn it_finds_whom_a_scan_of_all_watchers_finds(
            steps in proptest::collection::vec((0..40_u16, 1..30_u8, proptest::option::of(0..30_u8), any::<bool>()), 1..200),
            written in proptest::collection::vec(proptest::collection::vec(1..30_u8, 1..4), 1..4),
        ) {
            let mut matcher = Matcher::default();
            let mut naive: BTreeMap<u16, KeyRange> = BTreeMap::new();
            for (who, start, end, keep) in steps {
                let keys = range(start, end);
                if keep && !keys.is_empty() {
                    matcher.insert(who, &keys);
                    naive.insert(who, keys);
                } else {
                    prop_assert_eq!(matcher.remove(who), naive.remove(&who).is_some());
                }
                prop_assert_eq!(matcher.len(), naive.len());
            }
            let changes: Vec<Change> = (10..).zip(&written).map(|(revision, keys)| change(revision, keys)).collect();
            let mut found = BTreeMap::new();
            matcher.concerned(&changes, |who, mark| {
                assert!(found.insert(who, mark).is_none(), "each watcher once");
            });
            let mut expected = BTreeMap::new();
            for (who, keys) in &naive {
                let touching = changes
                    .iter()
                    .filter(|change| change.events.iter().any(|event| keys.contains(&event.kv.key)))
                    .map(|change| Mark { first: change.revision, last: change.revision });
                if let Some(mark) = touching.reduce(Mark::join) {
                    expected.insert(*who, mark);
                }
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn nested_ranges_in_order_make_no_deep_tree() {
        let mut matcher = Matcher::default();
        let key = |n: u32| Bytes::copy_from_slice(&n.to_be_bytes());
        for n in 1..20_000_u32 {
            matcher.insert(n, &KeyRange::new(key(n), key(100_000 - n)));
        }
        let depth = |matcher: &Matcher<u32>| {
            fn of(link: &Link) -> usize {
                link.as_ref()
                    .map_or(0, |node| 1 + of(&node.left).max(of(&node.right)))
            }
            of(&matcher.ranges.root)
        };
        assert!(depth(&matcher) < 80, "{}", depth(&matcher));
        (1..20_000).for_each(|n| assert!(matcher.remove(n)));
        assert!(matcher.is_empty() && matcher.ranges.root.is_none());
    }
}
