//! Several servers decide at once; the store is the judge.

use std::collections::{BTreeMap, BTreeSet};

use hearth_types::ErrorKind;
use iam_client::{Node, Role};
use plasmavmc_client::PlasmaClient;
use plasmavmc_client::types::{Vm, VmCreate};

use crate::agent::{SMALL, SimAgent, Size};
use crate::harness::{Cluster, Server, name, until};

pub(crate) const SERVERS: usize = 3;

/// Three servers of one cluster, each with a client of root's.
pub(crate) struct Three {
    pub(crate) servers: Vec<Server>,
    pub(crate) clients: Vec<PlasmaClient>,
}

pub(crate) async fn three(cluster: &Cluster) -> Three {
    cluster.world.project("default").unwrap();
    let token = cluster.user("root", Role::Admin, Node::Root);
    let mut servers = Vec::new();
    for number in 0..SERVERS {
        servers.push(cluster.server(&format!("vmc-{number}")).await);
    }
    let clients: Vec<_> = servers
        .iter()
        .map(|server| cluster.client(server, &token))
        .collect();
    cluster.import(&clients[0], "tiny").await;
    Three { servers, clients }
}

/// Creates VMs through all servers at once: those that were placed, and the kinds of the refusals.
async fn create_all(clients: &[PlasmaClient], names: &[String]) -> (Vec<Vm>, Vec<ErrorKind>) {
    let project = name("default");
    let creations = names.iter().enumerate().map(|(index, vm)| {
        let (client, project) = (&clients[index % clients.len()], &project);
        async move { client.create_vm(project, &VmCreate::new(vm, "tiny"), None).await }
    });
    let (mut placed, mut refused) = (Vec::new(), Vec::new());
    for outcome in futures::future::join_all(creations).await {
        match outcome {
            Ok(vm) => placed.push(vm),
            Err(error) => refused.push(error.kind().unwrap()),
        }
    }
    (placed, refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_servers_fill_the_nodes_exactly() {
    const NODES: usize = 4;
    const PER_NODE: usize = 6;
    const ASKED: usize = 60;
    let cluster = Cluster::start().await;
    let Three { servers, clients } = three(&cluster).await;
    let size = Size {
        vcpus: 64,
        memory_mib: 256 * PER_NODE as u64,
        network: "routed",
        ..SMALL
    };
    let mut agents = Vec::new();
    for node in 0..NODES {
        let hub = servers[node % SERVERS].endpoint();
        agents.push(SimAgent::start(&cluster, &format!("node{node}"), vec![hub], size).await);
    }
    until("all nodes register", async || {
        let nodes = clients[0].list_nodes().await.unwrap().items;
        (nodes.len() == NODES).then_some(())
    })
    .await;

    let names: Vec<_> = (0..ASKED).map(|number| format!("vm-{number}")).collect();
    let (placed, refused) = create_all(&clients, &names).await;
    assert_eq!(placed.len(), NODES * PER_NODE);
    assert_eq!(
        refused,
        vec![ErrorKind::ResourceExhausted; ASKED - NODES * PER_NODE]
    );
    let addresses: BTreeSet<_> = placed.iter().map(|vm| vm.address.unwrap()).collect();
    assert_eq!(addresses.len(), placed.len(), "an address was given twice");

    let nodes = clients[1].list_nodes().await.unwrap().items;
    let mut by_node: BTreeMap<String, u64> = BTreeMap::new();
    for vm in &placed {
        *by_node.entry(vm.node.clone().unwrap()).or_default() += vm.memory_bytes;
    }
    for node in &nodes {
        assert_eq!(
            node.memory_bytes_claimed, node.memory_bytes,
            "{} is not filled exactly",
            node.name
        );
        assert_eq!(by_node.get(&node.name), Some(&node.memory_bytes_claimed));
    }
    until("all guests run", async || {
        let guests: usize = agents.iter().map(|agent| agent.guests().len()).sum();
        (guests == placed.len()).then_some(())
    })
    .await;

    let project = name("default");
    for (index, vm) in placed.iter().enumerate() {
        clients[index % SERVERS]
            .delete_vm(&project, &vm.name)
            .await
            .unwrap();
    }
    until("everything is freed", async || {
        cluster.keys_of_vms().await.is_empty().then_some(())
    })
    .await;
    assert!(agents.iter().all(|agent| agent.guests().is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_name_is_given_once() {
    let cluster = Cluster::start().await;
    let Three { servers, clients } = three(&cluster).await;
    let _agent = SimAgent::start(&cluster, "node01", vec![servers[0].endpoint()], SMALL).await;
    until("the node registers", async || {
        clients[0].list_nodes().await.unwrap().items.pop()
    })
    .await;
    let (placed, refused) = create_all(&clients, &vec!["web".to_owned(); 12]).await;
    assert_eq!(placed.len(), 1);
    assert_eq!(refused, vec![ErrorKind::AlreadyExists; 11]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_network_is_used_to_its_last_address() {
    let cluster = Cluster::start().await;
    cluster.world.project("default").unwrap();
    let token = cluster.user("root", Role::Admin, Node::Root);
    let mut config = Cluster::config();
    // Twelve: sixteen less the network's own, the gateway's, and those that end in 0 and 255.
    config.routed_network = "10.77.9.240/28".parse().unwrap();
    let server = cluster.server_with("vmc-1", config).await;
    let client = cluster.client(&server, &token);
    cluster.import(&client, "tiny").await;
    let size = Size {
        vcpus: 64,
        memory_mib: 8192,
        network: "routed",
        ..SMALL
    };
    let _agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], size).await;
    until("the node registers", async || {
        client.list_nodes().await.unwrap().items.pop()
    })
    .await;
    let names: Vec<_> = (0..16).map(|number| format!("vm-{number}")).collect();
    let (placed, refused) = create_all(&[client], &names).await;
    let addresses: BTreeSet<_> = placed.iter().map(|vm| vm.address.unwrap()).collect();
    assert_eq!((placed.len(), addresses.len()), (13, 13));
    assert_eq!(refused, vec![ErrorKind::ResourceExhausted; 3]);
}
