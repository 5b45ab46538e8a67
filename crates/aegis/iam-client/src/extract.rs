//! Extractors for axum handlers.

use std::time::{Duration, Instant, SystemTime};

use axum::extract::{FromRef, FromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use hearth_service::error::ApiError;
use hearth_service::server::RequestId;
use hearth_service::tls::PeerIdentity;

use crate::{Actor, Allowed, AuthnError, Authorizer, Denied, ResourceRef};

/// Longest a request may take, unless its handler says otherwise.
const DEADLINE: Duration = Duration::from_secs(30);

/// The caller, from the `Authorization` header or else from the client certificate. Rejects with 401 (or 503).
#[derive(Clone, Debug)]
pub struct Authenticated(pub Actor);

/// What a handler hands to everything beneath it: who asks, under which request id, until when. A store or a core
/// that takes one cannot be reached by a request that was not authenticated.
#[derive(Clone, Debug)]
pub struct OpContext {
    actor: Actor,
    request_id: String,
    deadline: Instant,
    authorizer: Authorizer,
}

impl OpContext {
    /// For a caller that was authenticated in another way than by the extractor, for example over gRPC.
    #[must_use]
    pub fn new(actor: Actor, request_id: &str, deadline: Instant, authorizer: Authorizer) -> Self {
        Self {
            actor,
            request_id: request_id.to_owned(),
            deadline,
            authorizer,
        }
    }

    /// Who asks.
    #[must_use]
    pub const fn actor(&self) -> &Actor {
        &self.actor
    }

    /// The request, as it stands in the log.
    #[must_use]
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// When the caller stops waiting.
    #[must_use]
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Who decides.
    #[must_use]
    pub const fn authorizer(&self) -> &Authorizer {
        &self.authorizer
    }

    /// [`Authorizer::check`] for this caller.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn check(&self, action: &'static str, resource: &ResourceRef) -> Result<Allowed, Denied> {
        self.authorizer.check(&self.actor, action, resource)
    }
}

fn authenticate(parts: &Parts, authorizer: &Authorizer) -> Result<Actor, AuthnError> {
    let mut headers = parts.headers.get_all(AUTHORIZATION).iter();
    match (headers.next(), headers.next()) {
        (None, _) => {
            let peer = parts
                .extensions
                .get::<PeerIdentity>()
                .ok_or(AuthnError::Missing)?;
            authorizer.authenticate_peer(peer)
        }
        // A token wins over a certificate: a service that forwards a user's request acts as that user.
        (Some(header), None) => {
            let text = header.to_str().map_err(|_| AuthnError::Malformed)?;
            let (scheme, token) = text.split_once(' ').ok_or(AuthnError::Malformed)?;
            let plain = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
            if !scheme.eq_ignore_ascii_case("bearer") || !plain {
                return Err(AuthnError::Malformed);
            }
            authorizer.authenticate(token, SystemTime::now())
        }
        (Some(_), Some(_)) => Err(AuthnError::Malformed),
    }
}

impl<S> FromRequestParts<S> for Authenticated
where
    S: Send + Sync,
    Authorizer: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Ok(Self(authenticate(parts, &Authorizer::from_ref(state))?))
    }
}

impl<S> FromRequestParts<S> for OpContext
where
    S: Send + Sync,
    Authorizer: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let authorizer = Authorizer::from_ref(state);
        let actor = authenticate(parts, &authorizer)?;
        let request_id = parts
            .extensions
            .get::<RequestId>()
            .map(|id| id.0.clone())
            .unwrap_or_default();
        Ok(Self {
            actor,
            request_id,
            deadline: Instant::now() + DEADLINE,
            authorizer,
        })
    }
}
