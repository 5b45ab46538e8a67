//! Ports for test servers that must know theirs before they start.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Below the range from which the kernel takes ports for outgoing connections.
const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;

static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port on loopback that nobody listens on, TCP or UDP, and that no other test process using this module gets
/// while the lease lives.
#[derive(Debug)]
pub struct PortLease {
    port: u16,
    path: PathBuf,
    // Locked; the kernel lets go when the process dies.
    _lock: File,
}

impl PortLease {
    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PortLease {
    fn drop(&mut self) {
        // Another process may lock a file that is being removed; it then holds a lease that a third cannot see. The
        // port is still probed by binding, so the worst is a test that fails to bind.
        drop(fs::remove_file(&self.path));
        TAKEN
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.port);
    }
}

/// Leases a free port.
pub fn free_port() -> io::Result<PortLease> {
    let folder = std::env::temp_dir().join("hearth-test-ports");
    fs::create_dir_all(&folder)?;
    let span = u32::from(LAST - FIRST) + 1;
    // Processes begin at different places, so that they seldom try the same port.
    let begin = std::process::id().wrapping_mul(97);
    for step in 0..span {
        let offset = begin.wrapping_add(step) % span;
        let port = FIRST + u16::try_from(offset).unwrap_or(0);
        if !TAKEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port) {
            continue;
        }
        let path = folder.join(port.to_string());
        let lock = File::create(&path)?;
        if lock.try_lock().is_ok() && is_free(port) {
            return Ok(PortLease {
                port,
                path,
                _lock: lock,
            });
        }
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&port);
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!("no free port from {FIRST} to {LAST}"),
    ))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn leases_differ_and_can_be_bound() {
        let leases: Vec<PortLease> = (0..20).map(|_| free_port().unwrap()).collect();
        let ports: BTreeSet<u16> = leases.iter().map(PortLease::port).collect();
        assert_eq!(ports.len(), 20);
        for port in ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        }
        let path = leases.first().unwrap().path.clone();
        assert!(path.exists());
        drop(leases);
        assert!(!path.exists());
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
