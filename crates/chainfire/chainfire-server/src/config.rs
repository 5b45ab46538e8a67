//! The `[chainfire]` table.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf};

use hearth_service::config::{ServiceConfig, TlsConfig};
use raft_host::NodeId;
use serde::{Deserialize, Serialize};

use crate::auth::{self, TokenConfig, TokenConfigProblem};

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
    /// Whether TLS clients must show a certificate. Without one they say by a token whose they are, and so can do
    /// nothing but ask for one until auth is switched on.
    #[serde(default = "default_client_cert_required")]
    pub client_cert_required: bool,
    /// How etcd's users are known by: `simple`, or `jwt,pub-key=FILE,priv-key=FILE,sign-method=METHOD,ttl=10m`.
    /// The same on all members.
    #[serde(default = "default_auth_token")]
    pub auth_token: String,
    /// Seconds that a simple token lives after its last use.
    #[serde(default = "default_auth_token_ttl_s")]
    pub auth_token_ttl_s: u64,
    /// Strength of password hashes, 4 to 31: each step more doubles the time of making and of guessing.
    #[serde(default = "default_bcrypt_cost")]
    pub bcrypt_cost: u32,
    /// Entries kept in the Raft log for members that lag; who misses more gets a snapshot. Twice as many are let
    /// collect before the older ones are dropped.
    #[serde(default = "default_keep_log_entries")]
    pub keep_log_entries: u64,
    /// Where this member writes backups by itself; nowhere when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_dir: Option<PathBuf>,
    /// Seconds between two of them.
    #[serde(default = "default_backup_every_s")]
    pub backup_every_s: u64,
    /// How many of them are kept; older ones are removed.
    #[serde(default = "default_backup_keep")]
    pub backup_keep: usize,
    /// Memory for recent changes that watchers share, bytes. Who lags further behind is caught up from storage.
    #[serde(default = "default_watch_ring_bytes")]
    pub watch_ring_bytes: usize,
    /// Watchers of all clients of this member.
    #[serde(default = "default_max_watchers")]
    pub max_watchers: usize,
    /// How often idle watchers that asked for it are told the progress, milliseconds; up to a tenth more is added.
    #[serde(default = "default_watch_progress_notify_interval_ms")]
    pub watch_progress_notify_interval_ms: u64,
    /// Logical bytes (keys and values of all changes that are not compacted away, and a little for each) that may be
    /// stored; beyond them, puts are refused until keys are deleted and history is compacted. The same on all members.
    #[serde(default = "default_quota_bytes")]
    pub quota_bytes: u64,
    /// Whether this member begins a cluster together with the others in `members`, or joins one that runs. Only looked
    /// at when there is no data yet.
    #[serde(default)]
    pub initial_cluster_state: InitialState,
    /// SHA-256 of the token that a joining member must show, in hex; without it the certificate alone decides. The
    /// token must be random (16 bytes or more).
    #[serde(default)]
    pub join_token_sha256: Option<String>,
    /// File with the token, on a member that joins; not needed any more when it has joined.
    #[serde(default)]
    pub join_token_file: Option<PathBuf>,
    /// State `new`: the whole initial cluster, this member included; the same on all members. State `existing`: this
    /// member and some of those that run. Once there is data, the cluster knows its members itself (`member list`).
    pub members: Vec<Member>,
}

/// How a member without data begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InitialState {
    /// It is one of the first members of a new cluster.
    #[default]
    New,
    /// It was added to a cluster that runs, and asks there for its id.
    Existing,
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

fn default_backup_every_s() -> u64 {
    6 * 3600
}

fn default_backup_keep() -> usize {
    8
}

fn default_watch_ring_bytes() -> usize {
    crate::machine::RING_BYTES
}

fn default_max_watchers() -> usize {
    100_000
}

/// etcd's default.
fn default_watch_progress_notify_interval_ms() -> u64 {
    600_000
}

/// The shortest period of progress notifications (etcd's limit).
const MIN_PROGRESS_NOTIFY_MS: u64 = 100;
fn default_client_cert_required() -> bool {
    true
}

fn default_auth_token() -> String {
    "simple".to_owned()
}

fn default_auth_token_ttl_s() -> u64 {
    auth::DEFAULT_TTL_S
}

fn default_bcrypt_cost() -> u32 {
    auth::DEFAULT_COST
}

fn default_quota_bytes() -> u64 {
    8 << 30
}

/// Why a configuration cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigProblem {
    /// `member` is not in `members`.
    #[error("[chainfire] member `{0}` does not stand in [[chainfire.members]]; add it or correct the name")]
    Unlisted(String),
    /// Backups would be made without end, or none kept.
    #[error("[chainfire] backup_every_s and backup_keep must be at least 1 where backup_dir is given")]
    Backups,
    /// Two members share a name.
    #[error("[[chainfire.members]] lists `{0}` twice; names are unique")]
    Twice(String),
    /// Nobody to ask.
    #[error(
        "[chainfire] initial_cluster_state is `existing`, but [[chainfire.members]] lists nobody else; list some \
         members that run"
    )]
    Alone,
    /// The token's digest is no digest.
    #[error("[chainfire] join_token_sha256 is not a SHA-256 digest in hex; make it with `sha256sum`")]
    Digest,
    /// Progress notifications would follow each other too fast.
    #[error(
        "[chainfire] watch_progress_notify_interval_ms is {0}; at least {MIN_PROGRESS_NOTIFY_MS} is needed"
    )]
    ProgressInterval(u64),
    /// A strength that bcrypt does not know.
    #[error("[chainfire] bcrypt_cost is {0}; it has to be from 4 to 31")]
    BcryptCost(u32),
    /// Tokens cannot be made so.
    #[error(transparent)]
    Tokens(#[from] TokenConfigProblem),
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
        if self.initial_cluster_state == InitialState::Existing && names.len() == 1 {
            return Err(ConfigProblem::Alone);
        }
        let is_digest = |text: &String| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !self.join_token_sha256.as_ref().is_none_or(is_digest) {
            return Err(ConfigProblem::Digest);
        }
        if self.backup_dir.is_some() && (self.backup_every_s == 0 || self.backup_keep == 0) {
            return Err(ConfigProblem::Backups);
        }
        let progress_ms = self.watch_progress_notify_interval_ms;
        if progress_ms < MIN_PROGRESS_NOTIFY_MS {
            return Err(ConfigProblem::ProgressInterval(progress_ms));
        }
        if !auth::COSTS.contains(&self.bcrypt_cost) {
            return Err(ConfigProblem::BcryptCost(self.bcrypt_cost));
        }
        TokenConfig::parse(&self.auth_token)?;
        Ok(())
    }

    /// A member's address as tools connect to it: plain text where it is served, TLS otherwise.
    pub(crate) fn client_url(&self, address: &str) -> String {
        let scheme = if self.plaintext_loopback { "http" } else { "https" };
        format!("{scheme}://{address}")
    }

    /// The id of a first member with this name: derived, so that all members agree on it without asking. Members that
    /// are added later get random ones.
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
            client_cert_required: true,
            auth_token: default_auth_token(),
            auth_token_ttl_s: default_auth_token_ttl_s(),
            bcrypt_cost: default_bcrypt_cost(),
            keep_log_entries: default_keep_log_entries(),
            initial_cluster_state: InitialState::New,
            join_token_sha256: None,
            join_token_file: None,
            backup_dir: None,
            backup_every_s: default_backup_every_s(),
            backup_keep: default_backup_keep(),
            watch_ring_bytes: default_watch_ring_bytes(),
            max_watchers: default_max_watchers(),
            watch_progress_notify_interval_ms: default_watch_progress_notify_interval_ms(),
            quota_bytes: default_quota_bytes(),
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
        let hasty = Chainfire {
            watch_progress_notify_interval_ms: 99,
            ..config(&["one"])
        };
        assert_eq!(hasty.check(), Err(ConfigProblem::ProgressInterval(99)));
    }

    #[test]
    fn joining_needs_somebody_to_ask_and_a_digest_is_a_digest() {
        let mut alone = config(&["one"]);
        alone.initial_cluster_state = InitialState::Existing;
        assert_eq!(alone.check(), Err(ConfigProblem::Alone));
        let mut token = config(&["one"]);
        token.join_token_sha256 = Some("secret".into());
        assert_eq!(token.check(), Err(ConfigProblem::Digest));
        token.join_token_sha256 = Some("ab".repeat(32));
        assert_eq!(token.check(), Ok(()));
    }

    #[test]
    fn ids_stay_what_they_are() {
        let config = config(&["one"]);
        assert_eq!(config.cluster_id(), 16_415_847_917_753_018_577);
        assert_ne!(config.node_id("one"), config.node_id("two"));
    }
}
