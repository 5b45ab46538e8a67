//! Debian's etcdctl, unchanged, against three members. Skipped, with a line that says so, where it is not installed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Output, Stdio},
};

use common::Cluster;

struct Ctl<'a> {
    cluster: &'a Cluster,
    endpoints: Vec<String>,
    /// Words that make it speak TLS.
    tls: Vec<String>,
}

impl<'a> Ctl<'a> {
    /// In plain text.
    fn plain(cluster: &'a Cluster) -> Ctl<'a> {
        Ctl {
            cluster,
            endpoints: cluster.endpoints(),
            tls: vec![],
        }
    }

    /// Over TLS, with a certificate that has a common name only.
    fn with_certificate(cluster: &'a Cluster) -> Ctl<'a> {
        let files = cluster.named("tour");
        let tls = vec![
            format!("--cacert={}", files.ca.display()),
            format!("--cert={}", files.cert.display()),
            format!("--key={}", files.key.display()),
        ];
        Ctl {
            cluster,
            endpoints: cluster
                .endpoints()
                .iter()
                .map(|endpoint| format!("https://{endpoint}"))
                .collect(),
            tls,
        }
    }

    /// The same, asking one member only.
    fn of_member(&self, member: usize) -> Ctl<'a> {
        Ctl {
            cluster: self.cluster,
            endpoints: vec![self.endpoints[member].clone()],
            tls: self.tls.clone(),
        }
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed; what it printed.
    fn ok(&self, args: &[&str]) -> String {
        let out = self.output(args);
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

    /// Runs a command that must fail; what it complained about.
    fn fails(&self, args: &[&str]) -> String {
        let out = self.output(args);
        assert!(!out.status.success(), "etcdctl {args:?} must fail");
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    /// Runs a command with text on its standard input.
    fn fed(&self, args: &[&str], input: &str) -> String {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "etcdctl {args:?}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoints.join(",")))
            .args(&self.tls)
            .args(args);
        command
    }
}

/// Asks for the tests that take a minute or more.
const LONG: &str = "CHAINFIRE_LONG";

/// Header fields of a JSON answer, which etcdctl prints on one line.
fn number_after(text: &str, name: &str) -> i64 {
    let rest = text
        .split(&format!("\"{name}\":"))
        .nth(1)
        .unwrap_or_else(|| panic!("no {name} in {text}"));
    rest.chars()
        .take_while(|c| c.is_ascii_digit() || *c == '-')
        .collect::<String>()
        .parse()
        .unwrap()
}

fn installed(cluster: &Cluster) -> bool {
    let found = cluster.etcdctl(&["version"]).is_some();
    if !found {
        println!("SKIPPED: etcdctl is not installed (apt install etcd-client)");
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tour() {
    let cluster = Cluster::start(3).await;
    if installed(&cluster) {
        tour(&Ctl::plain(&cluster)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_tour_over_tls_with_a_certificate() {
    let cluster = Cluster::start(3).await;
    if !installed(&cluster) {
        return;
    }
    let ctl = Ctl::with_certificate(&cluster);
    tour(&ctl).await;
    // Without the certificate nothing is answered.
    let without = Ctl {
        tls: ctl.tls[..1].to_vec(),
        ..Ctl::with_certificate(&cluster)
    };
    without.fails(&["get", "a", "--command-timeout=2s", "--dial-timeout=1s"]);
}

async fn tour(ctl: &Ctl<'_>) {
    keys(ctl);
    transactions(ctl);
    watches(ctl);
    leases(ctl);
    locks(ctl);
    interactive(ctl);
    elections(ctl);
    mirrors(ctl).await;
    snapshots(ctl);
    cluster_and_maintenance(ctl);
}

/// Etcdctl's own measurement: 150 writes a second for a minute, or it says `FAIL`.
#[tokio::test(flavor = "multi_thread")]
async fn check_perf() {
    if std::env::var_os(LONG).is_none() {
        println!("SKIPPED: `etcdctl check perf` takes a minute; set {LONG}=1");
        return;
    }
    let cluster = Cluster::start(3).await;
    if !installed(&cluster) {
        return;
    }
    let ctl = Ctl::plain(&cluster);
    let said = ctl.ok(&["check", "perf", "--load=s"]);
    println!("{said}");
    assert!(said.contains("PASS") && !said.contains("FAIL"), "{said}");
    assert_eq!(
        ctl.ok(&["get", "/etcdctl-check-perf/", "--prefix", "--keys-only"]),
        ""
    );
}

fn keys(ctl: &Ctl<'_>) {
    assert_eq!(ctl.ok(&["put", "a", "1"]), "OK\n");
    assert_eq!(ctl.ok(&["put", "a", "2", "--prev-kv"]), "OK\na\n1\n");
    assert_eq!(ctl.ok(&["put", "ab", "3"]), "OK\n");
    assert_eq!(ctl.ok(&["get", "a"]), "a\n2\n");
    assert_eq!(ctl.ok(&["get", "--prefix", "a"]), "a\n2\nab\n3\n");
    assert_eq!(ctl.ok(&["get", "--prefix", "a", "--keys-only"]), "a\n\nab\n\n");
    assert_eq!(
        ctl.ok(&[
            "get",
            "--prefix",
            "a",
            "--limit=1",
            "--order=DESCEND",
            "--sort-by=KEY"
        ]),
        "ab\n3\n"
    );
    assert_eq!(ctl.ok(&["get", "", "--from-key", "--print-value-only"]), "2\n3\n");
    let json = ctl.ok(&["get", "a", "-w", "json"]);
    let revision = number_after(&json, "mod_revision");
    assert_eq!(
        ctl.ok(&["get", "a", &format!("--rev={}", revision - 1)]),
        "a\n1\n"
    );
    assert_eq!(ctl.ok(&["get", "a", "--consistency=s"]), "a\n2\n");
    assert_eq!(ctl.ok(&["del", "ab", "--prev-kv"]), "1\nab\n3\n");
    assert_eq!(ctl.ok(&["del", "--prefix", "nothing"]), "0\n");
    ctl.ok(&["put", "later", "1"]);
    ctl.ok(&["compact", &format!("{}", revision + 1)]);
    assert!(
        ctl.fails(&["get", "a", "--rev=2"])
            .contains("required revision has been compacted")
    );
    assert!(
        ctl.fails(&["get", "a", "--rev=999999"])
            .contains("required revision is a future revision")
    );
    assert!(
        ctl.fails(&["put", "a", "--ignore-value", "--lease=77"])
            .contains("requested lease not found")
    );
    assert!(
        ctl.fails(&["put", "missing", "--ignore-value"])
            .contains("key not found")
    );
    assert!(
        ctl.fails(&["put", "/aegis/x", "1"])
            .contains("etcdserver: permission denied")
    );
    let big = ctl
        .command(&["put", "big"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut big = big.unwrap();
    big.stdin
        .take()
        .unwrap()
        .write_all(&vec![b'x'; 1_600_000])
        .unwrap();
    let complaint = big.wait_with_output().unwrap().stderr;
    assert!(String::from_utf8_lossy(&complaint).contains("etcdserver: request is too large"));
}

fn transactions(ctl: &Ctl<'_>) {
    let input = "value(\"a\") = \"2\"\n\nput a 3\nget a\n\nput a 9\n\n";
    assert_eq!(ctl.fed(&["txn"], input), "SUCCESS\n\nOK\n\na\n3\n");
    assert_eq!(
        ctl.fed(&["txn"], "value(\"a\") = \"2\"\n\nput a 3\n\nget a\n\n"),
        "FAILURE\n\na\n3\n"
    );
}

fn watches(ctl: &Ctl<'_>) {
    let start = number_after(&ctl.ok(&["get", "a", "-w", "json"]), "revision");
    let args = [
        "watch",
        "--prefix",
        "w",
        "--prev-kv",
        &format!("--rev={}", start + 1),
    ];
    let mut child = ctl.command(&args).stdout(Stdio::piped()).spawn().unwrap();
    ctl.ok(&["put", "w1", "x"]);
    ctl.ok(&["put", "w1", "y"]);
    ctl.ok(&["put", "other", "z"]);
    ctl.ok(&["del", "w1"]);
    let lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let expected = [
        "PUT", "w1", "x", "PUT", "w1", "x", "w1", "y", "DELETE", "w1", "y", "w1", "",
    ];
    // A blank line stands for the missing pair before the first put; only what is printed is compared.
    let seen: Vec<String> = lines
        .filter(|line| !line.is_empty())
        .take(expected.len() - 1)
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(
        seen,
        expected
            .iter()
            .filter(|line| !line.is_empty())
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    );
    let old = ctl
        .command(&["watch", "w", "--rev=2"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&old.stderr).contains("compacted"),
        "{old:?}"
    );
}

fn leases(ctl: &Ctl<'_>) {
    let granted = ctl.ok(&["lease", "grant", "60"]);
    assert!(granted.ends_with("granted with TTL(60s)\n"), "{granted}");
    let id = granted.split_whitespace().nth(1).unwrap();
    assert_eq!(ctl.ok(&["put", "leased", "v", &format!("--lease={id}")]), "OK\n");
    let kept = ctl.ok(&["lease", "keep-alive", "--once", id]);
    assert_eq!(kept, format!("lease {id} keepalived with TTL(60)\n"));
    let left = ctl.ok(&["lease", "timetolive", id, "--keys"]);
    assert!(
        left.contains("granted with TTL(60s), remaining(") && left.contains("attached keys([leased])"),
        "{left}"
    );
    assert!(ctl.ok(&["lease", "list"]).contains(id));
    assert_eq!(ctl.ok(&["lease", "revoke", id]), format!("lease {id} revoked\n"));
    assert_eq!(ctl.ok(&["get", "leased"]), "");
    assert_eq!(
        ctl.ok(&["lease", "timetolive", id]),
        format!("lease {id} already expired\n")
    );
    assert!(
        ctl.fails(&["lease", "revoke", id])
            .contains("requested lease not found")
    );
    // The reply says TTL 0, and no error; the client makes an error of it.
    assert!(
        ctl.fails(&["lease", "keep-alive", "--once", id])
            .contains("requested lease not found")
    );
}

/// `lock` runs on the client's own recipes: leases, transactions, sorted ranges and watches together.
fn locks(ctl: &Ctl<'_>) {
    assert_eq!(
        ctl.ok(&["lock", "mutex", "--ttl=5", "--", "echo", "held"]),
        "held\n"
    );
    let waiting: Vec<_> = (0..5)
        .map(|n| {
            let held = n.to_string();
            ctl.command(&["lock", "mutex", "--", "echo", &held])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for (n, child) in waiting.into_iter().enumerate() {
        let out = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), format!("{n}\n"));
    }
}

/// `watch -i` and `txn -i` read their commands from the input.
fn interactive(ctl: &Ctl<'_>) {
    let shown = ctl.fed(
        &["txn", "-i"],
        "mod(\"a\") > \"0\"\n\nput interactive 1\n\nget a\n\n",
    );
    assert!(shown.contains("SUCCESS\n\nOK\n"), "{shown}");
    let mut child = ctl
        .command(&["watch", "-i"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input
        .write_all(b"watch i1\nwatch i2 --prefix\nprogress\n")
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    // The answer to `progress` says that both watchers are there.
    assert!(lines.next().unwrap().contains("progress notify"));
    ctl.ok(&["put", "i1", "x"]);
    ctl.ok(&["put", "i22", "y"]);
    // Each watcher shows it.
    let mut seen: Vec<String> = lines
        .filter(|line| !line.contains("progress notify"))
        .take(6)
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    seen.sort();
    assert_eq!(seen, ["PUT", "PUT", "i1", "i22", "x", "y"]);

    let granted = ctl.ok(&["lease", "grant", "2"]);
    let id = granted.split_whitespace().nth(1).unwrap();
    let mut keeper = ctl
        .command(&["lease", "keep-alive", id])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let kept: Vec<String> = BufReader::new(keeper.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .take(3)
        .collect();
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    assert_eq!(kept, vec![format!("lease {id} keepalived with TTL(2)"); 3]);
}

fn elections(ctl: &Ctl<'_>) {
    let listen = |lines: usize| {
        let mut child = ctl
            .command(&["elect", "--listen", "post"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let seen: Vec<String> = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
            .take(lines)
            .collect();
        child.kill().unwrap();
        child.wait().unwrap();
        seen
    };
    let candidate = |proposal: &str| {
        let mut child = ctl
            .command(&["elect", "post", proposal])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    };
    let (first, mut said) = candidate("one");
    assert!(said.next().unwrap().unwrap().starts_with("post/"));
    assert_eq!(said.next().unwrap().unwrap(), "one");
    assert_eq!(listen(2).last().unwrap(), "one");
    let (mut second, mut said_second) = candidate("two");
    // SIGINT: it resigns.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(first.id().cast_signed()),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    first.wait_with_output().unwrap();
    assert!(said_second.next().unwrap().unwrap().starts_with("post/"));
    assert_eq!(said_second.next().unwrap().unwrap(), "two");
    second.kill().unwrap();
    second.wait().unwrap();
}

/// Everything under a prefix is carried to another store, and what comes later follows.
async fn mirrors(ctl: &Ctl<'_>) {
    let other = Cluster::start(1).await;
    let there = Ctl::plain(&other);
    ctl.ok(&["put", "mirror/1", "x"]);
    let endpoint = &other.members[0].client;
    let mut mirror = ctl
        .command(&["make-mirror", "--prefix", "mirror/", endpoint])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    common::eventually("the mirror has what was there", async || {
        there.ok(&["get", "mirror/1", "--print-value-only"]) == "x\n"
    })
    .await;
    ctl.ok(&["put", "mirror/2", "y"]);
    ctl.ok(&["del", "mirror/1"]);
    common::eventually("the mirror follows", async || {
        there.ok(&["get", "mirror/", "--prefix"]) == "mirror/2\ny\n"
    })
    .await;
    mirror.kill().unwrap();
    mirror.wait().unwrap();
}

/// The file that etcdctl writes is one of Chainfire's backups, whole.
fn snapshots(ctl: &Ctl<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapshot");
    let revision = number_after(&ctl.ok(&["put", "snapshot", "x", "-w", "json"]), "revision");
    let one = ctl.of_member(0);
    // It may not have heard of that yet; a linearizable read waits until it has.
    one.ok(&["get", "snapshot"]);
    let save = ["snapshot", "save", file.to_str().unwrap()];
    assert!(one.ok(&save).contains("Snapshot saved at"));
    let info = chainfire_server::offline::check_backup(&file).unwrap();
    assert_eq!((info.member.as_str(), info.revision), ("m0", revision));
    assert_eq!(info.members.len(), 3);
}

fn cluster_and_maintenance(ctl: &Ctl<'_>) {
    let list = ctl.ok(&["member", "list"]);
    assert_eq!(
        list.lines().filter(|line| line.contains("started")).count(),
        3,
        "{list}"
    );
    let status = ctl.ok(&["endpoint", "status"]);
    assert_eq!(status.lines().count(), 3, "{status}");
    assert_eq!(
        status.lines().filter(|line| line.contains(", true, ")).count(),
        1,
        "one leader: {status}"
    );
    assert!(status.contains(", 3.6."), "{status}");
    ctl.ok(&["endpoint", "health"]);
    ctl.ok(&["endpoint", "hashkv"]);
    ctl.ok(&["alarm", "list"]);
    ctl.ok(&["defrag"]);
    let follower = status.lines().find(|line| line.contains(", false, ")).unwrap();
    let id = follower.split(", ").nth(1).unwrap();
    assert!(ctl.ok(&["move-leader", id]).contains("Leadership transferred"));
    members(ctl);
}

fn members(ctl: &Ctl<'_>) {
    let add = [
        "member",
        "add",
        "m3",
        "--peer-urls=https://127.0.0.1:9",
        "--learner",
    ];
    // The members are published a moment after the start.
    let mut out = ctl.output(&add);
    for _ in 0..100 {
        if out.status.success() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
        out = ctl.output(&add);
    }
    let added = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        added.contains("added to cluster"),
        "{added}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let id = added.split_whitespace().nth(1).unwrap();
    // Each list is the answer of one member, which may not have heard of the last change yet.
    let becomes = |wanted: Option<&str>| {
        let mut line = None;
        for _ in 0..100 {
            let list = ctl.ok(&["member", "list"]);
            line = list.lines().find(|line| line.starts_with(id)).map(str::to_owned);
            if line.as_deref() == wanted {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        panic!("{line:?} instead of {wanted:?}");
    };
    becomes(Some(&format!("{id}, unstarted, , https://127.0.0.1:9, , true")));
    let early = ctl.fails(&["member", "promote", id]);
    assert!(early.contains("in sync with leader"), "{early}");
    let twice = ctl.fails(&["member", "add", "m4", "--peer-urls=https://127.0.0.1:9"]);
    assert!(twice.contains("Peer URLs already exists"), "{twice}");
    ctl.ok(&["member", "update", id, "--peer-urls=https://127.0.0.1:10"]);
    becomes(Some(&format!("{id}, unstarted, , https://127.0.0.1:10, , true")));
    assert!(ctl.ok(&["member", "remove", id]).contains("removed from cluster"));
    becomes(None);
    let gone = ctl.fails(&["member", "remove", id]);
    assert!(gone.contains("member not found"), "{gone}");
}
