//! Operations: each request to a VM has one, and it ends whatever dies on the way.

use std::time::Duration;

use hearth_types::Name;
use iam_client::{Node, Role};
use plasmavmc_client::PlasmaClient;
use plasmavmc_client::types::{Operation, OperationState, PageQuery, Vm, VmCreate, VmStop};

use crate::agent::{SMALL, SimAgent};
use crate::harness::{Cluster, name, until};
use crate::lifecycle::{gone, settled};

async fn get(client: &PlasmaClient, project: &Name, vm: &Vm) -> Operation {
    let id = vm.operation.as_ref().expect("a request to a VM has an operation");
    client.get_operation(project, id).await.unwrap()
}

async fn ended(client: &PlasmaClient, project: &Name, vm: &Vm) -> Operation {
    until(&format!("{:?} ends", vm.operation), async || {
        let operation = get(client, project, vm).await;
        operation.ended_at.is_some().then_some(operation)
    })
    .await
}

fn steps(operation: &Operation) -> Vec<&str> {
    operation.steps.iter().map(|step| step.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_to_a_vm_has_an_operation_that_ends() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let _agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], SMALL).await;
    let (web, how) = (name("web"), VmStop::default());
    let request = VmCreate::new("web", "tiny");
    let created = until("the VM is placed", async || {
        client.create_vm(&project, &request, None).await.ok()
    })
    .await;
    let mut ids = Vec::new();
    let mut check = async |kind: &str, vm: Vm| {
        let operation = ended(&client, &project, &vm).await;
        assert_eq!(
            (
                operation.kind.as_str(),
                operation.state,
                operation.error.as_deref()
            ),
            (kind, OperationState::Done, None)
        );
        assert_eq!((operation.who.as_str(), operation.vm.as_str()), ("root", "web"));
        assert_eq!(steps(&operation).first(), Some(&"accepted"));
        assert_eq!(steps(&operation).last(), Some(&"done"));
        ids.push(operation.id);
    };
    check("create", created.clone()).await;
    check("pause", client.pause_vm(&project, &web).await.unwrap()).await;
    check("resume", client.resume_vm(&project, &web).await.unwrap()).await;
    check("reset", client.reset_vm(&project, &web).await.unwrap()).await;
    check("stop", client.stop_vm(&project, &web, &how).await.unwrap()).await;
    check("start", client.start_vm(&project, &web).await.unwrap()).await;
    // It runs already: the operation of that is done where it begins, and changes nothing.
    let again = client.start_vm(&project, &web).await.unwrap();
    assert_eq!(get(&client, &project, &again).await.state, OperationState::Done);
    check("start", again).await;
    check("delete", client.delete_vm(&project, &web).await.unwrap()).await;
    gone(&client, &project, "web").await;

    let seen = client.all_operations(&project, 100).await.unwrap();
    let seen: Vec<_> = seen.into_iter().map(|operation| operation.id).collect();
    assert_eq!(seen, ids, "the list is in the order of asking");
    let page = PageQuery {
        page_size: Some(3),
        page_token: None,
    };
    let first = client.list_operations(&project, &page).await.unwrap();
    assert_eq!((first.items.len(), first.next_page_token.is_some()), (3, true));
    for unknown in ["0190d0c0-0000-7000-8000-000000000001", "../vms/web", "x"] {
        let error = client.get_operation(&project, unknown).await.unwrap_err();
        assert!(error.is_not_found(), "{unknown}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_survives_its_server_and_ends_when_another_one_follows() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], SMALL).await;
    until("the node registers", async || {
        client.list_nodes().await.unwrap().items.pop()
    })
    .await;
    // The agent is not there, but its node's lease is.
    agent.hang_up().await;
    let pending = client
        .create_vm(&project, &VmCreate::new("web", "tiny"), None)
        .await
        .unwrap();
    let other = client
        .create_vm(&project, &VmCreate::new("db", "tiny"), None)
        .await
        .unwrap();
    assert_eq!(
        get(&client, &project, &pending).await.state,
        OperationState::Pending
    );
    let deleting = client.delete_vm(&project, &name("db")).await.unwrap();
    let superseded = get(&client, &project, &other).await;
    assert_eq!(superseded.state, OperationState::Failed);
    let why = superseded.error.unwrap();
    assert!(
        why.starts_with("`delete` was asked for meanwhile by root (operation "),
        "{why}"
    );
    server.kill();

    let token = cluster.user("ada", Role::Admin, Node::Root);
    let server = cluster.server("vmc-2").await;
    let client = cluster.client(&server, &token);
    assert_eq!(
        get(&client, &project, &pending).await.state,
        OperationState::Pending
    );
    let _agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], SMALL).await;
    for vm in [&pending, &deleting] {
        assert_eq!(
            ended(&client, &project, vm).await.state,
            OperationState::Done,
            "{}",
            vm.name
        );
    }
    settled(&client, &project, "web").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reconciler_ends_what_nothing_else_ends_and_forgets_it_in_time() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], SMALL).await;
    until("the node registers", async || {
        client.list_nodes().await.unwrap().items.pop()
    })
    .await;
    agent.hang_up().await;
    let pending = client
        .create_vm(&project, &VmCreate::new("web", "tiny"), None)
        .await
        .unwrap();
    // One whose VM is gone, as an older server leaves it behind.
    let id = pending.operation.clone().unwrap();
    let key = format!("/plasmavmc/v1/operations/{}/{id}", pending.project_id);
    let record = cluster.store.get(&key).await.unwrap().unwrap();
    let mut orphan: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
    let orphan_id = "0190d0c0-0000-7000-8000-000000000001";
    orphan["id"] = orphan_id.into();
    orphan["vm"] = orphan_id.into();
    let orphan_key = key.replace(&id, orphan_id);
    cluster.store.put(&orphan_key, &orphan.to_string()).await.unwrap();
    let orphaned = until("the orphan ends", async || {
        let found = client.get_operation(&project, orphan_id).await.unwrap();
        (found.state == OperationState::Failed).then_some(found)
    })
    .await;
    assert_eq!(orphaned.error.as_deref(), Some("the VM is gone"));
    assert_eq!(
        get(&client, &project, &pending).await.state,
        OperationState::Pending
    );
    server.stop().await;

    let mut config = Cluster::config();
    config.operation_limit_s = 1;
    let token = cluster.user("ada", Role::Admin, Node::Root);
    let impatient = cluster.server_with("vmc-2", config).await;
    let client = cluster.client(&impatient, &token);
    let late = ended(&client, &project, &pending).await;
    let why = late.error.unwrap();
    assert!(why.contains("it is still being tried"), "{why}");
    impatient.stop().await;

    let mut config = Cluster::config();
    config.operation_memory_s = 1;
    let forgetful = cluster.server_with("vmc-3", config).await;
    let client = cluster.client(&forgetful, &token);
    until("what has ended is forgotten", async || {
        let left = client.all_operations(&project, 100).await.unwrap();
        left.is_empty().then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    // What is open is not: the VM's next operation.
    let open = client.delete_vm(&project, &name("web")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(get(&client, &project, &open).await.state, OperationState::Pending);
}
