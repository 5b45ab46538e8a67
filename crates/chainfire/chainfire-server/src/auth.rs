//! Who may touch which keys: a fixed table (ARCHITECTURE.md, "Identities and certificates").
//!
//! It is fixed because everything else (Aegis included) stores its own rules in Chainfire: rights here cannot depend
//! on anything that starts later.

use chainfire_core::{KeyRange, OpError};
use hearth_service::tls::{PeerIdentity, Plaintext};
use http::Extensions;

/// What a service may touch.
struct Service {
    path: &'static str,
    read_write: &'static [&'static str],
    read: &'static [&'static str],
}

const SERVICES: &[Service] = &[
    Service {
        path: "service/aegis",
        read_write: &["/aegis/"],
        read: &[],
    },
    Service {
        path: "service/flashdns",
        read_write: &["/flashdns/"],
        read: &["/aegis/v1/public/", "/plasmavmc/v1/names/"],
    },
    Service {
        path: "service/plasmavmc",
        read_write: &["/plasmavmc/"],
        read: &["/aegis/v1/public/"],
    },
];

/// Identities that may touch everything.
const UNLIMITED: &[&str] = &["service/chainfire", "operator/root"];
/// What tools without a certificate may read but not write.
const CLOSED_TO_TOOLS: &[&str] = &["/aegis/", "/plasmavmc/", "/flashdns/"];
/// A node's agent has the one key with its name.
const NODE: &str = "node/";
const NODE_KEY: &str = "/plasmavmc/v1/sessions/";

/// The rights of a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    Unlimited,
    Service {
        read_write: &'static [&'static str],
        read: &'static [&'static str],
    },
    /// The one key of a node.
    Node {
        key: String,
    },
    /// Plain text from a loopback address.
    Tool,
    Nobody,
}

impl Caller {
    /// The caller of a request, by what the listener put into its extensions.
    pub(crate) fn of(extensions: &Extensions) -> Caller {
        match extensions.get::<PeerIdentity>() {
            Some(identity) => Caller::identity(&identity.path),
            None if extensions.get::<Plaintext>().is_some() => Caller::Tool,
            None => Caller::Nobody,
        }
    }

    fn identity(path: &str) -> Caller {
        if UNLIMITED.contains(&path) {
            return Caller::Unlimited;
        }
        if let Some(service) = SERVICES.iter().find(|service| service.path == path) {
            return Caller::Service {
                read_write: service.read_write,
                read: service.read,
            };
        }
        match path.strip_prefix(NODE) {
            Some(node) if !node.is_empty() && !node.contains('/') => Caller::Node {
                key: format!("{NODE_KEY}{node}"),
            },
            _ => Caller::Nobody,
        }
    }

    /// Whether it may read every key of the range.
    pub(crate) fn read(&self, keys: &KeyRange) -> Result<(), OpError> {
        allow(match self {
            Caller::Unlimited | Caller::Tool => true,
            Caller::Service { read_write, read } => within(read_write, keys) || within(read, keys),
            Caller::Node { key } => is_key(key, keys),
            Caller::Nobody => false,
        })
    }

    /// Whether it may write every key of the range.
    pub(crate) fn write(&self, keys: &KeyRange) -> Result<(), OpError> {
        allow(match self {
            Caller::Unlimited => true,
            Caller::Tool => !CLOSED_TO_TOOLS
                .iter()
                .any(|prefix| keys.touches_prefix(prefix.as_bytes())),
            Caller::Service { read_write, .. } => within(read_write, keys),
            Caller::Node { key } => is_key(key, keys),
            Caller::Nobody => false,
        })
    }

    /// Whether it may do what concerns everybody: compact, move the leader.
    pub(crate) fn administer(&self) -> Result<(), OpError> {
        allow(matches!(self, Caller::Unlimited | Caller::Tool))
    }

    /// Whether it may ask for what concerns nobody's keys: members, status, leases.
    pub(crate) fn known(&self) -> Result<(), OpError> {
        allow(*self != Caller::Nobody)
    }
}

fn allow(allowed: bool) -> Result<(), OpError> {
    if allowed {
        Ok(())
    } else {
        Err(OpError::PermissionDenied)
    }
}

fn within(prefixes: &[&str], keys: &KeyRange) -> bool {
    prefixes
        .iter()
        .any(|prefix| keys.within_prefix(prefix.as_bytes()))
}

fn is_key(key: &str, keys: &KeyRange) -> bool {
    keys.is_single() && keys.start().as_ref() == key.as_bytes()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn keys(text: &'static str) -> KeyRange {
        let (key, end) = text.split_once("..").unwrap_or((text, ""));
        let end = if end == "*" { "\0" } else { end };
        KeyRange::new(
            Bytes::from_static(key.as_bytes()),
            Bytes::copy_from_slice(end.as_bytes()),
        )
    }

    /// One line for each range: what each identity may do there (r, w, or - for nothing).
    #[test]
    fn rights_matrix() {
        let callers = [
            Caller::identity("service/chainfire"),
            Caller::identity("operator/root"),
            Caller::identity("service/aegis"),
            Caller::identity("service/flashdns"),
            Caller::identity("service/plasmavmc"),
            Caller::identity("node/n1"),
            Caller::Tool,
            Caller::Nobody,
        ];
        //                                        chainfire root aegis dns vmc node tool nobody
        let table = [
            ("/aegis/v1/secret/x", "rw rw rw -- -- -- r- --"),
            ("/aegis/v1/public/x", "rw rw rw r- r- -- r- --"),
            ("/aegis/v1/public/../aegis/v1/public0", "rw rw rw r- r- -- r- --"),
            ("/aegis/v1/public/../aegis/v1/z", "rw rw rw -- -- -- r- --"),
            ("/flashdns/v1/zones/x", "rw rw -- rw -- -- r- --"),
            ("/plasmavmc/v1/names/p/n", "rw rw -- r- rw -- r- --"),
            ("/plasmavmc/v1/vms/p/v", "rw rw -- -- rw -- r- --"),
            ("/plasmavmc/v1/sessions/n1", "rw rw -- -- rw rw r- --"),
            ("/plasmavmc/v1/sessions/n10", "rw rw -- -- rw -- r- --"),
            (
                "/plasmavmc/v1/sessions/n1../plasmavmc/v1/sessions/n2",
                "rw rw -- -- rw -- r- --",
            ),
            ("/other", "rw rw -- -- -- -- rw --"),
            ("/b../c", "rw rw -- -- -- -- rw --"),
            ("/a..*", "rw rw -- -- -- -- r- --"),
            ("/zzz..*", "rw rw -- -- -- -- rw --"),
            ("\0..*", "rw rw -- -- -- -- r- --"),
        ];
        for (range, expected) in table {
            let keys = match range.split_once("/../") {
                Some((key, end)) => {
                    KeyRange::new(Bytes::from(format!("{key}/")), Bytes::from(format!("/{end}")))
                }
                None => keys(range),
            };
            let found: Vec<String> = callers
                .iter()
                .map(|caller| {
                    let read = if caller.read(&keys).is_ok() { 'r' } else { '-' };
                    let write = if caller.write(&keys).is_ok() { 'w' } else { '-' };
                    format!("{read}{write}")
                })
                .collect();
            assert_eq!(found.join(" "), expected, "{range}");
        }
    }

    #[test]
    fn strange_identities_are_nobody() {
        for path in [
            "",
            "node/",
            "node/a/b",
            "service/",
            "service/unknown",
            "operator/root/x",
            "user/root",
        ] {
            assert_eq!(Caller::identity(path), Caller::Nobody, "{path}");
        }
    }
}
