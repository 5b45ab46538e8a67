//! Chainfire's state machine: etcd v3's keys, revisions, transactions, leases and watch matching, as pure functions.
//!
//! What it deliberately does not know: tokio, gRPC, Raft, files, the clock (time is an input), randomness (ids are
//! inputs), who is asking (it is told, [`auth::By`]). Values of past revisions lie behind [`storage::RevisionStore`].
//!
//! Entry points: [`Store::apply`] takes a committed [`Command`] and returns a [`Reply`] and the [`Event`]s it caused;
//! [`Store::range`] reads; [`check`] validates a request before it is proposed; [`watch::Stream`] serves the watchers
//! of one client from [`watch::EventRing`] and storage; [`timers::LeaseTimers`] says which leases have run out.
//!
//! Invariants:
//! 1. the same commands in the same order give the same state, replies and events on every member;
//! 2. the revision starts at 1 and grows by exactly one with each command that changes a key, and by none otherwise
//!    (a batch of expired leases counts as one command for each lease that had keys);
//! 3. a command either has all of its effect or none: whatever can fail is checked before the first change;
//! 4. no error is an accident: each is a row of [`error::TABLE`], with etcd's code and text.

mod alarm;
pub mod auth;
pub mod check;
mod digest;
pub mod error;
#[cfg(feature = "planted-bugs")]
pub mod faulty;
mod index;
mod lease;
mod plan;
pub mod planted;
mod range;
pub mod reclaim;
mod request;
pub mod storage;
mod store;
pub mod timers;
mod txn;
mod types;
pub mod watch;

pub use alarm::{Alarm, AlarmKind, Alarms};
pub use digest::{Digest, Effect};
pub use error::{Code, OpError};
pub use index::{KeyIndex, Version};
pub use lease::{Lease, Leases, MAX_LEASE_TTL_S, MIN_LEASE_TTL_S};
pub use plan::{Page, RangePlan};
pub use range::{Bounds, KeyRange};
pub use request::{
    AlarmChange, Command, Compare, CompareOp, CompareTarget, DeleteOutcome, DeleteRange, Op, OpReply, Put,
    PutOutcome, Range, RangeOutcome, Reply, SortOrder, SortTarget, Txn, TxnOutcome,
};
pub use store::{Applied, Failure, Saved, Store};
pub use types::{Event, EventKind, KeyValue, Point};
