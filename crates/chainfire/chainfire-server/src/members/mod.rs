//! The life of the cluster: who is a member, how members come, change and go.
//!
//! Raft's configuration (`raft-host`) says who the members are, where they are reached and who learns. What else
//! is known of them is a table in the replicated state ([`table`]). Here is what changes both.
//!
//! ```text
//!   MemberAdd ──rules──> Raft's configuration ──> (a record) ──Join──> DATA/member ──start──> snapshot ──> Publish
//!   MemberRemove ──rules──> Raft's configuration ──> record.removed: the id is never used again, its process stops
//! ```

pub(crate) mod begin;
pub(crate) mod change;
pub(crate) mod handover;
pub(crate) mod identity;
pub(crate) mod join;
pub(crate) mod learner;
pub(crate) mod publish;
mod rules;
pub(crate) mod slow_disk;
pub(crate) mod table;
pub(crate) mod urls;
