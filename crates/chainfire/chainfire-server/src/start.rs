//! Bringing a member up: ports first, then the state, then Raft, then the services.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use chainfire_client::wire::etcdserverpb::{
    cluster_server::ClusterServer, kv_server::KvServer, lease_server::LeaseServer,
    maintenance_server::MaintenanceServer, watch_server::WatchServer,
};
use hearth_service::{
    client::AddressError,
    health::{self, Health},
    server::{BindError, Listener, ServeOptions, serve},
    tasks::{Kind, Tasks},
    tls::{ClientAuth, Identity, TlsError},
};
use raft_host::{DefaultFileSystem, GroupConfig, HostConfig, HostHandle, OpenError, Peer, Transport};
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use crate::{
    Config, ConfigProblem,
    cluster::ClusterService,
    history,
    kv::KvService,
    lease::LeaseService,
    lessor::Lessor,
    machine::{Machine, Shared},
    maintenance::MaintenanceService,
    metrics,
    node::{GROUP, Inner, MAX_MESSAGE_BYTES, Node},
    peers::{MAX_FRAME_BYTES, MEMBER_IDENTITY, Outbox, PeerClients, PeerService, deliver_in},
    storage::StorageError,
    watch::WatchService,
    wire::peer_server::PeerServer,
};

/// Connections of clients at once.
const MAX_CLIENTS: usize = 4096;
/// Connections of members at once.
const MAX_PEERS: usize = 64;
/// Folder of the Raft log within the data folder.
const LOG_DIR: &str = "raft";
/// Folder of the state within the data folder.
const STATE_DIR: &str = "state";

/// Why a member cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] ConfigProblem),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate is of somebody else.
    #[error("the certificate says `{found}`; a Chainfire member needs `{MEMBER_IDENTITY}`: give it its own")]
    Identity {
        /// What it says.
        found: String,
    },
    /// A port is taken.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A member's address is unusable.
    #[error("the address of a member cannot be used")]
    Address(#[from] AddressError),
    /// The data folder cannot be made.
    #[error("cannot make the folder `{path}`; see to its permissions and the disk")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The stored state cannot be opened.
    #[error("the member's state cannot be opened: {0}")]
    State(String),
    /// The Raft log cannot be opened.
    #[error(transparent)]
    Log(#[from] OpenError),
}

impl From<StorageError> for ServerError {
    fn from(error: StorageError) -> ServerError {
        ServerError::State(error.to_string())
    }
}

/// Starts a member in the task group and returns when it serves; it goes on until the group stops.
///
/// # Errors
/// [`ServerError`] when it cannot start. What goes wrong later is the failure of a critical task of the group.
pub async fn run(config: Config, tasks: Tasks) -> Result<(), ServerError> {
    config.chainfire.check()?;
    let identity = Identity::load(&config.tls)?;
    let found = identity.own().path;
    if found != MEMBER_IDENTITY {
        return Err(ServerError::Identity { found });
    }
    // Ports first: a second process of the same member ends here, before it touches a file.
    let client_port = Listener::bind(config.chainfire.listen_client).await?;
    let peer_port = Listener::bind(config.chainfire.listen_peer).await?;

    let own = config.chainfire.node_id(&config.chainfire.member);
    let peers = PeerClients::new(&config.chainfire, own, &identity)?;
    let (outbox, queues) = Outbox::new(&peers);
    let (raft, shared) = open(&config, own, outbox).await?;
    deliver_in(&tasks, &peers, queues, &raft);

    let leader = raft
        .leader(GROUP)
        .ok_or_else(|| ServerError::State("the group does not run".to_owned()))?;
    let node = Node::new(Inner {
        id: own,
        config: config.chainfire.clone(),
        data_dir: config.service.data_dir.clone(),
        shared,
        raft: raft.clone(),
        leader,
        peers,
        tasks: tasks.clone(),
        no_space: false.into(),
    });
    let lessor = Lessor::new(node.clone());
    let health = Health::new(&config.service.name);
    let (reporter, grpc_health) = tonic_health::server::health_reporter();
    supervise(&tasks, &node, &lessor, &health, &reporter);

    let options = ServeOptions {
        tls: Some((identity.clone(), ClientAuth::Required)),
        plaintext_loopback: config.chainfire.plaintext_loopback,
        max_connections: MAX_CLIENTS,
    };
    let router = client_routes(&node, &lessor)
        .add_service(grpc_health)
        .into_axum_router()
        .merge(health::router(health));
    let client_tasks = tasks.clone();
    tasks.spawn("client port", Kind::Critical, async move {
        Ok(serve(client_port, router, options, client_tasks).await?)
    });
    let members: BTreeSet<_> = config
        .chainfire
        .members
        .iter()
        .map(|member| config.chainfire.node_id(&member.name))
        .collect();
    let service = PeerService::new(members, raft, lessor);
    let service = PeerServer::new(service).max_decoding_message_size(MAX_FRAME_BYTES);
    let router = Routes::new(service).into_axum_router();
    let options = ServeOptions {
        max_connections: MAX_PEERS,
        ..ServeOptions::tls(identity, ClientAuth::Required)
    };
    let peer_tasks = tasks.clone();
    tasks.spawn("peer port", Kind::Critical, async move {
        Ok(serve(peer_port, router, options, peer_tasks).await?)
    });
    tracing::info!(member = config.chainfire.member, id = own, "chainfire serves");
    Ok(())
}

/// Opens state and log; both may replay for a while, so not on the runtime's threads.
async fn open<T: Transport + 'static>(
    config: &Config,
    own: u64,
    transport: T,
) -> Result<(HostHandle, Arc<Shared>), ServerError> {
    let data_dir = config.service.data_dir.clone();
    let keep_entries = config.chainfire.keep_log_entries;
    let initial = config
        .chainfire
        .members
        .iter()
        .map(|member| Peer {
            id: config.chainfire.node_id(&member.name),
            address: member.peer.clone(),
        })
        .collect();
    let opened = tokio::task::spawn_blocking(move || {
        let (log_dir, state_dir) = (data_dir.join(LOG_DIR), data_dir.join(STATE_DIR));
        for path in [&data_dir, &state_dir] {
            std::fs::create_dir_all(path).map_err(|source| ServerError::Folder {
                path: path.clone(),
                source,
            })?;
        }
        let (machine, shared) = Machine::on_disk(&state_dir)?;
        let host = HostConfig {
            node: own,
            log_dir,
            incarnation: rand::random(),
            seed: rand::random(),
            keep_entries,
            compact_entries: keep_entries.saturating_mul(2),
            ..HostConfig::default()
        };
        let group = GroupConfig {
            id: GROUP,
            initial,
            machine: Box::new(machine),
        };
        let raft = raft_host::start(host, Arc::new(DefaultFileSystem), transport, vec![group])?;
        Ok((raft, shared))
    });
    opened
        .await
        .unwrap_or_else(|error| Err(ServerError::State(format!("opening it failed: {error}"))))
}

fn client_routes(node: &Node, lessor: &Lessor) -> Routes {
    let kv = KvServer::new(KvService::new(node.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let lease = LeaseService::new(node.clone(), lessor.clone());
    Routes::new(kv)
        .add_service(WatchServer::new(WatchService::new(node.clone())))
        .add_service(LeaseServer::new(lease))
        .add_service(ClusterServer::new(ClusterService::new(node.clone())))
        .add_service(MaintenanceServer::new(MaintenanceService::new(node.clone())))
}

/// The tasks that are not connections.
fn supervise(tasks: &Tasks, node: &Node, lessor: &Lessor, health: &Health, reporter: &HealthReporter) {
    let (raft, stop) = (node.raft.clone(), tasks.clone());
    tasks.spawn("raft host", Kind::Critical, async move {
        let mut failed = raft.failed();
        tokio::select! {
            () = stop.stopping() => {}
            // An error here means that the host's thread ended, with or without telling why.
            ended = failed.wait_for(Option::is_some) => {
                let why = ended.map(|fatal| fatal.clone());
                return Err(match why {
                    Ok(Some(fatal)) => fatal.into(),
                    _ => "the raft host ended without a reason".into(),
                });
            }
        }
        raft.shutdown();
        // The log and the state are closed when the thread is gone.
        while failed.changed().await.is_ok() {}
        Ok(())
    });
    let lessor = lessor.clone();
    tasks.spawn("lessor", Kind::Critical, async move {
        lessor.run().await;
        Ok(())
    });
    let watcher = node.clone();
    tasks.spawn("disk space", Kind::Critical, async move {
        watcher.watch_space().await;
        Ok(())
    });
    let (compactor, stop) = (node.clone(), tasks.clone());
    tasks.spawn("history", Kind::Critical, async move {
        tokio::select! {
            () = stop.stopping() => {}
            () = history::run(&compactor) => {}
        }
        Ok(())
    });
    let (node, health, reporter) = (node.clone(), health.clone(), reporter.clone());
    tasks.spawn("metrics", Kind::Critical, async move {
        metrics::run(&node, &health, &reporter).await;
        Ok(())
    });
}
