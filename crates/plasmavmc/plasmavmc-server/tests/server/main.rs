//! The server as its users and agents see it: the real router over TLS, Debian's etcd as the store, simulated agents
//! that speak the real protocol.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests: a panic is the report of a failure"
)]

mod acts;
mod agent;
mod crash;
mod fill;
mod harness;
mod idempotency;
mod images;
mod lifecycle;
mod openapi;
mod operations;
mod placement;
mod races;
mod restarts;
mod rights;
mod takeover;
