//! What a node's guard, its agent and the control plane tell each other: two keys in the store, and a file on the node.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// Version of the record and of the file; readers take a higher one for one that they cannot read.
pub const FORMAT: u32 = 1;
/// The file in the guard's data folder.
pub const STATE_FILE: &str = "guard.json";
/// Below it, the guards' records.
pub const RECORDS: &str = "/plasmavmc/v1/guards/";
/// Below it, what hangs on the guards' leases.
pub const LEASES: &str = "/plasmavmc/v1/guardleases/";

/// Key of a guard's record.
#[must_use]
pub fn record_key(node: &str) -> String {
    format!("{RECORDS}{node}")
}

/// Key that hangs on a guard's lease.
#[must_use]
pub fn lease_key(node: &str) -> String {
    format!("{LEASES}{node}")
}

/// A guard's record. It stays when the guard is gone: its revision tells one absence from the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardRecord {
    /// [`FORMAT`].
    pub version: u32,
    /// The node.
    pub node: String,
    /// The boot of its machine.
    pub boot_id: String,
    /// Which run of the guard.
    pub incarnation: String,
    /// Set by the control plane: from then on the node runs nothing movable, until its guard writes the record anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fenced_at_ms: Option<i64>,
}

/// A process that the guard has made stand still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoppedProcess {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot.
    pub start_ticks: u64,
}

/// The guard's file. All times are milliseconds of CLOCK_BOOTTIME, in the boot that it names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardState {
    /// [`FORMAT`].
    pub format: u32,
    /// The boot of the machine.
    pub boot_id: String,
    /// The last proof: the next guard counts from here.
    pub basis_ms: Option<u64>,
    /// Until when a movable guest may be started.
    pub start_until_ms: Option<u64>,
    /// Since when the lease is held without a loss: what the agent was told earlier may not be true any more.
    #[serde(default)]
    pub held_since_ms: Option<u64>,
    /// Guests that stand still.
    #[serde(default)]
    pub stopped: Vec<StoppedProcess>,
}

/// The file in a guard's data folder; none when there is none, or none that can be read.
#[must_use]
pub fn read_state(data_dir: &Path) -> Option<GuardState> {
    let bytes = std::fs::read(data_dir.join(STATE_FILE)).ok()?;
    let state: GuardState = serde_json::from_slice(&bytes).ok()?;
    (state.format <= FORMAT).then_some(state)
}
