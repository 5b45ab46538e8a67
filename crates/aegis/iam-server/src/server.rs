//! The process: ports first, then the store, then requests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_service::health::{self, Health};
use hearth_service::server::{BindError, Listener, ServeOptions, serve};
use hearth_service::tasks::{Kind, Tasks, chain};
use hearth_service::tls::{ClientAuth, Identity, TlsError};
use iam_authn::token::MAX_LIFETIME_S;
use iam_client::{Authorizer, AuthorizerConfig, StartError};

use crate::Config;
use crate::api;
use crate::app::{Aegis, Secrets, Settings, SetupError};
use crate::seal::{SealError, Sealer};
use crate::store::{ChainfireStore, Store, StoreError};

/// How often what has ended is taken away.
const SWEEP_PERIOD: Duration = Duration::from_secs(60);
/// Pause after a failed look at the store at start.
const RETRY: Duration = Duration::from_millis(500);
/// How long a starting process waits for the store.
const OPEN_DEADLINE: Duration = Duration::from_secs(120);

/// Why Aegis did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The seal key.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The authority's certificate.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An address of Chainfire.
    #[error("the addresses of Chainfire cannot be used")]
    Chainfire(#[from] chainfire_client::Error),
    /// The authorizer.
    #[error(transparent)]
    Authorizer(#[from] StartError),
    /// The first start, or reading what it left.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A value that makes no sense.
    #[error("`{key}` is {value}; it must be {expected}")]
    Config {
        /// The key.
        key: &'static str,
        /// As given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
}

fn read(path: &Path) -> Result<String, RunError> {
    std::fs::read_to_string(path).map_err(|source| RunError::Read {
        path: path.to_owned(),
        source,
    })
}

fn settings(config: &Config) -> Result<Settings, RunError> {
    let lifetime = config.aegis.access_token_lifetime_s;
    if !(10..=MAX_LIFETIME_S).contains(&lifetime) {
        return Err(RunError::Config {
            key: "aegis.access_token_lifetime_s",
            value: lifetime.to_string(),
            expected: "between 10 and 600",
        });
    }
    let public_url = config.aegis.public_url.trim_end_matches('/');
    if !public_url.starts_with("https://") {
        return Err(RunError::Config {
            key: "aegis.public_url",
            value: public_url.to_owned(),
            expected: "an address that begins with https://",
        });
    }
    Ok(Settings {
        public_url: public_url.to_owned(),
        domain: config.aegis.domain.clone(),
        access_token_lifetime_s: lifetime,
    })
}

/// Serves until `tasks` stop. Returns when the port is bound, the store is open and the service answers.
///
/// # Errors
/// [`RunError`] names the file, the port or the part that is missing.
pub async fn run(config: Config, tasks: Tasks) -> Result<(), RunError> {
    let settings = settings(&config)?;
    let identity = Identity::load(&config.tls)?;
    let listener = Listener::bind(config.aegis.listen).await?;
    let secrets = Secrets {
        sealer: Arc::new(Sealer::load(&config.aegis.seal_key_file)?),
        ca_cert: read(&config.tls.ca)?,
        // Needed at the very first start only: the setup says so if they are missing then.
        ca_key: std::fs::read_to_string(&config.aegis.ca_key).ok(),
        bootstrap_token: std::fs::read_to_string(&config.aegis.bootstrap_token_file).ok(),
    };
    let client = chainfire_client::Client::connect(&config.chainfire_client, Some(identity.clone()))?;
    let issuer = AuthorizerConfig::new(&settings.public_url, &settings.domain);
    let authorizer = Authorizer::start(client.clone(), issuer, &tasks).await?;
    let store = Store::Chainfire(ChainfireStore::new(client, secrets.sealer.clone()));
    let aegis = open(store, authorizer, settings, &secrets, &tasks).await?;
    drop(secrets);

    let health = Health::new(&config.service.name);
    health.register(|registry| aegis.metrics().register(registry));
    watch_readiness(&aegis, &health, &tasks);
    sweep_forever(&aegis, &tasks);
    // Aegis renews its own certificate as every service does, at itself.
    iam_client::certs::spawn_renewer(identity.clone(), &aegis.settings().public_url, &tasks);
    let router = api::router(aegis).merge(health::router(health));
    let options = ServeOptions::tls(identity, ClientAuth::Optional);
    let stop = tasks.clone();
    tracing::info!(address = %listener.local_addr(), "aegis answers");
    tasks.spawn("aegis-http", Kind::Critical, async move {
        Ok(serve(listener, router, options, stop).await?)
    });
    Ok(())
}

/// Opens the store, waiting for Chainfire as long as a cluster may take to elect its first leader.
async fn open(
    store: Store,
    authorizer: Authorizer,
    settings: Settings,
    secrets: &Secrets,
    tasks: &Tasks,
) -> Result<Aegis, SetupError> {
    let begun = Instant::now();
    loop {
        match Aegis::open(store.clone(), authorizer.clone(), settings.clone(), secrets).await {
            Err(SetupError::Store(error @ (StoreError::Chainfire(_) | StoreError::Unknown(_))))
                if begun.elapsed() < OPEN_DEADLINE && !tasks.is_stopping() =>
            {
                tracing::warn!(error = %chain(&error), "waiting for Chainfire");
                tokio::time::sleep(RETRY).await;
            }
            other => return other,
        }
    }
}

fn watch_readiness(aegis: &Aegis, health: &Health, tasks: &Tasks) {
    let (aegis, health, stop) = (aegis.clone(), health.clone(), tasks.clone());
    tasks.spawn("aegis-readiness", Kind::Background, async move {
        loop {
            match aegis.authorizer().staleness() {
                Some(age) if age <= iam_client::MAX_STALE_MUTATION => health.ready(),
                _ => health.not_ready("the policy snapshot is too old; does Chainfire answer?"),
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = stop.stopping() => return Ok(()),
            }
        }
    });
}

fn sweep_forever(aegis: &Aegis, tasks: &Tasks) {
    let (aegis, stop) = (aegis.clone(), tasks.clone());
    tasks.spawn("aegis-sweep", Kind::Background, async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(SWEEP_PERIOD) => {}
                () = stop.stopping() => return Ok(()),
            }
            match aegis.sweep().await {
                Ok(0) => {}
                Ok(swept) => tracing::debug!(swept, "ended sessions and devices are gone"),
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the sweep failed; the next one goes on")
                }
            }
        }
    });
}
