//! A real listener and real connections over TLS and plain text.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use axum::extract::Request;
use axum::routing::get;
use axum::{Router, response::IntoResponse};
use hearth_service::client::{ChannelOptions, channel};
use hearth_service::config::TlsConfig;
use hearth_service::error::{ApiError, ErrorBody, ErrorKind};
use hearth_service::pki::{Authority, LEAF_LIFETIME, LeafRequest};
use hearth_service::server::{Listener, ServeOptions, serve};
use hearth_service::tasks::{Kind, Tasks};
use hearth_service::tls::{ClientAuth, Identity, PeerIdentity, Plaintext};
use http_body_util::BodyExt;
use tower::ServiceExt;

const DOMAIN: &str = "test.internal";

fn write_identity(dir: &Path, authority: &Authority, path: &str) -> Identity {
    let request = LeafRequest {
        trust_domain: DOMAIN.to_owned(),
        path: path.to_owned(),
        dns: vec!["localhost".to_owned()],
        ips: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
        lifetime: LEAF_LIFETIME,
    };
    let issued = authority.issue(&request, SystemTime::now()).unwrap();
    let name = path.replace('/', "-");
    let files = TlsConfig {
        ca: dir.join(format!("{name}-ca.crt")),
        cert: dir.join(format!("{name}.crt")),
        key: dir.join(format!("{name}.key")),
    };
    std::fs::write(&files.ca, authority.cert_pem()).unwrap();
    std::fs::write(&files.cert, issued.cert_pem).unwrap();
    std::fs::write(&files.key, issued.key_pem).unwrap();
    Identity::load(&files).unwrap()
}

async fn who(request: Request) -> String {
    let extensions = request.extensions();
    match (extensions.get::<PeerIdentity>(), extensions.get::<Plaintext>()) {
        (Some(peer), None) => peer.path.clone(),
        (None, Some(Plaintext)) => "plaintext".to_owned(),
        (None, None) => "anonymous".to_owned(),
        (Some(_), Some(_)) => "both".to_owned(),
    }
}

async fn start(server: Identity, tasks: &Tasks) -> SocketAddr {
    let router = Router::new().route("/who", get(who)).route(
        "/fail",
        get(|| async {
            ApiError::new(ErrorKind::NotFound, "no such `thing`")
                .hint("list them")
                .into_response()
        }),
    );
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr();
    let options = ServeOptions {
        tls: Some((server, ClientAuth::Optional)),
        plaintext_loopback: true,
        common_names: false,
        max_connections: 16,
    };
    let group = tasks.clone();
    tasks.spawn("server", Kind::Critical, async move {
        Ok(serve(listener, router, options, group).await?)
    });
    address
}

async fn ask(
    address: SocketAddr,
    path: &str,
    identity: Option<&Identity>,
    expect: Option<&'static str>,
) -> Result<(http::StatusCode, http::HeaderMap, String), String> {
    let options = ChannelOptions {
        expect,
        timeout: Some(Duration::from_secs(5)),
        ..ChannelOptions::default()
    };
    let channel = channel(&address.to_string(), identity, &options).unwrap();
    let request = http::Request::get(format!("http://{address}{path}"))
        .body(tonic::body::Body::empty())
        .unwrap();
    let response = channel
        .oneshot(request)
        .await
        .map_err(|error| hearth_service::tasks::chain(&error))?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Ok((
        parts.status,
        parts.headers,
        String::from_utf8(body.to_vec()).unwrap(),
    ))
}

#[tokio::test]
async fn one_port_serves_tls_and_plain_text_and_knows_its_peers() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(DOMAIN, SystemTime::now()).unwrap();
    let tasks = Tasks::new();
    let address = start(write_identity(dir.path(), &authority, "service/one"), &tasks).await;
    let node = write_identity(dir.path(), &authority, "node/node01");

    assert_eq!(
        ask(address, "/who", Some(&node), Some("service/one"))
            .await
            .unwrap()
            .2,
        "node/node01"
    );
    assert_eq!(ask(address, "/who", None, None).await.unwrap().2, "plaintext");

    let wrong_server = ask(address, "/who", Some(&node), Some("service/other"))
        .await
        .unwrap_err();
    assert!(
        wrong_server.contains("`service/one` and not `service/other`"),
        "{wrong_server}"
    );

    let stranger = write_identity(
        dir.path(),
        &Authority::create(DOMAIN, SystemTime::now()).unwrap(),
        "node/evil",
    );
    ask(address, "/who", Some(&stranger), None).await.unwrap_err();

    tasks.stop("test over");
    assert!(tasks.finished(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn errors_carry_the_request_id() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(DOMAIN, SystemTime::now()).unwrap();
    let tasks = Tasks::new();
    let address = start(write_identity(dir.path(), &authority, "service/one"), &tasks).await;
    let (status, headers, body) = ask(address, "/fail", None, None).await.unwrap();
    assert_eq!(status, http::StatusCode::NOT_FOUND);
    let body: ErrorBody = serde_json::from_str(&body).unwrap();
    assert_eq!(body.error.message, "no such `thing`");
    assert_eq!(body.error.hint.as_deref(), Some("list them"));
    assert_eq!(
        body.error.request_id.as_deref(),
        headers.get("x-request-id").unwrap().to_str().ok()
    );
    tasks.stop("test over");
    assert!(tasks.finished(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let first = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let error = Listener::bind(first.local_addr()).await.unwrap_err().to_string();
    assert!(error.contains(&first.local_addr().to_string()), "{error}");
}

#[tokio::test]
async fn a_renewed_certificate_is_signed_for_the_key_of_the_request_only() {
    let authority = Authority::create(DOMAIN, SystemTime::now()).unwrap();
    let (key_pem, csr_pem) = hearth_service::pki::signing_request("service/one").unwrap();
    let request = LeafRequest {
        trust_domain: DOMAIN.to_owned(),
        path: "service/one".to_owned(),
        dns: vec!["localhost".to_owned()],
        ips: Vec::new(),
        lifetime: LEAF_LIFETIME,
    };
    let cert_pem = authority.sign_csr(&csr_pem, &request, SystemTime::now()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let files = TlsConfig {
        ca: dir.path().join("ca"),
        cert: dir.path().join("cert"),
        key: dir.path().join("key"),
    };
    std::fs::write(&files.ca, authority.cert_pem()).unwrap();
    std::fs::write(&files.cert, &cert_pem).unwrap();
    hearth_service::pki::write_private(&files.key, key_pem.as_bytes()).unwrap();
    assert_eq!(Identity::load(&files).unwrap().own().path, "service/one");
    let other = authority.issue(&request, SystemTime::now()).unwrap();
    std::fs::write(&files.key, other.key_pem).unwrap();
    assert!(
        Identity::load(&files).is_err(),
        "a certificate was taken with a key that is not its own"
    );
}

#[tokio::test]
async fn a_body_that_nobody_reads_does_not_cost_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(DOMAIN, SystemTime::now()).unwrap();
    let tasks = Tasks::new();
    let address = start(write_identity(dir.path(), &authority, "service/one"), &tasks).await;
    let node = write_identity(dir.path(), &authority, "node/node01");
    let channel = channel(&address.to_string(), Some(&node), &ChannelOptions::default()).unwrap();
    for (size, slow) in [
        (0, false),
        (10, false),
        (60_000, false),
        (3 << 20, false),
        (10, true),
    ] {
        let chunks = [vec![0_u8; size]]
            .into_iter()
            .map(|chunk| Ok::<_, std::io::Error>(bytes::Bytes::from(chunk)));
        let body = futures::stream::iter(chunks);
        let body = if slow {
            // Sends a little and never ends.
            axum::body::Body::from_stream(futures::StreamExt::chain(body, futures::stream::pending()))
        } else {
            axum::body::Body::from_stream(body)
        };
        let request = http::Request::get(format!("http://{address}/fail"))
            .body(tonic::body::Body::new(body))
            .unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(5), channel.clone().oneshot(request));
        assert_eq!(
            answer.await.unwrap().unwrap().status(),
            http::StatusCode::NOT_FOUND,
            "{size} {slow}"
        );
    }
    tasks.stop("test over");
    assert!(tasks.finished(Duration::from_secs(10)).await);
}
