//! Weights: which of the nodes that fit is best. The lightest is.

use super::node::{GroupRule, Placement, Slot};
use super::{Policy, Weigher};
use crate::Resources;

/// A whole, in millionths.
const WHOLE: u64 = 1_000_000;
/// A rule of a group that only weighs counts more than any share of room.
const GROUP: u64 = 10 * WHOLE;
/// A node that has to fetch the image first weighs as if it were so much fuller.
const IMAGE: u64 = 50_000;

/// How a node weighs, in millionths. Lighter is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// How full it would be in its scarcest respect; with [`Weigher::Pack`]: how empty.
    pub room: u64,
    /// Groups that would rather have the VM elsewhere.
    pub groups: u64,
    /// It does not hold the image.
    pub image: u64,
}

impl Weight {
    /// The sum.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.room.saturating_add(self.groups).saturating_add(self.image)
    }
}

pub(super) fn weigh(slot: &Slot, wanted: &Placement, policy: &Policy) -> Weight {
    let fullness = fullness(slot, wanted.resources);
    let room = match policy.weigher {
        Weigher::Spread => fullness,
        Weigher::Pack => WHOLE.saturating_sub(fullness),
    };
    let image = wanted
        .image
        .as_ref()
        .is_some_and(|image| !slot.node.images.contains(image));
    Weight {
        room,
        groups: groups(slot, wanted),
        image: if image { IMAGE } else { 0 },
    }
}

/// How full the node would be in its scarcest respect.
fn fullness(slot: &Slot, wanted: Resources) -> u64 {
    // In MiB, so that the product with a million stays far below 64 bits.
    let share = |claimed: u64, more: u64, room: u64| {
        (claimed.saturating_add(more)).saturating_mul(WHOLE) / room.max(1)
    };
    let mib = |bytes: u64| bytes >> 20;
    let (claimed, room) = (slot.node.claimed, slot.room);
    share(claimed.vcpus.into(), wanted.vcpus.into(), room.vcpus.into())
        .max(share(
            mib(claimed.memory_bytes),
            mib(wanted.memory_bytes),
            mib(room.memory_bytes),
        ))
        .max(share(
            mib(claimed.disk_bytes),
            mib(wanted.disk_bytes),
            mib(room.disk_bytes),
        ))
}

fn groups(slot: &Slot, wanted: &Placement) -> u64 {
    let soft = wanted.groups.iter().filter(|group| !group.strict);
    soft.map(|group| {
        let here = u64::from(group.members_on(&slot.node.name));
        match group.rule {
            GroupRule::Apart => here.saturating_mul(GROUP),
            GroupRule::Together if here == 0 && !group.members.is_empty() => GROUP,
            GroupRule::Together => 0,
        }
    })
    .fold(0, u64::saturating_add)
}
