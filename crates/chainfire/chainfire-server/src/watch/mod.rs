//! etcd's Watch service.
//!
//! ```text
//!   apply ──> ring ──> Hub: whom does a change concern? ──marks──> Session (one task for each stream)
//!                │                                                   │ chainfire_core::watch::Stream
//!                └──────────── Reader: ring, else storage <──────────┤
//!                                                                    └── bounded queue ──> client
//! ```
//! What a stream says is decided in the pure core; here it is fed, paged and sent. A session whose watchers no change
//! concerns is not woken. What one stream may hold in memory is bounded: see [`session`].

mod hub;
mod reader;
mod session;

use std::pin::Pin;

use chainfire_client::wire::etcdserverpb::{self as pb, WatchResponse, watch_server::Watch};
use hearth_service::tasks::Kind;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use hub::{Hub, HubLimits};
use session::Session;

use crate::{
    auth::Credential,
    node::{Node, status, wants_leader},
};

/// The Watch service of a member.
pub(crate) struct WatchService {
    node: Node,
    hub: Hub,
}

impl WatchService {
    pub(crate) fn new(node: Node, hub: Hub) -> WatchService {
        WatchService { node, hub }
    }
}

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.node.require_leader(request.metadata())?;
        let credential = Credential::of(&request);
        credential.rights().known().map_err(status)?;
        let needs_leader = wants_leader(request.metadata());
        let (session, responses) = Session::new(self.node.clone(), &self.hub, credential);
        let stop = self.node.tasks.clone();
        let requests = request.into_inner();
        self.node
            .tasks
            .spawn("watch stream", Kind::Background, async move {
                tokio::select! {
                    () = stop.stopping() => {}
                    _ = session.run(requests, needs_leader) => {}
                }
                Ok(())
            });
        Ok(Response::new(Box::pin(responses)))
    }
}
