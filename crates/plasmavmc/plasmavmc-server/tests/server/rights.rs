//! Who may do what: every operation of the committed OpenAPI description against every kind of caller, on the real
//! router. An operation that is not in the picture fails the test.

use std::time::{Duration, SystemTime};

use hearth_service::client::{ChannelOptions, channel};
use iam_client::{Node, Role};
use plasmavmc_client::agent::agent_hub_client::AgentHubClient;
use plasmavmc_client::agent::{AgentMessage, Hello, NodeStatus, agent_message};

use crate::harness::Cluster;

/// A request that a permitted caller gets an answer to other than 401, 403 and "no such project".
fn request(operation: &str) -> (&'static str, Option<&'static str>) {
    match operation {
        "explain_creation" => ("", Some(r#"{"name": "x", "image": "none"}"#)),
        "create_group" => ("", Some(r#"{"name": "X", "rule": "apart"}"#)),
        "set_quota" | "update_node" => ("", Some("{}")),
        "create_vm" => ("", Some(r#"{"name": "x", "image": "none"}"#)),
        "import_image" => (
            "?format=raw&sha256=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            Some("abc"),
        ),
        "list_vms" | "get_vm" | "delete_vm" | "start_vm" | "stop_vm" | "reset_vm" | "pause_vm"
        | "resume_vm" | "open_console" | "list_images" | "get_image" | "delete_image" | "list_nodes"
        | "get_node" | "get_quota" | "list_operations" | "get_operation" | "list_groups" | "get_group"
        | "delete_group" | "explain_vm" => ("", None),
        other => {
            panic!("the operation `{other}` is new: say here how to call it, and renew the picture below")
        }
    }
}

/// The status, and what is not found.
fn verdict(status: u16, body: &str) -> String {
    let what = match status {
        404 if body.contains("no project") => "project",
        404 if body.contains("no VM") => "vm",
        404 if body.contains("no image") => "image",
        404 if body.contains("no group") => "group",
        404 if body.contains("no node") => "node",
        404 if body.contains("no operation") => "operation",
        404 => "it",
        _ => "",
    };
    if what.is_empty() {
        status.to_string()
    } else {
        format!("{status}-{what}")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_answers_every_kind_of_caller_as_drawn() {
    let cluster = Cluster::start().await;
    let (server, _, _) = cluster.ready().await;
    let default = cluster
        .world
        .authorizer()
        .project(&"default".parse().unwrap())
        .unwrap()
        .id;
    let other = cluster.world.project("other").unwrap();
    let expired = {
        let user = cluster.world.user("late").unwrap();
        cluster.world.bind(user, Role::Admin, Node::Root);
        cluster
            .world
            .token_at(user, SystemTime::now() - Duration::from_secs(86_400))
            .unwrap()
    };
    let callers = [
        ("none", None),
        ("expired", Some(expired)),
        (
            "viewer",
            Some(cluster.user("vic", Role::Viewer, Node::Project(default))),
        ),
        (
            "operator",
            Some(cluster.user("olga", Role::Operator, Node::Project(default))),
        ),
        (
            "admin",
            Some(cluster.user("ada", Role::Admin, Node::Project(default))),
        ),
        (
            "stranger",
            Some(cluster.user("sam", Role::Operator, Node::Project(other))),
        ),
        ("root", Some(cluster.user("rita", Role::Admin, Node::Root))),
    ];
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(rustls::ClientConfig::clone(
            &plasmavmc_client::tls_from_ca(cluster.ca_pem().as_bytes()).unwrap(),
        ))
        .build()
        .unwrap();
    let openapi: serde_json::Value =
        serde_json::from_str(&plasmavmc_server::openapi_json().unwrap()).unwrap();
    let mut picture = format!("{:16}", "");
    for (caller, _) in &callers {
        picture += &format!(" {caller:11}");
    }
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            let (query, body) = request(id);
            picture = format!("{}\n{id:16}", picture.trim_end());
            for (_, token) in &callers {
                let path = path
                    .replace("{project}", "default")
                    .replace("{vm}", "ghost")
                    .replace("{group}", "ghost")
                    .replace("{node}", "ghost")
                    .replace("{operation}", "ghost")
                    .replace("{name}", if id == "import_image" { "abc" } else { "ghost" });
                let url = format!("https://{}{path}{query}", server.address);
                let mut call = http.request(method.to_uppercase().parse().unwrap(), url);
                if let Some(body) = body {
                    call = call.header("content-type", "application/json").body(body);
                }
                if let Some(token) = token {
                    call = call.bearer_auth(token);
                }
                let answer = call.send().await.unwrap();
                let status = answer.status().as_u16();
                let verdict = verdict(status, &answer.text().await.unwrap());
                picture += &format!(" {verdict:11}");
            }
        }
    }
    expect_test::expect![[r#"
                         none        expired     viewer      operator    admin       stranger    root
        list_images      401         401         200         200         200         200         200
        get_image        401         401         404-image   404-image   404-image   404-image   404-image
        import_image     401         401         403         403         403         403         200
        delete_image     401         401         403         403         403         403         404-image
        list_nodes       401         401         403         403         403         403         200
        get_node         401         401         403         403         403         403         404-node
        update_node      401         401         403         403         403         403         404-node
        explain_creation 401         401         403         400         400         404-project 400
        list_groups      401         401         200         200         200         404-project 200
        create_group     401         401         403         400         400         404-project 400
        get_group        401         401         404-group   404-group   404-group   404-project 404-group
        delete_group     401         401         403         404-group   404-group   404-project 404-group
        list_operations  401         401         200         200         200         404-project 200
        get_operation    401         401         404-operation 404-operation 404-operation 404-project 404-operation
        get_quota        401         401         200         200         200         404-project 200
        set_quota        401         401         403         403         403         403         200
        list_vms         401         401         200         200         200         404-project 200
        create_vm        401         401         403         400         400         404-project 400
        get_vm           401         401         404-vm      404-vm      404-vm      404-project 404-vm
        delete_vm        401         401         403         404-vm      404-vm      404-project 404-vm
        open_console     401         401         403         404-vm      404-vm      404-project 404-vm
        explain_vm       401         401         403         404-vm      404-vm      404-project 404-vm
        pause_vm         401         401         403         404-vm      404-vm      404-project 404-vm
        reset_vm         401         401         403         404-vm      404-vm      404-project 404-vm
        resume_vm        401         401         403         404-vm      404-vm      404-project 404-vm
        start_vm         401         401         403         404-vm      404-vm      404-project 404-vm
        stop_vm          401         401         403         404-vm      404-vm      404-project 404-vm
    "#]]
    .assert_eq(&(picture.trim_end().to_owned() + "\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_speaks_for_itself_only() {
    let cluster = Cluster::start().await;
    let (server, client, _) = cluster.ready().await;
    let hello = |node: &str| AgentMessage {
        kind: Some(agent_message::Kind::Hello(Hello {
            node: node.to_owned(),
            incarnation: "one".to_owned(),
            protocol_min: 1,
            protocol_max: 1,
            status: Some(NodeStatus {
                network_mode: "user".to_owned(),
                ..NodeStatus::default()
            }),
            ..Hello::default()
        })),
    };
    let end = async |identity: &str, node: &str| {
        let hub = channel(
            &server.endpoint(),
            Some(&cluster.identity(identity)),
            &ChannelOptions::default(),
        );
        // The stream stays open from this side until the hub ends it.
        let messages =
            futures::StreamExt::chain(futures::stream::iter([hello(node)]), futures::stream::pending());
        let mut answers = match AgentHubClient::new(hub.unwrap()).session(messages).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return status.code(),
        };
        match answers.message().await {
            Ok(Some(_)) => tonic::Code::Ok,
            Ok(None) => panic!("the stream ended without a word"),
            Err(status) => status.code(),
        }
    };
    assert_eq!(end("node/node01", "node02").await, tonic::Code::InvalidArgument);
    assert_eq!(
        end("service/aegis", "node02").await,
        tonic::Code::PermissionDenied
    );
    assert!(
        client.list_nodes().await.unwrap().items.is_empty(),
        "a refused hello registers nothing"
    );
    assert_eq!(end("node/node01", "node01").await, tonic::Code::Ok);
    assert_eq!(client.list_nodes().await.unwrap().items.len(), 1);
}
