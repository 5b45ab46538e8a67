//! What goes over the REST interface.

use hearth_types::Name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a zone is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ZoneKind {
    /// The cluster's internal zone.
    Domain,
    /// The names below a project's own.
    Project,
    /// The names of a network's addresses.
    Reverse,
}

/// A zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Zone {
    /// Its name, with the last dot.
    pub name: String,
    /// What it is for.
    pub kind: ZoneKind,
    /// The project that it belongs to; none: the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub project: Option<Name>,
    /// Serial number that this server answers with.
    pub serial: u32,
}

/// Zones by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ZoneList {
    /// The zones that the caller may see.
    pub zones: Vec<Zone>,
}

/// What the import of a zone file changed, or would change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ZoneImport {
    /// Names that were not there before.
    pub added: usize,
    /// Names whose records are others now.
    pub changed: usize,
    /// Names that stand in the zone and not in the file, and are gone now.
    pub removed: usize,
    /// Names that were already as the file has them.
    pub unchanged: usize,
    /// Record sets of the file that the server makes itself and so did not take: SOA, the zone's NS, and the
    /// addresses of its name server.
    pub passed_over: usize,
    /// Transactions that the change takes: with one it is wholly made or not at all. With more, each name is as a
    /// whole before or after at any time, and the same import again completes one that broke off.
    pub transactions: usize,
    /// Nothing was changed: it was only asked for.
    pub dry_run: bool,
}
