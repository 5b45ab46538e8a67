//! Bringing a member up: ports first, then the state, then Raft, then the services.

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::middleware;
use chainfire_client::wire::{
    etcdserverpb::{
        auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer,
        lease_server::LeaseServer, maintenance_server::MaintenanceServer, watch_server::WatchServer,
    },
    v3electionpb::election_server::ElectionServer,
    v3lockpb::lock_server::LockServer,
};
use hearth_service::{
    health::{self, Health},
    server::{BindError, Listener, ServeOptions, serve},
    tasks::{Kind, Tasks},
    tls::{ClientAuth, Identity, TlsError},
};
use raft_host::{DefaultFileSystem, FileSystem, GroupConfig, HostConfig, HostHandle, OpenError, Transport};
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use crate::{
    Config, ConfigProblem, agreement,
    auth::{AuthService, Hasher, TokenConfig, TokenConfigProblem, TokenProvider},
    backups,
    calls::{self, Calls},
    cluster::ClusterService,
    election::ElectionService,
    gateway, history, incarnation,
    kv::KvService,
    leaderless::{self, Leaderless},
    lease::LeaseService,
    lessor::{Lessor, Renewals},
    lock::LockService,
    machine::{Machine, Shared},
    maintenance::MaintenanceService,
    members::{
        begin::{self, Begun},
        change::Changer,
        handover,
        identity::MemberFile,
        learner, publish,
        table::LEVEL,
    },
    metrics,
    node::{GROUP, Inner, MAX_MESSAGE_BYTES, Node},
    outbox::{MAX_FRAME_BYTES, Outbox, Peers},
    oversize,
    peers::{MEMBER_IDENTITY, PeerService},
    probes, quota, reclaim,
    tables::StorageError,
    watch::{Hub, HubLimits, WatchService},
    wire::{Sender, peer_server::PeerServer},
};

/// Connections of clients at once.
const MAX_CLIENTS: usize = 4096;
/// Connections of members at once.
const MAX_PEERS: usize = 64;

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
    /// Nobody has added this member.
    #[error(
        "the cluster has no member with the peer address {peer}: add it first, on a machine that reaches a member, with \
         `etcdctl member add {member} --peer-urls=https://{peer}` or `hearth chainfire member add {member} \
         --peer-urls=https://{peer}`, then start this one again"
    )]
    NotAdded {
        /// Its name.
        member: String,
        /// Its address.
        peer: String,
    },
    /// The cluster could not be joined.
    #[error("the cluster could not be joined: {0}")]
    Unjoined(String),
    /// The member was removed.
    #[error(
        "this member was removed from the cluster, for ever: delete its data folder, add it again as a new member \
         (`etcdctl member add`), and start it with initial_cluster_state = \"existing\""
    )]
    Removed,
    /// The log is not the one that the cluster knows.
    #[error(
        "the disk of this member is not the one that the cluster knows: its Raft log was lost, and with it the votes that \
         it gave. It must not come back under its old id: remove the member (`etcdctl member remove`), delete its data \
         folder, add it again (`etcdctl member add`), and start it with initial_cluster_state = \"existing\""
    )]
    LostDisk,
    /// The data folder belongs to somebody else.
    #[error(
        "the data folder `{dir}` belongs to another cluster than `{cluster}`; correct data_dir or cluster"
    )]
    OtherCluster {
        /// The folder.
        dir: PathBuf,
        /// The cluster of the configuration.
        cluster: String,
    },
    /// The keys that tokens are signed with cannot be used.
    #[error(transparent)]
    Tokens(#[from] TokenConfigProblem),
    /// A folder or file of the data folder cannot be made or read.
    #[error("cannot make or read `{path}`; see to its permissions and the disk")]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file that says which life of the cluster this is cannot be used.
    #[error(
        "cannot read `{path}`, which `hearth chainfire restore` or `recover` wrote; without it this member would be \
         taken for one of the old cluster"
    )]
    Incarnation {
        /// The file.
        path: PathBuf,
        /// What is wrong.
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
    run_on(config, tasks, Arc::new(DefaultFileSystem)).await
}

/// The same, with the Raft log on a file system that is given: tests make it slow, or fail.
///
/// # Errors
/// As [`run`].
pub async fn run_on<F>(mut config: Config, tasks: Tasks, file_system: Arc<F>) -> Result<(), ServerError>
where
    F: FileSystem + 'static,
{
    config.chainfire.check()?;
    let identity = Identity::load(&config.tls)?;
    let found = identity.own().path;
    if found != MEMBER_IDENTITY {
        return Err(ServerError::Identity { found });
    }
    let tokens = TokenProvider::new(&TokenConfig::parse(&config.chainfire.auth_token)?)?;
    // Ports first: a second process of the same member ends here, before it touches a file.
    let client_port = Listener::bind(config.chainfire.listen_client).await?;
    let peer_port = Listener::bind(config.chainfire.listen_peer).await?;

    // All ids from here on are those of the cluster's present life.
    let life = incarnation::read(&config.service.data_dir).map_err(|source| ServerError::Incarnation {
        path: config.service.data_dir.join(incarnation::FILE),
        source,
    })?;
    config.chainfire = incarnation::applied_to(&config.chainfire, &life);
    let begun = begin::begin(&config, &identity).await?;
    let own = begun.file.id;
    let sender = Sender {
        cluster: config.chainfire.cluster_id(),
        member: own,
        disk: begun.disk,
        level: LEVEL,
        address: begin::own_address(&config.chainfire),
    };
    let peers = Peers::new(sender, identity.clone());
    let (raft, shared) = open(&config, &begun, Outbox(peers.clone()), file_system).await?;
    let no_group = || ServerError::State("the group does not run".to_owned());
    let leader = raft.leader(GROUP).ok_or_else(no_group)?;
    let membership = raft.membership(GROUP).ok_or_else(no_group)?;
    let joining = membership.borrow().members.is_empty();
    if joining {
        // Until the first snapshot has come, nothing here says who the members are.
        let members = begin::others(&config, &identity, &begun).await?;
        peers.set(&members, &raft, &shared, &tasks);
    }
    let node = Node::new(Inner {
        id: own,
        config: config.chainfire.clone(),
        data_dir: config.service.data_dir.clone(),
        shared,
        tokens,
        raft: raft.clone(),
        leader,
        leaderless: Leaderless::default(),
        membership,
        peers,
        tasks: tasks.clone(),
        no_space: false.into(),
    });
    let token_ttl = Duration::from_secs(config.chainfire.auth_token_ttl_s);
    node.shared.auth.tokens.set_ttl(token_ttl);
    let (lessor, renewals) = Lessor::new(node.clone());
    let changer = Changer::new(node.clone());
    let health = Health::new(&config.service.name);
    let (reporter, grpc_health) = tonic_health::server::health_reporter();
    let limits = HubLimits {
        watchers: config.chainfire.max_watchers,
        progress_ms: config.chainfire.watch_progress_notify_interval_ms,
    };
    let hub = Hub::new(node.shared.clone(), limits);
    supervise(&tasks, &node, &health, &reporter);
    keep_leases_in(&tasks, &lessor, renewals);
    match_in(&tasks, &hub);
    supervise_membership(&tasks, &node, begun.file);

    let client_auth = if config.chainfire.client_cert_required {
        ClientAuth::Required
    } else {
        ClientAuth::Optional
    };
    let options = ServeOptions {
        tls: Some((identity.clone(), client_auth)),
        plaintext_loopback: config.chainfire.plaintext_loopback,
        common_names: true,
        max_connections: MAX_CLIENTS,
    };
    let routes = client_routes(&node, &lessor, &hub, &changer).add_service(grpc_health);
    let routes = counted(without_learners(&node, routes), &health)?;
    let gateway = gateway::router(&routes, &tasks)
        .map_err(|error| ServerError::State(format!("the JSON gateway cannot be made: {error}")))?;
    let router = routes
        .into_axum_router()
        .merge(gateway)
        .merge(probes::router(&node))
        .merge(health::metrics_router(health));
    let client_tasks = tasks.clone();
    tasks.spawn("client port", Kind::Critical, async move {
        Ok(serve(client_port, router, options, client_tasks).await?)
    });
    let service = PeerService::new(node, lessor, changer);
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
    tracing::info!(
        member = config.chainfire.member,
        id = own,
        joining,
        "chainfire serves"
    );
    Ok(())
}

/// Opens state and log; both may replay for a while, so not on the runtime's threads.
async fn open<T: Transport + 'static, F: FileSystem + 'static>(
    config: &Config,
    begun: &Begun,
    transport: T,
    file_system: Arc<F>,
) -> Result<(HostHandle, Arc<Shared>), ServerError> {
    let data_dir = config.service.data_dir.clone();
    let keep_entries = config.chainfire.keep_log_entries;
    let ring_bytes = config.chainfire.watch_ring_bytes;
    let own = begun.file.id;
    let initial = begin::initial(&config.chainfire, begun);
    let opened = tokio::task::spawn_blocking(move || {
        let state_dir = data_dir.join(begin::STATE_DIR);
        begin::folder(&state_dir)?;
        let (machine, shared) = Machine::on_disk(&state_dir, ring_bytes)?;
        let host = HostConfig {
            node: own,
            log_dir: data_dir.join(begin::LOG_DIR),
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
        let raft = raft_host::start(host, file_system, transport, vec![group])?;
        Ok((raft, shared))
    });
    opened
        .await
        .unwrap_or_else(|error| Err(ServerError::State(format!("opening it failed: {error}"))))
}

/// The tasks that keep this member in step with the cluster's membership.
fn supervise_membership(tasks: &Tasks, node: &Node, file: MemberFile) {
    let (follower, stop) = (node.clone(), tasks.clone());
    tasks.spawn("peers", Kind::Critical, async move {
        let changes = follower.membership.clone();
        let (raft, shared) = (&follower.raft, &follower.shared);
        follower.peers.follow(changes, raft, shared, &stop).await;
        Ok(())
    });
    let teller = node.clone();
    tasks.spawn("publish", Kind::Critical, async move {
        publish::run(&teller).await;
        Ok(())
    });
    let leader = node.clone();
    tasks.spawn("slow disk", Kind::Critical, async move {
        handover::run(&leader).await;
        Ok(())
    });
    let follower = node.clone();
    tasks.spawn("leaderless", Kind::Critical, async move {
        leaderless::follow(&follower).await;
        Ok(())
    });
    let member = node.clone();
    tasks.spawn("membership", Kind::Critical, async move {
        Ok(begin::until_out(&member, file).await?)
    });
}

fn client_routes(node: &Node, lessor: &Lessor, hub: &Hub, changer: &Changer) -> Routes {
    let kv = KvServer::new(KvService::new(node.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let lease = LeaseService::new(node.clone(), lessor.clone());
    let hasher = Hasher::new(node.config.bcrypt_cost);
    let routes = Routes::new(kv)
        .add_service(AuthServer::new(AuthService::new(node.clone(), hasher)))
        .add_service(WatchServer::new(WatchService::new(node.clone(), hub.clone())))
        .add_service(LeaseServer::new(lease))
        .add_service(ClusterServer::new(ClusterService::new(
            node.clone(),
            changer.clone(),
        )))
        .add_service(MaintenanceServer::new(MaintenanceService::new(node.clone())));
    // These are made of calls to the others.
    let inner = without_learners(node, routes.clone());
    let (lock, election) = (
        LockService::new(&inner, &node.tasks),
        ElectionService::new(&inner, &node.tasks),
    );
    routes
        .add_service(LockServer::new(lock))
        .add_service(ElectionServer::new(election))
}

/// The services, but for what a learner may not be asked and what is too large.
fn without_learners(node: &Node, routes: Routes) -> Routes {
    let refuse = middleware::from_fn_with_state(node.clone(), learner::refuse);
    let translate = middleware::map_response(oversize::translate);
    Routes::from(routes.into_axum_router().layer(refuse).layer(translate))
}

/// The services with their calls counted, the refused ones too.
fn counted(routes: Routes, health: &Health) -> Result<Routes, ServerError> {
    let calls = Calls::new()
        .map_err(|error| ServerError::State(format!("the table of calls cannot be made: {error}")))?;
    health.register(|registry| registry.register_collector(Box::new(calls.clone())));
    let count = middleware::from_fn_with_state(calls, calls::count);
    Ok(Routes::from(routes.into_axum_router().layer(count)))
}

/// Runs the watch hub until the stop.
fn match_in(tasks: &Tasks, hub: &Hub) {
    let (hub, stop) = (hub.clone(), tasks.clone());
    tasks.spawn("watch hub", Kind::Critical, async move {
        tokio::select! {
            () = stop.stopping() => Ok(()),
            ended = hub.run() => Ok(ended?),
        }
    });
}

/// Runs the lease timers and the renewals until the stop.
fn keep_leases_in(tasks: &Tasks, lessor: &Lessor, renewals: Renewals) {
    let timers = lessor.clone();
    tasks.spawn("lessor", Kind::Critical, async move {
        timers.run().await;
        Ok(())
    });
    let lessor = lessor.clone();
    tasks.spawn("lease batches", Kind::Critical, async move {
        lessor.renew_in_batches(renewals).await;
        Ok(())
    });
}

/// The tasks that are not connections.
fn supervise(tasks: &Tasks, node: &Node, health: &Health, reporter: &HealthReporter) {
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
    let watcher = node.clone();
    tasks.spawn("disk space", Kind::Critical, async move {
        watcher.watch_space().await;
        Ok(())
    });
    let (comparer, stop) = (node.clone(), tasks.clone());
    tasks.spawn("state hash", Kind::Critical, async move {
        tokio::select! {
            () = stop.stopping() => Ok(()),
            diverged = agreement::run(&comparer) => Err(diverged.into()),
        }
    });
    let (counter, stop) = (node.clone(), tasks.clone());
    tasks.spawn("quota", Kind::Critical, async move {
        tokio::select! {
            () = stop.stopping() => {}
            () = quota::run(&counter) => {}
        }
        Ok(())
    });
    let (worker, stop) = (node.clone(), tasks.clone());
    tasks.spawn("reclaim", Kind::Critical, async move {
        tokio::select! {
            () = stop.stopping() => Ok(()),
            Err(error) = reclaim::run(&worker) => Err(error.into()),
        }
    });
    let (compactor, stop) = (node.clone(), tasks.clone());
    tasks.spawn("history", Kind::Critical, async move {
        tokio::select! {
            () = stop.stopping() => {}
            () = history::run(&compactor) => {}
        }
        Ok(())
    });
    let keeper = node.clone();
    tasks.spawn("backups", Kind::Critical, async move {
        backups::run(&keeper).await;
        Ok(())
    });
    let (node, health, reporter) = (node.clone(), health.clone(), reporter.clone());
    tasks.spawn("metrics", Kind::Critical, async move {
        metrics::run(&node, &health, &reporter).await;
        Ok(())
    });
}
