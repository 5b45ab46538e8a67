//! The machines that guests run on.

use anyhow::Result;
use plasmavmc_client::types::{Node, NodeState};

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
        let state = match self.state {
            NodeState::Ready => "ready",
            NodeState::Down => "down",
        };
        vec![
            self.name.clone(),
            state.to_owned(),
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
    match command {
        Command::List => env
            .out
            .list(&env.context.plasmavmc().await?.list_nodes().await?.items),
    }
}
