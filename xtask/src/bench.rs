//! `cargo xtask bench chainfire`: the same load against Debian's etcd and against Chainfire, in turn, on this machine.
//!
//! Both are given the same disk (never a tmpfs: the point is fsync), plain text to the client, and their own defaults;
//! Chainfire's members speak mutual TLS among themselves, etcd's plain text. Client and servers share the machine, so
//! the figures are good for the ratio only. Rounds are interleaved (A B A B ...), and the load average stands beside
//! every figure: on a busy machine the run says so, and its ratios mean little.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use chainfire_client::wire::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};
use hearth_service::pki::{Authority, LEAF_LIFETIME, LeafRequest};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// Connections of the load, spread over the members.
const CONNECTIONS: usize = 10;
/// Size of a value, bytes.
const VALUE_BYTES: usize = 256;
/// Keys that the load goes round.
const KEYS: usize = 10_000;
/// Longest wait for a cluster to serve.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Quiet before each measurement.
const SETTLE: Duration = Duration::from_secs(1);
/// Concurrent clients of the loads.
const CLIENTS: [usize; 2] = [1, 100];
/// Members of the clusters.
const SIZES: [usize; 2] = [1, 3];

/// What to measure.
#[derive(clap::Args, Debug)]
pub(crate) struct BenchArgs {
    /// What to measure: `chainfire`.
    what: String,
    /// Interleaved rounds; the median is shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds for each measurement.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// The release build of hearthd.
    #[arg(long, default_value = "target/release/hearthd")]
    hearthd: PathBuf,
    /// Folder for the data of both, on a disk.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Product {
    Etcd,
    Chainfire,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Load {
    Put,
    Get,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    members: usize,
    load: Load,
    clients: usize,
}

#[derive(Clone, Copy, Debug)]
struct Figure {
    per_second: f64,
    p50_us: u32,
    p99_us: u32,
    load_average: f64,
}

/// Runs the benchmark and prints its table.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    ensure!(
        args.what == "chainfire",
        "there is a benchmark of `chainfire` only"
    );
    ensure!(
        args.rounds > 0 && args.seconds > 0,
        "at least one round and one second"
    );
    let hearthd = args.hearthd.canonicalize().with_context(|| {
        format!(
            "no {}: build it with `cargo build --release -p hearthd`",
            args.hearthd.display()
        )
    })?;
    std::fs::create_dir_all(&args.dir)?;
    let kind = nix::sys::statfs::statfs(&args.dir)?.filesystem_type();
    ensure!(
        kind != nix::sys::statfs::TMPFS_MAGIC,
        "{} is no disk (tmpfs); give --dir",
        args.dir.display()
    );
    if Command::new("etcd")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        bail!("etcd is not installed (apt install etcd-server)");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut figures: BTreeMap<(Cell, Product), Vec<Figure>> = BTreeMap::new();
    for round in 1..=args.rounds {
        for members in SIZES {
            for product in [Product::Etcd, Product::Chainfire] {
                eprintln!(
                    "round {round}: {product:?}, {members} member(s), load average {:.2}",
                    load_average()
                );
                let cluster = Cluster::start(product, members, &hearthd, &args.dir)?;
                runtime.block_on(async {
                    let channels = cluster.connect().await?;
                    for load in [Load::Put, Load::Get] {
                        for clients in CLIENTS {
                            let figure =
                                measure(&channels, load, clients, Duration::from_secs(args.seconds)).await?;
                            figures
                                .entry((
                                    Cell {
                                        members,
                                        load,
                                        clients,
                                    },
                                    product,
                                ))
                                .or_default()
                                .push(figure);
                        }
                    }
                    anyhow::Ok(())
                })?;
            }
        }
    }
    print_table(&figures, args);
    Ok(())
}

/// One minute's load average.
fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace()
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or(f64::NAN)
}

fn free_ports(count: usize) -> Result<Vec<u16>> {
    let held = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<Vec<_>, _>>()?;
    held.iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect()
}

/// Running servers with their data; all gone when dropped.
struct Cluster {
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
    fn start(product: Product, members: usize, hearthd: &Path, dir: &Path) -> Result<Cluster> {
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
                Product::Etcd => cluster.etcd(n, peers),
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

    fn etcd(&self, n: usize, peers: &[u16]) -> Command {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let all: Vec<String> = peers
            .iter()
            .enumerate()
            .map(|(n, port)| format!("m{n}={}", url(*port)))
            .collect();
        let mut command = Command::new("etcd");
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

    /// Connections to the members in turn, when all of them serve.
    async fn connect(&self) -> Result<Vec<Channel>> {
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
                    key: key(0),
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

fn key(n: usize) -> Bytes {
    Bytes::from(format!("bench/{:08}", n % KEYS))
}

/// Runs one load; an error of any request fails the benchmark.
async fn measure(channels: &[Channel], load: Load, clients: usize, length: Duration) -> Result<Figure> {
    tokio::time::sleep(SETTLE).await;
    let load_average = load_average();
    let started = Instant::now();
    let end = started + length;
    let workers = (0..clients).map(|worker| {
        let mut kv = KvClient::new(channels[worker % channels.len()].clone());
        async move {
            let mut micros = Vec::new();
            let mut n = worker * 7919;
            while Instant::now() < end {
                let sent = Instant::now();
                match load {
                    Load::Put => {
                        let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
                        kv.put(PutRequest {
                            key: key(n),
                            value,
                            ..Default::default()
                        })
                        .await?;
                    }
                    Load::Get => {
                        kv.range(RangeRequest {
                            key: key(n),
                            ..Default::default()
                        })
                        .await?;
                    }
                }
                micros.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
                n += 1;
            }
            Ok::<_, tonic::Status>(micros)
        }
    });
    let mut micros: Vec<u32> = futures::future::try_join_all(workers)
        .await?
        .into_iter()
        .flatten()
        .collect();
    let elapsed = started.elapsed().as_secs_f64();
    ensure!(!micros.is_empty(), "no request was answered");
    micros.sort_unstable();
    let at = |percent: usize| micros[(micros.len() - 1) * percent / 100];
    Ok(Figure {
        per_second: micros.len() as f64 / elapsed,
        p50_us: at(50),
        p99_us: at(99),
        load_average,
    })
}

fn median(figures: &[Figure], of: impl Fn(&Figure) -> f64) -> f64 {
    let mut values: Vec<f64> = figures.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print_table(figures: &BTreeMap<(Cell, Product), Vec<Figure>>, args: &BenchArgs) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "median of {} interleaved rounds of {} s; {cores} cores shared by client and servers",
        args.rounds, args.seconds
    );
    println!(
        "| members | load | etcd req/s | p50 / p99 ms | chainfire req/s | p50 / p99 ms | ratio | load average |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut busiest: f64 = 0.0;
    for ((cell, product), theirs) in figures {
        if *product != Product::Etcd {
            continue;
        }
        let Some(ours) = figures.get(&(*cell, Product::Chainfire)) else {
            continue;
        };
        let side = |figures: &[Figure]| {
            let ms = |of: fn(&Figure) -> u32| median(figures, |figure| f64::from(of(figure))) / 1000.0;
            let rate = median(figures, |figure| figure.per_second);
            (
                rate,
                format!(
                    "{rate:.0} | {:.2} / {:.2}",
                    ms(|figure| figure.p50_us),
                    ms(|figure| figure.p99_us)
                ),
            )
        };
        let ((their_rate, their_text), (our_rate, our_text)) = (side(theirs), side(ours));
        let loads = || theirs.iter().chain(ours).map(|figure| figure.load_average);
        let (least, most) = (loads().fold(f64::INFINITY, f64::min), loads().fold(0.0, f64::max));
        busiest = busiest.max(least);
        println!(
            "| {} | {:?}, {} client(s) | {their_text} | {our_text} | {:.2} | {least:.1} to {most:.1} |",
            cell.members,
            cell.load,
            cell.clients,
            our_rate / their_rate
        );
    }
    // The load itself raises the average, so only what is far above it counts as foreign.
    if busiest > 2.0 * cores as f64 {
        println!(
            "The machine was busy with other work (load average at least {busiest:.1}): the ratios mean little."
        );
    }
}
