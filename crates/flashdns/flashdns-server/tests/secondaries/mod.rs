//! NSD, Knot and BIND as secondaries of a FlashDNS, started on loopback with all they keep in one folder.
#![allow(unreachable_pub, reason = "a module of helpers")]

use std::{
    fmt::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::common::{PATIENCE, dig, free_port, skip};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nsd,
    Knot,
    Bind,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Nsd, Self::Knot, Self::Bind];

    /// What its key is called.
    pub fn name(self) -> &'static str {
        self.package().0
    }

    fn package(self) -> (&'static str, &'static str) {
        match self {
            Self::Nsd => ("nsd", "/usr/sbin/nsd"),
            Self::Knot => ("knot", "/usr/sbin/knotd"),
            Self::Bind => ("bind9", "/usr/sbin/named"),
        }
    }

    /// Whether it is here; a visible line when not.
    pub fn is_installed(self) -> bool {
        let (package, program) = self.package();
        let is = Path::new(program).is_file();
        if !is {
            skip(&format!("{package} is not installed (apt install {package})"));
        }
        is
    }
}

/// Where a secondary gets its zones.
pub struct Primary<'a> {
    pub address: SocketAddr,
    pub key: &'a str,
    pub secret: &'a str,
    pub zones: &'a [&'a str],
}

pub struct Secondary {
    pub kind: Kind,
    pub address: SocketAddr,
    child: Child,
    log: PathBuf,
}

impl Drop for Secondary {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

impl Secondary {
    pub fn start(kind: Kind, address: SocketAddr, folder: &Path, primary: &Primary<'_>) -> Self {
        let (package, program) = kind.package();
        let folder = folder.join(package);
        std::fs::create_dir_all(&folder).unwrap();
        let (config, arguments): (String, &[&str]) = match kind {
            Kind::Nsd => (nsd(&folder, address, primary), &["-d"]),
            Kind::Knot => (knot(&folder, address, primary), &[]),
            Kind::Bind => (bind(&folder, address, primary), &["-g", "-4", "-n", "1"]),
        };
        let file = folder.join("conf");
        std::fs::write(&file, config).unwrap();
        let log = folder.join("log");
        let output = std::fs::File::create(&log).unwrap();
        let child = Command::new(program)
            .args(arguments)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self {
            kind,
            address,
            child,
            log,
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has a serial of a zone, or a later one.
    pub fn wait_for(&self, zone: &str, serial: &str) {
        let wanted: u32 = serial.parse().unwrap();
        let deadline = Instant::now() + 3 * PATIENCE;
        loop {
            let answer = dig(self.address, &[zone, "SOA", "+short"]).text;
            let has = answer
                .split(' ')
                .nth(2)
                .and_then(|serial| serial.parse::<u32>().ok());
            if has.is_some_and(|has| has >= wanted) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{:?} has not {zone} {serial} but `{answer}`:\n{}",
                self.kind,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A zone as records in canonical order, as a transfer without a key gives it.
pub fn records(server: SocketAddr, zone: &str, more: &[&str]) -> Vec<String> {
    let mut words = vec![zone, "AXFR", "+onesoa", "+noall", "+answer"];
    words.extend(more);
    let text = dig(server, &words).text;
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with(';'));
    let mut lines: Vec<String> = lines
        .map(|line| {
            line.split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .to_lowercase()
        })
        .collect();
    lines.sort();
    lines
}

fn nsd(folder: &Path, address: SocketAddr, primary: &Primary<'_>) -> String {
    let folder = folder.display();
    let mut config = format!(
        "server:\n ip-address: {}@{}\n username: \"\"\n chroot: \"\"\n zonesdir: \"{folder}\"\n database: \"\"\n \
         pidfile: \"{folder}/nsd.pid\"\n xfrdfile: \"{folder}/xfrd.state\"\n zonelistfile: \"{folder}/zone.list\"\n \
         xfrdir: \"{folder}\"\n xfrd-reload-timeout: 0\n server-count: 1\n rrl-ratelimit: 0\n verbosity: 2\n\
         remote-control:\n control-enable: no\n\
         key:\n name: \"{}\"\n algorithm: hmac-sha256\n secret: \"{}\"\n",
        address.ip(),
        address.port(),
        primary.key,
        primary.secret
    );
    for zone in primary.zones {
        write!(
            config,
            "zone:\n name: \"{zone}\"\n zonefile: \"{zone}zone\"\n request-xfr: 127.0.0.1@{} \"{}\"\n \
             allow-notify: 127.0.0.1 NOKEY\n provide-xfr: 127.0.0.1 NOKEY\n",
            primary.address.port(),
            primary.key
        )
        .unwrap();
    }
    config
}

fn knot(folder: &Path, address: SocketAddr, primary: &Primary<'_>) -> String {
    let folder = folder.display();
    let mut config = format!(
        "server:\n  listen: {}@{}\n  rundir: {folder}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
         database:\n  storage: {folder}/db\nlog:\n  - target: stderr\n    any: info\n\
         key:\n  - id: {}\n    algorithm: hmac-sha256\n    secret: {}\n\
         remote:\n  - id: primary\n    address: 127.0.0.1@{}\n    key: {}\n\
         acl:\n  - id: notify\n    address: 127.0.0.1\n    action: notify\n  - id: transfer\n    address: 127.0.0.1\n    \
         action: transfer\n\
         template:\n  - id: default\n    storage: {folder}\n    zonefile-sync: -1\n    semantic-checks: off\nzone:\n",
        address.ip(),
        address.port(),
        primary.key,
        primary.secret,
        primary.address.port(),
        primary.key,
    );
    for zone in primary.zones {
        writeln!(
            config,
            "  - domain: {zone}\n    master: primary\n    acl: [notify, transfer]"
        )
        .unwrap();
    }
    config
}

fn bind(folder: &Path, address: SocketAddr, primary: &Primary<'_>) -> String {
    let mut config = format!(
        "options {{ directory \"{}\"; listen-on port {} {{ {}; }}; listen-on-v6 {{ none; }}; pid-file none; \
         session-keyfile none; recursion no; notify no; dnssec-validation no; empty-zones-enable no; \
         allow-transfer {{ 127.0.0.1; }}; zone-statistics none; serial-query-rate 100; }};\ncontrols {{ }};\n\
         key \"{}\" {{ algorithm hmac-sha256; secret \"{}\"; }};\n",
        folder.display(),
        address.port(),
        address.ip(),
        primary.key,
        primary.secret
    );
    for zone in primary.zones {
        writeln!(
            config,
            "zone \"{zone}\" {{ type secondary; file \"{zone}zone\"; primaries {{ 127.0.0.1 port {} key \"{}\"; }}; }};",
            primary.address.port(),
            primary.key
        )
        .unwrap();
    }
    config
}
