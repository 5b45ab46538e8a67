//! etcd's users and roles, against real members: Debian's etcdctl over TLS, tokens of both kinds, restarts, the loss of
//! the member that gave a token out, and watches that end when their right does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{process::Output, time::Duration};

use chainfire_client::wire::{
    authpb,
    etcdserverpb::{
        self as pb, auth_client::AuthClient, kv_client::KvClient, watch_client::WatchClient,
        watch_request::RequestUnion,
    },
};
use chainfire_client::{Client, ClientConfig, Error, WatchOptions, WatchUpdate};
use common::{Cluster, PATIENCE};
use tokio_stream::StreamExt;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

/// Password hashes as weak as bcrypt has them: these tests make many.
const QUICK: &str = "bcrypt_cost = 4";

/// etcdctl over TLS, with a certificate that has a common name only, and a user.
struct Ctl<'a> {
    cluster: &'a Cluster,
    tls: Vec<String>,
    user: Option<&'a str>,
}

impl<'a> Ctl<'a> {
    fn new(cluster: &'a Cluster, common_name: &str) -> Ctl<'a> {
        let files = cluster.named(common_name);
        Ctl {
            cluster,
            tls: vec![
                format!("--cacert={}", files.ca.display()),
                format!("--cert={}", files.cert.display()),
                format!("--key={}", files.key.display()),
            ],
            user: None,
        }
    }

    fn user(&self, user: &'a str) -> Ctl<'a> {
        Ctl {
            cluster: self.cluster,
            tls: self.tls.clone(),
            user: Some(user),
        }
    }

    fn run(&self, args: &[&str]) -> Output {
        let user = self.user.map(|user| format!("--user={user}"));
        let mut all: Vec<&str> = self.tls.iter().map(String::as_str).collect();
        all.extend(user.as_deref());
        all.extend(args);
        self.cluster.etcdctl_tls(&all)
    }

    /// Runs a command that must succeed; what it printed.
    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let (text, errors) = (
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
        );
        assert!(
            out.status.success(),
            "etcdctl {args:?}: {text}{errors}\n{}",
            self.cluster.logs()
        );
        text.into_owned()
    }

    /// Runs a command that must fail, and say why.
    fn fails(&self, args: &[&str], why: &str) {
        let out = self.run(args);
        assert!(!out.status.success(), "etcdctl {args:?} must fail");
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(errors.contains(why), "etcdctl {args:?}: {errors}");
    }
}

fn installed(cluster: &Cluster) -> bool {
    let found = cluster.etcdctl(&["version"]).is_some();
    if !found {
        println!("SKIPPED: etcdctl is not installed (apt install etcd-client)");
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctls_tour_with_tls_and_auth() {
    let cluster = Cluster::start_with(3, QUICK).await;
    if !installed(&cluster) {
        return;
    }
    let ctl = Ctl::new(&cluster, "nobody-special");
    ctl.fails(&["auth", "enable"], "etcdserver: root user does not exist");
    users_and_roles(&ctl);
    // etcdctl 3.4 gives the root user its role by itself, and asks for that user.
    assert_eq!(
        ctl.user("root:r").ok(&["auth", "enable"]),
        "Authentication Enabled\n"
    );
    with_auth_on(&ctl);
    changes(&ctl);
    let root = ctl.user("root:r");
    assert_eq!(root.ok(&["auth", "disable"]), "Authentication Disabled\n");
    assert_eq!(ctl.ok(&["put", "anything", "1"]), "OK\n");
    ctl.user("root:r").ok(&["get", "anything"]);
}

fn users_and_roles(ctl: &Ctl<'_>) {
    assert_eq!(ctl.ok(&["user", "add", "root:r"]), "User root created\n");
    assert_eq!(ctl.ok(&["user", "add", "alice:a"]), "User alice created\n");
    assert_eq!(
        ctl.ok(&["user", "add", "bob", "--no-password"]),
        "User bob created\n"
    );
    ctl.fails(
        &["user", "add", "alice:b"],
        "etcdserver: user name already exists",
    );
    assert_eq!(ctl.ok(&["user", "list"]), "alice\nbob\nroot\n");
    assert_eq!(ctl.ok(&["role", "add", "reader"]), "Role reader created\n");
    assert_eq!(ctl.ok(&["role", "add", "writer"]), "Role writer created\n");
    ctl.fails(&["role", "add", "reader"], "etcdserver: role name already exists");
    assert_eq!(ctl.ok(&["role", "list"]), "reader\nwriter\n");
    ctl.ok(&["role", "grant-permission", "reader", "read", "k"]);
    ctl.ok(&["role", "grant-permission", "reader", "read", "p", "--prefix"]);
    ctl.ok(&["role", "grant-permission", "writer", "readwrite", "w", "w5"]);
    ctl.ok(&["role", "grant-permission", "writer", "write", "z", "--from-key"]);
    let shown = ctl.ok(&["role", "get", "reader"]);
    assert!(shown.contains("KV Read:\n\tk\n\t[p, q) (prefix p)\n"), "{shown}");
    let shown = ctl.ok(&["role", "get", "writer"]);
    assert!(
        shown.contains("\t[w, w5)\n") && shown.contains("\t[z, <open ended>\n"),
        "{shown}"
    );
    ctl.fails(&["role", "get", "none"], "etcdserver: role name not found");
    ctl.fails(
        &["role", "grant-permission", "reader", "read", "b", "a"],
        "etcdserver: invalid auth management",
    );
    ctl.fails(
        &["user", "grant-role", "alice", "none"],
        "etcdserver: role name not found",
    );
    ctl.fails(
        &["user", "grant-role", "none", "reader"],
        "etcdserver: user name not found",
    );
    assert_eq!(
        ctl.ok(&["user", "grant-role", "alice", "reader"]),
        "Role reader is granted to user alice\n"
    );
    ctl.ok(&["user", "grant-role", "bob", "writer"]);
    assert_eq!(ctl.ok(&["user", "get", "alice"]), "User: alice\nRoles: reader\n");
    ctl.ok(&["put", "k", "1"]);
    ctl.ok(&["put", "p1", "1"]);
    ctl.ok(&["put", "q", "1"]);
}

fn with_auth_on(ctl: &Ctl<'_>) {
    let denied = "etcdserver: permission denied";
    // The certificate's name is no user.
    ctl.fails(&["get", "k"], denied);
    let alice = ctl.user("alice:a");
    assert_eq!(alice.ok(&["get", "k"]), "k\n1\n");
    assert_eq!(alice.ok(&["get", "p", "--prefix"]), "p1\n1\n");
    for forbidden in [
        ["get", "k", "--prefix"],
        ["get", "k", "l"],
        ["get", "k", "--from-key"],
        ["get", "p", "--from-key"],
        ["get", "o", "q"],
        ["put", "k", "2"],
        ["del", "k", "--prev-kv"],
        ["user", "list", ""],
        ["role", "list", ""],
        ["compact", "3", ""],
    ] {
        let args: Vec<&str> = forbidden.into_iter().filter(|arg| !arg.is_empty()).collect();
        if args[0] == "compact" {
            alice.ok(&args);
        } else {
            alice.fails(&args, denied);
        }
    }
    assert_eq!(
        alice.ok(&["user", "get", "alice"]),
        "User: alice\nRoles: reader\n"
    );
    alice.fails(&["user", "get", "bob"], denied);
    alice.ok(&["role", "get", "reader"]);
    alice.fails(&["role", "get", "writer"], denied);
    alice.fails(&["member", "remove", "1"], denied);
    alice.fails(&["defrag"], denied);
    alice.ok(&["member", "list"]);
    alice.ok(&["endpoint", "status"]);
    alice.fails(&["auth", "disable"], denied);
    let failed = "etcdserver: authentication failed, invalid user ID or password";
    ctl.user("alice:wrong").fails(&["get", "k"], failed);
    ctl.user("nobody:a").fails(&["get", "k"], failed);
    ctl.user("bob:x").fails(&["get", "k"], failed);
    // Bob comes in by certificate.
    let bob = Ctl::new(ctl.cluster, "bob");
    assert_eq!(bob.ok(&["put", "w1", "1"]), "OK\n");
    assert_eq!(bob.ok(&["get", "w", "w5"]), "w1\n1\n");
    assert_eq!(bob.ok(&["put", "zz", "1"]), "OK\n");
    bob.fails(&["get", "zz"], denied);
    bob.fails(&["put", "zz", "2", "--prev-kv"], denied);
    bob.fails(&["put", "w5", "1"], denied);
    // A token goes before the certificate.
    bob.user("alice:a").fails(&["put", "w1", "2"], denied);
}

fn changes(ctl: &Ctl<'_>) {
    let denied = "etcdserver: permission denied";
    let (root, alice) = (ctl.user("root:r"), ctl.user("alice:a"));
    root.fails(&["user", "delete", "root"], "etcdserver: invalid auth management");
    root.fails(&["role", "delete", "root"], "etcdserver: invalid auth management");
    root.fails(
        &["user", "revoke-role", "root", "root"],
        "etcdserver: invalid auth management",
    );
    root.ok(&["role", "revoke-permission", "reader", "k"]);
    root.fails(
        &["role", "revoke-permission", "reader", "k"],
        "etcdserver: permission is not granted to the role",
    );
    alice.fails(&["get", "k"], denied);
    root.ok(&["user", "revoke-role", "alice", "reader"]);
    root.fails(
        &["user", "revoke-role", "alice", "reader"],
        "etcdserver: role is not granted to the user",
    );
    alice.fails(&["get", "p1"], denied);
    // Not even root writes what belongs to Hearth's services.
    root.fails(&["put", "/aegis/x", "1"], denied);
    root.ok(&["user", "grant-role", "alice", "writer"]);
    assert_eq!(alice.ok(&["put", "w2", "1"]), "OK\n");
    root.ok(&["role", "delete", "writer"]);
    assert_eq!(root.ok(&["user", "get", "alice"]), "User: alice\nRoles:\n");
    alice.fails(&["put", "w2", "1"], denied);
    let mut passwd = root.cluster.etcdctl_command();
    passwd
        .args(&root.tls)
        .args(["--user=root:r", "user", "passwd", "alice", "--interactive=false"]);
    let out = common::fed(passwd, "new\n");
    assert!(out.status.success(), "{out:?}");
    alice.fails(&["get", "p1"], "authentication failed");
    ctl.user("alice:new").fails(&["get", "p1"], denied);
    assert_eq!(root.ok(&["user", "delete", "alice"]), "User alice deleted\n");
    ctl.user("alice:new")
        .fails(&["get", "p1"], "authentication failed");
}

/// One member in plain text, with a token.
#[derive(Clone)]
struct Tool {
    channel: Channel,
    token: Option<String>,
}

impl Tool {
    fn of(cluster: &Cluster, member: usize) -> Tool {
        let url = format!("http://{}", cluster.members[member].client);
        Tool {
            channel: Endpoint::from_shared(url).unwrap().connect_lazy(),
            token: None,
        }
    }

    fn with(&self, token: &str) -> Tool {
        Tool {
            channel: self.channel.clone(),
            token: Some(token.to_owned()),
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(PATIENCE);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.parse().unwrap());
        }
        request
    }

    fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.channel.clone())
    }

    async fn user(&self, name: &str) {
        let message = pb::AuthUserAddRequest {
            name: name.into(),
            password: name.into(),
            ..Default::default()
        };
        self.auth().user_add(self.request(message)).await.unwrap();
    }

    async fn role(&self, name: &str) {
        let message = pb::AuthRoleAddRequest { name: name.into() };
        self.auth().role_add(self.request(message)).await.unwrap();
    }

    async fn grant(&self, user: &str, role: &str) {
        let message = pb::AuthUserGrantRoleRequest {
            user: user.into(),
            role: role.into(),
        };
        self.auth().user_grant_role(self.request(message)).await.unwrap();
    }

    async fn permit(&self, role: &str, key: &'static str, end: &'static str) {
        let message = pb::AuthRoleGrantPermissionRequest {
            name: role.into(),
            perm: Some(authpb::Permission {
                perm_type: authpb::permission::Type::Readwrite.into(),
                key: key.into(),
                range_end: end.into(),
            }),
        };
        self.auth()
            .role_grant_permission(self.request(message))
            .await
            .unwrap();
    }

    async fn forbid(&self, role: &str, key: &'static str, end: &'static str) {
        let message = pb::AuthRoleRevokePermissionRequest {
            role: role.into(),
            key: key.into(),
            range_end: end.into(),
        };
        self.auth()
            .role_revoke_permission(self.request(message))
            .await
            .unwrap();
    }

    /// `root` and `alice`, who has `a` to `c` by the role `r`; auth is on afterwards.
    async fn set_up(&self) {
        for name in ["root", "alice"] {
            self.user(name).await;
        }
        self.grant("root", "root").await;
        self.role("r").await;
        self.permit("r", "a", "c").await;
        self.grant("alice", "r").await;
        let enable = self.request(pb::AuthEnableRequest {});
        self.auth().auth_enable(enable).await.unwrap();
    }

    async fn token(&self, name: &str) -> Result<String, Status> {
        let message = pb::AuthenticateRequest {
            name: name.into(),
            password: name.into(),
        };
        let reply = self.auth().authenticate(self.request(message)).await?;
        Ok(reply.into_inner().token)
    }

    /// Puts a key; the error's code and text.
    async fn put(&self, key: &'static str) -> Result<(), (Code, String)> {
        let message = pb::PutRequest {
            key: key.into(),
            ..Default::default()
        };
        let reply = KvClient::new(self.channel.clone())
            .put(self.request(message))
            .await;
        reply
            .map(drop)
            .map_err(|status| (status.code(), status.message().to_owned()))
    }

    async fn get(&self, key: &'static str, end: &'static str) -> Result<usize, String> {
        let message = pb::RangeRequest {
            key: key.into(),
            range_end: end.into(),
            ..Default::default()
        };
        let reply = KvClient::new(self.channel.clone())
            .range(self.request(message))
            .await;
        reply
            .map(|reply| reply.into_inner().kvs.len())
            .map_err(|status| status.message().to_owned())
    }

    /// A watcher; what it hears, first of all its creation.
    async fn watch(&self, key: &'static str, end: &'static str) -> tonic::Streaming<pb::WatchResponse> {
        let create = pb::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(pb::WatchCreateRequest {
                key: key.into(),
                range_end: end.into(),
                ..Default::default()
            })),
        };
        // The client says no more, and listens on.
        let mut request = Request::new(tokio_stream::iter([create]).chain(tokio_stream::pending()));
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.parse().unwrap());
        }
        WatchClient::new(self.channel.clone())
            .watch(request)
            .await
            .unwrap()
            .into_inner()
    }
}

async fn heard(stream: &mut tonic::Streaming<pb::WatchResponse>) -> pb::WatchResponse {
    let next = tokio::time::timeout(PATIENCE, stream.message()).await;
    next.expect("in time").unwrap().expect("the stream goes on")
}

fn refused(code: Code, text: &str) -> Result<(), (Code, String)> {
    Err((code, text.to_owned()))
}

const DENIED: &str = "etcdserver: permission denied";
const INVALID: &str = "etcdserver: invalid auth token";

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_with_the_right_to_it() {
    let cluster = Cluster::start_with(1, QUICK).await;
    let tool = Tool::of(&cluster, 0);
    let mut from_before = tool.watch("a", "").await;
    assert!(heard(&mut from_before).await.created);
    tool.set_up().await;
    // It belongs to nobody, and that is no longer enough.
    let end = heard(&mut from_before).await;
    assert!(end.canceled && end.cancel_reason == DENIED, "{end:?}");
    let root = tool.with(&tool.token("root").await.unwrap());
    let alice = tool.with(&tool.token("alice").await.unwrap());

    for (key, end) in [("a", "d"), ("a", "\0"), ("c", ""), ("\0", "\0")] {
        let refused = heard(&mut alice.watch(key, end).await).await;
        assert!(refused.created && refused.canceled, "{key} {end}: {refused:?}");
        assert_eq!((refused.watch_id, refused.cancel_reason.as_str()), (-1, DENIED));
    }
    let anonymous = heard(&mut tool.watch("a", "").await).await;
    assert_eq!(anonymous.cancel_reason, "etcdserver: user name is empty");
    let wrong = heard(&mut tool.with("rubbish.1").watch("a", "").await).await;
    assert_eq!(wrong.cancel_reason, INVALID);

    root.permit("r", "x", "").await;
    let (mut wide, mut single) = (alice.watch("a", "c").await, alice.watch("x", "").await);
    assert!(heard(&mut wide).await.created && heard(&mut single).await.created);
    root.put("b").await.unwrap();
    assert_eq!(heard(&mut wide).await.events.len(), 1);
    root.forbid("r", "a", "c").await;
    root.put("b").await.unwrap();
    let end = heard(&mut wide).await;
    assert!(end.canceled && end.events.is_empty(), "{end:?}");
    assert_eq!(end.cancel_reason, DENIED);
    // The other one has lost nothing, until its user is gone.
    root.put("x").await.unwrap();
    assert_eq!(heard(&mut single).await.events.len(), 1);
    let message = pb::AuthUserDeleteRequest { name: "alice".into() };
    root.auth().user_delete(root.request(message)).await.unwrap();
    let end = heard(&mut single).await;
    assert!(end.canceled && end.events.is_empty(), "{end:?}");
    assert_eq!(alice.put("x").await, refused(Code::Unauthenticated, INVALID));
}

#[tokio::test(flavor = "multi_thread")]
async fn simple_tokens_outlive_the_member_that_gave_them_and_users_outlive_all() {
    let mut cluster = Cluster::start_with(3, QUICK).await;
    let tools: Vec<Tool> = (0..3).map(|member| Tool::of(&cluster, member)).collect();
    tools[0].set_up().await;
    let token = tools[0].token("alice").await.unwrap();
    // At once, also where the entry is not applied yet.
    for tool in &tools {
        assert_eq!(tool.with(&token).put("a").await, Ok(()));
        assert_eq!(tool.with(&token).get("a", "c").await, Ok(1));
        assert_eq!(tool.with(&token).get("a", "d").await, Err(DENIED.into()));
        assert_eq!(tool.put("a").await.unwrap_err().0, Code::InvalidArgument);
        let wrong = tool.with("abc.1").put("a").await;
        assert_eq!(wrong, refused(Code::Unauthenticated, INVALID));
    }
    cluster.members[0].kill();
    for tool in &tools[1..] {
        // What went to a leader that died ends in a time-out, as in etcd.
        common::eventually("another one leads", async || {
            let put = tool.with(&token).put("b").await;
            assert!(matches!(put, Ok(()) | Err((Code::Unavailable, _))), "{put:?}");
            put.is_ok()
        })
        .await;
    }
    for member in &mut cluster.members[1..] {
        member.kill();
    }
    for member in &mut cluster.members {
        member.start();
    }
    common::eventually("the members serve", async || {
        for member in 0..3 {
            if Tool::of(&cluster, member).token("alice").await.is_err() {
                return false;
            }
        }
        true
    })
    .await;
    let again = Tool::of(&cluster, 1);
    let alice = again.with(&again.token("alice").await.unwrap());
    assert_eq!(alice.get("a", "c").await, Ok(2));
    assert_eq!(alice.get("c", "").await, Err(DENIED.into()));
    assert_eq!(
        again.token("mallory").await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_tokens_hold_at_every_member_and_for_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "a secret of the members").unwrap();
    let more = format!(
        "{QUICK}\nauth_token = \"jwt,priv-key={},sign-method=HS256,ttl=10m\"",
        secret.display()
    );
    let cluster = Cluster::start_with(3, &more).await;
    let tools: Vec<Tool> = (0..3).map(|member| Tool::of(&cluster, member)).collect();
    tools[0].set_up().await;
    let token = tools[0].token("alice").await.unwrap();
    for tool in &tools {
        assert_eq!(tool.with(&token).put("a").await, Ok(()));
        assert_eq!(
            tool.with(&token).put("c").await,
            refused(Code::PermissionDenied, DENIED)
        );
    }
    let root = tools[1].with(&tools[1].token("root").await.unwrap());
    root.role("another").await;
    let old = "etcdserver: revision of auth store is old";
    for tool in &tools {
        // By the time of this answer a lagging member has seen the change: the write's place in the log decides.
        assert_eq!(
            tool.with(&token).put("a").await,
            refused(Code::InvalidArgument, old)
        );
        assert_eq!(tool.with(&token).get("a", "").await, Err(old.into()));
    }
    let list = root
        .auth()
        .user_list(root.request(pb::AuthUserListRequest {}))
        .await;
    assert_eq!(list.unwrap_err().message(), old, "administrators too");
    let fresh = tools[2].token("alice").await.unwrap();
    assert_eq!(tools[0].with(&fresh).put("a").await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_a_name_signs_in_and_signs_in_again() {
    let cluster = Cluster::start_with(3, "bcrypt_cost = 4\nauth_token_ttl_s = 1").await;
    let tools: Vec<Tool> = (0..3).map(|member| Tool::of(&cluster, member)).collect();
    let config = ClientConfig::new(cluster.endpoints());
    let named = |name: &str, password: &str| Client::connect_as(&config, None, name, password).unwrap();
    // Before there are users, the name does not matter.
    let early = named("alice", "not-hers-yet");
    early.put("free", "1").await.unwrap();
    tools[0].set_up().await;
    let alice = named("alice", "alice");
    alice.put("a", "1").await.unwrap();
    let first = alice.put("a", "2").await.unwrap().revision;
    let mut watcher = alice.watch_with(WatchOptions::key("a").from_revision(first));
    let mut seen = 0;
    for n in 1..=3 {
        // The token ends.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        alice.put("a", "3").await.unwrap();
        while seen <= n {
            let update = tokio::time::timeout(PATIENCE, watcher.next()).await.unwrap();
            if let WatchUpdate::Events { events, .. } = update.unwrap() {
                seen += events.len();
            }
        }
        assert_eq!(alice.get("a").await.unwrap().unwrap().value, "3");
    }
    let denied = alice.put("z", "1").await.unwrap_err();
    assert_eq!(denied, Error::PermissionDenied);
    let wrong = named("alice", "guessed").put("a", "1").await.unwrap_err();
    assert!(wrong.to_string().contains("authentication failed"), "{wrong}");
    let anonymous = Client::connect(&config, None)
        .unwrap()
        .put("a", "1")
        .await
        .unwrap_err();
    assert!(
        anonymous.to_string().contains("user name is empty"),
        "{anonymous}"
    );
    // A change of rights ends all tokens: a new one is asked for, also by the watch.
    let root = tools[0].with(&tools[0].token("root").await.unwrap());
    root.user("bob").await;
    alice.put("a", "4").await.unwrap();
}
