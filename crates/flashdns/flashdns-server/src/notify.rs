//! NOTIFY (RFC 1996): tells secondaries that there is something new. A task per secondary.
//!
//! Without an answer a message is repeated; whatever comes of it, a secondary also asks by itself in the SOA's
//! refresh time, so nothing depends on this.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use flashdns_core::{DnsName, transfer};
use hearth_service::tasks::{TaskError, Tasks};
use tokio::{
    net::UdpSocket,
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::server::Shared;

/// Changes that come together are told together.
const GATHER: Duration = Duration::from_millis(50);
/// Wait for answers to the first attempt; doubled for each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 5;
/// Longest answer that is read.
const MAX_ANSWER: usize = 512;

/// Keeps one secondary told of all zones until the stop.
pub(crate) async fn run(
    target: SocketAddr,
    zones: Vec<DnsName>,
    mut serial: watch::Receiver<u32>,
    shared: Arc<Shared>,
    tasks: Tasks,
) -> Result<(), TaskError> {
    let local: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let mut told = None;
    loop {
        tokio::select! {
            () = tasks.stopping() => return Ok(()),
            changed = serial.changed() => if changed.is_err() { return Ok(()) },
        }
        tokio::time::sleep(GATHER).await;
        let now = *serial.borrow_and_update();
        if told == Some(now) {
            continue;
        }
        told = Some(now);
        let mut left: BTreeSet<usize> = (0..zones.len()).collect();
        for attempt in 0..ATTEMPTS {
            let wait = FIRST_WAIT * 2_u32.pow(attempt);
            tokio::select! {
                () = tasks.stopping() => return Ok(()),
                // Something newer is told instead.
                changed = serial.changed() => {
                    if changed.is_err() { return Ok(()) }
                    serial.mark_changed();
                    break;
                }
                sent = tell(target, local, &zones, &mut left, wait, &shared) => {
                    if let Err(error) = sent {
                        tracing::debug!(%target, %error, "a secondary cannot be told");
                    }
                }
            }
            if left.is_empty() {
                break;
            }
        }
        if !left.is_empty() {
            shared.metrics.notify_unanswered.inc();
            tracing::debug!(%target, zones = left.len(), "a secondary does not answer");
        }
    }
}

/// One attempt: tells of the zones that are left, takes away those that are answered within `wait`.
async fn tell(
    target: SocketAddr,
    local: SocketAddr,
    zones: &[DnsName],
    left: &mut BTreeSet<usize>,
    wait: Duration,
    shared: &Shared,
) -> std::io::Result<()> {
    let deadline = Instant::now() + wait;
    // A port of its own for each attempt, and random ids: hard to answer for somebody else.
    let socket = UdpSocket::bind(local).await?;
    socket.connect(target).await?;
    let snapshot = shared.published.load_full();
    let mut seed = [0; 2];
    aws_lc_rs::rand::fill(&mut seed).map_err(|_| std::io::Error::other("no randomness"))?;
    let base = u16::from_be_bytes(seed);
    let id = |zone: usize| base.wrapping_add(u16::try_from(zone).unwrap_or(0)).to_be_bytes();
    let mut message = Vec::new();
    for &zone in left.iter() {
        let Some(name) = zones.get(zone) else { continue };
        if transfer::notify(&snapshot, name, id(zone), &mut message) {
            socket.send(&message).await?;
            shared.metrics.notify_sent.inc();
        }
    }
    let mut answer = [0; MAX_ANSWER];
    while !left.is_empty() {
        let Ok(received) = timeout_at(deadline, socket.recv(&mut answer)).await else {
            return Ok(());
        };
        let length = match received {
            Ok(length) => length,
            Err(error) => {
                // Nobody listens there now: not at once again.
                tokio::time::sleep_until(deadline).await;
                return Err(error);
            }
        };
        let is_answer = length >= 12 && answer[2] & 0xf8 == 0xa0;
        left.retain(|zone| !(is_answer && answer[..2] == id(*zone)));
    }
    Ok(())
}
