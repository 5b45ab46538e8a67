//! A simulated agent: it speaks the real protocol over mutual TLS and keeps its guests in memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hearth_service::client::{ChannelOptions, channel};
use hearth_service::tasks::{Kind, Tasks};
use hearth_service::tls::Identity;
use plasmavmc_client::agent::agent_hub_client::AgentHubClient;
use plasmavmc_client::agent::{
    ActionResult, AgentMessage, Assignment, ConsoleChunk, FetchImageRequest, Hello, HubMessage, Inventory,
    NodeStatus, Observed, OpenConsole, Power, VmState, agent_message, hub_message,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::harness::Cluster;

/// A guest in memory.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) assignment: Assignment,
    pub(crate) state: VmState,
    /// How often it was started.
    pub(crate) starts: u32,
    pub(crate) resets: u64,
    pub(crate) paused: bool,
}

/// What the agent keeps over restarts of its connection.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) guests: BTreeMap<String, Guest>,
    /// Every message from the hub, by kind.
    pub(crate) heard: Vec<&'static str>,
}

/// A running agent.
pub(crate) struct SimAgent {
    pub(crate) node: String,
    pub(crate) memory: Arc<Mutex<Memory>>,
    tasks: Tasks,
    seq: Arc<AtomicU64>,
    lease: i64,
    store: chainfire_client::Client,
}

impl Drop for SimAgent {
    fn drop(&mut self) {
        self.tasks.stop("the test is over");
    }
}

/// What a node has.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) network: &'static str,
    pub(crate) features: &'static [&'static str],
}

pub(crate) const SMALL: Size = Size {
    vcpus: 8,
    memory_mib: 4096,
    network: "routed",
    features: &["pause", "resets"],
};

struct Talk {
    hub: Channel,
    memory: Arc<Mutex<Memory>>,
    seq: Arc<AtomicU64>,
    tasks: Tasks,
    to_hub: mpsc::Sender<AgentMessage>,
    features: Vec<String>,
}

impl SimAgent {
    /// Writes the node's session key and dials the hubs in turn, again and again.
    pub(crate) async fn start(cluster: &Cluster, node: &str, hubs: Vec<String>, size: Size) -> Self {
        Self::start_with(cluster, node, hubs, size, Arc::default()).await
    }

    /// The same, with the guests that an earlier one has left.
    pub(crate) async fn start_with(
        cluster: &Cluster,
        node: &str,
        hubs: Vec<String>,
        size: Size,
        memory: Arc<Mutex<Memory>>,
    ) -> Self {
        let lease = cluster.store.lease_grant(600).await.unwrap();
        let session = format!("/plasmavmc/v1/sessions/{node}");
        cluster
            .store
            .put_with_lease(&session, "{}", lease.id())
            .await
            .unwrap();
        let agent = Self {
            node: node.to_owned(),
            memory,
            tasks: Tasks::new(),
            seq: Arc::default(),
            lease: lease.id(),
            store: cluster.store.clone(),
        };
        agent.dial(cluster.identity(&format!("node/{node}")), hubs, size);
        agent
    }

    fn dial(&self, identity: Identity, hubs: Vec<String>, size: Size) {
        let (memory, seq, tasks, node) = (
            self.memory.clone(),
            self.seq.clone(),
            self.tasks.clone(),
            self.node.clone(),
        );
        let stop = self.tasks.clone();
        self.tasks.spawn("simulated agent", Kind::Background, async move {
            let again = async {
                for hub in hubs.iter().cycle() {
                    let hub = channel(hub, Some(&identity), &ChannelOptions::default()).unwrap();
                    let (to_hub, messages) = mpsc::channel(256);
                    let talk = Talk {
                        hub,
                        memory: memory.clone(),
                        seq: seq.clone(),
                        tasks: tasks.clone(),
                        to_hub,
                        features: size.features.iter().map(|f| (*f).to_owned()).collect(),
                    };
                    let _ = talk.session(&node, size, messages).await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::select! {
                () = again => {}
                () = stop.stopping() => {}
            }
            Ok(())
        });
    }

    /// The agent and its session are gone, its guests run on.
    pub(crate) async fn die(&self) {
        self.tasks.stop("the test kills the agent");
        self.store.lease_revoke(self.lease).await.unwrap();
    }

    /// The agent is gone, its node's session is not yet.
    pub(crate) async fn hang_up(&self) {
        self.tasks.stop("the test hangs up");
        assert!(self.tasks.finished(crate::harness::PATIENCE).await);
    }

    pub(crate) fn guests(&self) -> Vec<Guest> {
        self.memory.lock().unwrap().guests.values().cloned().collect()
    }
}

impl Talk {
    async fn session(
        &self,
        node: &str,
        size: Size,
        messages: mpsc::Receiver<AgentMessage>,
    ) -> Result<(), tonic::Status> {
        let status = NodeStatus {
            vcpus: size.vcpus,
            memory_bytes: size.memory_mib << 20,
            disk_bytes: 100 << 30,
            network_mode: size.network.to_owned(),
            accelerator: "tcg".to_owned(),
            accelerator_reason: "simulated".to_owned(),
            labels: [("rack".to_owned(), node.to_owned())].into(),
            architecture: "x86_64".to_owned(),
            ..NodeStatus::default()
        };
        let incarnation = uuid::Uuid::now_v7().to_string();
        self.say(agent_message::Kind::Hello(Hello {
            node: node.to_owned(),
            boot_id: "boot".to_owned(),
            incarnation,
            agent_version: "sim".to_owned(),
            protocol_min: 1,
            protocol_max: 1,
            status: Some(status),
            features: self.features.clone(),
        }))
        .await;
        let vms: Vec<Observed> = {
            let memory = self.memory.lock().unwrap();
            memory
                .guests
                .values()
                .map(|guest| self.observed(guest, guest.state))
                .collect()
        };
        self.say(agent_message::Kind::Inventory(Inventory {
            vms,
            orphans: Vec::new(),
        }))
        .await;
        let mut hub = AgentHubClient::new(self.hub.clone());
        let mut from_hub = hub.session(ReceiverStream::new(messages)).await?.into_inner();
        while let Some(message) = from_hub.message().await? {
            self.hear(message).await;
        }
        Ok(())
    }

    async fn say(&self, kind: agent_message::Kind) {
        let _ = self.to_hub.send(AgentMessage { kind: Some(kind) }).await;
    }

    fn observed(&self, guest: &Guest, state: VmState) -> Observed {
        Observed {
            vm_id: guest.assignment.vm_id.clone(),
            epoch: guest.assignment.epoch,
            observed_generation: guest.assignment.generation,
            seq: self.seq.fetch_add(1, Ordering::Relaxed) + 1,
            state: state.into(),
            reason: String::new(),
            pid: if state == VmState::Running { 4242 } else { 0 },
            started_at_unix_ms: 1_700_000_000_000,
            accelerator: "tcg".to_owned(),
            paused: guest.paused,
            resets: guest.assignment.resets,
        }
    }

    async fn hear(&self, message: HubMessage) {
        let kind = message.kind.unwrap();
        self.memory.lock().unwrap().heard.push(match &kind {
            hub_message::Kind::Welcome(_) => "welcome",
            hub_message::Kind::FullSync(_) => "full sync",
            hub_message::Kind::Delta(_) => "delta",
            hub_message::Kind::Action(_) => "action",
            hub_message::Kind::OpenConsole(_) => "open console",
        });
        match kind {
            hub_message::Kind::Welcome(_) => {}
            hub_message::Kind::FullSync(sync) => {
                for assignment in sync.assignments {
                    self.apply(assignment).await;
                }
                self.say(agent_message::Kind::AckRevision(sync.revision)).await;
            }
            hub_message::Kind::Delta(delta) => {
                for assignment in delta.upserts {
                    self.apply(assignment).await;
                }
                for vm in delta.removed_vm_ids {
                    self.memory.lock().unwrap().guests.remove(&vm);
                }
            }
            hub_message::Kind::Action(action) => {
                let ok = {
                    let mut memory = self.memory.lock().unwrap();
                    memory
                        .guests
                        .get_mut(&action.vm_id)
                        .map(|guest| guest.resets += 1)
                        .is_some()
                };
                let result = ActionResult {
                    action_id: action.action_id,
                    ok,
                    error: String::new(),
                };
                self.say(agent_message::Kind::ActionResult(result)).await;
            }
            hub_message::Kind::OpenConsole(open) => self.console(open),
        }
    }

    /// Makes an assignment true and reports each step.
    async fn apply(&self, assignment: Assignment) {
        let vm = assignment.vm_id.clone();
        let before = {
            let mut memory = self.memory.lock().unwrap();
            let fresh = Guest {
                assignment: assignment.clone(),
                state: VmState::Unspecified,
                starts: 0,
                resets: assignment.resets,
                paused: false,
            };
            let guest = memory.guests.entry(vm.clone()).or_insert(fresh);
            guest.assignment = assignment.clone();
            if guest.state == VmState::Running {
                guest.resets = guest.resets.max(assignment.resets);
            }
            guest.paused = assignment.paused;
            guest.state
        };
        let power = Power::try_from(assignment.power).unwrap();
        let steps: &[VmState] = match (assignment.delete, power, before) {
            (true, ..) => &[VmState::Stopping, VmState::Gone],
            (_, Power::On, VmState::Running) => &[VmState::Running],
            (_, Power::On, _) => &[VmState::Preparing, VmState::Starting, VmState::Running],
            (_, _, VmState::Running) => &[VmState::Stopping, VmState::Stopped],
            _ => &[VmState::Stopped],
        };
        for state in steps {
            let seen = {
                let mut memory = self.memory.lock().unwrap();
                let Some(guest) = memory.guests.get_mut(&vm) else {
                    return;
                };
                guest.starts += u32::from(*state == VmState::Starting);
                guest.state = *state;
                let seen = self.observed(guest, *state);
                if *state == VmState::Gone {
                    memory.guests.remove(&vm);
                }
                seen
            };
            self.say(agent_message::Kind::Observed(seen)).await;
        }
    }

    /// A console that greets and then echoes in capitals; `bye` ends it.
    fn console(&self, open: OpenConsole) {
        let hub = self.hub.clone();
        self.tasks
            .spawn("simulated console", Kind::Background, async move {
                let id = open.console_id;
                let chunk = |data: &[u8]| ConsoleChunk {
                    console_id: id.clone(),
                    data: data.to_vec(),
                    error: String::new(),
                };
                let (to_hub, chunks) = mpsc::channel(8);
                to_hub.send(chunk(b"login: ")).await?;
                let mut hub = AgentHubClient::new(hub);
                let mut typed = hub
                    .console_attach(ReceiverStream::new(chunks))
                    .await?
                    .into_inner();
                while let Some(text) = typed.message().await? {
                    if text.data == b"bye" {
                        break;
                    }
                    to_hub.send(chunk(&text.data.to_ascii_uppercase())).await?;
                }
                Ok(())
            });
    }
}

/// Fetches an image as an agent does.
pub(crate) async fn fetch_image(
    identity: &Identity,
    hub: &str,
    sha256: &str,
    offset: u64,
) -> Result<Vec<u8>, tonic::Status> {
    let hub = channel(hub, Some(identity), &ChannelOptions::default()).unwrap();
    let request = FetchImageRequest {
        sha256: sha256.to_owned(),
        offset,
    };
    let mut chunks = AgentHubClient::new(hub).fetch_image(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        bytes.extend(chunk.data);
    }
    Ok(bytes)
}
