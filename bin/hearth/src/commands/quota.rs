//! What a project's VMs may take.

use anyhow::Result;
use hearth_types::ErrorKind;
use plasmavmc_client::types::Quota;

use super::Env;
use crate::cli::{Limit, Quota as Command};
use crate::failure::fail;
use crate::output::bytes;

pub(crate) async fn run(env: &Env, command: Command) -> Result<()> {
    let client = env.plasmavmc().await?;
    let project = env.context.project(env.global.project.as_ref())?;
    let known = client.get_quota(&project).await?;
    match command {
        Command::Show => show(env, &known),
        Command::Set(wanted) => {
            let mut limits = known.limits;
            limits.vms = count(wanted.vms, limits.vms)?;
            limits.vcpus = count(wanted.cpus, limits.vcpus)?;
            limits.memory_bytes = wanted.memory.map_or(limits.memory_bytes, |limit| limit.0);
            limits.disk_bytes = wanted.disk.map_or(limits.disk_bytes, |limit| limit.0);
            show(env, &client.set_quota(&project, &limits).await?)
        }
    }
}

/// The new limit, or the one before.
fn count(wanted: Option<Limit>, before: Option<u32>) -> Result<Option<u32>> {
    match wanted {
        None => Ok(before),
        Some(Limit(None)) => Ok(None),
        Some(Limit(Some(number))) => u32::try_from(number).map(Some).map_err(|_| {
            fail(
                ErrorKind::InvalidArgument,
                format!("{number} is too many"),
                "give a smaller number, or none",
            )
        }),
    }
}

fn show(env: &Env, quota: &Quota) -> Result<()> {
    let line = |used: String, limit: Option<String>| match limit {
        Some(limit) => format!("{used} of {limit}"),
        None => format!("{used}, no limit"),
    };
    let limits = quota.limits;
    let people = [
        ("project", quota.project.to_string()),
        (
            "vms",
            line(quota.vms_used.to_string(), limits.vms.map(|n| n.to_string())),
        ),
        (
            "cpus",
            line(quota.vcpus_used.to_string(), limits.vcpus.map(|n| n.to_string())),
        ),
        (
            "memory",
            line(bytes(quota.memory_bytes_used), limits.memory_bytes.map(bytes)),
        ),
        (
            "disk",
            line(bytes(quota.disk_bytes_used), limits.disk_bytes.map(bytes)),
        ),
    ];
    env.out.one(quota, &people)
}
