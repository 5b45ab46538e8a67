//! Routed mode: one tap per guest, a /32 route to it, and its services bound to that tap.
//!
//! Nothing here is shared between taps, so several agents may work in one network namespace: devices
//! are named after VM ids, sockets are bound to their device, and each node has its own nftables table.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use futures::TryStreamExt;
use hearth_service::tasks::{Kind, Tasks};
use plasmavmc_hypervisor::{MachineId, NetBackend, NicSpec};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use sha2::{Digest, Sha256};
use socket2::Type;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::rules::{self, GuestRules};
use super::{Attachment, Guest, NetError, dhcp, dns, metadata, tap};

/// Waiting connections of a guest's own services.
const BACKLOG: i32 = 16;
/// Longest wait for a device to vanish after its deletion.
const VANISH_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Attached {
    guest: Guest,
    rules: GuestRules,
    stop: CancellationToken,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The node's taps.
#[derive(Debug)]
pub(crate) struct Routed {
    netlink: Handle,
    table: String,
    resolver: SocketAddr,
    tasks: Tasks,
    /// Held across the work on a tap: the table is written as a whole, from all of them.
    attached: Mutex<BTreeMap<MachineId, Attached>>,
}

/// Name of a VM's tap: at most 15 bytes, the same at every start, different for different VMs.
pub(super) fn tap_name(id: &MachineId) -> String {
    let digest = hex::encode(Sha256::digest(id.as_str()));
    format!("hv{}", digest.get(..12).unwrap_or(&digest))
}

fn write_sysctl(path: &str, value: &str) -> Result<(), NetError> {
    let path = Path::new("/proc/sys").join(path);
    let same = std::fs::read_to_string(&path).is_ok_and(|t| t.trim() == value);
    if same {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|source| {
        let text = format!("write `{}`: {source}", path.display());
        NetError::Io {
            action: "change a kernel setting",
            source: io::Error::new(source.kind(), text),
        }
    })
}

fn tap_error(action: &'static str, tap: &str) -> impl FnOnce(rtnetlink::Error) -> NetError {
    let tap = tap.to_owned();
    move |error| NetError::Tap {
        action,
        tap,
        reason: error.to_string(),
    }
}

impl Routed {
    /// Opens netlink and tries, with a tap of its own, all that is needed later.
    pub(super) async fn open(node: &str, resolver: SocketAddr, tasks: &Tasks) -> Result<Self, NetError> {
        let (connection, netlink, _) = rtnetlink::new_connection().map_err(|source| NetError::Io {
            action: "open netlink",
            source,
        })?;
        let stopping = tasks.clone();
        tasks.spawn("netlink", Kind::Background, async move {
            tokio::select! {
                () = connection => {}
                () = stopping.stopping() => {}
            }
            Ok(())
        });
        let table = format!("hearth_{}", node.replace('-', "_"));
        let routed = Self {
            netlink,
            table,
            resolver,
            tasks: tasks.clone(),
            attached: Mutex::default(),
        };
        routed.try_all(node).await?;
        Ok(routed)
    }

    async fn try_all(&self, node: &str) -> Result<(), NetError> {
        let digest = hex::encode(Sha256::digest(node));
        let trial = format!("hvt{}", digest.get(..11).unwrap_or(&digest));
        self.make_tap(&trial).await?;
        let tried = async {
            dhcp::socket(&trial).map_err(|source| NetError::Io {
                action: "serve DHCP on a tap",
                source,
            })?;
            write_sysctl("net/ipv4/ip_forward", "1")?;
            let trial_rules = GuestRules {
                tap: trial.clone(),
                mac: "02:00:00:00:00:01".to_owned(),
                address: Ipv4Addr::new(192, 0, 2, 2),
                prefix: 24,
                gateway: Ipv4Addr::new(192, 0, 2, 1),
                metadata_port: 1,
                dns_udp_port: 1,
                dns_tcp_port: 1,
            };
            let table = format!("{}_try", self.table);
            rules::apply(&rules::script(&table, std::iter::once(&trial_rules))).await?;
            rules::apply(&rules::removal(&table)).await
        };
        let tried = tried.await;
        self.delete_tap(&trial).await?;
        tried
    }

    /// Makes the tap, its routes, its services and its rules. Done again it changes nothing.
    pub(super) async fn attach(&self, guest: &Guest) -> Result<Attachment, NetError> {
        if guest.gateway.is_unspecified() {
            return Err(NetError::Invalid(
                "it has no gateway, this node routes".to_owned(),
            ));
        }
        let tap = tap_name(&guest.id);
        let attachment = Attachment {
            nic: NicSpec {
                mac: guest.mac_text(),
                backend: NetBackend::Tap { ifname: tap.clone() },
            },
            seed: None,
        };
        let mut attached = self.attached.lock().await;
        if attached.get(&guest.id).is_some_and(|a| a.guest == *guest) {
            return Ok(attachment);
        }
        attached.remove(&guest.id);
        self.make_tap(&tap).await?;
        let made = async {
            self.configure(&tap, guest).await?;
            let now = self.serve(&tap, guest)?;
            attached.insert(guest.id.clone(), now);
            rules::apply(&rules::script(&self.table, attached.values().map(|a| &a.rules))).await
        };
        if let Err(error) = made.await {
            attached.remove(&guest.id);
            return Err(error);
        }
        Ok(attachment)
    }

    /// Removes all of it and looks that the device is gone.
    pub(super) async fn detach(&self, id: &MachineId) -> Result<(), NetError> {
        let mut attached = self.attached.lock().await;
        let tap = tap_name(id);
        self.delete_tap(&tap).await?;
        if attached.remove(id).is_some() {
            let script = if attached.is_empty() {
                rules::removal(&self.table)
            } else {
                rules::script(&self.table, attached.values().map(|a| &a.rules))
            };
            rules::apply(&script).await?;
        }
        Ok(())
    }

    async fn index(&self, tap: &str) -> Result<Option<u32>, NetError> {
        // Asking netlink for a name that is not there is an error like any other; this is not.
        if !Path::new("/sys/class/net").join(tap).exists() && nix::net::if_::if_nametoindex(tap).is_err() {
            return Ok(None);
        }
        let found = self
            .netlink
            .link()
            .get()
            .match_name(tap.to_owned())
            .execute()
            .try_next()
            .await;
        Ok(found
            .map_err(tap_error("find", tap))?
            .map(|link| link.header.index))
    }

    async fn make_tap(&self, tap: &str) -> Result<(), NetError> {
        tap::make_persistent(tap).map_err(|error| NetError::Tap {
            action: "make",
            tap: tap.to_owned(),
            reason: error.to_string(),
        })
    }

    async fn delete_tap(&self, tap: &str) -> Result<(), NetError> {
        let Some(index) = self.index(tap).await? else {
            return Ok(());
        };
        self.netlink
            .link()
            .del(index)
            .execute()
            .await
            .map_err(tap_error("delete", tap))?;
        let gone = async {
            while nix::net::if_::if_nametoindex(tap).is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(VANISH_LIMIT, gone)
            .await
            .map_err(|_| NetError::Tap {
                action: "delete",
                tap: tap.to_owned(),
                reason: "it is still there".to_owned(),
            })
    }

    async fn configure(&self, tap: &str, guest: &Guest) -> Result<(), NetError> {
        let missing = || NetError::Tap {
            action: "find",
            tap: tap.to_owned(),
            reason: "it is gone".to_owned(),
        };
        let index = self.index(tap).await?.ok_or_else(missing)?;
        // The guest may sit in a larger network than its link: questions for other members of it are
        // answered by this machine, which routes to them.
        write_sysctl(&format!("net/ipv4/conf/{tap}/proxy_arp"), "1")?;
        write_sysctl(&format!("net/ipv4/conf/{tap}/forwarding"), "1")?;
        // Absent where the kernel has no IPv6; the rules drop it anyway.
        if let Err(error) = write_sysctl(&format!("net/ipv6/conf/{tap}/disable_ipv6"), "1") {
            tracing::debug!(%error, tap, "IPv6 stays on");
        }
        let up = LinkUnspec::new_with_index(index).up().build();
        self.netlink
            .link()
            .set(up)
            .execute()
            .await
            .map_err(tap_error("switch on", tap))?;
        self.netlink
            .address()
            .add(index, IpAddr::V4(guest.gateway), 32)
            .replace()
            .execute()
            .await
            .map_err(tap_error("give the gateway's address to", tap))?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(guest.address, 32)
            .output_interface(index)
            .pref_source(guest.gateway)
            .scope(RouteScope::Link)
            .build();
        self.netlink
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .map_err(tap_error("route to", tap))
    }

    /// Opens the guest's own services; they end when the value is dropped.
    fn serve(&self, tap: &str, guest: &Guest) -> Result<Attached, NetError> {
        let io = |action| move |source| NetError::Io { action, source };
        let dhcp_socket = dhcp::socket(tap).map_err(io("serve DHCP"))?;
        let open_dns = || -> io::Result<(UdpSocket, TcpListener, TcpListener)> {
            let udp = UdpSocket::from_std(dns::bind(Type::DGRAM, tap, guest.gateway)?.into())?;
            let listen = |socket: socket2::Socket| -> io::Result<TcpListener> {
                socket.listen(BACKLOG)?;
                TcpListener::from_std(socket.into())
            };
            let tcp = listen(dns::bind(Type::STREAM, tap, guest.gateway)?)?;
            let web = listen(dns::bind(Type::STREAM, tap, guest.gateway)?)?;
            Ok((udp, tcp, web))
        };
        let (udp, tcp, web) = open_dns().map_err(io("serve DNS and metadata"))?;
        let port =
            |address: io::Result<SocketAddr>| address.map(|a| a.port()).map_err(io("serve DNS and metadata"));
        let rules = GuestRules {
            tap: tap.to_owned(),
            mac: guest.mac_text(),
            address: guest.address,
            prefix: guest.prefix,
            gateway: guest.gateway,
            metadata_port: port(web.local_addr())?,
            dns_udp_port: port(udp.local_addr())?,
            dns_tcp_port: port(tcp.local_addr())?,
        };
        let stop = CancellationToken::new();
        let router = metadata::router(guest.clone());
        let resolver = self.resolver;
        self.spawn("DHCP", &stop, dhcp::serve(dhcp_socket, guest.clone()));
        self.spawn("DNS relay (UDP)", &stop, dns::serve_udp(udp, resolver));
        self.spawn("DNS relay (TCP)", &stop, dns::serve_tcp(tcp, resolver));
        self.spawn("metadata", &stop, async move { axum::serve(web, router).await });
        Ok(Attached {
            guest: guest.clone(),
            rules,
            stop,
        })
    }

    fn spawn<F>(&self, name: &'static str, stop: &CancellationToken, service: F)
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let (stop, stopping) = (stop.clone(), self.tasks.clone());
        self.tasks.spawn(name, Kind::Background, async move {
            tokio::select! {
                ended = service => Ok(ended?),
                () = stop.cancelled() => Ok(()),
                () = stopping.stopping() => Ok(()),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tap_names_fit_and_differ() {
        let ids = [
            "0190a1b2-0000-7000-8000-000000000001",
            "0190a1b2-0000-7000-8000-000000000002",
        ];
        let names = ids.map(|id| tap_name(&MachineId::try_from(id.to_owned()).unwrap()));
        assert!(
            names.iter().all(|n| n.len() <= 15 && n.starts_with("hv")),
            "{names:?}"
        );
        assert_ne!(names[0], names[1]);
    }
}
