//! Members among themselves: Raft's messages over one long stream for each pair and direction, and the leader's
//! answers about leases. Everybody here shows the certificate `service/chainfire`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use hearth_service::{
    client::{AddressError, ChannelOptions, channel},
    tasks::{Kind, Tasks},
    tls::{Identity, PeerIdentity},
};
use prost::Message;
use raft_host::{HostHandle, NodeId, PeerMessage, Transport};
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Channel};

use crate::{
    config::Chainfire,
    lessor::Lessor,
    node::status,
    wire::{
        Delivered, Frame, LeaseRemainingReply, LeaseRemainingRequest, RenewLeaseReply, RenewLeaseRequest,
        peer_client::PeerClient, peer_server::Peer,
    },
};

/// The identity of members.
pub(crate) const MEMBER_IDENTITY: &str = "service/chainfire";
/// Messages that wait for one peer; more are dropped, as on a lossy network.
const PEER_QUEUE: usize = 4096;
/// Frames on their way to one peer.
const FRAME_QUEUE: usize = 16;
/// Bytes of messages in one frame (a single message may be larger).
const FRAME_BYTES: usize = 1 << 20;
/// Largest frame accepted, bytes: one append of Raft with room to spare.
pub(crate) const MAX_FRAME_BYTES: usize = 16 << 20;
/// Pause before a broken stream is made again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// Channels to the other members.
#[derive(Clone, Debug)]
pub(crate) struct PeerClients(Arc<BTreeMap<NodeId, Channel>>);

impl PeerClients {
    pub(crate) fn new(
        config: &Chainfire,
        own: NodeId,
        identity: &Identity,
    ) -> Result<PeerClients, AddressError> {
        let options = ChannelOptions {
            connect_timeout: Duration::from_secs(1),
            timeout: None,
            keep_alive: Duration::from_secs(2),
            expect: Some(MEMBER_IDENTITY),
        };
        let mut channels = BTreeMap::new();
        for member in &config.members {
            let id = config.node_id(&member.name);
            if id != own {
                channels.insert(id, channel(&member.peer, Some(identity), &options)?);
            }
        }
        Ok(PeerClients(Arc::new(channels)))
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<PeerClient<Channel>> {
        let channel = self.0.get(&id)?.clone();
        Some(PeerClient::new(channel).max_decoding_message_size(MAX_FRAME_BYTES))
    }
}

/// Raft's way out: one bounded queue for each peer.
pub(crate) struct Outbox(BTreeMap<NodeId, mpsc::Sender<PeerMessage>>);

/// The other ends of the queues.
pub(crate) type Queues = BTreeMap<NodeId, mpsc::Receiver<PeerMessage>>;

impl Outbox {
    pub(crate) fn new(peers: &PeerClients) -> (Outbox, Queues) {
        let mut senders = BTreeMap::new();
        let mut queues = Queues::new();
        for id in peers.0.keys() {
            let (sender, queue) = mpsc::channel(PEER_QUEUE);
            senders.insert(*id, sender);
            queues.insert(*id, queue);
        }
        (Outbox(senders), queues)
    }
}

impl Transport for Outbox {
    fn send(&mut self, message: PeerMessage) {
        if let Some(queue) = self.0.get(&message.to) {
            // A full queue is a slow peer: Raft sends again.
            let _ = queue.try_send(message);
        }
    }

    fn peer_changed(&mut self, _node: NodeId, _address: Option<&str>) {
        // The members are those of the configuration; the addresses there are the newest.
    }
}

/// Carries the queues to the peers until the stop.
pub(crate) fn deliver_in(tasks: &Tasks, peers: &PeerClients, queues: Queues, raft: &HostHandle) {
    for (id, queue) in queues {
        let Some(client) = peers.get(id) else { continue };
        let (stop, raft) = (tasks.clone(), raft.clone());
        tasks.spawn("peer delivery", Kind::Background, async move {
            tokio::select! {
                () = stop.stopping() => {}
                () = deliver(id, client, queue, raft) => {}
            }
            Ok(())
        });
    }
}

async fn deliver(
    id: NodeId,
    client: PeerClient<Channel>,
    mut queue: mpsc::Receiver<PeerMessage>,
    raft: HostHandle,
) {
    let mut reachable = true;
    // No connection is made before there is something to say.
    while let Some(first) = queue.recv().await {
        let (frames, stream) = mpsc::channel(FRAME_QUEUE);
        let mut stub = client.clone();
        let call = stub.deliver(ReceiverStream::new(stream));
        tokio::pin!(call);
        let mut next = Some(first);
        let ended = loop {
            let message = match next.take() {
                Some(message) => message,
                None => tokio::select! {
                    ended = &mut call => break ended,
                    message = queue.recv() => match message {
                        Some(message) => message,
                        None => return,
                    },
                },
            };
            let frame = fill_frame(&message, &mut queue);
            tokio::select! {
                ended = &mut call => break ended,
                sent = frames.send(frame) => if sent.is_ok() && !reachable {
                    reachable = true;
                },
            }
        };
        if reachable {
            reachable = false;
            let error = ended
                .err()
                .map_or_else(|| "the stream was closed".to_owned(), |error| error.to_string());
            tracing::info!(peer = id, error, "lost the connection to a member");
        }
        raft.unreachable(id);
        sleep(RECONNECT_PAUSE).await;
        // What has waited meanwhile is old: Raft will say it anew.
        while queue.try_recv().is_ok() {}
    }
}

fn fill_frame(first: &PeerMessage, queue: &mut mpsc::Receiver<PeerMessage>) -> Frame {
    let mut messages = vec![bytes::Bytes::from(first.encode_to_vec())];
    let mut bytes = messages.iter().map(bytes::Bytes::len).sum::<usize>();
    while bytes < FRAME_BYTES {
        let Ok(message) = queue.try_recv() else { break };
        let encoded = bytes::Bytes::from(message.encode_to_vec());
        bytes += encoded.len();
        messages.push(encoded);
    }
    Frame { messages }
}

/// Serves the other members.
pub(crate) struct PeerService {
    members: BTreeSet<NodeId>,
    raft: HostHandle,
    lessor: Lessor,
}

impl PeerService {
    pub(crate) fn new(members: BTreeSet<NodeId>, raft: HostHandle, lessor: Lessor) -> PeerService {
        PeerService {
            members,
            raft,
            lessor,
        }
    }
}

fn check_member<T>(request: &Request<T>) -> Result<(), Status> {
    match request.extensions().get::<PeerIdentity>() {
        Some(identity) if identity.path == MEMBER_IDENTITY => Ok(()),
        _ => Err(Status::permission_denied(
            "only members of the cluster may speak to the peer port",
        )),
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn deliver(&self, request: Request<Streaming<Frame>>) -> Result<Response<Delivered>, Status> {
        check_member(&request)?;
        let mut frames = request.into_inner();
        while let Some(frame) = frames.message().await? {
            for bytes in frame.messages {
                let message = PeerMessage::decode(bytes)
                    .map_err(|error| Status::invalid_argument(format!("not a peer message: {error}")))?;
                if !self.members.contains(&message.from) {
                    return Err(Status::permission_denied(
                        "the sender is not a member of this cluster",
                    ));
                }
                // Dropped when the queue is full: Raft sends again.
                let _ = self.raft.step(message);
            }
        }
        Ok(Response::new(Delivered {}))
    }

    async fn renew_lease(
        &self,
        request: Request<RenewLeaseRequest>,
    ) -> Result<Response<RenewLeaseReply>, Status> {
        check_member(&request)?;
        let ttl_s = self
            .lessor
            .renew_here(request.into_inner().id)
            .await
            .map_err(status)?;
        Ok(Response::new(RenewLeaseReply { ttl_s }))
    }

    async fn lease_remaining(
        &self,
        request: Request<LeaseRemainingRequest>,
    ) -> Result<Response<LeaseRemainingReply>, Status> {
        check_member(&request)?;
        let ttl_s = self
            .lessor
            .remaining_here(request.into_inner().id)
            .await
            .map_err(status)?;
        Ok(Response::new(LeaseRemainingReply { ttl_s }))
    }
}
