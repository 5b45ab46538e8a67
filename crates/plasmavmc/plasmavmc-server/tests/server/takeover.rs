//! A node is lost: what may go elsewhere does, once that is proved, and nothing else is touched.

use std::time::{Duration, Instant};

use plasmavmc_client::PlasmaClient;
use plasmavmc_client::guard::{GuardRecord, lease_key, record_key};
use plasmavmc_client::types::{Vm, VmCreate, VmState};

use crate::agent::{SMALL, SimAgent};
use crate::harness::{Cluster, Server, name, until};
use crate::lifecycle::settled;

/// A steady store for 20 s, the margin, a loaded machine.
const TAKES: Duration = Duration::from_secs(90);

/// As a guard does; its lease.
async fn guard(cluster: &Cluster, node: &str) -> i64 {
    let record = GuardRecord {
        version: 1,
        node: node.to_owned(),
        boot_id: "boot".to_owned(),
        incarnation: "run".to_owned(),
        fenced_at_ms: None,
    };
    let value = serde_json::to_vec(&record).unwrap();
    let lease = cluster.store.lease_grant(600).await.unwrap().id();
    cluster.store.put(record_key(node), &value).await.unwrap();
    cluster
        .store
        .put_with_lease(lease_key(node), &value, lease)
        .await
        .unwrap();
    lease
}

async fn create(client: &PlasmaClient, vm: &str, node: &str, ha: bool) -> Vm {
    let mut request = VmCreate::new(vm, "tiny");
    request.ha = ha;
    request.node_selector = if ha {
        hearth_types::Labels::default()
    } else {
        rack(node)
    };
    client.create_vm(&name("default"), &request, None).await.unwrap();
    settled(client, &name("default"), vm).await
}

fn rack(node: &str) -> hearth_types::Labels {
    let labels = std::collections::BTreeMap::from([("rack".to_owned(), node.to_owned())]);
    hearth_types::Labels::try_from(labels).unwrap()
}

async fn why_not(client: &PlasmaClient, vm: &str) -> String {
    let explanation = client.explain_vm(&name("default"), &name(vm)).await.unwrap();
    explanation.restart_elsewhere.unwrap()
}

async fn fenced(cluster: &Cluster, node: &str) -> bool {
    let found = cluster.store.get(record_key(node)).await.unwrap();
    let record = found.map(|kv| serde_json::from_slice::<GuardRecord>(&kv.value).unwrap());
    record.is_some_and(|record| record.fenced_at_ms.is_some())
}

/// Waits as long as a take-over may take.
async fn is_elsewhere(client: &PlasmaClient, before: &Vm) -> Vm {
    let begin = Instant::now();
    loop {
        let vm = client.get_vm(&name("default"), &before.name).await.unwrap();
        if vm.node != before.node && vm.state == VmState::Running {
            println!("elsewhere after {:.1} s", begin.elapsed().as_secs_f64());
            return vm;
        }
        assert!(begin.elapsed() < TAKES, "still {vm:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn nodes(cluster: &Cluster, server: &Server, client: &PlasmaClient) -> Vec<SimAgent> {
    let mut agents = Vec::new();
    for node in ["node01", "node02", "node03"] {
        agents.push(SimAgent::start(cluster, node, vec![server.endpoint()], SMALL).await);
    }
    until("the nodes register", async || {
        (client.list_nodes().await.unwrap().items.len() == 3).then_some(())
    })
    .await;
    agents
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_of_a_lost_node_are_restarted_elsewhere_and_its_own_are_left_alone() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let agents = nodes(&cluster, &server, &client).await;
    let mut leases = std::collections::BTreeMap::new();
    for node in ["node01", "node02"] {
        leases.insert(node.to_owned(), guard(&cluster, node).await);
    }
    let web = create(&client, "web", "", true).await;
    let lost = web.node.clone().unwrap();
    let own = create(&client, "own", &lost, false).await;
    assert!(
        why_not(&client, "own")
            .await
            .contains("its disk is on this node alone")
    );
    if !leases.contains_key(&lost) {
        assert!(why_not(&client, "web").await.contains("no guard has ever run"));
        leases.insert(lost.clone(), guard(&cluster, &lost).await);
    }
    assert!(why_not(&client, "web").await.contains("holds its lease"));
    let agent = agents.iter().find(|agent| agent.node == lost).unwrap();

    // An agent that is gone under a guard that is there is no lost node.
    agent.die().await;
    assert!(why_not(&client, "web").await.contains("holds its lease"));
    cluster.store.lease_revoke(leases[&lost]).await.unwrap();
    let there = is_elsewhere(&client, &web).await;
    assert_eq!((there.epoch, there.address, there.id), (2, web.address, web.id));
    assert!(fenced(&cluster, &lost).await);
    let still = client.get_vm(&project, &own.name).await.unwrap();
    assert_eq!(
        (still.node.as_ref(), still.epoch, still.state),
        (Some(&lost), 1, VmState::Unknown)
    );
    let claims = client.list_nodes().await.unwrap();
    let of = |node: &str| {
        claims
            .items
            .iter()
            .find(|n| n.name == node)
            .unwrap()
            .vcpus_claimed
    };
    assert_eq!((of(&lost), of(there.node.as_deref().unwrap())), (1, 1));

    // It comes back, and finds the old incarnation: that is removed, and the other guest is as it was.
    let hubs = vec![server.endpoint()];
    let back = SimAgent::start_with(&cluster, &lost, hubs, SMALL, agent.memory.clone()).await;
    until("the old incarnation is removed", async || {
        let guests = back.guests();
        let ids: Vec<_> = guests
            .iter()
            .map(|guest| guest.assignment.vm_id.clone())
            .collect();
        (ids == [own.id.to_string()]).then_some(())
    })
    .await;
    assert_eq!(back.guests()[0].starts, 1, "the local guest was never stopped");
    until("nothing is remembered of it", async || {
        cluster
            .store
            .list("/plasmavmc/v1/evicted/")
            .await
            .unwrap()
            .kvs
            .is_empty()
            .then_some(())
    })
    .await;
    let end = client.get_vm(&project, &web.name).await.unwrap();
    assert_eq!(
        (end.node, end.epoch, end.state),
        (there.node, 2, VmState::Running)
    );
}
