//! Snapshots on their way: a window of chunks out, checked and handed to the state machine in.
//!
//! Chunks carry a checksum each and the last one a checksum over all. The receiver acknowledges how far it has
//! them without a gap; the sender repeats from there when nothing moves for a while, and gives up after a longer
//! while. A receiver has one transfer at a time, whose content goes at once into a [`SnapshotSink`]; a newer one (of a
//! later leader, or begun anew) replaces it, and one that stands still for long is dropped.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::machine::{MachineError, SnapshotSink, SnapshotSource, StateMachine};
use crate::wire::{RaftMessage, SnapshotAck, SnapshotChunk};
use crate::{HostConfig, NodeId};

/// Chunks under way without an acknowledgement.
const WINDOW: u64 = 8;
/// Ticks without progress before the window is sent again.
const RESEND_TICKS: u64 = 3;
/// Ticks without progress before the transfer is given up.
const GIVE_UP_TICKS: u64 = 100;

/// A snapshot being sent to one member.
pub(crate) struct Outgoing {
    transfer: u64,
    head: RaftMessage,
    source: Box<dyn SnapshotSource>,
    chunk_bytes: usize,
    /// Sent or ready, not acknowledged; the first has number `acked`.
    window: VecDeque<SnapshotChunk>,
    acked: u64,
    next_seq: u64,
    total: crc32fast::Hasher,
    /// Read one ahead, so that the last chunk knows that it is the last.
    ahead: Option<Bytes>,
    finished_reading: bool,
    moved_at: u64,
    sent_at: u64,
}

/// What became of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It goes on.
    Running,
    /// The receiver has everything.
    Finished,
    /// It gave up, or the receiver did.
    Failed,
}

impl Outgoing {
    pub(crate) fn new(
        transfer: u64,
        head: RaftMessage,
        mut source: Box<dyn SnapshotSource>,
        chunk_bytes: usize,
        now: u64,
    ) -> Result<Outgoing, MachineError> {
        let ahead = source.next_chunk(chunk_bytes)?;
        Ok(Outgoing {
            transfer,
            head,
            source,
            chunk_bytes,
            window: VecDeque::new(),
            acked: 0,
            next_seq: 0,
            total: crc32fast::Hasher::new(),
            ahead,
            finished_reading: false,
            moved_at: now,
            sent_at: now,
        })
    }

    /// Chunks to send now: those that newly fit into the window.
    pub(crate) fn fill(&mut self) -> Result<Vec<SnapshotChunk>, MachineError> {
        let mut send = Vec::new();
        while !self.finished_reading && (self.window.len() as u64) < WINDOW {
            let data = self.ahead.take().unwrap_or_default();
            self.ahead = self.source.next_chunk(self.chunk_bytes)?;
            self.finished_reading = self.ahead.is_none();
            self.total.update(&data);
            let chunk = SnapshotChunk {
                transfer: self.transfer,
                seq: self.next_seq,
                crc: crc32fast::hash(&data),
                data,
                last: self.finished_reading,
                total_crc: if self.finished_reading {
                    self.total.clone().finalize()
                } else {
                    0
                },
                head: (self.next_seq == 0).then(|| self.head.clone()),
            };
            self.next_seq += 1;
            self.window.push_back(chunk.clone());
            send.push(chunk);
        }
        Ok(send)
    }

    /// What it is a snapshot of.
    pub(crate) fn index(&self) -> u64 {
        self.head.snapshot.as_ref().map_or(0, |meta| meta.index)
    }

    pub(crate) fn acknowledged(&mut self, ack: &SnapshotAck, now: u64) -> Outcome {
        if ack.transfer != self.transfer {
            return Outcome::Running;
        }
        if ack.failed {
            return Outcome::Failed;
        }
        while self.acked < ack.next && self.window.pop_front().is_some() {
            self.acked += 1;
            self.moved_at = now;
            self.sent_at = now;
        }
        if self.finished_reading && self.window.is_empty() {
            Outcome::Finished
        } else {
            Outcome::Running
        }
    }

    /// Chunks to send again, or that it is over.
    pub(crate) fn tick(&mut self, now: u64) -> (Outcome, Vec<SnapshotChunk>) {
        if now.saturating_sub(self.moved_at) >= GIVE_UP_TICKS {
            return (Outcome::Failed, Vec::new());
        }
        if now.saturating_sub(self.sent_at) < RESEND_TICKS {
            return (Outcome::Running, Vec::new());
        }
        self.sent_at = now;
        (Outcome::Running, self.window.iter().cloned().collect())
    }
}

/// A snapshot arriving.
struct Incoming {
    from: NodeId,
    transfer: u64,
    next: u64,
    head: RaftMessage,
    sink: Box<dyn SnapshotSink>,
    bytes: u64,
    total: crc32fast::Hasher,
    moved_at: u64,
}

/// A complete one.
pub(crate) struct Received {
    pub(crate) head: RaftMessage,
    pub(crate) sink: Box<dyn SnapshotSink>,
}

/// What a chunk brings about: the acknowledgement and, with the last one, the snapshot.
type Taken = (Option<SnapshotAck>, Option<Received>);

/// The snapshots that arrive at one group.
#[derive(Default)]
pub(crate) struct Arrivals {
    running: Option<Incoming>,
    /// The last complete transfer of a sender and its length: doubles of its chunks are acknowledged again.
    complete: BTreeMap<NodeId, (u64, u64)>,
}

impl Arrivals {
    /// Takes a chunk. With `closed` no new transfer begins: the machine's one sink is in use; the sender repeats.
    pub(crate) fn take(
        &mut self,
        from: NodeId,
        chunk: SnapshotChunk,
        config: &HostConfig,
        machine: &mut dyn StateMachine,
        closed: bool,
        now: u64,
    ) -> Result<Taken, MachineError> {
        let transfer = chunk.transfer;
        if crc32fast::hash(&chunk.data) != chunk.crc {
            // Damaged on the way; the sender repeats it.
            return Ok((None, None));
        }
        if let Some((done, length)) = self.complete.get(&from)
            && transfer <= *done
        {
            let again = (transfer == *done).then(|| ack(transfer, *length));
            return Ok((again, None));
        }
        if chunk.seq == 0
            && let Some(head) = chunk.head
            && !closed
            && self.running.as_ref().is_none_or(|i| i.transfer < transfer)
        {
            // The old sink goes before the machine makes a new one.
            self.running = None;
            self.running = Some(Incoming {
                from,
                transfer,
                next: 0,
                head,
                sink: machine.receive()?,
                bytes: 0,
                total: crc32fast::Hasher::new(),
                moved_at: now,
            });
        }
        let Some(mut incoming) = self.running.take_if(|i| i.transfer == transfer && i.from == from) else {
            // So late a piece means that the beginning was acknowledged, by an earlier life of this process, or before
            // the transfer was dropped: it cannot be completed, and the sender should not wait to find out.
            let refusal = SnapshotAck {
                failed: true,
                ..ack(transfer, 0)
            };
            return Ok(((chunk.seq >= WINDOW).then_some(refusal), None));
        };
        if chunk.seq != incoming.next {
            let again = ack(transfer, incoming.next);
            self.running = Some(incoming);
            return Ok((Some(again), None));
        }
        incoming.bytes += chunk.data.len() as u64;
        incoming.total.update(&chunk.data);
        incoming.next += 1;
        incoming.moved_at = now;
        let intact = !chunk.last || incoming.total.clone().finalize() == chunk.total_crc;
        let too_big = config.max_snapshot_bytes.is_some_and(|max| incoming.bytes > max);
        if too_big || !intact {
            tracing::warn!(from, bytes = incoming.bytes, intact, "a snapshot is refused");
            let refusal = SnapshotAck {
                failed: true,
                ..ack(transfer, 0)
            };
            return Ok((Some(refusal), None));
        }
        incoming.sink.feed(&chunk.data)?;
        let next = ack(transfer, incoming.next);
        if !chunk.last {
            self.running = Some(incoming);
            return Ok((Some(next), None));
        }
        self.complete.insert(from, (transfer, incoming.next));
        let received = Received {
            head: incoming.head,
            sink: incoming.sink,
        };
        Ok((Some(next), Some(received)))
    }

    /// Drops a transfer whose sender has stopped sending.
    pub(crate) fn tick(&mut self, now: u64) {
        let stale = |i: &mut Incoming| now.saturating_sub(i.moved_at) >= 2 * GIVE_UP_TICKS;
        if let Some(gone) = self.running.take_if(stale) {
            tracing::info!(
                from = gone.from,
                bytes = gone.bytes,
                "an unfinished snapshot is dropped"
            );
        }
    }
}

fn ack(transfer: u64, next: u64) -> SnapshotAck {
    SnapshotAck {
        transfer,
        next,
        failed: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Committed, Membership};

    /// Feeds its sinks' content to nobody, and counts them.
    #[derive(Default)]
    struct Machine {
        sinks: u64,
    }

    struct Sink(Vec<u8>);

    impl SnapshotSink for Sink {
        fn feed(&mut self, data: &[u8]) -> Result<(), MachineError> {
            self.0.extend_from_slice(data);
            Ok(())
        }
    }

    impl StateMachine for Machine {
        fn applied_index(&self) -> u64 {
            0
        }

        fn apply(&mut self, _: &[Committed<'_>]) -> Result<Vec<Bytes>, MachineError> {
            Ok(Vec::new())
        }

        fn persist(&mut self) -> Result<u64, MachineError> {
            Ok(0)
        }

        fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, MachineError> {
            Err("not asked".into())
        }

        fn receive(&mut self) -> Result<Box<dyn SnapshotSink>, MachineError> {
            self.sinks += 1;
            Ok(Box::new(Sink(Vec::new())))
        }

        fn restore(&mut self, _: u64, _: Box<dyn SnapshotSink>) -> Result<(), MachineError> {
            Ok(())
        }
    }

    struct Pieces(Vec<&'static str>);

    impl SnapshotSource for Pieces {
        fn next_chunk(&mut self, _: usize) -> Result<Option<Bytes>, MachineError> {
            Ok(self.0.pop().map(Bytes::from))
        }
    }

    fn chunks(transfer: u64) -> Vec<SnapshotChunk> {
        let head = RaftMessage {
            snapshot: Some(crate::wire::SnapshotMeta {
                membership: Some(crate::convert::membership_to(&Membership::default())),
                ..Default::default()
            }),
            ..RaftMessage::default()
        };
        let source = Box::new(Pieces(vec!["three", "two", "one"]));
        let mut outgoing = Outgoing::new(transfer, head, source, 10, 0).unwrap();
        outgoing.fill().unwrap()
    }

    struct Receiver {
        arrivals: Arrivals,
        machine: Machine,
        config: HostConfig,
    }

    impl Receiver {
        fn new() -> Receiver {
            Receiver {
                arrivals: Arrivals::default(),
                machine: Machine::default(),
                config: HostConfig::default(),
            }
        }

        /// What is expected next, or what went wrong; and the content when it is whole.
        fn take(
            &mut self,
            from: NodeId,
            chunk: &SnapshotChunk,
            closed: bool,
        ) -> (Option<u64>, Option<String>) {
            let machine = &mut self.machine;
            let taken = self
                .arrivals
                .take(from, chunk.clone(), &self.config, machine, closed, 0);
            let (ack, received) = taken.unwrap();
            let text = received.map(|r| {
                let sink: Box<dyn std::any::Any> = r.sink;
                String::from_utf8(sink.downcast::<Sink>().unwrap().0).unwrap()
            });
            (ack.map(|a| if a.failed { 99 } else { a.next }), text)
        }
    }

    #[test]
    fn pieces_arrive_in_any_order_and_doubled() {
        let mut to = Receiver::new();
        let sent = chunks(5);
        assert_eq!(to.take(1, &sent[1], false), (None, None), "nothing has begun");
        assert_eq!(to.take(1, &sent[0], true), (None, None), "the sink is in use");
        assert_eq!(to.take(1, &sent[0], false), (Some(1), None));
        assert_eq!(to.take(1, &sent[2], false), (Some(1), None), "a gap");
        let mut damaged = sent[1].clone();
        damaged.data = Bytes::from("twa");
        assert_eq!(to.take(1, &damaged, false), (None, None));
        assert_eq!(to.take(1, &sent[1], false), (Some(2), None));
        assert_eq!(to.take(1, &sent[1], false), (Some(2), None), "a double");
        assert_eq!(
            to.take(1, &sent[2], false),
            (Some(3), Some("onetwothree".to_owned()))
        );
        assert_eq!(
            to.take(1, &sent[2], false),
            (Some(3), None),
            "answered again, not taken"
        );
        assert_eq!(to.machine.sinks, 1);
    }

    #[test]
    fn a_newer_transfer_replaces_the_older_and_a_stale_one_is_dropped() {
        let mut to = Receiver::new();
        let (old, new) = (chunks(5), chunks(6));
        assert_eq!(to.take(1, &old[0], false), (Some(1), None));
        assert_eq!(to.take(2, &new[0], false), (Some(1), None));
        assert_eq!(to.take(1, &old[1], false), (None, None));
        assert_eq!(to.take(1, &old[0], false), (None, None));
        to.arrivals.tick(2 * GIVE_UP_TICKS - 1);
        assert_eq!(to.take(2, &new[1], false), (Some(2), None));
        to.arrivals.tick(2 * GIVE_UP_TICKS);
        assert_eq!(to.take(2, &new[2], false), (None, None), "it was dropped");
        let late = SnapshotChunk {
            seq: WINDOW,
            ..new[2].clone()
        };
        assert_eq!(
            to.take(2, &late, false),
            (Some(99), None),
            "the sender begins anew"
        );
        assert_eq!(to.machine.sinks, 2);
    }

    #[test]
    fn a_wrong_whole_and_a_too_big_one_are_refused() {
        let mut to = Receiver::new();
        let mut sent = chunks(5);
        sent[2].total_crc ^= 1;
        to.take(1, &sent[0], false);
        to.take(1, &sent[1], false);
        assert_eq!(to.take(1, &sent[2], false), (Some(99), None));
        to.config.max_snapshot_bytes = Some(4);
        let sent = chunks(6);
        assert_eq!(to.take(1, &sent[0], false), (Some(1), None));
        assert_eq!(to.take(1, &sent[1], false), (Some(99), None));
    }
}
