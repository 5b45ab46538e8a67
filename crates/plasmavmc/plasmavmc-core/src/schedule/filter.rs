//! Filters: why a node cannot take a VM.
//!
//! [`judge`] alone knows the rules. It goes on for as long as its listener wants: the decision stops at the first
//! reason and builds no text, the explanation hears all.

use std::ops::ControlFlow;

use super::node::{GroupRule, Placement, Slot};
use crate::request::size_text;
use crate::{Hypervisor, NetworkMode};

/// Why a node was not taken. The text is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhyNot {
    /// Its session has ended.
    #[error("its agent does not answer")]
    NotAlive,
    /// It takes no new VMs.
    #[error("it takes no new VMs (cordoned)")]
    NotSchedulable,
    /// It lacks a label.
    #[error("it lacks the label {0}")]
    Label(String),
    /// It connects guests in another way.
    #[error("its network mode is {}", .0.as_str())]
    NetworkMode(NetworkMode),
    /// It does not have the hypervisor.
    #[error("it does not have the hypervisor {}", .0.as_str())]
    Hypervisor(Hypervisor),
    /// It is of another architecture.
    #[error("its architecture is {}", if .0.is_empty() { "not known" } else { .0 })]
    Architecture(String),
    /// It cannot do something.
    #[error("it lacks the feature {0}")]
    Feature(String),
    /// Another member of a strict group must be elsewhere.
    #[error("the group {0} keeps its VMs apart and has one there")]
    Apart(String),
    /// The other members of a strict group are elsewhere.
    #[error("the group {0} keeps its VMs together, elsewhere")]
    Together(String),
    /// Too few CPUs left.
    #[error("{free} virtual CPUs are free of {room}")]
    Vcpus {
        /// What is left.
        free: u32,
        /// What may be claimed in all.
        room: u32,
    },
    /// Too little memory left.
    #[error("{} of memory are free of {}", size_text(*.free), size_text(*.room))]
    Memory {
        /// What is left, in bytes.
        free: u64,
        /// What may be claimed in all, in bytes.
        room: u64,
    },
    /// Too little disk left.
    #[error("{} of disk are free of {}", size_text(*.free), size_text(*.room))]
    Disk {
        /// What is left, in bytes.
        free: u64,
        /// What may be claimed in all, in bytes.
        room: u64,
    },
    /// No NUMA cell has room for all of it.
    #[error("none of its NUMA cells has room for all of it")]
    Cell,
}

/// What hears the reasons against a node.
trait Listener {
    fn against(&mut self, why: impl FnOnce() -> WhyNot) -> ControlFlow<()>;
}

struct First;

impl Listener for First {
    fn against(&mut self, _: impl FnOnce() -> WhyNot) -> ControlFlow<()> {
        ControlFlow::Break(())
    }
}

struct All(Vec<WhyNot>);

impl Listener for All {
    fn against(&mut self, why: impl FnOnce() -> WhyNot) -> ControlFlow<()> {
        self.0.push(why());
        ControlFlow::Continue(())
    }
}

/// True when nothing speaks against the node.
pub(super) fn fits(slot: &Slot, wanted: &Placement) -> bool {
    judge(slot, wanted, &mut First).is_continue()
}

/// Everything that speaks against the node.
pub(super) fn reasons(slot: &Slot, wanted: &Placement) -> Vec<WhyNot> {
    let mut all = All(Vec::new());
    let _ = judge(slot, wanted, &mut all);
    all.0
}

fn judge(slot: &Slot, wanted: &Placement, listener: &mut impl Listener) -> ControlFlow<()> {
    let node = &slot.node;
    if !node.alive {
        listener.against(|| WhyNot::NotAlive)?;
    }
    if !node.schedulable {
        listener.against(|| WhyNot::NotSchedulable)?;
    }
    has_room(slot, wanted, listener)?;
    is_suitable(slot, wanted, listener)?;
    for group in wanted.groups.iter().filter(|group| group.strict) {
        let here = group.members_on(&node.name) > 0;
        match group.rule {
            GroupRule::Apart if here => listener.against(|| WhyNot::Apart(group.name.clone()))?,
            GroupRule::Together if !here && !group.members.is_empty() => {
                listener.against(|| WhyNot::Together(group.name.clone()))?;
            }
            GroupRule::Apart | GroupRule::Together => {}
        }
    }
    ControlFlow::Continue(())
}

fn has_room(slot: &Slot, wanted: &Placement, listener: &mut impl Listener) -> ControlFlow<()> {
    let (free, room, need) = (slot.free, slot.room, wanted.resources);
    if need.vcpus > free.vcpus {
        listener.against(|| WhyNot::Vcpus {
            free: free.vcpus,
            room: room.vcpus,
        })?;
    }
    if need.memory_bytes > free.memory_bytes {
        listener.against(|| WhyNot::Memory {
            free: free.memory_bytes,
            room: room.memory_bytes,
        })?;
    }
    if need.disk_bytes > free.disk_bytes {
        listener.against(|| WhyNot::Disk {
            free: free.disk_bytes,
            room: room.disk_bytes,
        })?;
    }
    if wanted.one_cell && slot.cell_for(wanted).is_none() {
        listener.against(|| WhyNot::Cell)?;
    }
    ControlFlow::Continue(())
}

fn is_suitable(slot: &Slot, wanted: &Placement, listener: &mut impl Listener) -> ControlFlow<()> {
    let node = &slot.node;
    for (key, value) in wanted.node_selector.iter() {
        if node.labels.get(key) != Some(value) {
            listener.against(|| WhyNot::Label(format!("{key}={value}")))?;
        }
    }
    if wanted.network_mode.is_some_and(|mode| mode != node.network_mode) {
        listener.against(|| WhyNot::NetworkMode(node.network_mode))?;
    }
    if !node.hypervisors.contains(&wanted.hypervisor) {
        listener.against(|| WhyNot::Hypervisor(wanted.hypervisor))?;
    }
    if wanted
        .architecture
        .as_ref()
        .is_some_and(|wanted| *wanted != node.architecture)
    {
        listener.against(|| WhyNot::Architecture(node.architecture.clone()))?;
    }
    for feature in &wanted.features {
        if !node.features.contains(feature) {
            listener.against(|| WhyNot::Feature(feature.clone()))?;
        }
    }
    ControlFlow::Continue(())
}
