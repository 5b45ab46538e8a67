//! Forgetting old revisions by itself: without it, the store would grow with every write for ever.
//!
//! The leader remembers which revision was newest at each step and compacts to the one of [`RETAIN`] ago. A new leader
//! begins to remember anew, so history is kept for at least that long.

use std::{collections::VecDeque, time::Duration};

use chainfire_client::wire::etcdserverpb::CompactionRequest;
use chainfire_core::{OpError, auth::By};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{node::Node, record::LogBody};

/// How long revisions stay readable at least.
const RETAIN: Duration = Duration::from_secs(3600);
/// How often the newest revision is noted.
const STEP: Duration = Duration::from_secs(300);

/// What was newest when.
#[derive(Debug, Default)]
struct Notes(VecDeque<(Instant, i64)>);

impl Notes {
    /// Notes the newest revision; the revision before which everything is old enough to forget.
    fn note(&mut self, now: Instant, revision: i64) -> Option<i64> {
        self.0.push_back((now, revision));
        let mut old = None;
        while let Some((at, revision)) = self.0.front().copied()
            && now.duration_since(at) >= RETAIN
        {
            old = Some(revision);
            self.0.pop_front();
        }
        old
    }
}

/// Compacts whenever this member leads; never returns.
pub(crate) async fn run(node: &Node) {
    let mut notes = Notes::default();
    let mut steps = interval(STEP);
    steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = steps.tick().await;
        if !node.leads() {
            notes = Notes::default();
            continue;
        }
        let (newest, compacted) = {
            let store = node.shared.store();
            (store.revision(), store.compacted())
        };
        let Some(revision) = notes.note(now, newest).filter(|revision| *revision > compacted) else {
            continue;
        };
        let command = LogBody::Compact(CompactionRequest {
            revision,
            physical: false,
        });
        match node.propose(&By::System, command).await {
            Ok(_) => tracing::info!(revision, "forgot old history"),
            // Somebody else compacted further meanwhile.
            Err(OpError::Compacted) => {}
            Err(error) => tracing::warn!(%error, revision, "old history could not be forgotten yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_kept_for_the_whole_time_and_no_longer() {
        let mut notes = Notes::default();
        let start = Instant::now();
        for step in 0..12 {
            assert_eq!(
                notes.note(start + STEP * step, i64::from(step) * 10),
                None,
                "step {step}"
            );
        }
        assert_eq!(notes.note(start + STEP * 12, 120), Some(0));
        assert_eq!(notes.note(start + STEP * 13, 130), Some(10));
        // After a stall several notes are old at once: the newest of them counts.
        assert_eq!(notes.note(start + STEP * 20, 200), Some(80));
    }
}
