//! The records under `/aegis/v1/public/`: written by Aegis, read by [`crate::Snapshot`], known to nobody else.
//!
//! JSON, each with a version. A reader ignores what it does not know; a record that it cannot read grants nothing.
//! Every transaction that changes anything here also writes [`POLICY_KEY`]: that is how a reader proves that it has
//! seen everything.

use hearth_types::{BindingId, FolderId, Name, OrganisationId, PrincipalId, ProjectId};
use iam_authz::{Node, PrincipalKind, Role, Subject};
use serde::{Deserialize, Serialize};

/// Everything that the snapshot is made of.
pub const PUBLIC_PREFIX: &str = "/aegis/v1/public/";
/// Written by every transaction that changes anything under [`PUBLIC_PREFIX`].
pub const POLICY_KEY: &str = "/aegis/v1/public/policy";
/// The version that is written.
pub const VERSION: u32 = 1;

/// The key of a user or service account.
#[must_use]
pub fn principal_key(id: PrincipalId) -> String {
    format!("{PUBLIC_PREFIX}principals/{id}")
}

/// The key of a group.
#[must_use]
pub fn group_key(id: PrincipalId) -> String {
    format!("{PUBLIC_PREFIX}groups/{id}")
}

/// The key of an organisation.
#[must_use]
pub fn organisation_key(id: OrganisationId) -> String {
    format!("{PUBLIC_PREFIX}organisations/{id}")
}

/// The key of a project.
#[must_use]
pub fn project_key(id: ProjectId) -> String {
    format!("{PUBLIC_PREFIX}projects/{id}")
}

/// The key of a binding.
#[must_use]
pub fn binding_key(id: BindingId) -> String {
    format!("{PUBLIC_PREFIX}bindings/{id}")
}

/// The key of the public half of a signing key.
#[must_use]
pub fn signing_key_key(kid: &str) -> String {
    format!("{PUBLIC_PREFIX}keys/{kid}")
}

/// [`POLICY_KEY`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// [`VERSION`].
    pub v: u32,
    /// Counts the changes.
    pub generation: u64,
}

/// A user or service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrincipalRecord {
    /// [`VERSION`].
    pub v: u32,
    /// What it is.
    pub kind: PrincipalKind,
    /// Its name.
    pub name: Name,
    /// Nothing is allowed to it.
    pub disabled: bool,
    /// Tokens of a smaller epoch are void.
    pub epoch: u64,
    /// The project of a service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectId>,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// [`VERSION`].
    pub v: u32,
    /// Its name.
    pub name: Name,
    /// Its members.
    pub members: Vec<Subject>,
}

/// An organisation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrganisationRecord {
    /// [`VERSION`].
    pub v: u32,
    /// Its name.
    pub name: Name,
}

/// A project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectRecord {
    /// [`VERSION`].
    pub v: u32,
    /// Its name.
    pub name: Name,
    /// Who owns it.
    pub organisation: OrganisationId,
    /// The folder it lies in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<FolderId>,
}

/// A binding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindingRecord {
    /// [`VERSION`].
    pub v: u32,
    /// To whom.
    pub subject: Subject,
    /// What.
    pub role: Role,
    /// Where.
    pub node: Node,
}

/// The public half of a signing key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKeyRecord {
    /// [`VERSION`].
    pub v: u32,
    /// The key.
    pub key: iam_authn::token::PublicKey,
}
