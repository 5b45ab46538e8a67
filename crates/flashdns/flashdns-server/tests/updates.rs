//! Dynamic updates by `nsupdate`: rights of the key's principal, prerequisites, error codes, nothing done twice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in tests a failure is a panic"
)]

mod common;

use std::{
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    process::{Command, Stdio},
    time::Duration,
};

use common::{Bed, Running, dig_until, installed, skip};
use iam_client::{Node, Role, testing::TestWorld};
use serde_json::{Value, json};

struct World {
    bed: Bed,
    server: Running,
    root: String,
    operator: String,
    viewer: String,
}

/// A key as nsupdate's `-y` wants it.
type Signed = String;

impl World {
    async fn new() -> Option<Self> {
        if !installed("nsupdate") {
            skip("nsupdate is not installed (apt install bind9-dnsutils)");
            return None;
        }
        let bed = Bed::new()?;
        bed.ready().await;
        let world = TestWorld::new().unwrap();
        let p = Node::Project(world.project("p").unwrap());
        let token = |name: &str, role, node| {
            let user = world.user(name).unwrap();
            world.bind(user, role, node);
            world.token(user).unwrap()
        };
        let root = token("root", Role::Admin, Node::Root);
        let operator = token("operator", Role::Operator, p);
        let viewer = token("viewer", Role::Viewer, p);
        let mut config = bed.config(bed.data.path().to_owned());
        let seal = bed.pki.folder.path().join("seal.key");
        std::fs::write(&seal, [7; 32]).unwrap();
        config.flashdns.seal_key_file = Some(seal);
        let server = bed.serve_config(&config, Some(world.authorizer())).await;
        dig_until(server.dns, &["hearth.internal", "SOA"], |answer| {
            answer.status == "NOERROR"
        })
        .await;
        Some(Self {
            bed,
            server,
            root,
            operator,
            viewer,
        })
    }

    async fn key(&self, token: &str, name: &str) -> Signed {
        let (status, text) = self
            .server
            .call(
                &self.bed.pki,
                "POST",
                "/v1/keys",
                Some(token),
                Some(json!({"name": name})),
            )
            .await;
        assert_eq!(status, 201, "{text}");
        let made: Value = serde_json::from_str(&text).unwrap();
        format!("hmac-sha256:{name}:{}", made["secret"].as_str().unwrap())
    }

    /// Runs nsupdate on lines of its own language: what it says went wrong, or nothing.
    fn update(&self, key: Option<&str>, over_tcp: bool, lines: &str) -> String {
        let mut command = Command::new("nsupdate");
        command.args(["-t", "20", "-r", "2"]);
        if over_tcp {
            command.arg("-v");
        }
        if let Some(key) = key {
            command.args(["-y", key]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let script = format!("server 127.0.0.1 {}\n{lines}\nsend\n", self.server.dns.port());
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8(said).unwrap().trim().to_owned()
    }

    fn answers(&self, words: &[&str]) -> Vec<String> {
        self.server.dig(words).answer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nsupdate_changes_what_its_principal_may() {
    let Some(world) = World::new().await else { return };
    let operator = world.key(&world.operator, "operator.").await;
    let root = world.key(&world.root, "root.").await;
    let viewer = world.key(&world.viewer, "viewer.").await;
    let p = |name: &str| format!("{name}.p.hearth.internal.");
    world.bed.publish("vm", &["10.77.0.9"]).await;
    dig_until(world.server.dns, &["vm.default.hearth.internal", "A"], |answer| {
        answer.answer.len() == 1
    })
    .await;
    // One after the other: key, over TCP, script, what nsupdate says then.
    let zone = "zone p.hearth.internal";
    let add = format!("{zone}\nupdate add {} 60 A 192.0.2.1", p("www"));
    let no_alias = format!("{zone}\nupdate add {} 60 CNAME x.", p("www"));
    for (key, over_tcp, script, said) in [
        (Some(&operator), false, add.clone(), ""),
        (
            Some(&operator),
            true,
            format!("{zone}\nupdate add {} 60 A 192.0.2.2", p("www")),
            "",
        ),
        // Without a zone nsupdate finds the zone on the wire, which is the domain.
        (
            Some(&operator),
            false,
            format!("update add {} 60 TXT \"a b\"", p("txt")),
            "",
        ),
        (Some(&operator), false, no_alias, ""),
        (None, false, add.clone(), "REFUSED"),
        (Some(&viewer), false, add.clone(), "REFUSED"),
        (
            Some(&operator),
            false,
            "update add x.q.hearth.internal. 60 A 192.0.2.1".to_owned(),
            "REFUSED",
        ),
        (
            Some(&operator),
            false,
            "update add x.hearth.internal. 60 A 192.0.2.1".to_owned(),
            "REFUSED",
        ),
        (
            Some(&root),
            false,
            "update add x.hearth.internal. 60 A 192.0.2.1".to_owned(),
            "",
        ),
        (
            Some(&root),
            false,
            "update add 8.0.77.10.in-addr.arpa. 60 PTR x.hearth.internal.".to_owned(),
            "",
        ),
        (
            Some(&root),
            false,
            "update add hearth.internal. 60 NS x.hearth.internal.".to_owned(),
            "REFUSED",
        ),
        (
            Some(&root),
            false,
            "update add ns.hearth.internal. 60 A 192.0.2.1".to_owned(),
            "REFUSED",
        ),
        (
            Some(&root),
            false,
            "zone example.\nupdate add a.example. 60 A 192.0.2.1".to_owned(),
            "NOTAUTH",
        ),
        (
            Some(&operator),
            false,
            format!("{zone}\nupdate add x.hearth.internal. 60 A 192.0.2.1"),
            "NOTZONE",
        ),
        // Prerequisites, each way.
        (
            Some(&operator),
            false,
            format!(
                "{zone}\nprereq nxdomain {}\nupdate add {} 60 A 192.0.2.3",
                p("www"),
                p("www")
            ),
            "YXDOMAIN",
        ),
        (
            Some(&operator),
            false,
            format!(
                "{zone}\nprereq yxdomain {}\nupdate add {} 60 A 192.0.2.3",
                p("none"),
                p("www")
            ),
            "NXDOMAIN",
        ),
        (
            Some(&operator),
            false,
            format!(
                "{zone}\nprereq nxrrset {} A\nupdate add {} 60 A 192.0.2.3",
                p("www"),
                p("www")
            ),
            "YXRRSET",
        ),
        (
            Some(&operator),
            false,
            format!(
                "{zone}\nprereq yxrrset {} MX\nupdate add {} 60 A 192.0.2.3",
                p("www"),
                p("www")
            ),
            "NXRRSET",
        ),
        (
            Some(&operator),
            false,
            format!(
                "{zone}\nprereq yxrrset {} A 192.0.2.1\nupdate add {} 60 A 192.0.2.3",
                p("www"),
                p("www")
            ),
            "NXRRSET",
        ),
        (
            Some(&operator),
            false,
            format!(
                "{zone}\nprereq yxrrset {www} A 192.0.2.2\nprereq yxrrset {www} A 192.0.2.1\nprereq yxdomain {www}\n\
                 prereq nxdomain {new}\nprereq nxrrset {www} MX\nprereq yxrrset {www} A\nupdate add {new} 60 A 192.0.2.9",
                www = p("www"),
                new = p("new")
            ),
            "",
        ),
        // A running VM's name is in use, also where nothing is stored.
        (
            Some(&root),
            false,
            "prereq nxdomain vm.default.hearth.internal.\nupdate add y.hearth.internal. 60 A 192.0.2.3"
                .to_owned(),
            "YXDOMAIN",
        ),
    ] {
        let got = world.update(key.map(String::as_str), over_tcp, &script);
        let fits = if said.is_empty() {
            got.is_empty()
        } else {
            got.contains(said)
        };
        assert!(fits, "{script}\nwants `{said}`, said `{got}`");
    }
    assert_eq!(
        world.answers(&["www.p.hearth.internal", "A"]),
        [
            "www.p.hearth.internal. 60 IN A 192.0.2.1",
            "www.p.hearth.internal. 60 IN A 192.0.2.2"
        ]
    );
    assert_eq!(world.answers(&["new.p.hearth.internal", "A"]).len(), 1);
    assert_eq!(world.answers(&["8.0.77.10.in-addr.arpa", "PTR"]).len(), 1);
    assert_eq!(world.answers(&["y.hearth.internal", "A"]).len(), 0);

    // Deletions, and a replacement in one message.
    let www = p("www");
    for script in [
        format!("{zone}\nupdate delete {www} A 192.0.2.1"),
        format!("{zone}\nupdate delete {} TXT", p("txt")),
        format!("{zone}\nupdate delete {}", p("new")),
        format!("{zone}\nupdate delete {} A", p("never")),
        format!(
            "{zone}\nupdate delete {www} A\nupdate add {www} 7 A 192.0.2.77\nupdate add {www} 7 AAAA ::1"
        ),
    ] {
        assert_eq!(world.update(Some(&operator), false, &script), "", "{script}");
    }
    assert_eq!(
        world.answers(&["www.p.hearth.internal", "A"]),
        ["www.p.hearth.internal. 7 IN A 192.0.2.77"]
    );
    for name in ["txt", "new"] {
        assert_eq!(world.server.dig(&[&p(name), "TXT"]).status, "NXDOMAIN", "{name}");
    }
    let many: String = (0..120)
        .map(|n| format!("\nupdate add n{n}.{} 60 A 192.0.2.1", p("m")))
        .collect();
    assert_eq!(world.update(Some(&operator), true, &format!("{zone}{many}")), "");
    assert_eq!(world.answers(&["n119.m.p.hearth.internal", "A"]).len(), 1);
    let more = format!("{zone}{many}\nupdate add last.{} 60 A 192.0.2.1", p("m"));
    assert!(world.update(Some(&operator), true, &more).contains("REFUSED"));
    // A key that is gone changes nothing any more.
    let gone = world
        .server
        .call(
            &world.bed.pki,
            "DELETE",
            "/v1/keys/operator.",
            Some(&world.operator),
            None,
        )
        .await;
    assert_eq!(gone.0, 204);
    assert!(!world.update(Some(&operator), false, &add).is_empty());
    let refused = world
        .server
        .metric(&world.bed.pki, "flashdns_updates_total{rcode=\"REFUSED\"}")
        .await;
    assert!(refused >= 6, "{refused}");
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_messages_change_nothing_and_end_nothing() {
    let Some(world) = World::new().await else { return };
    let key = world.key(&world.root, "root.").await;
    assert_eq!(
        world.update(Some(&key), false, "update add a.hearth.internal. 60 A 192.0.2.1"),
        ""
    );
    // Everything that is not signed is refused, however it looks.
    let zone = b"\x06hearth\x08internal\0\0\x06\0\x01";
    let header = |counts: [u16; 4]| {
        let mut message = vec![1, 2, 0x28, 0];
        message.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
        message
    };
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(world.server.dns).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut reply = [0; 512];
    for counts in [
        [1, 0, 0, 0],
        [1, 65_535, 0, 0],
        [1, 0, 65_535, 0],
        [0, 0, 0, 0],
        [65_535, 0, 0, 0],
        [1, 0, 0, 65_535],
    ] {
        let message = [header(counts), zone.to_vec()].concat();
        for end in 12..=message.len() {
            socket.send(&message[..end]).unwrap();
            let length = socket.recv(&mut reply).unwrap();
            assert!(length >= 12 && reply[2] & 0xf8 == 0xa8, "{counts:?}");
            assert!(matches!(reply[3] & 0xf, 1 | 5 | 9), "{counts:?} {}", reply[3]);
        }
    }
    // 64 kB over TCP.
    let mut stream = TcpStream::connect(world.server.dns).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut large = [header([1, 5000, 0, 0]), zone.to_vec()].concat();
    while large.len() < 65_000 {
        large.extend(b"\xc0\x0c\0\xff\0\xff\0\0\0\0\0\0");
    }
    stream
        .write_all(&u16::try_from(large.len()).unwrap().to_be_bytes())
        .unwrap();
    stream.write_all(&large).unwrap();
    stream.read_exact(&mut reply[..14]).unwrap();
    assert_eq!((reply[4] & 0xf8, reply[5] & 0xf), (0xa8, 5));
    assert_eq!(world.answers(&["a.hearth.internal", "A"]).len(), 1);
    world.server.stop().await;
}
