//! Zone files through the API: what goes in comes out, other programs accept it, bad input changes nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in tests a failure is a panic"
)]

mod common;

use std::{fmt::Write, process::Command};

use common::{Bed, Running, dig_until, installed, skip};
use iam_client::{Node, Role, testing::TestWorld};
use serde_json::Value;

const P: &str = "p.hearth.internal.";

/// Every type that has a form, in a project's zone.
const ALL_TYPES: &str = r#"$ORIGIN p.hearth.internal.
$TTL 300
@ SOA ns.hearth.internal. hostmaster.hearth.internal. 7 3600 600 604800 5
@ NS ns.hearth.internal.
www A 192.0.2.1
    A 192.0.2.2
    AAAA 2001:db8::1
    TXT "v=spf1 -all" "a \"quote\" and \009"
    MX 10 mail
    CAA 0 issue "ca.example; policy=ev"
    LOC 52 22 23.000 N 4 53 32.000 E -2.00m 1m 10000m 10m
    HTTPS 1 . alpn="h2,h3" port=8443 ipv4hint=192.0.2.1,192.0.2.2 ech="AEX+DQ=="
    SSHFP 4 2 123456789abcdef67890123456789abcdef67890123456789abcdef123456789
mail A 192.0.2.3
_443._tcp.www TLSA 3 1 1 d2abde240d7cd3ee6b4b28c54df034b97983a1d16e8a410e4561cb106618e971
_sip._tcp SRV 0 5 5060 www
_dns SVCB 1 www mandatory=alpn,port alpn=dot port=853 key65280="x y"
4.3.2.1 NAPTR 100 10 "u" "E2U+sip" "!^.*$!sip:info@example.com!" .
_ftp._tcp URI 10 1 "ftp://ftp.example/pub"
alias CNAME www
*.wild TXT any
sub NS ns1.sub
ns1.sub A 192.0.2.4
sub DS 60485 5 1 2bb183af5f22588179a53b0a98631fad1a292118
u TYPE65280 \# 3 010203
"#;

struct World {
    bed: Bed,
    server: Running,
    operator: String,
    root: String,
}

impl World {
    async fn new() -> Option<Self> {
        let bed = Bed::new()?;
        bed.ready().await;
        let world = TestWorld::new().unwrap();
        let p = Node::Project(world.project("p").unwrap());
        let token = |name: &str, role, node| {
            let user = world.user(name).unwrap();
            world.bind(user, role, node);
            world.token(user).unwrap()
        };
        let (operator, root) = (
            token("operator", Role::Operator, p),
            token("root", Role::Admin, Node::Root),
        );
        let server = bed
            .serve_with(bed.data.path().to_owned(), Some(world.authorizer()))
            .await;
        dig_until(server.dns, &["hearth.internal", "SOA"], |answer| {
            answer.status == "NOERROR"
        })
        .await;
        Some(Self {
            bed,
            server,
            operator,
            root,
        })
    }

    async fn import(&self, zone: &str, file: impl Into<Vec<u8>>) -> (u16, String) {
        self.server
            .import(&self.bed.pki, zone, Some(&self.root), file)
            .await
    }

    /// Counts of an import that succeeds.
    async fn imported(&self, zone: &str, file: &str) -> Value {
        let (status, text) = self.import(zone, file).await;
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    async fn export(&self, zone: &str) -> String {
        let path = format!("/v1/zones/{zone}/file");
        let (status, text) = self
            .server
            .call(&self.bed.pki, "GET", &path, Some(&self.root), None)
            .await;
        assert_eq!(status, 200, "{text}");
        text
    }
}

fn counts(done: &Value) -> [u64; 6] {
    [
        "added",
        "changed",
        "removed",
        "unchanged",
        "passed_over",
        "transactions",
    ]
    .map(|name| done[name].as_u64().unwrap())
}

/// Without the serial, which is the store's.
fn without_serial(file: &str) -> String {
    let lines = file.lines().map(|line| match line.split_once(" IN SOA ") {
        Some((head, data)) => {
            let words: Vec<&str> = data.split(' ').collect();
            format!(
                "{head} IN SOA {} {} SERIAL {}",
                words[0],
                words[1],
                words[3..].join(" ")
            )
        }
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Has BIND's and Knot's own checkers read the file, where they are installed.
fn check_with_others(zone: &str, file: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zone");
    std::fs::write(&path, file).unwrap();
    let path = path.to_str().unwrap();
    let checks: [(&str, &str, Vec<&str>); 3] = [
        ("named-checkzone", "bind9-utils", vec!["-i", "local", zone, path]),
        ("kzonecheck", "knot-dnssecutils", vec!["-o", zone, path]),
        ("ldns-read-zone", "ldnsutils", vec!["-c", path]),
    ];
    for (program, package, arguments) in checks {
        if !installed(program) {
            // BIND's comes with the server that `./test` installs anyway; the others are a bonus.
            if program == "named-checkzone" {
                skip(&format!("{program} is not installed (apt install {package})"));
            }
            continue;
        }
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{program}: {}{}\n{file}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_in_comes_out_and_others_can_read_it() {
    let Some(world) = World::new().await else { return };
    world.bed.publish("runs", &["10.77.0.5"]).await;
    let (status, text) = world
        .server
        .import(&world.bed.pki, P, Some(&world.operator), ALL_TYPES)
        .await;
    assert_eq!(status, 200, "{text}");
    let done: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(counts(&done), [12, 0, 0, 0, 2, 1]);
    let answer = world.server.dig(&["www.p.hearth.internal", "HTTPS", "+short"]);
    assert!(answer.text.contains("alpn=\"h2,h3\""), "{}", answer.text);

    let first = world.export(P).await;
    check_with_others(P, &first);
    assert_eq!(counts(&world.imported(P, &first).await), [0, 0, 0, 12, 2, 0]);
    assert_eq!(world.export(P).await, first);
    dig_until(world.server.dns, &["_dns.p.hearth.internal", "SVCB"], |answer| {
        answer.answer.len() == 1
    })
    .await;

    // Emptied and filled again from the export, it is the same but for the serial.
    let soa = "@ 60 SOA ns h 1 2 3 4 5\n";
    assert_eq!(counts(&world.imported(P, soa).await), [0, 0, 12, 0, 1, 1]);
    assert!(!world.export(P).await.contains("www"));
    world.imported(P, &first).await;
    assert_eq!(without_serial(&world.export(P).await), without_serial(&first));
    let changed = first.replace("192.0.2.3", "192.0.2.33").replace("mail.", "post.");
    world.imported(P, &changed).await;
    assert_eq!(without_serial(&world.export(P).await), without_serial(&changed));

    // The cluster's own zones, with what the server makes itself.
    let domain =
        "$TTL 60\n@ SOA x y 1 2 3 4 5\n@ NS elsewhere.test.\n@ TXT top\nns A 203.0.113.1\nwww A 192.0.2.9\n";
    assert_eq!(
        counts(&world.imported("hearth.internal.", domain).await),
        [2, 0, 0, 0, 3, 1]
    );
    let shown = world.export("hearth.internal.").await;
    assert!(
        shown.contains("\nns.hearth.internal. 3600 IN A 127.0.0.1\n"),
        "{shown}"
    );
    check_with_others("hearth.internal.", &shown);
    assert_eq!(world.server.dig(&["www.p.hearth.internal", "A"]).answer.len(), 2);
    let reverse = "$TTL 60\n@ SOA x y 1 2 3 4 5\n9.9 PTR www.hearth.internal.\n";
    world.imported("77.10.in-addr.arpa.", reverse).await;
    check_with_others("77.10.in-addr.arpa.", &world.export("77.10.in-addr.arpa.").await);
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_changes_nothing_and_says_where() {
    let Some(world) = World::new().await else { return };
    world.imported(P, ALL_TYPES).await;
    let before = world.export(P).await;
    let soa = "@ 60 SOA ns h 1 2 3 4 5\n";
    for (zone, text, why) in [
        (P, format!("{soa}a 60 A 192.0.2"), "line 2, column 8: "),
        (P, format!("{soa}a 60 TXT \"open"), "line 2, column 10: "),
        (
            P,
            format!("{soa}$INCLUDE /etc/shadow"),
            "line 2, column 1: `$INCLUDE` is refused",
        ),
        (
            P,
            format!("{soa}$GENERATE 0-4294967295 a$ A 192.0.2.1"),
            "line 2, column 1: ",
        ),
        (
            P,
            format!("{soa}@ 60 TXT apex"),
            "line 2, column 6: `p.hearth.internal.` belongs to the zone",
        ),
        (
            P,
            format!("{soa}a.q.hearth.internal. 60 TXT x"),
            "line 2, column 1: ",
        ),
        (
            P,
            format!("{soa}\n*.a 60 NS x."),
            "line 3, column 8: a wildcard cannot be delegated",
        ),
        (
            P,
            format!("{soa}a 60 CNAME b\na 60 TXT x"),
            "a CNAME and other records would stand together",
        ),
        (
            P,
            format!("{soa}a 60 HTTPS 1 . port=99999"),
            "line 2, column 16: ",
        ),
        (P, format!("{soa}a 60 LOC 91 N 0 E 0m"), "line 2, column 10: "),
        (P, "a 60 A 192.0.2.1".to_owned(), "has no SOA record"),
        (
            "hearth.internal.",
            format!("{soa}a.p 60 TXT x"),
            "line 2, column 8: `a.p.hearth.internal.` belongs to the zone `p.hearth.internal.`",
        ),
        (
            "hearth.internal.",
            format!("{soa}ns 60 TXT x"),
            "line 2, column 7: `ns.hearth.internal.` is the name server itself",
        ),
        (
            "hearth.internal.",
            format!("{soa}@ 60 DNAME x."),
            "line 2, column 6: at the top of the zone",
        ),
    ] {
        let (status, reply) = world.import(zone, text.clone()).await;
        assert_eq!(status, 400, "{text}: {reply}");
        let reply: Value = serde_json::from_str(&reply).unwrap();
        let message = reply["error"]["message"].as_str().unwrap();
        assert!(message.contains(why), "{text}: {message}");
    }
    let (status, text) = world.import(P, [soa.as_bytes(), b"a 60 TXT \xff"].concat()).await;
    assert!(status == 400 && text.contains("line 2"), "{status} {text}");
    let (status, text) = world.import(P, vec![b' '; 17 << 20]).await;
    assert_eq!(status, 400, "{text}");
    let mut many = soa.to_owned();
    for name in 0..10_001 {
        writeln!(many, "n{name} 1 A 192.0.2.1").unwrap();
    }
    let (status, text) = world.import(P, many).await;
    assert!(text.contains("10001 names"), "{status} {text}");
    assert_eq!(world.export(P).await, before);
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_takes_a_stated_number_of_transactions() {
    let Some(world) = World::new().await else { return };
    let mut file = "$TTL 60\n@ SOA ns h 1 2 3 4 5\n".to_owned();
    for name in 0..1000 {
        writeln!(file, "n{name} A 192.0.2.{}", name % 250).unwrap();
    }
    let path = format!("/v1/zones/{P}/file?dry_run=true");
    let body = Some(("text/dns", file.clone().into_bytes()));
    let (status, text) = world
        .server
        .send(&world.bed.pki, "PUT", &path, Some(&world.root), body)
        .await;
    assert_eq!(status, 200, "{text}");
    let dry: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (counts(&dry), &dry["dry_run"]),
        ([1000, 0, 0, 0, 1, 8], &Value::Bool(true))
    );
    assert_eq!(world.export(P).await.lines().count(), 3);
    assert_eq!(counts(&world.imported(P, &file).await), [1000, 0, 0, 0, 1, 8]);
    assert_eq!(world.export(P).await.lines().count(), 1003);
    assert_eq!(counts(&world.imported(P, &file).await), [0, 0, 0, 1000, 1, 0]);

    // Two at once: one after the other, or one is told that it was not made, and makes it whole when repeated.
    let nets = ["198.51.100.", "203.0.113."];
    let files = nets.map(|net| file.replace("192.0.2.", net));
    let (a, b) = tokio::join!(
        world.import(P, files[0].clone()),
        world.import(P, files[1].clone())
    );
    for ((status, text), file) in [&a, &b].into_iter().zip(&files) {
        assert!(*status == 200 || *status == 409, "{status} {text}");
        if *status == 409 {
            world.imported(P, file).await;
        }
    }
    let after = world.export(P).await;
    let whole = nets.iter().any(|net| after.matches(net).count() == 1000);
    assert!(whole, "{after}");
    world.server.stop().await;
}
