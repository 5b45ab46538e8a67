//! `cargo xtask bench chainfire`: the same load against etcd and against Chainfire, in turn, on this machine.
//!
//! Both are given the same disk (never a tmpfs: the point is fsync), plain text to the client, and their own defaults;
//! Chainfire's members speak mutual TLS among themselves, etcd's plain text. Client and servers share the machine, so
//! the figures are good for the ratio only; the processor time that the servers used for one operation stands beside
//! the rate, because it is what the shared cores hide. Rounds are interleaved (A B A B ...), and the load average
//! stands beside every figure: on a busy machine the run says so, and its ratios mean little.
//!
//! Run it with `cargo xtask-fast bench chainfire`: a client built without optimisation takes the cores from the
//! servers.

mod cluster;
mod loads;
mod scheduler;
mod table;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use cluster::{Cluster, Programs};

/// Concurrent clients of the loads.
const CLIENTS: [usize; 3] = [1, 100, 1000];
/// Members of the clusters.
const SIZES: [usize; 2] = [1, 3];

/// What to measure.
#[derive(clap::Args, Debug)]
pub(crate) struct BenchArgs {
    /// What to measure: `chainfire`, or `scheduler` (decisions of PlasmaVMC's; only --seconds counts there).
    what: String,
    /// Interleaved rounds; the median is shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds for each measurement.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Only these loads (put, get, serializable-get, txn, range-1000, watch); all when left out.
    #[arg(long, value_enum)]
    load: Vec<Load>,
    /// Only these numbers of clients.
    #[arg(long)]
    clients: Vec<usize>,
    /// Only these numbers of members.
    #[arg(long)]
    members: Vec<usize>,
    /// The release build of hearthd.
    #[arg(long, default_value = "target/release/hearthd")]
    hearthd: PathBuf,
    /// The etcd to compare with: Debian's, or one built from source.
    #[arg(long, default_value = "etcd")]
    etcd: PathBuf,
    /// Folder for the data of both, on a disk.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Product {
    Etcd,
    Chainfire,
}

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Load {
    /// Puts of 256 bytes.
    Put,
    /// Linearizable reads of one key.
    Get,
    /// Reads of one key that any member may answer from its own state.
    SerializableGet,
    /// Compare-and-put of one key, read back in the same transaction.
    Txn,
    /// Linearizable reads of 1000 keys.
    Range1000,
    /// Every client watches the same prefix, one writer writes: events delivered.
    Watch,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    members: usize,
    load: Load,
    clients: usize,
}

/// What one measurement showed.
#[derive(Clone, Copy, Debug)]
struct Figure {
    per_second: f64,
    p50_us: u32,
    p99_us: u32,
    /// Processor time of all servers for one operation, microseconds.
    cpu_us: f64,
    /// Resident memory of all servers at the end, MiB.
    memory_mib: f64,
    load_average: f64,
}

type Figures = BTreeMap<(Cell, Product), Vec<Figure>>;

/// Runs the benchmark and prints its table.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if args.what == "scheduler" {
        return scheduler::run(args.seconds);
    }
    let programs = check(args)?;
    let chosen = |wanted: &[usize], all: &[usize]| {
        if wanted.is_empty() {
            all.to_vec()
        } else {
            wanted.to_vec()
        }
    };
    let loads = if args.load.is_empty() {
        <Load as clap::ValueEnum>::value_variants().to_vec()
    } else {
        args.load.clone()
    };
    let clients = chosen(&args.clients, &CLIENTS);
    let length = Duration::from_secs(args.seconds);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut figures = Figures::new();
    for round in 1..=args.rounds {
        for members in chosen(&args.members, &SIZES) {
            for product in [Product::Etcd, Product::Chainfire] {
                eprintln!(
                    "round {round}: {product:?}, {members} member(s), load average {:.2}",
                    load_average()
                );
                let cluster = Cluster::start(product, members, &programs)?;
                let channels = runtime.block_on(cluster.connect())?;
                runtime.block_on(loads::fill(&channels))?;
                for load in &loads {
                    for clients in &clients {
                        let cell = Cell {
                            members,
                            load: *load,
                            clients: *clients,
                        };
                        let figure = runtime
                            .block_on(loads::measure(&cluster, &channels, cell, length))
                            .with_context(|| format!("{product:?}, {cell:?}"))?;
                        figures.entry((cell, product)).or_default().push(figure);
                    }
                }
            }
        }
    }
    table::print(&figures, args, &version(&programs));
    Ok(())
}

fn check(args: &BenchArgs) -> Result<Programs> {
    ensure!(
        args.what == "chainfire",
        "there are benchmarks of `chainfire` and `scheduler` only"
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
    let programs = Programs {
        etcd: args.etcd.clone(),
        hearthd,
        dir: args.dir.clone(),
    };
    if version(&programs).is_empty() {
        bail!("etcd cannot be run (apt install etcd-server, or --etcd FILE)");
    }
    Ok(programs)
}

/// What etcd says it is; empty when it cannot be run.
fn version(programs: &Programs) -> String {
    let out = Command::new(&programs.etcd)
        .arg("--version")
        .stderr(Stdio::null())
        .output();
    let text = out.map(|out| out.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or_default().to_owned()
}

/// One minute's load average.
fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace()
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or(f64::NAN)
}
