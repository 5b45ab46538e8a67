//! The frame that every Hearth server stands in: configuration files, logging, supervised tasks and ordered shutdown,
//! TLS identities, the HTTP and gRPC listener, channels to other servers, and the one place that turns errors into
//! statuses.
//!
//! What it does not know: any service's API, storage, or rights. It carries who the peer is ([`tls::PeerIdentity`]);
//! what that peer may do is the service's business.
//!
//! Entry points: [`config::load`], [`telemetry::init`], [`tasks::Tasks`], [`tls::Identity`], [`server::serve`],
//! [`client::channel`], [`error::ApiError`], [`health::router`], [`pki::Authority`].
//!
//! Invariants: no task runs without a name and a kind; no connection is accepted beyond a named limit; a request that
//! came over TLS with a client certificate carries its verified `PeerIdentity`, one that came in plain text carries
//! [`tls::Plaintext`], and nothing but this crate puts either there.

pub mod client;
pub mod config;
pub mod error;
pub mod fail_points;
pub mod health;
pub mod pki;
pub mod server;
pub mod tasks;
pub mod telemetry;
pub mod tls;

/// The version of this build, as `/version` and `--version` say it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
