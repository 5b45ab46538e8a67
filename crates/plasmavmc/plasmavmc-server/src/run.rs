//! From a configuration to a running server.

use std::path::PathBuf;
use std::time::Duration;

use chainfire_client::Client;
use hearth_service::fail_points::FailPoints;
use hearth_service::health::Health;
use hearth_service::server::{BindError, Listener, ServeOptions};
use hearth_service::tasks::{Kind, Tasks};
use hearth_service::tls::{ClientAuth, Identity, TlsError};
use iam_client::{Authorizer, AuthorizerConfig, StartError};

use crate::app::App;
use crate::config::{Config, PlasmaConfig};
use crate::hub::Hub;
use crate::images::ImageFiles;
use crate::nodes::NodeBook;
use crate::store::Store;
use crate::trim::Trimmer;
use crate::{http, reconcile};

/// Why the server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The port is taken.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Chainfire's addresses cannot be used.
    #[error("cannot use the addresses of Chainfire in the configuration")]
    Chainfire(#[from] chainfire_client::Error),
    /// Rights cannot be checked.
    #[error("cannot set up the checking of rights")]
    Authorizer(#[from] StartError),
    /// The folder of images cannot be used.
    #[error("cannot use the folder of images in `{}`", path.display())]
    Images {
        /// The data folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The listener failed.
    #[error("the listener failed")]
    Serve(#[source] std::io::Error),
}

/// What a server is made of; tests make their own.
#[derive(Debug)]
pub struct Parts {
    /// Name of this process, which agents and the election see.
    pub name: String,
    /// Folder for images.
    pub data_dir: PathBuf,
    /// Our certificate.
    pub identity: Identity,
    /// The store.
    pub chainfire: Client,
    /// Rights.
    pub authorizer: Authorizer,
    /// PlasmaVMC's own settings.
    pub config: PlasmaConfig,
    /// Where tests cut it off.
    pub fail_points: FailPoints,
}

/// Runs the server until `tasks` stop.
///
/// # Errors
/// [`RunError`] when it cannot start.
pub async fn run(config: Config, tasks: Tasks) -> Result<(), RunError> {
    // The port first: a taken one is said before anything else begins.
    let listener = Listener::bind(config.plasmavmc.listen).await?;
    let identity = Identity::load(&config.tls)?;
    let chainfire = Client::connect(&config.chainfire_client, Some(identity.clone()))?;
    let rights = AuthorizerConfig::new(&config.plasmavmc.aegis_url, &config.plasmavmc.domain);
    let authorizer = Authorizer::start(chainfire.clone(), rights, &tasks).await?;
    let fail_points = FailPoints::below(&config.service.data_dir);
    let parts = Parts {
        name: config.service.name,
        data_dir: config.service.data_dir,
        identity,
        chainfire,
        authorizer,
        config: config.plasmavmc,
        fail_points,
    };
    serve(parts, listener, tasks).await
}

/// Serves on a listener that is bound already, until `tasks` stop.
///
/// # Errors
/// [`RunError`] when the folder of images cannot be used or the listener fails.
pub async fn serve(parts: Parts, listener: Listener, tasks: Tasks) -> Result<(), RunError> {
    let Parts {
        name,
        data_dir,
        identity,
        chainfire,
        authorizer,
        config,
        fail_points,
    } = parts;
    let images = ImageFiles::open(&data_dir, config.image_limits())
        .await
        .map_err(|source| RunError::Images {
            path: data_dir,
            source,
        })?;
    let store = Store::new(chainfire, fail_points);
    let hub = Hub::new(
        store.clone(),
        authorizer.clone(),
        images.clone(),
        config.clone(),
        name.clone(),
        tasks.clone(),
    );
    let health = Health::new(&name);
    health.register(|registry| hub.metrics().register(registry));
    let period = Duration::from_secs(config.sweep_s.max(1));
    let nodes = NodeBook::new(config.policy());
    let store_and_nodes = (store.clone(), nodes.clone());
    let trimmer = Trimmer::new(&config);
    let sweeper = reconcile::run(
        store_and_nodes,
        name,
        hub.metrics().clone(),
        period,
        trimmer,
        tasks.clone(),
    );
    tasks.spawn("reconciler", Kind::Background, async move {
        sweeper.await;
        Ok(())
    });
    let keeper = nodes.clone().keep(store.clone(), tasks.clone());
    tasks.spawn("picture of nodes", Kind::Background, async move {
        keeper.await;
        Ok(())
    });
    let app = App::new(
        store,
        authorizer,
        images,
        hub.clone(),
        nodes,
        config,
        tasks.clone(),
    );
    let others = hub.routes().merge(hearth_service::health::router(health.clone()));
    let router = http::router(app, others);
    health.ready();
    tracing::info!(address = %listener.local_addr(), "PlasmaVMC serves");
    let options = ServeOptions::tls(identity, ClientAuth::Optional);
    hearth_service::server::serve(listener, router, options, tasks)
        .await
        .map_err(RunError::Serve)
}
