//! For how long this member has had no leader, as it tells whoever asks for its status.
//!
//! Who knows that of a majority knows that nobody has had an answer of the store in that time. Each change of what is
//! known of the leader begins the time anew: a leader that came and went between two looks must not be missed.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::node::Node;

/// Name of the time, in milliseconds, in the metadata of a status.
pub(crate) const METADATA: &str = "hearth-leaderless-ms";

/// Since when; none: there is one.
#[derive(Debug, Default)]
pub(crate) struct Leaderless(Mutex<Option<Instant>>);

impl Leaderless {
    /// For how long; 0 as long as there is a leader.
    pub(crate) fn for_ms(&self) -> u64 {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(0, |since| {
            u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
        })
    }

    fn set(&self, leaderless: bool) {
        let since = leaderless.then(Instant::now);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

/// Follows the leader until the member stops.
pub(crate) async fn follow(node: &Node) {
    let mut leader = node.leader.clone();
    let follow = async {
        loop {
            let leaderless = leader.borrow_and_update().leader.is_none();
            node.leaderless.set(leaderless);
            if leader.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = node.tasks.stopping() => {}
    }
}
