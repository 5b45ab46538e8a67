//! Zones to other servers over TCP: who may have them, and the stream of messages.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::PoisonError,
    time::Duration,
};

use flashdns_core::{
    Outcome, Rtype,
    limits::MAX_TCP_REPLY,
    transfer::{self, Asked, Kind, Transfer},
    tsig::Signer,
};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use crate::{
    keys::KnownKey,
    metrics::TransferLabels,
    server::Shared,
    signed::{self, Checked},
};

/// Transfers that run at once; further ones wait for a place as long as their connection lives.
pub(crate) const MAX_TRANSFERS: usize = 8;
/// A client that does not take a message for this long is dropped.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
const NOTAUTH: u16 = 9;
const REFUSED: u16 = 5;
const FORMERR: u16 = 1;

/// Addresses with the same first bits: `192.0.2.0/24`, `2001:db8::/32`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    address: u128,
    bits: u32,
    is_v4: bool,
}

/// A text that is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a network such as 192.0.2.0/24 or 2001:db8::/32")]
pub struct NetworkTextError(String);

fn number(address: IpAddr) -> (u128, bool) {
    match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, true),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => (u128::from(address.to_bits()) << 96, true),
            None => (address.to_bits(), false),
        },
    }
}

impl FromStr for Network {
    type Err = NetworkTextError;

    fn from_str(text: &str) -> Result<Self, NetworkTextError> {
        let wrong = || NetworkTextError(text.to_owned());
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let (address, is_v4) = number(address.parse().map_err(|_| wrong())?);
        let most = if is_v4 { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(wrong)?,
            None => most,
        };
        let network = Self { address, bits, is_v4 };
        if network.masked(address) == address {
            Ok(network)
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = if self.is_v4 {
            let [a, b, c, d, ..] = self.address.to_be_bytes();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(self.address))
        };
        write!(f, "{address}/{}", self.bits)
    }
}

impl Network {
    fn masked(self, address: u128) -> u128 {
        match self.bits {
            0 => 0,
            bits => address & (u128::MAX << (128 - bits)),
        }
    }

    pub(crate) fn contains(self, address: IpAddr) -> bool {
        let (address, is_v4) = number(address);
        is_v4 == self.is_v4 && self.masked(address) == self.address
    }
}

fn may(shared: &Shared, key: Option<&KnownKey>, client: IpAddr) -> bool {
    key.is_some_and(|key| key.may_transfer)
        || shared
            .transfer_networks
            .iter()
            .any(|network| network.contains(client))
}

fn count(shared: &Shared, key: Option<&KnownKey>, outcome: &'static str) {
    let key = key.map(|key| key.key.name().to_string()).unwrap_or_default();
    let labels = TransferLabels { key, outcome };
    shared.metrics.transfers.get_or_create(&labels).inc();
}

/// Whether a query asks for a transfer: a cheap look.
pub(crate) fn is_wanted(query: &[u8]) -> bool {
    transfer::may_ask(query)
}

/// Starts what a query asks for, or writes the refusal into `out`.
fn begin(
    shared: &Shared,
    query: &[u8],
    asked: Result<Asked, u16>,
    key: Option<&KnownKey>,
    client: IpAddr,
    out: &mut Vec<u8>,
) -> Option<(Transfer, Option<transfer::Changes>)> {
    let asked = match asked {
        Ok(asked) => asked,
        Err(rcode) => {
            count(shared, key, "refused");
            transfer::refuse(query, rcode, out);
            return None;
        }
    };
    if !may(shared, key, client) {
        count(shared, key, "refused");
        tracing::info!(%client, zone = %asked.zone, key = ?key.map(|key| key.key.name()), "a transfer is refused");
        transfer::refuse(query, REFUSED, out);
        return None;
    }
    let snapshot = flashdns_core::Snapshot::clone(&shared.published.load());
    let steps = asked.from.and_then(|from| {
        let journal = shared.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.between(from, snapshot.serial())
    });
    let begun = Transfer::start(snapshot, &asked, steps, query);
    match &begun {
        None => {
            count(shared, key, "refused");
            transfer::refuse(query, NOTAUTH, out);
        }
        Some((transfer, _)) => count(
            shared,
            key,
            match transfer.kind() {
                Kind::Whole => "whole",
                Kind::Changes => "changes",
                Kind::Current => "current",
            },
        ),
    }
    begun
}

/// Answers a query for a transfer on a stream.
pub(crate) async fn serve(
    stream: &mut TcpStream,
    shared: &Shared,
    query: &[u8],
    client: IpAddr,
) -> io::Result<Outcome> {
    let mut message = Vec::new();
    let (key, mut signer) = match signed::check(shared, query, &mut message) {
        Checked::Unsigned => (None, None),
        Checked::Good(key, signer) => (Some(key), Some(signer)),
        Checked::Refused => {
            count(shared, None, "refused");
            write(stream, &message).await?;
            return Ok(outcome(&message));
        }
    };
    let asked = transfer::asked(query).unwrap_or(Err(FORMERR));
    let slot = shared.transfers.acquire().await;
    let _slot = slot.map_err(io::Error::other)?;
    let Some((mut transfer, mut changes)) = begin(shared, query, asked, key.as_ref(), client, &mut message)
    else {
        let refused = outcome(&message);
        sign(&mut message, signer.as_mut());
        write(stream, &message).await?;
        return Ok(refused);
    };
    let room = key.as_ref().map_or(0, |key| key.key.room());
    while transfer.next(&mut changes, MAX_TCP_REPLY - room, &mut message) {
        sign(&mut message, signer.as_mut());
        write(stream, &message).await?;
    }
    Ok(outcome(&message))
}

/// What is counted for a reply.
fn outcome(message: &[u8]) -> Outcome {
    Outcome::Reply {
        rcode: message.get(3).map_or(0, |flags| u16::from(flags & 0xf)),
        rtype: Some(Rtype::AXFR),
    }
}

fn sign(message: &mut Vec<u8>, signer: Option<&mut Signer>) {
    if let Some(signer) = signer {
        signer.sign(message, signed::now_s());
    }
}

async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes(), message].concat();
    timeout(WRITE_DEADLINE, stream.write_all(&framed))
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

/// The reply to a query for changes over UDP: the SOA alone, which tells the other side to come over TCP
/// (RFC 1995, 2). A query for a whole zone is refused: RFC 5936 has it over TCP only.
pub(crate) fn over_udp(
    shared: &Shared,
    query: &[u8],
    key: Option<&KnownKey>,
    client: IpAddr,
    out: &mut Vec<u8>,
) {
    let asked = match transfer::asked(query) {
        Some(Ok(asked)) if asked.from.is_some() => asked,
        _ => {
            transfer::refuse(query, REFUSED, out);
            return;
        }
    };
    if !may(shared, key, client) {
        count(shared, key, "refused");
        transfer::refuse(query, REFUSED, out);
        return;
    }
    let snapshot = flashdns_core::Snapshot::clone(&shared.published.load());
    // From its own serial everybody has everything: the SOA alone.
    let current = Asked {
        from: Some(snapshot.serial()),
        ..asked
    };
    match Transfer::start(snapshot, &current, None, query) {
        Some((mut transfer, mut changes)) => {
            transfer.next(&mut changes, flashdns_core::limits::PLAIN_UDP_REPLY, out);
        }
        None => transfer::refuse(query, NOTAUTH, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses() {
        for (network, inside, outside) in [
            ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
            ("0.0.0.0/0", "203.0.113.9", "2001:db8::1"),
            ("2001:db8::/32", "2001:db8:ffff::", "2001:db9::"),
            ("::/0", "2001:db8::", "192.0.2.1"),
            ("127.0.0.0/8", "::ffff:127.0.0.1", "::1"),
        ] {
            let network: Network = network.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{network} {outside}");
            assert_eq!(network.to_string().parse::<Network>().unwrap(), network);
        }
        for text in ["", "192.0.2.1/24", "192.0.2.0/33", "x", "::1/129", "1.2.3.4/-1"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
