//! The node's nftables table, written as a whole each time: a guest may only speak as itself, and of
//! this machine it reaches its DHCP, DNS and metadata services and nothing else.

use std::io;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::NetError;

const LIMIT: Duration = Duration::from_secs(10);

/// What the table says about one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GuestRules {
    pub(super) tap: String,
    pub(super) mac: String,
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) gateway: Ipv4Addr,
    /// Ports where this guest's services really listen.
    pub(super) metadata_port: u16,
    pub(super) dns_udp_port: u16,
    pub(super) dns_tcp_port: u16,
}

/// First address of the network that `address` is in.
fn network(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
    Ipv4Addr::from(u32::from(address) & mask)
}

/// The script that replaces the table in one transaction. `add` before `delete` makes `delete` succeed.
pub(super) fn script<'a>(table: &str, guests: impl Iterator<Item = &'a GuestRules>) -> String {
    let (mut spoof, mut redirect, mut masquerade, mut input) =
        (String::new(), String::new(), String::new(), String::new());
    for guest in guests {
        let GuestRules {
            tap,
            mac,
            address,
            prefix,
            gateway,
            ..
        } = guest;
        spoof.push_str(&format!(
            "    iifname \"{tap}\" ether saddr != {mac} counter drop\n\
             \x20   iifname \"{tap}\" meta nfproto ipv6 drop\n\
             \x20   iifname \"{tap}\" ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp dport 67 accept\n\
             \x20   iifname \"{tap}\" ip saddr != {address} counter drop\n"
        ));
        redirect.push_str(&format!(
            "    iifname \"{tap}\" ip daddr 169.254.169.254 tcp dport 80 redirect to :{}\n\
             \x20   iifname \"{tap}\" ip daddr {gateway} udp dport 53 redirect to :{}\n\
             \x20   iifname \"{tap}\" ip daddr {gateway} tcp dport 53 redirect to :{}\n",
            guest.metadata_port, guest.dns_udp_port, guest.dns_tcp_port
        ));
        masquerade.push_str(&format!(
            "    ip saddr {address} ip daddr != {}/{prefix} oifname != \"hv*\" masquerade\n",
            network(*address, *prefix)
        ));
        input.push_str(&format!(
            "    iifname \"{tap}\" ct state established,related accept\n\
             \x20   iifname \"{tap}\" ct status dnat accept\n\
             \x20   iifname \"{tap}\" udp dport 67 accept\n\
             \x20   iifname \"{tap}\" icmp type echo-request accept\n\
             \x20   iifname \"{tap}\" counter drop\n"
        ));
    }
    format!(
        "add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n\
         \x20 chain from_guest {{\n    type filter hook prerouting priority raw; policy accept;\n{spoof}  }}\n\
         \x20 chain to_services {{\n    type nat hook prerouting priority dstnat; policy accept;\n{redirect}  }}\n\
         \x20 chain to_outside {{\n    type nat hook postrouting priority srcnat; policy accept;\n{masquerade}  }}\n\
         \x20 chain to_host {{\n    type filter hook input priority filter; policy accept;\n{input}  }}\n}}\n"
    )
}

/// Removes the table, whether or not it is there.
pub(super) fn removal(table: &str) -> String {
    format!("add table inet {table}\ndelete table inet {table}\n")
}

/// Runs a script; all of it or nothing.
pub(super) async fn apply(script: &str) -> Result<(), NetError> {
    let io = |action| move |source: io::Error| NetError::Io { action, source };
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(io("start `nft` (package nftables)"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(script.as_bytes())
            .await
            .map_err(io("talk to `nft`"))?;
    }
    let output = tokio::time::timeout(LIMIT, child.wait_with_output())
        .await
        .map_err(|_| NetError::Nft(format!("not done after {} s", LIMIT.as_secs())))?
        .map_err(io("wait for `nft`"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(NetError::Nft(
        text.lines().next().unwrap_or("no message").to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_addresses() {
        let address = Ipv4Addr::new(10, 77, 3, 4);
        for (prefix, expected) in [
            (16, "10.77.0.0"),
            (24, "10.77.3.0"),
            (32, "10.77.3.4"),
            (0, "0.0.0.0"),
        ] {
            assert_eq!(network(address, prefix).to_string(), expected);
        }
    }
}
