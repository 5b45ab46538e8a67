//! One member as its services use it: headers, barriers for reads, proposals, and the way to the leader.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chainfire_client::wire::etcdserverpb as pb;
use chainfire_core::{
    Alarm, AlarmKind, Code, OpError, Range, RangeOutcome, auth::By, storage::RevisionReader,
};
use hearth_service::tasks::Tasks;
use prost::Message;
use raft_host::{GroupId, HostHandle, LeaderInfo, Membership, NodeId, ProposeError, ReadError, Role};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tonic::{Status, metadata::MetadataMap};

use crate::{
    auth::{TokenProvider, record::CallerRecord},
    config::Chainfire,
    leaderless::Leaderless,
    machine::Shared,
    outbox::Peers,
    record::{LogBody, LogRecord, ReplyBody, ReplyRecord},
    tables::{StorageError, Tables},
};

/// Chainfire is one Raft group.
pub(crate) const GROUP: GroupId = 1;
/// Largest command, bytes (etcd's default).
pub(crate) const MAX_REQUEST_BYTES: usize = 1536 * 1024;
/// What a message may be larger than its command before the connection refuses it, bytes (etcd's allowance).
pub(crate) const MAX_MESSAGE_BYTES: usize = MAX_REQUEST_BYTES + 512 * 1024;
/// How long a write waits for a leader before it is refused.
const LEADER_PATIENCE: Duration = Duration::from_secs(3);
/// Pause before a proposal that was certainly not applied is made again.
const PROPOSE_PAUSE: Duration = Duration::from_millis(50);
/// Ranges with more pairs are fetched on a thread that may block.
const INLINE_PAIRS: usize = 256;
/// How often a range is planned again when compaction overtakes it.
const MAX_REPLANS: usize = 8;
/// Writes are refused when less is free on the disk, bytes.
const RESERVED_BYTES: u64 = 64 << 20;
/// How often free space is looked at.
const SPACE_PERIOD: Duration = Duration::from_secs(2);

/// A member. Clones share it.
#[derive(Clone)]
pub(crate) struct Node(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) id: NodeId,
    pub(crate) config: Chainfire,
    pub(crate) data_dir: PathBuf,
    pub(crate) shared: Arc<Shared>,
    pub(crate) tokens: TokenProvider,
    pub(crate) raft: HostHandle,
    pub(crate) leader: watch::Receiver<LeaderInfo>,
    pub(crate) leaderless: Leaderless,
    /// Raft's configuration, as applied here.
    pub(crate) membership: watch::Receiver<Membership>,
    pub(crate) peers: Peers,
    pub(crate) tasks: Tasks,
    pub(crate) no_space: AtomicBool,
}

impl std::ops::Deref for Node {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// A refusal as it goes over the wire.
pub(crate) fn status(error: OpError) -> Status {
    let code = match error.code() {
        Code::InvalidArgument => tonic::Code::InvalidArgument,
        Code::NotFound => tonic::Code::NotFound,
        Code::PermissionDenied => tonic::Code::PermissionDenied,
        Code::ResourceExhausted => tonic::Code::ResourceExhausted,
        Code::FailedPrecondition => tonic::Code::FailedPrecondition,
        Code::OutOfRange => tonic::Code::OutOfRange,
        Code::Unavailable => tonic::Code::Unavailable,
        Code::DataLoss => tonic::Code::DataLoss,
        Code::Canceled => tonic::Code::Cancelled,
        Code::DeadlineExceeded => tonic::Code::DeadlineExceeded,
        Code::Unauthenticated => tonic::Code::Unauthenticated,
    };
    Status::new(code, error.text())
}

/// Whether the caller wants an error rather than wait for a leader.
pub(crate) fn wants_leader(metadata: &MetadataMap) -> bool {
    metadata.get("hasleader").is_some_and(|value| value == "true")
}

impl Node {
    pub(crate) fn new(inner: Inner) -> Node {
        Node(Arc::new(inner))
    }

    /// The leader as known now.
    pub(crate) fn leader_info(&self) -> LeaderInfo {
        *self.leader.borrow()
    }

    pub(crate) fn leads(&self) -> bool {
        self.leader_info().role == Role::Leader
    }

    /// Whether this member only learns: it may lag, and serves what says so.
    pub(crate) fn is_learner(&self) -> bool {
        let membership = self.membership.borrow();
        membership.get(self.id).is_some_and(|member| member.learner)
    }

    /// Fails at once for callers that said so when there is no leader.
    pub(crate) fn require_leader(&self, metadata: &MetadataMap) -> Result<(), Status> {
        if wants_leader(metadata) && self.leader_info().leader.is_none() {
            return Err(status(OpError::NoLeader));
        }
        Ok(())
    }

    /// A header at a revision.
    pub(crate) fn header_at(&self, revision: i64) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader {
            cluster_id: self.config.cluster_id(),
            member_id: self.id,
            revision,
            raft_term: self.leader_info().term,
        })
    }

    /// A header now.
    pub(crate) fn header(&self) -> Option<pb::ResponseHeader> {
        self.header_at(self.shared.store().revision())
    }

    /// Completes a header that says the revision only.
    pub(crate) fn fill(&self, header: &mut Option<pb::ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = self.header_at(revision);
    }

    /// After this, the local state holds everything that was acknowledged before the call.
    pub(crate) async fn read_barrier(&self) -> Result<(), OpError> {
        match self.raft.read_index(GROUP).await {
            Ok(_) => Ok(()),
            Err(ReadError::TimedOut { leader: None }) => Err(OpError::NoLeader),
            Err(ReadError::TimedOut { leader: Some(_) }) => Err(OpError::Timeout),
            Err(ReadError::Busy) => Err(OpError::TooManyRequests),
            Err(ReadError::NoGroup(_) | ReadError::Stopped) => Err(OpError::Stopped),
        }
    }

    /// Answers a range from the local state.
    pub(crate) async fn read(&self, range: &Range) -> Result<RangeOutcome, Status> {
        for _ in 0..MAX_REPLANS {
            let plan = self.shared.store().plan(range).map_err(status)?;
            let tables = self.shared.tables.clone();
            let fetched = if plan.cost() <= INLINE_PAIRS {
                plan.fetch(&tables)
            } else {
                tokio::task::spawn_blocking(move || plan.fetch(&tables))
                    .await
                    .map_err(|_| status(OpError::Stopped))?
            };
            match fetched {
                Ok(Some(outcome)) => return Ok(outcome),
                // Compacted between plan and fetch.
                Ok(None) => {}
                Err(error) => return Err(storage_status(&error)),
            }
        }
        Err(status(OpError::Compacted))
    }

    /// Puts a command through the log, on somebody's behalf. Repeats it by itself as long as it provably was not
    /// applied.
    pub(crate) async fn propose(&self, by: &By, body: LogBody) -> Result<ReplyBody, OpError> {
        let record = LogRecord {
            body: Some(body),
            caller: CallerRecord::of(by),
        };
        let data = bytes::Bytes::from(record.encode_to_vec());
        if data.len() > MAX_REQUEST_BYTES {
            return Err(OpError::RequestTooLarge);
        }
        let end = Instant::now() + LEADER_PATIENCE;
        loop {
            let applied = match self.raft.propose(GROUP, data.clone()).await {
                Ok(applied) => applied,
                Err(ProposeError::NotLeader { .. } | ProposeError::Dropped) if Instant::now() < end => {
                    self.wait_for_leader(end).await?;
                    continue;
                }
                Err(ProposeError::NotLeader { .. } | ProposeError::Dropped) => return Err(OpError::NoLeader),
                Err(ProposeError::Unknown) => return Err(OpError::Timeout),
                Err(ProposeError::Busy) => return Err(OpError::TooManyRequests),
                Err(ProposeError::TooBig { .. }) => return Err(OpError::RequestTooLarge),
                Err(ProposeError::NoGroup(_) | ProposeError::Stopped) => return Err(OpError::Stopped),
            };
            let reply = ReplyRecord::decode(applied.response).map_err(|_| OpError::Corrupt)?;
            return match reply.body.ok_or(OpError::Corrupt)? {
                ReplyBody::Refused(place) => Err(ReplyBody::error(place)),
                body => Ok(body),
            };
        }
    }

    async fn wait_for_leader(&self, end: Instant) -> Result<(), OpError> {
        sleep(PROPOSE_PAUSE).await;
        let mut leader = self.leader.clone();
        let known = leader.wait_for(|info| info.leader.is_some());
        match timeout_at(end, known).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(OpError::Stopped),
            Err(_) => Err(OpError::NoLeader),
        }
    }

    /// Refuses what would fill the last of the disk or go beyond the quota. What the alarm refuses is refused when it is
    /// applied, too; here it saves the way through the log, and no writer gets far ahead of the alarm.
    pub(crate) fn check_space(&self) -> Result<(), OpError> {
        let full = self.disk_full()
            || self.shared.live_bytes() > self.config.quota_bytes
            || self
                .shared
                .store()
                .alarms()
                .iter()
                .any(|alarm| alarm.kind == AlarmKind::NoSpace);
        if full { Err(OpError::NoSpace) } else { Ok(()) }
    }

    /// The alarms that are on. A full disk is known to its own member only, and shown there.
    pub(crate) fn alarms(&self) -> Vec<Alarm> {
        let mut alarms: Vec<Alarm> = self.shared.store().alarms().iter().collect();
        let own = Alarm {
            kind: AlarmKind::NoSpace,
            member: self.id,
        };
        if self.disk_full() && !alarms.contains(&own) {
            alarms.push(own);
        }
        alarms
    }

    /// Whether the disk under the data folder is nearly full.
    pub(crate) fn disk_full(&self) -> bool {
        self.no_space.load(Ordering::Relaxed)
    }

    /// Looks at free space until the stop.
    pub(crate) async fn watch_space(&self) {
        loop {
            match nix::sys::statvfs::statvfs(&self.data_dir) {
                Ok(stat) => {
                    let free = stat.blocks_available() * stat.fragment_size();
                    let low = free < RESERVED_BYTES;
                    if low != self.no_space.swap(low, Ordering::Relaxed) {
                        if low {
                            tracing::error!(dir = %self.data_dir.display(), free, "the disk is full: writes are refused until there is space again");
                        } else {
                            tracing::info!(free, "there is space again: writes are accepted");
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot see how much space is free"),
            }
            tokio::select! {
                () = self.tasks.stopping() => return,
                () = sleep(SPACE_PERIOD) => {}
            }
        }
    }

    /// Computes a checksum of the local state, which reads all of it, on a thread that may block.
    pub(crate) async fn hash<T: Send + 'static>(
        &self,
        hash: impl FnOnce(&Tables) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, Status> {
        let tables = self.shared.tables.clone();
        tokio::task::spawn_blocking(move || hash(&tables))
            .await
            .map_err(|_| status(OpError::Stopped))?
            .map_err(|error| storage_status(&error))
    }

    /// Waits until the space that a compaction frees is given back on this member.
    pub(crate) async fn reclaimed(&self, compacted: i64) -> Result<(), OpError> {
        let mut done = self.shared.reclaimer.done();
        tokio::select! {
            reached = done.wait_for(|done| *done >= compacted) => {
                reached.map(|_| ()).map_err(|_| OpError::Stopped)
            }
            () = self.tasks.stopping() => Err(OpError::Stopped),
        }
    }
}

/// Storage failed under a read: the log has the detail, the caller what etcd would say.
pub(crate) fn storage_status<E: std::error::Error>(error: &E) -> Status {
    tracing::error!(%error, "stored state cannot be read");
    status(OpError::Corrupt)
}

/// The pair that an event replaced: what a watcher calls `prev_kv`. One read of storage, without the store's lock (but to
/// ask what is compacted). `None` where there was none, and where compaction has forgotten it: as in etcd, the pair before
/// an event at the compacted revision is gone.
pub(crate) fn previous(
    shared: &Shared,
    event: &chainfire_core::Event,
) -> Result<Option<chainfire_core::KeyValue>, StorageError> {
    let revision = event.kv.mod_revision;
    if revision <= shared.store().compacted() {
        return Ok(None);
    }
    let mut at = event.prev;
    // A key that changes twice in one revision: what counts is the pair before the revision.
    while let Some(same) = at.filter(|at| at.main >= revision) {
        at = shared.tables.get(same)?.and_then(|event| event.prev);
    }
    let Some(at) = at else { return Ok(None) };
    Ok(shared.tables.get(at)?.map(|event| event.kv))
}
