//! The gRPC face of the hub: who is this, then hand over.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use hearth_service::error::{ApiError, ErrorKind};
use hearth_service::tasks::Kind;
use hearth_service::tls::PeerIdentity;
use hearth_types::Name;
use plasmavmc_client::agent::agent_hub_server::AgentHub;
use plasmavmc_client::agent::{AgentMessage, ConsoleChunk, FetchImageRequest, HubMessage, ImageChunk};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Hub, TO_AGENT_QUEUE, console, session};

/// The service as tonic wants it.
pub(super) struct Service(pub(super) Hub);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The node of an agent, from its certificate.
fn node_of<T>(hub: &Hub, request: &Request<T>) -> Result<Name, Status> {
    let missing = || {
        ApiError::new(ErrorKind::Unauthenticated, "this needs a node's certificate")
            .hint("connect with the certificate of an agent (`node/NAME`)")
    };
    let peer = request.extensions().get::<PeerIdentity>().ok_or_else(missing)?;
    let actor = hub.0.authorizer.authenticate_peer(peer).map_err(ApiError::from)?;
    actor.node().cloned().ok_or_else(|| {
        let message = format!("`{}` is not a node's agent", actor.name());
        Status::from(ApiError::new(ErrorKind::PermissionDenied, message))
    })
}

#[tonic::async_trait]
impl AgentHub for Service {
    type SessionStream = ReceiverStream<Result<HubMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let node = node_of(&self.0, &request)?;
        let (to_agent, messages) = mpsc::channel(TO_AGENT_QUEUE);
        let (hub, inbound) = (self.0.clone(), request.into_inner());
        // The answer begins at once: the agent may wait for it before it says hello.
        self.0
            .0
            .tasks
            .spawn("agent session", Kind::Background, async move {
                session::run(hub, node, inbound, to_agent).await;
                Ok(())
            });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    type ConsoleAttachStream = ReceiverStream<Result<ConsoleChunk, Status>>;

    async fn console_attach(
        &self,
        request: Request<Streaming<ConsoleChunk>>,
    ) -> Result<Response<Self::ConsoleAttachStream>, Status> {
        let node = node_of(&self.0, &request)?;
        let (to_agent, chunks) = mpsc::channel(console::QUEUE);
        let (hub, inbound) = (self.0.clone(), request.into_inner());
        self.0
            .0
            .tasks
            .spawn("console attach", Kind::Background, async move {
                console::attach(&hub, &node, inbound, to_agent).await;
                Ok(())
            });
        Ok(Response::new(ReceiverStream::new(chunks)))
    }

    type FetchImageStream = Answers<ImageChunk>;

    async fn fetch_image(
        &self,
        request: Request<FetchImageRequest>,
    ) -> Result<Response<Self::FetchImageStream>, Status> {
        node_of(&self.0, &request)?;
        let FetchImageRequest { sha256, offset } = request.into_inner();
        let failed = |error: std::io::Error| Status::from(ApiError::internal("reading the image", error));
        let bytes = self.0.0.images.read(&sha256, offset).await.map_err(failed)?;
        let bytes = bytes.ok_or_else(|| {
            let message = format!("this server does not have the image {sha256}");
            Status::from(ApiError::new(ErrorKind::NotFound, message).hint("it may be on another server"))
        })?;
        let chunks = bytes.map(move |chunk| match chunk {
            Ok(data) => Ok(ImageChunk { data: data.into() }),
            Err(error) => Err(failed(error)),
        });
        Ok(Response::new(Box::pin(chunks)))
    }
}
