//! The servers that are asked the same as we: started with all zones, asked many questions at a time.

use std::{
    fmt::Write,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::common::query;

/// Longest wait for a server to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for one reply; a lost datagram is asked for again.
const REPLY_WAIT: Duration = Duration::from_secs(3);
const ATTEMPTS: usize = 5;
/// Questions on their way at once: what a socket's buffer surely holds.
const IN_FLIGHT: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Nsd,
    Knot,
    Bind,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Nsd, Self::Knot, Self::Bind];

    fn package(self) -> (&'static str, &'static str) {
        match self {
            Self::Nsd => ("nsd", "/usr/sbin/nsd"),
            Self::Knot => ("knot", "/usr/sbin/knotd"),
            Self::Bind => ("bind9", "/usr/sbin/named"),
        }
    }
}

pub struct Judge {
    pub kind: Kind,
    child: Child,
    socket: UdpSocket,
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
    /// Starts a server that serves the zones, each from `ZONEzone` in the folder; `None`: it is not installed.
    pub fn start(kind: Kind, folder: &Path, zones: &[String]) -> Option<Self> {
        let (package, program) = kind.package();
        if !Path::new(program).is_file() {
            println!("SKIPPED: {package} is not installed (apt install --no-install-recommends {package})");
            return None;
        }
        let address = free_address();
        let (config, arguments): (String, &[&str]) = match kind {
            Kind::Nsd => (nsd(folder, address, zones), &["-d"]),
            Kind::Knot => (knot(folder, address, zones), &[]),
            Kind::Bind => (bind(folder, address, zones), &["-g", "-4", "-n", "1"]),
        };
        let file = folder.join(format!("{package}.conf"));
        std::fs::write(&file, config).unwrap();
        let log = folder.join(format!("{package}.log"));
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
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let judge = Self { kind, child, socket };
        let deadline = Instant::now() + PATIENCE;
        let serves = |reply: &[u8]| reply.len() > 12 && reply[3] & 0xf == 0 && reply[7] == 1;
        for zone in zones {
            while !judge
                .once(&query(zone, 6, None))
                .is_some_and(|reply| serves(&reply))
            {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                assert!(
                    Instant::now() < deadline,
                    "{package} does not serve {zone}:\n{said}"
                );
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        judge.socket.set_read_timeout(Some(REPLY_WAIT)).unwrap();
        Some(judge)
    }

    /// One question without patience: nobody may listen yet.
    fn once(&self, query: &[u8]) -> Option<Vec<u8>> {
        self.socket.send(query).ok()?;
        self.receive()
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut reply = vec![0; 4096];
        match self.socket.recv(&mut reply) {
            Ok(length) => {
                reply.truncate(length);
                Some(reply)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => {
                None
            }
            Err(error) => panic!("{:?}: {error}", self.kind),
        }
    }

    /// Replies to all the queries, in their order. The queries' ids must be their places.
    pub fn ask(&self, queries: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut replies: Vec<Option<Vec<u8>>> = vec![None; queries.len()];
        for _ in 0..ATTEMPTS {
            let open: Vec<usize> = (0..queries.len()).filter(|at| replies[*at].is_none()).collect();
            for batch in open.chunks(IN_FLIGHT) {
                for at in batch {
                    self.socket.send(&queries[*at]).unwrap();
                }
                let mut left = batch.len();
                while left > 0 {
                    let Some(reply) = self.receive() else { break };
                    let at = usize::from(u16::from_be_bytes([reply[0], reply[1]]));
                    if replies.get(at).is_some_and(Option::is_none) {
                        replies[at] = Some(reply);
                        left -= 1;
                    }
                }
            }
        }
        let all: Option<Vec<_>> = replies.into_iter().collect();
        all.unwrap_or_else(|| panic!("{:?} is silent", self.kind))
    }
}

fn nsd(folder: &Path, address: SocketAddr, zones: &[String]) -> String {
    let folder = folder.display();
    let mut config = format!(
        "server:\n ip-address: {}@{}\n username: \"\"\n chroot: \"\"\n zonesdir: \"{folder}\"\n database: \"\"\n \
         pidfile: \"{folder}/nsd.pid\"\n xfrdfile: \"{folder}/xfrd.state\"\n zonelistfile: \"{folder}/zone.list\"\n \
         xfrdir: \"{folder}\"\n server-count: 1\n rrl-ratelimit: 0\n minimal-responses: yes\n refuse-any: no\n\
         remote-control:\n control-enable: no\n",
        address.ip(),
        address.port()
    );
    for zone in zones {
        write!(config, "zone:\n name: \"{zone}\"\n zonefile: \"{zone}zone\"\n").unwrap();
    }
    config
}

fn knot(folder: &Path, address: SocketAddr, zones: &[String]) -> String {
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

fn bind(folder: &Path, address: SocketAddr, zones: &[String]) -> String {
    let mut config = format!(
        "options {{ directory \"{}\"; listen-on port {} {{ {}; }}; listen-on-v6 {{ none; }}; pid-file none; \
         session-keyfile none; recursion no; notify no; dnssec-validation no; empty-zones-enable no; \
         minimal-responses no-auth; minimal-any no; check-names master ignore; check-integrity no; \
         check-mx ignore; zero-no-soa-ttl no; check-srv-cname ignore; check-mx-cname ignore; zone-statistics none; }};\ncontrols {{ }};\n",
        folder.display(),
        address.port(),
        address.ip(),
    );
    for zone in zones {
        writeln!(
            config,
            "zone \"{zone}\" {{ type primary; file \"{zone}zone\"; }};"
        )
        .unwrap();
    }
    config
}
