//! What every other server links of Aegis: who is this, and may they, decided in process over a snapshot that is
//! watched from Chainfire; and the typed client of Aegis's REST interface.
//!
//! What it does not know: passwords, secrets, how tokens are issued, any service's resources. It never writes to
//! Chainfire.
//!
//! Entry points: [`Authorizer::start`], [`Authorizer::check`] and [`Authorizer::check_project`]; in axum handlers the
//! extractors [`Authenticated`] and [`OpContext`] (the router's state gives the [`Authorizer`] through `FromRef`);
//! [`AegisClient`] for the command line; [`certs::spawn_renewer`]; [`testing`] builds worlds in memory.
//!
//! Invariants: a credential that is there and wrong is a denial, never "anonymous"; when the snapshot is too old the
//! answer is [`Denied::Stale`] (503), never a guess; a place that the caller may not see gives the same answer as one
//! that does not exist; the snapshot is swapped whole.

mod actor;
mod authorizer;
pub mod certs;
mod extract;
mod http_client;
pub mod records;
mod snapshot;
pub mod testing;
mod watch;
pub mod wire;

pub use actor::{Actor, AuthnError};
pub use authorizer::{
    Allowed, Authorizer, AuthorizerConfig, DEFAULT_AUDIENCE, Denied, Explanation, MAX_STALE_MUTATION,
    MAX_STALE_READ, ProjectRef, StartError,
};
pub use extract::{Authenticated, OpContext};
pub use http_client::{AegisClient, CLI_CLIENT, ClientError, DeviceWait, Session};
pub use iam_authn::{WorkloadKind, WorkloadPath};
pub use iam_authz::{Node, ResourceRef, Role, Subject};
pub use snapshot::Snapshot;
