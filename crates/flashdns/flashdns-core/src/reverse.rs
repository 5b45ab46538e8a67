//! Reverse zones: which zone holds the PTR records of a network (RFC 1035, 3.5; RFC 3596, 2.5).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use crate::name::{DnsName, NameError};

/// A network whose addresses have their names in one reverse zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReverseNetwork {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is not a network with a reverse zone of its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Not ADDRESS/PREFIX.
    #[error("`{0}` is not a network; write it as ADDRESS/PREFIX, for example 10.77.0.0/16")]
    Syntax(String),
    /// A reverse zone covers whole labels only.
    #[error("`{0}` has no reverse zone of its own: use /8, /16 or /24 for IPv4, a multiple of 4 for IPv6")]
    Alignment(String),
    /// Bits set behind the prefix.
    #[error("`{0}` has bits set behind its prefix")]
    HostBits(String),
}

impl FromStr for ReverseNetwork {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let syntax = || NetworkError::Syntax(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(syntax)?;
        let address: IpAddr = address.parse().map_err(|_| syntax())?;
        let prefix: u8 = prefix.parse().map_err(|_| syntax())?;
        let (aligned, rest) = match address {
            IpAddr::V4(v4) => {
                let rest = u32::from(v4).checked_shl(prefix.into()).unwrap_or(0);
                (matches!(prefix, 8 | 16 | 24), rest != 0)
            }
            IpAddr::V6(v6) => {
                let rest = u128::from(v6).checked_shl(prefix.into()).unwrap_or(0);
                (prefix.is_multiple_of(4) && (4..128).contains(&prefix), rest != 0)
            }
        };
        if !aligned {
            return Err(NetworkError::Alignment(text.to_owned()));
        }
        if rest {
            return Err(NetworkError::HostBits(text.to_owned()));
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for ReverseNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl ReverseNetwork {
    /// The apex of the network's reverse zone, such as `77.10.in-addr.arpa.`.
    ///
    /// # Errors
    /// Never for a network that was parsed; the name's limits cannot be reached.
    pub fn zone(&self) -> Result<DnsName, NameError> {
        let mut name = pointer_name(self.address)?;
        let cut = match self.address {
            IpAddr::V4(_) => (32 - self.prefix) / 8,
            IpAddr::V6(_) => (128 - self.prefix) / 4,
        };
        for _ in 0..cut {
            name = name.parent().ok_or(NameError::BadWire)?;
        }
        Ok(name)
    }
}

/// The name that holds an address's PTR record, such as `5.0.77.10.in-addr.arpa.`.
///
/// # Errors
/// Never: the name's limits cannot be reached.
pub fn pointer_name(address: IpAddr) -> Result<DnsName, NameError> {
    match address {
        IpAddr::V4(v4) => v4_pointer(v4),
        IpAddr::V6(v6) => v6_pointer(v6),
    }
}

fn v4_pointer(address: Ipv4Addr) -> Result<DnsName, NameError> {
    let [a, b, c, d] = address.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa.").parse()
}

fn v6_pointer(address: Ipv6Addr) -> Result<DnsName, NameError> {
    use fmt::Write;
    let mut text = String::with_capacity(73);
    for octet in address.octets().iter().rev() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{:x}.{:x}.", octet & 0xf, octet >> 4);
    }
    text.push_str("ip6.arpa.");
    text.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_of_networks() {
        for (network, zone) in [
            ("10.0.0.0/8", "10.in-addr.arpa."),
            ("10.77.0.0/16", "77.10.in-addr.arpa."),
            ("127.77.0.0/16", "77.127.in-addr.arpa."),
            ("192.0.2.0/24", "2.0.192.in-addr.arpa."),
            ("2001:db8::/32", "8.b.d.0.1.0.0.2.ip6.arpa."),
            ("fd00:77::/36", "0.7.7.0.0.0.0.d.f.ip6.arpa."),
        ] {
            let network: ReverseNetwork = network.parse().unwrap();
            assert_eq!(network.zone().unwrap().to_string(), zone);
        }
    }

    #[test]
    fn refuses_networks_without_a_zone() {
        use NetworkError::{Alignment, HostBits, Syntax};
        for (text, error) in [
            ("10.77.0.0", Syntax("10.77.0.0".into())),
            ("ten/8", Syntax("ten/8".into())),
            ("10.0.0.0/300", Syntax("10.0.0.0/300".into())),
            ("10.77.0.0/20", Alignment("10.77.0.0/20".into())),
            ("0.0.0.0/0", Alignment("0.0.0.0/0".into())),
            ("10.77.1.0/16", HostBits("10.77.1.0/16".into())),
            ("2001:db8::/33", Alignment("2001:db8::/33".into())),
            ("2001:db8::1/32", HostBits("2001:db8::1/32".into())),
        ] {
            assert_eq!(text.parse::<ReverseNetwork>(), Err(error));
        }
    }

    #[test]
    fn pointer_names() {
        let v4 = pointer_name("10.77.0.5".parse().unwrap()).unwrap();
        assert_eq!(v4.to_string(), "5.0.77.10.in-addr.arpa.");
        let v6 = pointer_name("2001:db8::1".parse().unwrap()).unwrap();
        let zeros = "0.".repeat(23);
        assert_eq!(v6.to_string(), format!("1.{zeros}8.b.d.0.1.0.0.2.ip6.arpa."));
    }
}
