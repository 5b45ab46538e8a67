//! Which node a VM goes to: filters, then weights, then a choice at random among the best.
//!
//! [`Cluster`] is the picture of all nodes. It is kept up to date node by node ([`Cluster::upsert`]), so that a
//! decision reads nothing but memory. [`Cluster::decide`] finds a node, [`Cluster::explain`] says of every node why
//! not, or how it weighs. Both judge by the same filters.
//!
//! The random number is an input. It decides among at most [`BEST`] nodes, and first among those that are about as
//! good as the best ([`Pick::Near`]): three VMs on three empty nodes go to three nodes, not to three dice. Equals are
//! shuffled by it too, so that several schedulers with the same picture seldom want the same node. Whoever lost a
//! race decides again with [`Pick::Best`].
//!
//! What is decided here becomes real only by a transaction that compares the node's claims' revision.
//!
//! Invariants: a chosen node has room for the VM in every respect; a refusal means that every node has a reason; the
//! same picture, request and number give the same answer, in whatever order the nodes were put in.

mod explain;
mod filter;
mod node;
mod weigh;

use std::collections::BTreeMap;

pub use explain::{NodeVerdict, Verdict};
pub use filter::WhyNot;
pub use node::{Cell, Group, GroupRule, NodeView, Placement};
pub use weigh::Weight;

use crate::{NetworkMode, Resources, Room};
use node::Slot;
pub(crate) use node::in_cell;

/// The random choice is among so many nodes.
pub const BEST: usize = 3;
/// Nodes that weigh at most so much more than the best are about as good, in millionths.
const NEAR: u64 = 20_000;

/// Whether VMs are spread over nodes or packed onto few.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weigher {
    /// The emptiest node first.
    #[default]
    Spread,
    /// The fullest node that has room first.
    Pack,
}

/// How nodes are filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Virtual CPUs that may be claimed per hundred that the node has; 100: no overcommit.
    pub vcpu_percent: u32,
    /// Memory that may be claimed per hundred bytes.
    pub memory_percent: u32,
    /// Disk that may be claimed per hundred bytes.
    pub disk_percent: u32,
    /// What is kept free on each node, taken off before the overcommit.
    pub reserve: Resources,
    /// Spread or pack.
    pub weigher: Weigher,
}

impl Default for Policy {
    /// CPUs four times over, memory and disk never, nothing kept free beyond what agents keep.
    fn default() -> Self {
        Self {
            vcpu_percent: 400,
            memory_percent: 100,
            disk_percent: 100,
            reserve: Resources::default(),
            weigher: Weigher::Spread,
        }
    }
}

impl Policy {
    /// What may be claimed in all on a node with this capacity.
    #[must_use]
    pub fn room(&self, capacity: Resources) -> Resources {
        self.scaled(capacity.saturating_sub(self.reserve))
    }

    /// What may be claimed in one cell. The reserve is the node's: it is not taken off each cell.
    fn cell_room(&self, cell: Cell) -> Resources {
        self.scaled(Resources {
            vcpus: cell.vcpus,
            memory_bytes: cell.memory_bytes,
            disk_bytes: 0,
        })
    }

    fn scaled(&self, base: Resources) -> Resources {
        let scale = |amount: u64, percent: u32| {
            let scaled = u128::from(amount) * u128::from(percent) / 100;
            u64::try_from(scaled).unwrap_or(u64::MAX)
        };
        Resources {
            vcpus: u32::try_from(scale(base.vcpus.into(), self.vcpu_percent)).unwrap_or(u32::MAX),
            memory_bytes: scale(base.memory_bytes, self.memory_percent),
            disk_bytes: scale(base.disk_bytes, self.disk_percent),
        }
    }
}

/// Among which nodes the random number decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// Of the best, those that are about as good as the very best.
    Near,
    /// All of the best: for whoever has just lost a race for the very best.
    Best,
}

/// A node was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Its name.
    pub node: String,
    /// How it connects guests, which decides the address pool.
    pub network_mode: NetworkMode,
    /// What may be claimed on it in all, and in the cell that the VM is bound to.
    pub room: Room,
}

/// No node was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoPlace {
    /// Each node and every reason against it, by name; empty when there is no node.
    pub rejected: Vec<(String, Vec<WhyNot>)>,
}

/// So many nodes are named in a refusal; the rest are counted.
const NAMED: usize = 8;

impl std::fmt::Display for NoPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.rejected.is_empty() {
            return f.write_str("no node can take the VM: no agent has registered yet");
        }
        f.write_str("no node can take the VM: ")?;
        for (index, (node, reasons)) in self.rejected.iter().take(NAMED).enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{node}: ")?;
            for (index, why) in reasons.iter().enumerate() {
                let separator = if index == 0 { "" } else { ", " };
                write!(f, "{separator}{why}")?;
            }
        }
        match self.rejected.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "; and {more} more nodes"),
        }
    }
}

impl std::error::Error for NoPlace {}

/// The picture of all nodes.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    policy: Policy,
    slots: Vec<Slot>,
    /// Where in `slots` a node is.
    index: BTreeMap<String, usize>,
}

impl Cluster {
    /// Without nodes.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            ..Self::default()
        }
    }

    /// Puts a node in, or in the place of what was known of it.
    pub fn upsert(&mut self, node: NodeView) {
        let slot = Slot::new(node, &self.policy);
        match self
            .index
            .get(&slot.node.name)
            .and_then(|at| self.slots.get_mut(*at))
        {
            Some(known) => *known = slot,
            None => {
                self.index.insert(slot.node.name.clone(), self.slots.len());
                self.slots.push(slot);
            }
        }
        assert!(
            self.index.len() == self.slots.len(),
            "the index and the nodes do not agree"
        );
    }

    /// Takes a node out; true when it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(at) = self.index.remove(name) else {
            return false;
        };
        self.slots.swap_remove(at);
        if let Some(moved) = self.slots.get(at) {
            self.index.insert(moved.node.name.clone(), at);
        }
        true
    }

    /// A node.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeView> {
        let at = self.index.get(name)?;
        self.slots.get(*at).map(|slot| &slot.node)
    }

    /// Number of nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True without nodes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Chooses a node. `random` should be uniform.
    ///
    /// # Errors
    /// [`NoPlace`] with every reason against every node.
    pub fn decide(&self, wanted: &Placement, pick: Pick, random: u64) -> Result<Decision, NoPlace> {
        let mut best: [Option<Ranked<'_>>; BEST] = [None; BEST];
        for slot in &self.slots {
            if filter::fits(slot, wanted) {
                let weight = weigh::weigh(slot, wanted, &self.policy).total();
                let ranked = Ranked {
                    weight,
                    shuffle: mix(random, slot.name_hash),
                    slot,
                };
                insert(&mut best, ranked);
            }
        }
        let Some(first) = best.first().copied().flatten() else {
            return Err(self.refusal(wanted));
        };
        let limit = match pick {
            Pick::Near => first.weight.saturating_add(NEAR),
            Pick::Best => u64::MAX,
        };
        let good = best.iter().flatten().filter(|ranked| ranked.weight <= limit);
        let count = good.clone().count() as u64;
        let index = usize::try_from(mix(random, CHOICE) % count).unwrap_or(0);
        let chosen = good.clone().nth(index).unwrap_or(&first).slot;
        let decision = Decision {
            node: chosen.node.name.clone(),
            network_mode: chosen.node.network_mode,
            room: Room {
                node: chosen.room,
                cell: chosen.cell_for(wanted),
            },
        };
        let after = chosen.node.claimed.checked_add(wanted.resources);
        assert!(
            after.is_some_and(|after| after.fits_in(decision.room.node)),
            "a node was chosen that has no room"
        );
        assert!(
            decision.room.cell.is_some() == wanted.one_cell,
            "a VM was bound to a cell unasked, or not although asked"
        );
        Ok(decision)
    }

    fn refusal(&self, wanted: &Placement) -> NoPlace {
        let rejected = self
            .index
            .iter()
            .filter_map(|(name, at)| {
                let slot = self.slots.get(*at)?;
                Some((name.clone(), filter::reasons(slot, wanted)))
            })
            .collect();
        NoPlace { rejected }
    }
}

/// A node that fits, with what it is ordered by: weight, then chance.
#[derive(Clone, Copy)]
struct Ranked<'a> {
    weight: u64,
    shuffle: u64,
    slot: &'a Slot,
}

impl Ranked<'_> {
    fn before(&self, other: &Self) -> bool {
        let key = |ranked: &Self| (ranked.weight, ranked.shuffle);
        // Two names with the same hash: still one order.
        key(self) < key(other) || key(self) == key(other) && self.slot.node.name < other.slot.node.name
    }
}

/// Puts a node into the ordered list of the best.
fn insert<'a>(best: &mut [Option<Ranked<'a>>; BEST], ranked: Ranked<'a>) {
    let mut next = Some(ranked);
    for place in best {
        if let Some(candidate) = next
            && place.as_ref().is_none_or(|known| candidate.before(known))
        {
            next = place.replace(candidate);
        }
    }
}

/// Stands for the choice itself, as a node's hash stands for the node.
const CHOICE: u64 = 0x243f_6a88_85a3_08d3;

/// SplitMix64's finalizer over two numbers: cheap, and every bit depends on every bit.
const fn mix(random: u64, hash: u64) -> u64 {
    let mut x = random ^ hash.rotate_left(17);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests;
