//! The configuration file of `hearthd aegis`.

use std::net::SocketAddr;
use std::path::PathBuf;

use chainfire_client::ClientConfig;
use hearth_service::config::{ServiceConfig, TlsConfig};
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What every server has.
    pub service: ServiceConfig,
    /// Certificate files.
    pub tls: TlsConfig,
    /// Where Chainfire is.
    pub chainfire_client: ClientConfig,
    /// Aegis itself.
    pub aegis: AegisConfig,
}

/// The `[aegis]` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AegisConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// How people and tokens name it: the issuer.
    pub public_url: String,
    /// The cluster's domain: the trust domain of certificates.
    pub domain: String,
    /// The cluster CA's private key, imported at the very first start.
    pub ca_key: PathBuf,
    /// The token that the first administrator is made with, read at the very first start.
    pub bootstrap_token_file: PathBuf,
    /// 32 random bytes that seal private keys at rest.
    pub seal_key_file: PathBuf,
    /// Seconds that an access token lives, 10 to 600.
    #[serde(default = "default_lifetime_s")]
    pub access_token_lifetime_s: u64,
}

const fn default_lifetime_s() -> u64 {
    iam_authn::token::MAX_LIFETIME_S
}
