//! The tree of names: a sharded hash table that is copied where it is edited.
//!
//! ```text
//!   Snapshot ──> [Arc<Shard>; 1024] ──> HashMap<wire name, Arc<Node>>
//!   edit: clone the one shard the name is in, unless nobody else holds it
//! ```
//! All zones share one tree, and every ancestor of a name is in it, so a walk from the root towards a name
//! finds the zone, the zone cut and the closest encloser and ends at the first label that does not exist:
//! a question for a name that does not exist costs the same in a zone of a million names.

use std::{collections::HashMap, fmt, hash::BuildHasher, hash::RandomState, sync::Arc};

use crate::{
    limits::MAX_LABELS,
    name::{DnsName, parent},
    rr::{RrSet, Rtype},
};

/// An edit copies one shard, so its cost is about names / SHARDS.
const SHARDS: usize = 1024;

/// A zone of authority, kept at its apex.
pub(crate) struct Zone {
    /// SOA data; its serial field is replaced by the snapshot's when it is sent.
    pub(crate) soa: Box<[u8]>,
    pub(crate) soa_ttl_s: u32,
    /// Time to live of the SOA in a negative answer: min(SOA TTL, MINIMUM) (RFC 2308, 3).
    pub(crate) negative_ttl_s: u32,
}

#[derive(Clone, Default)]
pub(crate) struct Node {
    pub(crate) sets: Vec<RrSet>,
    pub(crate) zone: Option<Arc<Zone>>,
    /// Names directly below this one.
    children: u32,
}

impl Node {
    pub(crate) fn set(&self, rtype: Rtype) -> Option<&RrSet> {
        self.sets.iter().find(|set| set.rtype() == rtype)
    }

    fn is_vacant(&self) -> bool {
        self.sets.is_empty() && self.zone.is_none() && self.children == 0
    }
}

/// Keys are random per process (SipHash), so nobody outside can choose names that collide.
type Shard = HashMap<Box<[u8]>, Arc<Node>, RandomState>;

/// An immutable state of all zones. Cloning shares everything.
#[derive(Clone)]
pub struct Snapshot {
    shards: Arc<[Arc<Shard>]>,
    hasher: RandomState,
    pub(crate) serial: u32,
    names: usize,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("serial", &self.serial)
            .field("names", &self.names)
            .finish()
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        let hasher = RandomState::new();
        let empty = Arc::new(Shard::with_hasher(hasher.clone()));
        Self {
            shards: vec![empty; SHARDS].into(),
            hasher,
            serial: 0,
            names: 0,
        }
    }
}

impl Snapshot {
    /// The serial number of every zone in it.
    #[must_use]
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Number of names, empty non-terminals included.
    #[must_use]
    pub fn names(&self) -> usize {
        self.names
    }

    fn shard(&self, wire: &[u8]) -> usize {
        // The low bits of the hash choose the bucket within a shard, so the shard takes high ones.
        let [a, b, ..] = self.hasher.hash_one(wire).to_be_bytes();
        usize::from(u16::from_be_bytes([a, b])) % SHARDS
    }

    pub(crate) fn node(&self, wire: &[u8]) -> Option<&Node> {
        self.shards.get(self.shard(wire))?.get(wire).map(|node| &**node)
    }

    fn shard_mut(&mut self, wire: &[u8]) -> Option<&mut Shard> {
        let index = self.shard(wire);
        Arc::make_mut(&mut self.shards).get_mut(index).map(Arc::make_mut)
    }

    /// Replaces what is stored at a name; nothing at all removes the name and the ancestors that only
    /// existed for it.
    pub(crate) fn put(&mut self, name: &DnsName, sets: Vec<RrSet>, zone: Option<Arc<Zone>>) {
        let wire = name.wire();
        let children = self.node(wire).map(|node| node.children);
        let node = Node {
            sets,
            zone,
            children: children.unwrap_or(0),
        };
        match (children.is_some(), node.is_vacant()) {
            (false, true) => {}
            (true, true) => self.remove(wire),
            (true, false) => self.store(wire, node),
            (false, false) => {
                self.store(wire, node);
                self.count_child_of(wire);
            }
        }
    }

    fn store(&mut self, wire: &[u8], node: Node) {
        if let Some(shard) = self.shard_mut(wire)
            && shard.insert(wire.into(), Arc::new(node)).is_none()
        {
            self.names += 1;
        }
    }

    /// Tells the ancestors of a new name about it, making those that are missing.
    fn count_child_of(&mut self, wire: &[u8]) {
        let mut above = parent(wire);
        while let Some(wire) = above {
            let known = self.node(wire).cloned();
            let is_new = known.is_none();
            let mut node = known.unwrap_or_default();
            node.children = node.children.saturating_add(1);
            self.store(wire, node);
            above = if is_new { parent(wire) } else { None };
        }
    }

    fn remove(&mut self, wire: &[u8]) {
        let mut gone = wire;
        loop {
            if let Some(shard) = self.shard_mut(gone)
                && shard.remove(gone).is_some()
            {
                self.names -= 1;
            }
            let Some(above) = parent(gone) else { return };
            let Some(mut node) = self.node(above).cloned() else {
                return;
            };
            assert!(node.children > 0, "a name's parent counts it");
            node.children -= 1;
            if !node.is_vacant() {
                self.store(above, node);
                return;
            }
            gone = above;
        }
    }

    /// Walks from the root towards `wire`, a lower-case wire name.
    pub(crate) fn walk<'a>(&'a self, wire: &[u8]) -> Walk<'a> {
        let (starts, labels) = label_starts(wire);
        let mut walk = Walk::default();
        for &start in starts.iter().take(labels).rev() {
            let start = usize::from(start);
            let Some(node) = wire.get(start..).and_then(|suffix| self.node(suffix)) else {
                break;
            };
            if let Some(zone) = &node.zone {
                walk.parent = walk.zone.filter(|_| walk.cut.is_none());
                walk.zone = Some((zone, start));
                walk.cut = None;
            } else if walk.zone.is_some() && walk.cut.is_none() && node.set(Rtype::NS).is_some() {
                walk.cut = Some((node, start));
            }
            walk.encloser = start;
            walk.exact = (start == 0).then_some(node);
        }
        walk
    }
}

/// Where each label of a wire name starts, first label first, the root last; and how many there are.
fn label_starts(wire: &[u8]) -> ([u8; MAX_LABELS], usize) {
    let (mut starts, mut count, mut at) = ([0; MAX_LABELS], 0, 0usize);
    for slot in &mut starts {
        let (Some(&length), Ok(start)) = (wire.get(at), u8::try_from(at)) else {
            break;
        };
        *slot = start;
        count += 1;
        at += 1 + usize::from(length);
    }
    (starts, count)
}

/// What a walk towards a name met. Positions are byte offsets in the name that was looked for.
#[derive(Default)]
pub(crate) struct Walk<'a> {
    /// The closest zone at or above the name, and where its apex starts.
    pub(crate) zone: Option<(&'a Arc<Zone>, usize)>,
    /// The zone above that one, when it is served here too and has not delegated away in between.
    pub(crate) parent: Option<(&'a Arc<Zone>, usize)>,
    /// The topmost zone cut of `zone` at or above the name.
    pub(crate) cut: Option<(&'a Node, usize)>,
    /// Where the longest existing suffix of the name starts.
    pub(crate) encloser: usize,
    /// The name's own node.
    pub(crate) exact: Option<&'a Node>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DnsName {
        text.parse().unwrap()
    }

    fn a() -> Vec<RrSet> {
        vec![RrSet::new(Rtype::A, 1, vec![[1, 2, 3, 4].into()]).unwrap()]
    }

    #[test]
    fn ancestors_come_and_go_with_their_names() {
        let mut tree = Snapshot::default();
        tree.put(&name("a.b.c"), a(), None);
        tree.put(&name("x.b.c"), a(), None);
        assert_eq!(tree.names(), 5);
        tree.put(&name("a.b.c"), vec![], None);
        assert_eq!(tree.names(), 4);
        assert!(tree.node(name("b.c").wire()).is_some());
        tree.put(&name("b.c"), a(), None);
        tree.put(&name("x.b.c"), vec![], None);
        assert_eq!(tree.names(), 3);
        tree.put(&name("b.c"), vec![], None);
        assert_eq!(tree.names(), 0);
        tree.put(&name("b.c"), vec![], None);
        assert_eq!(tree.names(), 0);
    }

    #[test]
    fn a_clone_does_not_see_later_edits() {
        let mut tree = Snapshot::default();
        tree.put(&name("a.b"), a(), None);
        let before = tree.clone();
        tree.put(&name("a.b"), vec![], None);
        tree.put(&name("c.b"), a(), None);
        assert!(before.node(name("a.b").wire()).is_some());
        assert!(before.node(name("c.b").wire()).is_none());
        assert!(tree.node(name("a.b").wire()).is_none());
    }
}
