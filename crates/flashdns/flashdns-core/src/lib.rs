//! What FlashDNS answers, as a pure function.
//!
//! [`answer()`] takes an immutable [`Snapshot`] and the bytes of one query and writes the bytes of one
//! reply. [`Catalog`] is the other half: it turns records and the names of running VMs into the tree a
//! snapshot is taken from, touching only the names that changed.
//!
//! It does not know sockets, Chainfire, projects or permissions, clocks, or who asks. It signs nothing and
//! resolves nothing outside its own zones. It does not decide who may transfer or change a zone.
//!
//! Entry points: [`answer()`], [`Catalog`], [`Snapshot`]; [`text`] for the presentation format, [`zonefile`] for zone files, [`reverse`]
//! for reverse zones, [`tsig`] for signed messages, [`transfer`] and [`journal`] for zones on their way to secondaries, [`update`] for changes by message, [`serial`] for RFC 1982.
//!
//! Invariants:
//! - No input makes [`answer()`] panic, and the work one packet can cause is bounded by the constants in
//!   [`limits`], never by the size of a zone.
//! - A snapshot never changes; cloning one is cheap and an edit copies a small part of the tree.
//! - Every ancestor of a stored name is in the tree (RFC 4592's empty non-terminals), so one walk from the
//!   root finds zone, zone cut and closest encloser, and stops at the first missing label.
//! - Names in the tree are lower case; the names of a reply keep the case of the question.

pub mod answer;
pub mod catalog;
pub mod cookie;
mod form;
pub mod journal;
mod lexer;
pub mod limits;
mod loc;
mod message;
pub mod name;
mod node;
pub mod reverse;
pub mod rr;
pub mod rrl;
pub mod serial;
mod shard;
mod svcb;
pub mod text;
pub mod transfer;
mod tree;
pub mod tsig;
pub mod update;
mod wire;
pub mod zonefile;

pub use answer::{Ask, Outcome, Transport, answer, answer_to, truncated};
pub use catalog::{Catalog, Host, ZoneSettings};
pub use name::DnsName;
pub use rr::{RrSet, Rtype};
pub use tree::Snapshot;
