//! What a cluster on one machine consists of: processes, ports, files. Chosen once, at the first
//! `hearth cluster init`, and kept in DATA/conf/cluster.toml.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hearth_types::{ErrorKind, Name};
use serde::{Deserialize, Serialize};

use crate::failure::fail;

/// Most nodes that one machine is asked to act as.
pub(crate) const MAX_NODES: u32 = 16;

/// The choices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Choices {
    /// Names of everything end in it; also the trust domain of the certificates.
    pub(crate) domain: String,
    /// Number of agents.
    pub(crate) nodes: u32,
    /// Number of Chainfire members.
    pub(crate) members: u32,
    /// None: the well-known ports; else all ports count from this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) base_port: Option<u16>,
}

impl Choices {
    /// One member for one or two nodes: two members would stop when either stops.
    pub(crate) const fn members_for(nodes: u32) -> u32 {
        if nodes >= 3 { 3 } else { 1 }
    }
}

/// Where everything of a cluster is.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) data: PathBuf,
    pub(crate) choices: Choices,
}

/// One process of the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// Process name: files of configuration, log, pid.
    pub(crate) name: String,
    /// Role of `hearthd`.
    pub(crate) role: &'static str,
    /// Parts of one stage are started together, after those of lower stages.
    pub(crate) stage: u32,
    /// Path of its identity, and name of its certificate.
    pub(crate) identity: String,
    pub(crate) certificate: String,
    /// Loopback ports that it listens on, the one that answers /readyz first.
    pub(crate) ports: Vec<u16>,
}

impl Layout {
    /// The layout of an existing data folder.
    pub(crate) fn load(data: &Path) -> Result<Layout> {
        let path = data.join("conf/cluster.toml");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(fail(
                    ErrorKind::FailedPrecondition,
                    format!("there is no cluster in the data folder `{}`", data.display()),
                    "`hearth up` makes and starts one; --data-dir names another folder",
                ));
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", path.display())),
        };
        let choices = toml::from_str(&text).with_context(|| format!("`{}` is not valid", path.display()))?;
        Ok(Layout {
            data: data.into(),
            choices,
        })
    }

    pub(crate) fn exists(data: &Path) -> bool {
        data.join("conf/cluster.toml").exists()
    }

    /// Ports in the order: Chainfire clients and peers, Aegis, PlasmaVMC, DNS, DNS's API.
    fn port(&self, well_known: u16, number: u16) -> u16 {
        self.choices
            .base_port
            .map_or(well_known, |base| base.saturating_add(number))
    }

    /// Client and peer port of a member (counted from 1).
    pub(crate) fn member_ports(&self, member: u32) -> (u16, u16) {
        let step = u16::try_from(2 * (member.max(1) - 1)).unwrap_or(u16::MAX);
        (self.port(2379 + step, step), self.port(2380 + step, step + 1))
    }

    pub(crate) fn aegis_port(&self) -> u16 {
        self.port(8443, 10)
    }

    pub(crate) fn plasmavmc_port(&self) -> u16 {
        self.port(8444, 11)
    }

    pub(crate) fn dns_port(&self) -> u16 {
        self.port(5300, 12)
    }

    pub(crate) fn dns_api_port(&self) -> u16 {
        self.port(8081, 13)
    }

    pub(crate) fn aegis_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.aegis_port())
    }

    pub(crate) fn plasmavmc_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.plasmavmc_port())
    }

    pub(crate) fn flashdns_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.dns_api_port())
    }

    pub(crate) fn pki(&self, file: &str) -> PathBuf {
        self.data.join("pki").join(file)
    }

    pub(crate) fn conf(&self, name: &str) -> PathBuf {
        self.data.join(format!("conf/{name}.toml"))
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.data.join(format!("log/{name}.log"))
    }

    pub(crate) fn pid_file(&self, name: &str) -> PathBuf {
        self.data.join(format!("run/{name}.pid"))
    }

    /// Where a process keeps what it has.
    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.data.join(name)
    }

    pub(crate) fn node_name(number: u32) -> String {
        format!("node{number:02}")
    }

    /// The image whose kernel the agents try KVM with.
    pub(crate) fn probe_image(&self) -> PathBuf {
        self.data.join("probe.qcow2")
    }

    /// `host:port` of every Chainfire member.
    pub(crate) fn chainfire_endpoints(&self) -> Vec<String> {
        (1..=self.choices.members)
            .map(|m| format!("127.0.0.1:{}", self.member_ports(m).0))
            .collect()
    }

    /// All processes, in the order of starting.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let part = |name: &str, role, stage, ports| Part {
            name: name.to_owned(),
            role,
            stage,
            identity: format!("service/{role}"),
            certificate: name.to_owned(),
            ports,
        };
        let mut parts = vec![];
        for member in 1..=self.choices.members {
            let (client, peer) = self.member_ports(member);
            parts.push(part(
                &format!("chainfire-{member}"),
                "chainfire",
                1,
                vec![client, peer],
            ));
        }
        parts.push(part("aegis", "aegis", 2, vec![self.aegis_port()]));
        parts.push(part(
            "flashdns",
            "flashdns",
            3,
            vec![self.dns_api_port(), self.dns_port()],
        ));
        parts.push(part("plasmavmc", "plasmavmc", 3, vec![self.plasmavmc_port()]));
        for (role, stage) in [("guard", 4), ("agent", 5)] {
            parts.extend(self.node_parts(role, stage));
        }
        parts
    }

    /// One for each node. The guards are there before the agents, and after them.
    fn node_parts(&self, role: &'static str, stage: u32) -> impl Iterator<Item = Part> {
        (1..=self.choices.nodes)
            .map(Layout::node_name)
            .map(move |node| Part {
                name: format!("{role}-{node}"),
                role,
                stage,
                identity: format!("node/{node}"),
                certificate: format!("{role}-{node}"),
                ports: vec![],
            })
    }

    /// Folder of a node's part: `agent` or `guard`.
    pub(crate) fn node_state(&self, role: &str, node: &str) -> PathBuf {
        self.state(&format!("{role}-{node}"))
    }

    /// How readiness of a part is asked for (the supervisor's notation).
    pub(crate) fn ready_target(&self, part: &Part) -> String {
        match part.ports.first() {
            Some(port) => format!("https://127.0.0.1:{port}/readyz"),
            None => format!("unix:{}", self.control_socket(&part.name).display()),
        }
    }

    pub(crate) fn control_socket(&self, agent: &str) -> PathBuf {
        self.state(agent).join("control.sock")
    }
}

/// Checks what the user chose.
pub(crate) fn check(choices: &Choices) -> Result<()> {
    if choices.nodes == 0 || choices.nodes > MAX_NODES {
        return Err(fail(
            ErrorKind::InvalidArgument,
            format!("--nodes {} is out of range", choices.nodes),
            format!("give 1 to {MAX_NODES}"),
        ));
    }
    if !choices.domain.contains('.') || choices.domain.split('.').any(|l| l.parse::<Name>().is_err()) {
        return Err(fail(
            ErrorKind::InvalidArgument,
            format!(
                "--domain `{}` is not a domain of two or more labels",
                choices.domain
            ),
            "use letters, digits and hyphens, such as `hearth.internal`",
        ));
    }
    if choices
        .base_port
        .is_some_and(|base| !(1024..=65000).contains(&base))
    {
        return Err(fail(
            ErrorKind::InvalidArgument,
            "--base-port is out of range",
            "give 1024 to 65000",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn layout(nodes: u32, base_port: Option<u16>) -> Layout {
        let members = Choices::members_for(nodes);
        let choices = Choices {
            domain: "hearth.internal".into(),
            nodes,
            members,
            base_port,
        };
        check(&choices).unwrap();
        Layout {
            data: "/d".into(),
            choices,
        }
    }

    #[test]
    fn the_well_known_ports() {
        let layout = layout(3, None);
        assert_eq!(
            layout.chainfire_endpoints(),
            ["127.0.0.1:2379", "127.0.0.1:2381", "127.0.0.1:2383"]
        );
        assert_eq!(layout.member_ports(3), (2383, 2384));
        assert_eq!(layout.aegis_url(), "https://127.0.0.1:8443");
        assert_eq!(layout.dns_port(), 5300);
    }

    #[test]
    fn no_port_is_used_twice() {
        for base in [None, Some(20000)] {
            let ports: Vec<u16> = layout(3, base)
                .parts()
                .into_iter()
                .flat_map(|p| p.ports)
                .collect();
            assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len());
            assert_eq!(ports.len(), 10);
        }
    }

    #[test]
    fn a_small_machine_gets_one_member() {
        assert_eq!(layout(1, None).parts().len(), 6);
        assert_eq!(layout(3, None).parts().len(), 12);
    }

    #[test]
    fn choices_that_cannot_work_are_refused() {
        let sound = layout(3, None).choices;
        for broken in [
            Choices {
                nodes: 0,
                ..sound.clone()
            },
            Choices {
                nodes: 99,
                ..sound.clone()
            },
            Choices {
                domain: "local".into(),
                ..sound.clone()
            },
            Choices {
                domain: "a..b".into(),
                ..sound.clone()
            },
            Choices {
                base_port: Some(80),
                ..sound.clone()
            },
        ] {
            assert!(check(&broken).is_err(), "{broken:?}");
        }
    }
}
