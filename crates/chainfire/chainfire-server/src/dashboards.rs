//! The metrics that dashboards and alerts made for etcd look for, under etcd's names, where they are true here.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::{MetricType, counter::Counter, gauge::Gauge},
    registry::{Registry, Unit},
};
use raft_host::{NodeId, SYNC_CLASSES_US, Status};

use crate::node::Node;

type Number = Gauge<i64, AtomicI64>;

/// How long log syncs took, as Raft's host counted them.
#[derive(Debug, Default)]
struct Syncs(Mutex<(Vec<u64>, Duration)>);

impl Collector for Syncs {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (classes, total) = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let bounds = SYNC_CLASSES_US
            .iter()
            .map(|us| Duration::from_micros(*us).as_secs_f64())
            .chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(classes.iter().copied()).collect();
        let count = classes.iter().sum();
        encoder
            .encode_descriptor(
                "etcd_disk_wal_fsync_duration",
                "Time of writing and syncing the Raft log",
                Some(&Unit::Seconds),
                MetricType::Histogram,
            )?
            .encode_histogram::<NoLabelSet>(total.as_secs_f64(), count, &buckets, None)
    }
}

/// etcd's metrics.
#[derive(Debug, Default)]
pub(crate) struct Dashboards {
    has_leader: Number,
    is_leader: Number,
    is_learner: Number,
    leader_changes: Counter<u64, AtomicU64>,
    committed: Number,
    applied: Number,
    size: Number,
    size_in_use: Number,
    keys: Number,
    revision: Number,
    compacted: Number,
    syncs: Arc<Syncs>,
    /// The leader that was seen last.
    leader: Option<NodeId>,
}

fn number(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

impl Dashboards {
    /// Registers them.
    pub(crate) fn new(registry: &mut Registry) -> Dashboards {
        let all = Dashboards::default();
        registry.register_collector(Box::new(all.syncs.clone()));
        let server = registry.sub_registry_with_prefix("etcd_server");
        let mut gauge = |name: &str, help: &str, gauge: &Number| server.register(name, help, gauge.clone());
        gauge("has_leader", "Whether a leader is known", &all.has_leader);
        gauge("is_leader", "Whether this member leads", &all.is_leader);
        gauge("is_learner", "Whether this member is a learner", &all.is_learner);
        // Gauges with a counter's name, as in etcd.
        gauge(
            "proposals_committed_total",
            "Last log entry known to be committed",
            &all.committed,
        );
        gauge("proposals_applied_total", "Last log entry applied", &all.applied);
        let changes = all.leader_changes.clone();
        server.register("leader_changes_seen", "Changes of leader seen", changes);
        let mvcc = registry.sub_registry_with_prefix("etcd_mvcc");
        mvcc.register(
            "db_total_size_in_bytes",
            "Bytes of the state on disk",
            all.size.clone(),
        );
        mvcc.register(
            "db_total_size_in_use_in_bytes",
            "The same: space comes back by itself",
            all.size_in_use.clone(),
        );
        let debugging = registry.sub_registry_with_prefix("etcd_debugging_mvcc");
        debugging.register(
            "keys_total",
            "Keys, deleted and not yet compacted ones included",
            all.keys.clone(),
        );
        debugging.register(
            "current_revision",
            "Revision of the last change applied",
            all.revision.clone(),
        );
        debugging.register(
            "compact_revision",
            "Oldest readable revision",
            all.compacted.clone(),
        );
        all
    }

    /// Brings them up to date.
    pub(crate) fn update(&mut self, node: &Node, raft: &Status) {
        let leader = raft.leader.leader;
        self.has_leader.set(i64::from(leader.is_some()));
        self.is_leader.set(i64::from(leader == Some(node.id)));
        let own = raft.membership.get(node.id);
        self.is_learner.set(i64::from(own.is_some_and(|own| own.learner)));
        if leader.is_some() && leader != self.leader {
            self.leader = leader;
            self.leader_changes.inc();
        }
        let times = (raft.sync_classes.clone(), raft.sync_total);
        *self.syncs.0.lock().unwrap_or_else(PoisonError::into_inner) = times;
        self.committed.set(number(raft.commit));
        self.applied.set(number(raft.applied));
        let size = number(node.shared.tables.engine.disk_bytes().unwrap_or(0));
        self.size.set(size);
        self.size_in_use.set(size);
        let store = node.shared.store();
        self.keys.set(number(store.index().len()));
        self.revision.set(store.revision());
        self.compacted.set(store.compacted());
    }
}
