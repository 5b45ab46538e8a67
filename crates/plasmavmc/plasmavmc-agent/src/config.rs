//! Configuration of the agent (`hearthd agent`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use chainfire_client::ClientConfig;
use hearth_service::config::{ServiceConfig, TlsConfig};
use hearth_types::Name;
use plasmavmc_hypervisor::Preference;
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Process name, data folder, log level.
    pub service: ServiceConfig,
    /// The node's certificate (`spiffe://DOMAIN/node/NODE`).
    pub tls: TlsConfig,
    /// Where Chainfire is: the node's lease is kept there, whether or not a hub is up.
    pub chainfire_client: ClientConfig,
    /// The agent's own table.
    pub agent: AgentConfig,
}

/// How guests are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkPreference {
    /// Routed where this process may and can, else user; the log and the node's status say which and why.
    #[default]
    Auto,
    /// A tap device per guest and routes; the agent does not start where that is impossible.
    Routed,
    /// QEMU's user network with ports forwarded from a loopback address; needs no privilege.
    User,
}

/// The `[agent]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// Name of the node; the certificate must be this node's.
    pub node: Name,
    /// `host:port` of each control-plane replica; any one of them will do.
    pub hubs: Vec<String>,
    /// How guests are connected.
    #[serde(default)]
    pub network: NetworkPreference,
    /// What guests run on.
    #[serde(default)]
    pub accelerator: Preference,
    /// Hypervisors beside QEMU, by name, each with settings that only its backend reads.
    #[serde(default)]
    pub hypervisors: BTreeMap<String, serde_json::Value>,
    /// DNS server that guests' questions are relayed to.
    pub resolver: SocketAddr,
    /// Virtual CPUs that may be given to guests; 0: as many as the machine has.
    #[serde(default)]
    pub vcpus: u32,
    /// Memory that may be given to guests, in MiB; 0: the machine's less [`MEMORY_RESERVE_MIB`].
    #[serde(default)]
    pub memory_mib: u64,
    /// The tiny image, whose kernel `accelerator = "auto"` tries KVM with.
    #[serde(default)]
    pub probe_image: Option<PathBuf>,
    /// Folder of the verdict on KVM; agents of one machine may share it. Default: the data folder.
    #[serde(default)]
    pub verdict_dir: Option<PathBuf>,
    /// Images that no guest uses are removed, oldest first, while the cache is larger than this.
    #[serde(default = "default_image_cache_mib")]
    pub image_cache_mib: u64,
    /// Loopback address for `/metrics`, `/readyz` and the like; none: no such port.
    #[serde(default)]
    pub metrics_listen: Option<SocketAddr>,
    /// TCP ports of guests that are forwarded in a user network.
    #[serde(default = "default_forward_ports")]
    pub forward_ports: Vec<u16>,
    /// Whether guests in a user network may open connections. They then reach this machine's loopback
    /// services too, which is why the default is no.
    #[serde(default)]
    pub user_outbound: bool,
    /// Data folder of the node's guard. Without one no guest that may be restarted elsewhere is started here.
    #[serde(default)]
    pub guard_dir: Option<PathBuf>,
    /// Labels of the node, for placement.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Memory that `memory_mib = 0` leaves to the machine itself.
pub const MEMORY_RESERVE_MIB: u64 = 1024;

fn default_image_cache_mib() -> u64 {
    20 * 1024
}

fn default_forward_ports() -> Vec<u16> {
    vec![22, 7]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_is_read_and_an_unknown_key_is_not() {
        let text = r#"
            {"service": {"name": "agent-node01", "data_dir": "/d"},
             "tls": {"ca": "/a", "cert": "/b", "key": "/c"},
             "chainfire_client": {"endpoints": ["127.0.0.1:2379"]},
             "agent": {"node": "node01", "hubs": ["127.0.0.1:8444"], "network": "auto",
                       "accelerator": "auto", "resolver": "127.0.0.1:5300", "vcpus": 0, "memory_mib": 0}}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        assert_eq!(config.agent.forward_ports, [22, 7]);
        assert_eq!(config.agent.network, NetworkPreference::Auto);
        assert!(serde_json::from_str::<Config>(&text.replace("\"vcpus\"", "\"vcpu\"")).is_err());
    }
}
