//! The same generated zones and questions to NSD, to Knot and to us. Where the two agree, so must we; where
//! they differ, we must side with one of them. `SEED=n` repeats a run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in tests a failure is a panic"
)]

mod common;

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{Edns, load, query, show};
use flashdns_core::{Catalog, Outcome, Transport, answer};

const ZONES: u64 = 60;
const QUESTIONS: usize = 150;
/// Longest wait for a server to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// Small numbers from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    /// A name below the zone, relative; sometimes with a wildcard label.
    fn name(&mut self, stars: bool) -> String {
        let mut labels = Vec::new();
        for _ in 0..=self.below(3) {
            labels.push(self.pick(&["a", "b", "c", "d", "www", "mail"]));
        }
        if stars && self.below(5) == 0 {
            labels.insert(0, "*");
        }
        labels.join(".")
    }
}

/// A zone file: no CNAME beside other data, no wildcard that delegates; everything else goes.
fn zone_text(random: &mut Random, origin: &str) -> String {
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for _ in 0..random.below(25) + 3 {
        let owner = random.name(true);
        let target = match random.below(4) {
            0 => "host.elsewhere.test.".to_owned(),
            _ => format!("{}.{origin}", random.name(false)),
        };
        let octet = random.below(250) + 1;
        let record = match random.below(12) {
            0..=2 => format!("A 192.0.2.{octet}"),
            3 => format!("AAAA 2001:db8::{octet:x}"),
            4 => format!("TXT \"text {octet}\""),
            5 => format!("MX {octet} {target}"),
            6 => format!("SRV 0 1 {octet} {target}"),
            7 => "TYPE65280 \\# 2 0a0b".to_owned(),
            8 | 9 => format!("CNAME {target}"),
            _ if owner.starts_with('*') => format!("A 192.0.2.{octet}"),
            _ => format!("NS {target}"),
        };
        let records = names.entry(owner).or_default();
        let is_alias = |record: &String| record.starts_with("CNAME");
        let crowded = records.iter().any(is_alias) || (is_alias(&record) && !records.is_empty());
        if !crowded && !records.contains(&record) {
            records.push(record);
        }
    }
    let mut text =
        format!("$ORIGIN {origin}\n@ 600 IN SOA ns hostmaster 11 3600 600 86400 120\n@ 600 IN NS ns\n");
    text += "@ 600 IN MX 1 mail\nns 600 IN A 192.0.2.53\n";
    for (owner, records) in names {
        for record in records {
            writeln!(text, "{owner} 300 IN {record}").unwrap();
        }
    }
    text
}

struct Judge {
    name: &'static str,
    child: Child,
    address: SocketAddr,
}

impl Drop for Judge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], test_ports::keep_port().unwrap()))
}

impl Judge {
    fn start(name: &'static str, folder: &Path, zones: &[String]) -> Option<Self> {
        let address = free_address();
        let (program, config) = match name {
            "nsd" => ("/usr/sbin/nsd", nsd_config(folder, address, zones)),
            _ => ("/usr/sbin/knotd", knot_config(folder, address, zones)),
        };
        if !Path::new(program).is_file() {
            println!("SKIPPED: {name} is not installed (apt install --no-install-recommends {name})");
            return None;
        }
        let file = folder.join(format!("{name}.conf"));
        std::fs::write(&file, config).unwrap();
        let log = std::fs::File::create(folder.join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(program);
        if name == "nsd" {
            command.arg("-d");
        }
        let child = command
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let judge = Self { name, child, address };
        let deadline = Instant::now() + PATIENCE;
        for zone in zones {
            while judge
                .ask(&query(zone, 6, None))
                .is_none_or(|reply| reply[3] & 0xf != 0)
            {
                let log = || std::fs::read_to_string(folder.join(format!("{name}.log"))).unwrap_or_default();
                assert!(
                    Instant::now() < deadline,
                    "{name} does not serve {zone}:\n{}",
                    log()
                );
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Some(judge)
    }

    fn ask(&self, query: &[u8]) -> Option<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.send_to(query, self.address).unwrap();
        let mut reply = vec![0; 4096];
        let length = socket.recv(&mut reply).ok()?;
        reply.truncate(length);
        Some(reply)
    }
}

fn nsd_config(folder: &Path, address: SocketAddr, zones: &[String]) -> String {
    let folder = folder.display();
    let mut config = format!(
        "server:\n ip-address: {}@{}\n username: \"\"\n chroot: \"\"\n zonesdir: \"{folder}\"\n database: \"\"\n \
         pidfile: \"{folder}/nsd.pid\"\n xfrdfile: \"{folder}/xfrd.state\"\n zonelistfile: \"{folder}/zone.list\"\n \
         xfrdir: \"{folder}\"\n server-count: 1\n rrl-ratelimit: 0\n minimal-responses: yes\n\
         remote-control:\n control-enable: no\n",
        address.ip(),
        address.port()
    );
    for zone in zones {
        write!(config, "zone:\n name: \"{zone}\"\n zonefile: \"{zone}zone\"\n").unwrap();
    }
    config
}

fn knot_config(folder: &Path, address: SocketAddr, zones: &[String]) -> String {
    let folder = folder.display();
    let mut config = format!(
        "server:\n  listen: {}@{}\n  rundir: {folder}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
         database:\n  storage: {folder}/knot\nlog:\n  - target: stderr\n    any: warning\n\
         template:\n  - id: default\n    storage: {folder}\n    file: \"%s.zone\"\n    zonefile-sync: -1\n    \
         journal-content: none\n    semantic-checks: off\nzone:\n",
        address.ip(),
        address.port()
    );
    for zone in zones {
        writeln!(config, "  - domain: {zone}").unwrap();
    }
    config
}

/// What is compared: response code, AA, answer and authority.
fn essence(reply: &[u8]) -> String {
    let shown = show(reply);
    let compared = |line: &&str| !line.starts_with(['+', '?']);
    let mut lines: Vec<&str> = shown.lines().filter(compared).collect();
    lines.dedup();
    lines.join("\n").to_ascii_lowercase()
}

#[test]
fn equal_to_nsd_and_knot() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap()
                .subsec_nanos()
                .into()
        });
    println!("SEED={seed}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("knot")).unwrap();
    let mut random = Random(seed);
    let mut catalog = Catalog::new();
    let mut zones = Vec::new();
    let mut texts = BTreeMap::new();
    for number in 0..ZONES {
        let origin = format!("z{number}.");
        let text = zone_text(&mut random, &origin);
        std::fs::write(folder.path().join(format!("{origin}zone")), &text).unwrap();
        load(&mut catalog, &origin, &text);
        texts.insert(origin.clone(), text);
        zones.push(origin);
    }
    let snapshot = catalog.snapshot(11);
    let start = |name| Judge::start(name, folder.path(), &zones);
    let judges: Vec<Judge> = ["nsd", "knot"].into_iter().filter_map(start).collect();
    if judges.is_empty() {
        return;
    }
    let (mut compared, mut divided) = (0, 0);
    let mut kinds: BTreeMap<String, u32> = BTreeMap::new();
    for zone in &zones {
        for _ in 0..QUESTIONS {
            let below = random.name(true);
            let name = if random.below(12) == 0 {
                zone.clone()
            } else {
                format!("{below}.{zone}")
            };
            let rtype = [1, 1, 1, 2, 5, 6, 15, 16, 28, 33, 43, 65280][random.below(12)];
            let query = query(
                &name,
                rtype,
                Some(Edns {
                    size: 1232,
                    version: 0,
                }),
            );
            let mut ours = Vec::new();
            assert_ne!(
                answer(&snapshot, &query, Transport::Udp, &mut ours),
                Outcome::Silence
            );
            let ours = essence(&ours);
            let theirs: Vec<String> = judges
                .iter()
                .map(|judge| essence(&judge.ask(&query).expect("a judge is silent")))
                .collect();
            compared += 1;
            let kind = format!(
                "{}{}",
                ours.lines().next().unwrap_or(""),
                if ours.contains("\n=") { " answer" } else { "" }
            );
            *kinds.entry(kind).or_default() += 1;
            divided += usize::from(theirs.windows(2).any(|pair| pair[0] != pair[1]));
            if !theirs.contains(&ours) {
                let mut shown = format!("{name} type {rtype}\n--- we:\n{ours}\n");
                for (judge, theirs) in judges.iter().zip(&theirs) {
                    write!(shown, "--- {}:\n{theirs}\n", judge.name).unwrap();
                }
                panic!("SEED={seed} {shown}--- zone:\n{}", texts[zone]);
            }
        }
    }
    println!(
        "{compared} answers compared with {} servers, which differed in {divided}",
        judges.len()
    );
}
