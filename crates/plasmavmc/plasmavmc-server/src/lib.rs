//! The PlasmaVMC server: the REST interface for VMs, images and nodes, the hub that node agents dial, the shell of
//! the scheduler, and the background reconciler.
//!
//! It does not know how a guest is made to run (the agent's business), how rights are stored (Aegis's), or how a
//! name is answered (FlashDNS's). It touches no host but for the folder of images.
//!
//! Entry points: [`Config`] and [`run`]; [`serve`] with [`Parts`] for tests; [`openapi_json`].
//!
//! One request: `http/vms.rs` (parse) -> `app/create.rs` (rights, validation, placement by `plasmavmc-core`) ->
//! `store/vm.rs` (one transaction) -> 202; then `hub/session.rs` tells the agent, `store/observe.rs` takes its reports
//! over and publishes the name.
//!
//! Invariants: nothing reaches the store without a check of rights (`app::App` hands the store out only against one);
//! every change is one transaction guarded by the revisions it was decided on; any number of replicas may run; only
//! a report of "gone" in the current epoch of a VM that is being deleted frees anything.

mod app;
mod config;
mod http;
mod hub;
mod images;
mod metrics;
mod nodes;
mod qcow2;
mod reconcile;
mod run;
mod store;
mod takeover;
mod trim;
mod turns;

pub use config::{Config, PlasmaConfig};
pub use http::openapi_json;
pub use run::{Parts, RunError, run, serve};
