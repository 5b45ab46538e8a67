//! A VM's life through the interface.

use plasmavmc_client::names;
use plasmavmc_client::types::{NodeState, Power, Vm, VmCreate, VmState, VmStop};
use plasmavmc_client::{ClientError, PlasmaClient};

use hearth_types::{ErrorKind, Name};

use crate::agent::{SMALL, SimAgent, Size};
use crate::harness::{Cluster, name, until};

pub(crate) async fn settled(client: &PlasmaClient, project: &Name, vm: &str) -> Vm {
    until(&format!("{vm} settles"), async || {
        let vm = client.get_vm(project, &name(vm)).await.unwrap();
        vm.is_settled().then_some(vm)
    })
    .await
}

pub(crate) async fn gone(client: &PlasmaClient, project: &Name, vm: &str) {
    until(&format!("{vm} goes"), async || {
        client
            .get_vm(project, &name(vm))
            .await
            .err()
            .filter(ClientError::is_not_found)
    })
    .await;
}

fn kind(error: &ClientError) -> ErrorKind {
    error.kind().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_is_created_stopped_started_and_deleted_and_nothing_is_left() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], SMALL).await;
    until("the node registers", async || {
        client
            .list_nodes()
            .await
            .unwrap()
            .items
            .pop()
            .filter(|node| node.state == NodeState::Ready)
    })
    .await;

    let mut request = VmCreate::new("web", "tiny");
    request.ssh_keys = vec!["ssh-ed25519 AAAA me".to_owned()];
    let vm = client.create_vm(&project, &request, None).await.unwrap();
    assert_eq!(
        (vm.state, vm.generation, vm.observed_generation),
        (VmState::Scheduled, 1, 0)
    );
    assert_eq!(vm.node.as_deref(), Some("node01"));
    assert_eq!(vm.dns_name, "web.default.hearth.test");
    let vm = settled(&client, &project, "web").await;
    assert_eq!(
        (vm.state, vm.accelerator.as_deref()),
        (VmState::Running, Some("tcg"))
    );

    let guest = agent.guests().pop().unwrap();
    let spec = guest.assignment.spec.unwrap();
    assert_eq!((spec.hostname.as_str(), spec.ssh_keys.len()), ("web", 1));
    let nic = spec.nic.unwrap();
    assert_eq!(Some(nic.address.parse().unwrap()), vm.address);
    assert_eq!((nic.gateway.as_str(), nic.prefix_length), ("10.77.0.1", 16));
    let key = names::key(&project, &name("web"));
    let published = cluster
        .store
        .get(&key)
        .await
        .unwrap()
        .expect("a running VM has a name");
    let published = names::parse(&published.key, &published.value).unwrap();
    assert_eq!(
        (published.vm, published.addresses),
        (vm.id, vec![vm.address.unwrap()])
    );

    let stopping = client
        .stop_vm(&project, &name("web"), &VmStop::default())
        .await
        .unwrap();
    assert_eq!((stopping.desired_power, stopping.generation), (Power::Off, 2));
    let stopped = settled(&client, &project, "web").await;
    assert_eq!(stopped.state, VmState::Stopped);
    assert!(
        cluster.store.get(&key).await.unwrap().is_none(),
        "a stopped VM has no name"
    );
    let again = client
        .stop_vm(&project, &name("web"), &VmStop::default())
        .await
        .unwrap();
    assert_eq!(again.generation, 2, "a second stop changes nothing");

    client.start_vm(&project, &name("web")).await.unwrap();
    let vm = settled(&client, &project, "web").await;
    assert_eq!((vm.state, vm.generation), (VmState::Running, 3));
    client.reset_vm(&project, &name("web")).await.unwrap();
    settled(&client, &project, "web").await;
    assert_eq!(agent.guests()[0].resets, 1);

    let deleting = client.delete_vm(&project, &name("web")).await.unwrap();
    assert_eq!(deleting.state, VmState::Deleting);
    gone(&client, &project, "web").await;
    assert!(agent.guests().is_empty());
    assert_eq!(cluster.keys_of_vms().await, Vec::<String>::new());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_carries_bytes_both_ways() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let _agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], SMALL).await;
    let not_there = client.console(&project, &name("web")).await.unwrap_err();
    assert_eq!(kind(&not_there), ErrorKind::NotFound);
    let request = VmCreate {
        start: false,
        ..VmCreate::new("web", "tiny")
    };
    until("the VM is placed", async || {
        client.create_vm(&project, &request, None).await.ok()
    })
    .await;
    settled(&client, &project, "web").await;
    let off = client.console(&project, &name("web")).await.unwrap_err();
    assert_eq!(kind(&off), ErrorKind::FailedPrecondition);
    client.start_vm(&project, &name("web")).await.unwrap();
    settled(&client, &project, "web").await;

    let mut console = client.console(&project, &name("web")).await.unwrap();
    assert_eq!(console.recv().await.unwrap().unwrap(), "login: ");
    console.send("hello").await.unwrap();
    assert_eq!(console.recv().await.unwrap().unwrap(), "HELLO");
    console.send("bye").await.unwrap();
    assert_eq!(console.recv().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_what_and_why_and_leave_nothing() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let nobody = client
        .create_vm(&project, &VmCreate::new("web", "tiny"), None)
        .await
        .unwrap_err();
    assert_eq!(kind(&nobody), ErrorKind::ResourceExhausted);
    assert!(
        nobody.to_string().contains("no agent has registered yet"),
        "{nobody}"
    );

    let small = Size {
        memory_mib: 128,
        ..SMALL
    };
    let _agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], small).await;
    until("the node registers", async || {
        client.list_nodes().await.unwrap().items.pop()
    })
    .await;
    let refused = async |change: fn(&mut VmCreate)| {
        let mut request = VmCreate::new("web", "tiny");
        change(&mut request);
        let error = client.create_vm(&project, &request, None).await.unwrap_err();
        format!("{}: {error}", kind(&error))
    };
    assert_eq!(
        refused(|_| {}).await,
        "resource_exhausted: no node can take the VM: node01: 128 MiB of memory are free of 128 MiB; ask for less, \
         delete what is not needed, or add a node; `hearth node list` shows the room, and `hearth vm create --explain` \
         every node's reasons"
    );
    assert_eq!(
        refused(|request| request.memory_bytes = 0).await,
        "invalid_argument: 0 bytes of memory are not possible; ask for 64 MiB to 1 TiB"
    );
    assert_eq!(
        refused(|request| request.name = "../../x".to_owned()).await,
        "invalid_argument: the name `../../x` has the character `.`; use a-z, 0-9 and -"
    );
    assert_eq!(
        refused(|request| request.image = "windows".to_owned()).await,
        "invalid_argument: there is no image `windows`; `hearth image list` shows the images there are"
    );
    assert_eq!(cluster.keys_of_vms().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_idempotency_key_gives_the_same_vm() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let _agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], SMALL).await;
    let request = VmCreate::new("web", "tiny");
    let create = async |request: &VmCreate, key| client.create_vm(&project, request, Some(key)).await;
    let first = until("the VM is placed", async || create(&request, "key-1").await.ok()).await;
    let (a, b) = tokio::join!(create(&request, "key-1"), create(&request, "key-1"));
    assert_eq!((a.unwrap().id, b.unwrap().id), (first.id, first.id));
    let other = create(&VmCreate::new("db", "tiny"), "key-1").await.unwrap_err();
    assert_eq!(kind(&other), ErrorKind::Conflict);
    let taken = create(&request, "key-2").await.unwrap_err();
    assert_eq!(kind(&taken), ErrorKind::AlreadyExists);
    let unusable = create(&request, "a b").await.unwrap_err();
    assert_eq!(kind(&unusable), ErrorKind::InvalidArgument);

    client.delete_vm(&project, &name("web")).await.unwrap();
    gone(&client, &project, "web").await;
    assert_eq!(cluster.keys_of_vms().await, Vec::<String>::new());
    // A repetition that comes late makes no second one.
    assert_eq!(create(&request, "key-1").await.unwrap().id, first.id);
    assert_eq!(cluster.keys_of_vms().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_fits_the_nodes_network() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let user = Size {
        network: "user",
        ..SMALL
    };
    let hub = || vec![server.endpoint()];
    let _routed = SimAgent::start(&cluster, "node01", hub(), SMALL).await;
    let agent = SimAgent::start(&cluster, "node02", hub(), user).await;
    until("both nodes register", async || {
        (client.list_nodes().await.unwrap().items.len() == 2).then_some(())
    })
    .await;
    let request = VmCreate {
        network_mode: Some("user".to_owned()),
        ..VmCreate::new("web", "tiny")
    };
    let vm = client.create_vm(&project, &request, None).await.unwrap();
    assert_eq!(vm.node.as_deref(), Some("node02"));
    assert!(
        vm.address.unwrap().to_string().starts_with("127.77."),
        "{:?}",
        vm.address
    );
    settled(&client, &project, "web").await;
    let nic = agent
        .guests()
        .pop()
        .unwrap()
        .assignment
        .spec
        .unwrap()
        .nic
        .unwrap();
    assert_eq!((nic.gateway.as_str(), nic.resolvers.len()), ("", 0));
    let racked = serde_json::from_value(serde_json::json!({"rack": "node01"})).unwrap();
    let request = VmCreate {
        node_selector: racked,
        ..VmCreate::new("db", "tiny")
    };
    let vm = client.create_vm(&project, &request, None).await.unwrap();
    assert_eq!(vm.node.as_deref(), Some("node01"));
    assert!(
        vm.address.unwrap().to_string().starts_with("10.77."),
        "{:?}",
        vm.address
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_down_frees_nothing() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], SMALL).await;
    let request = VmCreate::new("web", "tiny");
    until("the VM is placed", async || {
        client.create_vm(&project, &request, None).await.ok()
    })
    .await;
    settled(&client, &project, "web").await;
    let before = cluster.keys_of_vms().await;
    agent.die().await;
    let vm = client.get_vm(&project, &name("web")).await.unwrap();
    assert_eq!(vm.state, VmState::Unknown);
    assert!(vm.state_reason.unwrap().contains("node01"));
    let refused = client
        .create_vm(&project, &VmCreate::new("db", "tiny"), None)
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("its agent does not answer"),
        "{refused}"
    );
    let deleting = client.delete_vm(&project, &name("web")).await.unwrap();
    assert_eq!(deleting.state, VmState::Deleting);
    // Two sweeps long nothing is freed.
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert_eq!(cluster.keys_of_vms().await, before);

    let _back = SimAgent::start(&cluster, "node01", vec![server.endpoint()], SMALL).await;
    gone(&client, &project, "web").await;
    assert_eq!(cluster.keys_of_vms().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vms_are_listed_page_by_page() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let _agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], SMALL).await;
    until("the node registers", async || {
        client.list_nodes().await.unwrap().items.pop()
    })
    .await;
    for number in 0..5 {
        let request = VmCreate {
            start: false,
            ..VmCreate::new(format!("vm-{number}"), "tiny")
        };
        client.create_vm(&project, &request, None).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut page = plasmavmc_client::types::PageQuery {
        page_size: Some(2),
        page_token: None,
    };
    loop {
        let list = client.list_vms(&project, &page).await.unwrap();
        assert!(list.items.len() <= 2);
        seen.extend(list.items.iter().map(|vm| vm.name.to_string()));
        page.page_token = list.next_page_token;
        if page.page_token.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["vm-0", "vm-1", "vm-2", "vm-3", "vm-4"]);
    assert_eq!(client.all_vms(&project, 3).await.unwrap().len(), 3);
    page.page_size = Some(0);
    assert_eq!(
        kind(&client.list_vms(&project, &page).await.unwrap_err()),
        ErrorKind::InvalidArgument
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_full_of_large_vms_can_connect_again() {
    const VMS: usize = 150;
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let size = Size {
        vcpus: 64,
        memory_mib: 16384,
        ..SMALL
    };
    let agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], size).await;
    until("the node registers", async || {
        client.list_nodes().await.unwrap().items.pop()
    })
    .await;
    // Together more than the 4 MiB that one gRPC message may have.
    let creations = (0..VMS).map(|number| {
        let (client, project) = (&client, &project);
        let request = VmCreate {
            user_data: "#".repeat(32 << 10),
            memory_bytes: 64 << 20,
            start: false,
            ..VmCreate::new(format!("vm-{number}"), "tiny")
        };
        async move { client.create_vm(project, &request, None).await.unwrap() }
    });
    futures::future::join_all(creations).await;
    until("the agent has them", async || {
        (agent.guests().len() == VMS).then_some(())
    })
    .await;
    agent.die().await;
    let again = SimAgent::start(&cluster, "node01", vec![server.endpoint()], size).await;
    until("a new agent is told everything", async || {
        (again.guests().len() == VMS).then_some(())
    })
    .await;
    let heard = again.memory.lock().unwrap().heard.clone();
    assert_eq!(heard[..4], ["welcome", "full sync", "delta", "delta"]);
}
