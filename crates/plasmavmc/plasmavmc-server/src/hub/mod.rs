//! Where node agents arrive: one session per node, consoles and image fetches beside it.
//!
//! An agent's identity is its client certificate (`node/NAME`), never what it says of itself. What a session knows
//! is in the store; what is here (who is connected, which console waits for which agent) may be lost at any time.

mod console;
mod convert;
mod service;
mod session;

pub(crate) use console::carry;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_service::error::{ApiError, ErrorKind};
use hearth_service::tasks::Tasks;
use hearth_types::Name;
use iam_client::Authorizer;
use plasmavmc_client::agent::agent_hub_server::AgentHubServer;
use plasmavmc_client::agent::{Action, ActionResult, HubMessage, Reset, action, hub_message};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::config::PlasmaConfig;
use crate::images::ImageFiles;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::store::records::VmRecord;

/// Messages waiting for one agent.
const TO_AGENT_QUEUE: usize = 64;
/// How long an agent may leave a message waiting before its session is ended.
const SEND_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an agent may take to answer an act or to attach a console.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest message of an agent: an inventory of thousands of VMs.
const MAX_MESSAGE_BYTES: usize = 8 << 20;

type ToAgent = mpsc::Sender<Result<HubMessage, Status>>;

/// The hub. Clones share it.
#[derive(Clone)]
pub(crate) struct Hub(Arc<Inner>);

struct Inner {
    store: Store,
    authorizer: Authorizer,
    images: ImageFiles,
    config: PlasmaConfig,
    server: String,
    metrics: Metrics,
    tasks: Tasks,
    sessions: Mutex<HashMap<Name, Connected>>,
    consoles: Mutex<HashMap<String, console::Waiting>>,
    acts: Mutex<HashMap<String, oneshot::Sender<ActionResult>>>,
}

/// A connected agent.
#[derive(Clone)]
struct Connected {
    session: u64,
    to_agent: ToAgent,
    /// Cancelled when a newer session of the same node arrives.
    replaced: CancellationToken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes an entry out of a table again when its waiter ends, however it ends.
struct Forget<'a, V> {
    table: &'a Mutex<HashMap<String, V>>,
    id: String,
}

impl<V> Drop for Forget<'_, V> {
    fn drop(&mut self) {
        lock(self.table).remove(&self.id);
    }
}

impl Hub {
    pub(crate) fn new(
        store: Store,
        authorizer: Authorizer,
        images: ImageFiles,
        config: PlasmaConfig,
        server: String,
        tasks: Tasks,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            authorizer,
            images,
            config,
            server,
            metrics: Metrics::default(),
            tasks,
            sessions: Mutex::default(),
            consoles: Mutex::default(),
            acts: Mutex::default(),
        }))
    }

    /// The gRPC service as routes to merge into the REST router.
    pub(crate) fn routes(&self) -> axum::Router {
        let service = AgentHubServer::new(service::Service(self.clone()))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        tonic::service::Routes::new(service).into_axum_router()
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    fn connected(&self, node: &Name) -> Result<Connected, ApiError> {
        lock(&self.0.sessions).get(node).cloned().ok_or_else(|| {
            let message = format!("the agent of node {node} is not connected to this server");
            ApiError::new(ErrorKind::Unavailable, message)
                .hint("try again in a few seconds; with several servers, ask the one that the agent dials")
        })
    }

    async fn tell(&self, node: &Name, kind: hub_message::Kind) -> Result<(), ApiError> {
        let agent = self.connected(node)?;
        let sent = send(&agent.to_agent, kind).await;
        sent.map_err(|why| {
            ApiError::new(
                ErrorKind::Unavailable,
                format!("the agent of node {node} is not reachable: {why}"),
            )
            .hint("try again")
        })
    }

    /// Has an agent reset a guest and waits for its answer. The agent does it once for each key.
    pub(crate) async fn reset(&self, vm: &VmRecord, key: Option<&str>) -> Result<(), ApiError> {
        let action_id = match key {
            Some(key) => format!("{}-{key}", vm.id),
            None => uuid::Uuid::now_v7().to_string(),
        };
        let (answer, answered) = oneshot::channel();
        lock(&self.0.acts).insert(action_id.clone(), answer);
        let _forget = Forget {
            table: &self.0.acts,
            id: action_id.clone(),
        };
        let act = Action {
            action_id,
            vm_id: vm.id.to_string(),
            epoch: vm.placed.epoch,
            kind: Some(action::Kind::Reset(Reset {})),
        };
        self.tell(&vm.placed.node, hub_message::Kind::Action(act)).await?;
        match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
            Ok(Ok(ActionResult { ok: true, .. })) => Ok(()),
            Ok(Ok(result)) => Err(ApiError::new(
                ErrorKind::FailedPrecondition,
                format!("the node could not reset VM `{}`: {}", vm.name, result.error),
            )),
            Ok(Err(_)) | Err(_) => Err(ApiError::new(
                ErrorKind::DeadlineExceeded,
                format!(
                    "node {} did not say in time whether VM `{}` was reset",
                    vm.placed.node, vm.name
                ),
            )
            .hint("look at its console before resetting it again")),
        }
    }
}

/// Sends one message, or says why it could not be.
async fn send(to_agent: &ToAgent, kind: hub_message::Kind) -> Result<(), &'static str> {
    let message = Ok(HubMessage { kind: Some(kind) });
    match tokio::time::timeout(SEND_TIMEOUT, to_agent.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("its connection has ended"),
        Err(_) => Err("it takes no messages"),
    }
}
