//! Who asks.

use std::sync::Arc;

use hearth_service::error::{ApiError, ErrorKind};
use iam_authn::token::TokenError;
use iam_authn::{WorkloadKind, WorkloadPath};
use iam_authz::{AuthenticatedBy, Context, Subject};

/// An authenticated caller. Only [`crate::Authorizer`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    pub(crate) subject: Subject,
    pub(crate) name: Arc<str>,
    pub(crate) authenticated_by: AuthenticatedBy,
    pub(crate) workload: Option<WorkloadPath>,
}

impl Actor {
    /// The principal.
    #[must_use]
    pub const fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Its name for people: `ada`, `service/flashdns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Token or certificate.
    #[must_use]
    pub const fn authenticated_by(&self) -> AuthenticatedBy {
        self.authenticated_by
    }

    /// The process or machine, when it came with a certificate.
    #[must_use]
    pub const fn workload(&self) -> Option<&WorkloadPath> {
        self.workload.as_ref()
    }

    /// Whether it is the server of that name, known by its certificate.
    #[must_use]
    pub fn is_service(&self, name: &str) -> bool {
        self.workload
            .as_ref()
            .is_some_and(|path| path.kind == WorkloadKind::Service && path.name.as_str() == name)
    }

    /// The node whose agent this is, known by its certificate.
    #[must_use]
    pub fn node(&self) -> Option<&hearth_types::Name> {
        self.workload
            .as_ref()
            .filter(|path| path.kind == WorkloadKind::Node)
            .map(|path| &path.name)
    }

    pub(crate) const fn context(&self) -> Context {
        Context {
            authenticated_by: self.authenticated_by,
        }
    }
}

/// Why a caller is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthnError {
    /// Neither token nor certificate.
    #[error("this needs a sign-in")]
    Missing,
    /// The `Authorization` header is not exactly one `Bearer` token.
    #[error("the authorization header is not one bearer token")]
    Malformed,
    /// The token is not accepted.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The principal is gone or disabled, or its tokens were revoked. One answer for all three.
    #[error("the account is disabled or its sign-ins were revoked")]
    Revoked,
    /// A certificate of another trust domain, or whose identity is none that is known here.
    #[error("the certificate's identity is not one of this cluster's services, nodes or operators")]
    Peer,
    /// The snapshot is missing or too old to say.
    #[error("who you are cannot be checked now (authz-stale): the policy snapshot is too old")]
    Stale,
}

impl From<AuthnError> for ApiError {
    fn from(error: AuthnError) -> Self {
        match error {
            AuthnError::Stale => Self::new(ErrorKind::Unavailable, error.to_string())
                .hint("retry in a moment; `hearth status` shows whether Chainfire answers"),
            AuthnError::Peer => Self::new(ErrorKind::Unauthenticated, error.to_string()),
            other => {
                Self::new(ErrorKind::Unauthenticated, other.to_string()).hint("sign in with `hearth login`")
            }
        }
    }
}
