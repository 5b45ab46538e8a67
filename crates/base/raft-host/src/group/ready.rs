//! The library's work list: what to send, to write, to apply, in the one order that is safe.
//!
//! ```text
//!   begin_ready:  leader's messages -> snapshot install -> apply what is committed -> into the batch
//!   (the host: one append and one fsync for all groups)
//!   finish_ready: follower's messages -> messages and entries that the fsync allowed -> apply
//! ```
//! A leader's appends go out beside its own fsync; everything a follower says waits for it.

use prost::Message as _;
use raft::StateRole;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, EntryType};
use raft_engine::env::FileSystem;

use super::{Group, Snapshotted};
use crate::convert;
use crate::host::{Output, Reply};
use crate::log::{Batch, Log};
use crate::machine::{Committed, Payload};
use crate::proposals::Origin;
use crate::wire::MembershipRecord;
use crate::{Applied, ConfChangeError, Fatal, GroupId, Membership, Peer, ProposeError};

/// The library's membership change, decoded here so that nothing from a peer meets its parser.
#[derive(Clone, PartialEq, prost::Message)]
struct ChangeRecord {
    #[prost(int32, tag = "1")]
    transition: i32,
    #[prost(message, repeated, tag = "2")]
    changes: Vec<SingleRecord>,
    #[prost(bytes = "vec", tag = "3")]
    context: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SingleRecord {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint64, tag = "2")]
    node: u64,
}

impl<F: FileSystem> Group<F> {
    /// Returns whether there was anything to do.
    pub(crate) fn begin_ready(
        &mut self,
        log: &mut Log<F>,
        batch: &mut Batch,
        now: u64,
        out: &mut Output,
    ) -> Result<bool, Fatal> {
        if !self.node.has_ready() {
            return Ok(false);
        }
        let mut ready = self.node.ready();
        // Before read states are looked at: those of another leader or term must not be used.
        self.note_leader(out);
        for state in ready.take_read_states() {
            let origin = Origin::decode(&state.request_ctx);
            if let Some(origin) = origin
                && origin.node == self.config.node
                && origin.incarnation == self.config.incarnation
            {
                self.reads.confirmed(origin.seq, state.index);
            }
        }
        self.send(ready.take_messages(), now, out)?;
        if !ready.snapshot().is_empty() {
            self.install(log, ready.snapshot().get_metadata().index, out)?;
        }
        self.apply(log, ready.take_committed_entries(), out)?;
        let forget = self.forgets_hard_state();
        let entries = ready.take_entries();
        let hard = ready.hs().cloned();
        let appended = self
            .node
            .mut_store()
            .append(batch, entries, hard.as_ref(), forget);
        appended.map_err(|e| self.fatal("adding to the log", &e))?;
        self.ready = Some(ready);
        Ok(true)
    }

    /// The batch is on disk.
    pub(crate) fn finish_ready(&mut self, log: &mut Log<F>, now: u64, out: &mut Output) -> Result<(), Fatal> {
        let Some(mut ready) = self.ready.take() else {
            return Ok(());
        };
        self.send(ready.take_persisted_messages(), now, out)?;
        let mut light = self.node.advance_append(ready);
        self.send(light.take_messages(), now, out)?;
        self.apply(log, light.take_committed_entries(), out)?;
        self.node.advance_apply_to(self.applied);
        self.fix_timeout();
        match self.node.store().damage() {
            Some(what) => Err(Fatal { what }),
            None => Ok(()),
        }
    }

    fn install(&mut self, log: &mut Log<F>, index: u64, out: &mut Output) -> Result<(), Fatal> {
        let Some((received, membership)) = self.received.take() else {
            return Err(self.fatal("installing a snapshot", &"its content is missing"));
        };
        let meta = received.head.snapshot.as_ref().filter(|m| m.index == index);
        let Some(meta) = meta else {
            return Err(self.fatal("installing a snapshot", &"another one was announced"));
        };
        let place = Snapshotted {
            index,
            term: meta.term,
            membership: Some(convert::membership_to(&membership)),
        };
        // First the intent, then the state, then the log: a crash in between is completed or undone at open.
        let mut batch = log.batch();
        let begun = self.node.mut_store().begin_install(&mut batch, place);
        begun.map_err(|e| self.fatal("installing a snapshot", &e))?;
        log.commit(batch)?;
        self.machine
            .restore(index, received.sink)
            .map_err(|e| self.fatal("restoring a snapshot", &e))?;
        let before = self.membership().clone();
        let mut batch = log.batch();
        let finished = self.node.mut_store().finish_install(&mut batch);
        finished.map_err(|e| self.fatal("installing a snapshot", &e))?;
        log.commit(batch)?;
        self.applied = index;
        for id in self.proposals.jumped(index) {
            out.replies.push(Reply::Proposed(id, Err(ProposeError::Unknown)));
        }
        announce(self.id, &before, membership, out);
        Ok(())
    }

    /// Applies committed entries in runs; a membership change ends a run, because the library must know it before
    /// it goes on.
    fn apply(&mut self, log: &mut Log<F>, entries: Vec<Entry>, out: &mut Output) -> Result<(), Fatal> {
        let mut run: Vec<Entry> = Vec::new();
        for entry in entries {
            if entry.get_entry_type() == EntryType::EntryNormal {
                run.push(entry);
                continue;
            }
            self.apply_run(&run, out)?;
            run.clear();
            self.apply_change(log, &entry, out)?;
        }
        self.apply_run(&run, out)
    }

    fn apply_run(&mut self, run: &[Entry], out: &mut Output) -> Result<(), Fatal> {
        let Some(last) = run.last() else { return Ok(()) };
        let committed: Vec<Committed<'_>> = run
            .iter()
            .map(|e| Committed {
                index: e.index,
                term: e.term,
                // Every command has an origin; the entry that begins a leader's term has none.
                payload: if e.context.is_empty() {
                    Payload::Noop
                } else {
                    Payload::Command(&e.data)
                },
            })
            .collect();
        let responses = self.apply_to_machine(&committed)?;
        for (entry, response) in run.iter().zip(responses) {
            let origin = Origin::decode(&entry.context).filter(|o| self.is_own(*o));
            if let Some(id) = origin.and_then(|o| self.proposals.take(o.seq)) {
                let applied = Applied {
                    index: entry.index,
                    term: entry.term,
                    response,
                };
                out.replies.push(Reply::Proposed(id, Ok(applied)));
            }
            self.note_place(entry, out);
        }
        self.set_applied(last.index);
        Ok(())
    }

    fn apply_change(&mut self, log: &mut Log<F>, entry: &Entry, out: &mut Output) -> Result<(), Fatal> {
        let record = ChangeRecord::decode(entry.data.as_ref())
            .map_err(|e| self.fatal("reading a membership change", &e))?;
        let (change, added) = library_change(&record);
        let waiter = Origin::decode(&entry.context)
            .filter(|o| self.is_own(*o))
            .and_then(|o| self.conf_changes.remove(&o.seq));
        let outcome = match self.node.apply_conf_change(&change) {
            // Every member refuses it alike: the members stay as they are.
            Err(e) => Err(ConfChangeError::Invalid(e.to_string())),
            Ok(state) => {
                self.step_down_if_removed();
                let before = self.membership().clone();
                let after = before.updated(&state, &added);
                let mut batch = log.batch();
                let noted = self
                    .node
                    .mut_store()
                    .set_membership(&mut batch, entry.index, after.clone());
                noted.map_err(|e| self.fatal("noting the members", &e))?;
                log.commit(batch)?;
                announce(self.id, &before, after.clone(), out);
                Ok(after)
            }
        };
        let membership = self.membership().clone();
        let payload = Payload::Membership(&membership);
        self.apply_to_machine(&[Committed {
            index: entry.index,
            term: entry.term,
            payload,
        }])?;
        self.note_place(entry, out);
        self.set_applied(entry.index);
        if let Some((id, _)) = waiter {
            out.replies.push(Reply::ConfChanged(id, outcome));
        }
        Ok(())
    }

    /// A node can come to lead before it applies its own removal, which an earlier leader proposed. The library lets
    /// it lead on, without a progress of its own, and asserts at the next acknowledgement.
    fn step_down_if_removed(&mut self) {
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader && raft.prs().get(self.config.node).is_none() {
            let term = raft.term;
            raft.become_follower(term, raft::INVALID_ID);
            // The library does not expect a follower's messages here; Raft can lose any message.
            raft.msgs.clear();
        }
    }

    fn apply_to_machine(&mut self, committed: &[Committed<'_>]) -> Result<Vec<bytes::Bytes>, Fatal> {
        let first = committed.first().map_or(0, |c| c.index);
        assert_eq!(first, self.applied + 1, "entries are applied without a gap");
        let responses = self
            .machine
            .apply(committed)
            .map_err(|e| self.fatal("applying entries", &e))?;
        assert_eq!(
            responses.len(),
            committed.len(),
            "a state machine answers every entry"
        );
        Ok(responses)
    }

    fn set_applied(&mut self, index: u64) {
        self.applied = index;
        self.node.mut_store().set_applied(index);
    }

    /// A proposal of this node that was to stand where `entry` stands is gone for good.
    fn note_place(&mut self, entry: &Entry, out: &mut Output) {
        if let Some(id) = self.proposals.applied(entry.index, entry.term) {
            out.replies.push(Reply::Proposed(id, Err(ProposeError::Dropped)));
        }
    }

    fn is_own(&self, origin: Origin) -> bool {
        origin.node == self.config.node && origin.incarnation == self.config.incarnation
    }
}

fn library_change(record: &ChangeRecord) -> (ConfChangeV2, Vec<Peer>) {
    let mut change = ConfChangeV2::default();
    change.set_transition(match record.transition {
        1 => ConfChangeTransition::Implicit,
        2 => ConfChangeTransition::Explicit,
        _ => ConfChangeTransition::Auto,
    });
    let singles = record.changes.iter().map(|c| {
        let mut single = ConfChangeSingle::default();
        single.set_change_type(match c.kind {
            1 => ConfChangeType::RemoveNode,
            2 => ConfChangeType::AddLearnerNode,
            _ => ConfChangeType::AddNode,
        });
        single.node_id = c.node;
        single
    });
    change.set_changes(singles.collect::<Vec<_>>().into());
    let peers = MembershipRecord::decode(record.context.as_slice()).unwrap_or_default();
    let peers = peers.members.into_iter().map(|m| Peer {
        id: m.id,
        address: m.address,
    });
    (change, peers.collect())
}

fn announce(group: GroupId, before: &Membership, after: Membership, out: &mut Output) {
    for member in &after.members {
        if before.get(member.id) != Some(member) {
            out.addresses.push((member.id, Some(member.address.clone())));
        }
    }
    for member in &before.members {
        if after.get(member.id).is_none() {
            out.addresses.push((member.id, None));
        }
    }
    out.memberships.push((group, after));
}
