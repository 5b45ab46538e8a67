//! Ports for test servers that must know theirs before they start.
//!
//! A port that the kernel hands out is taken by the next outgoing connection of anybody as soon as it is given back.
//! These are below that range, and each is leased: an abstract Unix socket of its number is bound, which other
//! processes that use this crate see, and which the kernel closes when the process ends, however it ends.
//!
//! What it does not know: who listens, and on what else than loopback.
//!
//! Entry points: [`keep_port`], [`free_port`].
//!
//! Invariants:
//! - no two leases at one time are of the same port;
//! - a lease leaves nothing behind.

use std::{
    io, mem,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    sync::atomic::{AtomicU32, Ordering},
};

/// Below the range from which the kernel takes ports for outgoing connections.
const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;

/// Where the next search of this process begins.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port on loopback that nobody listens on, TCP or UDP, and that no other test using this crate gets while the lease
/// lives.
#[derive(Debug)]
pub struct PortLease {
    port: u16,
    _held: UnixListener,
}

impl PortLease {
    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Leases a free port.
///
/// # Errors
/// When there is none.
pub fn free_port() -> io::Result<PortLease> {
    let span = u32::from(LAST - FIRST) + 1;
    // Processes begin at different places, so that they seldom try the same port.
    let begin = std::process::id().wrapping_mul(97);
    for _ in 0..span {
        let offset = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % span;
        let port = FIRST + u16::try_from(offset).unwrap_or(0);
        let name = SocketAddr::from_abstract_name(format!("hearth-test-port-{port}"))?;
        let Ok(held) = UnixListener::bind_addr(&name) else {
            continue;
        };
        if is_free(port) {
            return Ok(PortLease { port, _held: held });
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!("no free port from {FIRST} to {LAST}"),
    ))
}

/// A free port, leased until this process ends.
///
/// # Errors
/// When there is none.
pub fn keep_port() -> io::Result<u16> {
    let lease = free_port()?;
    let port = lease.port();
    mem::forget(lease);
    Ok(port)
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    #[test]
    fn leases_differ_and_can_be_bound() {
        let leases: Vec<PortLease> = (0..20).map(|_| free_port().unwrap()).collect();
        let ports: BTreeSet<u16> = leases.iter().map(PortLease::port).collect();
        assert_eq!(ports.len(), 20);
        for port in ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        }
    }

    #[test]
    fn a_lease_is_seen_by_others_and_ends() {
        let lease = free_port().unwrap();
        let name = SocketAddr::from_abstract_name(format!("hearth-test-port-{}", lease.port())).unwrap();
        assert!(UnixListener::bind_addr(&name).is_err());
        drop(lease);
        // As below.
        let patience = Instant::now() + Duration::from_secs(10);
        while UnixListener::bind_addr(&name).is_err() {
            assert!(Instant::now() < patience, "the lease goes on");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_taken_port_is_not_leased() {
        let lease = free_port().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, lease.port())).unwrap();
        assert!(!is_free(lease.port()));
        drop(listener);
        // A child that another test is just forking holds the listener until it executes its program.
        let patience = Instant::now() + Duration::from_secs(10);
        while !is_free(lease.port()) {
            assert!(Instant::now() < patience, "port {} stays taken", lease.port());
            thread::sleep(Duration::from_millis(5));
        }
    }
}
