//! Placement: examples, properties against an oracle of its own, and planted mistakes that the properties must find.

use std::collections::{BTreeMap, BTreeSet};

use hearth_types::VmId;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::{Alloc, Hypervisor};
use hearth_types::Labels;

const GIB: u64 = 1 << 30;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Labels::try_from(pairs.collect::<BTreeMap<_, _>>()).unwrap()
}

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
        cells: Vec::new(),
        claimed_in_cells: BTreeMap::new(),
        labels: Labels::default(),
        network_mode: NetworkMode::Routed,
        architecture: "x86_64".to_owned(),
        hypervisors: BTreeSet::from([Hypervisor::Kvm]),
        features: BTreeSet::new(),
        images: BTreeSet::new(),
    }
}

fn wanted(gib: u64) -> Placement {
    Placement {
        resources: Resources {
            vcpus: 1,
            memory_bytes: gib * GIB,
            disk_bytes: GIB,
        },
        one_cell: false,
        node_selector: Labels::default(),
        network_mode: None,
        hypervisor: Hypervisor::Kvm,
        architecture: None,
        features: BTreeSet::new(),
        image: None,
        groups: Vec::new(),
    }
}

fn cluster(nodes: impl IntoIterator<Item = NodeView>, policy: Policy) -> Cluster {
    let mut cluster = Cluster::new(policy);
    nodes.into_iter().for_each(|node| cluster.upsert(node));
    cluster
}

fn group(rule: GroupRule, strict: bool, members: &[(&str, u32)]) -> Group {
    Group {
        name: "g".to_owned(),
        rule,
        strict,
        members: members.iter().map(|(node, n)| ((*node).to_owned(), *n)).collect(),
    }
}

/// The nodes that 200 random numbers lead to.
fn chosen(cluster: &Cluster, wanted: &Placement, pick: Pick) -> BTreeSet<String> {
    (0..200)
        .map(|random| cluster.decide(wanted, pick, random).unwrap().node)
        .collect()
}

#[test]
fn spreads_or_packs_and_chance_decides_among_the_best_only() {
    let claims = [2, 0, 0, 5, 0, 5, 0];
    let nodes = || {
        (0..)
            .zip(claims)
            .map(|(i, claimed)| node(&format!("node{i}"), claimed))
    };
    let check = |weigher, pick, expected: &[&str]| {
        let policy = Policy {
            weigher,
            ..Policy::default()
        };
        let found = chosen(&cluster(nodes(), policy), &wanted(1), pick);
        assert_eq!(
            found,
            expected.iter().map(|n| (*n).to_owned()).collect(),
            "{weigher:?} {pick:?}"
        );
    };
    check(Weigher::Spread, Pick::Near, &["node1", "node2", "node4", "node6"]);
    check(Weigher::Pack, Pick::Near, &["node3", "node5"]);
    // Whoever lost a race takes the third best too.
    check(Weigher::Pack, Pick::Best, &["node0", "node3", "node5"]);
}

#[test]
fn every_node_says_every_reason_why_not() {
    let nodes = [
        NodeView {
            alive: false,
            schedulable: false,
            ..node("dead", 7)
        },
        NodeView {
            labels: labels(&[("rack", "a")]),
            network_mode: NetworkMode::User,
            architecture: "aarch64".to_owned(),
            hypervisors: BTreeSet::new(),
            ..node("other", 0)
        },
        NodeView {
            labels: labels(&[("rack", "a")]),
            features: BTreeSet::from(["kvm".to_owned()]),
            cells: vec![
                Cell {
                    vcpus: 4,
                    memory_bytes: GIB
                };
                2
            ],
            ..node("split", 0)
        },
    ];
    let request = Placement {
        node_selector: labels(&[("rack", "a")]),
        network_mode: Some(NetworkMode::Routed),
        architecture: Some("x86_64".to_owned()),
        features: BTreeSet::from(["kvm".to_owned()]),
        one_cell: true,
        groups: vec![
            group(GroupRule::Apart, true, &[("split", 1)]),
            group(GroupRule::Together, true, &[("split", 1)]),
            group(GroupRule::Apart, false, &[("other", 1)]),
        ],
        ..wanted(2)
    };
    let none = cluster(nodes, Policy::default())
        .decide(&request, Pick::Near, 0)
        .unwrap_err();
    expect_test::expect![
        "no node can take the VM: dead: its agent does not answer, it takes no new VMs (cordoned), 1 GiB of memory are free of 8 GiB, it lacks the label rack=a, it lacks the feature kvm, the group g keeps its VMs together, elsewhere; other: its network mode is user, it does not have the hypervisor kvm, its architecture is aarch64, it lacks the feature kvm, the group g keeps its VMs together, elsewhere; split: none of its NUMA cells has room for all of it, the group g keeps its VMs apart and has one there"
    ]
    .assert_eq(&none.to_string());
    let empty = Cluster::default().decide(&wanted(1), Pick::Near, 0).unwrap_err();
    assert!(empty.to_string().contains("no agent"));
    let many = cluster((0..20).map(|n| node(&format!("n{n:02}"), 8)), Policy::default());
    let text = many.decide(&wanted(1), Pick::Near, 0).unwrap_err().to_string();
    assert!(
        text.ends_with("n07: 0 bytes of memory are free of 8 GiB; and 12 more nodes"),
        "{text}"
    );
}

#[test]
fn groups_images_and_cells_weigh_as_they_should() {
    let nodes = || (0..4).map(|i| node(&format!("node{i}"), i));
    let best = |request: &Placement, cluster: &Cluster| {
        let explained = cluster.explain(request);
        assert_eq!(explained.len(), cluster.len());
        let near = chosen(cluster, request, Pick::Near);
        assert!(
            near.contains(&explained[0].node),
            "the explanation's best is not chosen"
        );
        explained[0].node.clone()
    };
    let plain = cluster(nodes(), Policy::default());
    let with = |group| Placement {
        groups: vec![group],
        ..wanted(1)
    };
    assert_eq!(best(&wanted(1), &plain), "node0");
    assert_eq!(
        best(&with(group(GroupRule::Apart, false, &[("node0", 1)])), &plain),
        "node1"
    );
    assert_eq!(
        best(
            &with(group(GroupRule::Apart, true, &[("node0", 1), ("node1", 1)])),
            &plain
        ),
        "node2"
    );
    assert_eq!(
        best(&with(group(GroupRule::Together, false, &[("node3", 1)])), &plain),
        "node3"
    );
    assert_eq!(
        best(&with(group(GroupRule::Together, true, &[("node3", 1)])), &plain),
        "node3"
    );
    // The first of a group goes where it likes; a soft rule that cannot be kept is not kept.
    assert_eq!(
        best(&with(group(GroupRule::Together, true, &[])), &plain),
        "node0"
    );
    assert_eq!(
        best(
            &with(group(
                GroupRule::Apart,
                false,
                &[("node0", 2), ("node1", 1), ("node2", 1), ("node3", 1)]
            )),
            &plain
        ),
        "node1"
    );
    let mut cached = plain.clone();
    cached.upsert(NodeView {
        images: BTreeSet::from(["abc".to_owned()]),
        ..node("node3", 0)
    });
    let image = Placement {
        image: Some("abc".to_owned()),
        ..wanted(1)
    };
    assert_eq!(best(&image, &cached), "node3");

    let cells = NodeView {
        cells: vec![
            Cell {
                vcpus: 4,
                memory_bytes: 4 * GIB,
            },
            Cell {
                vcpus: 4,
                memory_bytes: 3 * GIB,
            },
            Cell {
                vcpus: 4,
                memory_bytes: GIB,
            },
        ],
        ..node("numa", 0)
    };
    let bound = Placement {
        one_cell: true,
        ..wanted(2)
    };
    let decision = cluster([cells], Policy::default())
        .decide(&bound, Pick::Near, 0)
        .unwrap();
    assert_eq!(
        decision.room.cell.unwrap().number,
        1,
        "the cell that it fills most"
    );
}

/// A scheduler under test: the real one, or the real one behind a planted mistake.
type Scheduler = fn(&Cluster, &Placement, u64) -> Result<Decision, NoPlace>;

fn real(cluster: &Cluster, wanted: &Placement, random: u64) -> Result<Decision, NoPlace> {
    cluster.decide(wanted, Pick::Best, random)
}

/// The rules once more, written in another way: what speaks against a node.
fn oracle(node: &NodeView, wanted: &Placement, policy: &Policy) -> usize {
    let base = node.capacity.saturating_sub(policy.reserve);
    let full = |claimed: u64, more: u64, base: u64, percent: u32| {
        (u128::from(claimed) + u128::from(more)) * 100 > u128::from(base) * u128::from(percent) / 100 * 100
    };
    let (need, has) = (wanted.resources, node.claimed);
    let cell_fits = |number: usize, cell: &Cell| {
        let has = node.claimed_in_cells.get(&u16::try_from(number).unwrap());
        let has = has.copied().unwrap_or_default();
        !full(
            has.vcpus.into(),
            need.vcpus.into(),
            cell.vcpus.into(),
            policy.vcpu_percent,
        ) && !full(
            has.memory_bytes,
            need.memory_bytes,
            cell.memory_bytes,
            policy.memory_percent,
        )
    };
    let whole = [Cell {
        vcpus: node.capacity.vcpus,
        memory_bytes: node.capacity.memory_bytes,
    }];
    let cells = if node.cells.is_empty() {
        &whole[..]
    } else {
        &node.cells
    };
    let simple = [
        !node.alive,
        !node.schedulable,
        full(
            has.vcpus.into(),
            need.vcpus.into(),
            base.vcpus.into(),
            policy.vcpu_percent,
        ),
        full(
            has.memory_bytes,
            need.memory_bytes,
            base.memory_bytes,
            policy.memory_percent,
        ),
        full(
            has.disk_bytes,
            need.disk_bytes,
            base.disk_bytes,
            policy.disk_percent,
        ),
        wanted.one_cell
            && !cells
                .iter()
                .enumerate()
                .any(|(number, cell)| cell_fits(number, cell)),
        wanted.network_mode.is_some_and(|mode| mode != node.network_mode),
        !node.hypervisors.contains(&wanted.hypervisor),
        wanted
            .architecture
            .as_ref()
            .is_some_and(|a| *a != node.architecture),
    ];
    let groups = wanted.groups.iter().filter(|group| {
        let here = group.members.contains_key(&node.name);
        let elsewhere = group.members.keys().any(|name| *name != node.name);
        group.strict
            && match group.rule {
                GroupRule::Apart => here,
                GroupRule::Together => !here && elsewhere,
            }
    });
    let selector = wanted.node_selector.iter();
    simple.into_iter().filter(|against| *against).count()
        + groups.count()
        + selector
            .filter(|(key, value)| node.labels.get(key) != Some(*value))
            .count()
        + wanted.features.difference(&node.features).count()
}

/// One step of a history: a request, chance, and whether the oldest VM goes afterwards.
type Asked = (Placement, u64, bool);

/// Plays a history of creations and deletions on a scheduler and judges every answer by the oracle.
fn play(
    scheduler: Scheduler,
    mut nodes: Vec<NodeView>,
    policy: &Policy,
    asked: &[Asked],
) -> Result<(), String> {
    let mut allocs = vec![Alloc::default(); nodes.len()];
    let mut picture = cluster(nodes.clone(), policy.clone());
    let mut placed: BTreeMap<VmId, usize> = BTreeMap::new();
    let (mut apart, mut together): (BTreeMap<String, u32>, BTreeMap<String, u32>) = Default::default();
    for (number, (request, random, goes)) in asked.iter().enumerate() {
        let mut request = request.clone();
        for group in &mut request.groups {
            group.members = match group.rule {
                GroupRule::Apart => apart.clone(),
                GroupRule::Together => together.clone(),
            };
        }
        let vm: VmId = format!("0190d0c0-0000-7000-8000-{number:012}").parse().unwrap();
        let against: Vec<usize> = nodes.iter().map(|node| oracle(node, &request, policy)).collect();
        let mut changed = Vec::new();
        match scheduler(&picture, &request, *random) {
            Ok(decision) => {
                let at = nodes.iter().position(|node| node.name == decision.node).unwrap();
                if against[at] > 0 {
                    return Err(format!("{} cannot take {request:?}", decision.node));
                }
                if allocs[at].claim(vm, request.resources, decision.room).is_err() {
                    return Err(format!("the claim does not fit {}", decision.node));
                }
                for group in &request.groups {
                    let members = match group.rule {
                        GroupRule::Apart => &mut apart,
                        GroupRule::Together => &mut together,
                    };
                    *members.entry(decision.node.clone()).or_default() += 1;
                }
                placed.insert(vm, at);
                changed.push(at);
            }
            Err(none) => {
                let said: Vec<usize> = none.rejected.iter().map(|(_, reasons)| reasons.len()).collect();
                let by_name: BTreeMap<&str, usize> = nodes
                    .iter()
                    .zip(&against)
                    .map(|(node, n)| (node.name.as_str(), *n))
                    .collect();
                if against.contains(&0) {
                    return Err("refused although a node fits".to_owned());
                }
                if said != by_name.into_values().collect::<Vec<_>>() {
                    return Err("not every reason was said, or too many".to_owned());
                }
            }
        }
        if *goes && let Some((vm, at)) = placed.pop_first() {
            allocs[at].release(vm);
            changed.push(at);
        }
        for at in changed {
            nodes[at].claimed = allocs[at].total();
            nodes[at].claimed_in_cells = allocs[at].in_cells();
            picture.upsert(nodes[at].clone());
            if !allocs[at].total().fits_in(policy.room(nodes[at].capacity)) {
                return Err(format!("{} is oversubscribed", nodes[at].name));
            }
        }
    }
    Ok(())
}

fn any_resources() -> impl Strategy<Value = Resources> {
    (0_u32..16, 0_u64..16, 0_u64..64).prop_map(|(vcpus, memory, disk)| Resources {
        vcpus,
        memory_bytes: memory * GIB,
        disk_bytes: disk * GIB,
    })
}

fn any_node() -> impl Strategy<Value = NodeView> {
    let cells = prop::collection::vec((1_u32..8, 1_u64..8), 0..3);
    let flags = (
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.9),
        any::<[bool; 5]>(),
    );
    (any_resources(), cells, flags).prop_map(|(capacity, cells, (alive, schedulable, has))| NodeView {
        alive,
        schedulable,
        capacity,
        claimed: Resources::default(),
        cells: cells
            .into_iter()
            .map(|(vcpus, gib)| Cell {
                vcpus,
                memory_bytes: gib * GIB,
            })
            .collect(),
        labels: if has[0] {
            labels(&[("rack", "a")])
        } else {
            labels(&[("rack", "b")])
        },
        network_mode: if has[1] {
            NetworkMode::Routed
        } else {
            NetworkMode::User
        },
        architecture: if has[2] { "x86_64" } else { "aarch64" }.to_owned(),
        hypervisors: [Hypervisor::Kvm]
            .into_iter()
            .chain(has[3].then_some(Hypervisor::Firecracker))
            .collect(),
        features: has[4].then(|| "kvm".to_owned()).into_iter().collect(),
        ..node("", 0)
    })
}

fn any_request() -> impl Strategy<Value = Placement> {
    let small = (0_u32..6, 0_u64..6, 0_u64..12);
    let wish = || prop::bool::weighted(0.15);
    let wishes = (wish(), wish(), wish(), wish(), wish(), prop::bool::weighted(0.3));
    let groups = (wish(), wish(), any::<bool>());
    (small, wishes, groups).prop_map(|((vcpus, memory, disk), wishes, (apart, together, strict))| {
        let (label, network, architecture, firecracker, feature, one_cell) = wishes;
        Placement {
            resources: Resources {
                vcpus,
                memory_bytes: memory * GIB,
                disk_bytes: disk * GIB,
            },
            one_cell,
            node_selector: if label {
                labels(&[("rack", "a")])
            } else {
                Labels::default()
            },
            network_mode: network.then_some(NetworkMode::Routed),
            hypervisor: if firecracker {
                Hypervisor::Firecracker
            } else {
                Hypervisor::Kvm
            },
            architecture: architecture.then(|| "x86_64".to_owned()),
            features: feature.then(|| "kvm".to_owned()).into_iter().collect(),
            image: None,
            groups: [
                apart.then(|| group(GroupRule::Apart, strict, &[])),
                together.then(|| group(GroupRule::Together, strict, &[])),
            ]
            .into_iter()
            .flatten()
            .collect(),
        }
    })
}

/// Runs histories on a scheduler: the first that shows a mistake, made small.
fn histories(scheduler: Scheduler, cases: u32) -> Result<(), String> {
    let nodes = prop::collection::vec(any_node(), 1..6).prop_map(|nodes| {
        let named = |(i, node)| NodeView {
            name: format!("node{i}"),
            ..node
        };
        nodes.into_iter().enumerate().map(named).collect::<Vec<_>>()
    });
    let asked = prop::collection::vec((any_request(), any::<u64>(), prop::bool::weighted(0.3)), 1..40);
    let policy =
        (50_u32..400, 80_u32..150, any::<bool>(), 0_u64..3).prop_map(|(cpu, memory, pack, reserve)| Policy {
            vcpu_percent: cpu,
            memory_percent: memory,
            disk_percent: 100,
            reserve: Resources {
                vcpus: 0,
                memory_bytes: reserve * GIB,
                disk_bytes: 0,
            },
            weigher: if pack { Weigher::Pack } else { Weigher::Spread },
        });
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(Default::default()),
    )
    .run(&(nodes, policy, asked), |(nodes, policy, asked)| {
        play(scheduler, nodes, &policy, &asked).map_err(TestCaseError::fail)
    })
    .map_err(|error| error.to_string())
}

#[test]
fn never_oversubscribes_and_every_filter_holds_and_says_so() {
    assert_eq!(histories(real, 2000), Ok(()));
}

/// The real scheduler, which sees the nodes through `blind`.
fn blinded(
    cluster: &Cluster,
    wanted: &Placement,
    random: u64,
    blind: impl Fn(&mut NodeView),
) -> Result<Decision, NoPlace> {
    let mut seen = Cluster::new(cluster.policy.clone());
    for slot in &cluster.slots {
        let mut node = slot.node.clone();
        blind(&mut node);
        seen.upsert(node);
    }
    seen.decide(wanted, Pick::Best, random)
}

/// The real scheduler, which hears the request through `deaf`.
fn deafened(
    cluster: &Cluster,
    wanted: &Placement,
    random: u64,
    deaf: impl Fn(&mut Placement),
) -> Result<Decision, NoPlace> {
    let mut heard = wanted.clone();
    deaf(&mut heard);
    cluster.decide(&heard, Pick::Best, random)
}

/// One mistake for each reason there is; a new reason does not compile without one.
fn mutant(why: &WhyNot) -> Scheduler {
    match why {
        WhyNot::NotAlive => |c, w, r| blinded(c, w, r, |node| node.alive = true),
        WhyNot::NotSchedulable => |c, w, r| blinded(c, w, r, |node| node.schedulable = true),
        WhyNot::Label(_) => |c, w, r| deafened(c, w, r, |wanted| wanted.node_selector = Labels::default()),
        WhyNot::NetworkMode(_) => |c, w, r| deafened(c, w, r, |wanted| wanted.network_mode = None),
        WhyNot::Hypervisor(_) => |c, w, r| deafened(c, w, r, |wanted| wanted.hypervisor = Hypervisor::Kvm),
        WhyNot::Architecture(_) => |c, w, r| deafened(c, w, r, |wanted| wanted.architecture = None),
        WhyNot::Feature(_) => |c, w, r| deafened(c, w, r, |wanted| wanted.features.clear()),
        WhyNot::Apart(_) => |c, w, r| {
            deafened(c, w, r, |wanted| {
                wanted.groups.retain(|group| group.rule != GroupRule::Apart);
            })
        },
        WhyNot::Together(_) => |c, w, r| {
            deafened(c, w, r, |wanted| {
                wanted.groups.retain(|group| group.rule != GroupRule::Together);
            })
        },
        WhyNot::Vcpus { .. } => |c, w, r| blinded(c, w, r, |node| node.claimed.vcpus = 0),
        WhyNot::Memory { .. } => |c, w, r| blinded(c, w, r, |node| node.claimed.memory_bytes = 0),
        WhyNot::Disk { .. } => |c, w, r| blinded(c, w, r, |node| node.claimed.disk_bytes = 0),
        WhyNot::Cell => |c, w, r| blinded(c, w, r, |node| node.claimed_in_cells.clear()),
    }
}

#[test]
fn every_planted_mistake_is_found() {
    let text = String::new;
    let (free, room) = (0, 0);
    let reasons = [
        WhyNot::NotAlive,
        WhyNot::NotSchedulable,
        WhyNot::Label(text()),
        WhyNot::NetworkMode(NetworkMode::User),
        WhyNot::Hypervisor(Hypervisor::Kvm),
        WhyNot::Architecture(text()),
        WhyNot::Feature(text()),
        WhyNot::Apart(text()),
        WhyNot::Together(text()),
        WhyNot::Vcpus { free: 0, room: 0 },
        WhyNot::Memory { free, room },
        WhyNot::Disk { free, room },
        WhyNot::Cell,
    ];
    // A reserve that is not kept, cells counted twice, and reasons that are kept back.
    let others: [(&str, Scheduler); 3] = [
        ("the reserve is not kept", |c, w, r| {
            let policy = Policy {
                reserve: Resources::default(),
                ..c.policy.clone()
            };
            cluster(c.slots.iter().map(|slot| slot.node.clone()), policy).decide(w, Pick::Best, r)
        }),
        ("only the first reason is said", |c, w, r| {
            real(c, w, r).map_err(|mut none| {
                none.rejected
                    .iter_mut()
                    .for_each(|(_, reasons)| reasons.truncate(1));
                none
            })
        }),
        ("a busy cluster is called full", |c, w, r| {
            if c.slots.iter().any(|slot| slot.node.claimed.vcpus > 4) {
                return Err(c.refusal(w));
            }
            real(c, w, r)
        }),
    ];
    let mutants = reasons
        .iter()
        .map(|why| (format!("{why:?} is ignored"), mutant(why)));
    let others = others
        .into_iter()
        .map(|(what, scheduler)| (what.to_owned(), scheduler));
    for (what, scheduler) in mutants.chain(others) {
        assert!(histories(scheduler, 400).is_err(), "not found: {what}");
    }
}

proptest! {
    /// The order in which nodes came, and what was known of them before, does not matter.
    #[test]
    fn the_same_picture_gives_the_same_answer(
        nodes in prop::collection::vec((any_node(), any::<u32>()), 1..12),
        request in any_request(),
        random in any::<u64>(),
    ) {
        let named: Vec<(NodeView, u32)> = nodes.into_iter().enumerate()
            .map(|(i, (node, order))| (NodeView { name: format!("node{i}"), ..node }, order)).collect();
        let straight = cluster(named.iter().map(|(node, _)| node.clone()), Policy::default());
        let mut shuffled = named.clone();
        shuffled.sort_by_key(|(_, order)| *order);
        let mut crooked = cluster(shuffled.iter().map(|(node, _)| NodeView { alive: !node.alive, ..node.clone() }), Policy::default());
        crooked.upsert(node("gone", 0));
        for (node, order) in shuffled {
            if order % 2 == 0 {
                crooked.remove(&node.name);
            }
            crooked.upsert(node);
        }
        prop_assert!(crooked.remove("gone") && !crooked.remove("gone"));
        prop_assert_eq!(straight.decide(&request, Pick::Near, random), crooked.decide(&request, Pick::Near, random));
        prop_assert_eq!(straight.explain(&request), crooked.explain(&request));
    }
}
