//! The guard's clock: it goes on while the guard, or the machine, sleeps.

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since the boot of the machine.
pub(crate) fn now_ms() -> u64 {
    // The clock exists in every kernel that this can run on. Without it, time would stand at its end: no guest lives.
    let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME) else {
        return u64::MAX;
    };
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    seconds * 1000 + u64::try_from(now.tv_nsec()).unwrap_or(0) / 1_000_000
}
