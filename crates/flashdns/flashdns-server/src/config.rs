//! `flashdns.toml`.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use chainfire_client::ClientConfig;
use flashdns_core::{DnsName, name::NameError, reverse::NetworkError, reverse::ReverseNetwork};
use hearth_service::config::{ServiceConfig, TlsConfig};
use serde::{Deserialize, Serialize};

use crate::xfr::{Network, NetworkTextError};

/// The whole configuration file of a FlashDNS process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name, data folder, logging.
    pub service: ServiceConfig,
    /// Our certificate; it also is our identity at Chainfire.
    pub tls: TlsConfig,
    /// Where Chainfire is.
    pub chainfire_client: ClientConfig,
    /// What FlashDNS itself needs.
    pub flashdns: FlashDnsConfig,
}

/// The `[flashdns]` table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlashDnsConfig {
    /// Addresses that answer DNS, each over UDP and TCP. Replies to a query sent to a wildcard address leave
    /// from whatever address the kernel picks, so name the addresses that clients use.
    pub listen_dns: Vec<SocketAddr>,
    /// Address of the REST API, health and metrics (HTTPS).
    pub listen_api: SocketAddr,
    /// The internal zone: running VMs are `NAME.PROJECT.domain`.
    pub domain: String,
    /// Networks whose reverse zones are served: /8, /16 or /24, for IPv6 a multiple of 4.
    #[serde(default)]
    pub reverse_networks: Vec<String>,
    /// Public URL of Aegis: the issuer that tokens must name.
    pub aegis_url: String,
    /// Addresses of the zones' name server `ns.domain`, the same in every server's file. Empty: the
    /// addresses of `listen_dns`.
    #[serde(default)]
    pub nameserver_addresses: Vec<IpAddr>,
    /// Threads that answer UDP on each address. 0: one per core, at most two.
    #[serde(default)]
    pub udp_threads: usize,
    /// File with 32 random bytes that seals TSIG secrets, the same on every server. Empty: there are no keys.
    #[serde(default)]
    pub seal_key_file: Option<PathBuf>,
    /// Limits of replies over UDP to addresses that are not proven.
    #[serde(default)]
    pub response_rate: ResponseRateConfig,
    /// Zones to other servers.
    #[serde(default)]
    pub transfers: TransfersConfig,
}

/// The `[flashdns.response_rate]` table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResponseRateConfig {
    /// Replies a second that each UDP thread sends to one /24 (IPv6: /56) for one kind of reply (answers, names that do
    /// not exist, errors), for clients without a cookie. 0: no limit.
    #[serde(default)]
    pub per_second: u32,
    /// Every how manieth reply above that is sent cut short, so that honest clients come over TCP. 0: none.
    #[serde(default = "default_slip")]
    pub slip: u32,
    /// Networks that are not limited.
    #[serde(default)]
    pub exempt_networks: Vec<String>,
}

const fn default_slip() -> u32 {
    2
}

impl Default for ResponseRateConfig {
    fn default() -> Self {
        Self {
            per_second: 0,
            slip: default_slip(),
            exempt_networks: Vec::new(),
        }
    }
}

impl ResponseRateConfig {
    pub(crate) fn exempt(&self) -> Result<Vec<Network>, NetworkTextError> {
        self.exempt_networks.iter().map(|text| text.parse()).collect()
    }
}

/// The `[flashdns.transfers]` table.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransfersConfig {
    /// Networks that may transfer every zone without a key, such as `192.0.2.0/24`. A key that was made for transfers
    /// needs no entry here.
    #[serde(default)]
    pub allow_networks: Vec<String>,
    /// Secondaries that are told of every change.
    #[serde(default)]
    pub notify: Vec<SocketAddr>,
}

/// A value of the `[flashdns]` table that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// No address to answer on.
    #[error("`listen_dns` is empty; name at least one address, for example \"127.0.0.1:5300\"")]
    NoListener,
    /// The domain is not a name, or the root.
    #[error("`domain` `{domain}` is not a domain name")]
    Domain {
        /// As it was given.
        domain: String,
        /// What is wrong with it, unless it is the root.
        source: Option<NameError>,
    },
    /// A network that may transfer, or that is not limited, is none.
    #[error("`allow_networks` or `exempt_networks` cannot be used")]
    Transfers(#[from] NetworkTextError),
    /// A network without a reverse zone.
    #[error("`reverse_networks` cannot be used")]
    Network(#[from] NetworkError),
}

/// The zones that a server makes by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zones {
    /// The internal zone.
    pub domain: DnsName,
    /// Reverse zones, each once.
    pub reverse: Vec<DnsName>,
    /// Addresses of `ns.domain`.
    pub servers: Vec<IpAddr>,
}

impl TransfersConfig {
    pub(crate) fn networks(&self) -> Result<Vec<Network>, NetworkTextError> {
        self.allow_networks.iter().map(|text| text.parse()).collect()
    }
}

impl FlashDnsConfig {
    /// The zones this configuration asks for.
    ///
    /// # Errors
    /// [`SettingsError`] names the value that cannot be used.
    pub fn zones(&self) -> Result<Zones, SettingsError> {
        if self.listen_dns.is_empty() {
            return Err(SettingsError::NoListener);
        }
        let bad_domain = |source| SettingsError::Domain {
            domain: self.domain.clone(),
            source,
        };
        let domain: DnsName = self.domain.parse().map_err(|error| bad_domain(Some(error)))?;
        if domain == DnsName::root() {
            return Err(bad_domain(None));
        }
        let mut reverse = BTreeSet::new();
        for text in &self.reverse_networks {
            let network: ReverseNetwork = text.parse()?;
            reverse.insert(network.zone().map_err(|source| bad_domain(Some(source)))?);
        }
        let mut servers = self.nameserver_addresses.clone();
        if servers.is_empty() {
            let listening = self.listen_dns.iter().map(SocketAddr::ip);
            servers = listening.filter(|address| !address.is_unspecified()).collect();
        }
        servers.sort_unstable();
        servers.dedup();
        Ok(Zones {
            domain,
            reverse: reverse.into_iter().collect(),
            servers,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> FlashDnsConfig {
        let rest = "listen_api = \"127.0.0.1:0\"\naegis_url = \"https://127.0.0.1:8443\"\n";
        serde_json::from_value(
            toml::from_str::<toml::Value>(&format!("{rest}{text}"))
                .map(|value| serde_json::to_value(value).unwrap())
                .unwrap(),
        )
        .unwrap()
    }

    #[test]
    fn zones_of_a_configuration() {
        let zones = table(
            "listen_dns = [\"127.0.0.1:5300\", \"0.0.0.0:53\"]\ndomain = \"Hearth.internal\"\n\
             reverse_networks = [\"10.77.0.0/16\", \"127.77.0.0/16\", \"10.77.0.0/16\"]",
        )
        .zones()
        .unwrap();
        assert_eq!(zones.domain.to_string(), "hearth.internal.");
        let reverse: Vec<String> = zones.reverse.iter().map(ToString::to_string).collect();
        assert_eq!(reverse, ["77.10.in-addr.arpa.", "77.127.in-addr.arpa."]);
        assert_eq!(zones.servers, ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn values_that_cannot_be_used_are_named() {
        let error = |text: &str| table(text).zones().unwrap_err();
        assert!(matches!(
            error("listen_dns = []\ndomain = \"a\""),
            SettingsError::NoListener
        ));
        let listen = "listen_dns = [\"127.0.0.1:53\"]\n";
        assert!(matches!(
            error(&format!("{listen}domain = \"a..b\"")),
            SettingsError::Domain { .. }
        ));
        assert!(matches!(
            error(&format!("{listen}domain = \".\"")),
            SettingsError::Domain { .. }
        ));
        let network = format!("{listen}domain = \"a\"\nreverse_networks = [\"10.0.0.0/20\"]");
        assert!(matches!(error(&network), SettingsError::Network(_)));
    }
}
