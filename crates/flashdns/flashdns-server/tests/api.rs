//! The REST interface: who may do what, what is refused, what is served then.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in tests a failure is a panic"
)]

mod common;

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, SystemTime},
};

use common::{Bed, Running, dig_until};
use iam_client::{Node, Role, testing::TestWorld};
use serde_json::{Value, json};

#[test]
fn the_committed_openapi_file_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../openapi/flashdns.json");
    let actual = flashdns_server::openapi_json().unwrap();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &actual).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == actual,
        "openapi/flashdns.json is stale; run this test with UPDATE_EXPECT=1"
    );
}

/// Callers, in the order of the columns of [`TABLE`].
const CALLERS: [&str; 9] = [
    "nobody",
    "expired",
    "unbound",
    "viewer",
    "operator",
    "admin",
    "other",
    "root-viewer",
    "root-admin",
];

const ZONES: &str = "GET /v1/zones";
const LIST: &str = "GET /v1/zones/{zone}/records";
const CREATE: &str = "POST /v1/zones/{zone}/records";
const EXPORT: &str = "GET /v1/zones/{zone}/file";
const IMPORT: &str = "PUT /v1/zones/{zone}/file";
const KEYS: &str = "GET /v1/keys";
const NEW_KEY: &str = "POST /v1/keys";
const NO_KEY: &str = "DELETE /v1/keys/{name}";
const DELETE: &str = "DELETE /v1/zones/{zone}/records/{name}/{type}";

/// Endpoint, zone, expected status for each caller. `p` is the project that viewer, operator and admin are
/// bound in; `other` is an operator of another one. That the cluster's own zones exist is no secret: 403, not 404.
#[rustfmt::skip]
const TABLE: &[(&str, &str, [u16; 9])] = &[
    //                                      nobody exp  unb  view oper adm  oth  r-vi r-ad
    (ZONES,  "",                           [401, 401, 200, 200, 200, 200, 200, 200, 200]),
    // This server has no seal key; what keys may do stands in `transfers` and `updates`.
    (KEYS,    "",                          [401, 401, 200, 200, 200, 200, 200, 200, 200]),
    (NEW_KEY, "",                          [401, 401, 412, 412, 412, 412, 412, 412, 412]),
    (NO_KEY,  "",                          [401, 401, 404, 404, 404, 404, 404, 404, 404]),
    (LIST,   "p.hearth.internal.",         [401, 401, 404, 200, 200, 200, 404, 200, 200]),
    (CREATE, "p.hearth.internal.",         [401, 401, 404, 403, 201, 201, 404, 403, 201]),
    (DELETE, "p.hearth.internal.",         [401, 401, 404, 403, 204, 204, 404, 403, 204]),
    (EXPORT, "p.hearth.internal.",         [401, 401, 404, 200, 200, 200, 404, 200, 200]),
    (IMPORT, "p.hearth.internal.",         [401, 401, 404, 403, 200, 200, 404, 403, 200]),
    (EXPORT, "hearth.internal.",           [401, 401, 403, 403, 403, 403, 403, 200, 200]),
    (IMPORT, "hearth.internal.",           [401, 401, 403, 403, 403, 403, 403, 403, 200]),
    (EXPORT, "none.hearth.internal.",      [401, 401, 404, 404, 404, 404, 404, 404, 404]),
    (IMPORT, "example.",                   [401, 401, 404, 404, 404, 404, 404, 404, 404]),
    (LIST,   "hearth.internal.",           [401, 401, 403, 403, 403, 403, 403, 200, 200]),
    (CREATE, "hearth.internal.",           [401, 401, 403, 403, 403, 403, 403, 403, 201]),
    (DELETE, "hearth.internal.",           [401, 401, 403, 403, 403, 403, 403, 403, 204]),
    (LIST,   "77.10.in-addr.arpa.",        [401, 401, 403, 403, 403, 403, 403, 200, 200]),
    (CREATE, "77.10.in-addr.arpa.",        [401, 401, 403, 403, 403, 403, 403, 403, 201]),
    (DELETE, "77.10.in-addr.arpa.",        [401, 401, 403, 403, 403, 403, 403, 403, 204]),
    (LIST,   "none.hearth.internal.",      [401, 401, 404, 404, 404, 404, 404, 404, 404]),
    (LIST,   "example.",                   [401, 401, 404, 404, 404, 404, 404, 404, 404]),
];

#[test]
fn every_endpoint_is_in_the_table() {
    let api: Value = serde_json::from_str(&flashdns_server::openapi_json().unwrap()).unwrap();
    let mut described = BTreeSet::new();
    for (path, methods) in api["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            described.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    let tested: BTreeSet<String> = TABLE
        .iter()
        .map(|(endpoint, ..)| (*endpoint).to_owned())
        .collect();
    assert_eq!(described, tested);
}

struct Callers(Vec<Option<String>>);

impl Callers {
    fn new(world: &TestWorld) -> Self {
        let p = Node::Project(world.project("p").unwrap());
        let q = Node::Project(world.project("q").unwrap());
        let token = |name: &str, binding: Option<(Role, Node)>| {
            let user = world.user(name).unwrap();
            if let Some((role, node)) = binding {
                world.bind(user, role, node);
            }
            if name == "expired" {
                let past = SystemTime::now() - Duration::from_secs(86_400);
                return Some(world.token_at(user, past).unwrap());
            }
            Some(world.token(user).unwrap())
        };
        Self(vec![
            None,
            token("expired", Some((Role::Admin, Node::Root))),
            token("unbound", None),
            token("viewer", Some((Role::Viewer, p))),
            token("operator", Some((Role::Operator, p))),
            token("admin", Some((Role::Admin, p))),
            token("other", Some((Role::Operator, q))),
            token("root-viewer", Some((Role::Viewer, Node::Root))),
            token("root-admin", Some((Role::Admin, Node::Root))),
        ])
    }

    fn token(&self, name: &str) -> Option<&str> {
        let at = CALLERS.iter().position(|caller| *caller == name).unwrap();
        self.0[at].as_deref()
    }
}

async fn api_bed() -> Option<(Bed, Running, Callers)> {
    let bed = Bed::new()?;
    bed.ready().await;
    let world = TestWorld::new().unwrap();
    let callers = Callers::new(&world);
    let server = bed
        .serve_with(bed.data.path().to_owned(), Some(world.authorizer()))
        .await;
    dig_until(server.dns, &["hearth.internal", "SOA"], |answer| {
        answer.status == "NOERROR"
    })
    .await;
    Some((bed, server, callers))
}

fn name_in(zone: &str) -> String {
    let label = if zone == "hearth.internal." { "www" } else { "x" };
    format!("{label}.{zone}")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_caller_gets_what_the_table_says() {
    let Some((bed, server, callers)) = api_bed().await else {
        return;
    };
    let root = callers.token("root-admin");
    for (endpoint, zone, expected) in TABLE {
        let (method, path) = endpoint.split_once(' ').unwrap();
        let name = name_in(zone);
        let path = path
            .replace("{zone}", zone)
            .replace("{name}", &name)
            .replace("{type}", "TXT");
        let collection = format!("/v1/zones/{zone}/records");
        let record = json!({"name": name, "type": "TXT", "data": "\"x\""});
        for (caller, expected) in CALLERS.iter().zip(expected) {
            if *endpoint == DELETE {
                // 409 when the one before was not allowed to delete it.
                let made = server
                    .call(&bed.pki, "POST", &collection, root, Some(record.clone()))
                    .await;
                assert!(made.0 == 201 || made.0 == 409, "{made:?}");
            }
            let (status, text) = if *endpoint == IMPORT {
                let file = "@ 60 SOA ns h 1 2 3 4 5\n";
                server.import(&bed.pki, zone, callers.token(caller), file).await
            } else {
                let body = match *endpoint {
                    CREATE => Some(record.clone()),
                    NEW_KEY => Some(json!({"name": "k."})),
                    _ => None,
                };
                server
                    .call(&bed.pki, method, &path, callers.token(caller), body)
                    .await
            };
            assert_eq!(status, *expected, "{caller}: {method} {path}: {text}");
            if status >= 400 {
                let error: Value = serde_json::from_str(&text).unwrap();
                assert!(error["error"]["message"].is_string(), "{text}");
            }
            if status == 201 {
                let path = format!("{collection}/{name}/TXT");
                let gone = server.call(&bed.pki, "DELETE", &path, root, None).await;
                assert_eq!(gone.0, 204, "{gone:?}");
            }
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_served_when_the_call_returns() {
    let Some((bed, server, callers)) = api_bed().await else {
        return;
    };
    let operator = callers.token("operator");
    let zone = "/v1/zones/p.hearth.internal/records";
    let create = |record: Value| server.call(&bed.pki, "POST", zone, operator, Some(record));
    for (rtype, data) in [
        ("A", "192.0.2.1"),
        ("A", "192.0.2.2"),
        ("AAAA", "2001:db8::1"),
        ("MX", "10 mail.p.hearth.internal."),
        ("TXT", "\"v=spf1 -all\""),
        ("TYPE65280", "\\# 2 abcd"),
    ] {
        let record = json!({"name": "www.p.hearth.internal", "type": rtype, "ttl_s": 60, "data": data});
        let (status, text) = create(record).await;
        assert_eq!(status, 201, "{text}");
    }
    let answer = server.dig(&["www.p.hearth.internal", "A"]);
    let expected = [
        "www.p.hearth.internal. 60 IN A 192.0.2.1",
        "www.p.hearth.internal. 60 IN A 192.0.2.2",
    ];
    assert_eq!(answer.answer, expected);
    assert_eq!(
        server
            .dig(&["www.p.hearth.internal", "TYPE65280", "+short"])
            .text
            .trim(),
        "\\# 2 ABCD"
    );

    let wildcard =
        json!({"name": "*.apps.p.hearth.internal", "type": "CNAME", "data": "www.p.hearth.internal"});
    assert_eq!(create(wildcard).await.0, 201);
    let answer = server.dig(&["a.b.apps.p.hearth.internal", "A"]);
    assert_eq!(answer.answer.len(), 3, "{}", answer.text);

    let (_, text) = server
        .call(&bed.pki, "GET", &format!("{zone}?limit=1"), operator, None)
        .await;
    let page: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(page["records"].as_array().unwrap().len(), 1);
    assert_eq!(page["records"][0]["name"], "*.apps.p.hearth.internal.");
    let next = page["next_page"].as_str().unwrap();
    let path = format!("{zone}?limit=1&page={next}");
    let (_, text) = server.call(&bed.pki, "GET", &path, operator, None).await;
    let page: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (page["records"].as_array().unwrap().len(), &page["next_page"]),
        (6, &Value::Null)
    );

    let one = format!("{zone}/www.p.hearth.internal/A?data=192.0.2.1");
    assert_eq!(server.call(&bed.pki, "DELETE", &one, operator, None).await.0, 204);
    assert_eq!(server.call(&bed.pki, "DELETE", &one, operator, None).await.0, 404);
    assert_eq!(server.dig(&["www.p.hearth.internal", "A"]).answer.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_requests_say_why() {
    let Some((bed, server, callers)) = api_bed().await else {
        return;
    };
    let root = callers.token("root-admin");
    let call = |zone: &'static str, record: Value| {
        let path = format!("/v1/zones/{zone}/records");
        let server = &server;
        let pki = &bed.pki;
        async move { server.call(pki, "POST", &path, root, Some(record)).await }
    };
    let p = "p.hearth.internal";
    let txt = |name: &str| json!({"name": name, "type": "TXT", "data": "x"});
    assert_eq!(call(p, txt("a.p.hearth.internal")).await.0, 201);
    assert_eq!(call(p, txt("a.p.hearth.internal")).await.0, 409);
    for (zone, record, status, why) in [
        (p, txt("a.q.hearth.internal"), 400, "is not in the zone"),
        (p, txt("p.hearth.internal"), 400, "belongs to the zone"),
        (p, txt("a..p.hearth.internal"), 400, "empty label"),
        (p, txt("www"), 400, "is not in the zone"),
        (p, txt("\u{0}.p.hearth.internal"), 201, ""),
        (
            "hearth.internal",
            txt("a.p.hearth.internal"),
            400,
            "belongs to the zone",
        ),
        (
            "hearth.internal",
            txt("ns.hearth.internal"),
            400,
            "name server itself",
        ),
        (
            "hearth.internal",
            json!({"name": "hearth.internal", "type": "NS", "data": "x."}),
            400,
            "top of the zone",
        ),
        (
            p,
            json!({"name": "b.p.hearth.internal", "type": "SOA", "data": "x."}),
            400,
            "made by the server",
        ),
        (
            "hearth.internal",
            json!({"name": "hearth.internal", "type": "DNAME", "data": "x."}),
            400,
            "top of the zone",
        ),
        (
            p,
            json!({"name": "b.p.hearth.internal", "type": "DNAME", "data": "x..y"}),
            400,
            "empty label",
        ),
        (
            p,
            json!({"name": "b.p.hearth.internal", "type": "ANY", "data": "\\# 1 00"}),
            400,
            "cannot be stored",
        ),
        (
            p,
            json!({"name": "b.p.hearth.internal", "type": "BOGUS", "data": "x"}),
            400,
            "not a record type",
        ),
        (
            p,
            json!({"name": "b.p.hearth.internal", "type": "A", "data": "1.2.3"}),
            400,
            "IPv4",
        ),
        (
            p,
            json!({"name": "b.p.hearth.internal", "type": "A", "data": "1.2.3.4\n$INCLUDE /x"}),
            400,
            "A",
        ),
        (
            p,
            json!({"name": "b.p.hearth.internal", "type": "TXT", "data": "( a"}),
            400,
            "quotes",
        ),
        (
            p,
            json!({"name": "b.p.hearth.internal", "type": "A", "ttl_s": 2147483648_u32, "data": "1.2.3.4"}),
            400,
            "2147483647",
        ),
        (
            p,
            json!({"name": "a.p.hearth.internal", "type": "CNAME", "data": "x."}),
            412,
            "stand together",
        ),
        (
            p,
            json!({"name": "*.p.hearth.internal", "type": "NS", "data": "x."}),
            400,
            "wildcard",
        ),
        (
            p,
            json!({"name": "b.p.hearth.internal", "type": "A", "colour": 1, "data": "1.2.3.4"}),
            400,
            "colour",
        ),
    ] {
        let shown = record.to_string();
        let (got, text) = call(zone, record).await;
        assert_eq!(got, status, "{shown}: {text}");
        assert!(text.contains(why), "{shown}: {text}");
    }
    let large = json!({"name": "b.p.hearth.internal", "type": "TXT", "data": "x".repeat(100_000)});
    assert_eq!(call(p, large).await.0, 400);
    for path in [
        "/v1/zones/%2e%2e/records",
        "/v1/zones/a%2Fb/records",
        "/v1/zones/%00/records",
        "/v1/nothing",
    ] {
        let (status, text) = server.call(&bed.pki, "GET", path, root, None).await;
        assert!(status == 404 || status == 400, "{path}: {status} {text}");
    }
    assert_eq!(server.call(&bed.pki, "PUT", "/v1/zones", root, None).await.0, 501);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_store_changes_are_refused_and_names_answered() {
    let Some((mut bed, server, callers)) = api_bed().await else {
        return;
    };
    bed.etcd.kill();
    let record = json!({"name": "a.p.hearth.internal", "type": "A", "data": "192.0.2.1"});
    let path = "/v1/zones/p.hearth.internal/records";
    let (status, text) = server
        .call(&bed.pki, "POST", path, callers.token("admin"), Some(record))
        .await;
    assert!(status == 503 || status == 504, "{status}: {text}");
    let (status, _) = server
        .call(&bed.pki, "GET", path, callers.token("admin"), None)
        .await;
    assert_eq!(status, 200);
    assert_eq!(server.dig(&["hearth.internal", "SOA"]).status, "NOERROR");
    server.stop().await;
}
