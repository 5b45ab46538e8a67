//! Who may do what: `decide(world, question) -> decision`, pure.
//!
//! The engine is Cedar, and this is the only crate that names it. Cedar scans every policy for every question, so a
//! question is answered over a slice: the bindings whose principal is the caller or a group above it, and whose
//! resource is the target or something above it. A binding outside of the slice has a false scope and cannot decide.
//! The same holds for entities: Cedar sees the handful of the question, never the whole graph. Tests compare the slice
//! with Cedar over everything.
//!
//! What it does not know: tokens, certificates, where the world is stored, time, HTTP.
//!
//! Entry points: [`World`] (the entity graph, changed record by record), [`decide`], [`missing_for_grant`],
//! [`ACTIONS`] (every permission there is).
//!
//! Invariants: what is not permitted is denied; a forbid beats every permit; an unknown principal, an unknown resource,
//! an unknown action or an error inside the engine denies; the context holds only what a server put there.

mod actions;
mod decide;
mod engine;
mod model;
#[cfg(test)]
mod oracle;
mod world;

pub use actions::{ACTIONS, Action, Role, RoleError, action};
pub use decide::{Decision, Question, decide, missing_for_grant, visible};
pub use engine::{AuthenticatedBy, Context, PLATFORM_POLICIES, PolicyRef, SCHEMA};
pub use model::{
    Binding, Group, Node, Organisation, Principal, PrincipalKind, Project, ResourceRef, Subject,
};
pub use world::{GraphError, MAX_GROUP_DEPTH, MAX_GROUPS_OF_ONE, World};
