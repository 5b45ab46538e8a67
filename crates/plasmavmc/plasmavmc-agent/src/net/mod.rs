//! How guests reach the world: routed over taps where the agent may, else QEMU's user network.

mod dhcp;
mod dns;
mod metadata;
mod routed;
mod rules;
#[expect(unsafe_code, reason = "TUNSETIFF and TUNSETPERSIST are ioctls")]
mod tap;
mod user;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use hearth_service::tasks::{Tasks, chain};
use plasmavmc_client::agent::VmSpec;
use plasmavmc_hypervisor::{MachineId, NicSpec};

use crate::config::{AgentConfig, NetworkPreference};
use crate::seed::SeedError;
use routed::Routed;
use user::UserNetwork;

/// Longest user data that a guest is given, as everywhere else (EC2 has 16 KiB, cloud-init reads more).
const MAX_USER_DATA: usize = 64 << 10;

/// What can go wrong with a guest's network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    #[error("network settings of the VM: {0}")]
    Invalid(String),
    #[error("cannot {action} the tap device `{tap}`: {reason}")]
    Tap {
        action: &'static str,
        tap: String,
        reason: String,
    },
    #[error("nft: {0}")]
    Nft(String),
    #[error("cannot {action}")]
    Io {
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Seed(#[from] SeedError),
}

/// What a guest is to be told about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) id: MachineId,
    pub(crate) hostname: String,
    pub(crate) ssh_keys: Vec<String>,
    pub(crate) user_data: String,
    pub(crate) mac: [u8; 6],
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) search_domain: String,
}

impl Guest {
    /// Takes it from a specification; everything in there came over the network and is checked.
    pub(crate) fn from_spec(id: &MachineId, spec: &VmSpec) -> Result<Self, NetError> {
        let invalid = |what: &str, value: &str| NetError::Invalid(format!("{what} `{value}`"));
        let nic = spec
            .nic
            .as_ref()
            .ok_or_else(|| NetError::Invalid("it has no network card".to_owned()))?;
        let address = nic
            .address
            .parse()
            .map_err(|_| invalid("address", &nic.address))?;
        // A user network has no gateway of ours.
        let gateway = if nic.gateway.is_empty() {
            Ipv4Addr::UNSPECIFIED
        } else {
            nic.gateway
                .parse()
                .map_err(|_| invalid("gateway", &nic.gateway))?
        };
        let prefix = u8::try_from(nic.prefix_length).ok().filter(|p| *p <= 32);
        let name = |text: &str| {
            text.len() <= 253
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        };
        if !name(&spec.hostname) || spec.hostname.is_empty() {
            return Err(invalid("host name", &spec.hostname));
        }
        if !name(&nic.search_domain) {
            return Err(invalid("search domain", &nic.search_domain));
        }
        if spec.user_data.len() > MAX_USER_DATA {
            return Err(NetError::Invalid(format!(
                "user data is longer than {MAX_USER_DATA} bytes"
            )));
        }
        Ok(Self {
            id: id.clone(),
            hostname: spec.hostname.clone(),
            ssh_keys: spec.ssh_keys.clone(),
            user_data: spec.user_data.clone(),
            mac: parse_mac(&nic.mac).ok_or_else(|| invalid("MAC address", &nic.mac))?,
            address,
            prefix: prefix.ok_or_else(|| invalid("prefix length", &nic.prefix_length.to_string()))?,
            gateway,
            search_domain: nic.search_domain.clone(),
        })
    }

    fn mac_text(&self) -> String {
        self.mac.map(|b| format!("{b:02x}")).join(":")
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let pairs: Vec<u8> = text
        .split(':')
        .map(|p| (p.len() == 2).then(|| u8::from_str_radix(p, 16).ok()).flatten())
        .collect::<Option<_>>()?;
    pairs.try_into().ok()
}

/// What a guest is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) nic: NicSpec,
    pub(crate) seed: Option<PathBuf>,
}

/// The node's network mode.
#[derive(Debug)]
pub(crate) enum Network {
    Routed(Routed),
    User(UserNetwork),
}

impl Network {
    /// Decides by the wish and by trying. Never falls back from an explicit wish.
    pub(crate) async fn open(
        agent: &AgentConfig,
        data_dir: &std::path::Path,
        tasks: &Tasks,
    ) -> Result<Self, NetError> {
        let user = || {
            Self::User(UserNetwork::new(
                data_dir,
                &agent.forward_ports,
                agent.user_outbound,
            ))
        };
        let resolver: SocketAddr = agent.resolver;
        match agent.network {
            NetworkPreference::User => Ok(user()),
            NetworkPreference::Routed => Ok(Self::Routed(
                Routed::open(agent.node.as_str(), resolver, tasks).await?,
            )),
            NetworkPreference::Auto => match Routed::open(agent.node.as_str(), resolver, tasks).await {
                Ok(routed) => Ok(Self::Routed(routed)),
                Err(error) => {
                    tracing::warn!(reason = %chain(&error), "guests get a user network: routing is not possible here");
                    Ok(user())
                }
            },
        }
    }

    /// `routed` or `user`, as the protocol says it.
    pub(crate) fn mode(&self) -> &'static str {
        match self {
            Self::Routed(_) => "routed",
            Self::User(_) => "user",
        }
    }

    /// Makes everything that the guest's network card needs; done again it changes nothing.
    /// `running` says that the guest runs already (after a restart of the agent).
    pub(crate) async fn attach(&self, guest: &Guest, running: bool) -> Result<Attachment, NetError> {
        match self {
            Self::Routed(routed) => routed.attach(guest).await,
            Self::User(user) => user.attach(guest, running).await,
        }
    }

    /// Removes it all; nothing of it need be there.
    pub(crate) async fn detach(&self, id: &MachineId) -> Result<(), NetError> {
        match self {
            Self::Routed(routed) => routed.detach(id).await,
            Self::User(user) => user.detach(id),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use plasmavmc_client::agent::Nic;

    pub(crate) fn guest(id: &str) -> Guest {
        Guest {
            id: MachineId::try_from(id.to_owned()).unwrap(),
            hostname: "web".to_owned(),
            ssh_keys: Vec::new(),
            user_data: String::new(),
            mac: [2, 0, 0, 0, 0, 9],
            address: Ipv4Addr::new(10, 77, 0, 9),
            prefix: 16,
            gateway: Ipv4Addr::new(10, 77, 0, 1),
            search_domain: "default.hearth.internal".to_owned(),
        }
    }

    #[test]
    fn settings_from_the_network_are_checked() {
        let id = MachineId::try_from("vm".to_owned()).unwrap();
        let nic = Nic {
            mac: "02:00:00:00:00:09".to_owned(),
            address: "10.77.0.9".to_owned(),
            prefix_length: 16,
            gateway: "10.77.0.1".to_owned(),
            ..Default::default()
        };
        let spec = VmSpec {
            hostname: "web".to_owned(),
            nic: Some(nic.clone()),
            ..Default::default()
        };
        let good = Guest::from_spec(&id, &spec).unwrap();
        assert_eq!((good.mac_text().as_str(), good.prefix), ("02:00:00:00:00:09", 16));
        let bad = [
            VmSpec {
                hostname: "we\nb".to_owned(),
                ..spec.clone()
            },
            VmSpec {
                hostname: String::new(),
                ..spec.clone()
            },
            VmSpec {
                nic: None,
                ..spec.clone()
            },
            VmSpec {
                nic: Some(Nic {
                    prefix_length: 33,
                    ..nic.clone()
                }),
                ..spec.clone()
            },
            VmSpec {
                nic: Some(Nic {
                    mac: "02:00; drop".to_owned(),
                    ..nic.clone()
                }),
                ..spec.clone()
            },
            VmSpec {
                nic: Some(Nic {
                    address: "web".to_owned(),
                    ..nic.clone()
                }),
                ..spec.clone()
            },
            VmSpec {
                nic: Some(Nic {
                    search_domain: "a b".to_owned(),
                    ..nic.clone()
                }),
                ..spec.clone()
            },
            VmSpec {
                user_data: "x".repeat(MAX_USER_DATA + 1),
                ..spec.clone()
            },
        ];
        for spec in bad {
            assert!(Guest::from_spec(&id, &spec).is_err(), "{spec:?}");
        }
    }
}
