//! Sign-in, tokens, the device flow, the bootstrap; races and thefts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::time::Duration;

use axum::http::StatusCode;
use common::{As, PASSWORD, Server, TOKEN, bootstrapped, server};
use serde_json::json;

#[tokio::test]
async fn the_bootstrap_happens_once_whoever_races() {
    let server = server().await;
    let wrong = json!({"token": "wrong", "username": "eve", "password": PASSWORD});
    let answer = server.post("/v1/bootstrap", None, &wrong).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.text);
    let weak = json!({"token": TOKEN, "username": "root", "password": "short"});
    assert_eq!(
        server.post("/v1/bootstrap", None, &weak).await.status,
        StatusCode::BAD_REQUEST
    );
    let body = |n: u32| json!({"token": TOKEN, "username": format!("root{n}"), "password": PASSWORD});
    let bodies: Vec<_> = (0..8).map(body).collect();
    let racing = bodies.iter().map(|body| server.post("/v1/bootstrap", None, body));
    let mut won = 0;
    for answer in join(racing).await {
        match answer.status {
            StatusCode::CREATED => won += 1,
            other => assert_eq!(other, StatusCode::PRECONDITION_FAILED, "{}", answer.text),
        }
    }
    assert_eq!(won, 1);
    // A restart does not reopen it, and does not make a second world.
    let again = iam_server::app::Aegis::open(
        server.store.clone().into_store(),
        server.aegis.authorizer().clone(),
        common::settings(),
        &iam_server::app::Secrets {
            ca_key: None,
            bootstrap_token: None,
            ..first_secrets(&server)
        },
    )
    .await
    .unwrap();
    let router = iam_server::api::router(again.clone());
    let restarted = Server {
        aegis: again,
        router,
        store: server.store.clone(),
        ca_key: String::new(),
        ca_cert: String::new(),
    };
    assert_eq!(
        restarted.post("/v1/bootstrap", None, &body(9)).await.status,
        StatusCode::PRECONDITION_FAILED
    );
    let users = server
        .store
        .dump()
        .iter()
        .filter(|one| one.key.contains("/public/principals/"))
        .count();
    assert_eq!(users, 1);
}

/// The certificate that belongs to the imported key; the rest as at the first start.
fn first_secrets(server: &Server) -> iam_server::app::Secrets {
    iam_server::app::Secrets {
        ca_cert: server.ca_cert.clone(),
        ..common::secrets()
    }
}

async fn join<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut waiting = false;
        for (future, done) in &mut pending {
            if done.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *done = Some(value),
                    std::task::Poll::Pending => waiting = true,
                }
            }
        }
        if waiting {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    })
    .await;
    pending.into_iter().filter_map(|(_, done)| done).collect()
}

#[tokio::test]
async fn a_refresh_token_works_once_and_its_reuse_ends_the_session() {
    let (server, _) = bootstrapped().await;
    let first = server.tokens("root").await.str("/refresh_token");
    let refresh = async |token: &str| {
        server
            .form(
                "/oauth2/token",
                &format!("grant_type=refresh_token&client_id=hearth-cli&refresh_token={token}"),
            )
            .await
    };
    let answer = refresh(&first).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.headers["cache-control"], "no-store");
    let second = answer.str("/refresh_token");
    assert_eq!(
        server
            .get("/v1/whoami", &answer.str("/access_token"))
            .await
            .status,
        StatusCode::OK
    );
    // A thief uses the first one again: both lose.
    let stolen = refresh(&first).await;
    assert_eq!(
        (stolen.status, stolen.str("/error")),
        (StatusCode::BAD_REQUEST, "invalid_grant".to_owned())
    );
    assert_eq!(refresh(&second).await.str("/error"), "invalid_grant");
    let trail = server.get("/v1/audit", &server.sign_in("root").await).await;
    assert!(trail.text.contains("session.refresh-reuse"), "{}", trail.text);
    for nonsense in [
        "",
        "x",
        "hearth-rt.a.b",
        &first.replace("hearth-rt", "hearth-sa"),
        &format!("{first}x"),
    ] {
        assert_eq!(
            refresh(nonsense).await.str("/error"),
            "invalid_grant",
            "{nonsense}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_that_use_one_refresh_token_at_most_one_wins() {
    let (server, _) = bootstrapped().await;
    for _ in 0..10 {
        let token = server.tokens("root").await.str("/refresh_token");
        let form = format!("grant_type=refresh_token&refresh_token={token}");
        let racing = (0..64).map(|_| {
            let (router, form) = (server.router.clone(), form.clone());
            async move {
                use tower::ServiceExt as _;
                let request = axum::http::Request::post("/oauth2/token")
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(axum::body::Body::from(form))
                    .unwrap();
                router.oneshot(request).await.unwrap().status()
            }
        });
        let mut set = tokio::task::JoinSet::new();
        racing.for_each(|one| drop(set.spawn(one)));
        let won = set
            .join_all()
            .await
            .into_iter()
            .filter(|status| *status == StatusCode::OK)
            .count();
        assert_eq!(won, 1);
        let sessions = server
            .store
            .dump()
            .iter()
            .filter(|one| one.key.contains("/secret/sessions/"))
            .count();
        // The first administrator's own sign-in is the one that is left.
        assert_eq!(sessions, 1, "the raced session has ended");
    }
}

#[tokio::test]
async fn revoking_ends_the_session() {
    let (server, _) = bootstrapped().await;
    let token = server.tokens("root").await.str("/refresh_token");
    assert_eq!(
        server
            .form("/oauth2/revoke", &format!("token={token}"))
            .await
            .status,
        StatusCode::OK
    );
    let answer = server
        .form(
            "/oauth2/token",
            &format!("grant_type=refresh_token&refresh_token={token}"),
        )
        .await;
    assert_eq!(answer.str("/error"), "invalid_grant");
}

#[tokio::test]
async fn disabling_a_user_voids_tokens_and_sessions_at_once() {
    let (server, root) = bootstrapped().await;
    server.user(&root, "ada").await;
    let tokens = server.tokens("ada").await;
    let (access, refresh) = (tokens.str("/access_token"), tokens.str("/refresh_token"));
    let set = async |disabled: bool| {
        let body = json!({"disabled": disabled}).to_string();
        let answer = server
            .send(
                "PATCH",
                "/v1/users/ada",
                &As::Token(root.clone()),
                "application/json",
                body,
            )
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.headers["hearth-revision"]
            .to_str()
            .unwrap()
            .parse::<i64>()
            .unwrap()
    };
    let revision = set(true).await;
    assert!(server.aegis.authorizer().revision() >= revision);
    assert_eq!(
        server.get("/v1/whoami", &access).await.status,
        StatusCode::UNAUTHORIZED
    );
    let sign_in = json!({"username": "ada", "password": PASSWORD});
    assert_eq!(
        server.post("/v1/sessions", None, &sign_in).await.status,
        StatusCode::UNAUTHORIZED
    );
    set(false).await;
    assert_eq!(
        server.get("/v1/whoami", &access).await.status,
        StatusCode::UNAUTHORIZED,
        "old tokens stay void"
    );
    let answer = server
        .form(
            "/oauth2/token",
            &format!("grant_type=refresh_token&refresh_token={refresh}"),
        )
        .await;
    assert_eq!(answer.str("/error"), "invalid_grant", "old sessions stay ended");
    assert_eq!(
        server
            .get("/v1/whoami", &server.sign_in("ada").await)
            .await
            .status,
        StatusCode::OK
    );
    // Nobody locks themselves out.
    let body = json!({"disabled": true}).to_string();
    let own = server
        .send(
            "PATCH",
            "/v1/users/root",
            &As::Token(root.clone()),
            "application/json",
            body,
        )
        .await;
    assert_eq!(own.status, StatusCode::PRECONDITION_FAILED);
}

#[tokio::test]
async fn a_changed_password_ends_other_sign_ins() {
    let (server, root) = bootstrapped().await;
    let ada = server.user(&root, "ada").await;
    let change = json!({"old_password": PASSWORD, "new_password": "another fine phrase"});
    let wrong = json!({"old_password": "not it at all", "new_password": "another fine phrase"});
    assert_eq!(
        server
            .post("/v1/whoami/password", Some(&ada), &wrong)
            .await
            .status,
        StatusCode::UNAUTHORIZED
    );
    let answer = server.post("/v1/whoami/password", Some(&ada), &change).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.text);
    assert_eq!(
        server.get("/v1/whoami", &ada).await.status,
        StatusCode::UNAUTHORIZED
    );
    let old = json!({"username": "ada", "password": PASSWORD});
    assert_eq!(
        server.post("/v1/sessions", None, &old).await.status,
        StatusCode::UNAUTHORIZED
    );
    let new = json!({"username": "ada", "password": "another fine phrase"});
    assert_eq!(
        server.post("/v1/sessions", None, &new).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn guessing_is_slowed_and_tells_nothing() {
    let (server, _) = bootstrapped().await;
    let guess = async |name: &str| {
        server
            .post(
                "/v1/sessions",
                None,
                &json!({"username": name, "password": "wrong wrong"}),
            )
            .await
    };
    let (known, unknown) = (guess("root").await, guess("nobody-here").await);
    assert_eq!((known.status, &known.text), (unknown.status, &unknown.text));
    let mut last = known;
    for _ in 0..6 {
        last = guess("root").await;
    }
    assert_eq!(last.status, StatusCode::TOO_MANY_REQUESTS, "{}", last.text);
    assert!(last.text.contains("wait"), "{}", last.text);
    // Even the right password must wait now: the answer is no oracle.
    let right = json!({"username": "root", "password": PASSWORD});
    assert_eq!(
        server.post("/v1/sessions", None, &right).await.status,
        StatusCode::TOO_MANY_REQUESTS
    );
}

async fn begin(server: &Server) -> (String, String) {
    let answer = server
        .form("/oauth2/device_authorization", "client_id=hearth-cli")
        .await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.str("/verification_uri"), format!("{}/device", common::URL));
    (answer.str("/device_code"), answer.str("/user_code"))
}

async fn poll(server: &Server, code: &str) -> common::Answer {
    let form = format!(
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code&client_id=hearth-cli&device_code={code}"
    );
    server.form("/oauth2/token", &form).await
}

async fn decide(server: &Server, code: &str, password: &str, decision: &str) -> common::Answer {
    let form = format!(
        "user_code={code}&username=root&password={}&decision={decision}",
        password.replace(' ', "+")
    );
    server.form("/device", &form).await
}

#[tokio::test]
async fn a_device_is_let_in_by_its_person() {
    let (server, _) = bootstrapped().await;
    let (device, user) = begin(&server).await;
    assert_eq!(
        poll(&server, &device).await.str("/error"),
        "authorization_pending"
    );
    assert_eq!(poll(&server, &device).await.str("/error"), "slow_down");
    let page = server
        .send(
            "GET",
            &format!("/device?user_code={user}"),
            &As::Nobody,
            "",
            String::new(),
        )
        .await;
    assert!(page.text.contains(&user));
    assert!(
        page.headers["content-security-policy"]
            .to_str()
            .unwrap()
            .contains("frame-ancestors 'none'")
    );
    let nasty = server
        .send(
            "GET",
            "/device?user_code=%22%3E%3Cscript%3E",
            &As::Nobody,
            "",
            String::new(),
        )
        .await;
    assert!(!nasty.text.contains("<script>"), "{}", nasty.text);
    assert_eq!(
        decide(&server, "BCDF-GHJK", PASSWORD, "approve").await.status,
        StatusCode::NOT_FOUND
    );
    let wrong = decide(&server, &user, "wrong wrong", "approve").await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    assert!(
        !wrong.text.contains("wrong wrong"),
        "the password is not shown again"
    );
    let typed = user.to_lowercase().replace('-', "+");
    let done = decide(&server, &typed, PASSWORD, "approve").await;
    assert_eq!(done.status, StatusCode::OK, "{}", done.text);
    assert_eq!(
        decide(&server, &user, PASSWORD, "approve").await.status,
        StatusCode::NOT_FOUND,
        "decided once"
    );
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let tokens = poll(&server, &device).await;
    assert_eq!(tokens.status, StatusCode::OK, "{}", tokens.text);
    assert_eq!(
        server
            .get("/v1/whoami", &tokens.str("/access_token"))
            .await
            .str("/subject"),
        "user/root"
    );
    assert_eq!(
        poll(&server, &device).await.str("/error"),
        "expired_token",
        "a code gives tokens once"
    );
}

#[tokio::test]
async fn a_device_is_refused_by_its_person_or_another_site() {
    let (server, _) = bootstrapped().await;
    let (device, user) = begin(&server).await;
    assert_eq!(
        decide(&server, &user, PASSWORD, "deny").await.status,
        StatusCode::OK
    );
    assert_eq!(poll(&server, &device).await.str("/error"), "access_denied");
    assert_eq!(poll(&server, &device).await.str("/error"), "expired_token");
    for nonsense in ["", "x", "hearth-dc.a.b"] {
        assert_eq!(poll(&server, nonsense).await.str("/error"), "expired_token");
    }
    let answer = server
        .form("/oauth2/device_authorization", "client_id=evil")
        .await;
    assert_eq!(answer.str("/error"), "invalid_client");
    let (_, user) = begin(&server).await;
    let request = axum::http::Request::post("/device")
        .header("content-type", "application/x-www-form-urlencoded")
        .header("origin", "https://evil.test")
        .body(axum::body::Body::from(format!(
            "user_code={user}&username=root&password=x&decision=approve"
        )))
        .unwrap();
    use tower::ServiceExt as _;
    assert_eq!(
        server.router.clone().oneshot(request).await.unwrap().status(),
        StatusCode::FORBIDDEN
    );
}

#[tokio::test]
async fn service_accounts_sign_in_with_their_secret() {
    let (server, root) = bootstrapped().await;
    let made = server
        .post(
            "/v1/projects/default/service-accounts",
            Some(&root),
            &json!({"name": "robot"}),
        )
        .await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    server
        .bind(
            &root,
            "service-account/default/robot",
            "operator",
            "project/default",
        )
        .await;
    let secret = server
        .post(
            "/v1/projects/default/service-accounts/robot/secrets",
            Some(&root),
            &json!({}),
        )
        .await;
    assert_eq!(
        (secret.status, secret.headers["cache-control"].to_str().unwrap()),
        (StatusCode::CREATED, "no-store")
    );
    let (id, text) = (secret.str("/client_id"), secret.str("/client_secret"));
    let sign_in = async |id: &str, secret: &str| {
        server
            .form(
                "/oauth2/token",
                &format!("grant_type=client_credentials&client_id={id}&client_secret={secret}"),
            )
            .await
    };
    let tokens = sign_in(&id, &text).await;
    assert_eq!(tokens.status, StatusCode::OK, "{}", tokens.text);
    assert!(tokens.json().get("refresh_token").is_none());
    let access = tokens.str("/access_token");
    let me = server.get("/v1/whoami", &access).await;
    assert_eq!(me.str("/subject"), "service-account/default/robot");
    assert_eq!(me.str("/bindings/0/role"), "operator");
    let other = server.get("/v1/whoami", &root).await.str("/id");
    for (id, secret) in [
        (other.as_str(), text.as_str()),
        (&id, "wrong"),
        ("x", &text),
        (&id, &text.replace("hearth-sa", "hearth-rt")),
    ] {
        let answer = sign_in(id, secret).await;
        assert_eq!(
            (answer.status, answer.str("/error")),
            (StatusCode::UNAUTHORIZED, "invalid_client".to_owned())
        );
    }
    let who = As::Token(root.clone());
    let gone = server
        .send(
            "DELETE",
            "/v1/projects/default/service-accounts/robot",
            &who,
            "",
            String::new(),
        )
        .await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT, "{}", gone.text);
    assert_eq!(
        server.get("/v1/whoami", &access).await.status,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(sign_in(&id, &text).await.str("/error"), "invalid_client");
    let left: Vec<_> = server
        .store
        .dump()
        .into_iter()
        .filter(|one| one.key.contains("/service-accounts/"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn ended_sessions_and_devices_are_swept_and_live_ones_stay() {
    let (server, _) = bootstrapped().await;
    begin(&server).await;
    assert_eq!(server.aegis.sweep().await.unwrap(), 0);
    let store = server.store.clone().into_store();
    for prefix in ["/aegis/v1/secret/sessions/", "/aegis/v1/secret/devices/"] {
        for one in store.list(prefix).await.unwrap() {
            let mut record: serde_json::Value = one.read().unwrap();
            record["end_ms"] = json!(1);
            store
                .commit(iam_server::store::Commit::default().put(&one.key, &record))
                .await
                .unwrap();
        }
    }
    assert_eq!(server.aegis.sweep().await.unwrap(), 2);
    let left = |text: &str| {
        server
            .store
            .dump()
            .iter()
            .filter(|one| one.key.contains(text))
            .count()
    };
    assert_eq!(
        (left("/sessions/"), left("/devices/"), left("/user-codes/")),
        (0, 0, 0)
    );
}
