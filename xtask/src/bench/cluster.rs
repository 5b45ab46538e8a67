//! The two clusters: started on the same disk, with what they used of the processor and of memory.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use chainfire_client::wire::etcdserverpb::{RangeRequest, kv_client::KvClient};
use hearth_service::pki::{Authority, LEAF_LIFETIME, LeafRequest};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use super::{Product, loads};

/// Connections of the load, spread over the members.
const CONNECTIONS: usize = 10;
/// Longest wait for a cluster to serve.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Largest answer that is read, bytes: a range of 1000 pairs and a snapshot of many events fit.
pub(super) const MAX_ANSWER_BYTES: usize = 64 << 20;

/// The programs that are compared.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) etcd: PathBuf,
    pub(super) hearthd: PathBuf,
    /// Folder for the data of both.
    pub(super) dir: PathBuf,
}

fn free_ports(count: usize) -> Result<Vec<u16>> {
    (0..count).map(|_| Ok(test_ports::keep_port()?)).collect()
}

/// What the servers of a cluster use together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// Processor time since their start.
    pub(super) cpu: Duration,
    /// Resident memory now, MiB.
    pub(super) memory_mib: f64,
}

/// Running servers with their data; all gone when dropped.
#[derive(Debug)]
pub(super) struct Cluster {
    children: Vec<Child>,
    clients: Vec<u16>,
    dir: TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Cluster {
    pub(super) fn start(product: Product, members: usize, programs: &Programs) -> Result<Cluster> {
        let (hearthd, dir) = (&programs.hearthd, &programs.dir);
        let ports = free_ports(2 * members)?;
        let (clients, peers) = ports.split_at(members);
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(dir)?;
        let mut cluster = Cluster {
            children: Vec::new(),
            clients: clients.to_vec(),
            dir,
        };
        if product == Product::Chainfire {
            cluster.write_certificate()?;
        }
        for n in 0..members {
            let mut command = match product {
                Product::Etcd => cluster.etcd(n, peers, &programs.etcd),
                Product::Chainfire => cluster.chainfire(n, peers, hearthd)?,
            };
            let log = std::fs::File::create(cluster.dir.path().join(format!("{n}.log")))?;
            let child = command
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn();
            cluster
                .children
                .push(child.with_context(|| format!("cannot start {product:?}"))?);
        }
        Ok(cluster)
    }

    fn etcd(&self, n: usize, peers: &[u16], program: &Path) -> Command {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let all: Vec<String> = peers
            .iter()
            .enumerate()
            .map(|(n, port)| format!("m{n}={}", url(*port)))
            .collect();
        let mut command = Command::new(program);
        command
            .args(["--log-level", "error", "--name", &format!("m{n}"), "--data-dir"])
            .arg(self.dir.path().join(format!("m{n}")))
            .args([
                "--listen-client-urls",
                &url(self.clients[n]),
                "--advertise-client-urls",
                &url(self.clients[n]),
            ])
            .args([
                "--listen-peer-urls",
                &url(peers[n]),
                "--initial-advertise-peer-urls",
                &url(peers[n]),
            ])
            .args(["--initial-cluster", &all.join(",")]);
        command
    }

    fn chainfire(&self, n: usize, peers: &[u16], hearthd: &Path) -> Result<Command> {
        let dir = self.dir.path().display();
        let mut text = format!(
            "[service]\nname = \"m{n}\"\ndata_dir = \"{dir}/m{n}\"\nlog_level = \"warn\"\nshutdown_grace_s = 5\n\
             [tls]\nca = \"{dir}/ca\"\ncert = \"{dir}/crt\"\nkey = \"{dir}/key\"\n\
             [chainfire]\nmember = \"m{n}\"\ncluster = \"bench\"\nlisten_client = \"127.0.0.1:{}\"\n\
             listen_peer = \"127.0.0.1:{}\"\nplaintext_loopback = true\n",
            self.clients[n], peers[n]
        );
        for (n, (client, peer)) in self.clients.iter().zip(peers).enumerate() {
            text += &format!(
                "[[chainfire.members]]\nname = \"m{n}\"\nclient = \"127.0.0.1:{client}\"\npeer = \"127.0.0.1:{peer}\"\n"
            );
        }
        let path = self.dir.path().join(format!("m{n}.toml"));
        std::fs::write(&path, text)?;
        let mut command = Command::new(hearthd);
        command.arg("chainfire").arg("--config").arg(path);
        Ok(command)
    }

    fn write_certificate(&self) -> Result<()> {
        let authority = Authority::create("hearth.internal", SystemTime::now())?;
        let request = LeafRequest {
            trust_domain: "hearth.internal".into(),
            path: "service/chainfire".into(),
            dns: vec!["localhost".into()],
            ips: vec![Ipv4Addr::LOCALHOST.into()],
            lifetime: LEAF_LIFETIME,
        };
        let issued = authority.issue(&request, SystemTime::now())?;
        let dir = self.dir.path();
        std::fs::write(dir.join("ca"), authority.cert_pem())?;
        std::fs::write(dir.join("crt"), issued.cert_pem)?;
        std::fs::write(dir.join("key"), issued.key_pem)?;
        Ok(())
    }

    /// What the servers have used so far.
    pub(super) fn usage(&self) -> Result<Usage> {
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
        let mut usage = Usage::default();
        for child in &self.children {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
            // The fields behind the name, which may hold spaces: 12 and 13 of them are user and system time.
            let fields: Vec<&str> = stat
                .rsplit(')')
                .next()
                .unwrap_or_default()
                .split_whitespace()
                .collect();
            let field = |n: usize| {
                fields
                    .get(n)
                    .and_then(|text| text.parse::<f64>().ok())
                    .unwrap_or(0.0)
            };
            usage.cpu += Duration::from_secs_f64((field(11) + field(12)) / ticks as f64);
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
            let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = resident.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
            usage.memory_mib += kib.unwrap_or(0.0) / 1024.0;
        }
        Ok(usage)
    }

    /// Connections to the members in turn, when all of them serve.
    pub(super) async fn connect(&self) -> Result<Vec<Channel>> {
        let mut channels = Vec::new();
        for n in 0..CONNECTIONS.max(self.clients.len()) {
            let port = self.clients[n % self.clients.len()];
            let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.tcp_nodelay(true);
            channels.push(endpoint.timeout(Duration::from_secs(20)).connect_lazy());
        }
        let end = Instant::now() + START_PATIENCE;
        for channel in &channels {
            let mut kv = KvClient::new(channel.clone());
            while let Err(status) = kv
                .range(RangeRequest {
                    key: loads::key(0),
                    ..Default::default()
                })
                .await
            {
                ensure!(
                    Instant::now() < end,
                    "not serving: {status}; logs in {}",
                    self.dir.path().display()
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(channels)
    }
}
