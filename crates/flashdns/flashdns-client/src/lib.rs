//! What others need to talk to FlashDNS: wire types of its REST interface and a typed client of it.
//!
//! It does not know what a record means, how zones are stored or answered, nor where a token comes from.
//!
//! Entry points: [`DnsClient`]; [`types`].
//!
//! Invariants: wire types only ever gain optional fields.

mod rest;
pub mod types;

pub use rest::{ClientError, DnsClient};
