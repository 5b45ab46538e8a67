//! The choice of an address from a network.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 network in CIDR form, from /8 to /30. The first host address is its gateway and never given to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    base: u32,
    prefix: u8,
}

/// A text that is no usable network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an IPv4 network from /8 to /30 such as 10.77.0.0/16")]
pub struct NetworkError(String);

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let wrong = || NetworkError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let network = Self {
            base: address.to_bits(),
            prefix,
        };
        if !(8..=30).contains(&prefix) || network.base & (network.size() - 1) != 0 {
            return Err(wrong());
        }
        Ok(network)
    }
}

impl TryFrom<String> for Network {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.base), self.prefix)
    }
}

impl Network {
    /// Number of addresses, the network's own and the broadcast address included.
    const fn size(self) -> u32 {
        1 << (32 - self.prefix)
    }

    /// Length of the prefix in bits.
    #[must_use]
    pub const fn prefix_length(self) -> u8 {
        self.prefix
    }

    /// The first host address.
    #[must_use]
    pub const fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base + 1)
    }

    /// True when the address lies in the network.
    #[must_use]
    pub const fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & !(self.size() - 1) == self.base
    }

    /// The first free address at or after the place that `random` points to, going round once. Addresses whose last
    /// byte is 0 or 255 are never given: some guests and tools take them for something else. `None` when all are
    /// taken.
    #[must_use]
    pub fn choose(self, taken: &BTreeSet<Ipv4Addr>, random: u64) -> Option<Ipv4Addr> {
        // Offsets 2 to size - 2: without the network's own, the gateway's and the broadcast address.
        let hosts = self.size() - 3;
        let start = u32::try_from(random % u64::from(hosts)).unwrap_or(0);
        let chosen = (0..hosts)
            .map(|step| Ipv4Addr::from_bits(self.base + 2 + (start + step) % hosts))
            .find(|address| !matches!(address.octets()[3], 0 | 255) && !taken.contains(address));
        assert!(
            chosen.is_none_or(|address| self.contains(address) && address != self.gateway()),
            "an address was chosen that is not for guests"
        );
        chosen
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_networks_and_refuses_others() {
        let network: Network = "10.77.0.0/16".parse().unwrap();
        assert_eq!(network.to_string(), "10.77.0.0/16");
        assert_eq!(network.gateway(), Ipv4Addr::new(10, 77, 0, 1));
        for bad in [
            "10.77.0.0",
            "10.77.0.1/16",
            "10.77.0.0/31",
            "x/16",
            "0.0.0.0/0",
            "10.77.0.0/-1",
        ] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_full_network_gives_none() {
        let network: Network = "10.77.1.8/29".parse().unwrap();
        let mut taken = BTreeSet::new();
        while let Some(address) = network.choose(&taken, 7) {
            assert!(taken.insert(address));
        }
        assert_eq!(taken.len(), 5);
    }

    proptest! {
        #[test]
        fn never_gives_an_address_twice(prefix in 20_u8..=30, random in prop::collection::vec(any::<u64>(), 1..200)) {
            let network: Network = format!("10.77.0.0/{prefix}").parse().unwrap();
            let mut taken = BTreeSet::new();
            for random in random {
                let Some(address) = network.choose(&taken, random) else { break };
                prop_assert!(network.contains(address));
                prop_assert!(taken.insert(address));
            }
        }
    }
}
