//! The configuration file of `hearthd plasmavmc`.

use std::net::SocketAddr;

use hearth_service::config::{ServiceConfig, TlsConfig};
use plasmavmc_core::{Limits, Network, Policy, Weigher};
use serde::{Deserialize, Serialize};

use crate::images::ImageLimits;

/// The whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name, data folder, log level.
    pub service: ServiceConfig,
    /// Our certificate.
    pub tls: TlsConfig,
    /// Where Chainfire is.
    pub chainfire_client: chainfire_client::ClientConfig,
    /// PlasmaVMC's own.
    pub plasmavmc: PlasmaConfig,
}

/// The `[plasmavmc]` table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlasmaConfig {
    /// Address of the one HTTPS port: REST for people, gRPC for agents.
    pub listen: SocketAddr,
    /// The cluster's domain: VMs are `NAME.PROJECT.DOMAIN`.
    pub domain: String,
    /// Pool of guests' addresses on nodes with routed networks.
    pub routed_network: Network,
    /// Pool of loopback addresses on nodes with user-mode networks.
    pub user_network: Network,
    /// Aegis's public URL, the issuer of tokens.
    pub aegis_url: String,
    /// Virtual CPUs that may be claimed per hundred that a node has.
    #[serde(default = "default_vcpu_percent")]
    pub vcpu_percent: u32,
    /// Disk that may be claimed per hundred bytes that a node has; disks are sparse.
    #[serde(default = "default_disk_percent")]
    pub disk_percent: u32,
    /// Whether VMs are spread over nodes or packed onto few.
    #[serde(default)]
    pub placement: Weigher,
    /// Largest image file, in bytes.
    #[serde(default = "default_max_image_bytes")]
    pub max_image_bytes: u64,
    /// Largest disk of an image, in bytes.
    #[serde(default = "default_max_image_disk_bytes")]
    pub max_image_disk_bytes: u64,
    /// Seconds between two sweeps of the background reconciler, at least 1.
    #[serde(default = "default_sweep_s")]
    pub sweep_s: u64,
    /// Seconds for which a request under an idempotency key is remembered, so that its repetition is answered alike.
    #[serde(default = "default_request_memory_s")]
    pub request_memory_s: u64,
    /// Seconds for which an operation is remembered after its end.
    #[serde(default = "default_operation_memory_s")]
    pub operation_memory_s: u64,
    /// Seconds after which an operation that is not done has failed; what was asked for is still being tried.
    #[serde(default = "default_operation_limit_s")]
    pub operation_limit_s: u64,
}

fn default_vcpu_percent() -> u32 {
    Policy::default().vcpu_percent
}

fn default_disk_percent() -> u32 {
    Policy::default().disk_percent
}

const fn default_max_image_bytes() -> u64 {
    64 << 30
}

const fn default_max_image_disk_bytes() -> u64 {
    1 << 40
}

const fn default_request_memory_s() -> u64 {
    24 * 3600
}

const fn default_operation_memory_s() -> u64 {
    7 * 24 * 3600
}

const fn default_operation_limit_s() -> u64 {
    3600
}

const fn default_sweep_s() -> u64 {
    30
}

impl PlasmaConfig {
    pub(crate) fn policy(&self) -> Policy {
        Policy {
            vcpu_percent: self.vcpu_percent,
            disk_percent: self.disk_percent,
            weigher: self.placement,
            ..Policy::default()
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits::default()
    }

    pub(crate) const fn image_limits(&self) -> ImageLimits {
        ImageLimits {
            max_bytes: self.max_image_bytes,
            max_virtual_bytes: self.max_image_disk_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_architecture_document_is_read_and_unknown_keys_are_not() {
        let text = r#"{"listen":"127.0.0.1:8444","domain":"hearth.internal","routed_network":"10.77.0.0/16",
            "user_network":"127.77.0.0/16","aegis_url":"https://127.0.0.1:8443"}"#;
        let config: PlasmaConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.policy().vcpu_percent, 400);
        assert!(serde_json::from_str::<PlasmaConfig>(&text.replace("domain", "domian")).is_err());
        assert!(serde_json::from_str::<PlasmaConfig>(&text.replace("10.77.0.0/16", "10.77.0.0/99")).is_err());
    }
}
