//! Keeps the guard in memory: a machine that runs out of it must still be able to stop its guests.

use nix::libc::{MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Least likely to be killed when memory runs out.
const OOM_SCORE: &str = "-1000";

/// Locks the guard's memory where that is allowed, and says what came of it.
pub(crate) fn lock() -> &'static str {
    // Not allowed to everybody; then the system's default stays.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    // With a limit, an allocation beyond it would fail later: worse than a page that was swapped out.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let unlimited = getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == RLIM_INFINITY);
    if unlimited && lock_what_is_used() {
        "locked"
    } else {
        "not locked (needs CAP_IPC_LOCK or no limit of locked memory)"
    }
}

/// Only what is in use: the program is large, what the guard uses of it is not.
#[expect(
    unsafe_code,
    reason = "the system call has no safe form without another feature of nix"
)]
fn lock_what_is_used() -> bool {
    // SAFETY: the call takes no pointer and changes no memory, only where it may be.
    unsafe { mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0 }
}
