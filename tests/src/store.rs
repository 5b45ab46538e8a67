//! The store as Debian's `etcdctl` sees it, in plain text on loopback.

use anyhow::Result;

use crate::{Cmd, Need};

/// The three members that `hearth up` starts.
pub const MEMBERS: [&str; 3] = ["127.0.0.1:2379", "127.0.0.1:2381", "127.0.0.1:2383"];

/// What tests that use this module need.
pub const NEED: Need = Need::Program("etcdctl", "etcd-client");

/// `etcdctl` for all three members.
#[must_use]
pub fn etcdctl() -> Cmd {
    at(&MEMBERS)
}

/// `etcdctl` for some of them.
#[must_use]
pub fn at(endpoints: &[&str]) -> Cmd {
    Cmd::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={}", endpoints.join(",")))
}

/// The keys below `prefix`, in order.
///
/// # Errors
/// When the store does not answer.
pub fn keys(prefix: &str) -> Result<Vec<String>> {
    let output = etcdctl().words("get --prefix --keys-only").arg(prefix).ok()?;
    let lines = output.stdout.lines().filter(|line| !line.is_empty());
    Ok(lines.map(str::to_owned).collect())
}

/// Every key of PlasmaVMC that speaks of a VM or of its address or name.
///
/// # Errors
/// When the store does not answer.
pub fn keys_of_vms() -> Result<Vec<String>> {
    let mut all = vec![];
    for part in ["vms", "assign", "addresses", "vmnames", "names", "observed"] {
        all.extend(keys(&format!("/plasmavmc/v1/{part}/"))?);
    }
    Ok(all)
}
