//! Configuration of the guard (`hearthd guard`).

use std::path::PathBuf;

use chainfire_client::ClientConfig;
use hearth_service::config::{ServiceConfig, TlsConfig};
use hearth_types::Name;
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Process name, data folder, log level.
    pub service: ServiceConfig,
    /// The node's certificate (`spiffe://DOMAIN/node/NODE`).
    pub tls: TlsConfig,
    /// Every member of Chainfire: who has a leader is asked of all of them.
    pub chainfire_client: ClientConfig,
    /// The guard's own table.
    pub guard: GuardConfig,
}

/// The `[guard]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardConfig {
    /// Name of the node; the certificate must be this node's.
    pub node: Name,
    /// Data folder of the node's agent, where the records of its machines are.
    pub agent_data_dir: PathBuf,
}
