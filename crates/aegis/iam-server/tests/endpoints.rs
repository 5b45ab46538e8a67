//! Every endpoint x every kind of caller, with the expected status, against the real router. An endpoint that is in
//! the OpenAPI document (and so in the router) and not in this table fails the test, and so does one that is gone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use common::{As, Server, bootstrapped};
use serde_json::{Value, json};

/// Columns: nobody, expired token, viewer, operator, admin of the project; operator of another project; administrator
/// of the root; a service by certificate.
const CALLERS: [&str; 8] = [
    "nobody", "expired", "viewer", "operator", "admin", "stranger", "root", "service",
];

struct Row {
    method: &'static str,
    /// The path as the document has it.
    path: &'static str,
    /// What is asked for. `%` is the caller's column, so that each one makes a thing of its own.
    url: &'static str,
    body: Kind,
    expect: [u16; 8],
}

enum Kind {
    None,
    Json(&'static str),
    Form(&'static str),
}

use Kind::{Form, Json, None as Empty};

const ALWAYS: fn(u16) -> [u16; 8] = |status| [status; 8];
/// Signed in is enough.
const EVERYONE: [u16; 8] = [401, 401, 200, 200, 200, 200, 200, 200];

fn row(method: &'static str, path: &'static str, url: &'static str, body: Kind, expect: [u16; 8]) -> Row {
    Row {
        method,
        path,
        url,
        body,
        expect,
    }
}

fn table() -> Vec<Row> {
    let accounts = "/v1/projects/{project}/service-accounts";
    let account = "/v1/projects/{project}/service-accounts/{account}";
    let secrets = "/v1/projects/{project}/service-accounts/{account}/secrets";
    vec![
        // For everybody, signed in or not.
        row(
            "GET",
            "/.well-known/openid-configuration",
            "/.well-known/openid-configuration",
            Empty,
            ALWAYS(200),
        ),
        row("GET", "/jwks.json", "/jwks.json", Empty, ALWAYS(200)),
        row(
            "GET",
            "/device",
            "/device?user_code=BCDF-GHJK",
            Empty,
            ALWAYS(200),
        ),
        row(
            "POST",
            "/device",
            "/device",
            Form("user_code=x&username=x&password=x&decision=perhaps"),
            ALWAYS(400),
        ),
        row(
            "POST",
            "/oauth2/device_authorization",
            "/oauth2/device_authorization",
            Form("client_id=hearth-cli"),
            ALWAYS(200),
        ),
        row(
            "POST",
            "/oauth2/token",
            "/oauth2/token",
            Form("grant_type=password&username=root&password=x"),
            ALWAYS(400),
        ),
        row(
            "POST",
            "/oauth2/revoke",
            "/oauth2/revoke",
            Form("token=unknown"),
            ALWAYS(200),
        ),
        row(
            "POST",
            "/v1/bootstrap",
            "/v1/bootstrap",
            Json(
                r#"{"token":"canary-bootstrap-token-0123456789","username":"second","password":"correct horse battery"}"#,
            ),
            ALWAYS(412),
        ),
        row(
            "POST",
            "/v1/sessions",
            "/v1/sessions",
            Json(r#"{"username":"root","password":"canary correct horse"}"#),
            ALWAYS(200),
        ),
        // For everybody who is signed in.
        row("GET", "/v1/whoami", "/v1/whoami", Empty, EVERYONE),
        row("GET", "/v1/roles", "/v1/roles", Empty, EVERYONE),
        row("GET", "/v1/organisations", "/v1/organisations", Empty, EVERYONE),
        row("GET", "/v1/projects", "/v1/projects", Empty, EVERYONE),
        row(
            "POST",
            "/v1/whoami/password",
            "/v1/whoami/password",
            Json(r#"{"old_password":"canary correct horse","new_password":"short"}"#),
            [401, 401, 400, 400, 400, 400, 400, 412],
        ),
        // In the project `alpha`. A stranger gets what it gets for a project that does not exist.
        row(
            "GET",
            "/v1/projects/{project}",
            "/v1/projects/alpha",
            Empty,
            [401, 401, 200, 200, 200, 404, 200, 404],
        ),
        row(
            "GET",
            accounts,
            "/v1/projects/alpha/service-accounts",
            Empty,
            [401, 401, 200, 200, 200, 404, 200, 404],
        ),
        row(
            "POST",
            accounts,
            "/v1/projects/alpha/service-accounts",
            Json(r#"{"name":"made-by-%"}"#),
            [401, 401, 403, 403, 201, 404, 201, 404],
        ),
        row(
            "POST",
            secrets,
            "/v1/projects/alpha/service-accounts/robot/secrets",
            Empty,
            [401, 401, 403, 403, 201, 404, 201, 404],
        ),
        row(
            "DELETE",
            account,
            "/v1/projects/alpha/service-accounts/made-by-%",
            Empty,
            [401, 401, 403, 403, 204, 404, 204, 404],
        ),
        row(
            "GET",
            "/v1/bindings",
            "/v1/bindings?on=project/alpha",
            Empty,
            [401, 401, 200, 200, 200, 404, 200, 404],
        ),
        row(
            "POST",
            "/v1/bindings",
            "/v1/bindings",
            Json(r#"{"subject":"user/extra-%","role":"viewer","on":"project/alpha"}"#),
            [401, 401, 403, 403, 201, 404, 201, 404],
        ),
        row(
            "DELETE",
            "/v1/bindings/{binding}",
            "/v1/bindings/%",
            Empty,
            [401, 401, 403, 403, 204, 404, 204, 404],
        ),
        row(
            "POST",
            "/v1/check",
            "/v1/check",
            Json(r#"{"action":"vmc.vm.create","on":"project/alpha"}"#),
            [401, 401, 200, 200, 200, 404, 200, 404],
        ),
        // On the root.
        row(
            "POST",
            "/v1/organisations",
            "/v1/organisations",
            Json(r#"{"name":"org-%"}"#),
            [401, 401, 403, 403, 403, 403, 201, 403],
        ),
        // In the organisation, which members of its projects may see.
        row(
            "POST",
            "/v1/projects",
            "/v1/projects",
            Json(r#"{"name":"new-%"}"#),
            [401, 401, 403, 403, 403, 403, 201, 404],
        ),
        row(
            "GET",
            "/v1/users",
            "/v1/users",
            Empty,
            [401, 401, 403, 403, 403, 403, 200, 403],
        ),
        row(
            "POST",
            "/v1/users",
            "/v1/users",
            Json(r#"{"name":"user-%","password":"correct horse battery"}"#),
            [401, 401, 403, 403, 403, 403, 201, 403],
        ),
        row(
            "GET",
            "/v1/users/{user}",
            "/v1/users/root",
            Empty,
            [401, 401, 403, 403, 403, 403, 200, 403],
        ),
        row(
            "PATCH",
            "/v1/users/{user}",
            "/v1/users/extra-1",
            Json(r#"{"disabled":true}"#),
            [401, 401, 403, 403, 403, 403, 200, 403],
        ),
        row(
            "GET",
            "/v1/groups",
            "/v1/groups",
            Empty,
            [401, 401, 403, 403, 403, 403, 200, 403],
        ),
        row(
            "PUT",
            "/v1/groups/{group}",
            "/v1/groups/group-%",
            Json(r#"{"members":["user/root"]}"#),
            [401, 401, 403, 403, 403, 403, 200, 403],
        ),
        row(
            "DELETE",
            "/v1/groups/{group}",
            "/v1/groups/group-6",
            Empty,
            [401, 401, 403, 403, 403, 403, 204, 403],
        ),
        row(
            "GET",
            "/v1/audit",
            "/v1/audit",
            Empty,
            [401, 401, 403, 403, 403, 403, 200, 403],
        ),
        // By certificate only.
        row(
            "POST",
            "/v1/certificates/renew",
            "/v1/certificates/renew",
            Json(r#"{"csr":"nonsense"}"#),
            [401, 401, 403, 403, 403, 403, 403, 400],
        ),
    ]
}

/// One caller per column, and one binding per column to delete.
async fn cast(server: &Server, root: &str) -> (Vec<As>, Vec<String>) {
    server.project(root, "alpha").await;
    server.project(root, "omega").await;
    let mut callers = vec![As::Nobody];
    callers.push(As::Token(expired(server, root).await));
    for (name, role, on) in [
        ("vera", "viewer", "project/alpha"),
        ("otto", "operator", "project/alpha"),
        ("anna", "admin", "project/alpha"),
        ("sten", "operator", "project/omega"),
    ] {
        let token = server.user(root, name).await;
        server.bind(root, &format!("user/{name}"), role, on).await;
        callers.push(As::Token(token));
    }
    callers.push(As::Token(root.to_owned()));
    callers.push(As::Certificate("service/plasmavmc"));
    let mut bindings = Vec::new();
    for column in 0..CALLERS.len() {
        server.user(root, &format!("extra-{column}")).await;
        server.user(root, &format!("bound-{column}")).await;
        bindings.push(
            server
                .bind(root, &format!("user/bound-{column}"), "viewer", "project/alpha")
                .await,
        );
    }
    let robot = server
        .post(
            "/v1/projects/alpha/service-accounts",
            Some(root),
            &json!({"name": "robot"}),
        )
        .await;
    assert_eq!(robot.status, 201, "{}", robot.text);
    (callers, bindings)
}

/// A token of an administrator, properly signed by the cluster's key, whose life is over.
async fn expired(server: &Server, root: &str) -> String {
    let id = server.get("/v1/whoami", root).await.str("/id");
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    server
        .aegis
        .access_token_at(id.parse().unwrap(), 1, "test", hour_ago)
        .unwrap()
}

fn documented() -> BTreeSet<(String, String)> {
    let document: Value = serde_json::to_value(iam_server::api::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, methods)| {
            methods
                .as_object()
                .unwrap()
                .keys()
                .map(move |method| (method.to_uppercase(), path.clone()))
        })
        .collect()
}

#[test]
fn every_endpoint_has_its_row() {
    let rows: BTreeSet<(String, String)> = table()
        .iter()
        .map(|row| (row.method.to_owned(), row.path.to_owned()))
        .collect();
    assert_eq!(rows.len(), table().len(), "an endpoint stands twice in the table");
    let documented = documented();
    let missing: Vec<_> = documented.difference(&rows).collect();
    let gone: Vec<_> = rows.difference(&documented).collect();
    assert!(
        missing.is_empty(),
        "endpoints without a row of expected answers: {missing:?}"
    );
    assert!(gone.is_empty(), "rows without an endpoint: {gone:?}");
}

#[tokio::test]
async fn every_endpoint_answers_every_caller_as_expected() {
    let (server, root) = bootstrapped().await;
    let (callers, bindings) = cast(&server, &root).await;
    let mut wrong = Vec::new();
    for row in table() {
        for (column, caller) in callers.iter().enumerate() {
            let fill = |text: &str| match row.path {
                "/v1/bindings/{binding}" => text.replace('%', &bindings[column]),
                _ => text.replace('%', &column.to_string()),
            };
            let (content, body) = match row.body {
                Empty => ("", String::new()),
                Json(text) => ("application/json", fill(text)),
                Form(text) => ("application/x-www-form-urlencoded", fill(text)),
            };
            let answer = server
                .send(row.method, &fill(row.url), caller, content, body)
                .await;
            let expected = row.expect[column];
            if answer.status != expected {
                let name = CALLERS[column];
                wrong.push(format!(
                    "{} {} as {name}: {} instead of {expected}: {}",
                    row.method, row.url, answer.status, answer.text
                ));
            }
            if answer.status == 401 && row.path.starts_with("/v1/") {
                assert!(
                    answer.headers.contains_key("www-authenticate"),
                    "{} {}",
                    row.method,
                    row.path
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a stranger sees of a place is what it sees of a place that does not exist.
#[tokio::test]
async fn invisible_and_missing_look_the_same() {
    let (server, root) = bootstrapped().await;
    let (callers, _) = cast(&server, &root).await;
    let stranger = &callers[5];
    for (method, url, body) in [
        ("GET", "/v1/projects/alpha", Value::Null),
        ("GET", "/v1/projects/alpha/service-accounts", Value::Null),
        (
            "POST",
            "/v1/projects/alpha/service-accounts",
            json!({"name": "x"}),
        ),
        (
            "POST",
            "/v1/projects/alpha/service-accounts/robot/secrets",
            Value::Null,
        ),
        ("DELETE", "/v1/projects/alpha/service-accounts/robot", Value::Null),
        ("GET", "/v1/bindings?on=project/alpha", Value::Null),
        (
            "POST",
            "/v1/bindings",
            json!({"subject": "user/sten", "role": "viewer", "on": "project/alpha"}),
        ),
        (
            "POST",
            "/v1/check",
            json!({"action": "vmc.vm.get", "on": "project/alpha"}),
        ),
        (
            "POST",
            "/v1/check",
            json!({"subject": "user/vera", "action": "vmc.vm.get", "on": "project/alpha"}),
        ),
    ] {
        let (content, text) = if body.is_null() {
            ("", String::new())
        } else {
            ("application/json", body.to_string())
        };
        let real = server.send(method, url, stranger, content, text.clone()).await;
        let (url, text) = (url.replace("alpha", "nope"), text.replace("alpha", "nope"));
        let none = server.send(method, &url, stranger, content, text).await;
        assert_eq!(real.status, 404, "{method} {url}");
        assert_eq!(real.text.replace("alpha", "nope"), none.text, "{method} {url}");
    }
}

#[tokio::test]
async fn addresses_and_methods_that_are_not_there_are_our_errors() {
    let (server, root) = bootstrapped().await;
    let root = As::Token(root);
    for (method, path, status) in [
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/users", 400),
        ("GET", "/", 404),
    ] {
        let answer = server.send(method, path, &root, "", String::new()).await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert!(answer.json()["error"]["message"].is_string());
    }
    for body in [
        "",
        "{",
        "[]",
        r#"{"name":"UPPER","password":"x"}"#,
        r#"{"name":"a","password":"x","admin":true}"#,
    ] {
        let answer = server
            .send("POST", "/v1/users", &root, "application/json", body.to_owned())
            .await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text);
    }
    let long = format!(r#"{{"name":"a","password":"{}"}}"#, "x".repeat(100_000));
    let answer = server
        .send("POST", "/v1/users", &root, "application/json", long)
        .await;
    assert_eq!(answer.status, 400, "{}", answer.text);
}
