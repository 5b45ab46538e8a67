//! The members' own protocol, generated from `proto/chainfire`.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    unused_qualifications,
    reason = "generated from proto/chainfire, which carries the documentation"
)]

tonic::include_proto!("chainfire.peer.v1");
