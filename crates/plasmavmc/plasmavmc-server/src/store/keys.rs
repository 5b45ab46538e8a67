//! Where things are kept in Chainfire. Private to this service, but for the published names.

use std::net::Ipv4Addr;

use hearth_types::{ImageId, Name, ProjectId, VmId};
use uuid::Uuid;

pub(crate) const VMS: &str = "/plasmavmc/v1/vms/";
pub(crate) const OBSERVED: &str = "/plasmavmc/v1/observed/";
pub(crate) const ASSIGN: &str = "/plasmavmc/v1/assign/";
pub(crate) const NODES: &str = "/plasmavmc/v1/nodes/";
pub(crate) const SESSIONS: &str = "/plasmavmc/v1/sessions/";
pub(crate) const ADDRESSES: &str = "/plasmavmc/v1/addresses/";
pub(crate) const VM_NAMES: &str = "/plasmavmc/v1/vmnames/";
pub(crate) const IDEMPOTENCY: &str = "/plasmavmc/v1/idempotency/";
pub(crate) const REQUESTS: &str = "/plasmavmc/v1/requests/";
pub(crate) const OPERATIONS: &str = "/plasmavmc/v1/operations/";
pub(crate) const IMAGES: &str = "/plasmavmc/v1/images/";
pub(crate) const IMAGE_NAMES: &str = "/plasmavmc/v1/imagenames/";
pub(crate) const QUOTAS: &str = "/plasmavmc/v1/quotas/";
pub(crate) const GROUPS: &str = "/plasmavmc/v1/groups/";
pub(crate) const EVICTED: &str = "/plasmavmc/v1/evicted/";
/// Held by the replica that runs the background reconciler.
pub(crate) const LEADER: &str = "/plasmavmc/v1/leader";

pub(crate) fn vm(project: ProjectId, vm: VmId) -> String {
    format!("{VMS}{project}/{vm}")
}

pub(crate) fn vms_of(project: ProjectId) -> String {
    format!("{VMS}{project}/")
}

pub(crate) fn observed(vm: VmId) -> String {
    format!("{OBSERVED}{vm}")
}

pub(crate) fn assign(node: &Name, vm: VmId) -> String {
    format!("{ASSIGN}{node}/{vm}")
}

pub(crate) fn evicted(node: &Name, vm: VmId) -> String {
    format!("{EVICTED}{node}/{vm}")
}

pub(crate) fn assigned_to(node: &Name) -> String {
    format!("{ASSIGN}{node}/")
}

pub(crate) fn node_info(node: &Name) -> String {
    format!("{NODES}{node}/info")
}

pub(crate) fn node_alloc(node: &Name) -> String {
    format!("{NODES}{node}/alloc")
}

pub(crate) fn session(node: &Name) -> String {
    format!("{SESSIONS}{node}")
}

pub(crate) fn address(address: Ipv4Addr) -> String {
    format!("{ADDRESSES}{address}")
}

pub(crate) fn vm_name(project: ProjectId, name: &Name) -> String {
    format!("{VM_NAMES}{project}/{name}")
}

pub(crate) fn idempotency(project: ProjectId, key: &str) -> String {
    format!("{IDEMPOTENCY}{project}/{key}")
}

/// The record of a request under an idempotency key, in a project or for the whole cluster.
pub(crate) fn request(project: Option<ProjectId>, key: &str) -> String {
    match project {
        Some(project) => format!("{REQUESTS}{project}/{key}"),
        None => format!("{REQUESTS}cluster/{key}"),
    }
}

pub(crate) fn operation(project: ProjectId, id: Uuid) -> String {
    format!("{OPERATIONS}{project}/{id}")
}

pub(crate) fn operations_of(project: ProjectId) -> String {
    format!("{OPERATIONS}{project}/")
}

pub(crate) fn quota(project: ProjectId) -> String {
    format!("{QUOTAS}{project}")
}

pub(crate) fn groups_of(project: ProjectId) -> String {
    format!("{GROUPS}{project}/")
}

pub(crate) fn group(project: ProjectId, name: &Name) -> String {
    format!("{GROUPS}{project}/{name}")
}

pub(crate) fn image(image: ImageId) -> String {
    format!("{IMAGES}{image}")
}

pub(crate) fn image_name(name: &Name) -> String {
    format!("{IMAGE_NAMES}{name}")
}

/// The last part of a key, if it reads as a `T`.
pub(crate) fn last<T: std::str::FromStr>(key: &[u8]) -> Option<T> {
    std::str::from_utf8(key).ok()?.rsplit('/').next()?.parse().ok()
}
