//! Bodies and answers: every struct refuses members that it does not know.

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

/// An answer; an empty body goes with 204.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn done() -> Self {
        Self {
            status: StatusCode::NO_CONTENT,
            body: String::new(),
        }
    }

    pub(crate) fn data(value: &Value) -> Self {
        Self {
            status: StatusCode::OK,
            body: value.to_string(),
        }
    }

    pub(crate) fn fault(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            body: json!({"fault_message": message.into()}).to_string(),
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) enum ActionType {
    FlushMetrics,
    InstanceStart,
    SendCtrlAltDel,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Action {
    pub(crate) action_type: ActionType,
}

#[derive(Debug, Deserialize)]
pub(crate) enum HugePages {
    None,
    Transparent,
    #[serde(rename = "2M")]
    TwoMib,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineConfig {
    pub(crate) vcpu_count: u8,
    pub(crate) mem_size_mib: usize,
    #[serde(default)]
    pub(crate) smt: bool,
    #[serde(default, rename = "track_dirty_pages")]
    pub(crate) _track_dirty_pages: bool,
    #[serde(default)]
    pub(crate) huge_pages: Option<HugePages>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootSource {
    pub(crate) kernel_image_path: String,
    pub(crate) initrd_path: Option<String>,
    pub(crate) boot_args: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) enum CacheType {
    Unsafe,
    Writeback,
}

#[derive(Debug, Deserialize)]
pub(crate) enum IoEngine {
    Sync,
    Async,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenBucket {
    #[serde(rename = "size")]
    pub(crate) _size: u64,
    #[serde(rename = "one_time_burst")]
    pub(crate) _one_time_burst: Option<u64>,
    #[serde(rename = "refill_time")]
    pub(crate) _refill_time: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateLimiter {
    #[serde(rename = "bandwidth")]
    pub(crate) _bandwidth: Option<TokenBucket>,
    #[serde(rename = "ops")]
    pub(crate) _ops: Option<TokenBucket>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Drive {
    pub(crate) drive_id: String,
    #[serde(rename = "partuuid")]
    pub(crate) _partuuid: Option<String>,
    pub(crate) is_root_device: bool,
    #[serde(rename = "cache_type")]
    pub(crate) _cache_type: Option<CacheType>,
    pub(crate) is_read_only: Option<bool>,
    pub(crate) path_on_host: Option<String>,
    #[serde(rename = "rate_limiter")]
    pub(crate) _rate_limiter: Option<RateLimiter>,
    #[serde(rename = "io_engine")]
    pub(crate) _io_engine: Option<IoEngine>,
    pub(crate) socket: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkInterface {
    pub(crate) iface_id: String,
    pub(crate) host_dev_name: String,
    pub(crate) guest_mac: Option<String>,
    pub(crate) mtu: Option<u16>,
    #[serde(rename = "rx_rate_limiter")]
    pub(crate) _rx_rate_limiter: Option<RateLimiter>,
    #[serde(rename = "tx_rate_limiter")]
    pub(crate) _tx_rate_limiter: Option<RateLimiter>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Logger {
    pub(crate) log_path: Option<String>,
    pub(crate) level: Option<String>,
    #[serde(rename = "show_level")]
    pub(crate) _show_level: Option<bool>,
    #[serde(rename = "show_log_origin")]
    pub(crate) _show_log_origin: Option<bool>,
    #[serde(rename = "module")]
    pub(crate) _module: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metrics {
    pub(crate) metrics_path: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entropy {
    #[serde(rename = "rate_limiter")]
    pub(crate) _rate_limiter: Option<RateLimiter>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) enum MmdsVersion {
    V1,
    V2,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MmdsConfig {
    #[serde(rename = "version")]
    pub(crate) _version: Option<MmdsVersion>,
    pub(crate) network_interfaces: Vec<String>,
    pub(crate) ipv4_address: Option<std::net::Ipv4Addr>,
    #[serde(default, rename = "imds_compat")]
    pub(crate) _imds_compat: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) enum VmState {
    Paused,
    Resumed,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vm {
    pub(crate) state: VmState,
}
