//! The types of Aegis's REST interface, as JSON.
//!
//! People and scripts name things by paths: a subject is `user/NAME`, `service-account/PROJECT/NAME`, `group/NAME` or
//! `workload/PATH`; a place is `root`, `organisation/NAME` or `project/NAME`.

use hearth_types::{BindingId, Name, OrganisationId, PrincipalId, ProjectId};
use iam_authz::Role;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The header of every answer to a change: the revision that it made. Servers' `at_least` waits for it.
pub const REVISION_HEADER: &str = "hearth-revision";
/// The grant type of a device's poll (RFC 8628 section 3.4).
pub const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// One page of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Give this as `page` to get the next ones; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page: Option<String>,
}

/// Which page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    /// Items on a page, 1 to 1000.
    pub limit: Option<u32>,
    /// `next_page` of the page before.
    pub page: Option<String>,
}

/// Tokens (RFC 6749 section 5.1).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenResponse {
    /// For `Authorization: Bearer`.
    pub access_token: String,
    /// `Bearer`.
    pub token_type: String,
    /// Seconds until the access token expires.
    pub expires_in: u64,
    /// Gets the next pair, once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
}

impl std::fmt::Debug for TokenResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenResponse")
            .field("expires_in", &self.expires_in)
            .finish_non_exhaustive()
    }
}

/// A failure of an OAuth endpoint (RFC 6749 section 5.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OAuthError {
    /// `invalid_grant`, `authorization_pending`, ...
    pub error: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_description: Option<String>,
}

/// The form of `POST /oauth2/device_authorization` (RFC 8628 section 3.1).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceRequest {
    /// `hearth-cli` or another public client's name.
    pub client_id: String,
    /// Ignored: rights come from bindings, not from scopes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

/// Codes for a device (RFC 8628 section 3.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeviceAuthorization {
    /// What the device polls with.
    pub device_code: String,
    /// What the person types.
    pub user_code: String,
    /// Where.
    pub verification_uri: String,
    /// Where, with the code filled in.
    pub verification_uri_complete: String,
    /// Seconds.
    pub expires_in: u64,
    /// Seconds between polls, at least.
    pub interval: u64,
}

/// The form of `POST /oauth2/token`. Which fields are needed depends on the grant type.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct TokenRequest {
    /// The device grant, `refresh_token` or `client_credentials`.
    pub grant_type: String,
    /// The client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// A service account's secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<String>,
    /// Of the device grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_code: Option<String>,
    /// Of `refresh_token`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    /// Ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
}

impl std::fmt::Debug for TokenRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenRequest")
            .field("grant_type", &self.grant_type)
            .finish_non_exhaustive()
    }
}

/// The form of `POST /oauth2/revoke` (RFC 7009).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RevokeRequest {
    /// A refresh token.
    pub token: String,
    /// Ignored: the token says what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_type_hint: Option<String>,
}

/// Makes the first administrator, once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootstrapRequest {
    /// The content of the bootstrap token file.
    pub token: String,
    /// The administrator's name.
    #[schema(value_type = String)]
    pub username: Name,
    /// The administrator's password, at least 10 characters.
    pub password: String,
}

/// A sign-in with a password.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SessionRequest {
    /// The user's name.
    pub username: String,
    /// The user's password.
    pub password: String,
}

/// A change of one's own password. Other sign-ins of the user end.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordChange {
    /// The password so far.
    pub old_password: String,
    /// The password from now on, at least 10 characters.
    pub new_password: String,
}

macro_rules! hide_secrets {
    ($($type:ty => $name:literal),*) => {
        // Requests with secrets in them must never end up in a log as they are.
        $(impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!($name, " { .. }"))
            }
        })*
    };
}

hide_secrets!(
    BootstrapRequest => "BootstrapRequest",
    SessionRequest => "SessionRequest",
    PasswordChange => "PasswordChange",
    NewUser => "NewUser",
    NewSecret => "NewSecret"
);

/// Who the caller is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WhoAmI {
    /// `user/NAME`, `service-account/PROJECT/NAME` or `workload/PATH`.
    pub subject: String,
    /// The principal's id; absent for workloads.
    #[schema(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<PrincipalId>,
    /// What is bound to the caller, directly and through groups.
    pub bindings: Vec<BindingView>,
    /// Names of the projects that the caller may see.
    pub projects: Vec<String>,
}

/// An organisation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OrganisationView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: OrganisationId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
}

/// A new organisation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewOrganisation {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
}

/// A project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProjectView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: ProjectId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// The organisation that owns it.
    pub organisation: String,
}

/// A new project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewProject {
    /// Its name, unique in the cluster: it becomes a part of DNS names.
    #[schema(value_type = String)]
    pub name: Name,
    /// The organisation; `default` when absent.
    #[schema(value_type = Option<String>)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organisation: Option<Name>,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UserView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: PrincipalId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Whether everything is denied to it.
    pub disabled: bool,
}

/// A new user.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its first password, at least 10 characters.
    pub password: String,
}

/// What to change of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserChange {
    /// Disables (all tokens are void at once) or enables.
    pub disabled: bool,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceAccountView {
    /// Its id, which is also its `client_id`.
    #[schema(value_type = String)]
    pub id: PrincipalId,
    /// Its name, unique in the project.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its project's name.
    pub project: String,
    /// Whether everything is denied to it.
    pub disabled: bool,
}

/// A new service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewServiceAccount {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
}

/// A secret of a service account, shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewSecret {
    /// The secret's id.
    pub id: String,
    /// `client_id` of the client-credentials grant.
    pub client_id: String,
    /// `client_secret`.
    pub client_secret: String,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: PrincipalId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its members, as paths.
    pub members: Vec<String>,
}

/// A group as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupMembers {
    /// All of its members, as paths.
    pub members: Vec<String>,
}

/// A built-in role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RoleView {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The permissions that it gives.
    pub actions: Vec<String>,
}

/// A grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BindingView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: BindingId,
    /// To whom, as a path.
    pub subject: String,
    /// What.
    #[schema(value_type = String)]
    pub role: Role,
    /// Where, as a path.
    pub on: String,
}

/// A new grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBinding {
    /// To whom, as a path.
    pub subject: String,
    /// What.
    #[schema(value_type = String)]
    pub role: Role,
    /// Where, as a path.
    pub on: String,
}

/// Which grants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct BindingQuery {
    /// Those on this place (a path); `root` when absent.
    pub on: Option<String>,
    /// Items on a page, 1 to 1000.
    pub limit: Option<u32>,
    /// `next_page` of the page before.
    pub page: Option<String>,
}

/// May somebody do something?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// Whom it is about, as a path; the caller when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The permission.
    pub action: String,
    /// Where, as a path.
    pub on: String,
}

/// The answer, with its reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckAnswer {
    /// Whether.
    pub allowed: bool,
    /// What decided: `binding/ID` and `platform/NAME`. Empty when nothing permits.
    pub because: Vec<String>,
    /// The revision of the policy that decided.
    pub revision: i64,
}

/// One change, as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    /// Sorts by time.
    pub id: String,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// Who: a subject by id.
    pub actor: String,
    /// Who, by name at that time.
    pub actor_name: String,
    /// The permission that was used, or the act, for example `session.refresh-reuse`.
    pub action: String,
    /// To what.
    pub target: String,
    /// The request.
    pub request_id: String,
    /// More, for people. Never a secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Asks for a new certificate of the identity that asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// A signing request (PKCS#10, PEM). Only its key is used.
    pub csr: String,
}

/// The new certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RenewAnswer {
    /// The leaf, PEM.
    pub certificate: String,
    /// The authority, PEM.
    pub ca: String,
}
