//! `cargo xtask-fast bench scheduler`: how many placements PlasmaVMC's scheduler decides a second, in memory, with
//! every decision's claim put into the picture before the next.
//!
//! The nodes differ in size, labels and images; every tenth is cordoned or dead. What a decision costs in the store is
//! not in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hearth_types::Labels;
use plasmavmc_core::{
    Cell, Cluster, Group, GroupRule, Hypervisor, NetworkMode, NodeView, Pick, Placement, Policy, Resources,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Nodes of the clusters measured.
const NODES: [usize; 3] = [100, 1000, 5000];
const GIB: u64 = 1 << 30;

pub(super) fn run(seconds: u64) -> Result<()> {
    println!("nodes  request     decisions/s  p50 us  p99 us  refused");
    for nodes in NODES {
        for (name, fancy) in [("plain", false), ("grouped", true)] {
            measure(nodes, name, fancy, Duration::from_secs(seconds))?;
        }
    }
    println!("load average {:.2}", super::load_average());
    Ok(())
}

fn measure(nodes: usize, name: &str, fancy: bool, length: Duration) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(1);
    let mut cluster = Cluster::new(Policy::default());
    for number in 0..nodes {
        cluster.upsert(node(number, &mut random)?);
    }
    let mut wanted = request(fancy)?;
    let (mut took_us, mut refused) = (Vec::new(), 0_u64);
    let begin = Instant::now();
    while begin.elapsed() < length {
        let at = Instant::now();
        let decided = cluster.decide(&wanted, Pick::Near, random.random());
        let Ok(decision) = decided else {
            refused += 1;
            break;
        };
        // The claim goes into the picture, and an older one out of it, so that the cluster does not fill up.
        let mut changed = cluster
            .node(&decision.node)
            .context("a chosen node is there")?
            .clone();
        changed.claimed = changed.claimed.saturating_add(wanted.resources);
        if changed.claimed.memory_bytes > 16 * GIB {
            changed.claimed = Resources::default();
        }
        cluster.upsert(changed);
        if fancy && took_us.len().is_multiple_of(8) {
            wanted.groups = groups(&decision.node);
        }
        took_us.push(u32::try_from(at.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    let rate = took_us.len() as f64 / begin.elapsed().as_secs_f64();
    took_us.sort_unstable();
    let percentile = |percent: usize| took_us.get(took_us.len() * percent / 100).copied().unwrap_or(0);
    println!(
        "{nodes:>5}  {name:<10} {rate:>12.0} {:>7} {:>7} {refused:>8}",
        percentile(50),
        percentile(99)
    );
    Ok(())
}

fn node(number: usize, random: &mut SmallRng) -> Result<NodeView> {
    let gib = [32, 64, 128].get(number % 3).copied().unwrap_or(32);
    let rack = BTreeMap::from([("rack".to_owned(), format!("rack{}", number % 4))]);
    Ok(NodeView {
        name: format!("node{number:05}"),
        alive: number % 20 != 7,
        schedulable: number % 20 != 13,
        capacity: Resources {
            vcpus: 32,
            memory_bytes: gib * GIB,
            disk_bytes: 1000 * GIB,
        },
        claimed: Resources {
            vcpus: random.random_range(0..16),
            memory_bytes: random.random_range(0..16) * GIB,
            disk_bytes: random.random_range(0..100) * GIB,
        },
        cells: vec![
            Cell {
                vcpus: 16,
                memory_bytes: gib / 2 * GIB
            };
            2
        ],
        claimed_in_cells: BTreeMap::new(),
        labels: Labels::try_from(rack)?,
        network_mode: NetworkMode::Routed,
        architecture: "x86_64".to_owned(),
        hypervisors: BTreeSet::from([Hypervisor::Kvm]),
        features: BTreeSet::from(["kvm".to_owned()]),
        images: if number.is_multiple_of(2) {
            BTreeSet::from(["image".to_owned()])
        } else {
            BTreeSet::new()
        },
    })
}

fn groups(node: &str) -> Vec<Group> {
    vec![Group {
        name: "web".to_owned(),
        rule: GroupRule::Apart,
        strict: true,
        members: BTreeMap::from([(node.to_owned(), 1)]),
    }]
}

fn request(fancy: bool) -> Result<Placement> {
    let selector = if fancy {
        BTreeMap::from([("rack".to_owned(), "rack1".to_owned())])
    } else {
        BTreeMap::new()
    };
    Ok(Placement {
        resources: Resources {
            vcpus: 1,
            memory_bytes: GIB,
            disk_bytes: 4 * GIB,
        },
        one_cell: fancy,
        node_selector: Labels::try_from(selector)?,
        network_mode: None,
        hypervisor: Hypervisor::Kvm,
        architecture: fancy.then(|| "x86_64".to_owned()),
        features: if fancy {
            BTreeSet::from(["kvm".to_owned()])
        } else {
            BTreeSet::new()
        },
        image: Some("image".to_owned()),
        groups: if fancy { groups("node00000") } else { Vec::new() },
    })
}
