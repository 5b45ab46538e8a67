//! QEMU's user network: TCP ports of the VM's own loopback address lead to ports of the guest.

use std::net::{SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};

use plasmavmc_hypervisor::{Forward, MachineId, NetBackend, NicSpec};

use super::{Attachment, Guest, NetError};
use crate::seed;

/// Added to a port that cannot be had (22 where this machine's own SSH server has it on every
/// address, or where ports below 1024 take a privilege).
const SHIFT: u16 = 10_000;

/// Settings of the mode; it keeps no state but the seed drives.
#[derive(Debug)]
pub(crate) struct UserNetwork {
    seeds: PathBuf,
    ports: Vec<u16>,
    outbound: bool,
}

impl UserNetwork {
    pub(crate) fn new(data_dir: &Path, ports: &[u16], outbound: bool) -> Self {
        Self {
            seeds: data_dir.join("seeds"),
            ports: ports.to_vec(),
            outbound,
        }
    }

    pub(crate) async fn attach(&self, guest: &Guest, running: bool) -> Result<Attachment, NetError> {
        if !guest.address.is_loopback() {
            let text = format!(
                "address `{}` is no loopback address, this node has a user network",
                guest.address
            );
            return Err(NetError::Invalid(text));
        }
        // A running guest has its forwards and its drive; a look at its ports would find them taken.
        let forwards = if running { Vec::new() } else { self.forwards(guest) };
        let seed = seed::make(&self.seeds, guest).await?;
        let backend = NetBackend::User {
            forwards,
            outbound: self.outbound,
        };
        Ok(Attachment {
            nic: NicSpec {
                mac: guest.mac_text(),
                backend,
            },
            seed: Some(seed),
        })
    }

    pub(crate) fn detach(&self, id: &MachineId) -> Result<(), NetError> {
        seed::remove(&self.seeds, id).map_err(|source| NetError::Io {
            action: "remove the seed drive",
            source,
        })
    }

    fn forwards(&self, guest: &Guest) -> Vec<Forward> {
        let mut forwards = Vec::new();
        for &port in &self.ports {
            let wanted = SocketAddrV4::new(guest.address, port);
            let shifted = port
                .checked_add(SHIFT)
                .map(|p| SocketAddrV4::new(guest.address, p));
            match [Some(wanted), shifted]
                .into_iter()
                .flatten()
                .find(|host| TcpListener::bind(host).is_ok())
            {
                Some(host) => {
                    if host != wanted {
                        tracing::warn!(vm = %guest.id, %wanted, %host, "the port is taken; another one leads to the guest");
                    }
                    forwards.push(Forward {
                        host,
                        guest_port: port,
                    });
                }
                None => {
                    tracing::warn!(vm = %guest.id, %wanted, "the port is taken; it does not lead to the guest")
                }
            }
        }
        forwards
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tests::guest;
    use std::net::Ipv4Addr;

    #[test]
    fn a_taken_port_is_shifted() {
        let low = std::process::id().to_be_bytes();
        let mut guest = guest("vm");
        guest.address = Ipv4Addr::new(127, 79, low[2], low[3]);
        let taken = TcpListener::bind((guest.address, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        if port.checked_add(SHIFT).is_none() {
            return println!("SKIPPED: the free port {port} cannot be shifted");
        }
        let network = UserNetwork::new(Path::new("/nowhere"), &[port], false);
        let forwards = network.forwards(&guest);
        assert_eq!(
            forwards,
            [Forward {
                host: SocketAddrV4::new(guest.address, port + SHIFT),
                guest_port: port
            }]
        );
        drop(taken);
        assert_eq!(network.forwards(&guest)[0].host.port(), port);
    }
}
