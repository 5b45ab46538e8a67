//! The stream to the control plane: dialled by the agent, to any replica, again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use hearth_service::client::{ChannelOptions, channel};
use hearth_service::tasks::{Kind, chain};
use hearth_service::tls::Identity;
use plasmavmc_client::agent::agent_hub_client::AgentHubClient;
use plasmavmc_client::agent::{
    Action, ActionResult, AgentMessage, Assignment, ConsoleChunk, FetchImageRequest, Hello, HubMessage,
    ImageChunk, Inventory, OpenConsole, action, agent_message, hub_message,
};
use plasmavmc_hypervisor::{MachineId, host_boot_id};
use tokio::sync::{Semaphore, broadcast, mpsc};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::images::{ImageSource, ImageStream};
use crate::node::Node;

/// Version of the protocol spoken here.
const PROTOCOL: u32 = 1;
/// What this agent can do beyond the first protocol.
const FEATURES: [&str; 2] = ["pause", "resets"];
/// How often the node's status is sent.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// Messages waiting for the stream; a hub that does not read them loses the stream.
const MAX_QUEUED: usize = 64;
/// Longest wait for room in that queue, and for the hub's first answer.
const HUB_LIMIT: Duration = Duration::from_secs(15);
/// Longest wait for the first look at every VM.
const OWNERS_LIMIT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// A stream that lasted this long was a good one: the next pause is short again.
const GOOD_STREAM: Duration = Duration::from_secs(30);
/// Actions and consoles under way at once.
const MAX_SIDE_TASKS: usize = 64;
const CONSOLE_QUEUE: usize = 16;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("the address of the hub is unusable: {0}")]
    Address(String),
    #[error("the hub does not answer in time")]
    Silent,
    #[error("the hub ended the stream")]
    Ended,
    #[error("the hub speaks protocol {0}, this agent {PROTOCOL}")]
    Protocol(u32),
    #[error(transparent)]
    Status(#[from] tonic::Status),
}

/// The channel of the stream that is open now, for everything else that is asked of a hub.
#[derive(Debug, Clone, Default)]
pub(crate) struct CurrentHub(Arc<Mutex<Option<Channel>>>);

impl CurrentHub {
    fn set(&self, channel: Option<Channel>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = channel;
    }

    fn get(&self) -> Option<Channel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ImageSource for CurrentHub {
    fn open(&self, sha256: &str, offset: u64) -> BoxFuture<'_, Result<Box<dyn ImageStream>, String>> {
        let request = FetchImageRequest {
            sha256: sha256.to_owned(),
            offset,
        };
        async move {
            let channel = self.get().ok_or("no control plane is connected")?;
            let answer = AgentHubClient::new(channel).fetch_image(request).await;
            let stream = answer.map_err(|s| s.message().to_owned())?.into_inner();
            Ok(Box::new(stream) as Box<dyn ImageStream>)
        }
        .boxed()
    }
}

impl ImageStream for Streaming<ImageChunk> {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, String>> {
        async move {
            let chunk = self.message().await.map_err(|s| s.message().to_owned())?;
            Ok(chunk.map(|c| Bytes::from(c.data)))
        }
        .boxed()
    }
}

/// Keeps a stream open until the agent stops.
pub(crate) async fn keep_connected(
    node: Arc<Node>,
    identity: Option<Identity>,
    current: CurrentHub,
    incarnation: String,
) {
    let tasks = node.tasks.clone();
    let mut pause = FIRST_PAUSE;
    for attempt in 0_usize.. {
        let hubs = &node.config.hubs;
        let Some(hub) = hubs.get(attempt % hubs.len().max(1)) else {
            return;
        };
        let started = Instant::now();
        let session = Session {
            node: &node,
            current: &current,
            incarnation: &incarnation,
            hub,
        };
        let ended = tokio::select! {
            ended = session.run(identity.as_ref()) => ended,
            () = tasks.stopping() => return,
        };
        current.set(None);
        let lasted = started.elapsed();
        let reason = ended.err().map_or_else(String::new, |e| chain(&e));
        tracing::warn!(
            hub,
            reason,
            lasted_s = lasted.as_secs(),
            "no stream to the control plane; dialling again"
        );
        if lasted > GOOD_STREAM {
            pause = FIRST_PAUSE;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = tasks.stopping() => return,
        }
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

struct Session<'a> {
    node: &'a Arc<Node>,
    current: &'a CurrentHub,
    incarnation: &'a str,
    hub: &'a str,
}

/// What side tasks of a stream need.
#[derive(Clone)]
struct Side {
    node: Arc<Node>,
    hub: String,
    identity: Option<Identity>,
    out: mpsc::Sender<AgentMessage>,
    slots: Arc<Semaphore>,
}

/// A connection of its own to a hub.
fn dial(hub: &str, identity: Option<&Identity>) -> Result<Channel, SessionError> {
    let options = ChannelOptions {
        expect: Some("service/plasmavmc"),
        ..ChannelOptions::default()
    };
    channel(hub, identity, &options).map_err(|e| SessionError::Address(e.to_string()))
}

fn message(kind: agent_message::Kind) -> AgentMessage {
    AgentMessage { kind: Some(kind) }
}

impl Session<'_> {
    async fn run(&self, identity: Option<&Identity>) -> Result<(), SessionError> {
        let channel = dial(self.hub, identity)?;
        let mut client = AgentHubClient::new(channel.clone());
        let (out, queue) = mpsc::channel(MAX_QUEUED);
        let mut changed = self.node.observations.subscribe();
        changed.mark_unchanged();
        let mut sent = BTreeMap::new();
        self.greet(&out, &mut sent).await?;
        let mut inbound = timeout(HUB_LIMIT, client.session(ReceiverStream::new(queue)))
            .await
            .map_err(|_| SessionError::Silent)??
            .into_inner();
        let slots = Arc::new(Semaphore::new(MAX_SIDE_TASKS));
        let side = Side {
            node: self.node.clone(),
            hub: self.hub.to_owned(),
            identity: identity.cloned(),
            out: out.clone(),
            slots,
        };
        self.current.set(Some(channel));
        tracing::info!(hub = self.hub, "connected to the control plane");
        let mut status = tokio::time::interval_at(Instant::now() + STATUS_EVERY, STATUS_EVERY);
        loop {
            tokio::select! {
                received = inbound.message() => match received? {
                    Some(HubMessage { kind: Some(kind) }) => self.handle(kind, &side).await?,
                    Some(HubMessage { kind: None }) => tracing::debug!("a message of a kind that is not known here"),
                    None => return Err(SessionError::Ended),
                },
                _ = changed.changed() => self.send_observations(&out, &mut sent).await?,
                _ = status.tick() => send(&out, agent_message::Kind::Status(self.node.status())).await?,
            }
        }
    }

    /// Hello, then everything that exists here.
    async fn greet(
        &self,
        out: &mpsc::Sender<AgentMessage>,
        sent: &mut BTreeMap<MachineId, (u64, u64)>,
    ) -> Result<(), SessionError> {
        let hello = Hello {
            node: self.node.config.node.to_string(),
            boot_id: host_boot_id(),
            incarnation: self.incarnation.to_owned(),
            agent_version: hearth_service::VERSION.to_owned(),
            protocol_min: PROTOCOL,
            protocol_max: PROTOCOL,
            status: Some(self.node.status()),
            features: FEATURES.map(str::to_owned).to_vec(),
        };
        send(out, agent_message::Kind::Hello(hello)).await?;
        self.wait_for_owners().await;
        let observed = self.node.observations.all();
        sent.extend(observed.iter().map(|(id, o)| (id.clone(), (o.epoch, o.seq))));
        let inventory = Inventory {
            vms: observed.into_values().collect(),
            orphans: self.node.orphans(),
        };
        send(out, agent_message::Kind::Inventory(inventory)).await
    }

    /// After a start the owners first look at their VMs; an inventory before that would miss them.
    async fn wait_for_owners(&self) {
        let mut changed = self.node.observations.subscribe();
        let all_seen = async {
            loop {
                let seen = self.node.observations.all();
                if self.node.vms().iter().all(|id| seen.contains_key(id)) || changed.changed().await.is_err()
                {
                    break;
                }
            }
        };
        if timeout(OWNERS_LIMIT, all_seen).await.is_err() {
            tracing::warn!("the inventory is sent although some VMs could not be looked at yet");
        }
    }

    async fn send_observations(
        &self,
        out: &mpsc::Sender<AgentMessage>,
        sent: &mut BTreeMap<MachineId, (u64, u64)>,
    ) -> Result<(), SessionError> {
        let latest = self.node.observations.all();
        sent.retain(|id, _| latest.contains_key(id));
        for (id, observed) in latest {
            let number = (observed.epoch, observed.seq);
            if sent.insert(id, number) != Some(number) {
                send(out, agent_message::Kind::Observed(observed)).await?;
            }
        }
        Ok(())
    }

    async fn handle(&self, kind: hub_message::Kind, side: &Side) -> Result<(), SessionError> {
        match kind {
            hub_message::Kind::Welcome(welcome) if welcome.protocol != PROTOCOL => {
                return Err(SessionError::Protocol(welcome.protocol));
            }
            hub_message::Kind::Welcome(welcome) => tracing::debug!(server = welcome.server, "welcomed"),
            hub_message::Kind::FullSync(sync) => {
                let assigned: BTreeSet<&str> = sync.assignments.iter().map(|a| a.vm_id.as_str()).collect();
                let strangers: Vec<MachineId> = self
                    .node
                    .observations
                    .all()
                    .into_keys()
                    .filter(|id| !assigned.contains(id.as_str()))
                    .collect();
                strangers.iter().for_each(|id| self.node.unassigned(id));
                self.assign(sync.assignments);
                send(&side.out, agent_message::Kind::AckRevision(sync.revision)).await?;
            }
            hub_message::Kind::Delta(delta) => {
                self.assign(delta.upserts);
                for id in delta.removed_vm_ids {
                    if let Ok(id) = MachineId::try_from(id) {
                        self.node.unassigned(&id);
                    }
                }
                send(&side.out, agent_message::Kind::AckRevision(delta.revision)).await?;
            }
            hub_message::Kind::Action(action) => self.spawn_side(side, "action", |side| act(side, action)),
            hub_message::Kind::OpenConsole(open) => {
                self.spawn_side(side, "console viewer", |side| view(side, open));
            }
        }
        Ok(())
    }

    fn assign(&self, assignments: Vec<Assignment>) {
        for assignment in assignments {
            let vm = assignment.vm_id.clone();
            if let Err(refused) = self.node.assign(assignment) {
                tracing::warn!(vm, reason = %chain(&refused), "an assignment was refused");
            }
        }
    }

    fn spawn_side<F>(&self, side: &Side, name: &'static str, work: impl FnOnce(Side) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Ok(slot) = side.slots.clone().try_acquire_owned() else {
            tracing::warn!(name, "too much is under way; the hub will ask again");
            return;
        };
        let work = work(side.clone());
        let stopping = self.node.tasks.clone();
        self.node.tasks.spawn(name, Kind::Background, async move {
            let _slot = slot;
            tokio::select! {
                () = work => {}
                () = stopping.stopping() => {}
            }
            Ok(())
        });
    }
}

async fn send(out: &mpsc::Sender<AgentMessage>, kind: agent_message::Kind) -> Result<(), SessionError> {
    match timeout(HUB_LIMIT, out.send(message(kind))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(SessionError::Ended),
        Err(_) => Err(SessionError::Silent),
    }
}

async fn act(side: Side, action: Action) {
    let outcome = match action.kind {
        Some(action::Kind::Reset(_)) => {
            side.node
                .reset_once(&action.action_id, &action.vm_id, action.epoch)
                .await
        }
        None => Err("this agent does not know that action".to_owned()),
    };
    let ok = outcome.is_ok();
    let result = ActionResult {
        action_id: action.action_id,
        ok,
        error: outcome.err().unwrap_or_default(),
    };
    if let Err(error) = send(&side.out, agent_message::Kind::ActionResult(result)).await {
        tracing::debug!(%error, "the result of an action was not delivered; the hub will ask again");
    }
}

/// Bridges one viewer and the guest until either goes.
async fn view(side: Side, open: OpenConsole) {
    // Not on the session's connection: a viewer who does not read would in the end stop that one.
    let mut client = match dial(&side.hub, side.identity.as_ref()) {
        Ok(channel) => AgentHubClient::new(channel),
        Err(error) => return tracing::warn!(%error, "no connection for a console"),
    };
    let chunk = |data: Bytes, error: String| ConsoleChunk {
        console_id: open.console_id.clone(),
        data: data.into(),
        error,
    };
    let viewer = side.node.console(&open.vm_id);
    let (out, queue) = mpsc::channel(CONSOLE_QUEUE);
    let first = match &viewer {
        Ok(viewer) => chunk(viewer.history.clone(), String::new()),
        Err(error) => chunk(Bytes::new(), error.to_string()),
    };
    // The queue is empty: there is room.
    let _ = out.send(first).await;
    let attached = timeout(HUB_LIMIT, client.console_attach(ReceiverStream::new(queue))).await;
    let mut inbound = match (attached, &viewer) {
        (Ok(Ok(answer)), Ok(_)) => answer.into_inner(),
        (Ok(Err(status)), _) => return tracing::warn!(%status, "the hub refused a console"),
        _ => return,
    };
    let Ok(mut viewer) = viewer else { return };
    let to_hub = async {
        loop {
            let data = match viewer.output.recv().await {
                Ok(data) => data,
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    Bytes::from_static(b"\r\n[some output was too fast for this viewer]\r\n")
                }
                Err(broadcast::error::RecvError::Closed) => {
                    let _ = out
                        .send(chunk(Bytes::new(), "the VM has stopped".to_owned()))
                        .await;
                    break;
                }
            };
            if out.send(chunk(data, String::new())).await.is_err() {
                break;
            }
        }
    };
    let to_guest = async {
        while let Ok(Some(chunk)) = inbound.message().await {
            if !chunk.error.is_empty() || viewer.input.send(Bytes::from(chunk.data)).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = to_hub => {}
        () = to_guest => {}
    }
}
