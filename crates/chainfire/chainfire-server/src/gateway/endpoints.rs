//! Which path of the gateway is which call: etcd's own list.

/// One path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Below `/v3/`.
    pub(super) path: &'static str,
    pub(super) service: &'static str,
    pub(super) method: &'static str,
}

const fn at(path: &'static str, service: &'static str, method: &'static str) -> Endpoint {
    Endpoint {
        path,
        service,
        method,
    }
}

const KV: &str = "etcdserverpb.KV";
const WATCH: &str = "etcdserverpb.Watch";
const LEASE: &str = "etcdserverpb.Lease";
const CLUSTER: &str = "etcdserverpb.Cluster";
const MAINTENANCE: &str = "etcdserverpb.Maintenance";
const AUTH: &str = "etcdserverpb.Auth";
const LOCK: &str = "v3lockpb.Lock";
const ELECTION: &str = "v3electionpb.Election";

/// All paths. Leases have two each, as in etcd.
pub(super) const ENDPOINTS: &[Endpoint] = &[
    at("kv/range", KV, "Range"),
    at("kv/put", KV, "Put"),
    at("kv/deleterange", KV, "DeleteRange"),
    at("kv/txn", KV, "Txn"),
    at("kv/compaction", KV, "Compact"),
    at("watch", WATCH, "Watch"),
    at("lease/grant", LEASE, "LeaseGrant"),
    at("lease/revoke", LEASE, "LeaseRevoke"),
    at("kv/lease/revoke", LEASE, "LeaseRevoke"),
    at("lease/keepalive", LEASE, "LeaseKeepAlive"),
    at("lease/timetolive", LEASE, "LeaseTimeToLive"),
    at("kv/lease/timetolive", LEASE, "LeaseTimeToLive"),
    at("lease/leases", LEASE, "LeaseLeases"),
    at("kv/lease/leases", LEASE, "LeaseLeases"),
    at("cluster/member/add", CLUSTER, "MemberAdd"),
    at("cluster/member/remove", CLUSTER, "MemberRemove"),
    at("cluster/member/update", CLUSTER, "MemberUpdate"),
    at("cluster/member/list", CLUSTER, "MemberList"),
    at("cluster/member/promote", CLUSTER, "MemberPromote"),
    at("maintenance/alarm", MAINTENANCE, "Alarm"),
    at("maintenance/status", MAINTENANCE, "Status"),
    at("maintenance/defragment", MAINTENANCE, "Defragment"),
    at("maintenance/hash", MAINTENANCE, "Hash"),
    at("maintenance/hashkv", MAINTENANCE, "HashKV"),
    at("maintenance/snapshot", MAINTENANCE, "Snapshot"),
    at("maintenance/transfer-leadership", MAINTENANCE, "MoveLeader"),
    at("maintenance/downgrade", MAINTENANCE, "Downgrade"),
    at("auth/enable", AUTH, "AuthEnable"),
    at("auth/disable", AUTH, "AuthDisable"),
    at("auth/status", AUTH, "AuthStatus"),
    at("auth/authenticate", AUTH, "Authenticate"),
    at("auth/user/add", AUTH, "UserAdd"),
    at("auth/user/get", AUTH, "UserGet"),
    at("auth/user/list", AUTH, "UserList"),
    at("auth/user/delete", AUTH, "UserDelete"),
    at("auth/user/changepw", AUTH, "UserChangePassword"),
    at("auth/user/grant", AUTH, "UserGrantRole"),
    at("auth/user/revoke", AUTH, "UserRevokeRole"),
    at("auth/role/add", AUTH, "RoleAdd"),
    at("auth/role/get", AUTH, "RoleGet"),
    at("auth/role/list", AUTH, "RoleList"),
    at("auth/role/delete", AUTH, "RoleDelete"),
    at("auth/role/grant", AUTH, "RoleGrantPermission"),
    at("auth/role/revoke", AUTH, "RoleRevokePermission"),
    at("lock/lock", LOCK, "Lock"),
    at("lock/unlock", LOCK, "Unlock"),
    at("election/campaign", ELECTION, "Campaign"),
    at("election/proclaim", ELECTION, "Proclaim"),
    at("election/leader", ELECTION, "Leader"),
    at("election/observe", ELECTION, "Observe"),
    at("election/resign", ELECTION, "Resign"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost_reflect::DescriptorPool;

    use super::*;

    /// etcd serves it over gRPC alone.
    const NO_PATH: &[&str] = &["etcdserverpb.KV.RangeStream"];

    #[test]
    fn every_call_has_its_path_and_every_path_its_call() {
        let pool = DescriptorPool::decode(chainfire_client::wire::DESCRIPTORS).unwrap();
        let calls: BTreeSet<String> = pool
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>())
            .map(|method| method.full_name().to_owned())
            .filter(|name| !NO_PATH.contains(&name.as_str()))
            .collect();
        let served: BTreeSet<String> = ENDPOINTS
            .iter()
            .map(|endpoint| format!("{}.{}", endpoint.service, endpoint.method))
            .collect();
        assert_eq!(served, calls);
        let paths: BTreeSet<&str> = ENDPOINTS.iter().map(|endpoint| endpoint.path).collect();
        assert_eq!(paths.len(), ENDPOINTS.len(), "a path stands twice");
    }
}
