//! What tests stand on. A dev-dependency only (and xtask's): nothing that ships links it.
//!
//! # What it is
//! - [`sim`]: a seeded simulator. Whole clusters of the real `raft-host` core run in one thread under a virtual
//!   clock, with a faulty network and faulty disks; histories are checked for linearizability.
//! - [`process`], [`netns`]: real processes and network namespaces for black-box tests.
//!
//! # What it deliberately does not know
//! The services: the simulator runs whatever implements [`sim::Service`] (its own small register store, or a real
//! server's core from that server's own simulation crate), and processes are given by path.
//!
//! # Entry points
//! [`sim::run`], [`sim::run_many`], [`sim::registers`]; [`process::Process`]; [`netns::Namespace`].
//!
//! # Invariants
//! 1. One seed, one run: everything random comes from the seed, everything timed from the virtual clock.
//! 2. A checker's time-out is a failure, and a kind of fault that never happened in a whole run is a failure.
//! 3. Every wait on something real is bounded, and whatever a helper started is gone when it is dropped.

pub mod netns;
pub mod process;
pub mod sim;
