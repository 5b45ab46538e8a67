//! What goes over the REST interface.

use hearth_types::PageToken;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Time to live of a record when the request names none, in seconds.
const DEFAULT_TTL_S: u32 = 300;

/// Where a record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Source {
    /// Somebody added it here.
    Stored,
    /// A running VM has this name.
    Vm,
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(super) struct Record {
    /// Whole name, with the last dot.
    pub(super) name: String,
    /// Type: `A`, `TXT`, `TYPE65280`.
    #[serde(rename = "type")]
    pub(super) rtype: String,
    /// Time to live in seconds.
    pub(super) ttl_s: u32,
    /// Data in presentation format (RFC 1035, RFC 3597).
    pub(super) data: String,
    /// Where it comes from.
    pub(super) source: Source,
}

/// A page of records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(super) struct RecordList {
    /// Records by name; all of a name are on one page.
    pub(super) records: Vec<Record>,
    /// Give this as `page` for the next page; none: this is the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(super) next_page: Option<PageToken>,
}

/// A record to add.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRecord {
    /// Whole name; the last dot may be missing.
    pub(super) name: String,
    /// Type: `A`, `TXT`, `TYPE65280`.
    #[serde(rename = "type")]
    pub(super) rtype: String,
    /// Time to live in seconds, 0 to 2147483647.
    #[serde(default = "default_ttl_s")]
    pub(super) ttl_s: u32,
    /// Data in presentation format (RFC 1035, RFC 3597).
    pub(super) data: String,
}

const fn default_ttl_s() -> u32 {
    DEFAULT_TTL_S
}

/// Which page of a list.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Names on a page, 1 to 1000; 500 when not given.
    pub(super) limit: Option<u32>,
    /// `next_page` of the page before.
    #[param(value_type = Option<String>)]
    pub(super) page: Option<PageToken>,
}

/// What to delete.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteQuery {
    /// Data of the one record to delete; without it all records of the name and type go.
    pub(super) data: Option<String>,
}

/// How to import a zone file.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ImportQuery {
    /// Only say what would change.
    #[serde(default)]
    pub(super) dry_run: bool,
}

/// An error.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "describes hearth_service::error::ErrorBody, which knows no OpenAPI"
)]
pub(super) struct ErrorBody {
    /// The error.
    error: ErrorDetail,
}

/// What went wrong.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "describes hearth_service::error::ErrorDetail, which knows no OpenAPI"
)]
pub(super) struct ErrorDetail {
    /// One of a closed set, such as `not_found`.
    kind: String,
    /// What happened and why.
    message: String,
    /// What to do next.
    hint: Option<String>,
    /// The request, as it stands in the server's log.
    request_id: Option<String>,
}
