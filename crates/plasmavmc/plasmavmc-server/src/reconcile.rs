//! The background reconciler: on the replica that holds the election, it looks at everything from time to time and
//! makes what disagrees agree.
//!
//! It takes no input but the store, does the same again without harm, and may be killed anywhere: the next sweep, here
//! or elsewhere, goes on. Requests and sessions never wait for it.

use std::time::Duration;

use chainfire_client::{Error, Leadership, WatchOptions, WatchUpdate, Watcher};
use hearth_service::tasks::{Tasks, chain};

use crate::app::vm::now_ms;
use crate::metrics::Metrics;
use crate::nodes::NodeBook;
use crate::store::sweep::Swept;
use crate::store::{Store, keys};
use crate::takeover;
use crate::trim::Trimmer;

/// Seconds after which a silent leader is replaced.
const LEASE_S: i64 = 10;
/// Pause after the store did not answer.
const RETRY: Duration = Duration::from_secs(2);
/// How long a node may take to report anything about a VM before it is told again.
const STUCK_MS: i64 = 60_000;

/// Runs until the server stops.
pub(crate) async fn run(
    (store, nodes): (Store, NodeBook),
    server: String,
    metrics: Metrics,
    period: Duration,
    trimmer: Trimmer,
    tasks: Tasks,
) {
    while !tasks.is_stopping() {
        let term = async {
            if let Err(error) = lead(
                (&store, &nodes),
                &server,
                &metrics,
                period,
                trimmer.clone(),
                &tasks,
            )
            .await
            {
                tracing::warn!(error = %chain(&error), "the reconciler lost its term; trying again");
            }
            tokio::time::sleep(RETRY).await;
        };
        tokio::select! {
            () = term => {}
            () = tasks.stopping() => return,
        }
    }
}

/// One term: campaign, then sweep until the lease is lost.
async fn lead(
    (store, nodes): (&Store, &NodeBook),
    server: &str,
    metrics: &Metrics,
    period: Duration,
    trimmer: Trimmer,
    tasks: &Tasks,
) -> Result<(), Error> {
    let client = store.client();
    let lease = client.lease_grant(LEASE_S).await?;
    let mut alive = lease.keep_alive_in(tasks);
    let election = client.election(keys::LEADER);
    let leadership = tokio::select! {
        won = election.campaign(&lease, server) => won?,
        () = alive.lost() => return Ok(()),
    };
    tracing::info!(token = leadership.token(), "this server runs the reconciler");
    tokio::select! {
        () = sweep_forever(store, &leadership, metrics, period, trimmer) => Ok(()),
        () = takeover::run(store, nodes, &leadership) => Ok(()),
        () = alive.lost() => Ok(()),
        lost = leadership.lost() => lost,
    }
}

/// Sweeps every period, and at once when a node's session begins or ends.
async fn sweep_forever(
    store: &Store,
    leadership: &Leadership,
    metrics: &Metrics,
    period: Duration,
    mut trimmer: Trimmer,
) {
    let mut sessions = watch_sessions(store);
    loop {
        match store.sweep(&leadership.guard(), now_ms(), STUCK_MS).await {
            Ok(swept) => {
                metrics.leftovers_deleted.inc_by(swept.leftovers);
                metrics.vms_released.inc_by(swept.released);
                if swept != Swept::default() {
                    tracing::info!(?swept, "sweep repaired something");
                }
            }
            Err(error) => tracing::warn!(error = %chain(&error), "the sweep could not be finished"),
        }
        trimmer.run(store, &leadership.guard(), metrics).await;
        match tokio::time::timeout(period, changed(&mut sessions)).await {
            Ok(true) | Err(_) => {}
            Ok(false) => {
                // A watcher that fails at once must not make the sweep spin.
                tokio::time::sleep(period).await;
                sessions = watch_sessions(store);
            }
        }
    }
}

fn watch_sessions(store: &Store) -> Watcher {
    store.client().watch_with(WatchOptions::prefix(keys::SESSIONS))
}

/// Waits for a change. False: the watcher has ended.
async fn changed(watcher: &mut Watcher) -> bool {
    loop {
        match watcher.next().await {
            Ok(WatchUpdate::Progress { .. }) => {}
            Ok(WatchUpdate::Events { .. }) => return true,
            Ok(WatchUpdate::Compacted { .. }) | Err(_) => return false,
        }
    }
}
