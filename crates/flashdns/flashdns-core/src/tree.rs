//! The tree of names: packed shards that are copied where they are edited.
//!
//! ```text
//!   Snapshot ──> [Arc<Shard>; 1024] ──> table and arena of rows (see `shard`, `node`)
//!   edit: copy the one shard the name is in, unless nobody else holds it
//! ```
//! All zones share one tree, and every ancestor of a name is in it, so a walk from the root towards a name
//! finds the zone, the zone cut and the closest encloser and ends at the first label that does not exist:
//! a question for a name that does not exist costs the same in a zone of a million names.

use std::{fmt, hash::BuildHasher, hash::RandomState, sync::Arc};

use crate::{
    limits::MAX_LABELS,
    name::{DnsName, parent},
    node::Node,
    rr::RrSet,
    shard::Shard,
};

/// An edit copies one shard, so its cost is about names / SHARDS.
const SHARDS: usize = 1024;

/// An immutable state of all zones. Cloning shares everything.
#[derive(Clone)]
pub struct Snapshot {
    shards: Arc<[Arc<Shard>]>,
    /// Keys are random per process (SipHash), so nobody outside can choose names that collide.
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
        let empty = Arc::new(Shard::default());
        Self {
            shards: vec![empty; SHARDS].into(),
            hasher: RandomState::new(),
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

    /// Bytes of memory that names and records take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let shards = self.shards.iter().map(|shard| size_of::<Shard>() + shard.bytes());
        shards.sum()
    }

    /// The shard a name is in, and its tag there.
    fn place(&self, wire: &[u8]) -> (usize, u32) {
        let [a, b, _, _, tag @ ..] = self.hasher.hash_one(wire).to_be_bytes();
        (
            usize::from(u16::from_be_bytes([a, b])) % SHARDS,
            u32::from_be_bytes(tag),
        )
    }

    pub(crate) fn node(&self, wire: &[u8]) -> Option<Node<'_>> {
        let (shard, tag) = self.place(wire);
        self.shards.get(shard)?.find(tag, wire)
    }

    /// What stands in a place of a shard. All names stand somewhere, in no order.
    pub(crate) fn row(&self, shard: usize, slot: usize) -> Row<'_> {
        let Some(shard) = self.shards.get(shard) else {
            return Row::End;
        };
        match shard.slot(slot) {
            None => Row::NextShard,
            Some(None) => Row::Free,
            Some(Some(node)) => Row::Node(node),
        }
    }

    /// Replaces what is stored at a name; nothing at all removes the name and the ancestors that only
    /// existed for it.
    pub(crate) fn put(&mut self, name: &DnsName, sets: &[RrSet]) {
        let wire = name.wire();
        match (self.node(wire).map(Node::children), sets.is_empty()) {
            (None, true) => {}
            (Some(0), true) => self.remove(wire),
            (Some(children), _) => {
                self.store(wire, children, sets);
            }
            (None, false) => {
                self.store(wire, 0, sets);
                self.count_child_of(wire);
            }
        }
    }

    /// Changes the shard of a name.
    fn edit<T>(&mut self, wire: &[u8], change: impl FnOnce(&mut Shard, u32) -> T) -> Option<T> {
        let (shard, tag) = self.place(wire);
        let shard = Arc::make_mut(Arc::make_mut(&mut self.shards).get_mut(shard)?);
        let result = change(shard, tag);
        shard.bury_done();
        Some(result)
    }

    fn store(&mut self, wire: &[u8], children: u32, sets: &[RrSet]) {
        let stored = self.edit(wire, |shard, tag| shard.store(tag, wire, children, sets));
        // A shard ends at 4 GiB: four thousand times a million names.
        let is_new = stored.flatten();
        assert!(is_new.is_some(), "the tree of names is full");
        self.names += usize::from(is_new == Some(true));
    }

    fn set_children(&mut self, wire: &[u8], children: u32) {
        self.edit(wire, |shard, tag| shard.set_children(tag, wire, children));
    }

    /// Tells the ancestors of a new name about it, making those that are missing.
    fn count_child_of(&mut self, wire: &[u8]) {
        let mut above = parent(wire);
        while let Some(wire) = above {
            match self.node(wire).map(Node::children) {
                Some(children) => {
                    self.set_children(wire, children.saturating_add(1));
                    return;
                }
                None => self.store(wire, 1, &[]),
            }
            above = parent(wire);
        }
    }

    fn remove(&mut self, wire: &[u8]) {
        let mut gone = wire;
        loop {
            let removed = self.edit(gone, |shard, tag| shard.remove(tag, gone));
            self.names -= usize::from(removed == Some(true));
            let Some(above) = parent(gone) else { return };
            let Some(children) = self.node(above).map(Node::children) else {
                return;
            };
            assert!(children > 0, "a name's parent counts it");
            self.set_children(above, children - 1);
            if self.node(above).is_some_and(|node| !node.is_vacant()) {
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
            if node.is_apex() {
                walk.parent = walk
                    .zone
                    .filter(|_| walk.cut.is_none() && walk.redirect.is_none());
                walk.zone = Some((node, start));
                (walk.cut, walk.redirect) = (None, None);
            } else if walk.zone.is_some()
                && walk.cut.is_none()
                && walk.redirect.is_none()
                && node.has_servers()
            {
                walk.cut = Some((node, start));
            }
            // RFC 6672, 2.3: a redirection is of what lies below, not of its owner.
            if node.redirects() && start > 0 && walk.cut.is_none() && walk.redirect.is_none() {
                walk.redirect = walk.zone.map(|_| (node, start));
            }
            walk.encloser = start;
            walk.exact = (start == 0).then_some(node);
        }
        walk
    }
}

/// A place in the tree, see [`Snapshot::row`].
pub(crate) enum Row<'a> {
    /// There are no more shards.
    End,
    /// There are no more places in this shard.
    NextShard,
    /// Nothing stands here.
    Free,
    Node(Node<'a>),
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
    pub(crate) zone: Option<(Node<'a>, usize)>,
    /// The zone above that one, when it is served here too and has not delegated away in between.
    pub(crate) parent: Option<(Node<'a>, usize)>,
    /// The topmost zone cut of `zone` at or above the name.
    pub(crate) cut: Option<(Node<'a>, usize)>,
    /// The topmost DNAME of `zone` strictly above the name, and not below a cut.
    pub(crate) redirect: Option<(Node<'a>, usize)>,
    /// Where the longest existing suffix of the name starts.
    pub(crate) encloser: usize,
    /// The name's own node.
    pub(crate) exact: Option<Node<'a>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rr::Rtype;

    fn name(text: &str) -> DnsName {
        text.parse().unwrap()
    }

    fn a() -> Vec<RrSet> {
        vec![RrSet::new(Rtype::A, 1, vec![[1, 2, 3, 4].into()]).unwrap()]
    }

    #[test]
    fn ancestors_come_and_go_with_their_names() {
        let mut tree = Snapshot::default();
        tree.put(&name("a.b.c"), &a());
        tree.put(&name("x.b.c"), &a());
        assert_eq!(tree.names(), 5);
        tree.put(&name("a.b.c"), &[]);
        assert_eq!(tree.names(), 4);
        assert!(tree.node(name("b.c").wire()).is_some());
        tree.put(&name("b.c"), &a());
        tree.put(&name("x.b.c"), &[]);
        assert_eq!(tree.names(), 3);
        tree.put(&name("b.c"), &[]);
        assert_eq!(tree.names(), 0);
        tree.put(&name("b.c"), &[]);
        assert_eq!(tree.names(), 0);
    }

    #[test]
    fn a_clone_does_not_see_later_edits() {
        let mut tree = Snapshot::default();
        tree.put(&name("a.b"), &a());
        let before = tree.clone();
        tree.put(&name("a.b"), &[]);
        tree.put(&name("c.b"), &a());
        assert!(before.node(name("a.b").wire()).is_some());
        assert!(before.node(name("c.b").wire()).is_none());
        assert!(tree.node(name("a.b").wire()).is_none());
    }
}
