//! The quota on what a member stores: who is over it raises an alarm, and lowers it again by itself.
//!
//! ```text
//!            stored > quota                    stored < quota - margin, by deletions and a compaction
//!   quiet ──────────────────> NOSPACE raised ─────────────────────────────────────────────────────> quiet
//! ```
//! The bytes counted are logical: keys and values of changes that are not reclaimed yet. What the engine's files take
//! on the disk, and when it tidies them, plays no part, so nothing has to be defragmented.

use std::time::Duration;

use chainfire_client::wire::etcdserverpb::{AlarmRequest, alarm_request::AlarmAction};
use chainfire_core::{Alarm, AlarmKind, auth::By};
use tokio::time::sleep;

use crate::{convert, members::table::LEVEL, node::Node, record::LogBody};

/// How often the count is looked at.
const PERIOD: Duration = Duration::from_millis(500);
/// How much below the quota the count must be before the alarm goes: this part of the quota.
const MARGIN: u64 = 64;

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Raise,
    Lower,
}

fn change(stored: u64, quota: u64, raised: bool) -> Option<Change> {
    if stored > quota && !raised {
        Some(Change::Raise)
    } else if raised && stored <= quota - quota / MARGIN {
        Some(Change::Lower)
    } else {
        None
    }
}

/// The request that switches an alarm on or off.
pub(crate) fn alarm_request(action: AlarmAction, alarm: Alarm) -> LogBody {
    let member = convert::alarm(alarm);
    LogBody::Alarm(AlarmRequest {
        action: action.into(),
        member_id: member.member_id,
        alarm: member.alarm,
    })
}

/// Watches the count for ever.
pub(crate) async fn run(node: &Node) {
    let quota = node.config.quota_bytes;
    let alarm = Alarm {
        kind: AlarmKind::NoSpace,
        member: node.id,
    };
    loop {
        let stored = node.shared.live_bytes();
        let raised = node.shared.store().alarms().is_on(alarm);
        let action = match change(stored, quota, raised) {
            None => None,
            Some(Change::Raise) => Some(AlarmAction::Activate),
            Some(Change::Lower) => Some(AlarmAction::Deactivate),
        };
        // An earlier release does not know the entry, and would stop.
        if let Some(action) = action.filter(|_| node.shared.members().level() >= LEVEL) {
            match node.propose(&By::System, alarm_request(action, alarm)).await {
                Ok(_) if action == AlarmAction::Activate => {
                    tracing::error!(
                        stored,
                        quota,
                        "the quota is used up: puts are refused until keys are deleted and history is compacted"
                    );
                }
                Ok(_) => tracing::info!(stored, quota, "below the quota again: puts are accepted"),
                Err(error) => tracing::warn!(%error, "the alarm about the quota could not be changed yet"),
            }
        }
        sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alarm_is_raised_above_the_quota_and_lowered_clearly_below_it() {
        let quota = 6400;
        assert_eq!(change(6400, quota, false), None);
        assert_eq!(change(6401, quota, false), Some(Change::Raise));
        assert_eq!(change(6401, quota, true), None);
        assert_eq!(change(6301, quota, true), None, "not at the first byte");
        assert_eq!(change(6300, quota, true), Some(Change::Lower));
        assert_eq!(change(0, 0, true), Some(Change::Lower), "a quota of nothing");
    }
}
