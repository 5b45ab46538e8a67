//! A node's guard: a small process beside the agent that stops the guests which could be started elsewhere when the
//! node loses its lease, so that the control plane may start them elsewhere.
//!
//! It does not know what VMs are for, who owns them, or where else they could run; it never starts one. The rule
//! itself is `plasmavmc_core::fence`; this crate gives it a clock, a lease, and hands.
//!
//! ```text
//!   lease (task) ──Held, Gone, Fenced──┐
//!   rounds (task) ──who has a leader──>│ Guard ──level──> enforcer (thread): SIGSTOP, SIGCONT, SIGKILL by
//!                                      │                  pid + start time + boot id
//!                                      └──> DATA/guard.json: what the agent may start, what the next guard counts on
//! ```
//!
//! Entry points: [`Config`], [`run`], `GET /status` on `DATA/control.sock`.
//!
//! Invariants:
//! * Only machines whose record says `movable` are ever touched.
//! * The enforcer waits for nothing: not for the store, not for a disk that it does not need to read.
//! * Its end, in whatever way, touches no guest; the next one goes on counting where it stopped.

mod clock;
mod config;
mod enforcer;
mod lease;
mod memory;
mod rounds;
mod shared;
mod status;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hearth_service::tasks::{Kind, Tasks};
use hearth_service::tls::{Identity, TlsError};

pub use config::{Config, GuardConfig};
use shared::Shared;

/// Why the guard cannot start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The node's certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate is not this node's.
    #[error("the certificate is `{found}`; this is the guard of node `{node}` and needs `node/{node}`")]
    WrongIdentity {
        /// Identity of the certificate.
        found: String,
        /// Name in the configuration.
        node: String,
    },
    /// The data folder.
    #[error("cannot use the data folder `{path}`")]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another guard uses the data folder.
    #[error("another guard uses the data folder `{0}`; stop it first")]
    Locked(PathBuf),
    /// Chainfire's addresses.
    #[error(transparent)]
    Chainfire(#[from] chainfire_client::Error),
    /// The thread that stops guests.
    #[error("cannot start the thread that stops guests")]
    Thread(#[source] std::io::Error),
    /// It ended.
    #[error("the thread that stops guests has ended")]
    EnforcerEnded,
}

/// Runs the guard until `tasks` are asked to stop. Guests run on, and so does the lease until it runs out: a guard
/// that is only restarted is not seen to be gone.
///
/// # Errors
/// [`GuardError`] when it cannot start; later failures end the group through `tasks`.
pub async fn run(config: Config, tasks: Tasks) -> Result<(), GuardError> {
    let identity = Identity::load(&config.tls)?;
    let (found, node) = (identity.own().path, config.guard.node.to_string());
    if found != format!("node/{node}") {
        return Err(GuardError::WrongIdentity { found, node });
    }
    let data_dir = config.service.data_dir.clone();
    let in_data_dir = |source| GuardError::DataDir {
        path: data_dir.clone(),
        source,
    };
    fs::create_dir_all(&data_dir).map_err(in_data_dir)?;
    let _lock = lock(&data_dir)?;
    let memory = memory::lock();
    tracing::info!(memory, "guard of node {node}");
    let socket = status::bind(&data_dir).map_err(in_data_dir)?;
    let shared = Arc::new(Shared::open(&data_dir));

    let enforcer = enforcer::start(shared.clone(), config.guard.agent_data_dir.clone());
    let ended = enforcer.map_err(GuardError::Thread)?;
    let stopping = tasks.clone();
    tasks.spawn("enforcer", Kind::Critical, async move {
        tokio::select! {
            _ = ended => Err(GuardError::EnforcerEnded.into()),
            () = stopping.stopping() => Ok(()),
        }
    });
    let chainfire = chainfire_client::Client::connect(&config.chainfire_client, Some(identity))?;
    let holder = lease::Holder::new(chainfire.clone(), shared.clone(), &config.guard);
    let stopping = tasks.clone();
    tasks.spawn("lease", Kind::Critical, async move {
        tokio::select! { () = holder.hold() => {}, () = stopping.stopping() => {} }
        Ok(())
    });
    let (stopping, asking) = (tasks.clone(), rounds::ask(chainfire, shared.clone()));
    tasks.spawn("rounds", Kind::Critical, async move {
        tokio::select! { () = asking => {}, () = stopping.stopping() => {} }
        Ok(())
    });
    let (stopping, writing) = (tasks.clone(), shared::keep_file(shared.clone(), data_dir.clone()));
    tasks.spawn("state file", Kind::Critical, async move {
        tokio::select! { () = writing => {}, () = stopping.stopping() => {} }
        Ok(())
    });
    let serving = status::serve(socket, shared, node, memory, tasks.clone());
    tasks.spawn("status", Kind::Critical, async move { Ok(serving.await?) });
    tasks.stopping().await;
    Ok(())
}

/// One guard per node: two would each hold the lease for the other.
fn lock(data_dir: &Path) -> Result<nix::fcntl::Flock<fs::File>, GuardError> {
    let path = data_dir.join("guard.lock");
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| GuardError::DataDir {
            path: data_dir.to_owned(),
            source,
        })?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|_| GuardError::Locked(data_dir.to_owned()))
}
