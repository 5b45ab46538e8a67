//! Identifiers of things that live in the cluster.
//!
//! Each is a UUID in its own type. Callers make them (UUIDv7, so that they sort by time); they are never reused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that is not an identifier of the kind asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind} id; it looks like 0199c2f2-7d3c-7a53-9b7e-2f6f0a4b1c2d")]
pub struct IdError {
    text: String,
    kind: &'static str,
}

// One macro, because the types differ in name alone and each needs the same seven impls.
macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Takes a UUID that the caller has made (UUIDv7) or read.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID itself.
            #[must_use]
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::try_parse(text).map(Self).map_err(|_| IdError { text: text.to_owned(), kind: $kind })
            }
        }
    };
}

id_type!(
    /// An organisation: the owner of folders, projects, users.
    OrganisationId,
    "organisation"
);
id_type!(
    /// A folder: groups projects inside an organisation.
    FolderId,
    "folder"
);
id_type!(
    /// A project: what resources belong to.
    ProjectId,
    "project"
);
id_type!(
    /// A user, a group, a service account or a workload.
    PrincipalId,
    "principal"
);
id_type!(
    /// A grant of a role to a principal on a resource.
    BindingId,
    "binding"
);
id_type!(
    /// A virtual machine.
    VmId,
    "vm"
);
id_type!(
    /// An image that VMs boot from.
    ImageId,
    "image"
);
id_type!(
    /// A long-running operation.
    OperationId,
    "operation"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_kinds_are_named_in_errors() {
        let text = "0199c2f2-7d3c-7a53-9b7e-2f6f0a4b1c2d";
        let id: VmId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{text}\""));
        let error = "x".parse::<VmId>().unwrap_err().to_string();
        assert!(error.starts_with("`x` is not a vm id"), "{error}");
    }
}
