//! The threaded shell: [`Host`] on a thread of its own, and the handle to it.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use crate::host::{Host, Input, Output, Reply, RequestId};
use crate::{
    Applied, ConfChange, ConfChangeError, Fatal, FileSystem, GroupConfig, GroupId, HostConfig, LeaderInfo,
    Membership, NodeId, OpenError, PeerMessage, ProposeError, ReadError, Status, TransferError, Transport,
};

/// Inputs taken into one round at most: bounds the size of one append.
const MAX_INPUTS_PER_ROUND: usize = 4096;

/// Opens the log and starts the owner thread. The host runs until [`HostHandle::shutdown`], until every handle is
/// gone, or until a fatal error.
pub fn start<F, T>(
    config: HostConfig,
    file_system: Arc<F>,
    transport: T,
    groups: Vec<GroupConfig>,
) -> Result<HostHandle, OpenError>
where
    F: FileSystem + 'static,
    T: Transport + 'static,
{
    let tick = config.tick;
    let queue = config.queue;
    let ids: Vec<GroupId> = groups.iter().map(|g| g.id).collect();
    let host = Host::open(config, file_system, groups)?;
    let (sender, receiver) = sync_channel(queue);
    let (failed, failed_watch) = watch::channel(None);
    let mut leaders = BTreeMap::new();
    let mut watches = HashMap::new();
    let mut memberships = BTreeMap::new();
    let mut member_watches = HashMap::new();
    for id in ids {
        let (tx, rx) = watch::channel(LeaderInfo::default());
        leaders.insert(id, tx);
        watches.insert(id, rx);
        let members = host.membership(id).cloned().unwrap_or_default();
        let (tx, rx) = watch::channel(members);
        memberships.insert(id, tx);
        member_watches.insert(id, rx);
    }
    let owner = Owner {
        host,
        transport,
        receiver,
        leaders,
        memberships,
        waiting: HashMap::new(),
        failed,
    };
    std::thread::Builder::new()
        .name("raft-host".to_owned())
        .spawn(move || owner.run(tick))
        .map_err(|e| OpenError::Config(format!("no thread for the host: {e}")))?;
    let inner = Inner {
        sender,
        next: AtomicU64::new(1),
        leaders: watches,
        memberships: member_watches,
        failed: failed_watch,
    };
    Ok(HostHandle {
        inner: Arc::new(inner),
    })
}

enum Request {
    Do(Input, Option<Waiter>),
    Status(GroupId, oneshot::Sender<Option<Status>>),
    Shutdown,
}

enum Waiter {
    Propose(oneshot::Sender<Result<Applied, ProposeError>>),
    Read(oneshot::Sender<Result<u64, ReadError>>),
    Conf(oneshot::Sender<Result<Membership, ConfChangeError>>),
    Transfer(oneshot::Sender<Result<(), TransferError>>),
}

struct Inner {
    sender: SyncSender<Request>,
    next: AtomicU64,
    leaders: HashMap<GroupId, watch::Receiver<LeaderInfo>>,
    memberships: HashMap<GroupId, watch::Receiver<Membership>>,
    failed: watch::Receiver<Option<Fatal>>,
}

/// A host's control: cheap to clone, usable from any thread and any async runtime. Dropping a returned future
/// abandons the answer, not the request.
#[derive(Clone)]
pub struct HostHandle {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for HostHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostHandle").finish_non_exhaustive()
    }
}

impl HostHandle {
    /// Proposes a command and waits until it is applied **on this node**; the response is this node's state
    /// machine's. On a follower the proposal is forwarded to the leader.
    pub async fn propose(&self, group: GroupId, data: Bytes) -> Result<Applied, ProposeError> {
        let (tx, rx) = oneshot::channel();
        let id = self.id();
        match self.send(Request::Do(
            Input::Propose { group, id, data },
            Some(Waiter::Propose(tx)),
        )) {
            Ok(()) => rx.await.unwrap_or(Err(ProposeError::Stopped)),
            Err(true) => Err(ProposeError::Busy),
            Err(false) => Err(ProposeError::Stopped),
        }
    }

    /// The point of a linearizable read, on any member: once this returns, the local state machine has applied at
    /// least the returned index, and that includes everything acknowledged before this was called.
    pub async fn read_index(&self, group: GroupId) -> Result<u64, ReadError> {
        let (tx, rx) = oneshot::channel();
        let id = self.id();
        match self.send(Request::Do(
            Input::ReadIndex { group, id },
            Some(Waiter::Read(tx)),
        )) {
            Ok(()) => rx.await.unwrap_or(Err(ReadError::Stopped)),
            Err(true) => Err(ReadError::Busy),
            Err(false) => Err(ReadError::Stopped),
        }
    }

    /// Changes the members; only on the leader. Returns the members after the change was applied here (a joint
    /// change may still be on its way out: [`Membership::outgoing`]).
    pub async fn conf_change(
        &self,
        group: GroupId,
        change: ConfChange,
    ) -> Result<Membership, ConfChangeError> {
        let (tx, rx) = oneshot::channel();
        let id = self.id();
        match self.send(Request::Do(
            Input::ConfChange { group, id, change },
            Some(Waiter::Conf(tx)),
        )) {
            Ok(()) => rx.await.unwrap_or(Err(ConfChangeError::Stopped)),
            Err(_) => Err(ConfChangeError::Stopped),
        }
    }

    /// Hands leadership to voter `to`; only on the leader. Returns when `to` leads.
    pub async fn transfer_leader(&self, group: GroupId, to: NodeId) -> Result<(), TransferError> {
        let (tx, rx) = oneshot::channel();
        let id = self.id();
        match self.send(Request::Do(
            Input::Transfer { group, id, to },
            Some(Waiter::Transfer(tx)),
        )) {
            Ok(()) => rx.await.unwrap_or(Err(TransferError::Stopped)),
            Err(_) => Err(TransferError::Stopped),
        }
    }

    /// A group's state now; `None` when the group does not run here or the host has stopped.
    pub async fn status(&self, group: GroupId) -> Option<Status> {
        let (tx, rx) = oneshot::channel();
        self.send(Request::Status(group, tx)).ok()?;
        rx.await.ok().flatten()
    }

    /// Changes of leader and term, as seen here. `None` when the group does not run here.
    pub fn leader(&self, group: GroupId) -> Option<watch::Receiver<LeaderInfo>> {
        self.inner.leaders.get(&group).cloned()
    }

    /// The members, as applied here, and their changes. `None` when the group does not run here.
    pub fn membership(&self, group: GroupId) -> Option<watch::Receiver<Membership>> {
        self.inner.memberships.get(&group).cloned()
    }

    /// Hands a peer's message to the host. Returns false when it was dropped (queue full or host stopped), which
    /// Raft treats like a message lost on the way.
    pub fn step(&self, message: PeerMessage) -> bool {
        self.send(Request::Do(Input::Peer(Box::new(message)), None))
            .is_ok()
    }

    /// Tells that messages to `node` do not arrive, so that the leader stops pipelining to it.
    pub fn unreachable(&self, node: NodeId) {
        // A lost report costs nothing but bandwidth: the next failed send reports again.
        let _ = self.send(Request::Do(Input::Unreachable { node }, None));
    }

    /// Ends the host after the round under way; waiting requests end in `Stopped`. Wait on [`HostHandle::failed`]
    /// or drop all handles to know when it is gone.
    pub fn shutdown(&self) {
        // Blocks only while the queue is full, and the owner always drains it.
        let _ = self.inner.sender.send(Request::Shutdown);
    }

    /// Becomes `Some` when the host met a fatal error; the channel closes when the host ends in any way.
    pub fn failed(&self) -> watch::Receiver<Option<Fatal>> {
        self.inner.failed.clone()
    }

    fn id(&self) -> RequestId {
        self.inner.next.fetch_add(1, Ordering::Relaxed)
    }

    /// `Err(true)`: the queue is full; `Err(false)`: the host has stopped.
    fn send(&self, request: Request) -> Result<(), bool> {
        self.inner
            .sender
            .try_send(request)
            .map_err(|e| matches!(e, TrySendError::Full(_)))
    }
}

struct Owner<F: FileSystem, T> {
    host: Host<F>,
    transport: T,
    receiver: Receiver<Request>,
    leaders: BTreeMap<GroupId, watch::Sender<LeaderInfo>>,
    memberships: BTreeMap<GroupId, watch::Sender<Membership>>,
    waiting: HashMap<RequestId, Waiter>,
    failed: watch::Sender<Option<Fatal>>,
}

impl<F: FileSystem, T: Transport> Owner<F, T> {
    fn run(mut self, tick: Duration) {
        for (node, address) in self.host.addresses() {
            self.transport.peer_changed(node, Some(&address));
        }
        let mut next_tick = Instant::now() + tick;
        loop {
            let (inputs, stop) = self.collect(&mut next_tick, tick);
            // The libraries below assert (a failed fsync panics in raft-engine); a panic must stop this host as
            // any fatal error does, not leave its callers waiting.
            let result = catch_unwind(AssertUnwindSafe(|| self.host.round(inputs)));
            let result = result.unwrap_or_else(|panic| {
                Err(Fatal {
                    what: panic_text(&*panic),
                })
            });
            match result {
                Ok(output) => self.deliver(output),
                Err(fatal) => {
                    tracing::error!(what = %fatal.what, "the raft host stops");
                    self.failed.send_replace(Some(fatal));
                    return;
                }
            }
            if stop {
                return;
            }
        }
    }

    /// Waits for the first input, then takes all that wait.
    fn collect(&mut self, next_tick: &mut Instant, tick: Duration) -> (Vec<Input>, bool) {
        let mut inputs = Vec::new();
        let mut stop = false;
        let mut request = match self
            .receiver
            .recv_timeout(next_tick.saturating_duration_since(Instant::now()))
        {
            Ok(request) => Some(request),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return (inputs, true),
        };
        while let Some(taken) = request {
            match taken {
                Request::Do(input, waiter) => {
                    if let (Some(id), Some(waiter)) = (input.request(), waiter) {
                        self.waiting.insert(id, waiter);
                    }
                    inputs.push(input);
                }
                Request::Status(group, reply) => drop(reply.send(self.host.status(group))),
                Request::Shutdown => {
                    stop = true;
                    break;
                }
            }
            if inputs.len() >= MAX_INPUTS_PER_ROUND {
                break;
            }
            request = self.receiver.try_recv().ok();
        }
        let now = Instant::now();
        if now >= *next_tick {
            inputs.push(Input::Tick);
            // After a stall (a slow fsync, SIGSTOP) the lost ticks are not made up for: a burst of ticks would
            // call elections although every peer is well.
            *next_tick = (*next_tick + tick).max(now);
        }
        (inputs, stop)
    }

    fn deliver(&mut self, output: Output) {
        for (node, address) in &output.addresses {
            self.transport.peer_changed(*node, address.as_deref());
        }
        for message in output.messages {
            self.transport.send(message);
        }
        for (group, members) in output.memberships {
            if let Some(watch) = self.memberships.get(&group) {
                watch.send_replace(members);
            }
        }
        for (group, info) in output.leaders {
            if let Some(watch) = self.leaders.get(&group) {
                watch.send_replace(info);
            }
        }
        for reply in output.replies {
            // A waiter that is gone has lost interest.
            match (self.waiting.remove(&reply.id()), reply) {
                (Some(Waiter::Propose(tx)), Reply::Proposed(_, r)) => drop(tx.send(r)),
                (Some(Waiter::Read(tx)), Reply::Read(_, r)) => drop(tx.send(r)),
                (Some(Waiter::Conf(tx)), Reply::ConfChanged(_, r)) => drop(tx.send(r)),
                (Some(Waiter::Transfer(tx)), Reply::Transferred(_, r)) => drop(tx.send(r)),
                _ => {}
            }
        }
    }
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no text");
    format!("a broken invariant: {text}")
}
