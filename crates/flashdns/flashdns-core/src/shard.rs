//! A part of the names: their rows in one arena, found by open addressing.
//!
//! ```text
//!   slots: [hash's low half | where] ...   power of two, linear probing, at most 3/4 full
//!   arena: row row (dead row) row ...      see `node`; rewritten once a third of it is dead
//! ```
//! About 15 bytes per name beside its row. Cloning a shard is two copies of memory, which is what makes an
//! edit of a published snapshot cheap: some fifty kilobytes at a million names.

use crate::{node, node::Node, rr::RrSet};

/// Smallest table.
const FIRST_SLOTS: usize = 8;
/// Dead bytes that are not worth a rewrite.
const DEAD_ALLOWED: usize = 4096;

#[derive(Clone, Copy, Default)]
struct Slot {
    tag: u32,
    /// One more than the row's place; 0: free.
    place: u32,
}

#[derive(Default)]
pub(crate) struct Shard {
    arena: Vec<u8>,
    slots: Vec<Slot>,
    names: usize,
    dead: usize,
}

impl Clone for Shard {
    fn clone(&self) -> Self {
        // An edit follows, and a full vector would double for it.
        let mut arena = Vec::with_capacity(self.arena.len() + self.arena.len() / 16 + 256);
        arena.extend_from_slice(&self.arena);
        Self {
            arena,
            slots: self.slots.clone(),
            names: self.names,
            dead: self.dead,
        }
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Shard {
    pub(crate) fn find(&self, tag: u32, name: &[u8]) -> Option<Node<'_>> {
        self.node(*self.slots.get(self.position(tag, name)?)?)
    }

    fn node(&self, slot: Slot) -> Option<Node<'_>> {
        let place = index(slot.place.checked_sub(1)?);
        self.arena.get(place..).map(Node::at)
    }

    /// What stands in a slot; `None`: there is no such slot.
    pub(crate) fn slot(&self, at: usize) -> Option<Option<Node<'_>>> {
        self.slots.get(at).map(|slot| self.node(*slot))
    }

    fn position(&self, tag: u32, name: &[u8]) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = index(tag) & mask;
        // Ends at a free slot: a quarter of them is free.
        loop {
            let slot = *self.slots.get(at)?;
            let node = self.node(slot)?;
            if slot.tag == tag && node.name() == name {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
    }

    /// Stores a row under its name; `None`: it does not fit any more. Else whether the name is new.
    pub(crate) fn store(&mut self, tag: u32, name: &[u8], children: u32, sets: &[RrSet]) -> Option<bool> {
        let size = node::size(name, sets);
        if self.arena.capacity() - self.arena.len() < size {
            // By a quarter: doubling would leave a third of all memory unused.
            self.arena.reserve_exact(size.max(self.arena.len() / 4 + 64));
        }
        let place = u32::try_from(self.arena.len() + 1).ok()?;
        if !node::write(&mut self.arena, name, children, sets) {
            return None;
        }
        let slot = Slot { tag, place };
        if let Some(at) = self.position(tag, name) {
            self.bury(at);
            *self.slots.get_mut(at)? = slot;
            return Some(false);
        }
        if (self.names + 1) * 4 > self.slots.len() * 3 {
            self.grow();
        }
        self.seat(slot);
        self.names += 1;
        Some(true)
    }

    pub(crate) fn set_children(&mut self, tag: u32, name: &[u8], children: u32) {
        let place = self.position(tag, name).and_then(|at| self.slots.get(at));
        if let Some(place) = place.and_then(|slot| slot.place.checked_sub(1))
            && let Some(row) = self.arena.get_mut(index(place)..)
        {
            node::set_children(row, children);
        }
    }

    /// Removes a name; whether it was there.
    pub(crate) fn remove(&mut self, tag: u32, name: &[u8]) -> bool {
        let Some(at) = self.position(tag, name) else {
            return false;
        };
        self.free(at);
        self.names -= 1;
        self.bury_done();
        true
    }

    /// Counts the row of a slot as dead.
    fn bury(&mut self, at: usize) {
        let slot = self.slots.get(at).copied().unwrap_or_default();
        self.dead += self.node(slot).map_or(0, Node::len);
    }

    /// Empties a slot and closes the gap: what probing had pushed behind it moves up.
    fn free(&mut self, mut hole: usize) {
        self.bury(hole);
        let mask = self.slots.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let slot = self.slots.get(at).copied().unwrap_or_default();
            if slot.place == 0 {
                break;
            }
            let home = index(slot.tag) & mask;
            let (pushed, gap) = (at.wrapping_sub(home) & mask, at.wrapping_sub(hole) & mask);
            if pushed >= gap {
                self.put(hole, slot);
                hole = at;
            }
        }
        self.put(hole, Slot::default());
    }

    fn put(&mut self, at: usize, slot: Slot) {
        if let Some(place) = self.slots.get_mut(at) {
            *place = slot;
        }
    }

    fn seat(&mut self, slot: Slot) {
        let mask = self.slots.len() - 1;
        let mut at = index(slot.tag) & mask;
        while self.slots.get(at).is_some_and(|taken| taken.place != 0) {
            at = (at + 1) & mask;
        }
        self.put(at, slot);
    }

    fn grow(&mut self) {
        let size = (self.slots.len() * 2).max(FIRST_SLOTS);
        let old = std::mem::replace(&mut self.slots, vec![Slot::default(); size]);
        for slot in old.into_iter().filter(|slot| slot.place != 0) {
            self.seat(slot);
        }
    }

    /// Rewrites the arena when a third of it is dead.
    pub(crate) fn bury_done(&mut self) {
        if self.dead < DEAD_ALLOWED || self.dead * 3 < self.arena.len() {
            return;
        }
        let mut arena = Vec::with_capacity(self.arena.len() - self.dead + DEAD_ALLOWED);
        for slot in self.slots.iter_mut().filter(|slot| slot.place != 0) {
            let row = self.arena.get(index(slot.place - 1)..).unwrap_or(&[]);
            let row = row.get(..Node::at(row).len()).unwrap_or(&[]);
            // The new arena is smaller than the old one, whose places fitted.
            slot.place = u32::try_from(arena.len() + 1).unwrap_or(u32::MAX);
            arena.extend_from_slice(row);
        }
        self.arena = arena;
        self.dead = 0;
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.arena.capacity() + self.slots.capacity() * size_of::<Slot>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rr::Rtype;
    use std::collections::BTreeMap;

    /// Against a map, with tags that collide and cluster at the end of the table.
    #[test]
    fn equal_to_a_map_through_random_edits() {
        let (mut shard, mut model) = (Shard::default(), BTreeMap::new());
        let mut random = 1_u32;
        for _ in 0..20_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let number = u8::try_from((random >> 16) % 120).unwrap();
            let name = [1, number, 0];
            let tag = u32::MAX - u32::from(number % 7);
            if random >> 31 == 0 {
                let size = usize::from(number);
                let sets = [RrSet::new(Rtype(65280), random >> 8, vec![vec![number; size].into()]).unwrap()];
                let is_new = shard.store(tag, &name, random, &sets).unwrap();
                shard.bury_done();
                assert_eq!(is_new, model.insert(number, (random, random >> 8)).is_none());
            } else {
                assert_eq!(shard.remove(tag, &name), model.remove(&number).is_some());
            }
            assert_eq!(shard.names, model.len());
        }
        for number in 0..120 {
            let found = shard.find(u32::MAX - u32::from(number % 7), &[1, number, 0]);
            let found = found.map(|node| (node.children(), node.sets().next().unwrap().ttl_s));
            assert_eq!(found, model.get(&number).copied());
        }
        let live: usize = shard
            .slots
            .iter()
            .filter_map(|slot| shard.node(*slot))
            .map(Node::len)
            .sum();
        assert_eq!(live + shard.dead, shard.arena.len());
        assert!(shard.dead < DEAD_ALLOWED.max(shard.arena.len()));
    }
}
