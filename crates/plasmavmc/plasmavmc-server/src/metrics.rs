//! What this server counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// All metrics. Clones share the numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) vms_created: Counter,
    pub(crate) placements_refused: Counter,
    pub(crate) placements_retried: Counter,
    pub(crate) agent_sessions: Gauge,
    pub(crate) observations_accepted: Counter,
    pub(crate) observations_refused: Counter,
    pub(crate) vms_released: Counter,
    pub(crate) consoles_open: Gauge,
    pub(crate) leftovers_deleted: Counter,
    pub(crate) records_trimmed: Counter,
    pub(crate) operations_settled: Counter,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("plasmavmc");
        registry.register(
            "vms_created",
            "VMs created by this server",
            self.vms_created.clone(),
        );
        registry.register(
            "placements_refused",
            "Creations that no node could take",
            self.placements_refused.clone(),
        );
        registry.register(
            "placements_retried",
            "Placements decided again because somebody else was faster",
            self.placements_retried.clone(),
        );
        registry.register(
            "agent_sessions",
            "Agents connected to this server",
            self.agent_sessions.clone(),
        );
        registry.register(
            "observations_accepted",
            "Reports of agents taken over",
            self.observations_accepted.clone(),
        );
        registry.register(
            "observations_refused",
            "Reports of agents refused: wrong epoch, old, or impossible",
            self.observations_refused.clone(),
        );
        registry.register(
            "vms_released",
            "VMs whose last trace was freed",
            self.vms_released.clone(),
        );
        registry.register(
            "consoles_open",
            "Consoles open through this server",
            self.consoles_open.clone(),
        );
        registry.register(
            "leftovers_deleted",
            "Records that belonged to nothing and were deleted by a sweep",
            self.leftovers_deleted.clone(),
        );
        registry.register(
            "records_trimmed",
            "Records of requests and finished operations deleted because they were kept long enough",
            self.records_trimmed.clone(),
        );
        registry.register(
            "operations_settled",
            "Operations that the reconciler advanced or ended because nothing else did",
            self.operations_settled.clone(),
        );
    }
}
