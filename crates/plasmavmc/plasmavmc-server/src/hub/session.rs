//! One agent's session.
//!
//! ```text
//! agent                               hub
//!   Hello  ──────────────────────────>  certificate and name agree, protocol fits, node registered
//!   <─────────────────────────  Welcome
//!   <─────────────────────── FullSync(R)  everything assigned at revision R; what does not fit into
//!   <───────────────────────── Delta(R)   MAX_SYNC_BYTES follows in deltas of the same revision
//!   Inventory, Observed, ... ────────>  accepted by epoch, one transaction each
//!   <──────────────────────── Delta(>R)  by watch
//! ```
//!
//! Anything that goes wrong ends the stream; the agent comes back and both sides say everything again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chainfire_client::{KeyValue, WatchEvent, WatchUpdate};
use hearth_service::tasks::chain;
use hearth_types::{Name, VmId};
use plasmavmc_client::agent::{
    self, AgentMessage, Delta, FullSync, Hello, Welcome, agent_message, hub_message,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::convert::{self, Unusable};
use super::{Connected, Hub, ToAgent, lock, send};
use crate::store::observe::Observed;
use crate::store::records::AssignRecord;
use crate::store::{StoreError, decode, keys};

/// The version of the agent's protocol that this server speaks.
const PROTOCOL: u32 = 1;
/// How long an agent may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest set of assignments in one message: gRPC clients take 4 MiB unless told otherwise.
const MAX_SYNC_BYTES: usize = 2 << 20;

/// A revision as the protocol carries it.
fn told(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the agent closed the stream")]
    Closed,
    #[error("the stream broke: {}", .0.message())]
    Broken(Status),
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Unusable(#[from] Unusable),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the watch of assignments ended")]
    Watch(#[source] chainfire_client::Error),
    #[error("the history of assignments was compacted away")]
    Compacted,
    #[error("a newer session of the node has come")]
    Replaced,
    #[error("this server is stopping")]
    Stopping,
    #[error("the agent cannot be told: {0}")]
    Unreachable(&'static str),
}

impl Ended {
    /// What the agent is told as the stream ends.
    fn status(&self) -> Status {
        let text = chain(self);
        match self {
            Self::Refused(_) | Self::Unusable(_) => Status::invalid_argument(text),
            Self::Replaced => Status::already_exists(text),
            _ => Status::unavailable(text),
        }
    }
}

struct Session {
    hub: Hub,
    node: Name,
    to_agent: ToAgent,
    /// The agent's incarnation.
    reporter: String,
    hello: Hello,
    /// Highest revision that the agent was told of.
    revision: i64,
}

/// Runs a session to its end.
pub(super) async fn run(hub: Hub, node: Name, mut inbound: Streaming<AgentMessage>, to_agent: ToAgent) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let replaced = CancellationToken::new();
    let ended = tokio::select! {
        ended = talk(&hub, &node, &mut inbound, &to_agent, number, &replaced) => ended,
        () = replaced.cancelled() => Ended::Replaced,
        () = hub.0.tasks.stopping() => Ended::Stopping,
    };
    {
        let mut sessions = lock(&hub.0.sessions);
        if sessions.get(&node).is_some_and(|now| now.session == number) {
            sessions.remove(&node);
        }
        hub.0
            .metrics
            .agent_sessions
            .set(i64::try_from(sessions.len()).unwrap_or(i64::MAX));
    }
    match &ended {
        Ended::Closed | Ended::Stopping => tracing::info!(%node, why = %ended, "agent session ended"),
        _ => tracing::warn!(%node, why = %chain(&ended), "agent session ended"),
    }
    // A full queue means that the agent does not read: it will notice the end of the stream instead.
    let _ = to_agent.try_send(Err(ended.status()));
}

async fn talk(
    hub: &Hub,
    node: &Name,
    inbound: &mut Streaming<AgentMessage>,
    to_agent: &ToAgent,
    number: u64,
    replaced: &CancellationToken,
) -> Ended {
    let begun = async {
        let hello = hello(inbound, node).await?;
        let mut session = Session {
            hub: hub.clone(),
            node: node.clone(),
            to_agent: to_agent.clone(),
            reporter: hello.incarnation.clone(),
            hello,
            revision: 0,
        };
        session.welcome(number, replaced).await?;
        Ok(session)
    };
    match begun.await {
        Ok(session) => match session.serve(inbound).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        },
        Err(ended) => ended,
    }
}

async fn hello(inbound: &mut Streaming<AgentMessage>, node: &Name) -> Result<Hello, Ended> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message())
        .await
        .map_err(|_| Ended::Refused("no hello within 10 seconds".to_owned()))?;
    let Some(agent_message::Kind::Hello(hello)) = first.map_err(Ended::Broken)?.ok_or(Ended::Closed)?.kind
    else {
        return Err(Ended::Refused("the first message is not a hello".to_owned()));
    };
    if hello.node != node.as_str() {
        let text = format!(
            "the certificate is of node `{node}`, the hello of `{}`",
            hello.node
        );
        return Err(Ended::Refused(text));
    }
    if hello.incarnation.is_empty() {
        return Err(Ended::Refused("the hello names no incarnation".to_owned()));
    }
    if !(hello.protocol_min..=hello.protocol_max).contains(&PROTOCOL) {
        let text = format!(
            "the agent speaks protocol {} to {}, this server {PROTOCOL}; upgrade the older one",
            hello.protocol_min, hello.protocol_max
        );
        return Err(Ended::Refused(text));
    }
    Ok(hello)
}

/// A value that cannot be: sessions end by an error only.
enum Never {}

impl Session {
    /// Registers the node, makes this its session, and tells the agent everything.
    async fn welcome(&mut self, number: u64, replaced: &CancellationToken) -> Result<(), Ended> {
        let status = self.hello.status.clone().unwrap_or_default();
        self.register(&status).await?;
        let connected = Connected {
            session: number,
            to_agent: self.to_agent.clone(),
            replaced: replaced.clone(),
        };
        let older = {
            let mut sessions = lock(&self.hub.0.sessions);
            let older = sessions.insert(self.node.clone(), connected);
            self.hub
                .0
                .metrics
                .agent_sessions
                .set(i64::try_from(sessions.len()).unwrap_or(i64::MAX));
            older
        };
        if let Some(older) = older {
            older.replaced.cancel();
        }
        tracing::info!(node = %self.node, incarnation = %self.reporter, "agent connected");
        let welcome = Welcome {
            protocol: PROTOCOL,
            server: self.hub.0.server.clone(),
        };
        self.tell(hub_message::Kind::Welcome(welcome)).await?;
        let assignments = self.hub.0.store.assignments(&self.node).await?;
        self.revision = assignments.revision;
        let all = assignments
            .vms
            .iter()
            .map(|vm| convert::assignment(vm, &self.hub.0.config))
            .collect();
        let mut parts = convert::in_parts(all, MAX_SYNC_BYTES).into_iter();
        let sync = FullSync {
            revision: told(self.revision),
            assignments: parts.next().unwrap_or_default(),
        };
        self.tell(hub_message::Kind::FullSync(sync)).await?;
        for upserts in parts {
            self.tell_delta(upserts, Vec::new()).await?;
        }
        Ok(())
    }

    /// Tells of changes up to `self.revision`.
    async fn tell_delta(
        &self,
        upserts: Vec<agent::Assignment>,
        removed_vm_ids: Vec<String>,
    ) -> Result<(), Ended> {
        let delta = Delta {
            revision: told(self.revision),
            upserts,
            removed_vm_ids,
        };
        self.tell(hub_message::Kind::Delta(delta)).await
    }

    async fn serve(mut self, inbound: &mut Streaming<AgentMessage>) -> Result<Never, Ended> {
        let prefix = keys::assigned_to(&self.node);
        let mut watcher = self.hub.0.store.client().watch(prefix, self.revision + 1);
        loop {
            tokio::select! {
                message = inbound.message() => {
                    let message = message.map_err(Ended::Broken)?.ok_or(Ended::Closed)?;
                    self.heard(message).await?;
                }
                update = watcher.next() => match update.map_err(Ended::Watch)? {
                    WatchUpdate::Events { revision, events } => self.changed(revision, &events).await?,
                    WatchUpdate::Progress { .. } => {}
                    WatchUpdate::Compacted { .. } => return Err(Ended::Compacted),
                },
            }
        }
    }

    async fn tell(&self, kind: hub_message::Kind) -> Result<(), Ended> {
        send(&self.to_agent, kind).await.map_err(Ended::Unreachable)
    }

    async fn register(&self, status: &agent::NodeStatus) -> Result<(), Ended> {
        let hello = &self.hello;
        let record = convert::node_record(status, &hello.agent_version, &hello.boot_id, &hello.features)?;
        Ok(self.hub.0.store.register_node(&self.node, &record).await?)
    }

    async fn heard(&self, message: AgentMessage) -> Result<(), Ended> {
        match message.kind {
            Some(agent_message::Kind::Inventory(inventory)) => {
                for orphan in &inventory.orphans {
                    tracing::warn!(node = %self.node, orphan, "the agent found something that nobody owns");
                }
                for seen in &inventory.vms {
                    self.observed(seen).await?;
                }
                Ok(())
            }
            Some(agent_message::Kind::Observed(seen)) => self.observed(&seen).await,
            Some(agent_message::Kind::Status(status)) => self.register(&status).await,
            Some(agent_message::Kind::ActionResult(result)) => {
                if let Some(waiter) = lock(&self.hub.0.acts).remove(&result.action_id) {
                    // Nobody may be waiting any more.
                    let _ = waiter.send(result);
                }
                Ok(())
            }
            Some(agent_message::Kind::AckRevision(revision)) => {
                tracing::trace!(node = %self.node, revision, "assignments taken over");
                Ok(())
            }
            Some(agent_message::Kind::Hello(_)) => Err(Ended::Refused("a second hello".to_owned())),
            // A message of a newer agent; what matters to us it also says in the old way.
            None => Ok(()),
        }
    }

    async fn observed(&self, seen: &agent::Observed) -> Result<(), Ended> {
        let Ok(vm) = seen.vm_id.parse::<VmId>() else {
            return Err(Ended::Refused(format!("`{}` is no VM id", seen.vm_id)));
        };
        let record = convert::observed_record(seen, &self.reporter)?;
        let metrics = &self.hub.0.metrics;
        match self.hub.0.store.observe(&self.node, vm, &record).await? {
            Observed::Accepted => drop(metrics.observations_accepted.inc()),
            Observed::Released => {
                metrics.observations_accepted.inc();
                metrics.vms_released.inc();
                tracing::info!(%vm, node = %self.node, "VM is gone, everything of it is free");
            }
            Observed::Refused(why) => {
                metrics.observations_refused.inc();
                tracing::debug!(%vm, node = %self.node, %why, "report refused");
            }
            Observed::NotAssigned => self.not_assigned(vm, seen).await?,
        }
        Ok(())
    }

    /// What was taken away from this node is removed there; anything else is left to people.
    async fn not_assigned(&self, vm: VmId, seen: &agent::Observed) -> Result<(), Ended> {
        let store = &self.hub.0.store;
        let evicted = store.evicted(&self.node, vm).await?;
        let gone = seen.state() == agent::VmState::Gone;
        match evicted {
            Some(evicted) if !gone && seen.epoch <= evicted.epoch => {
                tracing::warn!(%vm, node = %self.node, epoch = seen.epoch, "runs elsewhere by now; its remains are removed");
                let removal = agent::Assignment {
                    vm_id: vm.to_string(),
                    epoch: seen.epoch,
                    generation: seen.observed_generation,
                    power: agent::Power::OffForced.into(),
                    delete: true,
                    spec: Some(agent::VmSpec {
                        hypervisor: evicted.hypervisor.as_str().to_owned(),
                        ..agent::VmSpec::default()
                    }),
                    ..agent::Assignment::default()
                };
                self.tell_delta(vec![removal], Vec::new()).await
            }
            evicted => {
                if evicted.is_some() {
                    store.forget_evicted(&self.node, vm).await?;
                }
                self.tell_delta(Vec::new(), vec![vm.to_string()]).await
            }
        }
    }

    async fn changed(&mut self, revision: i64, events: &[WatchEvent]) -> Result<(), Ended> {
        let (mut upserts, mut removed): (Vec<agent::Assignment>, Vec<String>) = Default::default();
        for event in events {
            match event {
                WatchEvent::Put { kv, .. } => {
                    if let Some(vm) = self.assignment(kv).await? {
                        // A batch may hold several versions of one assignment; what is read now is the newest.
                        upserts.retain(|known| known.vm_id != vm.vm_id);
                        upserts.push(vm);
                    }
                }
                WatchEvent::Delete { key, .. } => {
                    if let Some(vm) = keys::last::<VmId>(key) {
                        let vm = vm.to_string();
                        upserts.retain(|known| known.vm_id != vm);
                        removed.push(vm);
                    }
                }
            }
        }
        self.revision = revision;
        self.hub.0.store.fail_points().reach("assign.telling").await;
        let mut parts = convert::in_parts(upserts, MAX_SYNC_BYTES).into_iter();
        self.tell_delta(parts.next().unwrap_or_default(), removed).await?;
        for upserts in parts {
            self.tell_delta(upserts, Vec::new()).await?;
        }
        Ok(())
    }

    async fn assignment(&self, kv: &KeyValue) -> Result<Option<agent::Assignment>, Ended> {
        let assign: AssignRecord = decode(kv)?.value;
        let Some(vm) = keys::last::<VmId>(&kv.key) else {
            return Ok(None);
        };
        let record = self
            .hub
            .0
            .store
            .assigned_vm(assign.project_id, vm, &self.node)
            .await?;
        Ok(record.map(|record| convert::assignment(&record, &self.hub.0.config)))
    }
}
