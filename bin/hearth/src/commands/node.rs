//! The machines that guests run on.

use anyhow::Result;
use plasmavmc_client::types::{Node, NodeState, NodeUpdate};

use super::Env;
use crate::cli::Node as Command;
use crate::output::{Row, bytes};

impl Row for Node {
    const HEADER: &'static [&'static str] = &[
        "name",
        "state",
        "vms",
        "cpus",
        "memory",
        "network",
        "accelerator",
        "agent",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            state(self),
            self.vms.to_string(),
            format!("{}/{}", self.vcpus_claimed, self.vcpus),
            format!(
                "{}/{}",
                bytes(self.memory_bytes_claimed),
                bytes(self.memory_bytes >> 20 << 20)
            ),
            self.network_mode.clone(),
            self.accelerator.clone(),
            self.agent_version.clone(),
        ]
    }
}

pub(crate) async fn run(env: &Env, command: Command) -> Result<()> {
    let client = env.plasmavmc().await?;
    let cordon = |schedulable| NodeUpdate {
        schedulable: Some(schedulable),
        ..NodeUpdate::default()
    };
    match command {
        Command::List => env.out.list(&client.list_nodes().await?.items),
        Command::Show { name } => show(env, &client.get_node(&name).await?),
        Command::Cordon { name } => show(env, &client.update_node(&name, &cordon(false)).await?),
        Command::Uncordon { name } => show(env, &client.update_node(&name, &cordon(true)).await?),
        Command::Label { name, labels } => {
            let change = NodeUpdate {
                labels: labels.into_iter().collect(),
                ..NodeUpdate::default()
            };
            show(env, &client.update_node(&name, &change).await?)
        }
    }
}

fn state(node: &Node) -> String {
    let state = match node.state {
        NodeState::Ready => "ready",
        NodeState::Down => "down",
    };
    format!("{state}{}", if node.schedulable { "" } else { ", cordoned" })
}

fn show(env: &Env, node: &Node) -> Result<()> {
    let claimed = |claimed: String, all: String| format!("{claimed} of {all} claimed");
    let labels: Vec<String> = node
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let people = [
        ("name", node.name.clone()),
        ("state", state(node)),
        ("vms", node.vms.to_string()),
        (
            "cpus",
            claimed(node.vcpus_claimed.to_string(), node.vcpus.to_string()),
        ),
        (
            "memory",
            claimed(bytes(node.memory_bytes_claimed), bytes(node.memory_bytes)),
        ),
        (
            "disk",
            claimed(bytes(node.disk_bytes_claimed), bytes(node.disk_bytes)),
        ),
        ("numa cells", node.numa_cells.to_string()),
        ("labels", labels.join(", ")),
        ("network", node.network_mode.clone()),
        ("architecture", node.architecture.clone()),
        ("hypervisors", node.hypervisors.join(", ")),
        (
            "accelerator",
            format!("{}: {}", node.accelerator, node.accelerator_reason),
        ),
        ("agent", node.agent_version.clone()),
    ];
    env.out.one(node, &people)
}
