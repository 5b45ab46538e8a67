//! How long log syncs take: the latest ones, and all of them in classes.

use std::collections::VecDeque;
use std::time::Duration;

/// Sync durations that are remembered one by one.
const KEPT: usize = 128;
/// Upper bounds of the classes, microseconds; a last class without a bound follows.
pub const SYNC_CLASSES_US: [u64; 17] = [
    125, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 512_000, 1_024_000,
    2_048_000, 4_096_000, 8_192_000,
];

/// The durations since the start.
#[derive(Debug, Default)]
pub(crate) struct SyncTimes {
    pub(crate) count: u64,
    pub(crate) total: Duration,
    /// The newest last.
    pub(crate) latest: VecDeque<Duration>,
    classes: [u64; SYNC_CLASSES_US.len() + 1],
}

impl SyncTimes {
    pub(crate) fn note(&mut self, took: Duration) {
        if self.latest.len() == KEPT {
            self.latest.pop_front();
        }
        self.latest.push_back(took);
        self.count += 1;
        self.total += took;
        let class = SYNC_CLASSES_US.partition_point(|bound| u128::from(*bound) < took.as_micros());
        if let Some(class) = self.classes.get_mut(class) {
            *class += 1;
        }
    }

    /// How many there were in each class.
    pub(crate) fn classes(&self) -> Vec<u64> {
        self.classes.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_falls_into_one_class() {
        let mut times = SyncTimes::default();
        for us in [0, 125, 126, 8_192_000, 8_192_001, u64::from(u32::MAX)] {
            times.note(Duration::from_micros(us));
        }
        let classes = times.classes();
        assert_eq!(classes.first(), Some(&2));
        assert_eq!(classes.get(1), Some(&1));
        assert_eq!(classes.get(SYNC_CLASSES_US.len() - 1), Some(&1));
        assert_eq!(classes.last(), Some(&2));
        assert_eq!((times.count, classes.iter().sum::<u64>()), (6, 6));
        (0..2 * KEPT).for_each(|_| times.note(Duration::ZERO));
        assert_eq!(times.latest.len(), KEPT);
    }
}
