//! Which cluster is spoken to and who speaks: the file ~/.config/hearth/config.toml (or $HEARTH_CONFIG).
//!
//! Tokens are renewed before they expire. A refresh token works once, so whoever renews holds a lock
//! and reads the file again first: two commands at once do not end each other's session.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use flashdns_client::DnsClient;
use futures::FutureExt;
use futures::future::BoxFuture;
use hearth_types::{ErrorKind, Name};
use iam_client::{AegisClient, Session};
use nix::fcntl::{Flock, FlockArg};
use plasmavmc_client::{PlasmaClient, TokenProvider};
use serde::{Deserialize, Serialize};

use crate::failure::fail;

/// The whole file.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    /// Name of the context used when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Settings>,
}

/// One cluster and one sign-in.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Base URL of Aegis.
    pub(crate) aegis: String,
    /// Base URL of PlasmaVMC.
    pub(crate) plasmavmc: String,
    /// Base URL of FlashDNS's API; Aegis's host with port 8081 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) flashdns: Option<String>,
    /// The cluster's CA certificate.
    pub(crate) ca: PathBuf,
    /// Project that is meant when none is named.
    pub(crate) project: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<Session>,
}

/// The file and the context in it that a command works with.
#[derive(Clone)]
pub(crate) struct Context {
    path: PathBuf,
    name: Option<String>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Context {
    pub(crate) fn new(name: Option<String>) -> Context {
        Context {
            path: config_path(),
            name,
            turn: Arc::default(),
        }
    }

    fn read(&self) -> Result<Contexts> {
        match fs::read_to_string(&self.path) {
            Ok(text) => toml::from_str(&text).with_context(|| {
                format!(
                    "the file `{}` is not valid; correct it or move it away",
                    self.path.display()
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Contexts::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read `{}`", self.path.display())),
        }
    }

    fn chosen(&self, file: &Contexts) -> String {
        self.name
            .clone()
            .or_else(|| file.current.clone())
            .unwrap_or_else(|| "local".to_owned())
    }

    pub(crate) fn settings(&self) -> Result<Settings> {
        let file = self.read()?;
        let name = self.chosen(&file);
        file.contexts.get(&name).cloned().ok_or_else(|| {
            fail(
                ErrorKind::Unauthenticated,
                format!("there is no context `{name}` in `{}`", self.path.display()),
                "start a cluster with `hearth up`, or sign in to one with `hearth login --url https://HOST:8443 --ca FILE`",
            )
        })
    }

    /// Stores the context and makes it the current one when there is none.
    pub(crate) fn save(&self, settings: &Settings) -> Result<()> {
        let _lock = self.lock()?;
        self.store(settings)
    }

    /// The caller holds the lock.
    fn store(&self, settings: &Settings) -> Result<()> {
        let mut file = self.read()?;
        let name = self.chosen(&file);
        file.contexts.insert(name.clone(), settings.clone());
        file.current.get_or_insert(name);
        let text = toml::to_string(&file).context("cannot write the context file")?;
        Ok(hearth_service::pki::write_private(&self.path, text.as_bytes())?)
    }

    fn lock(&self) -> Result<Flock<File>> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
        }
        let path = self.path.with_added_extension("lock");
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open `{}`", path.display()))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .with_context(|| format!("cannot lock `{}`", path.display()))
    }

    /// An access token that has some life left.
    pub(crate) async fn access_token(&self) -> Result<String> {
        let settings = self.settings()?;
        if let Some(session) = &settings.session
            && !session.needs_refresh(SystemTime::now())
        {
            return Ok(session.access_token.clone());
        }
        self.refresh().await
    }

    async fn refresh(&self) -> Result<String> {
        let sign_in = |why: &str| fail(ErrorKind::Unauthenticated, why, "sign in with `hearth login`");
        // Two requests of one command take turns here; the file lock is between commands.
        let _turn = self.turn.lock().await;
        let _lock = self.lock()?;
        let mut settings = self.settings()?;
        let Some(session) = settings.session.clone() else {
            return Err(sign_in("nobody is signed in"));
        };
        if !session.needs_refresh(SystemTime::now()) {
            return Ok(session.access_token);
        }
        let Some(token) = session.refresh_token else {
            return Err(sign_in("the sign-in has expired"));
        };
        let answer = anonymous(&settings)?.refresh(&token).await;
        let tokens = match answer {
            Ok(tokens) => tokens,
            Err(iam_client::ClientError::OAuth { .. }) => return Err(sign_in("the sign-in has ended")),
            Err(other) => return Err(other.into()),
        };
        let session = Session::new(tokens, SystemTime::now());
        let access = session.access_token.clone();
        settings.session = Some(session);
        self.store(&settings)?;
        Ok(access)
    }

    /// Aegis, as whoever is signed in.
    pub(crate) async fn aegis(&self) -> Result<AegisClient> {
        let token = self.access_token().await?;
        Ok(anonymous(&self.settings()?)?.with_token(&token))
    }

    /// PlasmaVMC, as whoever is signed in. That somebody is, is found out here, with Aegis's own words.
    pub(crate) async fn plasmavmc(&self) -> Result<PlasmaClient> {
        self.access_token().await?;
        let settings = self.settings()?;
        let ca = fs::read(&settings.ca).with_context(|| {
            format!(
                "cannot read the cluster's CA certificate `{}`; sign in again",
                settings.ca.display()
            )
        })?;
        let tls = plasmavmc_client::tls_from_ca(&ca)?;
        Ok(PlasmaClient::new(
            &settings.plasmavmc,
            tls,
            Arc::new(Tokens(self.clone())),
        )?)
    }

    /// FlashDNS, as whoever is signed in.
    pub(crate) async fn flashdns(&self) -> Result<DnsClient> {
        let token = self.access_token().await?;
        let settings = self.settings()?;
        let url = settings.flashdns.unwrap_or_else(|| {
            let aegis = &settings.aegis;
            let host = aegis.rsplit_once(':').map_or(aegis.as_str(), |(host, _)| host);
            format!("{host}:8081")
        });
        Ok(DnsClient::new(&url, &settings.ca, &token)?)
    }

    /// The project named, or the context's.
    pub(crate) fn project(&self, named: Option<&Name>) -> Result<Name> {
        match named {
            Some(name) => Ok(name.clone()),
            None => self
                .settings()?
                .project
                .parse()
                .context("the context's project is not a name"),
        }
    }
}

/// Aegis without a sign-in.
pub(crate) fn anonymous(settings: &Settings) -> Result<AegisClient> {
    Ok(AegisClient::new(&settings.aegis, Path::new(&settings.ca))?)
}

/// Gives each request a token with life left.
struct Tokens(Context);

impl TokenProvider for Tokens {
    fn token(&self) -> BoxFuture<'_, std::result::Result<String, String>> {
        async { self.0.access_token().await.map_err(|error| format!("{error:#}")) }.boxed()
    }
}

fn config_path() -> PathBuf {
    if let Some(path) = std::env::var_os("HEARTH_CONFIG") {
        return path.into();
    }
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    base.unwrap_or_else(|| "/etc".into()).join("hearth/config.toml")
}
