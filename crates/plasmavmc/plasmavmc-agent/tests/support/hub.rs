//! A control plane for tests: it assigns what the test says and shows what the agent reports.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hearth_service::config::TlsConfig;
use hearth_service::pki::{Authority, LeafRequest};
use hearth_service::server::{Listener, ServeOptions, serve};
use hearth_service::tasks::{Kind, Tasks};
use hearth_service::tls::{ClientAuth, Identity, PeerIdentity};
use plasmavmc_client::agent::agent_hub_server::{AgentHub, AgentHubServer};
use plasmavmc_client::agent::{
    ActionResult, AgentMessage, Assignment, ConsoleChunk, Delta, FetchImageRequest, FullSync, HubMessage,
    ImageChunk, Inventory, NodeStatus, Observed, VmState, Welcome, agent_message, hub_message,
};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// A guest under TCG on a machine that builds other things at the same time.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Default)]
struct State {
    down: Option<mpsc::Sender<Result<HubMessage, Status>>>,
    assignments: BTreeMap<String, Assignment>,
    revision: u64,
    observed: BTreeMap<String, Observed>,
    history: Vec<(String, VmState)>,
    inventories: Vec<Inventory>,
    status: Option<NodeStatus>,
    results: Vec<ActionResult>,
    peers: Vec<String>,
    acked: u64,
    fetches: u32,
}

/// A hub that listens on loopback with mutual TLS.
#[derive(Clone)]
pub(crate) struct TestHub {
    state: Arc<Mutex<State>>,
    news: Arc<Notify>,
    image: PathBuf,
    consoles: mpsc::Sender<ConsoleEnds>,
}

/// What a viewer's stream brings, and where its key strokes go.
type ConsoleEnds = (
    Streaming<ConsoleChunk>,
    mpsc::Sender<Result<ConsoleChunk, Status>>,
);

/// The test's end of consoles.
pub(crate) type Consoles = mpsc::Receiver<ConsoleEnds>;

/// Certificate files of an identity, made by the test's own authority.
pub(crate) fn certificate(authority: &Authority, dir: &Path, path: &str) -> TlsConfig {
    let request = LeafRequest {
        trust_domain: "hearth.internal".to_owned(),
        path: path.to_owned(),
        dns: vec!["localhost".to_owned()],
        ips: vec!["127.0.0.1".parse().unwrap()],
        lifetime: Duration::from_secs(3600),
    };
    let issued = authority.issue(&request, SystemTime::now()).unwrap();
    let name = path.replace('/', "-");
    let files = TlsConfig {
        ca: dir.join("ca.crt"),
        cert: dir.join(format!("{name}.crt")),
        key: dir.join(format!("{name}.key")),
    };
    std::fs::write(&files.ca, authority.cert_pem()).unwrap();
    std::fs::write(&files.cert, issued.cert_pem).unwrap();
    std::fs::write(&files.key, issued.key_pem).unwrap();
    files
}

impl TestHub {
    pub(crate) async fn start(tls: &TlsConfig, image: &Path, tasks: &Tasks) -> (Self, SocketAddr, Consoles) {
        let (consoles, incoming) = mpsc::channel(4);
        let hub = Self {
            state: Arc::default(),
            news: Arc::default(),
            image: image.to_owned(),
            consoles,
        };
        let identity = Identity::load(tls).unwrap();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr();
        let router = tonic::service::Routes::new(AgentHubServer::new(hub.clone())).into_axum_router();
        let (options, group) = (ServeOptions::tls(identity, ClientAuth::Required), tasks.clone());
        tasks.spawn("test hub", Kind::Background, async move {
            Ok(serve(listener, router, options, group).await?)
        });
        (hub, address, incoming)
    }

    pub(crate) fn assign(&self, assignment: &Assignment) {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        state
            .assignments
            .insert(assignment.vm_id.clone(), assignment.clone());
        let delta = Delta {
            revision: state.revision,
            upserts: vec![assignment.clone()],
            removed_vm_ids: Vec::new(),
        };
        send(&state, hub_message::Kind::Delta(delta));
    }

    pub(crate) fn assign_deletion(&self, vm_id: &str) {
        let assigned = self.state.lock().unwrap().assignments.get(vm_id).cloned();
        let mut assignment = assigned.unwrap();
        assignment.generation += 1;
        assignment.delete = true;
        self.assign(&assignment);
    }

    pub(crate) fn send(&self, kind: hub_message::Kind) {
        send(&self.state.lock().unwrap(), kind);
    }

    pub(crate) fn forget(&self, vm_id: &str) {
        let mut state = self.state.lock().unwrap();
        state.observed.remove(vm_id);
        state.history.clear();
    }

    /// Waits until `found` finds something in what the agent has said.
    async fn wait<T>(&self, what: &str, mut found: impl FnMut(&State) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let news = self.news.notified();
                if let Some(value) = found(&self.state.lock().unwrap()) {
                    return value;
                }
                news.await;
            }
        };
        let result = tokio::time::timeout(LIMIT, waiting).await;
        result.unwrap_or_else(|_| panic!("no {what}; seen {:?}", self.state.lock().unwrap().history))
    }

    pub(crate) async fn observed(&self, vm_id: &str, wanted: VmState) -> Observed {
        let what = format!("{wanted:?} of {vm_id}");
        self.wait(&what, |s| {
            s.observed.get(vm_id).filter(|o| o.state() == wanted).cloned()
        })
        .await
    }

    pub(crate) async fn inventory(&self, number: usize) -> Inventory {
        self.wait("inventory", |s| s.inventories.get(number).cloned())
            .await
    }

    pub(crate) async fn result(&self, action_id: &str, number: usize) -> ActionResult {
        let mine = |s: &State| {
            s.results
                .iter()
                .filter(|r| r.action_id == action_id)
                .nth(number)
                .cloned()
        };
        self.wait("action result", mine).await
    }

    pub(crate) async fn status(&self) -> NodeStatus {
        self.wait("status", |s| s.status.clone()).await
    }

    pub(crate) async fn acked(&self) {
        self.wait("acknowledgement", |s| (s.acked == s.revision).then_some(()))
            .await;
    }

    pub(crate) fn states(&self, vm_id: &str) -> Vec<VmState> {
        let state = self.state.lock().unwrap();
        state
            .history
            .iter()
            .filter(|(id, _)| id == vm_id)
            .map(|(_, s)| *s)
            .collect()
    }

    pub(crate) fn fetches(&self) -> u32 {
        self.state.lock().unwrap().fetches
    }

    pub(crate) fn peers(&self) -> Vec<String> {
        self.state.lock().unwrap().peers.clone()
    }
}

fn send(state: &State, kind: hub_message::Kind) {
    if let Some(down) = &state.down {
        let _ = down.try_send(Ok(HubMessage { kind: Some(kind) }));
    }
}

impl State {
    fn note(&mut self, observed: Observed) {
        let last = self.observed.get(&observed.vm_id);
        if let Some(last) = last.filter(|l| l.epoch == observed.epoch && l.state() != VmState::Gone) {
            assert!(
                observed.seq > last.seq || self.inventories.len() > 1,
                "{observed:?} after {last:?}"
            );
        }
        self.history.push((observed.vm_id.clone(), observed.state()));
        self.observed.insert(observed.vm_id.clone(), observed);
    }

    fn hear(&mut self, kind: agent_message::Kind) {
        match kind {
            agent_message::Kind::Hello(hello) => self.status = hello.status,
            agent_message::Kind::Inventory(inventory) => {
                self.inventories.push(inventory.clone());
                inventory.vms.into_iter().for_each(|o| self.note(o));
            }
            agent_message::Kind::Observed(observed) => self.note(observed),
            agent_message::Kind::Status(status) => self.status = Some(status),
            agent_message::Kind::ActionResult(result) => self.results.push(result),
            agent_message::Kind::AckRevision(revision) => self.acked = revision,
        }
    }
}

#[tonic::async_trait]
impl AgentHub for TestHub {
    type SessionStream = ReceiverStream<Result<HubMessage, Status>>;
    type ConsoleAttachStream = ReceiverStream<Result<ConsoleChunk, Status>>;
    type FetchImageStream = ReceiverStream<Result<ImageChunk, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = request
            .extensions()
            .get::<PeerIdentity>()
            .map(|p| p.path.clone())
            .unwrap_or_default();
        let mut inbound = request.into_inner();
        let (down, stream) = mpsc::channel(64);
        {
            let mut state = self.state.lock().unwrap();
            state.peers.push(peer);
            state.down = Some(down);
            send(
                &state,
                hub_message::Kind::Welcome(Welcome {
                    protocol: 1,
                    server: "test".to_owned(),
                }),
            );
            let assignments = state.assignments.values().cloned().collect();
            send(
                &state,
                hub_message::Kind::FullSync(FullSync {
                    revision: state.revision,
                    assignments,
                }),
            );
        }
        let hub = self.clone();
        let mut set = tokio::task::JoinSet::new();
        set.spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                if let Some(kind) = message.kind {
                    hub.state.lock().unwrap().hear(kind);
                    hub.news.notify_waiters();
                }
            }
        });
        set.detach_all(); // ends with its stream
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn console_attach(
        &self,
        request: Request<Streaming<ConsoleChunk>>,
    ) -> Result<Response<Self::ConsoleAttachStream>, Status> {
        let (to_agent, stream) = mpsc::channel(16);
        let _ = self.consoles.send((request.into_inner(), to_agent)).await;
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn fetch_image(
        &self,
        request: Request<FetchImageRequest>,
    ) -> Result<Response<Self::FetchImageStream>, Status> {
        self.state.lock().unwrap().fetches += 1;
        let offset = usize::try_from(request.into_inner().offset).unwrap();
        let data = std::fs::read(&self.image).unwrap();
        let (chunks, stream) = mpsc::channel(2);
        let mut set = tokio::task::JoinSet::new();
        set.spawn(async move {
            for chunk in data[offset..].chunks(1 << 20) {
                if chunks
                    .send(Ok(ImageChunk { data: chunk.to_vec() }))
                    .await
                    .is_err()
                {
                    break;
                }
            }
        });
        set.detach_all(); // ends with its stream
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
