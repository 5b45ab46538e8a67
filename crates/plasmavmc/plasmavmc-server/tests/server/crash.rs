//! Servers are cut off at every named point of a creation and a deletion; the same requests are repeated at another
//! server: one VM, started once, and nothing of it is left in the end.

use std::time::Duration;

use hearth_types::ErrorKind;
use iam_client::{Node, Role};
use plasmavmc_client::types::{OperationState, Vm, VmCreate};
use plasmavmc_client::{ClientError, PlasmaClient};

use crate::agent::{SMALL, SimAgent};
use crate::harness::{Cluster, name, until};
use crate::lifecycle::{gone, settled};

/// Points that a creation passes, and points that a deletion passes.
const CREATION: [&str; 5] = [
    "create.decided",
    "create.written",
    "assign.telling",
    "observe.heard",
    "observe.written",
];
const DELETION: [&str; 7] = [
    "change.decided",
    "change.written",
    "assign.telling",
    "observe.heard",
    "observe.written",
    "release.decided",
    "release.written",
];

/// Long enough for a point that is passed at all on a loaded machine.
const REACHED: Duration = Duration::from_secs(20);

/// Asks until there is an answer.
async fn insist<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, ClientError>) -> T {
    until(what, async || match ask().await {
        Ok(answer) => Some(answer),
        Err(ClientError::Transport { .. }) => None,
        Err(error) if error.kind() == Some(ErrorKind::Unavailable) => None,
        Err(error) => panic!("{what}: {error}"),
    })
    .await
}

/// Asks once, without waiting for an answer for longer than it takes to reach the point.
async fn ask_and_cut<T>(
    point: &str,
    reached: tokio::sync::oneshot::Receiver<()>,
    ask: impl Future<Output = Result<T, ClientError>>,
) {
    let mut ask = std::pin::pin!(ask);
    let mut reached = std::pin::pin!(tokio::time::timeout(REACHED, reached));
    tokio::select! {
        reached = &mut reached => assert!(matches!(reached, Ok(Ok(()))), "`{point}` was not reached"),
        _ = &mut ask => assert!(matches!(reached.await, Ok(Ok(()))), "`{point}` was not reached"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_die_at_every_point_and_every_vm_exists_once_and_goes_without_a_trace() {
    let cluster = Cluster::start().await;
    cluster.world.project("default").unwrap();
    let token = cluster.user("root", Role::Admin, Node::Root);
    let project = name("default");
    // The server that stays. It sweeps, so that the one that dies does not hold the election.
    let steady = cluster.server("vmc-steady").await;
    let steadily = cluster.client(&steady, &token);
    cluster.import(&steadily, "tiny").await;
    let points = CREATION
        .iter()
        .map(|point| ("create", *point))
        .chain(DELETION.iter().map(|point| ("delete", *point)));
    for (number, (request, point)) in points.enumerate() {
        let victim = cluster.server(&format!("vmc-{number}")).await;
        let agent = SimAgent::start(
            &cluster,
            &format!("node{number}"),
            vec![victim.endpoint(), steady.endpoint()],
            SMALL,
        )
        .await;
        until("the node registers with the server that will die", async || {
            agent
                .memory
                .lock()
                .unwrap()
                .heard
                .contains(&"full sync")
                .then_some(())
        })
        .await;
        let client = cluster.client(&victim, &token);
        let vm = format!("vm-{number}");
        let create = VmCreate {
            node_selector: serde_json::from_value(serde_json::json!({"rack": format!("node{number}")}))
                .unwrap(),
            ..VmCreate::new(&vm, "tiny")
        };
        let key = format!("create-{number}");
        let created: Vm;
        if request == "create" {
            let reached = victim.fail_points.arm(point);
            let ask = client.create_vm(&project, &create, Some(&key));
            ask_and_cut(point, reached, ask).await;
            victim.kill();
            let ask = async || steadily.create_vm(&project, &create, Some(&key)).await;
            created = insist(point, ask).await;
        } else {
            created = client.create_vm(&project, &create, Some(&key)).await.unwrap();
            settled(&client, &project, &vm).await;
            let delete = client.with_idempotency_key(&format!("delete-{number}"));
            let reached = victim.fail_points.arm(point);
            ask_and_cut(point, reached, delete.delete_vm(&project, &name(&vm))).await;
            victim.kill();
        }
        one_vm_and_then_none(&steadily, &agent, &created, request, number).await;
        until("nothing of it is left", async || {
            cluster.keys_of_vms().await.is_empty().then_some(())
        })
        .await;
        assert!(agent.guests().is_empty(), "{request} {point}");
        agent.die().await;
    }
}

async fn one_vm_and_then_none(
    client: &PlasmaClient,
    agent: &SimAgent,
    created: &Vm,
    request: &str,
    number: usize,
) {
    let (project, vm) = (name("default"), created.name.clone());
    if request == "create" {
        let running = settled(client, &project, vm.as_str()).await;
        assert_eq!(running.id, created.id);
        let all = client.all_vms(&project, 10).await.unwrap();
        assert_eq!(all.len(), 1, "{all:?}");
        let guests = agent.guests();
        assert_eq!((guests.len(), guests[0].starts), (1, 1));
    }
    let keyed = client.with_idempotency_key(&format!("delete-{number}"));
    let deleted = insist("the deletion", async || keyed.delete_vm(&project, &vm).await).await;
    gone(client, &project, vm.as_str()).await;
    let again = keyed.delete_vm(&project, &vm).await.unwrap();
    assert_eq!(again, deleted, "the same request is answered alike");
    for answer in [created, &deleted] {
        let id = answer.operation.as_ref().unwrap();
        until("the operation is done", async || {
            let operation = client.get_operation(&project, id).await.unwrap();
            (operation.state == OperationState::Done).then_some(())
        })
        .await;
    }
}
