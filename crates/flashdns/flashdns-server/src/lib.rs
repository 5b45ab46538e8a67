//! The FlashDNS server: authoritative DNS for Hearth's internal zone and its reverse zones.
//!
//! Chainfire is watched for records and for the names of running VMs; every batch of changes becomes a new
//! immutable snapshot that all threads answer from at once. The last state lies on disk: a server that
//! starts without Chainfire answers from it.
//!
//! It does not know how VMs are run (it sees `plasmavmc_client::names` only), who may do what (it asks
//! `iam-client`), nor how an answer is made (`flashdns-core`). It resolves nothing outside its zones.
//!
//! Entry points: [`Config`], [`run`]; [`Server`] for those who need the ports first;
//! [`openapi_json`].
//!
//! Invariants:
//! - Answering depends on nothing but the published snapshot: not on Chainfire, not on Aegis, not on disk.
//! - One task (`keeper`) owns the state; feeds and API reach it over one bounded queue.
//! - What is served is a function of what Chainfire holds, the serial included, so all servers agree.
//! - A secret lies in Chainfire sealed, or not at all.
//! - Before anything is known every question is refused: nobody may remember a wrong "does not exist".

mod api;
pub mod config;
mod cookies;
mod feed;
mod keeper;
mod keys;
mod metrics;
mod notify;
mod persist;
mod record;
mod seal;
pub mod server;
mod signed;
mod state;
mod tcp;
mod udp;
mod updates;
mod xfr;
mod zones;

pub use api::openapi_json;
pub use config::Config;
pub use seal::SealError;
pub use server::{Server, StartError, run};
pub use xfr::NetworkTextError;
pub use zones::ZoneError;
