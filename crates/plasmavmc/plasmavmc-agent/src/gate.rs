//! Whether a guest that may be restarted elsewhere may be started here: the node's guard must hold its lease, and the
//! control plane must have assigned the guest since it does.

use std::path::Path;

use nix::time::{ClockId, clock_gettime};
use plasmavmc_client::guard::{GuardState, read_state};
use plasmavmc_hypervisor::host_boot_id;

/// Why it may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Shut {
    #[error("this node has no guard (`guard_dir`), and the guest may be restarted elsewhere")]
    NoGuard,
    #[error("the node's guard does not hold its lease, and the guest may run elsewhere by now")]
    NoLease,
    #[error("the node's lease was lost meanwhile; waits for the control plane to assign the guest again")]
    NotAssignedSince,
}

/// Milliseconds since boot, suspended or not: the guard's clock.
pub(crate) fn boot_ms() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME) else {
        return u64::MAX;
    };
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec()).unwrap_or(0) / 1_000_000
}

/// Asks the guard's file. `assigned_ms`: when the control plane last assigned the guest.
pub(crate) fn ask(guard_dir: Option<&Path>, assigned_ms: Option<u64>) -> Result<(), Shut> {
    let state = read_state(guard_dir.ok_or(Shut::NoGuard)?).ok_or(Shut::NoLease)?;
    judge(&state, &host_boot_id(), boot_ms(), assigned_ms)
}

fn judge(state: &GuardState, boot_id: &str, now_ms: u64, assigned_ms: Option<u64>) -> Result<(), Shut> {
    let held = state.boot_id == boot_id && state.start_until_ms.is_some_and(|until| now_ms < until);
    if !held {
        return Err(Shut::NoLease);
    }
    match (state.held_since_ms, assigned_ms) {
        (Some(since), Some(assigned)) if assigned >= since => Ok(()),
        _ => Err(Shut::NotAssignedSince),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_open_while_the_lease_is_held_and_the_assignment_is_newer() {
        let state = GuardState {
            boot_id: "b".to_owned(),
            start_until_ms: Some(5000),
            held_since_ms: Some(1000),
            ..GuardState::default()
        };
        assert_eq!(judge(&state, "b", 4999, Some(1000)), Ok(()));
        assert_eq!(judge(&state, "b", 5000, Some(1000)), Err(Shut::NoLease));
        assert_eq!(judge(&state, "a", 4999, Some(1000)), Err(Shut::NoLease));
        assert_eq!(judge(&state, "b", 4999, Some(999)), Err(Shut::NotAssignedSince));
        assert_eq!(judge(&state, "b", 4999, None), Err(Shut::NotAssignedSince));
        assert_eq!(ask(None, Some(1)), Err(Shut::NoGuard));
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ask(Some(dir.path()), Some(1)), Err(Shut::NoLease));
    }
}
