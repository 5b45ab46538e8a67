//! The control sockets of agents and guards: HTTP over a Unix socket, for the operator of the machine only.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Longest answer that is read.
const MAX_ANSWER: u64 = 4 << 20;

/// What became of the guests, by their ids.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct StopReport {
    pub(crate) stopped: Vec<String>,
    pub(crate) forced: Vec<String>,
    pub(crate) failed: Vec<String>,
}

/// Whether the agent answers.
pub(crate) async fn answers(socket: &Path) -> bool {
    matches!(
        tokio::time::timeout(Duration::from_secs(2), connect(socket)).await,
        Ok(Ok(_))
    )
}

/// Stops the agent's guests: asks them, and switches them off at the deadline.
pub(crate) async fn stop_guests(socket: &Path, deadline: Duration) -> Result<StopReport> {
    let path = format!("/stop-guests?deadline_s={}", deadline.as_secs());
    let call = exchange(socket, "POST", &path);
    let body = tokio::time::timeout(deadline + Duration::from_secs(20), call)
        .await
        .context("the agent did not answer in time")??;
    serde_json::from_str(&body).with_context(|| format!("the agent's answer is not understood: {body}"))
}

/// What a guard says of itself.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct GuardStatus {
    pub(crate) memory: String,
    pub(crate) standing: GuardStanding,
}

/// How it stands with the node's lease and its movable guests.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct GuardStanding {
    pub(crate) level: String,
    pub(crate) lease_held: bool,
    pub(crate) fenced: bool,
    pub(crate) movable_guests: u64,
    pub(crate) guests_still: u64,
    pub(crate) trouble: String,
}

impl GuardStanding {
    /// In one line, for people.
    pub(crate) fn line(&self) -> String {
        let lease = match (self.fenced, self.lease_held) {
            (true, _) => "fenced: its movable guests may run elsewhere".to_owned(),
            (false, true) => "holds its lease".to_owned(),
            (false, false) => format!("does not hold its lease: {}", self.trouble),
        };
        let guests = match (self.movable_guests, self.guests_still) {
            (0, _) => "no movable guest".to_owned(),
            (all, 0) => format!("{all} movable guests"),
            (all, still) => format!("{all} movable guests, {still} of them stand still"),
        };
        format!("{lease}; {guests}")
    }
}

/// Asks a guard how it stands.
pub(crate) async fn guard_status(socket: &Path) -> Result<GuardStatus> {
    let call = exchange(socket, "GET", "/status");
    let body = tokio::time::timeout(Duration::from_secs(2), call)
        .await
        .context("the guard did not answer in time")??;
    serde_json::from_str(&body).with_context(|| format!("the guard's answer is not understood: {body}"))
}

async fn exchange(socket: &Path, method: &str, path: &str) -> Result<String> {
    let mut stream = connect(socket).await.context("cannot reach the control socket")?;
    let request = format!("{method} {path} HTTP/1.0\r\nhost: node\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer).await?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the connection ended before the answer")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        bail!("the answer is {status}: {}", body.trim());
    }
    Ok(body.to_owned())
}

/// A socket's path has at most 107 bytes; through its folder's handle any folder will do.
async fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let folder = File::open(socket.parent().unwrap_or(Path::new("/")))?;
    let name = socket
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())).await
}
