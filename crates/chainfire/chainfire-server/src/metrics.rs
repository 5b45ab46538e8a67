//! What `/metrics` says of this member, and whether it is ready (over HTTP and over gRPC's own health protocol).

use std::{sync::atomic::AtomicI64, time::Duration};

use hearth_service::health::Health;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::sleep;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    dashboards::Dashboards,
    node::{GROUP, Node},
};

/// How often the gauges are brought up to date.
const PERIOD: Duration = Duration::from_secs(5);

#[derive(Default, Clone)]
struct Gauges {
    revision: Gauge<i64, AtomicI64>,
    has_leader: Gauge<i64, AtomicI64>,
    is_leader: Gauge<i64, AtomicI64>,
    raft_applied: Gauge<i64, AtomicI64>,
    raft_log_bytes: Gauge<i64, AtomicI64>,
    fsync_p50_us: Gauge<i64, AtomicI64>,
    fsync_p99_us: Gauge<i64, AtomicI64>,
    fsync_worst_us: Gauge<i64, AtomicI64>,
    keys: Gauge<i64, AtomicI64>,
    leases: Gauge<i64, AtomicI64>,
    is_learner: Gauge<i64, AtomicI64>,
    cluster_level: Gauge<i64, AtomicI64>,
}

fn number(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// What so many of a hundred stay at or below, of sorted times; 0 when there are none.
fn quantile_us(sorted: &[Duration], share: usize) -> i64 {
    let rank = (sorted.len() * share).div_ceil(100);
    let found = sorted.get(rank.saturating_sub(1)).copied();
    number(found.unwrap_or_default().as_micros())
}

/// Keeps the gauges and the readiness up to date until the stop.
pub(crate) async fn run(node: &Node, health: &Health, reporter: &HealthReporter) {
    let mut dashboards = None;
    let gauges = Gauges::default();
    let shown = gauges.clone();
    health.register(|registry| {
        dashboards = Some(Dashboards::new(registry));
        let registry = registry.sub_registry_with_prefix("chainfire");
        registry.register(
            "revision",
            "Revision of the last change applied here",
            shown.revision,
        );
        registry.register("has_leader", "1 when a leader is known", shown.has_leader);
        registry.register("is_leader", "1 when this member leads", shown.is_leader);
        registry.register(
            "raft_applied_index",
            "Last log entry applied here",
            shown.raft_applied,
        );
        registry.register(
            "raft_log_bytes",
            "Bytes of the log still needed",
            shown.raft_log_bytes,
        );
        registry.register(
            "fsync_p50_us",
            "Half of the last 128 log syncs took at most this, microseconds",
            shown.fsync_p50_us,
        );
        registry.register(
            "fsync_p99_us",
            "99 % of the last 128 log syncs took at most this, microseconds",
            shown.fsync_p99_us,
        );
        registry.register(
            "fsync_worst_us",
            "Slowest of the last 128 log syncs, microseconds",
            shown.fsync_worst_us,
        );
        registry.register("keys", "Live keys", shown.keys);
        registry.register("leases", "Leases", shown.leases);
        registry.register(
            "is_learner",
            "1 when this member learns and has no vote",
            shown.is_learner,
        );
        registry.register(
            "cluster_level",
            "Kinds of log entries that all members understand; 0: not all have said so yet",
            shown.cluster_level,
        );
    });
    let mut leader = node.leader.clone();
    loop {
        let info = *leader.borrow_and_update();
        match info.leader {
            Some(_) => health.ready(),
            None => health.not_ready("no leader: a majority of the members is needed"),
        }
        let serving = match info.leader {
            Some(_) => ServingStatus::Serving,
            None => ServingStatus::NotServing,
        };
        reporter.set_service_status("", serving).await;
        gauges.has_leader.set(i64::from(info.leader.is_some()));
        gauges.is_leader.set(i64::from(node.leads()));
        gauges.is_learner.set(i64::from(node.is_learner()));
        gauges.cluster_level.set(i64::from(node.shared.members().level()));
        if let Some(raft) = node.raft.status(GROUP).await {
            if let Some(dashboards) = &mut dashboards {
                dashboards.update(node, &raft);
            }
            gauges.raft_applied.set(number(raft.applied));
            gauges.raft_log_bytes.set(number(raft.log_bytes));
            let mut syncs = raft.fsyncs;
            syncs.sort_unstable();
            gauges.fsync_p50_us.set(quantile_us(&syncs, 50));
            gauges.fsync_p99_us.set(quantile_us(&syncs, 99));
            gauges.fsync_worst_us.set(quantile_us(&syncs, 100));
        }
        {
            let store = node.shared.store();
            gauges.revision.set(store.revision());
            gauges.keys.set(number(store.index().len()));
            gauges.leases.set(number(store.leases().len()));
        }
        tokio::select! {
            () = node.tasks.stopping() => return,
            changed = leader.changed() => if changed.is_err() { return },
            () = sleep(PERIOD) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_nearest_rank() {
        let times = |count: u64| (1..=count).map(Duration::from_micros).collect::<Vec<_>>();
        for (count, share, expected) in [
            (0, 50, 0),
            (1, 50, 1),
            (1, 99, 1),
            (2, 50, 1),
            (128, 50, 64),
            (128, 99, 127),
            (128, 100, 128),
        ] {
            assert_eq!(
                quantile_us(&times(count), share),
                expected,
                "{share} % of {count}"
            );
        }
    }
}
