//! One Raft group on this node: the library's state machine with everything around it.

mod messages;
mod ready;
mod requests;

use std::collections::BTreeMap;

use raft::{RawNode, StateRole};
use raft_engine::env::FileSystem;

use crate::host::{Output, Reply, RequestId};
use crate::log::{GroupLog, Log, Snapshotted};
use crate::proposals::{Forwarded, Proposals};
use crate::reads::Reads;
use crate::snapshot::{Arrivals, Outgoing, Received};
use crate::{
    ConfChangeError, Fatal, Found, GroupConfig, GroupId, HostConfig, LeaderInfo, Membership, NodeId,
    OpenError, PeerProgress, ProposeError, ReadError, Role, StateMachine, Status, TransferError,
};

/// Append messages to one member that may be under way.
const MAX_INFLIGHT_MESSAGES: usize = 128;
/// Bytes of entries that a leader holds uncommitted before it drops proposals.
const MAX_UNCOMMITTED_BYTES: u64 = 256 << 20;
/// Ticks without progress after which nothing more is kept for a member that got a snapshot.
const CATCH_UP_TICKS: u64 = 600;
/// Bytes of committed entries applied in one pass.
const MAX_APPLY_BYTES: u64 = 16 << 20;

/// Which entries of its log a group takes for committed when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Those that a majority was known to have; the others wait for a leader.
    Committed,
    /// All of them: there is no majority any more that could tell.
    Everything,
}

pub(crate) struct Group<F: FileSystem> {
    id: GroupId,
    config: HostConfig,
    node: RawNode<GroupLog<F>>,
    machine: Box<dyn StateMachine>,
    applied: u64,
    leader: LeaderInfo,
    proposals: Proposals,
    forwarded: Forwarded,
    reads: Reads,
    conf_changes: BTreeMap<u64, (RequestId, u64)>,
    transfers: Vec<(RequestId, NodeId, u64)>,
    outgoing: BTreeMap<NodeId, Outgoing>,
    arrivals: Arrivals,
    /// When something came last from each member.
    heard: BTreeMap<NodeId, u64>,
    /// Members that got a snapshot and now need what came after it: how far they are, and since when.
    catching_up: BTreeMap<NodeId, (u64, u64)>,
    /// A snapshot that was handed to the library and waits to be installed.
    received: Option<(Received, Membership)>,
    next_transfer: u64,
    /// Between `begin_ready` and `finish_ready`.
    ready: Option<raft::Ready>,
}

impl<F: FileSystem> Group<F> {
    pub(crate) fn open(
        config: &HostConfig,
        log: &mut Log<F>,
        group: GroupConfig,
        trust: Trust,
    ) -> Result<Group<F>, OpenError> {
        let mut part = log.group(group.id, &Membership::initial(&group.initial))?;
        let mut machine_index = group.machine.applied_index();
        if let Some(installing) = part.installing() {
            let arrived = machine_index >= installing.index;
            let mut batch = log.batch();
            let done = if arrived {
                part.finish_install(&mut batch)
            } else {
                part.abort_install(&mut batch)
            };
            done.and_then(|()| log.commit(batch).map_err(|e| e.what))
                .map_err(|what| OpenError::Io {
                    dir: config.log_dir.clone(),
                    what,
                })?;
        }
        if machine_index < part.truncated() && part.is_beginning() {
            machine_index = part.truncated();
        }
        let what = if machine_index < part.truncated() {
            Some(format!(
                "its state ends at entry {machine_index}, its log begins after {}",
                part.truncated()
            ))
        } else if machine_index > part.last() {
            Some(format!(
                "its state ends at entry {machine_index}, its log already at {}",
                part.last()
            ))
        } else {
            None
        };
        if let Some(what) = what {
            return Err(OpenError::Mismatch {
                group: group.id,
                what,
            });
        }
        part.begin_at(machine_index);
        if trust == Trust::Everything {
            part.commit_everything();
        }
        let raft_config = raft_config(config, machine_index);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&raft_config, part, &logger)
            .map_err(|e| OpenError::Config(format!("group {}: {e}", group.id)))?;
        let mut group = Group {
            id: group.id,
            config: config.clone(),
            node,
            machine: group.machine,
            applied: machine_index,
            leader: LeaderInfo::default(),
            proposals: Proposals::default(),
            forwarded: Forwarded::default(),
            reads: Reads::default(),
            conf_changes: BTreeMap::new(),
            transfers: Vec::new(),
            outgoing: BTreeMap::new(),
            arrivals: Arrivals::default(),
            heard: BTreeMap::new(),
            catching_up: BTreeMap::new(),
            received: None,
            next_transfer: 0,
            ready: None,
        };
        group.fix_timeout();
        Ok(group)
    }

    /// The library draws election time-outs from the thread's random numbers; this replaces the drawn one by a
    /// function of seed, node, group and term, so that a simulated run can be repeated.
    fn fix_timeout(&mut self) {
        let mut x = self.config.seed ^ self.config.node.rotate_left(17) ^ self.id.rotate_left(41);
        x = x.wrapping_add(self.node.raft.term.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^= x >> 31;
        let spread = self.config.election_ticks as u64;
        let ticks = self.config.election_ticks + usize::try_from(x % spread).unwrap_or(0);
        if self.node.raft.randomized_election_timeout() != ticks {
            self.node.raft.set_randomized_election_timeout(ticks);
        }
    }

    pub(crate) fn tick(&mut self, now: u64, out: &mut Output) -> Result<(), Fatal> {
        self.node.tick();
        self.fix_timeout();
        // A leader that just started has not committed in its term and drops reads silently; a message may be
        // lost: both are asked again.
        self.reads
            .retry(now.saturating_sub(self.config.election_ticks as u64 / 2));
        let leader = self.leader.leader;
        for id in self.reads.expired(now) {
            out.replies
                .push(Reply::Read(id, Err(ReadError::TimedOut { leader })));
        }
        for id in self.proposals.expired(now) {
            out.replies.push(Reply::Proposed(id, Err(ProposeError::Unknown)));
        }
        let replies = &mut out.replies;
        self.conf_changes.retain(|_, (id, deadline)| {
            let keep = *deadline > now;
            if !keep {
                replies.push(Reply::ConfChanged(*id, Err(ConfChangeError::Unknown)));
            }
            keep
        });
        self.transfers.retain(|(id, to, deadline)| {
            let keep = *deadline > now;
            if !keep {
                replies.push(Reply::Transferred(*id, Err(TransferError::TimedOut(*to))));
            }
            keep
        });
        self.tick_snapshots(now, out)
    }

    /// Compares leader and term with what was known; after a change every read context is void.
    fn note_leader(&mut self, out: &mut Output) {
        let raft = &self.node.raft;
        let now = LeaderInfo {
            leader: (raft.leader_id != raft::INVALID_ID).then_some(raft.leader_id),
            term: raft.term,
            role: match raft.state {
                StateRole::Follower => Role::Follower,
                StateRole::PreCandidate => Role::PreCandidate,
                StateRole::Candidate => Role::Candidate,
                StateRole::Leader => Role::Leader,
            },
        };
        if now == self.leader {
            return;
        }
        if (now.leader, now.term) != (self.leader.leader, self.leader.term) && !self.reuses_read_context() {
            self.reads.reset();
        }
        self.leader = now;
        out.leaders.push((self.id, now));
        let replies = &mut out.replies;
        self.transfers.retain(|(id, to, _)| {
            let done = now.leader == Some(*to);
            if done {
                replies.push(Reply::Transferred(*id, Ok(())));
            }
            !done
        });
    }

    pub(crate) fn end_round(&mut self, log: &mut Log<F>, now: u64, out: &mut Output) -> Result<bool, Fatal> {
        self.note_leader(out);
        for (id, index) in self.reads.done(self.applied) {
            out.replies.push(Reply::Read(id, Ok(index)));
        }
        let truncated = self.node.store().truncated();
        let unneeded = self.applied.saturating_sub(self.config.keep_entries);
        if unneeded.saturating_sub(truncated) < self.config.compact_entries {
            return Ok(false);
        }
        let unneeded = unneeded.min(self.held(log.used_bytes(), now));
        if unneeded.saturating_sub(truncated) < self.config.compact_entries {
            return Ok(false);
        }
        let durable = self.persist_machine()?;
        let to = durable.min(unneeded);
        if to <= truncated {
            return Ok(false);
        }
        let mut batch = log.batch();
        let compacted = self.node.mut_store().compact(&mut batch, to);
        compacted.map_err(|e| self.fatal("compacting the log", &e))?;
        log.commit(batch)?;
        Ok(true)
    }

    /// The entry after which everything is kept for members that are catching up. Without it a member to which a large
    /// snapshot is sent would find the log cut off behind that snapshot, and begin anew, for ever.
    fn held(&mut self, log_bytes: u64, now: u64) -> u64 {
        if !self.leads() || log_bytes > self.config.hold_log_bytes {
            self.catching_up.clear();
            return u64::MAX;
        }
        let enough = self.applied.saturating_sub(self.config.keep_entries);
        let members = self.node.raft.prs();
        self.catching_up.retain(|id, (matched, since)| {
            let Some(progress) = members.get(*id) else {
                return false;
            };
            if progress.matched > *matched {
                (*matched, *since) = (progress.matched, now);
            }
            *matched < enough && now.saturating_sub(*since) < CATCH_UP_TICKS
        });
        let transfers = self.outgoing.values().map(Outgoing::index);
        let matched = self.catching_up.values().map(|(matched, _)| *matched);
        transfers.chain(matched).min().unwrap_or(u64::MAX)
    }

    pub(crate) fn status(&self, now: u64) -> Status {
        let raft = &self.node.raft;
        let leads = raft.state == StateRole::Leader;
        let mut progress: Vec<PeerProgress> = raft
            .prs()
            .iter()
            .filter(|(id, _)| leads && **id != self.config.node)
            .map(|(id, p)| PeerProgress {
                id: *id,
                matched: p.matched,
                active: self
                    .heard
                    .get(id)
                    .is_some_and(|at| now.saturating_sub(*at) <= self.config.election_ticks as u64),
                snapshot: self.outgoing.contains_key(id),
            })
            .collect();
        progress.sort_by_key(|p| p.id);
        Status {
            group: self.id,
            node: self.config.node,
            leader: self.leader,
            commit: raft.raft_log.committed,
            applied: self.applied,
            first_index: self.node.store().truncated() + 1,
            last_index: raft.raft_log.last_index(),
            log_bytes: 0,
            membership: self.membership().clone(),
            progress,
            syncs: 0,
            fsyncs: Vec::new(),
            sync_classes: Vec::new(),
            sync_total: std::time::Duration::ZERO,
        }
    }

    pub(crate) fn leader(&self) -> LeaderInfo {
        self.leader
    }

    pub(crate) fn membership(&self) -> &Membership {
        self.node.store().membership()
    }

    pub(crate) fn machine(&self) -> &dyn StateMachine {
        self.machine.as_ref()
    }

    /// Last entry applied, and last entry there is.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.applied, self.node.store().last())
    }

    /// What its log holds now.
    pub(crate) fn found(&self) -> Found {
        self.node.store().found()
    }

    pub(crate) fn persist_machine(&mut self) -> Result<u64, Fatal> {
        self.machine
            .persist()
            .map_err(|e| self.fatal("syncing the state machine", &e))
    }

    fn leads(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    fn known_leader(&self) -> Option<NodeId> {
        let id = self.node.raft.leader_id;
        (id != raft::INVALID_ID).then_some(id)
    }

    fn fatal(&self, what: &str, error: &dyn std::fmt::Display) -> Fatal {
        Fatal {
            what: format!("group {}: {what} failed: {error}", self.id),
        }
    }

    fn reuses_read_context(&self) -> bool {
        #[cfg(feature = "planted-bugs")]
        return self.config.planted == Some(crate::PlantedBug::ReuseReadContext);
        #[cfg(not(feature = "planted-bugs"))]
        false
    }

    fn forgets_hard_state(&self) -> bool {
        #[cfg(feature = "planted-bugs")]
        return self.config.planted == Some(crate::PlantedBug::ForgetHardState);
        #[cfg(not(feature = "planted-bugs"))]
        false
    }

    fn acknowledges_early(&self) -> bool {
        #[cfg(feature = "planted-bugs")]
        return self.config.planted == Some(crate::PlantedBug::AckBeforeCommit);
        #[cfg(not(feature = "planted-bugs"))]
        false
    }
}

fn raft_config(config: &HostConfig, applied: u64) -> raft::Config {
    raft::Config {
        id: config.node,
        election_tick: config.election_ticks,
        heartbeat_tick: config.heartbeat_ticks,
        applied,
        max_size_per_msg: config.max_append_bytes,
        max_inflight_msgs: MAX_INFLIGHT_MESSAGES,
        check_quorum: true,
        pre_vote: true,
        read_only_option: raft::ReadOnlyOption::Safe,
        batch_append: true,
        max_uncommitted_size: MAX_UNCOMMITTED_BYTES,
        max_committed_size_per_ready: MAX_APPLY_BYTES,
        ..raft::Config::default()
    }
}
