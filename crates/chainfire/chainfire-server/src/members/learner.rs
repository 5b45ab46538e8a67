//! What a learner serves: etcd's list. A learner may lag without bound, and knows nothing of a majority.

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use chainfire_core::OpError;

use crate::node::{Node, status};

/// Calls that a learner answers. A range only when it is serializable, which its handler looks at.
const SERVED: &[&str] = &[
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Snapshot",
];
/// The packages of etcd's services; what is outside (health, metrics) is served by every member.
const PACKAGES: &[&str] = &["/etcdserverpb.", "/v3electionpb.", "/v3lockpb."];

fn is_served(path: &str) -> bool {
    SERVED.contains(&path) || !PACKAGES.iter().any(|package| path.starts_with(package))
}

/// Refuses on a learner what a learner does not serve.
pub(crate) async fn refuse(State(node): State<Node>, request: Request, next: Next) -> Response {
    if node.is_learner() && !is_served(request.uri().path()) {
        let refusal: http::Response<tonic::body::Body> = status(OpError::NotSupportedForLearner).into_http();
        return refusal.map(axum::body::Body::new).into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_learner_serves() {
        let table = [
            ("/etcdserverpb.KV/Range", true),
            ("/etcdserverpb.KV/Put", false),
            ("/etcdserverpb.Watch/Watch", false),
            ("/etcdserverpb.Lease/LeaseKeepAlive", false),
            ("/etcdserverpb.Cluster/MemberList", false),
            ("/etcdserverpb.Maintenance/Status", true),
            ("/etcdserverpb.Maintenance/Snapshot", true),
            ("/etcdserverpb.Maintenance/HashKV", false),
            ("/v3lockpb.Lock/Lock", false),
            ("/grpc.health.v1.Health/Check", true),
            ("/metrics", true),
        ];
        for (path, served) in table {
            assert_eq!(is_served(path), served, "{path}");
        }
    }
}
