//! The `[chainfire]` table.

use std::{collections::BTreeSet, net::SocketAddr};

use hearth_service::config::{ServiceConfig, TlsConfig};
use raft_host::NodeId;
use serde::{Deserialize, Serialize};

/// Configuration of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The process.
    pub service: ServiceConfig,
    /// Its certificate: identity `service/chainfire`.
    pub tls: TlsConfig,
    /// The member.
    pub chainfire: Chainfire,
}

/// The member and its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chainfire {
    /// Which of `members` this is.
    pub member: String,
    /// Name of the cluster; with the members' names it makes their ids, so it never changes.
    pub cluster: String,
    /// Where clients are served.
    pub listen_client: SocketAddr,
    /// Where the other members are served.
    pub listen_peer: SocketAddr,
    /// Also serve tools in plain text on the client port, from loopback addresses only.
    #[serde(default)]
    pub plaintext_loopback: bool,
    /// Entries kept in the Raft log for members that lag; who misses more gets a snapshot. Twice as many are let
    /// collect before the older ones are dropped.
    #[serde(default = "default_keep_log_entries")]
    pub keep_log_entries: u64,
    /// The whole initial cluster, this member included; the same on all members.
    pub members: Vec<Member>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name, unique for ever.
    pub name: String,
    /// `host:port` for clients.
    pub client: String,
    /// `host:port` for the other members.
    pub peer: String,
}

fn default_keep_log_entries() -> u64 {
    5_000
}

/// Why a configuration cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigProblem {
    /// `member` is not in `members`.
    #[error("[chainfire] member `{0}` does not stand in [[chainfire.members]]; add it or correct the name")]
    Unlisted(String),
    /// Two members share a name.
    #[error("[[chainfire.members]] lists `{0}` twice; names are unique")]
    Twice(String),
}

impl Chainfire {
    /// Checks what the types cannot.
    pub fn check(&self) -> Result<(), ConfigProblem> {
        let mut names = BTreeSet::new();
        for member in &self.members {
            if !names.insert(&member.name) {
                return Err(ConfigProblem::Twice(member.name.clone()));
            }
        }
        if !names.contains(&self.member) {
            return Err(ConfigProblem::Unlisted(self.member.clone()));
        }
        Ok(())
    }

    /// The id of the member with this name: derived, so that all members agree on it without asking.
    pub fn node_id(&self, name: &str) -> NodeId {
        fnv(&[self.cluster.as_bytes(), b"/", name.as_bytes()])
    }

    /// The cluster's id on the wire.
    pub fn cluster_id(&self) -> u64 {
        fnv(&[self.cluster.as_bytes()])
    }
}

/// FNV-1a, 64 bits, never 0. The ids on disk depend on it: it must not change.
fn fnv(parts: &[&[u8]]) -> u64 {
    let hash = parts
        .iter()
        .flat_map(|part| part.iter())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    hash.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(names: &[&str]) -> Chainfire {
        let member = |name: &&str| Member {
            name: (*name).into(),
            client: String::new(),
            peer: String::new(),
        };
        Chainfire {
            member: "one".into(),
            cluster: "hearth".into(),
            listen_client: SocketAddr::from(([127, 0, 0, 1], 0)),
            listen_peer: SocketAddr::from(([127, 0, 0, 1], 0)),
            plaintext_loopback: false,
            keep_log_entries: default_keep_log_entries(),
            members: names.iter().map(member).collect(),
        }
    }

    #[test]
    fn the_member_list_is_checked() {
        assert_eq!(config(&["one", "two"]).check(), Ok(()));
        assert_eq!(
            config(&["two"]).check(),
            Err(ConfigProblem::Unlisted("one".into()))
        );
        assert_eq!(
            config(&["one", "two", "two"]).check(),
            Err(ConfigProblem::Twice("two".into()))
        );
    }

    #[test]
    fn ids_stay_what_they_are() {
        let config = config(&["one"]);
        assert_eq!(config.cluster_id(), 16_415_847_917_753_018_577);
        assert_ne!(config.node_id("one"), config.node_id("two"));
    }
}
