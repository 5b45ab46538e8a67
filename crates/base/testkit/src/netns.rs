//! Network namespaces: members on one machine with a network between them that can be cut.
//!
//! It uses `ip` and `nft` as an administrator would, each call bounded. It needs root; [`available`] tells. Delay and
//! reordering are not to be had here (these kernels have no netem).

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::process::{ProcessError, run_bounded};

/// Longest time for one `ip` or `nft`.
const WITHIN: Duration = Duration::from_secs(10);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// What went wrong with a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// A tool could not run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A tool refused.
    #[error("`{command}` failed: {output}")]
    Refused {
        /// The command.
        command: String,
        /// What it said.
        output: String,
    },
}

fn tool(words: &[&str]) -> Result<String, NetnsError> {
    let mut command = Command::new(words.first().copied().unwrap_or("ip"));
    command.args(words.get(1..).unwrap_or(&[]));
    let (status, output) = run_bounded(words.first().unwrap_or(&"ip"), command, WITHIN)?;
    if status.success() {
        return Ok(output);
    }
    Err(NetnsError::Refused {
        command: words.join(" "),
        output: output.trim().to_owned(),
    })
}

/// Whether this process can make namespaces: it is root, and the tools are there.
pub fn available() -> bool {
    nix::unistd::geteuid().is_root()
        && tool(&["ip", "netns", "list"]).is_ok()
        && tool(&["nft", "--version"]).is_ok()
        && Namespace::new("probe").is_ok()
}

/// A network namespace with its loopback up. Deleted when dropped, and with it its links.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace whose name begins with `label`; it is unique on this machine.
    pub fn new(label: &str) -> Result<Namespace, NetnsError> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hearth-{label}-{}-{number}", std::process::id());
        tool(&["ip", "netns", "add", &name])?;
        let namespace = Namespace { name };
        namespace.run(&["ip", "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a short command inside and returns its output.
    pub fn run(&self, words: &[&str]) -> Result<String, NetnsError> {
        let mut all = vec!["ip", "netns", "exec", &self.name];
        all.extend_from_slice(words);
        tool(&all)
    }

    /// Drops every packet that comes from `address`, until [`Namespace::unblock`]. One direction only.
    pub fn block(&self, address: Ipv4Addr) -> Result<(), NetnsError> {
        self.run(&["nft", "add", "table", "inet", "hearth_test"])?;
        let chain = "{ type filter hook input priority 0 ; policy accept ; }";
        self.run(&["nft", "add", "chain", "inet", "hearth_test", "cut", chain])?;
        let address = address.to_string();
        self.run(&[
            "nft",
            "add",
            "rule",
            "inet",
            "hearth_test",
            "cut",
            "ip",
            "saddr",
            &address,
            "drop",
        ])?;
        Ok(())
    }

    /// Lets everything through again.
    pub fn unblock(&self) -> Result<(), NetnsError> {
        // Adding first makes deleting work also when nothing was blocked.
        self.run(&["nft", "add", "table", "inet", "hearth_test"])?;
        self.run(&["nft", "delete", "table", "inet", "hearth_test"])?;
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nothing more can be done about a namespace that will not go.
        drop(tool(&["ip", "netns", "delete", &self.name]));
    }
}

/// A switch with any number of namespaces on it, in a namespace of its own.
#[derive(Debug)]
pub struct Network {
    switch: Namespace,
    members: Vec<(Namespace, Ipv4Addr)>,
}

impl Network {
    /// A network of `count` (at most 200) namespaces, with addresses 10.231.0.1 and up.
    pub fn new(label: &str, count: u8) -> Result<Network, NetnsError> {
        let switch = Namespace::new(&format!("{label}-switch"))?;
        switch.run(&["ip", "link", "add", "br0", "type", "bridge"])?;
        switch.run(&["ip", "link", "set", "br0", "up"])?;
        let mut network = Network {
            switch,
            members: Vec::new(),
        };
        for number in 1..=count.min(200) {
            network.add(label, Ipv4Addr::new(10, 231, 0, number))?;
        }
        Ok(network)
    }

    fn add(&mut self, label: &str, address: Ipv4Addr) -> Result<(), NetnsError> {
        let member = Namespace::new(label)?;
        let port = format!("port{}", self.members.len());
        let switch = &self.switch;
        switch.run(&[
            "ip",
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &member.name,
        ])?;
        switch.run(&["ip", "link", "set", &port, "master", "br0", "up"])?;
        member.run(&["ip", "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        member.run(&["ip", "link", "set", "eth0", "up"])?;
        self.members.push((member, address));
        Ok(())
    }

    /// The namespaces with their addresses.
    pub fn members(&self) -> &[(Namespace, Ipv4Addr)] {
        &self.members
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_stops_packets_in_one_direction_and_ends() {
        if !available() {
            eprintln!("skipped: needs root, ip and nft");
            return;
        }
        let network = Network::new("test", 2).unwrap();
        let [(a, a_address), (b, b_address)] = network.members() else {
            panic!("two members")
        };
        let reaches = |from: &Namespace, to: &Ipv4Addr| {
            from.run(&["ping", "-c", "1", "-W", "1", &to.to_string()]).is_ok()
        };
        if tool(&["ping", "-V"]).is_err() {
            eprintln!("skipped: needs ping");
            return;
        }
        assert!(reaches(a, b_address) && reaches(b, a_address));
        b.block(*a_address).unwrap();
        assert!(!reaches(a, b_address), "requests are dropped");
        b.unblock().unwrap();
        assert!(reaches(a, b_address));
        let name = a.name().to_owned();
        drop(network);
        assert!(!tool(&["ip", "netns", "list"]).unwrap().contains(&name));
    }
}
