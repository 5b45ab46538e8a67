//! Users, roles and what they permit, as etcd's auth store has them: replicated state, pure.
//!
//! What it deliberately does not know: passwords (it keeps hashes that somebody else makes and compares), tokens
//! (whoever applies [`AuthCommand::Authenticate`] hands them out), certificates, and the fixed rights of Hearth's own
//! services, which do not pass through here ([`By::System`]).
//!
//! Entry points: [`Auth`] answers questions; [`crate::Store::apply_by`] changes it and guards every other command.
//!
//! Invariants:
//! 1. the revision is 1 in the beginning and grows by one with each change, but for switching auth on, as in etcd;
//! 2. a permission is only ever a range of keys: what asks for a range must lie in the permitted ranges as a whole;
//! 3. what was checked under an older revision is refused when it is applied: nothing slips in between.

mod manage;
mod permit;
mod ranges;
mod state;

pub use manage::{AuthChange, AuthCommand};
pub use permit::By;
pub use ranges::RangeSet;
pub use state::{Access, Auth, Permission, ROOT, Role, User};
