//! `DATA/control.sock`: `GET /status`, for the operator of the machine.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use hearth_service::tasks::Tasks;
use serde::Serialize;
use tokio::net::UnixListener;

use crate::shared::{Shared, Standing};

const SOCKET: &str = "control.sock";

#[derive(Debug, Clone)]
struct Source {
    shared: Arc<Shared>,
    node: String,
    memory: &'static str,
}

#[derive(Debug, Serialize)]
struct Answer {
    node: String,
    memory: &'static str,
    standing: Standing,
}

/// Binds the socket anew; a leftover of an earlier run is replaced.
pub(crate) fn bind(data_dir: &Path) -> io::Result<UnixListener> {
    let path = data_dir.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // A socket's path has at most 107 bytes; through the folder's handle any folder will do.
    let folder = File::open(data_dir)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the socket until the guard stops.
pub(crate) async fn serve(
    listener: UnixListener,
    shared: Arc<Shared>,
    node: String,
    memory: &'static str,
    tasks: Tasks,
) -> io::Result<()> {
    let source = Source { shared, node, memory };
    let router = Router::new().route("/status", get(status)).with_state(source);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { tasks.stopping().await })
        .await
}

async fn status(State(source): State<Source>) -> Json<Answer> {
    Json(Answer {
        node: source.node,
        memory: source.memory,
        standing: source.shared.standing(),
    })
}
