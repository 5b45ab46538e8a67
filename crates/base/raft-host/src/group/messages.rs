//! Messages of peers: in, out, and snapshots in both directions.

use raft::eraftpb::{Message, MessageType};
use raft::{SnapshotStatus, Storage as _};
use raft_engine::env::FileSystem;

use super::Group;
use crate::convert;
use crate::host::Output;
use crate::snapshot::{Outcome, Outgoing};
use crate::wire::{Body, PeerMessage, SnapshotAck, SnapshotChunk, SnapshotMeta};
use crate::{Fatal, NodeId};

impl<F: FileSystem> Group<F> {
    pub(crate) fn peer(&mut self, message: PeerMessage, now: u64, out: &mut Output) -> Result<(), Fatal> {
        let from = message.from;
        if self.membership().get(from).is_some() {
            self.heard.insert(from, now);
        }
        match message.body {
            Some(Body::Raft(raft)) => match convert::from_wire(from, self.config.node, raft) {
                Ok(message) => self.step(message),
                Err(why) => tracing::warn!(group = self.id, from, why, "a peer's message is dropped"),
            },
            Some(Body::Chunk(chunk)) => return self.chunk(from, chunk, now, out),
            Some(Body::Ack(ack)) => return self.ack(from, &ack, now, out),
            Some(Body::Forward(forward)) => self.forwarded(from, forward, out),
            Some(Body::Refuse(refuse)) => self.refused(&refuse, out),
            None => tracing::debug!(group = self.id, from, "an unknown kind of message is dropped"),
        }
        Ok(())
    }

    fn step(&mut self, message: Message) {
        // The library refuses messages of unknown members and of old terms; that is its normal work.
        if let Err(e) = self.node.step(message) {
            tracing::debug!(group = self.id, error = %e, "a peer's message was not taken");
        }
        self.fix_timeout();
    }

    pub(crate) fn unreachable(&mut self, node: NodeId) {
        self.node.report_unreachable(node);
    }

    /// Hands the library's messages out; a snapshot begins its transfer.
    pub(super) fn send(&mut self, messages: Vec<Message>, now: u64, out: &mut Output) -> Result<(), Fatal> {
        for message in messages {
            let to = message.to;
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.begin_transfer(message, now, out)?;
            } else {
                out.messages
                    .push(self.message(to, Body::Raft(convert::to_wire(message))));
            }
        }
        Ok(())
    }

    fn begin_transfer(&mut self, mut message: Message, now: u64, out: &mut Output) -> Result<(), Fatal> {
        let to = message.to;
        let described = message.get_snapshot().get_metadata().index;
        assert!(
            described <= self.applied,
            "a snapshot describes a state that is yet to come"
        );
        // A membership change may have been applied since the library described it. The picture is of now, so its
        // description must be too; a later snapshot than announced serves the library as well.
        let term = self.node.store().term(self.applied);
        let meta = SnapshotMeta {
            index: self.applied,
            term: term.map_err(|e| self.fatal("describing a snapshot", &e))?,
            membership: Some(convert::membership_to(self.membership())),
        };
        message.clear_snapshot();
        let mut head = convert::to_wire(message);
        head.snapshot = Some(meta);
        let source = self
            .machine
            .snapshot()
            .map_err(|e| self.fatal("taking a snapshot", &e))?;
        self.next_transfer += 1;
        // Grows over restarts too: a node that leads again leads a later term.
        let transfer = (head.term << 32) | self.next_transfer;
        let mut outgoing = Outgoing::new(transfer, head, source, self.config.snapshot_chunk_bytes, now)
            .map_err(|e| self.fatal("reading a snapshot", &e))?;
        let chunks = outgoing
            .fill()
            .map_err(|e| self.fatal("reading a snapshot", &e))?;
        self.send_chunks(to, chunks, out);
        self.outgoing.insert(to, outgoing);
        Ok(())
    }

    fn send_chunks(&self, to: NodeId, chunks: Vec<SnapshotChunk>, out: &mut Output) {
        out.messages
            .extend(chunks.into_iter().map(|c| self.message(to, Body::Chunk(c))));
    }

    fn ack(&mut self, from: NodeId, ack: &SnapshotAck, now: u64, out: &mut Output) -> Result<(), Fatal> {
        let Some(outgoing) = self.outgoing.get_mut(&from) else {
            return Ok(());
        };
        match outgoing.acknowledged(ack, now) {
            Outcome::Running => match outgoing.fill() {
                Ok(chunks) => self.send_chunks(from, chunks, out),
                Err(e) => return Err(self.fatal("reading a snapshot", &e)),
            },
            outcome => self.end_transfer(from, outcome, now),
        }
        Ok(())
    }

    fn end_transfer(&mut self, to: NodeId, outcome: Outcome, now: u64) {
        let ended = self.outgoing.remove(&to);
        let finished = outcome == Outcome::Finished;
        if let Some(ended) = ended.filter(|_| finished) {
            self.catching_up.insert(to, (ended.index(), now));
        }
        let status = if finished {
            SnapshotStatus::Finish
        } else {
            SnapshotStatus::Failure
        };
        self.node.report_snapshot(to, status);
    }

    pub(super) fn tick_snapshots(&mut self, now: u64, out: &mut Output) -> Result<(), Fatal> {
        self.arrivals.tick(now);
        if !self.leads() {
            self.outgoing.clear();
            return Ok(());
        }
        let peers: Vec<NodeId> = self.outgoing.keys().copied().collect();
        for peer in peers {
            let Some((outcome, chunks)) = self.outgoing.get_mut(&peer).map(|o| o.tick(now)) else {
                continue;
            };
            if outcome == Outcome::Failed {
                tracing::warn!(group = self.id, peer, "a snapshot could not be sent");
                self.end_transfer(peer, outcome, now);
            }
            self.send_chunks(peer, chunks, out);
        }
        Ok(())
    }

    /// A piece of a snapshot arrives and goes into the state machine's sink; the last one announces the whole to the
    /// library.
    fn chunk(&mut self, from: NodeId, chunk: SnapshotChunk, now: u64, out: &mut Output) -> Result<(), Fatal> {
        let closed = self.received.is_some();
        let machine = self.machine.as_mut();
        let taken = self
            .arrivals
            .take(from, chunk, &self.config, machine, closed, now);
        let (ack, received) = taken.map_err(|e| self.fatal("taking in a snapshot", &e))?;
        if let Some(ack) = ack {
            out.messages.push(self.message(from, Body::Ack(ack)));
        }
        let Some(received) = received else {
            return Ok(());
        };
        match convert::snapshot_message(from, self.config.node, &received.head) {
            Ok((message, membership)) => {
                let index = message.get_snapshot().get_metadata().index;
                self.step(message);
                // One that the library has no use for (its log has gone further meanwhile) is dropped.
                let pending = self.node.raft.raft_log.unstable_snapshot().as_ref();
                if pending.is_some_and(|s| s.get_metadata().index == index) {
                    self.received = Some((received, membership));
                }
            }
            Err(why) => tracing::warn!(group = self.id, from, why, "a snapshot is dropped"),
        }
        Ok(())
    }
}
