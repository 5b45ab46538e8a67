//! Client of Chainfire, and of any server that speaks etcd's v3 API.
//!
//! What it does not know: what the keys mean, who the caller is beyond its certificate, anything of Chainfire's
//! insides. Other services talk to Chainfire through this crate only.
//!
//! Entry points: [`Client::connect`], then [`Client::get`], [`Client::list`], [`Client::put`], [`Client::txn`],
//! [`Client::watch`], [`Client::lease_grant`], [`Client::election`]; the raw messages are in [`wire`].
//!
//! Invariants:
//! - every call ends by its deadline;
//! - a read is retried on another endpoint, a write only when it provably was not applied; a write whose fate is not
//!   known ends in [`Error::UnknownOutcome`];
//! - a [`Watcher`] yields every event once and in order across broken streams, or says [`WatchUpdate::Compacted`].

mod cluster;
mod config;
mod conn;
mod election;
mod error;
mod kv;
mod leaders;
mod lease;
mod login;
mod maintenance;
mod txn;
mod watch;
pub mod wire;

pub use cluster::{Member, MemberStatus};
pub use config::ClientConfig;
pub use conn::Client;
pub use election::{Election, Leadership};
pub use error::Error;
pub use kv::{
    DeleteOutcome, GetOutcome, KeyValue, Listing, MAX_LIST_RESTARTS, PAGE_KEYS, PutOutcome, prefix_end,
};
pub use leaders::LeaderAnswer;
pub use lease::{KeepAlive, Lease, LeaseState};
pub use maintenance::{Alarm, SnapshotPieces, StateHash};
pub use txn::{Compare, CompareTarget, Op, OpOutcome, Txn, TxnOutcome};
pub use watch::{WatchEvent, WatchOptions, WatchUpdate, Watcher};

/// Result of this crate's calls.
pub type Result<T> = std::result::Result<T, Error>;
