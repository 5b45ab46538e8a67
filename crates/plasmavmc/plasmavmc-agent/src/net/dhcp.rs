//! DHCP for one guest on one tap: it hands out exactly the address that is assigned (RFC 2131).

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use super::Guest;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// The address never changes; a day lets a guest notice a changed resolver or name.
const LEASE_S: u32 = 24 * 3600;
/// Largest request that is read.
const MAX_BYTES: usize = 1500;

/// The tap's socket: bound to the device, so that several agents and other servers do not meet.
pub(super) fn socket(tap: &str) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(tap.as_bytes()))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, SERVER_PORT)).into())?;
    UdpSocket::from_std(socket.into())
}

/// Answers until dropped.
pub(super) async fn serve(socket: UdpSocket, guest: Guest) -> io::Result<()> {
    let mut buffer = [0; MAX_BYTES];
    loop {
        let n = match socket.recv(&mut buffer).await {
            Ok(n) => n,
            // The device is going away, or a late error of an answer: neither ends the service.
            Err(error) => {
                tracing::debug!(%error, vm = %guest.id, "DHCP receive");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(request) = Message::decode(&mut Decoder::new(buffer.get(..n).unwrap_or_default())) else {
            continue;
        };
        let Some(answer) = answer(&request, &guest) else {
            continue;
        };
        let to = if request.ciaddr().is_unspecified() {
            Ipv4Addr::BROADCAST
        } else {
            request.ciaddr()
        };
        let mut bytes = Vec::new();
        if let Err(error) = answer.encode(&mut Encoder::new(&mut bytes)) {
            tracing::warn!(%error, vm = %guest.id, "cannot encode a DHCP answer");
            continue;
        }
        if let Err(error) = socket.send_to(&bytes, SocketAddrV4::new(to, CLIENT_PORT)).await {
            tracing::debug!(%error, vm = %guest.id, "DHCP answer");
        }
    }
}

/// The answer to a request, if it deserves one.
fn answer(request: &Message, guest: &Guest) -> Option<Message> {
    if request.opcode() != Opcode::BootRequest || request.chaddr() != guest.mac {
        return None;
    }
    let kind = match request.opts().get(OptionCode::MessageType) {
        Some(DhcpOption::MessageType(kind)) => *kind,
        _ => return None,
    };
    let other_server = matches!(request.opts().get(OptionCode::ServerIdentifier),
        Some(DhcpOption::ServerIdentifier(server)) if *server != guest.gateway);
    let wanted = match request.opts().get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(address)) => *address,
        _ => request.ciaddr(),
    };
    let kind = match kind {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request if other_server => return None,
        MessageType::Request if wanted == guest.address => MessageType::Ack,
        MessageType::Request => MessageType::Nak,
        MessageType::Inform => MessageType::Ack,
        _ => return None,
    };
    let mut answer = Message::default();
    answer
        .set_opcode(Opcode::BootReply)
        .set_xid(request.xid())
        .set_flags(request.flags());
    answer
        .set_chaddr(request.chaddr())
        .set_siaddr(guest.gateway)
        .set_ciaddr(request.ciaddr());
    let options = answer.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(guest.gateway));
    if kind == MessageType::Nak {
        return Some(answer);
    }
    options.insert(DhcpOption::AddressLeaseTime(LEASE_S));
    options.insert(DhcpOption::SubnetMask(mask(guest.prefix)));
    options.insert(DhcpOption::Router(vec![guest.gateway]));
    // The agent relays to the node's resolver: guests never need a route to it.
    options.insert(DhcpOption::DomainNameServer(vec![guest.gateway]));
    options.insert(DhcpOption::Hostname(guest.hostname.clone()));
    if !guest.search_domain.is_empty() {
        options.insert(DhcpOption::DomainName(guest.search_domain.clone()));
    }
    answer.set_yiaddr(guest.address);
    Some(answer)
}

fn mask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tests::guest;

    fn request(kind: MessageType, mac: &[u8], options: &[DhcpOption]) -> Message {
        let mut message = Message::new_with_id(
            7,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            mac,
        );
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        options.iter().for_each(|o| {
            message.opts_mut().insert(o.clone());
        });
        message
    }

    fn kind(answer: Option<Message>) -> Option<MessageType> {
        match answer?.opts().get(OptionCode::MessageType) {
            Some(DhcpOption::MessageType(kind)) => Some(*kind),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn exactly_the_assigned_address_is_handed_out() {
        let guest = guest("vm");
        let offer = answer(&request(MessageType::Discover, &guest.mac, &[]), &guest).unwrap();
        assert_eq!((offer.yiaddr(), offer.xid()), (guest.address, 7));
        let mask = DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 0, 0));
        assert_eq!(offer.opts().get(OptionCode::SubnetMask), Some(&mask));
        let own = [DhcpOption::RequestedIpAddress(guest.address)];
        assert_eq!(
            kind(answer(&request(MessageType::Request, &guest.mac, &own), &guest)),
            Some(MessageType::Ack)
        );
        let other = [DhcpOption::RequestedIpAddress(Ipv4Addr::new(10, 77, 0, 10))];
        assert_eq!(
            kind(answer(&request(MessageType::Request, &guest.mac, &other), &guest)),
            Some(MessageType::Nak)
        );
    }

    #[test]
    fn strangers_and_other_servers_offers_are_left_alone() {
        let guest = guest("vm");
        assert!(answer(&request(MessageType::Discover, &[2, 0, 0, 0, 0, 8], &[]), &guest).is_none());
        let elsewhere = [DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 0, 0, 1))];
        assert!(answer(&request(MessageType::Request, &guest.mac, &elsewhere), &guest).is_none());
        assert!(answer(&request(MessageType::Release, &guest.mac, &[]), &guest).is_none());
    }
}
