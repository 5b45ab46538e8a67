//! A leader whose disk has become slow hands over by itself: every write of the cluster waits for its own sync or for
//! its attention, and a follower with a good disk does better. The decision is pure; the shell asks the followers.

use std::time::Duration;

use raft_host::NodeId;

/// Latest syncs that are looked at.
const SYNCS: usize = 32;
/// Slower than this, at the median, is slow.
const SLOW: Duration = Duration::from_millis(250);
/// And so many times slower than the follower's slowest of a hundred.
const TIMES: u32 = 4;
/// Entries that the follower may lack.
const MAX_LAG: u64 = 10_000;

/// A follower that answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Follower {
    pub(crate) id: NodeId,
    pub(crate) voter: bool,
    pub(crate) matched: u64,
    /// The slowest of a hundred of its latest syncs.
    pub(crate) p99: Duration,
}

/// The value below which `percent` of the durations lie; zero without any.
pub(crate) fn percentile(durations: &[Duration], percent: usize) -> Duration {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or_default()
}

/// The median of the latest syncs, when there are enough of them and it is slow.
pub(crate) fn slow(own: &[Duration]) -> Option<Duration> {
    let latest = own.len().checked_sub(SYNCS).and_then(|from| own.get(from..))?;
    let median = percentile(latest, 50);
    (median > SLOW).then_some(median)
}

/// To whom the leader of a log of `last` entries should hand over, if to anybody.
pub(crate) fn successor(own: &[Duration], last: u64, followers: &[Follower]) -> Option<Follower> {
    let median = slow(own)?;
    followers
        .iter()
        .filter(|follower| follower.voter && follower.matched.saturating_add(MAX_LAG) >= last)
        .filter(|follower| follower.p99.saturating_mul(TIMES) < median)
        .max_by_key(|follower| (follower.matched, follower.id))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn follower(id: NodeId, p99_ms: u64, matched: u64) -> Follower {
        Follower {
            id,
            voter: true,
            matched,
            p99: ms(p99_ms),
        }
    }

    #[test]
    fn only_a_slow_disk_gives_way_and_only_to_a_better_one() {
        let good = [follower(2, 10, 100), follower(3, 12, 90)];
        let to = |own: &[Duration], followers: &[Follower]| successor(own, 100, followers).map(|f| f.id);
        let slow = vec![ms(300); 32];
        assert_eq!(to(&slow, &good), Some(2), "the one with most of the log");
        assert_eq!(to(&[ms(300); 31], &good), None, "too few syncs to judge");
        assert_eq!(to(&[ms(250); 32], &good), None, "not slow");
        let mut once = vec![ms(2); 40];
        once.extend([ms(5_000); 10]);
        assert_eq!(
            to(&once, &good),
            None,
            "ten slow ones of the latest 32 are a hiccup"
        );
        let mut now = vec![ms(2); 96];
        now.extend([ms(300); 32]);
        assert_eq!(to(&now, &good), Some(2), "old good ones do not count");
        assert_eq!(to(&slow, &[follower(2, 100, 100)]), None, "hardly better");
        assert_eq!(to(&slow, &[]), None);
        let learner = Follower {
            voter: false,
            ..follower(2, 1, 100)
        };
        assert_eq!(to(&slow, &[learner]), None);
        assert_eq!(successor(&slow, 20_000, &good), None, "they lack too much");
    }

    #[test]
    fn percentiles() {
        let hundred: Vec<Duration> = (1..=100).rev().map(ms).collect();
        assert_eq!(percentile(&hundred, 50), ms(50));
        assert_eq!(percentile(&hundred, 99), ms(99));
        assert_eq!(percentile(&[ms(7)], 99), ms(7));
        assert_eq!(percentile(&[], 99), ms(0));
    }
}
