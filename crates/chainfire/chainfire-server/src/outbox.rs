//! The way to the other members: one channel and one long stream of Raft's messages for each, as Raft's configuration
//! has them now.
//!
//! ```text
//!   Raft's thread ──Outbox::send──> queue of the peer ──delivery task──> Deliver stream ──> peer
//!   changes of the members ──follow──> a queue and a task for each new address, none for who is gone
//! ```

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use hearth_service::{
    client::{ChannelOptions, channel},
    tasks::{Kind, Tasks},
    tls::Identity,
};
use prost::Message;
use raft_host::{HostHandle, Membership, NodeId, PeerMessage, Transport};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, metadata::MetadataValue, transport::Channel};

use crate::{
    machine::Shared,
    members::urls,
    peers::MEMBER_IDENTITY,
    wire::{Frame, HelloRequest, Sender, peer_client::PeerClient},
};

/// Ways to other members, at most: more are no cluster, but somebody who makes up members.
const MAX_ROUTES: usize = 64;
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
/// Longest wait for a peer to say who it is.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// Carries a [`Refusal`] in a status.
const REFUSAL: &str = "chainfire-refusal";

/// Why a member does not hear another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The sender was removed, for ever.
    Removed,
    /// The sender is on another disk than the one it published: it has forgotten its votes.
    Disk,
    /// The sender is no member as far as known here; that may change.
    Stranger,
    /// The sender belongs to another cluster.
    Cluster,
}

impl Refusal {
    const ALL: [Refusal; 4] = [
        Refusal::Removed,
        Refusal::Disk,
        Refusal::Stranger,
        Refusal::Cluster,
    ];

    fn word(self) -> &'static str {
        match self {
            Refusal::Removed => "removed",
            Refusal::Disk => "disk",
            Refusal::Stranger => "stranger",
            Refusal::Cluster => "cluster",
        }
    }

    /// As it goes over the wire.
    pub(crate) fn status(self) -> Status {
        let mut status = Status::permission_denied(match self {
            Refusal::Removed => "this member was removed from the cluster",
            Refusal::Disk => "this member is on another disk than the one it published",
            Refusal::Stranger => "the sender is not a member of this cluster",
            Refusal::Cluster => "the sender belongs to another cluster",
        });
        let value = MetadataValue::from_static(self.word());
        status.metadata_mut().insert(REFUSAL, value);
        status
    }

    /// The refusal in a status, if it is one.
    pub(crate) fn of(status: &Status) -> Option<Refusal> {
        let word = status.metadata().get(REFUSAL)?.to_str().ok()?;
        Refusal::ALL.into_iter().find(|refusal| refusal.word() == word)
    }

    /// Whether the refused member has to end.
    fn is_final(self) -> bool {
        matches!(self, Refusal::Removed | Refusal::Disk)
    }
}

struct Route {
    address: String,
    queue: mpsc::Sender<PeerMessage>,
    channel: Channel,
}

struct Inner {
    own: Sender,
    identity: Identity,
    routes: Mutex<BTreeMap<NodeId, Route>>,
    /// A final refusal by a peer.
    fate: watch::Sender<Option<Refusal>>,
}

/// The other members, reachable. Clones share it.
#[derive(Clone)]
pub(crate) struct Peers(Arc<Inner>);

impl Peers {
    pub(crate) fn new(own: Sender, identity: Identity) -> Peers {
        Peers(Arc::new(Inner {
            own,
            identity,
            routes: Mutex::new(BTreeMap::new()),
            fate: watch::Sender::new(None),
        }))
    }

    /// Who this member says that it is.
    pub(crate) fn own(&self) -> &Sender {
        &self.0.own
    }

    /// Becomes `Some` when a peer says that this member has to end.
    pub(crate) fn fate(&self) -> watch::Receiver<Option<Refusal>> {
        self.0.fate.subscribe()
    }

    /// Notes that this member has to end.
    pub(crate) fn refused(&self, refusal: Refusal) {
        if refusal.is_final() {
            self.0.fate.send_replace(Some(refusal));
        }
    }

    fn routes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Route>> {
        self.0.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For calls to a member.
    pub(crate) fn get(&self, id: NodeId) -> Option<PeerClient<Channel>> {
        let channel = self.routes().get(&id)?.channel.clone();
        Some(PeerClient::new(channel).max_decoding_message_size(MAX_FRAME_BYTES))
    }

    /// Makes `members` the ones that there is a way to.
    pub(crate) fn set(
        &self,
        members: &[(NodeId, String)],
        raft: &HostHandle,
        shared: &Arc<Shared>,
        tasks: &Tasks,
    ) {
        let mut routes = self.routes();
        // A route that goes ends its delivery: the queue closes.
        routes.retain(|id, route| {
            members
                .iter()
                .any(|(m, address)| m == id && *address == route.address)
        });
        for (id, address) in members {
            if *id == self.0.own.member || routes.contains_key(id) {
                continue;
            }
            if let Some(route) = self.route(*id, address, raft, shared, tasks) {
                routes.insert(*id, route);
            }
        }
    }

    /// Makes a way to a member that Raft's configuration here does not have yet: one that was added while this member
    /// was away may lead by now, and can bring it up to date only if it gets answers. It lasts until the next change.
    pub(crate) fn welcome(&self, sender: &Sender, raft: &HostHandle, shared: &Arc<Shared>, tasks: &Tasks) {
        let mut routes = self.routes();
        let full = routes.len() >= MAX_ROUTES;
        if sender.address.is_empty() || routes.contains_key(&sender.member) || full {
            return;
        }
        if let Some(route) = self.route(sender.member, &sender.address, raft, shared, tasks) {
            routes.insert(sender.member, route);
        }
    }

    fn route(
        &self,
        id: NodeId,
        address: &str,
        raft: &HostHandle,
        shared: &Arc<Shared>,
        tasks: &Tasks,
    ) -> Option<Route> {
        let channel = self.channel(id, address)?;
        let (queue, waiting) = mpsc::channel(PEER_QUEUE);
        let client = PeerClient::new(channel.clone()).max_decoding_message_size(MAX_FRAME_BYTES);
        let delivery = Delivery {
            id,
            client,
            raft: raft.clone(),
            shared: shared.clone(),
            peers: self.clone(),
        };
        let stop = tasks.clone();
        tasks.spawn("peer delivery", Kind::Background, async move {
            tokio::select! {
                () = stop.stopping() => {}
                () = delivery.run(waiting) => {}
            }
            Ok(())
        });
        Some(Route {
            address: address.to_owned(),
            queue,
            channel,
        })
    }

    fn channel(&self, id: NodeId, address: &str) -> Option<Channel> {
        // The first URL is used; the others are for people and tools.
        let endpoint = urls::endpoints(address).next()?;
        match connect(endpoint, &self.0.identity) {
            Ok(channel) => Some(channel),
            Err(error) => {
                tracing::error!(peer = %format!("{id:x}"), %error, "a member cannot be reached; correct its peer URL");
                None
            }
        }
    }

    /// Keeps the ways in step with Raft's configuration until the stop.
    pub(crate) async fn follow(
        &self,
        mut changes: watch::Receiver<Membership>,
        raft: &HostHandle,
        shared: &Arc<Shared>,
        tasks: &Tasks,
    ) {
        loop {
            let members: Vec<(NodeId, String)> = changes
                .borrow_and_update()
                .members
                .iter()
                .map(|member| (member.id, member.address.clone()))
                .collect();
            // A member that is joining has no configuration yet; it keeps the ways that it began with.
            if !members.is_empty() {
                self.set(&members, raft, shared, tasks);
            }
            tokio::select! {
                () = tasks.stopping() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// A channel to a peer port.
pub(crate) fn connect(
    endpoint: &str,
    identity: &Identity,
) -> Result<Channel, hearth_service::client::AddressError> {
    let options = ChannelOptions {
        connect_timeout: Duration::from_secs(1),
        timeout: None,
        keep_alive: Duration::from_secs(2),
        expect: Some(MEMBER_IDENTITY),
    };
    channel(endpoint, Some(identity), &options)
}

/// Raft's way out.
pub(crate) struct Outbox(pub(crate) Peers);

impl Transport for Outbox {
    fn send(&mut self, message: PeerMessage) {
        if let Some(route) = self.0.routes().get(&message.to) {
            // A full queue is a slow peer: Raft sends again.
            let _ = route.queue.try_send(message);
        }
    }

    fn peer_changed(&mut self, _node: NodeId, _address: Option<&str>) {
        // `Peers::follow` sees the whole membership, on the runtime's threads.
    }
}

/// Carries one peer's queue to it.
struct Delivery {
    id: NodeId,
    client: PeerClient<Channel>,
    raft: HostHandle,
    shared: Arc<Shared>,
    peers: Peers,
}

impl Delivery {
    async fn run(self, mut queue: mpsc::Receiver<PeerMessage>) {
        let mut told = None;
        // No connection is made before there is something to say.
        while let Some(first) = queue.recv().await {
            let Err(ended) = self.stream(first, &mut queue, &mut told).await else {
                return;
            };
            let why = ended.to_string();
            if told.as_ref() != Some(&why) {
                tracing::info!(peer = %format!("{:x}", self.id), error = why, "lost the connection to a member");
                told = Some(why);
            }
            if let Some(refusal) = Refusal::of(&ended) {
                self.peers.refused(refusal);
            }
            self.raft.unreachable(self.id);
            sleep(RECONNECT_PAUSE).await;
            // What has waited meanwhile is old: Raft will say it anew.
            while queue.try_recv().is_ok() {}
        }
    }

    /// Whether the one that answers is the member, on the disk that it published. A member that has forgotten its log
    /// must not be told what is committed: Raft takes that for a broken invariant.
    async fn check_receiver(&self) -> Result<(), Status> {
        let mut stub = self.client.clone();
        let hello = timeout(HELLO_PATIENCE, stub.hello(HelloRequest {}))
            .await
            .map_err(|_| Status::deadline_exceeded("it does not say who it is"))?;
        let told = match hello {
            Ok(reply) => reply.into_inner().sender.unwrap_or_default(),
            // A member of an earlier release.
            Err(error) if error.code() == Code::Unimplemented => return Ok(()),
            Err(error) => return Err(error),
        };
        let disk = self.shared.members().disk(self.id);
        if told.member != self.id || told.cluster != self.peers.own().cluster {
            return Err(Status::unavailable("another member has its address"));
        }
        if disk.is_some_and(|disk| disk != told.disk) {
            return Err(Status::unavailable("it lost its log, and is waited for no more"));
        }
        Ok(())
    }

    /// One stream, as long as it lasts; why it ended, or `Ok` when nobody will send any more.
    async fn stream(
        &self,
        first: PeerMessage,
        queue: &mut mpsc::Receiver<PeerMessage>,
        told: &mut Option<String>,
    ) -> Result<(), Status> {
        self.check_receiver().await?;
        let (frames, stream) = mpsc::channel(FRAME_QUEUE);
        let mut stub = self.client.clone();
        let call = stub.deliver(ReceiverStream::new(stream));
        tokio::pin!(call);
        let closed = || Status::unavailable("the stream was closed");
        let mut next = Some(first);
        let mut sender = Some(self.peers.own().clone());
        loop {
            let message = match next.take() {
                Some(message) => message,
                None => tokio::select! {
                    ended = &mut call => return Err(ended.err().unwrap_or_else(closed)),
                    message = queue.recv() => match message {
                        Some(message) => message,
                        None => return Ok(()),
                    },
                },
            };
            let frame = fill_frame(&message, queue, sender.take());
            let opening = frame.sender.is_some();
            tokio::select! {
                ended = &mut call => return Err(ended.err().unwrap_or_else(closed)),
                sent = frames.send(frame) => if sent.is_ok() && !opening {
                    *told = None;
                },
            }
        }
    }
}

fn fill_frame(first: &PeerMessage, queue: &mut mpsc::Receiver<PeerMessage>, sender: Option<Sender>) -> Frame {
    let mut messages = vec![Bytes::from(first.encode_to_vec())];
    let mut bytes = messages.iter().map(Bytes::len).sum::<usize>();
    while bytes < FRAME_BYTES {
        let Ok(message) = queue.try_recv() else { break };
        let encoded = Bytes::from(message.encode_to_vec());
        bytes += encoded.len();
        messages.push(encoded);
    }
    Frame { messages, sender }
}
