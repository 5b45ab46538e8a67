//! The records under `/aegis/v1/secret/` and `/aegis/v1/audit/`, which nobody but Aegis may read.
//!
//! JSON, each with a version. Of secrets, only hashes and sealed forms stand here.

use hearth_types::PrincipalId;
use iam_authn::SecretHash;
use serde::{Deserialize, Serialize};

use crate::seal::Sealed;

/// What is made at the first start.
pub const ROOT_KEY: &str = "/aegis/v1/secret/root";
/// Whether the first administrator exists.
pub const BOOTSTRAP_KEY: &str = "/aegis/v1/secret/bootstrap";
/// Signed-in sessions.
pub const SESSIONS: &str = "/aegis/v1/secret/sessions/";
/// Devices that wait for their person.
pub const DEVICES: &str = "/aegis/v1/secret/devices/";
/// The audit trail.
pub const AUDIT: &str = "/aegis/v1/audit/";
/// The version that is written.
pub const VERSION: u32 = 1;

/// The key of a user's password.
#[must_use]
pub fn password_key(user: PrincipalId) -> String {
    format!("/aegis/v1/secret/passwords/{user}")
}

/// The prefix of a service account's secrets.
#[must_use]
pub fn account_secrets(account: PrincipalId) -> String {
    format!("/aegis/v1/secret/service-accounts/{account}/")
}

/// The key of a session.
#[must_use]
pub fn session_key(handle: &str) -> String {
    format!("{SESSIONS}{handle}")
}

/// The key of a waiting device.
#[must_use]
pub fn device_key(handle: &str) -> String {
    format!("{DEVICES}{handle}")
}

/// The key that leads from a user code to its device.
#[must_use]
pub fn user_code_key(code: &str) -> String {
    format!("/aegis/v1/secret/user-codes/{code}")
}

/// [`ROOT_KEY`]: private keys, sealed.
#[derive(Debug, Serialize, Deserialize)]
pub struct RootRecord {
    /// [`VERSION`].
    pub v: u32,
    /// The cluster CA's private key (PEM).
    pub ca_key: Sealed,
    /// Id of the key that signs tokens.
    pub signing_kid: String,
    /// That key (PKCS#8, DER).
    pub signing_key: Sealed,
}

/// [`BOOTSTRAP_KEY`].
#[derive(Debug, Serialize, Deserialize)]
pub struct BootstrapRecord {
    /// [`VERSION`].
    pub v: u32,
    /// Hash of the token.
    pub token: SecretHash,
    /// Once true, true for ever.
    pub used: bool,
}

/// A user's password.
#[derive(Debug, Serialize, Deserialize)]
pub struct PasswordRecord {
    /// [`VERSION`].
    pub v: u32,
    /// argon2id, PHC string format.
    pub hash: String,
}

/// A secret of a service account.
#[derive(Debug, Serialize, Deserialize)]
pub struct AccountSecretRecord {
    /// [`VERSION`].
    pub v: u32,
    /// Its hash.
    pub hash: SecretHash,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

/// A signed-in session: one chain of refresh tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionRecord {
    /// [`VERSION`].
    pub v: u32,
    /// Whose.
    pub principal: PrincipalId,
    /// Through which client.
    pub client_id: String,
    /// Hash of the one refresh token that is valid.
    pub current: SecretHash,
    /// The principal's epoch at the sign-in.
    pub epoch: u64,
    /// When it ends unless used.
    pub idle_end_ms: u64,
    /// When it ends in any case.
    pub end_ms: u64,
}

/// How far a device has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum DeviceState {
    /// Nobody has entered the code yet.
    Pending,
    /// A person has approved.
    Approved {
        /// Who.
        principal: PrincipalId,
        /// The person's epoch then.
        epoch: u64,
    },
    /// A person has refused.
    Denied,
}

/// A device that waits for its person.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// [`VERSION`].
    pub v: u32,
    /// Hash of the device code.
    pub code: SecretHash,
    /// What the person types.
    pub user_code: String,
    /// Which client.
    pub client_id: String,
    /// When it ends.
    pub end_ms: u64,
    /// How far it has come.
    pub state: DeviceState,
}

/// Leads from a user code to its device.
#[derive(Debug, Serialize, Deserialize)]
pub struct UserCodeRecord {
    /// [`VERSION`].
    pub v: u32,
    /// The device's handle.
    pub device: String,
}

/// One act, written in the transaction of the act.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuditRecord {
    /// [`VERSION`].
    pub v: u32,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// Who, by id.
    pub actor: String,
    /// Who, by name.
    pub actor_name: String,
    /// The permission used, or the act.
    pub action: String,
    /// To what.
    pub target: String,
    /// The request.
    pub request_id: String,
    /// More, never a secret.
    pub detail: String,
}
