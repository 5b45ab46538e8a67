//! The node's lease on Chainfire: this node is alive, whatever the control plane does.

use std::time::Duration;

use chainfire_client::Client;
use hearth_service::tasks::{Tasks, chain};
use plasmavmc_hypervisor::host_boot_id;
use serde::Serialize;

/// Time to live of the lease; it is renewed three times within.
const TTL_S: i64 = 15;
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Value of the node's key.
#[derive(Debug, Serialize)]
struct SessionRecord<'a> {
    format: u32,
    node: &'a str,
    boot_id: String,
    incarnation: &'a str,
    agent_version: &'a str,
}

/// Holds `/plasmavmc/v1/sessions/NODE` until the agent stops. It then expires by itself: an agent that
/// is only restarted is not seen to be gone.
pub(crate) async fn hold(client: Client, node: String, incarnation: String, tasks: Tasks) {
    let key = format!("/plasmavmc/v1/sessions/{node}");
    let record = SessionRecord {
        format: 1,
        node: &node,
        boot_id: host_boot_id(),
        incarnation: &incarnation,
        agent_version: hearth_service::VERSION,
    };
    let value = serde_json::to_vec(&record).unwrap_or_default();
    while !tasks.is_stopping() {
        let held = tokio::select! {
            held = hold_once(&client, &key, &value, &tasks) => held,
            () = tasks.stopping() => return,
        };
        match held {
            Ok(()) => tracing::warn!(key, "the node's lease was lost; taking a new one"),
            Err(error) => tracing::warn!(key, error = %chain(&error), "no lease for this node; trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_PAUSE) => {}
            () = tasks.stopping() => {}
        }
    }
}

/// Returns when the lease is lost.
async fn hold_once(client: &Client, key: &str, value: &[u8], tasks: &Tasks) -> chainfire_client::Result<()> {
    let lease = client.lease_grant(TTL_S).await?;
    client.put_with_lease(key, value, lease.id()).await?;
    tracing::info!(key, lease = lease.id(), "the node's lease is held");
    lease.keep_alive_in(tasks).lost().await;
    Ok(())
}
