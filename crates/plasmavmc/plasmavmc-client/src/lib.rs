//! What others need to talk to PlasmaVMC: the REST wire types, a typed client for them, the node agent's
//! protocol and the published names of running VMs.
//!
//! It does not know how the server stores anything, how it places a VM, or how an agent makes one run.
//!
//! Entry points: [`PlasmaClient`] for people's tools, [`agent`] for the node agent and the server,
//! [`names`] for whoever serves the names of running VMs.
//!
//! Invariants: wire types only ever gain optional fields; [`names::PublishedName::key`] and
//! [`names::parse`] agree with each other.

/// The node agent's protocol (`proto/hearth/agent/v1/agent.proto`): messages, client and server stubs.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod agent {
    tonic::include_proto!("hearth.agent.v1");
}

mod console;
pub mod guard;
pub mod names;
mod rest;
mod rest_operations;
mod rest_placement;
pub mod types;

pub use console::Console;
pub use rest::{
    ClientError, ImageUpload, KEY_HEADER, PlasmaClient, StaticToken, TokenProvider, sha256_of, tls_from_ca,
};
