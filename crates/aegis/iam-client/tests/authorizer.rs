//! The authorizer and its extractor over a world in memory: who is let in, and what the refusals look like.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use axum::routing::get;
use hearth_service::error::ApiError;
use hearth_service::tls::PeerIdentity;
use hearth_types::Name;
use iam_client::testing::{DOMAIN, ISSUER, TestWorld};
use iam_client::{
    Actor, Authenticated, AuthnError, Authorizer, AuthorizerConfig, Denied, Node, OpContext, ResourceRef,
    Role, Snapshot,
};
use tower::ServiceExt as _;

struct Cast {
    world: TestWorld,
    authorizer: Authorizer,
    viewer: String,
    operator: String,
    stranger: String,
}

fn cast() -> Cast {
    let world = TestWorld::new().unwrap();
    let (here, there) = (world.project("here").unwrap(), world.project("there").unwrap());
    let (viewer, operator, stranger) = (
        world.user("vera").unwrap(),
        world.user("otto").unwrap(),
        world.user("sten").unwrap(),
    );
    world.bind(viewer, Role::Viewer, Node::Project(here));
    world.bind(operator, Role::Operator, Node::Project(here));
    world.bind(stranger, Role::Operator, Node::Project(there));
    let token = |user| world.token(user).unwrap();
    let (viewer, operator, stranger) = (token(viewer), token(operator), token(stranger));
    Cast {
        authorizer: world.authorizer(),
        world,
        viewer,
        operator,
        stranger,
    }
}

impl Cast {
    fn actor(&self, token: &str) -> Actor {
        self.authorizer.authenticate(token, SystemTime::now()).unwrap()
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

#[test]
fn a_viewer_reads_an_operator_runs_and_a_stranger_sees_nothing() {
    let cast = cast();
    let here = cast.authorizer.project(&name("here")).unwrap();
    let on = ResourceRef::Child {
        project: here.id,
        kind: "vm",
        id: "web".to_owned(),
    };
    let check = |token: &str, action| cast.authorizer.check(&cast.actor(token), action, &on).map(|_| ());
    let forbidden = |action: &str| {
        Err(Denied::Forbidden {
            action: action.to_owned(),
        })
    };
    assert_eq!(check(&cast.viewer, "vmc.vm.get"), Ok(()));
    assert_eq!(check(&cast.viewer, "vmc.vm.create"), forbidden("vmc.vm.create"));
    assert_eq!(check(&cast.operator, "vmc.vm.create"), Ok(()));
    assert_eq!(
        check(&cast.operator, "iam.binding.create"),
        forbidden("iam.binding.create")
    );
    assert_eq!(check(&cast.stranger, "vmc.vm.get"), Err(Denied::Invisible));
    assert_eq!(check(&cast.stranger, "vmc.vm.create"), Err(Denied::Invisible));
    let visible = |token: &str| -> Vec<String> {
        cast.authorizer
            .projects_visible_to(&cast.actor(token))
            .into_iter()
            .map(|p| p.name.to_string())
            .collect()
    };
    assert_eq!(visible(&cast.viewer), ["here"]);
    assert_eq!(visible(&cast.stranger), ["there"]);
}

#[test]
fn an_invisible_project_looks_like_one_that_does_not_exist() {
    let cast = cast();
    let stranger = cast.actor(&cast.stranger);
    let ask = |project: &str| {
        cast.authorizer
            .check_project(&stranger, "vmc.vm.list", &name(project))
            .unwrap_err()
    };
    let (invisible, missing) = (ask("here"), ask("nowhere"));
    assert_eq!(invisible.kind, missing.kind);
    assert_eq!(
        invisible.to_string().replace("`here`", "X"),
        missing.to_string().replace("`nowhere`", "X")
    );
}

#[test]
fn disabling_and_unbinding_work_at_once() {
    let world = TestWorld::new().unwrap();
    let project = world.project("here").unwrap();
    let user = world.user("otto").unwrap();
    let binding = world.bind(user, Role::Operator, Node::Project(project));
    let (authorizer, token) = (world.authorizer(), world.token(user).unwrap());
    let actor = authorizer.authenticate(&token, SystemTime::now()).unwrap();
    let on = ResourceRef::Project(project);
    assert!(authorizer.check(&actor, "vmc.vm.create", &on).is_ok());
    world.unbind(binding);
    assert_eq!(
        authorizer.check(&actor, "vmc.vm.create", &on),
        Err(Denied::Invisible)
    );
    world.disable(user, "otto").unwrap();
    assert_eq!(
        authorizer.authenticate(&token, SystemTime::now()),
        Err(AuthnError::Revoked)
    );
    // Even an actor that was authenticated before may do nothing any more.
    world.bind(user, Role::Admin, Node::Root);
    assert_ne!(authorizer.check(&actor, "vmc.vm.create", &on).map(|_| ()), Ok(()));
}

#[test]
fn a_stale_snapshot_denies_changes_first_and_reads_later_and_says_so() {
    let config = || AuthorizerConfig::new(ISSUER, DOMAIN);
    let root = PeerIdentity {
        trust_domain: DOMAIN.to_owned(),
        path: "operator/root".to_owned(),
    };
    for (age_s, changes, reads) in [
        (0, true, true),
        (5, true, true),
        (6, false, true),
        (60, false, true),
        (61, false, false),
    ] {
        let authorizer = Authorizer::from_snapshot(config(), Snapshot::empty(), Duration::from_secs(age_s));
        let actor = authorizer.authenticate_peer(&root).unwrap();
        let ask = |action| authorizer.check(&actor, action, &ResourceRef::Root);
        for (action, expected) in [("vmc.image.import", changes), ("vmc.node.list", reads)] {
            match ask(action) {
                Ok(_) => assert!(expected, "{action} at {age_s} s"),
                Err(denied) => assert!(
                    !expected && denied == Denied::Stale,
                    "{action} at {age_s} s: {denied}"
                ),
            }
        }
        assert_eq!(
            authorizer.authenticate("x", SystemTime::now()) == Err(AuthnError::Stale),
            !reads
        );
    }
    assert_eq!(
        hearth_service::error::http_status(ApiError::from(Denied::Stale).kind),
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[test]
fn certificates_are_known_by_trust_domain_and_kind() {
    let cast = cast();
    let peer = |domain: &str, path: &str| {
        cast.authorizer.authenticate_peer(&PeerIdentity {
            trust_domain: domain.to_owned(),
            path: path.to_owned(),
        })
    };
    let node = peer(DOMAIN, "node/node01").unwrap();
    assert_eq!(node.node(), Some(&name("node01")));
    assert!(!node.is_service("node01"));
    assert!(peer(DOMAIN, "service/flashdns").unwrap().is_service("flashdns"));
    assert_eq!(peer("evil.test", "service/flashdns"), Err(AuthnError::Peer));
    assert_eq!(peer(DOMAIN, "user/ada"), Err(AuthnError::Peer));
    // A service has no rights of its own on what people own.
    let project = cast.authorizer.project(&name("here")).unwrap();
    let flashdns = peer(DOMAIN, "service/flashdns").unwrap();
    assert!(
        cast.authorizer
            .check(&flashdns, "vmc.vm.get", &ResourceRef::Project(project.id))
            .is_err()
    );
}

async fn who(Authenticated(actor): Authenticated) -> String {
    actor.name().to_owned()
}

async fn create(context: OpContext) -> Result<String, ApiError> {
    let (project, _) = context
        .authorizer()
        .check_project(context.actor(), "vmc.vm.create", &name("here"))?;
    Ok(project.name.to_string())
}

fn app(cast: &Cast) -> Router {
    Router::new()
        .route("/who", get(who))
        .route("/create", get(create))
        .with_state(cast.authorizer.clone())
}

async fn ask(
    cast: &Cast,
    path: &str,
    headers: &[(&str, &str)],
    peer: Option<&str>,
) -> (StatusCode, String, bool) {
    let mut request = Request::get(path);
    for (key, value) in headers {
        request = request.header(*key, *value);
    }
    let mut request = request.body(Body::empty()).unwrap();
    if let Some(path) = peer {
        request.extensions_mut().insert(PeerIdentity {
            trust_domain: DOMAIN.to_owned(),
            path: path.to_owned(),
        });
    }
    let response = app(cast).oneshot(request).await.unwrap();
    let (status, challenge) = (
        response.status(),
        response.headers().contains_key("www-authenticate"),
    );
    let body = to_bytes(response.into_body(), 10_000).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap(), challenge)
}

#[tokio::test]
async fn a_credential_that_is_wrong_is_never_anonymous() {
    let cast = cast();
    let good = format!("Bearer {}", cast.viewer);
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let user = cast.world.user("late").unwrap();
    let expired = format!("Bearer {}", cast.world.token_at(user, hour_ago).unwrap());
    let tabbed = format!("Bearer\t{}", cast.viewer);
    let double = format!("Bearer  {}", cast.viewer);
    let bad: [&[(&str, &str)]; 9] = [
        &[],
        &[("authorization", "")],
        &[("authorization", "Bearer")],
        &[("authorization", "Bearer ")],
        &[("authorization", "Basic YTpi")],
        &[("authorization", &expired)],
        &[("authorization", &tabbed)],
        &[("authorization", &double)],
        &[("authorization", &good), ("authorization", &good)],
    ];
    for headers in bad {
        let (status, body, challenge) = ask(&cast, "/who", headers, None).await;
        assert_eq!(
            (status, challenge),
            (StatusCode::UNAUTHORIZED, true),
            "{headers:?}"
        );
        assert!(body.contains("\"kind\":\"unauthenticated\""), "{body}");
    }
    // A bad token is not saved by a good certificate.
    let (status, ..) = ask(
        &cast,
        "/who",
        &[("authorization", "Bearer x.y.z")],
        Some("service/flashdns"),
    )
    .await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(
        ask(&cast, "/who", &[("authorization", &good)], None).await.1,
        "vera"
    );
    assert_eq!(
        ask(
            &cast,
            "/who",
            &[("authorization", &good.replace("Bearer", "bearer"))],
            None
        )
        .await
        .1,
        "vera"
    );
    assert_eq!(
        ask(&cast, "/who", &[], Some("service/flashdns")).await.1,
        "service/flashdns"
    );
    assert_eq!(
        ask(
            &cast,
            "/who",
            &[("authorization", &good)],
            Some("service/flashdns")
        )
        .await
        .1,
        "vera"
    );
}

#[tokio::test]
async fn statuses_of_a_handler() {
    let cast = cast();
    for (token, expected) in [
        (&cast.operator, StatusCode::OK),
        (&cast.viewer, StatusCode::FORBIDDEN),
        (&cast.stranger, StatusCode::NOT_FOUND),
    ] {
        let header = format!("Bearer {token}");
        let (status, body, _) = ask(&cast, "/create", &[("authorization", &header)], None).await;
        assert_eq!(status, expected, "{body}");
    }
}

#[tokio::test]
async fn at_least_waits_and_gives_up() {
    let cast = cast();
    let next = cast.authorizer.revision() + 1;
    let waiting = cast.authorizer.at_least(next, Duration::from_secs(10));
    tokio::pin!(waiting);
    assert!(
        tokio::time::timeout(Duration::from_millis(20), waiting.as_mut())
            .await
            .is_err()
    );
    cast.world.user("next").unwrap();
    assert_eq!(waiting.await, Ok(()));
    assert_eq!(
        cast.authorizer
            .at_least(next + 1, Duration::from_millis(20))
            .await,
        Err(Denied::Stale)
    );
}
