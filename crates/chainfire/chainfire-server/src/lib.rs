//! A Chainfire member: etcd's v3 services over one Raft group.
//!
//! What it deliberately does not know: Aegis or any other service (their rights are a fixed table of certificate
//! identities, `auth/table.rs`), the consensus algorithm (`raft-host`), files (`kv-engine` and `raft-host`), what keys
//! mean. What a command does is decided in `chainfire-core`; here it is carried, stored and served.
//!
//! Entry points: [`Config`], [`run`]; [`offline`] for what is done to members that do not run.
//!
//! Invariants:
//! 1. the applied index is stored in the same batch as the effects, so a replay applies every entry exactly once;
//! 2. a linearizable read waits for a barrier on the member that answers it; renewals of leases wait for one on the
//!    leader, many together;
//! 3. nothing waits for a watcher: the hub wakes the streams that a change concerns, each has a task of its own with a
//!    bounded queue;
//! 4. every call checks the caller's rights on every range it names before anything else is done with it; those that
//!    come from etcd's users and roles are checked again by the state machine, at the place in the log of the write.
//!
//! ```text
//!  clients ──> kv, lease, watch, cluster ──> Node ──propose/read_index──> raft-host ──> Machine ──> kv-engine
//!                    │                         ^                             │            │
//!                    └──── reads: Shared (index, ring, engine) <─────────────┼────────────┘
//!  members <────────────────────── peers (mTLS, Raft messages) ──────────────┘
//! ```

mod agreement;
mod auth;
mod backups;
mod calls;
mod candidacy;
mod clock;
mod cluster;
mod config;
mod convert;
mod dashboards;
mod digests;
mod election;
mod gateway;
mod hash;
mod history;
mod incarnation;
mod kv;
mod layout;
mod leaderless;
mod leading;
mod lease;
mod lessor;
mod local;
mod lock;
mod machine;
mod maintenance;
mod members;
mod metrics;
mod migrate;
mod node;
pub mod offline;
mod outbox;
mod oversize;
mod peers;
mod probes;
mod quota;
mod range_stream;
mod reclaim;
mod record;
mod record_check;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;
mod snapshot;
mod start;
#[cfg(test)]
mod state_tests;
mod storage;
mod tables;
mod watch;
mod wire;

pub use auth::TokenConfigProblem;
pub use config::{Chainfire, Config, ConfigProblem, InitialState, Member};
pub use start::{ServerError, run, run_on};
