//! What the world is made of.

use std::fmt;

use hearth_types::{BindingId, FolderId, Name, OrganisationId, PrincipalId, ProjectId};
use serde::{Deserialize, Serialize};

use crate::Role;

/// What a principal in the world is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrincipalKind {
    /// A person.
    User,
    /// A program that signs in with a secret.
    ServiceAccount,
}

/// A user or a service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// What it is.
    pub kind: PrincipalKind,
    /// Its name, unique among its kind (service accounts: in their project).
    pub name: Name,
    /// Nothing is allowed to it, whatever is bound.
    pub disabled: bool,
    /// Tokens of a smaller epoch are void.
    pub epoch: u64,
    /// The project of a service account.
    pub project: Option<ProjectId>,
}

/// A group: its members have what is bound to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name, unique among groups.
    pub name: Name,
    /// Users, service accounts, groups.
    pub members: Vec<Subject>,
}

/// An organisation: owns folders and projects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Organisation {
    /// Its name, unique in the cluster.
    pub name: Name,
}

/// A project: owns resources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Its name, unique in the cluster, because it is a part of DNS names.
    pub name: Name,
    /// The organisation that owns it.
    pub organisation: OrganisationId,
    /// The folder it lies in; `None` when directly under the organisation.
    pub folder: Option<FolderId>,
}

/// Whom a binding is for, and who asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "id")]
pub enum Subject {
    /// A person.
    User(PrincipalId),
    /// A program that signs in with a secret.
    ServiceAccount(PrincipalId),
    /// A group; never asks itself.
    Group(PrincipalId),
    /// A process known by its certificate: `service/NAME`, `node/NAME`, `operator/NAME`.
    Workload(String),
}

impl Subject {
    /// The id, of everything but workloads.
    #[must_use]
    pub const fn id(&self) -> Option<PrincipalId> {
        match self {
            Self::User(id) | Self::ServiceAccount(id) | Self::Group(id) => Some(*id),
            Self::Workload(_) => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(id) => write!(f, "user/{id}"),
            Self::ServiceAccount(id) => write!(f, "service-account/{id}"),
            Self::Group(id) => write!(f, "group/{id}"),
            Self::Workload(path) => write!(f, "workload/{path}"),
        }
    }
}

/// A place in the hierarchy where a role can be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "id")]
pub enum Node {
    /// The whole cluster.
    Root,
    /// An organisation and what it owns.
    Organisation(OrganisationId),
    /// A folder and what lies in it.
    Folder(FolderId),
    /// A project and its resources.
    Project(ProjectId),
}

impl Node {
    /// The place as the target of a question.
    #[must_use]
    pub const fn as_resource(&self) -> ResourceRef {
        match self {
            Self::Root => ResourceRef::Root,
            Self::Organisation(id) => ResourceRef::Organisation(*id),
            Self::Folder(id) => ResourceRef::Folder(*id),
            Self::Project(id) => ResourceRef::Project(*id),
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::Organisation(id) => write!(f, "organisation/{id}"),
            Self::Folder(id) => write!(f, "folder/{id}"),
            Self::Project(id) => write!(f, "project/{id}"),
        }
    }
}

/// What a question is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ResourceRef {
    /// The whole cluster; images, nodes, users and groups live here.
    Root,
    /// An organisation.
    Organisation(OrganisationId),
    /// A folder.
    Folder(FolderId),
    /// A project.
    Project(ProjectId),
    /// A resource in a project. It need not exist: whether it does is the service's business.
    Child {
        /// The project that owns it, as the store says; never as the request says.
        project: ProjectId,
        /// `vm`, `zone`, ...
        kind: &'static str,
        /// Its id in its service.
        id: String,
    },
}

impl ResourceRef {
    /// The lowest place of the hierarchy at or above the resource.
    #[must_use]
    pub const fn node(&self) -> Node {
        match self {
            Self::Root => Node::Root,
            Self::Organisation(id) => Node::Organisation(*id),
            Self::Folder(id) => Node::Folder(*id),
            Self::Project(id) | Self::Child { project: id, .. } => Node::Project(*id),
        }
    }
}

impl fmt::Display for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Child { project, kind, id } => write!(f, "project/{project}/{kind}/{id}"),
            other => other.node().fmt(f),
        }
    }
}

/// A grant: `subject` has `role` on `node` and everything beneath it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Its id.
    pub id: BindingId,
    /// To whom.
    pub subject: Subject,
    /// What.
    pub role: Role,
    /// Where.
    pub node: Node,
}
