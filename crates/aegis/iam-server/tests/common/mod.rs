//! A whole Aegis over a store in memory, without a port.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(dead_code, reason = "each test uses a part of it")]

use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use hearth_service::pki::Authority;
use hearth_service::tls::PeerIdentity;
use iam_client::{Authorizer, AuthorizerConfig, Snapshot};
use iam_server::api;
use iam_server::app::{Aegis, Secrets, Settings};
use iam_server::seal::Sealer;
use iam_server::store::{MemoryStore, Store};
use serde_json::{Value, json};
use tower::ServiceExt as _;

pub(crate) const DOMAIN: &str = "hearth.test";
pub(crate) const URL: &str = "https://aegis.test";
pub(crate) const TOKEN: &str = "canary-bootstrap-token-0123456789";
pub(crate) const PASSWORD: &str = "canary correct horse";

pub(crate) fn settings() -> Settings {
    Settings {
        public_url: URL.to_owned(),
        domain: DOMAIN.to_owned(),
        access_token_lifetime_s: 600,
    }
}

pub(crate) fn secrets() -> Secrets {
    let authority = Authority::create(DOMAIN, SystemTime::now()).unwrap();
    Secrets {
        sealer: std::sync::Arc::new(Sealer::new(&[7; 32]).unwrap()),
        ca_cert: authority.cert_pem().to_owned(),
        ca_key: Some(authority.key_pem().to_owned()),
        bootstrap_token: Some(format!("{TOKEN}\n")),
    }
}

pub(crate) struct Server {
    pub(crate) aegis: Aegis,
    pub(crate) router: Router,
    pub(crate) store: MemoryStore,
    pub(crate) ca_key: String,
    pub(crate) ca_cert: String,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in `{}`", self.text))
    }

    pub(crate) fn str(&self, pointer: &str) -> String {
        self.json()
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_else(|| panic!("no {pointer} in {}", self.text))
            .to_owned()
    }
}

pub(crate) async fn server() -> Server {
    let config = AuthorizerConfig::new(URL, DOMAIN);
    let authorizer = Authorizer::from_snapshot(config, Snapshot::empty(), Duration::ZERO);
    let store = MemoryStore::new(authorizer.clone());
    let secrets = secrets();
    let aegis = Aegis::open(store.clone().into_store(), authorizer, settings(), &secrets)
        .await
        .unwrap();
    let router = api::router(aegis.clone());
    Server {
        aegis,
        router,
        store,
        ca_key: secrets.ca_key.unwrap(),
        ca_cert: secrets.ca_cert,
    }
}

/// With the first administrator, `root`.
pub(crate) async fn bootstrapped() -> (Server, String) {
    let server = server().await;
    let body = json!({"token": TOKEN, "username": "root", "password": PASSWORD});
    let answer = server.post("/v1/bootstrap", None, &body).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let token = server.sign_in("root").await;
    (server, token)
}

/// Who a request comes from.
#[derive(Clone, Debug)]
pub(crate) enum As {
    Nobody,
    Token(String),
    Certificate(&'static str),
}

impl Server {
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        who: &As,
        content: &str,
        body: String,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !content.is_empty() {
            request = request.header("content-type", content);
        }
        if let As::Token(token) = who {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut request = request.body(Body::from(body)).unwrap();
        if let As::Certificate(path) = who {
            let peer = PeerIdentity {
                trust_domain: DOMAIN.to_owned(),
                path: (*path).to_owned(),
            };
            request.extensions_mut().insert(peer);
        }
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        Answer {
            status,
            headers,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    pub(crate) async fn post(&self, path: &str, token: Option<&str>, body: &Value) -> Answer {
        let who = token.map_or(As::Nobody, |token| As::Token(token.to_owned()));
        self.send("POST", path, &who, "application/json", body.to_string())
            .await
    }

    pub(crate) async fn form(&self, path: &str, body: &str) -> Answer {
        self.send(
            "POST",
            path,
            &As::Nobody,
            "application/x-www-form-urlencoded",
            body.to_owned(),
        )
        .await
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> Answer {
        self.send("GET", path, &As::Token(token.to_owned()), "", String::new())
            .await
    }

    pub(crate) async fn tokens(&self, username: &str) -> Answer {
        let answer = self
            .post(
                "/v1/sessions",
                None,
                &json!({"username": username, "password": PASSWORD}),
            )
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer
    }

    pub(crate) async fn sign_in(&self, username: &str) -> String {
        self.tokens(username).await.str("/access_token")
    }

    /// Makes a user with the usual password and signs it in.
    pub(crate) async fn user(&self, root: &str, name: &str) -> String {
        let answer = self
            .post(
                "/v1/users",
                Some(root),
                &json!({"name": name, "password": PASSWORD}),
            )
            .await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
        self.sign_in(name).await
    }

    pub(crate) async fn bind(&self, root: &str, subject: &str, role: &str, on: &str) -> String {
        let body = json!({"subject": subject, "role": role, "on": on});
        let answer = self.post("/v1/bindings", Some(root), &body).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
        answer.str("/id")
    }

    pub(crate) async fn project(&self, root: &str, name: &str) {
        let answer = self
            .post("/v1/projects", Some(root), &json!({"name": name}))
            .await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    }
}

pub(crate) fn memory(server: &Server) -> Store {
    server.store.clone().into_store()
}
