//! Three schedulers fill many nodes through a real Chainfire, to the last slot and not one further.
//!
//! The nodes are simulated: their records and sessions stand in the store, no agent is behind them. By default a
//! fraction of the size; `HEARTH_TEST_FILL=full` takes 5000 creates for 4000 slots on 200 nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use futures::StreamExt;
use hearth_types::{ErrorKind, Name};
use plasmavmc_client::PlasmaClient;
use plasmavmc_client::types::{QuotaLimits, Vm, VmCreate};

use crate::harness::{Cluster, PATIENCE, name};
use crate::races::{SERVERS, Three, three};

/// VMs that a node has room for.
const PER_NODE: usize = 20;
/// Creates under way at once.
const AT_ONCE: usize = 300;
/// VMs that the second project may have; it asks for many more.
const QUOTA: u32 = 50;
/// Answers that say "again" in a row before the test gives up.
const MAX_AGAIN: u32 = 60;

struct Size {
    nodes: usize,
    creates: usize,
}

fn size() -> Size {
    match std::env::var("HEARTH_TEST_FILL") {
        Ok(full) if full == "full" => Size {
            nodes: 200,
            creates: 5000,
        },
        _ => Size {
            nodes: 20,
            creates: 500,
        },
    }
}

/// Writes a node as an agent's session would have left it. Its room is exactly `PER_NODE` VMs of the default size.
async fn simulate(cluster: &Cluster, lease: i64, node: &str) {
    let info = serde_json::json!({
        "version": 1, "network_mode": "routed", "accelerator": "tcg", "accelerator_reason": "simulated",
        "capacity": {"vcpus": 64, "memory_bytes": (256_u64 << 20) * PER_NODE as u64, "disk_bytes": 1_u64 << 40},
        "labels": {}, "agent_version": "sim", "boot_id": "boot", "schedulable": true,
    });
    let info_key = format!("/plasmavmc/v1/nodes/{node}/info");
    cluster.store.put(&info_key, info.to_string()).await.unwrap();
    let session = format!("/plasmavmc/v1/sessions/{node}");
    cluster.store.put_with_lease(&session, "{}", lease).await.unwrap();
}

/// One creation, repeated with its key for as long as the answer is "again".
async fn create(client: &PlasmaClient, project: &Name, vm: String) -> Result<Vm, (ErrorKind, String)> {
    let request = VmCreate::new(&vm, "tiny");
    let key = format!("fill-{vm}");
    let mut again = 0;
    loop {
        match client.create_vm(project, &request, Some(&key)).await {
            Ok(vm) => return Ok(vm),
            Err(error) => match error.kind().unwrap() {
                ErrorKind::Unavailable | ErrorKind::DeadlineExceeded if again < MAX_AGAIN => again += 1,
                kind => return Err((kind, error.to_string())),
            },
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_slot_is_filled_once_and_quotas_are_exact() {
    let Size { nodes, creates } = size();
    let slots = nodes * PER_NODE;
    let cluster = Cluster::start_on_chainfire().await;
    let Three { servers, clients } = three(&cluster).await;
    cluster.world.project("limited").unwrap();
    let lease = cluster.store.lease_grant(3600).await.unwrap();
    let simulated = (0..nodes).map(|number| {
        let (cluster, lease) = (&cluster, lease.id());
        async move { simulate(cluster, lease, &format!("node{number:03}")).await }
    });
    futures::stream::iter(simulated)
        .buffer_unordered(32)
        .collect::<Vec<()>>()
        .await;
    let limits = QuotaLimits {
        vms: Some(QUOTA),
        ..QuotaLimits::default()
    };
    let (open, limited) = (name("default"), name("limited"));
    clients[0].set_quota(&limited, &limits).await.unwrap();

    let begin = Instant::now();
    // Every fifth asks in the project with a quota; in all there are always more than there is room for.
    let work = (0..creates).map(|number| {
        let project = if number % 5 == 0 { &limited } else { &open };
        let client = &clients[number % SERVERS];
        async move { (project, create(client, project, format!("vm-{number}")).await) }
    });
    let outcomes: Vec<_> = futures::stream::iter(work)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let took = begin.elapsed();

    let (mut placed, mut refused): (Vec<&Vm>, BTreeMap<&str, usize>) = Default::default();
    let mut by_project: BTreeMap<&Name, u32> = BTreeMap::new();
    for (project, outcome) in &outcomes {
        match outcome {
            Ok(vm) => {
                *by_project.entry(project).or_default() += 1;
                placed.push(vm);
            }
            Err((ErrorKind::ResourceExhausted, text)) if text.starts_with("no node can take the VM") => {
                *refused.entry("no node").or_default() += 1;
            }
            Err((ErrorKind::ResourceExhausted, text)) if text.starts_with("the project has 50 VMs") => {
                *refused.entry("quota").or_default() += 1;
            }
            Err(other) => panic!("refused for another reason: {other:?}"),
        }
    }
    eprintln!(
        "{creates} creates for {slots} slots on {nodes} nodes through {SERVERS} servers: {} placed, refused {refused:?}, \
         {took:.1?}, {:.0} placed a second",
        placed.len(),
        placed.len() as f64 / took.as_secs_f64()
    );
    let in_limited = by_project.get(&limited).copied().unwrap_or(0);
    assert!(
        in_limited <= QUOTA,
        "{in_limited} VMs in a project that may have {QUOTA}"
    );
    let open_asked = creates - creates.div_ceil(5);
    assert_eq!(
        placed.len(),
        slots.min(open_asked + in_limited as usize),
        "not filled exactly"
    );
    check(&cluster, &clients[1], &placed, &by_project).await;
    drop(servers);
}

/// What the store holds is what was answered: no address twice, no node over its room, quotas that are sums.
async fn check(cluster: &Cluster, client: &PlasmaClient, placed: &[&Vm], by_project: &BTreeMap<&Name, u32>) {
    let ids: BTreeSet<_> = placed.iter().map(|vm| vm.id).collect();
    let addresses: BTreeSet<_> = placed.iter().map(|vm| vm.address.unwrap()).collect();
    assert_eq!(
        (ids.len(), addresses.len()),
        (placed.len(), placed.len()),
        "given twice"
    );
    let mut by_node: BTreeMap<&str, u32> = BTreeMap::new();
    for vm in placed {
        *by_node.entry(vm.node.as_deref().unwrap()).or_default() += 1;
    }
    for node in client.list_nodes().await.unwrap().items {
        let answered = by_node.get(node.name.as_str()).copied().unwrap_or(0);
        assert_eq!(node.vms, answered, "{}: claims and answers differ", node.name);
        assert!(
            node.memory_bytes_claimed <= node.memory_bytes,
            "{} is oversubscribed",
            node.name
        );
    }
    for (project, vms) in by_project {
        let quota = client.get_quota(project).await.unwrap();
        let used = (quota.vms_used, quota.vcpus_used, quota.memory_bytes_used);
        assert_eq!(used, (*vms, *vms, u64::from(*vms) * (256 << 20)), "{project}");
    }
    for prefix in ["vms", "vmnames", "addresses", "assign"] {
        let listing = cluster
            .store
            .with_deadline(PATIENCE)
            .list(format!("/plasmavmc/v1/{prefix}/"))
            .await;
        assert_eq!(listing.unwrap().kvs.len(), placed.len(), "{prefix}");
    }
}
