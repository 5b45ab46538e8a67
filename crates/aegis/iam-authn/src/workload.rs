//! Identities of processes and machines: the path of the SPIFFE id in their certificate.

use std::fmt;
use std::str::FromStr;

use hearth_types::Name;

/// What kind of process or machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkloadKind {
    /// A server of the platform.
    Service,
    /// A node's agent.
    Node,
    /// The root shell of the machine that holds the cluster's keys.
    Operator,
}

/// `service/NAME`, `node/NAME` or `operator/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkloadPath {
    /// What kind.
    pub kind: WorkloadKind,
    /// Its name.
    pub name: Name,
}

/// A path that is none of the three.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the certificate's identity `{0}` is none of service/NAME, node/NAME and operator/NAME")]
pub struct WorkloadPathError(String);

impl WorkloadKind {
    const ALL: [Self; 3] = [Self::Service, Self::Node, Self::Operator];

    /// The first part of the path.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Node => "node",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for WorkloadPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.name)
    }
}

impl FromStr for WorkloadPath {
    type Err = WorkloadPathError;

    fn from_str(text: &str) -> Result<Self, WorkloadPathError> {
        let wrong = || WorkloadPathError(text.to_owned());
        let (kind, name) = text.split_once('/').ok_or_else(wrong)?;
        let kind = WorkloadKind::ALL
            .into_iter()
            .find(|known| known.as_str() == kind)
            .ok_or_else(wrong)?;
        Ok(Self {
            kind,
            name: name.parse().map_err(|_| wrong())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_kinds_and_nothing_else() {
        for good in ["service/aegis", "node/node01", "operator/root"] {
            assert_eq!(good.parse::<WorkloadPath>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "service",
            "service/",
            "Service/aegis",
            "service/a/b",
            "user/ada",
            "service/../x",
            "node/A",
        ] {
            assert!(bad.parse::<WorkloadPath>().is_err(), "`{bad}`");
        }
    }
}
