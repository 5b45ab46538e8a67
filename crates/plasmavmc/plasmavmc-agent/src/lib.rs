//! The node agent: makes the VMs that the control plane assigns to this node, and says what is.
//!
//! It does not know where VMs should run, who may ask for them, or where state is kept; it never talks
//! to the store but for its own node's lease. It does not know how a hypervisor works
//! (`plasmavmc-hypervisor` does).
//!
//! Entry points: [`Config`], [`run`].
//!
//! ```text
//!   hub stream ──assign──> Node (journal) ──watch──> one task per VM ──> Hypervisor, Network, ImageCache
//!        ^                                               │
//!        └───────────── Observations <──observed─────────┘
//! ```
//!
//! Invariants:
//! * An assignment is in the journal, synced, before it is acted on or acknowledged; an epoch lower than
//!   one ever journaled is refused.
//! * One task owns one VM; assignments are levels, not commands: a newer one replaces an older one.
//! * The end of the agent, in whatever way, touches no guest. The next start adopts what runs and starts
//!   what should run, with or without a control plane.
//! * Nothing is destroyed but by an assignment with `delete`.

mod acts;
#[cfg(test)]
mod acts_tests;
mod capacity;
mod config;
mod console;
mod control;
mod gate;
mod hub;
mod images;
mod journal;
mod metrics;
mod net;
mod node;
mod observations;
mod seed;
mod session;
mod vm;
#[cfg(test)]
mod vm_tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hearth_service::health::{self, Health};
use hearth_service::server::{BindError, Listener, ServeOptions, serve};
use hearth_service::tasks::{Kind, Tasks};
use hearth_service::tls::{Identity, TlsError};
use plasmavmc_hypervisor::{Host, HypervisorError, HypervisorRegistry};

pub use config::{AgentConfig, Config, MEMORY_RESERVE_MIB, NetworkPreference};

use hub::CurrentHub;
use images::ImageCache;
use journal::Journal;
use net::Network;
use node::{Node, Parts};

/// Connections to the metrics port at once.
const MAX_METRICS_CONNECTIONS: usize = 16;

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The node's certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate is not this node's.
    #[error("the certificate is `{found}`; this is node `{node}` and needs `node/{node}`")]
    WrongIdentity {
        /// Identity of the certificate.
        found: String,
        /// Name in the configuration.
        node: String,
    },
    /// The data folder.
    #[error("cannot use the data folder `{path}`")]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another agent uses the data folder.
    #[error("another agent uses the data folder `{0}`; stop it first")]
    Locked(PathBuf),
    /// The journal, the images or the network.
    #[error("cannot {0}")]
    Start(&'static str, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The hypervisor.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The metrics port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Chainfire's addresses.
    #[error(transparent)]
    Chainfire(#[from] chainfire_client::Error),
    /// The list of hubs is empty.
    #[error("`hubs` is empty: the agent needs the address of a control plane")]
    NoHubs,
}

fn start_error<E: std::error::Error + Send + Sync + 'static>(
    what: &'static str,
) -> impl FnOnce(E) -> AgentError {
    move |error| AgentError::Start(what, Box::new(error))
}

/// Starts the agent's tasks in `tasks` and returns when `tasks` is asked to stop. Guests run on.
///
/// # Errors
/// [`AgentError`] when it cannot start; later failures end the group through `tasks`.
pub async fn run(config: Config, tasks: Tasks) -> Result<(), AgentError> {
    if config.agent.hubs.is_empty() {
        return Err(AgentError::NoHubs);
    }
    let identity = Identity::load(&config.tls)?;
    let (found, node_name) = (identity.own().path, config.agent.node.to_string());
    if found != format!("node/{node_name}") {
        return Err(AgentError::WrongIdentity {
            found,
            node: node_name,
        });
    }
    let data_dir = config.service.data_dir.clone();
    let in_data_dir = |source| AgentError::DataDir {
        path: data_dir.clone(),
        source,
    };
    fs::create_dir_all(&data_dir).map_err(in_data_dir)?;
    let data_dir = data_dir.canonicalize().map_err(in_data_dir)?;
    let _lock = lock(&data_dir)?;
    let control = control::bind(&data_dir).map_err(in_data_dir)?;

    let (current, incarnation) = (CurrentHub::default(), uuid::Uuid::now_v7().to_string());
    let (node, health) = open_node(&config, &data_dir, &current, &tasks).await?;
    if let Some(address) = config.agent.metrics_listen {
        let listener = Listener::bind(address).await?;
        let options = ServeOptions {
            tls: None,
            plaintext_loopback: true,
            common_names: false,
            max_connections: MAX_METRICS_CONNECTIONS,
        };
        let (router, group) = (health::router(health.clone()), tasks.clone());
        tasks.spawn("metrics", Kind::Background, async move {
            Ok(serve(listener, router, options, group).await?)
        });
    }
    let chainfire = chainfire_client::Client::connect(&config.chainfire_client, Some(identity.clone()))?;
    let session = session::hold(chainfire, node_name, incarnation.clone(), tasks.clone());
    tasks.spawn("node lease", Kind::Critical, async move {
        session.await;
        Ok(())
    });
    let serving = control::serve(control, node.clone());
    tasks.spawn(
        "control socket",
        Kind::Critical,
        async move { Ok(serving.await?) },
    );
    let stream = hub::keep_connected(node, Some(identity), current, incarnation);
    tasks.spawn("hub stream", Kind::Critical, async move {
        stream.await;
        Ok(())
    });
    health.ready();
    tasks.stopping().await;
    Ok(())
}

/// One agent per data folder: two would each think that the guests are theirs.
fn lock(data_dir: &Path) -> Result<nix::fcntl::Flock<fs::File>, AgentError> {
    let path = data_dir.join("agent.lock");
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.map_err(|source| AgentError::DataDir {
        path: data_dir.to_owned(),
        source,
    })?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|_| AgentError::Locked(data_dir.to_owned()))
}

async fn open_node(
    config: &Config,
    data_dir: &Path,
    current: &CurrentHub,
    tasks: &Tasks,
) -> Result<(Arc<Node>, Health), AgentError> {
    let agent = config.agent.clone();
    let verdicts = agent.verdict_dir.clone().unwrap_or_else(|| data_dir.to_owned());
    let host = Host {
        data_dir: data_dir.to_owned(),
        accelerator: agent.accelerator,
        probe_image: agent.probe_image.clone(),
        verdict_dir: verdicts,
    };
    let registry = HypervisorRegistry::open(&host, &agent.hypervisors).await?;
    for hypervisor in registry.iter() {
        let accelerator = hypervisor.accelerator();
        tracing::info!(
            hypervisor = hypervisor.name(),
            accelerator = accelerator.kind.as_str(),
            reason = accelerator.reason,
            "hypervisor of guests"
        );
    }
    let images = ImageCache::open(
        &data_dir.join("images"),
        agent.image_cache_mib,
        Arc::new(current.clone()),
    )
    .map_err(start_error("open the image cache"))?;
    let network = Network::open(&agent, data_dir, tasks)
        .await
        .map_err(start_error("set up the guests' network"))?;
    tracing::info!(mode = network.mode(), "network of guests");
    let (journal, entries) =
        Journal::open(&data_dir.join("journal")).map_err(start_error("open the journal"))?;
    let parts = Parts {
        config: agent,
        data_dir: data_dir.to_owned(),
        registry,
        images,
        network,
        journal,
        tasks: tasks.clone(),
    };
    let node = Node::start(parts, entries);
    let health = Health::new(&config.service.name);
    metrics::register(&health, &node);
    Ok((node, health))
}
