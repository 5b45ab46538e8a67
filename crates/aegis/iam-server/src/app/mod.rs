//! What Aegis does, without HTTP.

mod certs;
mod device;
mod directory;
mod limiter;
mod metrics;
mod mutate;
mod paths;
mod policy;
mod session;
mod setup;
mod signin;
mod sweep;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hearth_service::error::{ApiError, ErrorKind};
use hearth_service::pki::Authority;
use hearth_service::server::RequestId;
use iam_authn::token::SigningKey;
use iam_client::{Authorizer, OpContext};

pub use device::{Decision, DeviceError};
pub use metrics::Metrics;
pub use mutate::Revised;
pub use session::SessionError;
pub use setup::{Secrets, SetupError};
pub use signin::Origin;

use crate::store::Store;

/// How tokens are made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The issuer, without a slash at the end.
    pub public_url: String,
    /// The trust domain.
    pub domain: String,
    /// Seconds that an access token lives.
    pub access_token_lifetime_s: u64,
}

/// The application. Clones share everything; what must survive is in the store, so that any number of replicas serve.
#[derive(Clone)]
pub struct Aegis {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    authorizer: Authorizer,
    settings: Settings,
    signing: SigningKey,
    authority: Authority,
    hashing: signin::Hashing,
    failures: limiter::Limiter,
    /// Device flows begun: each one leaves a record for ten minutes, and nobody has signed in yet.
    begun: limiter::Limiter,
    metrics: Metrics,
    polls: limiter::Polls,
}

impl fmt::Debug for Aegis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aegis")
            .field("settings", &self.inner.settings)
            .finish_non_exhaustive()
    }
}

impl Aegis {
    /// Who decides.
    #[must_use]
    pub fn authorizer(&self) -> &Authorizer {
        &self.inner.authorizer
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// How tokens are made.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// The keys that tokens may be signed with, as a JWKS document.
    #[must_use]
    pub fn jwks(&self) -> serde_json::Value {
        let snapshot = self.inner.authorizer.snapshot();
        let keys: Vec<_> = snapshot
            .keys()
            .iter()
            .map(iam_authn::token::PublicKey::to_jwk)
            .collect();
        serde_json::json!({ "keys": keys })
    }

    fn store(&self) -> &Store {
        &self.inner.store
    }
}

/// Who acts, as the audit trail says it.
#[derive(Clone, Debug)]
pub(crate) struct Acting {
    pub(crate) actor: String,
    pub(crate) name: String,
    pub(crate) request_id: String,
}

impl Acting {
    pub(crate) fn of(context: &OpContext) -> Self {
        Self {
            actor: context.actor().subject().to_string(),
            name: context.actor().name().to_owned(),
            request_id: context.request_id().to_owned(),
        }
    }

    pub(crate) fn principal(subject: &iam_client::Subject, name: &str, request: &RequestId) -> Self {
        Self {
            actor: subject.to_string(),
            name: name.to_owned(),
            request_id: request.0.clone(),
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) const fn ms(duration: Duration) -> u64 {
    duration.as_secs() * 1000
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], ApiError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| {
        ApiError::internal("getting random bytes", std::io::Error::other(error.to_string()))
    })?;
    Ok(bytes)
}

pub(crate) fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::InvalidArgument, message)
}
