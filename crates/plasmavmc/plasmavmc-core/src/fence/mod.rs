//! The rule by which no disk is ever open twice, as three state machines that know no clock, no store and no process:
//! [`Guard`] (a node's guard: what its guests may do), [`TakeOver`] (the control plane: whether a node is proved to be
//! out of the way) and [`may_open`] (whoever opens a disk that several nodes reach).
//!
//! ```text
//!  seconds since the sending of the guard's last proof
//!  0        8            11                    15             20
//!  |  run   |  stand     |  killed             lease ends     fence at the earliest: then, and only then,
//!  |        |  still     |                     |<-- margin -->|  restart elsewhere in a higher epoch
//! ```
//!
//! Only guests that could be started elsewhere are *movable*; nothing here ever touches another one.
//!
//! A proof is one of two. (1) The store confirmed a renewal of the guard's lease: no lease ends earlier than
//! [`Times::lease_ms`] after the last renewal was sent, whatever its leaders do. (2) A majority of *all* members has
//! been without a leader for [`Times::leaderless_ms`]: then nobody has had an answer of the store in that time, which
//! is longer than the gap ([`Times::gap_ms`]) after which the control plane begins to count anew, and a fence needs
//! [`Times::steady_ms`] from there. Members say so themselves. One whose machine refuses the connection, again and
//! again for that time, does not run and has no leader either; but somebody must have *said* it, so that a wall of
//! refusals is no proof. That is how a store without quorum is told from a partition, in which who cannot be reached
//! does not say anything.
//!
//! A fence is a mark in the guard's record, written by a transaction that compares the absence of the lease, the
//! record's revision (so that it is the same absence as the one that was timed) and the election. It stands until the
//! guard takes it away, and the guard does that only when no movable guest is left. So everything after the mark needs
//! no clock: while the record is at the revision of its mark, the node runs nothing that may be taken from it.

mod eligible;
mod guard;
mod opener;
mod takeover;

pub use eligible::{Candidate, Hindrance, Restart, Storage, may_restart_elsewhere};
pub use guard::{Guard, GuardInput, Level, Said};
pub use opener::{OpenRefused, Owner, may_open};
pub use takeover::{GuardSeen, Look, Standing, TakeOver};

/// The times of the rule, in milliseconds. They are one set: [`Times::are_safe`] says whether it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Time to live of a guard's lease.
    pub lease_ms: u64,
    /// Pause between renewals.
    pub renew_ms: u64,
    /// Without a proof for so long, movable guests stand still.
    pub pause_ms: u64,
    /// Without a proof for so long, movable guests are killed.
    pub kill_ms: u64,
    /// A lease that the store has ended early (somebody revoked it) leaves this much.
    pub gone_ms: u64,
    /// A movable guest is started only when the last proof is younger than this.
    pub start_ms: u64,
    /// The lease must have been gone for so long before the fence.
    pub margin_ms: u64,
    /// The store must have been seen without a gap for so long before the fence.
    pub steady_ms: u64,
    /// Longest time from the asking of one look at the store to the answer of the next.
    pub gap_ms: u64,
    /// Without a leader for so long, a majority of members proves that nobody had an answer meanwhile.
    pub leaderless_ms: u64,
    /// Longest time between two rounds of questions for them to be in a row.
    pub rounds_ms: u64,
    /// Bound on the time between the decision to kill and the last process' end.
    pub killing_ms: u64,
}

/// The times in use.
pub const TIMES: Times = Times {
    lease_ms: 15_000,
    renew_ms: 2_000,
    pause_ms: 8_000,
    kill_ms: 11_000,
    gone_ms: 1_000,
    start_ms: 5_000,
    margin_ms: 5_000,
    steady_ms: 20_000,
    gap_ms: 2_000,
    leaderless_ms: 2_300,
    rounds_ms: 1_500,
    killing_ms: 1_000,
};

/// Clocks of two machines may differ in rate by so much, in parts of a thousand.
pub const DRIFT_PER_MILLE: u64 = 50;

impl Times {
    /// Whether guests are dead before a fence can be, for clocks that differ by at most [`DRIFT_PER_MILLE`] from true
    /// time: one fast, one slow.
    #[must_use]
    pub const fn are_safe(&self) -> bool {
        let dead_at = (self.kill_ms + self.killing_ms) * 1000 / (1000 - DRIFT_PER_MILLE);
        let fenced_by_lease = (self.lease_ms + self.margin_ms) * 1000 / (1000 + DRIFT_PER_MILLE);
        let gap = self.gap_ms * 1000 / (1000 - DRIFT_PER_MILLE);
        let leaderless = self.leaderless_ms * 1000 / (1000 + DRIFT_PER_MILLE);
        let fenced_when_steady = self.steady_ms * 1000 / (1000 + DRIFT_PER_MILLE);
        self.renew_ms < self.start_ms
            && self.start_ms < self.pause_ms
            && self.pause_ms < self.kill_ms
            && self.kill_ms < self.lease_ms
            && gap < leaderless
            && dead_at < fenced_by_lease
            && dead_at < fenced_when_steady
    }
}

const _: () = assert!(TIMES.are_safe(), "the times of fencing do not fit each other");
