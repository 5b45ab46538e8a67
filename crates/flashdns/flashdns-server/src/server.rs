//! A FlashDNS process: binds its ports, starts its tasks.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;
use chainfire_client::Client;
use flashdns_core::{DnsName, Snapshot, journal::Journal, rrl::Limits};
use hearth_service::{
    health::{self, Health},
    server::{BindError, Listener, ServeOptions, serve},
    tasks::{Kind, TaskError, Tasks, chain},
    tls::{ClientAuth, Identity, TlsError},
};
use iam_client::{Authorizer, AuthorizerConfig};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
};

use crate::{
    api::{self, App},
    config::{Config, SettingsError, Zones},
    cookies::{self, Secrets},
    feed,
    keeper::{Event, Keeper, QUEUE},
    keys::Keyring,
    metrics::Metrics,
    notify, persist,
    seal::{SealError, Sealer},
    state::{Source, State},
    tcp, udp, updates,
    xfr::{MAX_TRANSFERS, Network},
    zones::ZoneError,
};

/// UDP threads per address when the configuration leaves it to us.
const MAX_DEFAULT_THREADS: usize = 2;
/// Attempts to find a port that is free over TCP and UDP, when port 0 was asked for.
const PORT_ATTEMPTS: usize = 16;

/// What every path that answers needs.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) published: Arc<ArcSwap<Snapshot>>,
    pub(crate) metrics: Metrics,
    /// TSIG keys.
    pub(crate) keys: Arc<ArcSwap<Keyring>>,
    /// Secrets of cookies.
    pub(crate) cookies: cookies::Shared,
    /// How replies over UDP are limited.
    pub(crate) response_rate: Option<Limits>,
    /// Who is not limited.
    pub(crate) exempt_networks: Vec<Network>,
    /// What changed lately.
    pub(crate) journal: Arc<Mutex<Journal>>,
    /// Who may transfer zones without a key.
    pub(crate) transfer_networks: Vec<Network>,
    /// Updates on their way to whoever makes them.
    pub(crate) updates: mpsc::Sender<updates::Job>,
    /// Places for transfers that run.
    pub(crate) transfers: Semaphore,
}

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be used.
    #[error("the configuration cannot be used")]
    Settings(#[from] SettingsError),
    /// The zones cannot be made from the configuration.
    #[error("the zones cannot be made")]
    Zones(#[from] ZoneError),
    /// Certificate or key cannot be used.
    #[error("the TLS identity cannot be used")]
    Tls(#[from] TlsError),
    /// The file that seals TSIG secrets.
    #[error("TSIG keys cannot be kept")]
    Seal(#[from] SealError),
    /// A Chainfire endpoint is not an address.
    #[error("the Chainfire endpoints cannot be used")]
    Chainfire(#[source] chainfire_client::Error),
    /// A DNS port is taken.
    #[error("cannot listen for DNS on {address}; `hearth doctor` says who holds the port")]
    Dns {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The API's port is taken.
    #[error(transparent)]
    Api(#[from] BindError),
    /// The system has no randomness.
    #[error("cannot make secrets")]
    Randomness(#[source] io::Error),
    /// The data folder cannot be made.
    #[error("cannot make the data folder")]
    Folder(#[source] io::Error),
}

/// A server whose ports are bound.
#[derive(Debug)]
pub struct Server {
    identity: Identity,
    client: Client,
    api: Listener,
    udp: Vec<std::net::UdpSocket>,
    tcp: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    state: State,
    zones: Arc<Zones>,
    policy: AuthorizerConfig,
    folder: std::path::PathBuf,
    shared: Arc<Shared>,
    health: Health,
    sealer: Option<Arc<Sealer>>,
    jobs: mpsc::Receiver<updates::Job>,
    notify: Vec<SocketAddr>,
}

impl Server {
    /// Checks the configuration, reads the last state and binds every port. Nothing is answered yet.
    ///
    /// # Errors
    /// [`StartError`] names what cannot be used.
    pub async fn bind(config: &Config) -> Result<Self, StartError> {
        let zones = Arc::new(config.flashdns.zones()?);
        let identity = Identity::load(&config.tls)?;
        let client = Client::connect(&config.chainfire_client, Some(identity.clone()))
            .map_err(StartError::Chainfire)?;
        let metrics = Metrics::default();
        let health = Health::new(&config.service.name);
        health.register(|registry| metrics.register(registry));
        let folder = config.service.data_dir.clone();
        std::fs::create_dir_all(&folder).map_err(StartError::Folder)?;
        let sealer = match &config.flashdns.seal_key_file {
            Some(path) => Some(Arc::new(Sealer::load(path)?)),
            None => None,
        };
        let rate = &config.flashdns.response_rate;
        let networks = config.flashdns.transfers.networks();
        let transfer_networks = networks.map_err(SettingsError::from)?;
        let mut state = State::new(zones.clone(), metrics.clone(), sealer.clone())?;
        let policy = AuthorizerConfig::new(&config.flashdns.aegis_url, &config.flashdns.domain);
        match persist::load(&folder) {
            Ok(Some(saved)) => {
                tracing::info!(entries = saved.entries.len(), "answering from the last state");
                state.restore(saved);
            }
            Ok(None) => {}
            Err(error) => {
                let folder = folder.display();
                tracing::error!(%folder, error = %chain(&error), "starting without the last state");
            }
        }
        let (mut udp, mut tcp, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
        let threads = match config.flashdns.udp_threads {
            0 => std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(MAX_DEFAULT_THREADS),
            given => given,
        };
        for &address in &config.flashdns.listen_dns {
            let (listener, sockets) = bind_both(address, threads)
                .await
                .map_err(|source| StartError::Dns { address, source })?;
            addresses.push(
                listener
                    .local_addr()
                    .map_err(|source| StartError::Dns { address, source })?,
            );
            tcp.push(listener);
            udp.extend(sockets);
        }
        let api = Listener::bind(config.flashdns.listen_api).await?;
        let published = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let (updates, jobs) = mpsc::channel(updates::QUEUE);
        let shared = Arc::new(Shared {
            updates,
            published,
            metrics,
            keys: Arc::default(),
            cookies: Arc::new(ArcSwap::from_pointee(
                Secrets::own().map_err(StartError::Randomness)?,
            )),
            response_rate: (rate.per_second > 0).then_some(Limits {
                per_second: rate.per_second,
                slip: rate.slip,
            }),
            exempt_networks: rate.exempt().map_err(SettingsError::from)?,
            journal: state.journal(),
            transfer_networks,
            transfers: Semaphore::new(MAX_TRANSFERS),
        });
        Ok(Self {
            identity,
            client,
            api,
            udp,
            tcp,
            addresses,
            state,
            zones,
            policy,
            folder,
            shared,
            health,
            sealer,
            jobs,
            notify: config.flashdns.transfers.notify.clone(),
        })
    }

    /// Addresses that answer DNS, in the order of the configuration.
    #[must_use]
    pub fn dns_addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Address of the API.
    #[must_use]
    pub fn api_address(&self) -> SocketAddr {
        self.api.local_addr()
    }

    /// Starts every task in `tasks` and returns; they end with the group. The API decides with `authorizer`, or
    /// else with one that watches Aegis's policy; names are answered without either.
    pub fn start(self, tasks: &Tasks, authorizer: Option<Authorizer>) {
        let (events, queue) = mpsc::channel::<Event>(QUEUE);
        let (mark, due) = watch::channel(0);
        let (settle, unsettled) = watch::channel(0);
        let (serial, told) = watch::channel(0);
        let keeper = Keeper {
            state: self.state,
            published: self.shared.published.clone(),
            metrics: self.shared.metrics.clone(),
            health: self.health.clone(),
            folder: self.folder,
            mark,
            settle,
            serial,
            keys: self.shared.keys.clone(),
            cookies: self.shared.cookies.clone(),
            live: [false; 2],
            waiters: Vec::new(),
        };
        tasks.spawn("keeper", Kind::Critical, keeper.run(queue, tasks.clone()));
        for source in Source::ALL {
            let feed = feed::run(source, self.client.clone(), events.clone(), tasks.clone());
            tasks.spawn("feed", Kind::Critical, feed);
        }
        tasks.spawn(
            "mark",
            Kind::Critical,
            feed::keep_mark(self.client.clone(), due, tasks.clone()),
        );
        tasks.spawn(
            "settle",
            Kind::Critical,
            feed::settle(self.client.clone(), unsettled, tasks.clone()),
        );
        if let Some(sealer) = self.sealer.clone() {
            let keep = cookies::keep(self.client.clone(), sealer, tasks.clone());
            tasks.spawn("cookies", Kind::Critical, keep);
        }
        let zones = std::iter::once(&self.zones.domain).chain(&self.zones.reverse);
        let zones: Vec<DnsName> = zones.cloned().collect();
        for target in self.notify {
            let run = notify::run(
                target,
                zones.clone(),
                told.clone(),
                self.shared.clone(),
                tasks.clone(),
            );
            tasks.spawn("notify", Kind::Critical, run);
        }
        for socket in self.udp {
            tasks.spawn(
                "dns-udp",
                Kind::Critical,
                udp::run(socket, self.shared.clone(), tasks.clone()),
            );
        }
        for listener in self.tcp {
            tasks.spawn(
                "dns-tcp",
                Kind::Critical,
                tcp::run(listener, self.shared.clone(), tasks.clone()),
            );
        }
        let api = Api {
            zones: self.zones,
            client: self.client,
            keeper: events,
            published: self.shared.published.clone(),
            keys: self.shared.keys.clone(),
            sealer: self.sealer,
            shared: self.shared,
            jobs: self.jobs,
            authorizer,
            policy: self.policy,
            listener: self.api,
            identity: self.identity,
            health: self.health,
        };
        tasks.spawn("api", Kind::Critical, api.run(tasks.clone()));
    }
}

/// The REST interface before it runs.
struct Api {
    zones: Arc<Zones>,
    client: Client,
    keeper: mpsc::Sender<Event>,
    published: Arc<ArcSwap<Snapshot>>,
    keys: Arc<ArcSwap<Keyring>>,
    sealer: Option<Arc<Sealer>>,
    shared: Arc<Shared>,
    jobs: mpsc::Receiver<updates::Job>,
    authorizer: Option<Authorizer>,
    policy: AuthorizerConfig,
    listener: Listener,
    identity: Identity,
    health: Health,
}

impl Api {
    async fn run(self, tasks: Tasks) -> Result<(), TaskError> {
        let authorizer = match self.authorizer {
            Some(given) => given,
            None => Authorizer::start(self.client.clone(), self.policy, &tasks).await?,
        };
        let app = App {
            zones: self.zones,
            store: self.client,
            keeper: self.keeper,
            published: self.published,
            authorizer,
            readers: App::readers(),
            keys: self.keys,
            sealer: self.sealer,
        };
        let run = updates::run(app.clone(), self.shared, self.jobs, tasks.clone());
        tasks.spawn("updates", Kind::Critical, run);
        let router = api::router(app, health::router(self.health));
        let options = ServeOptions::tls(self.identity, ClientAuth::Optional);
        Ok(serve(self.listener, router, options, tasks).await?)
    }
}

/// Binds one address over TCP, and over UDP with as many sockets as threads. With port 0 both get the same.
async fn bind_both(
    address: SocketAddr,
    threads: usize,
) -> io::Result<(TcpListener, Vec<std::net::UdpSocket>)> {
    let mut attempt = 0;
    loop {
        let listener = tcp::bind(address).await?;
        let bound = listener.local_addr()?;
        let sockets: io::Result<Vec<_>> = (0..threads).map(|_| udp::bind(bound)).collect();
        match sockets {
            Ok(sockets) => return Ok((listener, sockets)),
            Err(_) if address.port() == 0 && attempt < PORT_ATTEMPTS => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Runs a FlashDNS process until its tasks are asked to stop.
///
/// # Errors
/// [`StartError`] when it cannot start; later failures end the task group.
pub async fn run(config: Config, tasks: Tasks) -> Result<(), StartError> {
    let server = Server::bind(&config).await?;
    tracing::info!(dns = ?server.dns_addresses(), api = %server.api_address(), "listening");
    server.start(&tasks, None);
    tasks.stopping().await;
    Ok(())
}
