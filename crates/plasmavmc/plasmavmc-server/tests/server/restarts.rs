//! Servers die in the middle, records disagree: everything converges and nothing leaks.

use std::time::Duration;

use hearth_types::ErrorKind;
use iam_client::{Node, Role};
use plasmavmc_client::types::{Vm, VmCreate, VmState};
use plasmavmc_client::{ClientError, PlasmaClient};

use crate::agent::{SMALL, SimAgent, Size};
use crate::harness::{Cluster, Server, name, until};
use crate::lifecycle::settled;

/// Repeats a creation with its idempotency key through whichever server answers.
async fn create(clients: &[PlasmaClient], vm: &str) -> Vm {
    let (project, request) = (name("default"), VmCreate::new(vm, "tiny"));
    let mut turn = 0;
    until(&format!("{vm} is created"), async || {
        turn += 1;
        match clients[turn % clients.len()]
            .create_vm(&project, &request, Some(vm))
            .await
        {
            Ok(created) => Some(created),
            Err(ClientError::Transport { .. }) => None,
            Err(error) if error.kind() == Some(ErrorKind::Unavailable) => None,
            Err(error) => panic!("{vm}: {error}"),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_are_killed_under_load_and_every_vm_exists_once() {
    const VMS: usize = 24;
    let cluster = Cluster::start().await;
    cluster.world.project("default").unwrap();
    let token = cluster.user("root", Role::Admin, Node::Root);
    let fixed = |server: &Server| {
        let mut config = Cluster::config();
        config.listen = server.address;
        config
    };
    let mut servers = vec![cluster.server("vmc-0").await, cluster.server("vmc-1").await];
    let clients: Vec<_> = servers
        .iter()
        .map(|server| cluster.client(server, &token))
        .collect();
    cluster.import(&clients[0], "tiny").await;
    let hubs: Vec<_> = servers.iter().map(Server::endpoint).collect();
    let size = Size {
        memory_mib: 16384,
        vcpus: 64,
        ..SMALL
    };
    let agent = SimAgent::start(&cluster, "node01", hubs, size).await;
    until("the node registers", async || {
        clients[0].list_nodes().await.unwrap().items.pop()
    })
    .await;

    let load = async {
        let creations = (0..VMS).map(|number| {
            let clients = &clients;
            async move {
                tokio::time::sleep(Duration::from_millis(number as u64 * 60)).await;
                create(clients, &format!("vm-{number}")).await
            }
        });
        futures::future::join_all(creations).await
    };
    let killing = async {
        for round in 0..4 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let victim = servers.remove(0);
            let config = fixed(&victim);
            victim.kill();
            tokio::time::sleep(Duration::from_millis(100)).await;
            servers.push(cluster.server_with(&format!("vmc-{}", round + 2), config).await);
        }
    };
    let (created, ()) = tokio::join!(load, killing);
    let mut ids: Vec<_> = created.iter().map(|vm| vm.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), VMS);
    let project = name("default");
    for vm in &created {
        settled(&clients[0], &project, vm.name.as_str()).await;
    }
    assert_eq!(agent.guests().len(), VMS);
    assert!(
        agent.guests().iter().all(|guest| guest.starts == 1),
        "a guest was started twice"
    );

    for vm in &created {
        clients[0].delete_vm(&project, &vm.name).await.unwrap();
    }
    servers.remove(0).kill();
    until("everything is freed", async || {
        cluster.keys_of_vms().await.is_empty().then_some(())
    })
    .await;
    assert!(agent.guests().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reconciler_repairs_what_disagrees() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], SMALL).await;
    let request = VmCreate::new("web", "tiny");
    until("the VM is placed", async || {
        client.create_vm(&project, &request, None).await.ok()
    })
    .await;
    let vm = settled(&client, &project, "web").await;
    let whole = cluster.keys_of_vms().await;

    // An assignment is lost, a dead VM has left records of each kind behind.
    let dead = "0190d0c0-0000-7000-8000-000000000001";
    let claim = serde_json::json!({"version": 1, "project_id": vm.project_id, "vm": dead}).to_string();
    let assign = serde_json::json!({"version": 1, "project_id": vm.project_id, "epoch": 1, "generation": 1});
    let published = serde_json::json!({"project": "default", "name": "old", "vm": dead,
        "addresses": ["10.77.0.9"], "ttl_s": 30});
    let alloc_key = "/plasmavmc/v1/nodes/node01/alloc";
    let alloc = cluster.store.get(alloc_key).await.unwrap().unwrap();
    let mut claims: serde_json::Value = serde_json::from_slice(&alloc.value).unwrap();
    let amount = claims["alloc"]["claims"][vm.id.to_string()].clone();
    claims["alloc"]["claims"][dead] = amount;
    let leftovers = [
        (
            format!("/plasmavmc/v1/vmnames/{}/old", vm.project_id),
            claim.clone(),
        ),
        ("/plasmavmc/v1/addresses/10.77.0.9".to_owned(), claim.clone()),
        (format!("/plasmavmc/v1/idempotency/{}/key", vm.project_id), claim),
        (format!("/plasmavmc/v1/assign/node01/{dead}"), assign.to_string()),
        (
            "/plasmavmc/v1/names/default/old".to_owned(),
            published.to_string(),
        ),
        (alloc_key.to_owned(), claims.to_string()),
    ];
    for (key, value) in &leftovers {
        cluster.store.put(key, value).await.unwrap();
    }
    cluster
        .store
        .delete(format!("/plasmavmc/v1/assign/node01/{}", vm.id))
        .await
        .unwrap();
    until("the leftovers go and the assignment comes back", async || {
        (cluster.keys_of_vms().await == whole).then_some(())
    })
    .await;
    assert_eq!(client.list_nodes().await.unwrap().items[0].vms, 1);
    client
        .stop_vm(
            &project,
            &name("web"),
            &plasmavmc_client::types::VmStop::default(),
        )
        .await
        .unwrap();
    assert_eq!(settled(&client, &project, "web").await.state, VmState::Stopped);
    client.start_vm(&project, &name("web")).await.unwrap();
    settled(&client, &project, "web").await;
    assert_eq!(cluster.keys_of_vms().await, whole);
    assert_eq!(agent.guests().len(), 1);
}
