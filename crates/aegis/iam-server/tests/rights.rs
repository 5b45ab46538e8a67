//! No path gives a caller more than its giver holds; every change leaves one record; no secret is stored.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::BTreeSet;

use axum::http::StatusCode;
use common::{As, PASSWORD, TOKEN, bootstrapped};
use hearth_service::pki::signing_request;
use serde_json::json;

#[tokio::test]
async fn nobody_grants_what_they_do_not_hold() {
    let (server, root) = bootstrapped().await;
    server.project(&root, "alpha").await;
    server.project(&root, "omega").await;
    let anna = server.user(&root, "anna").await;
    server.user(&root, "bert").await;
    server.bind(&root, "user/anna", "admin", "project/alpha").await;
    let grant = async |token: &str, subject: &str, role: &str, on: &str| {
        server
            .post(
                "/v1/bindings",
                Some(token),
                &json!({"subject": subject, "role": role, "on": on}),
            )
            .await
            .status
    };
    assert_eq!(
        grant(&anna, "user/bert", "admin", "project/alpha").await,
        StatusCode::CREATED
    );
    assert_eq!(
        grant(&anna, "user/bert", "admin", "project/alpha").await,
        StatusCode::CONFLICT,
        "granted already"
    );
    for on in ["root", "organisation/default"] {
        assert_eq!(
            grant(&anna, "user/anna", "viewer", on).await,
            StatusCode::FORBIDDEN,
            "{on}"
        );
    }
    assert_eq!(
        grant(&anna, "user/anna", "admin", "project/omega").await,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        grant(&anna, "user/nobody", "viewer", "project/alpha").await,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        grant(&anna, "anna", "viewer", "project/alpha").await,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        grant(&anna, "workload/service/flashdns", "viewer", "project/alpha").await,
        StatusCode::CREATED
    );
}

/// Whoever has a secret of a service account is that account, so making one is granting all that it holds.
#[tokio::test]
async fn a_secret_of_a_stronger_account_is_refused() {
    let (server, root) = bootstrapped().await;
    server.project(&root, "alpha").await;
    let anna = server.user(&root, "anna").await;
    server.bind(&root, "user/anna", "admin", "project/alpha").await;
    let accounts = "/v1/projects/alpha/service-accounts";
    assert_eq!(
        server
            .post(accounts, Some(&anna), &json!({"name": "robot"}))
            .await
            .status,
        StatusCode::CREATED
    );
    let secret = async || {
        server
            .post(&format!("{accounts}/robot/secrets"), Some(&anna), &json!({}))
            .await
            .status
    };
    assert_eq!(secret().await, StatusCode::CREATED);
    let binding = server
        .bind(
            &root,
            "service-account/alpha/robot",
            "operator",
            "organisation/default",
        )
        .await;
    assert_eq!(secret().await, StatusCode::FORBIDDEN);
    let gone = server
        .send(
            "DELETE",
            &format!("/v1/bindings/{binding}"),
            &As::Token(root.clone()),
            "",
            String::new(),
        )
        .await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    assert_eq!(secret().await, StatusCode::CREATED);
    // The same through a group.
    let members = json!({"members": ["service-account/alpha/robot"]}).to_string();
    let group = server
        .send(
            "PUT",
            "/v1/groups/ops",
            &As::Token(root.clone()),
            "application/json",
            members,
        )
        .await;
    assert_eq!(group.status, StatusCode::OK, "{}", group.text);
    server.bind(&root, "group/ops", "viewer", "root").await;
    assert_eq!(secret().await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn groups_give_what_is_bound_to_them_and_take_it_back() {
    let (server, root) = bootstrapped().await;
    let ada = server.user(&root, "ada").await;
    let put = async |name: &str, members: &[&str]| {
        let body = json!({"members": members}).to_string();
        server
            .send(
                "PUT",
                &format!("/v1/groups/{name}"),
                &As::Token(root.clone()),
                "application/json",
                body,
            )
            .await
    };
    assert_eq!(put("inner", &["user/ada"]).await.status, StatusCode::OK);
    assert_eq!(put("outer", &["group/inner"]).await.status, StatusCode::OK);
    let cycle = put("inner", &["user/ada", "group/outer"]).await;
    assert_eq!(cycle.status, StatusCode::PRECONDITION_FAILED);
    assert!(cycle.text.contains("contain itself"), "{}", cycle.text);
    assert_eq!(put("inner", &["group/nope"]).await.status, StatusCode::NOT_FOUND);
    server
        .bind(&root, "group/outer", "operator", "project/default")
        .await;
    let check = async || {
        let body = json!({"action": "vmc.vm.create", "on": "project/default"});
        let answer = server.post("/v1/check", Some(&ada), &body).await;
        (answer.status == StatusCode::OK).then(|| answer.json()["allowed"].as_bool().unwrap())
    };
    assert_eq!(check().await, Some(true));
    assert_eq!(put("inner", &[]).await.status, StatusCode::OK);
    assert_eq!(check().await, None, "she may not even see the project any more");
    let groups = server.get("/v1/groups", &root).await.json();
    assert_eq!(groups["items"][1]["members"], json!(["group/inner"]));
}

#[tokio::test]
async fn an_explanation_names_what_decided() {
    let (server, root) = bootstrapped().await;
    server.user(&root, "ada").await;
    let binding = server
        .bind(&root, "user/ada", "operator", "project/default")
        .await;
    let ask = async |action: &str| {
        let body = json!({"subject": "user/ada", "action": action, "on": "project/default"});
        server.post("/v1/check", Some(&root), &body).await.json()
    };
    let yes = ask("vmc.vm.create").await;
    assert_eq!(
        (&yes["allowed"], &yes["because"]),
        (&json!(true), &json!([format!("binding/{binding}")]))
    );
    let no = ask("iam.binding.create").await;
    assert_eq!((&no["allowed"], &no["because"]), (&json!(false), &json!([])));
    let body = json!({"disabled": true}).to_string();
    server
        .send(
            "PATCH",
            "/v1/users/ada",
            &As::Token(root.clone()),
            "application/json",
            body,
        )
        .await;
    let forbidden = ask("vmc.vm.create").await;
    assert_eq!(
        (&forbidden["allowed"], &forbidden["because"]),
        (&json!(false), &json!(["platform/disabled-principal"]))
    );
    assert_eq!(
        server
            .post(
                "/v1/check",
                Some(&root),
                &json!({"action": "x.y.z", "on": "root"})
            )
            .await
            .status,
        400
    );
}

#[tokio::test]
async fn the_last_administrator_stays() {
    let (server, root) = bootstrapped().await;
    let bindings = server.get("/v1/bindings", &root).await;
    let own = bindings.str("/items/0/id");
    let path = format!("/v1/bindings/{own}");
    let who = As::Token(root.clone());
    let answer = server.send("DELETE", &path, &who, "", String::new()).await;
    assert_eq!(answer.status, StatusCode::PRECONDITION_FAILED, "{}", answer.text);
    server.user(&root, "second").await;
    server.bind(&root, "user/second", "admin", "root").await;
    assert_eq!(
        server.send("DELETE", &path, &who, "", String::new()).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(server.get("/v1/users", &root).await.status, StatusCode::FORBIDDEN);
}

/// Two administrators at once cannot combine two allowed changes into one that leaves nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_administrators_cannot_remove_each_other_at_the_same_time() {
    for _ in 0..10 {
        let (server, root) = bootstrapped().await;
        let second = server.user(&root, "second").await;
        let own = server.get("/v1/bindings", &root).await.str("/items/0/id");
        let other = server.bind(&root, "user/second", "admin", "root").await;
        let (one, two) = (format!("/v1/bindings/{other}"), format!("/v1/bindings/{own}"));
        let (root_as, second_as) = (As::Token(root.clone()), As::Token(second));
        let (a, b) = tokio::join!(
            server.send("DELETE", &one, &root_as, "", String::new()),
            server.send("DELETE", &two, &second_as, "", String::new())
        );
        let gone = [a.status, b.status]
            .iter()
            .filter(|status| **status == StatusCode::NO_CONTENT)
            .count();
        assert_eq!(gone, 1, "{} {}", a.text, b.text);
    }
}

#[tokio::test]
async fn every_change_has_one_record_and_pages_give_all() {
    let (server, root) = bootstrapped().await;
    let changes = |dump: &[iam_server::store::Stored]| {
        dump.iter()
            .find(|one| one.key.ends_with("/public/policy"))
            .unwrap()
            .read::<serde_json::Value>()
            .unwrap()["generation"]
            .as_u64()
            .unwrap()
    };
    let records = |dump: &[iam_server::store::Stored]| {
        dump.iter()
            .filter(|one| one.key.starts_with("/aegis/v1/audit/"))
            .count()
    };
    let before = server.store.dump();
    server.project(&root, "alpha").await;
    server
        .post(
            "/v1/users",
            Some(&root),
            &json!({"name": "ada", "password": PASSWORD}),
        )
        .await;
    let binding = server.bind(&root, "user/ada", "viewer", "project/alpha").await;
    server
        .send(
            "DELETE",
            &format!("/v1/bindings/{binding}"),
            &As::Token(root.clone()),
            "",
            String::new(),
        )
        .await;
    // What is refused changes nothing and leaves nothing.
    server
        .post(
            "/v1/users",
            Some(&root),
            &json!({"name": "ada", "password": PASSWORD}),
        )
        .await;
    let after = server.store.dump();
    assert_eq!(changes(&after) - changes(&before), 4);
    assert_eq!(records(&after) - records(&before), 4);
    let (mut seen, mut page) = (BTreeSet::new(), String::new());
    loop {
        let answer = server
            .get(&format!("/v1/audit?limit=3{page}"), &root)
            .await
            .json();
        for item in answer["items"].as_array().unwrap() {
            assert!(
                seen.insert(item["id"].as_str().unwrap().to_owned()),
                "twice: {item}"
            );
        }
        match answer["next_page"].as_str() {
            Some(next) => page = format!("&page={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), records(&after));
    let first = server.get("/v1/audit?limit=1", &root).await.json();
    assert_eq!(
        (&first["items"][0]["action"], &first["items"][0]["actor_name"]),
        (&json!("iam.binding.delete"), &json!("root"))
    );
}

#[tokio::test]
async fn no_secret_is_in_the_store() {
    let (server, root) = bootstrapped().await;
    let tokens = server.tokens("root").await;
    server
        .post(
            "/v1/projects/default/service-accounts",
            Some(&root),
            &json!({"name": "robot"}),
        )
        .await;
    let secret = server
        .post(
            "/v1/projects/default/service-accounts/robot/secrets",
            Some(&root),
            &json!({}),
        )
        .await;
    let device = server
        .form("/oauth2/device_authorization", "client_id=hearth-cli")
        .await
        .str("/device_code");
    let last = |text: &str| text.rsplit('.').next().unwrap().to_owned();
    let key_body: String = server
        .ca_key
        .lines()
        .filter(|line| !line.starts_with('-'))
        .collect();
    let canaries = [
        TOKEN.to_owned(),
        PASSWORD.to_owned(),
        root.clone(),
        tokens.str("/access_token"),
        last(&tokens.str("/refresh_token")),
        last(&secret.str("/client_secret")),
        last(&device),
        key_body.chars().take(40).collect(),
        "PRIVATE KEY".to_owned(),
    ];
    let dump = server.store.dump();
    assert!(dump.len() > 10);
    for one in &dump {
        let text = String::from_utf8_lossy(&one.value);
        for canary in &canaries {
            assert!(
                !text.contains(canary.as_str()) && !one.key.contains(canary.as_str()),
                "{canary} is in {}",
                one.key
            );
        }
    }
    // Nothing of what only Aegis may read lies where every service may.
    for one in dump.iter().filter(|one| one.key.starts_with("/aegis/v1/public/")) {
        let text = String::from_utf8_lossy(&one.value);
        assert!(
            !text.contains("argon2") && !text.contains("hash"),
            "{}: {text}",
            one.key
        );
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_for_exactly_who_asks() {
    let (server, root) = bootstrapped().await;
    // The request asks for somebody else's name: it is not heard.
    let (_, csr) = signing_request("service/aegis").unwrap();
    let body = json!({"csr": csr}).to_string();
    let ask = async |who: &As| {
        server
            .send(
                "POST",
                "/v1/certificates/renew",
                who,
                "application/json",
                body.clone(),
            )
            .await
    };
    let answer = ask(&As::Certificate("node/node01")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let pem = answer.str("/certificate");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("leaf.pem");
    std::fs::write(&path, &pem).unwrap();
    let shown = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(&path)
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("URI:spiffe://hearth.test/node/node01"), "{shown}");
    assert!(
        !shown.contains("service/aegis") && shown.contains("CA:FALSE"),
        "{shown}"
    );
    assert_eq!(ask(&As::Token(root)).await.status, StatusCode::FORBIDDEN);
    assert_eq!(ask(&As::Nobody).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn another_seal_key_does_not_open_the_store() {
    let (server, _) = bootstrapped().await;
    let secrets = iam_server::app::Secrets {
        sealer: std::sync::Arc::new(iam_server::seal::Sealer::new(&[8; 32]).unwrap()),
        ..common::secrets()
    };
    let authorizer = server.aegis.authorizer().clone();
    let store = server.store.clone().into_store();
    let error = iam_server::app::Aegis::open(store, authorizer, common::settings(), &secrets)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("the seal key is not the one"),
        "{error}"
    );
}
