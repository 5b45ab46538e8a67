//! The agent's metrics, all of them read from what the agent holds anyway.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use hearth_service::health::Health;
use plasmavmc_client::agent::VmState;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::gauge::Gauge;

use crate::node::Node;

/// Reads the node when the metrics are asked for.
#[derive(Debug)]
struct Guests(Weak<Node>);

impl Collector for Guests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(node) = self.0.upgrade() else {
            return Ok(());
        };
        let mut states: BTreeMap<&str, i64> = BTreeMap::new();
        for observed in node.observations.all().values() {
            *states
                .entry(observed.state().as_str_name().trim_start_matches("VM_STATE_"))
                .or_default() += 1;
        }
        for state in [VmState::Running, VmState::Stopped, VmState::Failed] {
            states
                .entry(state.as_str_name().trim_start_matches("VM_STATE_"))
                .or_default();
        }
        let family = Family::<Vec<(String, String)>, Gauge>::default();
        for (state, count) in states {
            family
                .get_or_create(&vec![("state".to_owned(), state.to_ascii_lowercase())])
                .set(count);
        }
        let metric = encoder.encode_descriptor(
            "hearth_agent_vms",
            "VMs of this node by observed state",
            None,
            family.metric_type(),
        )?;
        family.encode(metric)?;
        let memory = ConstGauge::new(node.status().memory_bytes.cast_signed());
        let metric = encoder.encode_descriptor(
            "hearth_agent_memory_bytes",
            "Memory that may be given to guests",
            None,
            memory.metric_type(),
        )?;
        memory.encode(metric)
    }
}

/// Registers them.
pub(crate) fn register(health: &Health, node: &Arc<Node>) {
    let guests = Guests(Arc::downgrade(node));
    health.register(|registry| registry.register_collector(Box::new(guests)));
}
