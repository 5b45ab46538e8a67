//! Quotas, groups, cordons and labels, and what the explanation says of them.

use std::collections::{BTreeMap, BTreeSet};

use hearth_types::{ErrorKind, Labels, Name};
use plasmavmc_client::types::{GroupCreate, GroupRule, Node, NodeUpdate, QuotaLimits, VmCreate};
use plasmavmc_client::{ClientError, PlasmaClient};

use crate::agent::{SMALL, SimAgent};
use crate::harness::{Cluster, Server, name, until};
use crate::lifecycle::gone;

async fn nodes(cluster: &Cluster, server: &Server, client: &PlasmaClient, count: usize) -> Vec<SimAgent> {
    let mut agents = Vec::new();
    for number in 1..=count {
        let node = format!("node{number:02}");
        agents.push(SimAgent::start(cluster, &node, vec![server.endpoint()], SMALL).await);
    }
    until("the nodes register", async || {
        (client.list_nodes().await.unwrap().items.len() == count).then_some(())
    })
    .await;
    agents
}

fn refusal(error: &ClientError) -> String {
    format!("{}: {error}", error.kind().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_holds_under_parallel_creates_and_what_is_used_is_exact() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let _agents = nodes(&cluster, &server, &client, 2).await;
    let token = cluster.user("second", iam_client::Role::Admin, iam_client::Node::Root);
    let other = cluster.server("vmc-2").await;
    let clients = [client.clone(), cluster.client(&other, &token)];
    let limits = QuotaLimits {
        vms: Some(5),
        memory_bytes: Some(1 << 30),
        ..QuotaLimits::default()
    };
    client.set_quota(&project, &limits).await.unwrap();
    let creations = (0..24).map(|number| {
        let (client, project) = (&clients[number % 2], &project);
        let request = VmCreate::new(format!("vm-{number}"), "tiny");
        async move { client.create_vm(project, &request, None).await }
    });
    let (mut placed, mut refused) = (Vec::new(), BTreeSet::new());
    for outcome in futures::future::join_all(creations).await {
        match outcome {
            Ok(vm) => placed.push(vm),
            Err(error) => drop(refused.insert(refusal(&error))),
        }
    }
    // Four of 256 MiB fill the memory before the fifth is asked for.
    assert_eq!(placed.len(), 4);
    expect_test::expect![[r#"
        {
            "resource_exhausted: the project uses 1 GiB of memory, its quota is 1 GiB, and 256 MiB more were asked for; ask for less, delete what is not needed, or have the quota raised; `hearth quota show` shows it",
        }
    "#]]
    .assert_debug_eq(&refused);
    let quota = client.get_quota(&project).await.unwrap();
    assert_eq!(
        (
            quota.limits,
            quota.vms_used,
            quota.vcpus_used,
            quota.memory_bytes_used
        ),
        (limits, 4, 4, 1 << 30)
    );
    let explained = client
        .explain_creation(&project, &VmCreate::new("x", "tiny"))
        .await
        .unwrap();
    assert!(
        !explained.placeable && explained.quota.is_some() && explained.nodes.iter().all(|node| node.fits)
    );

    let unlimited = client.set_quota(&project, &QuotaLimits::default()).await.unwrap();
    assert_eq!(unlimited.vms_used, 4);
    for vm in &placed {
        client.delete_vm(&project, &vm.name).await.unwrap();
    }
    until("nothing is left, the count neither", async || {
        cluster.keys_of_vms().await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vms_of_before_there_were_quotas_are_counted() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let _agents = nodes(&cluster, &server, &client, 1).await;
    for vm in ["one", "two"] {
        client
            .create_vm(&project, &VmCreate::new(vm, "tiny"), None)
            .await
            .unwrap();
    }
    // As an older server leaves it: VMs, and no count.
    let quotas = cluster.store.list("/plasmavmc/v1/quotas/").await.unwrap();
    assert_eq!(quotas.kvs.len(), 1);
    cluster.store.delete(&quotas.kvs[0].key).await.unwrap();
    until("the sweep counts", async || {
        (client.get_quota(&project).await.unwrap().vms_used == 2).then_some(())
    })
    .await;
    let limits = QuotaLimits {
        vms: Some(2),
        ..QuotaLimits::default()
    };
    cluster.store.delete(&quotas.kvs[0].key).await.unwrap();
    // Whoever sets a limit counts at once.
    assert_eq!(client.set_quota(&project, &limits).await.unwrap().vms_used, 2);
    let error = client
        .create_vm(&project, &VmCreate::new("three", "tiny"), None)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("the project has 2 VMs, and its quota is 2;"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_keep_vms_apart_and_together() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let _agents = nodes(&cluster, &server, &client, 3).await;
    let group = |name: &str, rule, strict| GroupCreate {
        name: name.to_owned(),
        rule,
        strict,
    };
    let create = async |vm: &str, group: &str| {
        let mut request = VmCreate::new(vm, "tiny");
        request.groups = vec![group.to_owned()];
        client.create_vm(&project, &request, None).await
    };
    let missing = create("x", "db").await.unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("there is no group `db` in project `default`;"),
        "{missing}"
    );
    client
        .create_group(&project, &group("db", GroupRule::Apart, true))
        .await
        .unwrap();
    client
        .create_group(&project, &group("db", GroupRule::Apart, true))
        .await
        .unwrap();
    let other = client
        .create_group(&project, &group("db", GroupRule::Apart, false))
        .await
        .unwrap_err();
    assert_eq!(other.kind(), Some(ErrorKind::AlreadyExists));
    client
        .create_group(&project, &group("app", GroupRule::Together, true))
        .await
        .unwrap();

    // All at once, so that they race for nodes and for the group.
    let (dbs, apps) = futures::future::join(
        futures::future::join_all((0..5).map(|n| create_in(&client, &project, format!("db-{n}"), "db"))),
        futures::future::join_all((0..5).map(|n| create_in(&client, &project, format!("app-{n}"), "app"))),
    )
    .await;
    let placed: Vec<String> = dbs
        .iter()
        .filter_map(|vm| vm.as_ref().ok()?.node.clone())
        .collect();
    assert_eq!(placed.len(), 3, "one on each node");
    assert_eq!(placed.iter().collect::<BTreeSet<_>>().len(), 3);
    let refused = dbs.iter().find_map(|vm| vm.as_ref().err()).unwrap().to_string();
    assert!(
        refused.contains("node01: the group db keeps its VMs apart and has one there"),
        "{refused}"
    );
    let homes: BTreeSet<_> = apps.iter().map(|vm| vm.as_ref().unwrap().node.clone()).collect();
    assert_eq!(homes.len(), 1, "all on one node");

    let shown = client.get_group(&project, &name("db")).await.unwrap();
    assert_eq!((shown.vms, shown.members.len()), (3, 3));
    let vm = shown.members[0].clone();
    let explained = client.explain_vm(&project, &vm.name).await.unwrap();
    // Without itself, its own node is the only one that fits.
    let fits: Vec<_> = explained.nodes.iter().filter(|node| node.fits).collect();
    assert_eq!(
        (fits.len(), fits[0].current, fits[0].node == vm.node),
        (1, true, true)
    );
    let in_use = client.delete_group(&project, &name("db")).await.unwrap_err();
    assert_eq!(in_use.kind(), Some(ErrorKind::FailedPrecondition));
    client.delete_vm(&project, &vm.name).await.unwrap();
    gone(&client, &project, vm.name.as_str()).await;
    assert_eq!(client.get_group(&project, &name("db")).await.unwrap().vms, 2);
    let again = create("db-9", "db").await.unwrap();
    assert_eq!(again.node, Some(vm.node), "the node that was freed");
    assert_eq!(client.list_groups(&project).await.unwrap().items.len(), 2);
}

async fn create_in(
    client: &PlasmaClient,
    project: &Name,
    vm: String,
    group: &str,
) -> Result<plasmavmc_client::types::Vm, ClientError> {
    let mut request = VmCreate::new(vm, "tiny");
    request.groups = vec![group.to_owned()];
    client.create_vm(project, &request, None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cordoned_node_gets_nothing_and_labels_lead_to_others() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let agents = nodes(&cluster, &server, &client, 2).await;
    let change = async |node: &str, change: NodeUpdate| -> Node {
        client.update_node(&name(node), &change).await.unwrap()
    };
    let cordon = |schedulable| NodeUpdate {
        schedulable: Some(schedulable),
        ..NodeUpdate::default()
    };
    let label = |value: Option<&str>| NodeUpdate {
        labels: BTreeMap::from([("tier".to_owned(), value.map(str::to_owned))]),
        ..NodeUpdate::default()
    };
    assert!(!change("node01", cordon(false)).await.schedulable);
    for number in 0..3 {
        let vm = client
            .create_vm(&project, &VmCreate::new(format!("vm-{number}"), "tiny"), None)
            .await
            .unwrap();
        assert_eq!(vm.node.as_deref(), Some("node02"));
    }
    let labelled = change("node01", label(Some("gold"))).await;
    assert_eq!(
        (labelled.labels.get("tier"), labelled.labels.get("rack")),
        (Some("gold"), Some("node01"))
    );
    let mut request = VmCreate::new("golden", "tiny");
    request.node_selector =
        Labels::try_from(BTreeMap::from([("tier".to_owned(), "gold".to_owned())])).unwrap();
    let refused = client
        .create_vm(&project, &request, None)
        .await
        .unwrap_err()
        .to_string();
    let expected = "no node can take the VM: node01: it takes no new VMs (cordoned); node02: it lacks the label tier=gold;";
    assert!(refused.starts_with(expected), "{refused}");
    let explained = client.explain_creation(&project, &request).await.unwrap();
    let reasons: Vec<_> = explained
        .nodes
        .iter()
        .map(|node| (node.node.as_str(), node.reasons.join(", ")))
        .collect();
    let expected = [
        ("node01", "it takes no new VMs (cordoned)"),
        ("node02", "it lacks the label tier=gold"),
    ];
    assert_eq!(reasons, expected.map(|(node, why)| (node, why.to_owned())));

    // What people have set outlives the agent's connection.
    agents[0].die().await;
    let _again = SimAgent::start(&cluster, "node01", vec![server.endpoint()], SMALL).await;
    until("the node registers again", async || {
        let node = client.get_node(&name("node01")).await.unwrap();
        (node.state == plasmavmc_client::types::NodeState::Ready).then_some(())
    })
    .await;
    let node = client.get_node(&name("node01")).await.unwrap();
    assert!(!node.schedulable && node.labels.get("tier") == Some("gold"));
    change("node01", cordon(true)).await;
    let vm = client.create_vm(&project, &request, None).await.unwrap();
    assert_eq!(vm.node.as_deref(), Some("node01"));
    assert_eq!(change("node01", label(None)).await.labels.get("tier"), None);
    let ghost = client
        .update_node(&name("ghost"), &cordon(false))
        .await
        .unwrap_err();
    assert!(ghost.is_not_found());
    let bad = NodeUpdate {
        labels: BTreeMap::from([("Bad Key".to_owned(), Some("x".to_owned()))]),
        ..NodeUpdate::default()
    };
    let bad = client.update_node(&name("node01"), &bad).await.unwrap_err();
    assert_eq!(bad.kind(), Some(ErrorKind::InvalidArgument));
}
