//! Keeps the snapshot fresh.
//!
//! One task lists and watches; another proves, once a second, that nothing is missing: every change of the policy
//! writes [`POLICY_KEY`], so a linearizable read of that key tells the revision that the snapshot must have reached.
//! A watch that has silently stopped is found by that, and the snapshot is loaded again.

use std::time::{Duration, Instant};

use chainfire_client::{Client, WatchEvent, WatchUpdate};
use hearth_service::tasks::{Kind, Tasks};

use crate::records::{POLICY_KEY, PUBLIC_PREFIX};
use crate::{Authorizer, Snapshot};

/// How long `start` waits for the first snapshot.
pub(crate) const FIRST_LOAD: Duration = Duration::from_secs(5);
/// How often freshness is proven.
const PROOF_PERIOD: Duration = Duration::from_secs(1);
/// Longest a proof may take.
const PROOF_DEADLINE: Duration = Duration::from_secs(2);
/// How long the watch may lag behind a proof before the snapshot is loaded again.
const MAX_LAG: Duration = Duration::from_secs(3);
/// Pause after a failed load.
const RETRY: Duration = Duration::from_millis(500);

pub(crate) fn spawn(client: Client, authorizer: Authorizer, tasks: &Tasks) {
    let follow = (client.clone(), authorizer.clone(), tasks.clone());
    tasks.spawn("aegis-snapshot", Kind::Critical, async move {
        let (client, authorizer, tasks) = follow;
        tokio::select! {
            () = follow_forever(&client, &authorizer) => {}
            () = tasks.stopping() => {}
        }
        Ok(())
    });
    let stop = tasks.clone();
    tasks.spawn("aegis-freshness", Kind::Critical, async move {
        tokio::select! {
            () = prove_forever(&client, &authorizer) => {}
            () = stop.stopping() => {}
        }
        Ok(())
    });
}

async fn follow_forever(client: &Client, authorizer: &Authorizer) {
    loop {
        match load(client).await {
            Ok((snapshot, sent)) => {
                let revision = snapshot.revision();
                authorizer.replace(snapshot);
                authorizer.proven(sent, revision);
                tracing::debug!(revision, "the policy snapshot is loaded");
                tokio::select! {
                    () = follow(client, authorizer, revision) => {}
                    () = authorizer.inner.reload.notified() => {
                        tracing::warn!("the watch of the policy misses changes; loading it again");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "cannot load the policy snapshot; retrying"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn load(client: &Client) -> chainfire_client::Result<(Snapshot, Instant)> {
    let sent = Instant::now();
    let listing = client.list(PUBLIC_PREFIX).await?;
    let mut snapshot = Snapshot::empty();
    for kv in &listing.kvs {
        snapshot.apply(&kv.key_text(), Some(&kv.value));
    }
    snapshot.set_revision(listing.revision);
    Ok((snapshot, sent))
}

/// Applies changes until the watch ends.
async fn follow(client: &Client, authorizer: &Authorizer, from: i64) {
    let mut watcher = client.watch(PUBLIC_PREFIX, from.saturating_add(1));
    loop {
        match watcher.next().await {
            Ok(WatchUpdate::Events { revision, events }) => {
                let changes: Vec<_> = events
                    .iter()
                    .map(|event| match event {
                        WatchEvent::Put { kv, .. } => (kv.key_text(), Some(kv.value.as_ref())),
                        WatchEvent::Delete { key, .. } => (String::from_utf8_lossy(key), None),
                    })
                    .collect();
                authorizer.apply(
                    revision,
                    changes.iter().map(|(key, value)| (key.as_ref(), *value)),
                );
            }
            Ok(WatchUpdate::Progress { .. }) => {}
            Ok(WatchUpdate::Compacted { .. }) => return,
            Err(error) => {
                tracing::warn!(%error, "the watch of the policy ended; loading it again");
                return;
            }
        }
    }
}

async fn prove_forever(client: &Client, authorizer: &Authorizer) {
    let client = client.with_deadline(PROOF_DEADLINE);
    let mut reach = authorizer.inner.reach.subscribe();
    loop {
        let sent = Instant::now();
        match client.get_at(POLICY_KEY, 0).await {
            Ok(outcome) => {
                let needed = outcome.kv.map_or(0, |kv| kv.mod_revision);
                // `verified > 0`: the snapshot was loaded at all.
                let caught_up = reach.wait_for(|reach| reach.applied >= needed && reach.verified > 0);
                let in_time = tokio::time::timeout(MAX_LAG, caught_up).await.is_ok();
                if in_time {
                    authorizer.proven(sent, outcome.revision);
                } else if authorizer.staleness().is_some() {
                    authorizer.inner.reload.notify_one();
                }
            }
            Err(error) => tracing::debug!(%error, "the freshness of the policy cannot be proven now"),
        }
        tokio::select! {
            () = tokio::time::sleep(PROOF_PERIOD) => {}
            () = authorizer.inner.poke.notified() => {}
        }
    }
}
