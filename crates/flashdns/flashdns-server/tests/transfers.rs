//! Zones to other servers: signatures, rights, and NSD, Knot and BIND as real secondaries.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in tests a failure is a panic"
)]

mod common;
mod secondaries;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::{Answer, Bed, PATIENCE, Running, dig_until};
use flashdns_core::tsig::{Algorithm, Key, Signer};
use iam_client::{Node, Role, testing::TestWorld};
use secondaries::{Kind, Primary, Secondary, records};
use serde_json::{Value, json};

const DOMAIN: &str = "hearth.internal.";
const REVERSE: &str = "77.10.in-addr.arpa.";
/// Random edits; more by this variable.
const EDITS: &str = "FLASHDNS_TRANSFER_EDITS";
const DEFAULT_EDITS: usize = 60;

struct World {
    bed: Bed,
    server: Running,
    root: String,
    operator: String,
}

impl World {
    async fn new(notify: &[SocketAddr], networks: &[&str]) -> Option<Self> {
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
        let mut config = bed.config(bed.data.path().to_owned());
        let seal = bed.pki.folder.path().join("seal.key");
        std::fs::write(&seal, [7; 32]).unwrap();
        config.flashdns.seal_key_file = Some(seal);
        config.flashdns.transfers.notify = notify.to_vec();
        config.flashdns.transfers.allow_networks = networks.iter().map(|text| (*text).to_owned()).collect();
        let server = bed.serve_config(&config, Some(world.authorizer())).await;
        dig_until(server.dns, &[DOMAIN, "SOA"], |answer| answer.status == "NOERROR").await;
        Some(Self {
            bed,
            server,
            root,
            operator,
        })
    }

    /// Makes a key; its secret.
    async fn key(&self, token: &str, key: Value) -> String {
        let (status, text) = self
            .server
            .call(&self.bed.pki, "POST", "/v1/keys", Some(token), Some(key))
            .await;
        assert_eq!(status, 201, "{text}");
        let made: Value = serde_json::from_str(&text).unwrap();
        made["secret"].as_str().unwrap().to_owned()
    }

    fn dig(&self, words: &[&str]) -> Answer {
        self.server.dig(words)
    }

    /// Transfers with a key (none: an empty name) that came to this.
    async fn transfers(&self, key: &str, outcome: &str) -> u64 {
        let name = format!("flashdns_transfers_total{{key=\"{key}\",outcome=\"{outcome}\"}}");
        self.server.metric(&self.bed.pki, &name).await
    }

    fn serial(&self, zone: &str) -> String {
        let answer = self.dig(&[zone, "SOA", "+short"]).text;
        answer.split(' ').nth(2).unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_good_signatures_of_keys_for_transfers_get_a_zone() {
    let Some(world) = World::new(&[], &[]).await else {
        return;
    };
    let file = "$TTL 60\n@ SOA x y 1 2 3 4 5\nwww A 192.0.2.1\n_w TXT \"x\"\n";
    let (status, text) = world
        .server
        .import(&world.bed.pki, DOMAIN, Some(&world.root), file)
        .await;
    assert_eq!(status, 200, "{text}");
    let call = async |method: &str, path: &str, token: &str, body: Option<Value>| {
        world
            .server
            .call(&world.bed.pki, method, path, Some(token), body)
            .await
    };
    for (algorithm, name) in [
        ("hmac-sha256", "a."),
        ("hmac-sha384", "b.example."),
        ("hmac-sha512", "c."),
    ] {
        let key = json!({"name": name, "algorithm": algorithm, "transfer": true});
        let secret = world.key(&world.root, key).await;
        let signed = format!("{algorithm}:{name}:{secret}");
        let zone = world.dig(&[DOMAIN, "AXFR", "-y", &signed]).text;
        assert!(zone.contains("www.hearth.internal.\t60"), "{algorithm}: {zone}");
        assert!(!zone.contains("verify"), "{algorithm}: {zone}");
        // An ordinary question, over both transports, is answered with a signature that dig checks.
        for transport in ["+notcp", "+tcp"] {
            let answer = world.dig(&["www.hearth.internal", "A", transport, "-y", &signed]);
            assert_eq!(
                (&*answer.status, answer.answer.len()),
                ("NOERROR", 1),
                "{}",
                answer.text
            );
            assert!(answer.text.contains("TSIG PSEUDOSECTION"), "{}", answer.text);
            assert!(!answer.text.contains("verify"), "{}", answer.text);
        }
        let wrong = format!(
            "{algorithm}:{name}:{}",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
        );
        let answer = world.dig(&["www.hearth.internal", "A", "-y", &wrong]).text;
        assert!(
            answer.contains("BADSIG") || answer.contains("NOTAUTH"),
            "{answer}"
        );
        let zone = world.dig(&[DOMAIN, "AXFR", "-y", &wrong]).text;
        assert!(!zone.contains("www."), "{zone}");
        // An hour ago: BADTIME, signed, with the server's time behind it (RFC 8945, 5.2.3).
        let secret = STANDARD.decode(&secret).unwrap();
        let algorithm = Algorithm::named(algorithm).unwrap();
        let key = Arc::new(Key::new(name.parse().unwrap(), algorithm, &secret));
        let mut old = b"\xbe\xef\x01\0\0\x01\0\0\0\0\0\0\x06hearth\x08internal\0\0\x06\0\x01".to_vec();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Signer::request(key).sign(&mut old, now - 3600);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(&old, world.server.dns).unwrap();
        let mut reply = [0; 1232];
        let length = socket.recv(&mut reply).unwrap();
        assert_eq!(
            (reply[3] & 0xf, &reply[length - 10..length - 6]),
            (9, &[0, 18, 0, 6][..])
        );
    }
    let nobody = "hmac-sha256:nobody.:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let answer = world.dig(&["www.hearth.internal", "A", "-y", nobody]).text;
    assert!(
        answer.contains("BADKEY") || answer.contains("NOTAUTH"),
        "{answer}"
    );
    assert!(world.dig(&[DOMAIN, "AXFR"]).text.contains("Transfer failed"));

    // A key without that right, and who may not give it.
    let secret = world.key(&world.operator, json!({"name": "plain."})).await;
    let plain = format!("hmac-sha256:plain.:{secret}");
    assert!(
        world
            .dig(&[DOMAIN, "AXFR", "-y", &plain])
            .text
            .contains("Transfer failed")
    );
    assert_eq!(
        world
            .dig(&["www.hearth.internal", "A", "-y", &plain])
            .answer
            .len(),
        1
    );
    let greedy = Some(json!({"name": "greedy.", "transfer": true}));
    assert_eq!(call("POST", "/v1/keys", &world.operator, greedy).await.0, 403);
    for (key, why) in [
        (json!({"name": "a."}), "already"),
        (
            json!({"name": "d.", "algorithm": "hmac-md5"}),
            "none of hmac-sha256",
        ),
        (json!({"name": "d.", "secret": "AAAA"}), "16 to 128"),
        (json!({"name": "d.", "secret": "!"}), "base64"),
        (json!({"name": "d..e"}), "not a key's name"),
        (json!({"name": "."}), "needs a name"),
    ] {
        let (status, text) = call("POST", "/v1/keys", &world.root, Some(key)).await;
        assert!(status >= 400 && text.contains(why), "{status} {text}");
    }

    // Keys are kept sealed, and seen by their owner.
    let stored = world
        .bed
        .store
        .get("/flashdns/v1/keys/plain.")
        .await
        .unwrap()
        .unwrap();
    assert!(!String::from_utf8_lossy(&stored.value).contains(&secret));
    let (_, text) = call("GET", "/v1/keys", &world.operator, None).await;
    let keys: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1, "{text}");
    assert!(!text.contains(&secret));
    let (_, text) = call("GET", "/v1/keys", &world.root, None).await;
    assert!(text.contains("b.example.") && text.contains("plain."), "{text}");
    assert_eq!(call("DELETE", "/v1/keys/a.", &world.operator, None).await.0, 404);
    assert_eq!(
        call("DELETE", "/v1/keys/plain.", &world.operator, None).await.0,
        204
    );
    let answer = world.dig(&["www.hearth.internal", "A", "-y", &plain]).text;
    assert!(
        answer.contains("BADKEY") || answer.contains("NOTAUTH"),
        "{answer}"
    );
    assert!(world.transfers("", "refused").await >= 4);
    assert_eq!(world.transfers("plain.", "refused").await, 1);
    assert_eq!(world.transfers("c.", "whole").await, 1);
    world.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_may_transfer_and_gets_changes() {
    let Some(world) = World::new(&[], &["127.0.0.0/8"]).await else {
        return;
    };
    world.bed.publish("web", &["10.77.0.5"]).await;
    dig_until(
        world.server.dns,
        &["web.default.hearth.internal", "A"],
        |answer| answer.answer.len() == 1,
    )
    .await;
    let before = world.serial(DOMAIN);
    let zone = records(world.server.dns, DOMAIN, &[]);
    assert!(
        zone.iter()
            .any(|line| line.contains("web.default.hearth.internal. 30 in a 10.77.0.5"))
    );
    assert_eq!(zone.iter().filter(|line| line.contains(" soa ")).count(), 1);
    let reverse = records(world.server.dns, REVERSE, &[]);
    assert!(
        reverse
            .iter()
            .any(|line| line.starts_with("5.0.77.10.in-addr.arpa. 30 in ptr")),
        "{reverse:?}"
    );

    world.bed.publish("db", &["10.77.0.6"]).await;
    dig_until(world.server.dns, &["db.default.hearth.internal", "A"], |answer| {
        answer.answer.len() == 1
    })
    .await;
    let now = world.serial(DOMAIN);
    let asked = format!("IXFR={before}");
    let changes = world.dig(&[DOMAIN, &asked, "+noall", "+answer"]).text;
    let lines: Vec<&str> = changes.lines().filter(|line| !line.starts_with(';')).collect();
    let soas = lines.iter().filter(|line| line.contains("SOA")).count();
    assert_eq!((lines.len(), soas), (5, 4), "{changes}");
    // Who has everything, or more than that, is told so with the SOA alone.
    for serial in [now.parse::<u32>().unwrap(), now.parse::<u32>().unwrap() + 5] {
        let current = world
            .dig(&[DOMAIN, &format!("IXFR={serial}"), "+noall", "+answer"])
            .text;
        let lines = current.lines().filter(|line| line.contains("SOA")).count();
        assert_eq!(lines, 1, "{current}");
    }
    // An unknown past: the whole zone. A zone that is not here: refused.
    let whole = world.dig(&[DOMAIN, "IXFR=1", "+noall", "+answer"]).text;
    assert!(
        whole.lines().count() > 5 && whole.contains("web.default"),
        "{whole}"
    );
    for zone in ["default.hearth.internal.", "example."] {
        assert!(world.dig(&[zone, "AXFR"]).text.contains("Transfer failed"));
    }
    // Over UDP changes are told by the SOA alone.
    let udp = world.dig(&[DOMAIN, &asked, "+notcp", "+noall", "+answer"]).text;
    assert!(
        udp.lines().filter(|line| line.contains("SOA")).count() >= 1,
        "{udp}"
    );
    world.server.stop().await;
}

/// A small generator whose seed is printed when something goes wrong.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// One change by the API, or of the VMs.
async fn edit(world: &World, dice: &mut Dice) {
    let name = format!("n{}.p.{DOMAIN}", dice.roll(12));
    let zone = "/v1/zones/p.hearth.internal./records";
    let body = match dice.roll(7) {
        0 => json!({"name": name, "type": "A", "ttl_s": 60, "data": format!("192.0.2.{}", dice.roll(250))}),
        1 => {
            json!({"name": name, "type": "TXT", "data": format!("\"{}\"", "x".repeat(dice.roll(200) as usize))})
        }
        2 => {
            json!({"name": format!("*.{name}"), "type": "MX", "ttl_s": 5, "data": format!("{} Mail.{DOMAIN}", dice.roll(9))})
        }
        3 => {
            json!({"name": name, "type": "SRV", "ttl_s": dice.roll(900), "data": format!("0 5 {} {name}", dice.roll(999))})
        }
        4 => {
            let vm = format!("vm{}", dice.roll(5));
            world
                .bed
                .publish(&vm, &[&format!("10.77.1.{}", dice.roll(250))])
                .await;
            return;
        }
        _ => {
            let rtype = ["A", "TXT", "SRV"][dice.roll(3) as usize];
            let path = format!("{zone}/{name}/{rtype}");
            world
                .server
                .call(&world.bed.pki, "DELETE", &path, Some(&world.root), None)
                .await;
            return;
        }
    };
    world
        .server
        .call(&world.bed.pki, "POST", zone, Some(&world.root), Some(body))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_servers_follow_random_edits_by_changes() {
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| kind.is_installed()).collect();
    let addresses: Vec<SocketAddr> = kinds.iter().map(|_| secondaries::address()).collect();
    let Some(world) = World::new(&addresses, &["127.0.0.0/8"]).await else {
        return;
    };
    let mut dice = Dice(u64::from(std::process::id()) | 1);
    println!("seed {}", dice.0);
    for _ in 0..20 {
        edit(&world, &mut dice).await;
    }
    let zones = [DOMAIN, REVERSE];
    let folder = tempfile::tempdir().unwrap();
    let mut servers = Vec::new();
    for (kind, address) in kinds.iter().zip(&addresses) {
        let key = kind.name();
        let secret = world
            .key(&world.root, json!({"name": key, "transfer": true}))
            .await;
        let primary = Primary {
            address: world.server.dns,
            key,
            secret: &secret,
            zones: &zones,
        };
        servers.push(Secondary::start(*kind, *address, folder.path(), &primary));
    }
    // A VM that was just published may come between two looks: what counts is that they become equal.
    let same = || {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let serial = world.serial(DOMAIN);
            let mut different = None;
            for zone in zones {
                for server in &servers {
                    server.wait_for(zone, &serial);
                    let theirs = records(server.address, zone, &[]);
                    let ours = records(world.server.dns, zone, &[]);
                    assert!(ours.len() > 2, "{ours:?}");
                    if theirs != ours {
                        different = Some((server, theirs, ours));
                    }
                }
            }
            let Some((server, theirs, ours)) = different else {
                return;
            };
            if Instant::now() > deadline {
                assert_eq!(theirs, ours, "{:?}:\n{}", server.kind, server.log());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    same();
    let edits = std::env::var(EDITS).map_or(DEFAULT_EDITS, |text| text.parse().unwrap());
    for round in 0..edits {
        edit(&world, &mut dice).await;
        if round % 20 == 19 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            same();
        }
    }
    same();
    for server in &servers {
        let key = format!("{}.", server.kind.name());
        let (changes, whole) = (
            world.transfers(&key, "changes").await,
            world.transfers(&key, "whole").await,
        );
        println!("{key} {edits} edits: {changes} transfers by changes, {whole} whole");
        for line in server
            .log()
            .lines()
            .filter(|line| line.contains("fallback") || line.contains("error"))
        {
            println!("{key} {line}");
        }
        assert!(
            changes >= 2,
            "{key} {changes} by changes, {whole} whole:\n{}",
            server.log()
        );
    }
    drop(servers);
    world.server.stop().await;
}
