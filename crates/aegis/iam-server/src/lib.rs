//! Aegis: users, organisations, projects, roles; sign-in and tokens; the cluster's certificate authority; the trail of
//! who did what.
//!
//! What it does not know: any other service's resources. It publishes records (`iam_client::records`) that every
//! server decides over by itself; nobody asks Aegis at run time, so nothing stops when Aegis does but sign-ins and
//! changes of rights.
//!
//! Entry points: [`run`] with a [`Config`]; [`app::Aegis`] is the application (no HTTP), [`api`] the HTTP around it,
//! [`store::Store`] what it keeps.
//!
//! Invariants: every change of rights is one transaction that is guarded by the policy's revision, checked against
//! exactly that revision, and carries its one audit record; nobody grants what they do not hold; of a secret only its
//! hash or its sealed form is stored; the bootstrap happens once; a refresh token works once.
//!
//! ```text
//!  api (axum, JSON, forms, one HTML page)
//!    └─ app: setup  signin  session  device  directory  policy  certs   ── mutate: guard, check, audit, commit
//!         └─ store: Chainfire | Memory        seal: AES-256-GCM         iam-authn, iam-authz: pure
//! ```

pub mod api;
pub mod app;
mod config;
pub mod seal;
mod server;
pub mod store;

pub use config::{AegisConfig, Config};
pub use server::{RunError, run};
