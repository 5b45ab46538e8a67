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

/// A TSIG key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Key {
    /// Its name, with the last dot.
    pub name: String,
    /// `hmac-sha256`, `hmac-sha384` or `hmac-sha512`.
    pub algorithm: String,
    /// Who made it, and whose rights it has.
    pub owner: String,
    /// It may transfer whole zones.
    pub transfer: bool,
}

/// Keys by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyList {
    /// The caller's keys; everybody's, for those who edit the cluster's own zones.
    pub keys: Vec<Key>,
}

/// A key to make. It has the rights of whoever makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// Its name, a domain name such as `office.example`.
    pub name: String,
    /// `hmac-sha256`, `hmac-sha384` or `hmac-sha512`.
    #[serde(default = "default_algorithm")]
    pub algorithm: String,
    /// The secret in base64; without it one is made up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Let it transfer whole zones. That needs the right to see the cluster's own zones.
    #[serde(default)]
    pub transfer: bool,
}

fn default_algorithm() -> String {
    "hmac-sha256".to_owned()
}

/// A key that was made. The secret is shown this once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MadeKey {
    /// Its name, with the last dot.
    pub name: String,
    /// Its algorithm.
    pub algorithm: String,
    /// The secret in base64.
    pub secret: String,
    /// It may transfer whole zones.
    pub transfer: bool,
}
