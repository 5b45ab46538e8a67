//! Snapshots on their way: a window of chunks out, checked and collected in.
//!
//! Chunks carry a checksum each and the last one a checksum over all. The receiver acknowledges how far it has
//! them without a gap; the sender repeats from there when nothing moves for a while, and gives up after a longer
//! while. A receiver keeps one transfer per sender; a newer one replaces it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::NodeId;
use crate::machine::{MachineError, SnapshotData, SnapshotSource};
use crate::wire::{RaftMessage, SnapshotAck, SnapshotChunk};

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

/// A snapshot arriving from one member.
struct Incoming {
    transfer: u64,
    next: u64,
    head: RaftMessage,
    chunks: Vec<Bytes>,
    bytes: u64,
    total: crc32fast::Hasher,
}

/// A complete one.
pub(crate) struct Received {
    pub(crate) head: RaftMessage,
    pub(crate) data: SnapshotData,
}

/// All snapshots that arrive at one group.
#[derive(Default)]
pub(crate) struct Arrivals {
    running: BTreeMap<NodeId, Incoming>,
    /// The last complete transfer of a sender and its length: doubles of its chunks are acknowledged again.
    complete: BTreeMap<NodeId, (u64, u64)>,
}

impl Arrivals {
    /// Takes a chunk; returns the acknowledgement and, with the last one, the snapshot.
    pub(crate) fn take(
        &mut self,
        from: NodeId,
        chunk: SnapshotChunk,
        max_bytes: u64,
    ) -> (Option<SnapshotAck>, Option<Received>) {
        let transfer = chunk.transfer;
        if crc32fast::hash(&chunk.data) != chunk.crc {
            // Damaged on the way; the sender repeats it.
            return (None, None);
        }
        if let Some((done, length)) = self.complete.get(&from)
            && transfer <= *done
        {
            let ack = SnapshotAck {
                transfer,
                next: *length,
                failed: false,
            };
            return ((transfer == *done).then_some(ack), None);
        }
        if chunk.seq == 0
            && let Some(head) = chunk.head
            && self.running.get(&from).is_none_or(|i| i.transfer < transfer)
        {
            let total = crc32fast::Hasher::new();
            self.running.insert(
                from,
                Incoming {
                    transfer,
                    next: 0,
                    head,
                    chunks: Vec::new(),
                    bytes: 0,
                    total,
                },
            );
        }
        let Some(incoming) = self.running.get_mut(&from).filter(|i| i.transfer == transfer) else {
            return (None, None);
        };
        if chunk.seq != incoming.next {
            return (
                Some(SnapshotAck {
                    transfer,
                    next: incoming.next,
                    failed: false,
                }),
                None,
            );
        }
        incoming.bytes += chunk.data.len() as u64;
        incoming.total.update(&chunk.data);
        incoming.next += 1;
        let next = incoming.next;
        let intact = !chunk.last || incoming.total.clone().finalize() == chunk.total_crc;
        if incoming.bytes > max_bytes || !intact {
            tracing::warn!(from, bytes = incoming.bytes, intact, "a snapshot is refused");
            self.running.remove(&from);
            return (
                Some(SnapshotAck {
                    transfer,
                    next: 0,
                    failed: true,
                }),
                None,
            );
        }
        incoming.chunks.push(chunk.data);
        let ack = SnapshotAck {
            transfer,
            next,
            failed: false,
        };
        if !chunk.last {
            return (Some(ack), None);
        }
        self.complete.insert(from, (transfer, next));
        let received = self.running.remove(&from).map(|i| Received {
            head: i.head,
            data: SnapshotData { chunks: i.chunks },
        });
        (Some(ack), received)
    }
}
