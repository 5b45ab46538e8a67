//! The same request under the same key is carried out once and answered alike, whatever it changes; the same key with
//! another request is refused; keys are forgotten after their time.

use plasmavmc_client::types::{Power, VmCreate, VmStop};
use plasmavmc_client::{KEY_HEADER, PlasmaClient};
use serde_json::Value;

use crate::agent::{SMALL, SimAgent};
use crate::harness::{Cluster, Server, name, until};
use crate::lifecycle::settled;
use crate::races::{Three, three};

/// A change, and another one of the same kind.
struct Change {
    call: &'static str,
    path: &'static str,
    body: &'static str,
    other_path: &'static str,
    other_body: &'static str,
    /// The state that the VM `web` has to reach before the next one.
    then: Option<&'static str>,
}

const ABC: &str = "?format=raw&sha256=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// Every change that there is, in an order in which each can be done.
const CHANGES: [Change; 11] = [
    change(
        "PATCH",
        "/nodes/node01",
        r#"{"labels": {"a": "1"}}"#,
        r#"{"labels": {"a": "2"}}"#,
    ),
    change("PUT", "/projects/default/quota", r#"{"vms": 9}"#, r#"{"vms": 8}"#),
    change(
        "POST",
        "/projects/default/groups",
        r#"{"name": "db", "rule": "apart"}"#,
        r#"{"name": "db", "rule": "apart", "strict": true}"#,
    ),
    Change {
        then: Some("running"),
        ..change(
            "POST",
            "/projects/default/vms",
            r#"{"name": "web", "image": "tiny"}"#,
            r#"{"name": "web", "image": "tiny", "vcpus": 2}"#,
        )
    },
    Change {
        then: Some("stopped"),
        ..change(
            "POST",
            "/projects/default/vms/web/stop",
            "{}",
            r#"{"force": true}"#,
        )
    },
    Change {
        then: Some("running"),
        ..elsewhere(
            "POST",
            "/projects/default/vms/web/start",
            "/projects/default/vms/db/start",
        )
    },
    elsewhere(
        "POST",
        "/projects/default/vms/web/reset",
        "/projects/default/vms/db/reset",
    ),
    Change {
        then: Some("gone"),
        ..elsewhere("DELETE", "/projects/default/vms/web", "/projects/default/vms/db")
    },
    elsewhere(
        "DELETE",
        "/projects/default/groups/db",
        "/projects/default/groups/web",
    ),
    Change {
        body: "abc",
        other_path: "/images/cba",
        other_body: "abc",
        ..change("PUT", "/images/abc", "", "")
    },
    elsewhere("DELETE", "/images/abc", "/images/tiny"),
];

const fn change(
    call: &'static str,
    path: &'static str,
    body: &'static str,
    other_body: &'static str,
) -> Change {
    Change {
        call,
        path,
        body,
        other_path: path,
        other_body,
        then: None,
    }
}

const fn elsewhere(call: &'static str, path: &'static str, other_path: &'static str) -> Change {
    Change {
        other_path,
        ..change(call, path, "", "")
    }
}

struct Caller<'a> {
    http: reqwest::Client,
    server: &'a Server,
    token: String,
}

impl Caller<'_> {
    async fn send(&self, call: &str, path: &str, body: &'static str, key: &str) -> (u16, Value) {
        let query = if call == "PUT" && path.starts_with("/images/") {
            ABC
        } else {
            ""
        };
        let url = format!("https://{}/v1{path}{query}", self.server.address);
        let request = self.http.request(call.parse().unwrap(), url);
        let request = request.bearer_auth(&self.token).header(KEY_HEADER, key);
        let request = if body.is_empty() {
            request
        } else {
            request.header("content-type", "application/json").body(body)
        };
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.bytes().await.unwrap();
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).unwrap()
        };
        (status, body)
    }
}

/// The paths of the interface's description that change something, with what they have to say about the key.
fn described() -> Vec<(String, bool)> {
    let openapi: Value = serde_json::from_str(&plasmavmc_server::openapi_json().unwrap()).unwrap();
    let mut found = Vec::new();
    for methods in openapi["paths"].as_object().unwrap().values() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            if method != "get" && id != "explain_creation" {
                let parameters = operation["parameters"].as_array().unwrap();
                let keyed = parameters.iter().any(|p| p["name"] == "Idempotency-Key");
                found.push((id, keyed));
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_is_carried_out_once_under_one_key() {
    for (operation, keyed) in described() {
        assert!(keyed, "`{operation}` takes no idempotency key");
    }
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let _agent = SimAgent::start(&cluster, "node01", vec![server.endpoint()], SMALL).await;
    until("the node registers", async || {
        client.list_nodes().await.unwrap().items.pop()
    })
    .await;
    let token = cluster.user("rita", iam_client::Role::Admin, iam_client::Node::Root);
    let tls = plasmavmc_client::tls_from_ca(cluster.ca_pem().as_bytes()).unwrap();
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(rustls::ClientConfig::clone(&tls))
        .build()
        .unwrap();
    let caller = Caller {
        http,
        server: &server,
        token,
    };
    for (number, change) in CHANGES.iter().enumerate() {
        let (call, path) = (change.call, change.path);
        let key = format!("key-{number}");
        let first = caller.send(call, path, change.body, &key).await;
        assert!((200..300).contains(&first.0), "{call} {path}: {first:?}");
        match change.then {
            Some("gone") => crate::lifecycle::gone(&client, &project, "web").await,
            Some(state) => {
                let vm = settled(&client, &project, "web").await;
                assert_eq!(vm.state.as_str(), state, "{call} {path}");
            }
            None => {}
        }
        let again = caller.send(call, path, change.body, &key).await;
        assert_eq!(again, first, "{call} {path}");
        let other = caller
            .send(call, change.other_path, change.other_body, &key)
            .await;
        assert_eq!(other.0, 409, "{call} {path}: {other:?}");
        let said = other.1["error"]["message"].as_str().unwrap();
        assert!(said.contains("used for another request"), "{said}");
        let unusable = caller.send(call, path, change.body, "a b").await;
        assert_eq!(unusable.0, 400, "{call} {path}: {unusable:?}");
    }
    assert_eq!(
        client.list_images().await.unwrap().items.len(),
        1,
        "only `tiny` is left"
    );
    let left = cluster.keys_of_vms().await;
    assert!(
        left.iter().all(|key| key.contains("/quotas/")),
        "only the quota is left: {left:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_repetition_undoes_nothing() {
    let cluster = Cluster::start().await;
    let Three { servers, clients } = three(&cluster).await;
    let project = name("default");
    let _agent = SimAgent::start(&cluster, "node01", vec![servers[0].endpoint()], SMALL).await;
    let request = VmCreate::new("web", "tiny");
    until("the VM is placed", async || {
        clients[0].create_vm(&project, &request, None).await.ok()
    })
    .await;
    settled(&clients[0], &project, "web").await;
    // The same stop, twelve times at once, through all servers.
    let keyed: Vec<_> = clients
        .iter()
        .map(|client| client.with_idempotency_key("stop-1"))
        .collect();
    let how = VmStop::default();
    let web = name("web");
    let stop = |client: &PlasmaClient| {
        let (client, project, web) = (client.clone(), project.clone(), web.clone());
        async move { client.stop_vm(&project, &web, &how).await.unwrap() }
    };
    let answers = futures::future::join_all((0..12).map(|n| stop(&keyed[n % 3]))).await;
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(answers[0].generation, 2);
    settled(&clients[0], &project, "web").await;
    clients[1].start_vm(&project, &web).await.unwrap();
    settled(&clients[0], &project, "web").await;
    assert_eq!(stop(&keyed[2]).await, answers[0]);
    let now = clients[0].get_vm(&project, &web).await.unwrap();
    assert_eq!((now.desired_power, now.generation), (Power::On, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_forgotten_after_their_time() {
    let cluster = Cluster::start().await;
    let (server, client, project) = cluster.ready().await;
    let limits = plasmavmc_client::types::QuotaLimits::default();
    client.set_quota(&project, &limits).await.unwrap();
    let remembered = async || {
        let prefix = "/plasmavmc/v1/requests/";
        cluster.store.list(prefix).await.unwrap().kvs.len()
    };
    // That of the image, too.
    assert_eq!(remembered().await, 2);
    server.stop().await;
    let mut config = Cluster::config();
    config.request_memory_s = 1;
    let _short = cluster.server_with("vmc-2", config).await;
    until("the requests are forgotten", async || {
        (remembered().await == 0).then_some(())
    })
    .await;
}
