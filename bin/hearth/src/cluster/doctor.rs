//! `hearth doctor`: looks for what commonly stands in the way; each finding comes with its cure.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use hearth_types::ErrorKind;
use nix::sys::statvfs::statvfs;
use serde::Serialize;

use super::control;
use super::files::machine_mib;
use super::init::Wanted;
use super::layout::{Choices, Layout};
use crate::context::Context;
use crate::failure::fail;
use crate::output::{Output, Row, bytes};
use crate::processes::{Known, holder_of};

/// The packages that a running cluster needs; the same list that `./hearth up` installs from.
const PACKAGES: &str = include_str!("../../../../scripts/packages");
const LEAST_DISK: u64 = 5 << 30;
const LEAST_MEMORY_MIB: u64 = 2048;
/// 2026-01-01: a clock before this build's year makes certificates invalid.
const EARLIEST_CLOCK_S: u64 = 1_767_225_600;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Warning,
    Fault,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    cure: String,
}

impl Row for Finding {
    const HEADER: &'static [&'static str] = &["check", "verdict", "found", "cure"];

    fn cells(&self) -> Vec<String> {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Fault => "FAULT",
        };
        vec![
            self.check.to_owned(),
            verdict.to_owned(),
            self.found.clone(),
            self.cure.clone(),
        ]
    }
}

fn finding(check: &'static str, verdict: Verdict, found: impl Into<String>, cure: &str) -> Finding {
    let cure = if verdict == Verdict::Ok {
        String::new()
    } else {
        cure.to_owned()
    };
    Finding {
        check,
        verdict,
        found: found.into(),
        cure,
    }
}

pub(crate) async fn run(data: &Path, wanted: &Wanted, context: &Context, out: Output) -> Result<()> {
    let layout = layout(data, wanted);
    let mut findings = vec![packages(), kvm(), memory(), disk(data), clock()];
    findings.extend(ports(&layout));
    findings.extend(guards(&layout).await);
    findings.extend(nodes(context).await);
    out.list(&findings)?;
    let faults = findings.iter().filter(|f| f.verdict == Verdict::Fault).count();
    if faults == 0 {
        return Ok(());
    }
    Err(fail(
        ErrorKind::FailedPrecondition,
        format!("{faults} faults were found"),
        "each line above names its cure",
    ))
}

/// The existing cluster's, or that of one that would be made now.
fn layout(data: &Path, wanted: &Wanted) -> Layout {
    Layout::load(data).unwrap_or_else(|_| {
        let nodes = wanted.nodes.unwrap_or(3);
        let choices = Choices {
            domain: "hearth.internal".to_owned(),
            nodes,
            members: Choices::members_for(nodes),
            base_port: wanted.base_port,
        };
        Layout {
            data: data.into(),
            choices,
        }
    })
}

fn packages() -> Finding {
    let wanted = PACKAGES
        .lines()
        .filter_map(|l| l.strip_prefix("run "))
        .filter_map(|l| l.split(' ').next());
    let missing: Vec<&str> = wanted
        .filter(|name| {
            let query = Command::new("dpkg-query")
                .args(["-W", "-f", "${db:Status-Status}", name])
                .output();
            // Without dpkg nothing can be said; the programs are looked for when they are needed.
            query.is_ok_and(|o| o.stdout != b"installed")
        })
        .collect();
    let verdict = if missing.is_empty() {
        Verdict::Ok
    } else {
        Verdict::Fault
    };
    let found = if missing.is_empty() {
        "all installed".to_owned()
    } else {
        format!("missing: {}", missing.join(" "))
    };
    finding(
        "packages",
        verdict,
        found,
        &format!("apt-get install {}", missing.join(" ")),
    )
}

fn kvm() -> Finding {
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        // Whether real kernels run under it is tried by the agents; see the line about nodes.
        Ok(_) => finding("/dev/kvm", Verdict::Ok, "can be opened", ""),
        Err(error) => finding(
            "/dev/kvm",
            Verdict::Warning,
            format!("cannot be opened: {error}"),
            "guests run emulated (slower); switch virtualisation on in the firmware and join the group kvm",
        ),
    }
}

fn memory() -> Finding {
    let mib = machine_mib();
    let verdict = if mib < LEAST_MEMORY_MIB {
        Verdict::Warning
    } else {
        Verdict::Ok
    };
    finding(
        "memory",
        verdict,
        format!("{mib} MiB"),
        "use `hearth up --nodes 1`, or a machine with 2 GiB or more",
    )
}

fn disk(data: &Path) -> Finding {
    let folder = data.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    match statvfs(folder) {
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            let verdict = if free < LEAST_DISK {
                Verdict::Fault
            } else {
                Verdict::Ok
            };
            let found = format!("{} free at {}", bytes(free >> 30 << 30), folder.display());
            finding(
                "disk",
                verdict,
                found,
                "make room: images, disks and logs need 5 GiB or more",
            )
        }
        Err(error) => finding(
            "disk",
            Verdict::Warning,
            format!("cannot look: {error}"),
            "check the data folder",
        ),
    }
}

fn clock() -> Finding {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let verdict = if now < EARLIEST_CLOCK_S {
        Verdict::Fault
    } else {
        Verdict::Ok
    };
    let found = if now < EARLIEST_CLOCK_S {
        "lies in the past"
    } else {
        "plausible"
    };
    finding(
        "clock",
        verdict,
        found,
        "set it, for example with `timedatectl set-ntp true`: certificates depend on it",
    )
}

fn ports(layout: &Layout) -> Vec<Finding> {
    let mut findings = vec![];
    for part in layout.parts() {
        let own = Known::from_file(&layout.pid_file(&part.name));
        for port in &part.ports {
            let Some(holder) = holder_of(*port) else { continue };
            if own.is_some_and(|k| {
                holder.contains(&format!("pid {}", k.pid)) || holder.contains("another user")
            }) {
                continue;
            }
            findings.push(finding(
                "ports",
                Verdict::Fault,
                format!("{port}, which {} needs, is held by {holder}", part.name),
                "stop that process, or make the cluster with --base-port",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(finding(
            "ports",
            Verdict::Ok,
            "free, or held by Hearth itself",
            "",
        ));
    }
    findings
}

/// The nodes' guards, if the cluster runs here.
async fn guards(layout: &Layout) -> Vec<Finding> {
    let mut findings = vec![];
    for part in layout.parts().iter().filter(|part| part.role == "guard") {
        if Known::from_file(&layout.pid_file(&part.name)).is_none() {
            continue;
        }
        let (verdict, found) = match control::guard_status(&layout.control_socket(&part.name)).await {
            Ok(status) => {
                let standing = status.standing;
                let well = standing.lease_held && standing.level == "run" && !standing.fenced;
                let line = format!("{}: {}; memory {}", part.name, standing.line(), status.memory);
                (if well { Verdict::Ok } else { Verdict::Warning }, line)
            }
            Err(error) => (Verdict::Fault, format!("{}: {error:#}", part.name)),
        };
        let cure = "without the lease, guests that may be restarted elsewhere cannot run here; `hearth status` shows \
                    the store, the guard's log says more";
        findings.push(finding("guard", verdict, found, cure));
    }
    findings
}

/// What the agents found out about this machine, if the cluster runs and somebody is signed in.
async fn nodes(context: &Context) -> Vec<Finding> {
    let Ok(client) = context.plasmavmc().await else {
        return vec![];
    };
    let Ok(nodes) = client.list_nodes().await else {
        return vec![];
    };
    let nodes = nodes.items.into_iter().map(|node| {
        let verdict = if node.accelerator == "kvm" {
            Verdict::Ok
        } else {
            Verdict::Warning
        };
        finding(
            "node",
            verdict,
            format!(
                "{}: {} ({})",
                node.name, node.accelerator, node.accelerator_reason
            ),
            "guests work, but emulated: on real hardware switch virtualisation on in the firmware",
        )
    });
    nodes.collect()
}
