//! Placement: examples and properties.

use std::collections::BTreeMap;

use hearth_types::VmId;
use proptest::prelude::*;

use super::*;
use crate::Alloc;

const GIB: u64 = 1 << 30;

fn node(name: &str, claimed_gib: u64) -> NodeView {
    NodeView {
        name: name.to_owned(),
        alive: true,
        schedulable: true,
        capacity: Resources {
            vcpus: 8,
            memory_bytes: 8 * GIB,
            disk_bytes: 100 * GIB,
        },
        claimed: Resources {
            vcpus: 1,
            memory_bytes: claimed_gib * GIB,
            disk_bytes: 0,
        },
        labels: Labels::default(),
        network_mode: NetworkMode::Routed,
    }
}

fn wanted(gib: u64) -> Placement {
    Placement {
        resources: Resources {
            vcpus: 1,
            memory_bytes: gib * GIB,
            disk_bytes: GIB,
        },
        node_selector: Labels::default(),
        network_mode: None,
    }
}

#[test]
fn spreads_or_packs_at_random_among_equals_only() {
    let claims = [2, 0, 0, 5, 0, 5];
    let nodes: Vec<_> = (0..)
        .zip(claims)
        .map(|(i, claimed)| node(&format!("node{i}"), claimed))
        .collect();
    let chosen = |weigher, random| {
        let policy = Policy {
            weigher,
            ..Policy::default()
        };
        place(&nodes, &wanted(1), &policy, random).unwrap().node
    };
    let spread: Vec<_> = (0..4).map(|random| chosen(Weigher::Spread, random)).collect();
    assert_eq!(spread, ["node1", "node2", "node4", "node1"]);
    let pack: Vec<_> = (0..4).map(|random| chosen(Weigher::Pack, random)).collect();
    assert_eq!(pack, ["node3", "node5", "node3", "node5"]);
}

#[test]
fn every_node_says_why_not() {
    let labels = Labels::try_from(BTreeMap::from([("rack".to_owned(), "a".to_owned())])).unwrap();
    let nodes = [
        NodeView {
            alive: false,
            ..node("dead", 0)
        },
        NodeView {
            schedulable: false,
            ..node("cordoned", 0)
        },
        node("unlabelled", 0),
        NodeView {
            labels: labels.clone(),
            network_mode: NetworkMode::User,
            ..node("user", 0)
        },
        NodeView {
            labels: labels.clone(),
            ..node("full", 7)
        },
    ];
    let request = Placement {
        node_selector: labels,
        network_mode: Some(NetworkMode::Routed),
        ..wanted(2)
    };
    expect_test::expect![
        "no node can take the VM: dead: its agent does not answer; cordoned: it takes no new VMs; unlabelled: it lacks the label rack=a; user: its network mode is user; full: 1 GiB of memory are free of 8 GiB"
    ]
    .assert_eq(&place(&nodes, &request, &Policy::default(), 0).unwrap_err().to_string());
    assert!(
        place(&[], &wanted(1), &Policy::default(), 0)
            .unwrap_err()
            .to_string()
            .contains("no agent")
    );
}

fn any_resources() -> impl Strategy<Value = Resources> {
    (0_u32..16, 0_u64..16 * GIB, 0_u64..64 * GIB).prop_map(|(vcpus, memory_bytes, disk_bytes)| Resources {
        vcpus,
        memory_bytes,
        disk_bytes,
    })
}

proptest! {
    /// Any sequence of creates and deletes through place() and claim() leaves every node within its room, the sums
    /// equal to what was placed, and refuses only when truly no node fits.
    #[test]
    fn never_oversubscribes_and_all_claims_sum(
        capacities in prop::collection::vec(any_resources(), 1..6),
        requests in prop::collection::vec((any_resources(), any::<u64>(), any::<bool>()), 1..60),
        vcpu_percent in 50_u32..400,
        pack in any::<bool>(),
    ) {
        let weigher = if pack { Weigher::Pack } else { Weigher::Spread };
        let policy = Policy { vcpu_percent, weigher, ..Policy::default() };
        let mut allocs: Vec<Alloc> = vec![Alloc::default(); capacities.len()];
        let mut placed: BTreeMap<VmId, (usize, Resources)> = BTreeMap::new();
        for (number, (resources, random, delete_one)) in requests.into_iter().enumerate() {
            let nodes: Vec<NodeView> = capacities.iter().zip(&allocs).enumerate()
                .map(|(i, (capacity, alloc))| NodeView { capacity: *capacity, claimed: alloc.total(), ..node(&i.to_string(), 0) })
                .collect();
            let request = Placement { resources, ..wanted(0) };
            let vm: VmId = format!("0190d0c0-0000-7000-8000-{number:012}").parse().unwrap();
            match place(&nodes, &request, &policy, random) {
                Ok(decision) => {
                    let index: usize = decision.node.parse().unwrap();
                    allocs[index].claim(vm, resources, decision.room).unwrap();
                    prop_assert!(allocs[index].claim(vm, resources, decision.room).is_err());
                    placed.insert(vm, (index, resources));
                }
                Err(none) => {
                    prop_assert_eq!(none.rejected.len(), nodes.len());
                    for node in &nodes {
                        let after = node.claimed.checked_add(resources).unwrap();
                        prop_assert!(!after.fits_in(policy.room(node.capacity)));
                    }
                }
            }
            if delete_one && let Some((vm, (index, _))) = placed.pop_first() {
                prop_assert!(allocs[index].release(vm));
                prop_assert!(!allocs[index].release(vm));
            }
            for (index, alloc) in allocs.iter().enumerate() {
                prop_assert!(alloc.total().fits_in(policy.room(capacities[index])));
                let sum = placed.values().filter(|(at, _)| *at == index)
                    .fold(Resources::default(), |sum, (_, amount)| sum.checked_add(*amount).unwrap());
                prop_assert_eq!(alloc.total(), sum);
            }
        }
    }
}
