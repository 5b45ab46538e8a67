//! etcd's users and roles, against real members: Debian's etcdctl over TLS, tokens of both kinds, restarts, the loss of
//! the member that gave a token out, and watches that end when their right does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::process::Output;

use common::Cluster;

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
