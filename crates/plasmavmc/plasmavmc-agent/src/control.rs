//! The local control socket (`DATA/control.sock`, for its owner only): HTTP over a Unix socket.
//!
//! * `GET /guests`: what is observed of every VM.
//! * `POST /stop-guests?deadline_s=30`: stops every guest in good order, by force at the deadline, and
//!   keeps them stopped until the agent ends. The next start of the agent starts them again.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;

use crate::node::Node;
use crate::vm::Held;

const SOCKET: &str = "control.sock";
const DEFAULT_DEADLINE_S: u64 = 30;
const MAX_DEADLINE_S: u64 = 3600;

/// One row of `GET /guests`.
#[derive(Debug, Serialize)]
struct GuestRow {
    vm_id: String,
    name: String,
    epoch: u64,
    state: String,
    reason: String,
    pid: u32,
    accelerator: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StopQuery {
    deadline_s: Option<u64>,
}

/// Answer of `POST /stop-guests`: ids of VMs.
#[derive(Debug, Default, Serialize)]
struct StopReport {
    stopped: Vec<String>,
    forced: Vec<String>,
    were_off: Vec<String>,
    failed: Vec<String>,
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

/// Serves the socket until the agent stops.
pub(crate) async fn serve(listener: UnixListener, node: Arc<Node>) -> io::Result<()> {
    let tasks = node.tasks.clone();
    let router = Router::new()
        .route("/guests", get(guests))
        .route("/stop-guests", post(stop_guests))
        .with_state(node);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { tasks.stopping().await })
        .await
}

async fn guests(State(node): State<Arc<Node>>) -> Json<Vec<GuestRow>> {
    let rows = node.observations.all().into_values().map(|o| GuestRow {
        name: node.name_of(&o.vm_id),
        state: o
            .state()
            .as_str_name()
            .trim_start_matches("VM_STATE_")
            .to_ascii_lowercase(),
        vm_id: o.vm_id,
        epoch: o.epoch,
        reason: o.reason,
        pid: o.pid,
        accelerator: o.accelerator,
    });
    Json(rows.collect())
}

async fn stop_guests(State(node): State<Arc<Node>>, Query(query): Query<StopQuery>) -> Json<StopReport> {
    let deadline_s = query.deadline_s.unwrap_or(DEFAULT_DEADLINE_S).min(MAX_DEADLINE_S);
    let mut report = StopReport::default();
    for (id, held) in node.stop_guests(Duration::from_secs(deadline_s)).await {
        let list = match held {
            Some(Held::SwitchedOff) => &mut report.stopped,
            Some(Held::Forced) => &mut report.forced,
            Some(Held::WasOff) => &mut report.were_off,
            None => &mut report.failed,
        };
        list.push(id.to_string());
    }
    Json(report)
}
