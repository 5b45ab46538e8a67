//! What is replicated: the trait that a service implements.

use std::any::Any;

use bytes::Bytes;

use crate::Membership;

/// An error of a state machine. It is fatal for the host: replicas must not drift apart.
pub type MachineError = Box<dyn std::error::Error + Send + Sync>;

/// A deterministic state machine: the same entries in the same order give the same state and the same responses
/// on every member. It is owned by the host's thread; readers share its insides (snapshots), not the trait.
///
/// A state machine need not sync what it applies: after a crash, the log replays everything after
/// [`StateMachine::applied_index`]. Therefore the index must be stored in the same atomic write as the effects.
pub trait StateMachine: Send {
    /// Index of the last entry whose effects are in the state, 0 for a new one. Asked once, at open.
    fn applied_index(&self) -> u64;

    /// Applies `entries` (in order, without gaps, never empty) and returns exactly one response for each; that of
    /// a [`Payload::Command`] goes to its proposer when it waits on this node, the others are ignored. Even an
    /// entry without effect moves the applied index.
    fn apply(&mut self, entries: &[Committed<'_>]) -> Result<Vec<Bytes>, MachineError>;

    /// Makes the state durable (fsync) and returns the applied index that is durable now. The log is compacted
    /// only up to there.
    fn persist(&mut self) -> Result<u64, MachineError>;

    /// A consistent picture of the state as applied now. It is read in chunks while further entries are applied.
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, MachineError>;

    /// Begins to take in a snapshot that another member's `snapshot` gave. The state stays what it is, and goes on
    /// being applied to, until [`StateMachine::restore`]; a sink that is dropped leaves nothing behind. There is at
    /// most one sink at a time.
    fn receive(&mut self) -> Result<Box<dyn SnapshotSink>, MachineError>;

    /// Replaces the whole state by the snapshot that `sink` (one of this machine's own) has taken in to its end,
    /// whose applied index is `index`, atomically with respect to a crash, and durably: when this returns, the state
    /// is on disk.
    fn restore(&mut self, index: u64, sink: Box<dyn SnapshotSink>) -> Result<(), MachineError>;
}

/// A committed entry.
#[derive(Clone, Copy, Debug)]
pub struct Committed<'a> {
    /// Its place in the log, from 1 up; starts of terms and membership changes use up indices too.
    pub index: u64,
    /// The term of the leader that proposed it.
    pub term: u64,
    /// Its content.
    pub payload: Payload<'a>,
}

/// What an entry carries.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// What `propose` was given.
    Command(&'a [u8]),
    /// The start of a leader's term: no content.
    Noop,
    /// The group has these members from here on.
    Membership(&'a Membership),
}

/// Reads one snapshot from front to back.
pub trait SnapshotSource: Send {
    /// The next piece, about `max` bytes, or `None` at the end. What a piece means is the state machine's affair;
    /// the sink gets the same bytes, not necessarily cut at the same places: treat them as one byte stream.
    fn next_chunk(&mut self, max: usize) -> Result<Option<Bytes>, MachineError>;
}

/// Takes in one snapshot from front to back, on disk: as much as arrives must not be held in memory.
///
/// `Any`, so that the state machine gets its own type back: `let sink: Box<dyn Any> = sink; sink.downcast::<Sink>()`.
pub trait SnapshotSink: Any + Send {
    /// The next piece, its checksum verified; cut at other places than the source's pieces were, perhaps.
    fn feed(&mut self, data: &[u8]) -> Result<(), MachineError>;
}
