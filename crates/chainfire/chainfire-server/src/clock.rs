//! The clock of lease timers: it never goes back, and the simulator sets it.

use std::time::Instant;

/// Milliseconds since some moment of this process.
#[derive(Debug, Clone)]
pub(crate) enum Clock {
    /// The machine's monotonic clock.
    Real(Instant),
    /// As the simulator sets it.
    #[cfg(any(test, feature = "simulation"))]
    Simulated(std::sync::Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    /// The machine's, from now on.
    pub(crate) fn start() -> Clock {
        Clock::Real(Instant::now())
    }

    pub(crate) fn now_ms(&self) -> u64 {
        match self {
            Clock::Real(start) => u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            #[cfg(any(test, feature = "simulation"))]
            Clock::Simulated(now) => now.load(std::sync::atomic::Ordering::Relaxed),
        }
    }
}
