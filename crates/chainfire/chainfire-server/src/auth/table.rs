//! Who may touch which keys by the way they come in: a fixed table (ARCHITECTURE.md, "Identities and certificates").
//!
//! It is fixed because everything else (Aegis included) stores its own rules in Chainfire: rights here cannot depend
//! on anything that starts later.

use chainfire_core::{KeyRange, Op, OpError, Txn};
use hearth_service::tls::{CommonName, PeerIdentity, Plaintext};
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
/// A node has the keys with its name: its agent's session, and its guard's record and lease.
const NODE: &str = "node/";
const NODE_KEYS: [&str; 3] = [
    "/plasmavmc/v1/sessions/",
    "/plasmavmc/v1/guards/",
    "/plasmavmc/v1/guardleases/",
];

/// The rights that go with a way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rights {
    Unlimited,
    Service {
        read_write: &'static [&'static str],
        read: &'static [&'static str],
    },
    /// The keys of a node.
    Node {
        keys: [String; NODE_KEYS.len()],
    },
    /// Plain text from a loopback address, or a certificate with a common name only.
    Tool,
    /// TLS without a certificate: a tool once it says whose it is, nobody until then.
    Anonymous,
    Nobody,
}

impl Rights {
    /// The rights of a request, by what the listener put into its extensions.
    pub(crate) fn of(extensions: &Extensions) -> Rights {
        if let Some(identity) = extensions.get::<PeerIdentity>() {
            return Rights::identity(&identity.path);
        }
        if extensions.get::<Plaintext>().is_some() || extensions.get::<CommonName>().is_some() {
            return Rights::Tool;
        }
        Rights::Anonymous
    }

    /// Whether they are of one of Hearth's own identities, which etcd's users do not concern.
    pub(crate) fn is_house(&self) -> bool {
        matches!(
            self,
            Rights::Unlimited | Rights::Service { .. } | Rights::Node { .. }
        )
    }

    pub(super) fn identity(path: &str) -> Rights {
        if UNLIMITED.contains(&path) {
            return Rights::Unlimited;
        }
        if let Some(service) = SERVICES.iter().find(|service| service.path == path) {
            return Rights::Service {
                read_write: service.read_write,
                read: service.read,
            };
        }
        match path.strip_prefix(NODE) {
            Some(node) if !node.is_empty() && !node.contains('/') => Rights::Node {
                keys: NODE_KEYS.map(|prefix| format!("{prefix}{node}")),
            },
            _ => Rights::Nobody,
        }
    }

    /// Whether it may read every key of the range.
    pub(crate) fn read(&self, keys: &KeyRange) -> Result<(), OpError> {
        allow(match self {
            Rights::Unlimited | Rights::Tool | Rights::Anonymous => true,
            Rights::Service { read_write, read } => within(read_write, keys) || within(read, keys),
            Rights::Node { keys: own } => own.iter().any(|key| is_key(key, keys)),
            Rights::Nobody => false,
        })
    }

    /// Whether it may write every key of the range.
    pub(crate) fn write(&self, keys: &KeyRange) -> Result<(), OpError> {
        allow(match self {
            Rights::Unlimited => true,
            Rights::Tool | Rights::Anonymous => !CLOSED_TO_TOOLS
                .iter()
                .any(|prefix| keys.touches_prefix(prefix.as_bytes())),
            Rights::Service { read_write, .. } => within(read_write, keys),
            Rights::Node { keys: own } => own.iter().any(|key| is_key(key, keys)),
            Rights::Nobody => false,
        })
    }

    /// Whether it may do everything that a transaction names, on both branches.
    pub(crate) fn txn(&self, txn: &Txn) -> Result<(), OpError> {
        for compare in &txn.compare {
            self.read(&compare.keys)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                Op::Range(range) => self.read(&range.keys)?,
                Op::Put(put) => self.write(&KeyRange::single(put.key.clone()))?,
                Op::Delete(delete) => self.write(&delete.keys)?,
                Op::Txn(txn) => self.txn(txn)?,
                Op::Nothing => {}
            }
        }
        Ok(())
    }

    /// Whether it may do what concerns everybody: compact, move the leader.
    pub(crate) fn administer(&self) -> Result<(), OpError> {
        allow(matches!(
            self,
            Rights::Unlimited | Rights::Tool | Rights::Anonymous
        ))
    }

    /// Whether it may ask for what concerns nobody's keys: members, status, leases.
    pub(crate) fn known(&self) -> Result<(), OpError> {
        allow(*self != Rights::Nobody)
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
            Rights::identity("service/chainfire"),
            Rights::identity("operator/root"),
            Rights::identity("service/aegis"),
            Rights::identity("service/flashdns"),
            Rights::identity("service/plasmavmc"),
            Rights::identity("node/n1"),
            Rights::Tool,
            Rights::Nobody,
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
            ("/plasmavmc/v1/guards/n1", "rw rw -- -- rw rw r- --"),
            ("/plasmavmc/v1/guardleases/n1", "rw rw -- -- rw rw r- --"),
            ("/plasmavmc/v1/guards/n2", "rw rw -- -- rw -- r- --"),
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
            assert_eq!(Rights::identity(path), Rights::Nobody, "{path}");
        }
    }
}
