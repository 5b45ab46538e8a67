//! Bugs that are planted to prove that the checkers find bugs.

use chainfire_core::faulty::PlantedBug as Core;
use testkit::sim::HostBug;

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// All reads of a member use one read-index context (etcd's issue 20418).
    ReusedReadContext,
    /// A linearizable read takes the member's state without asking the leader.
    StaleRead,
    /// A watcher that is behind misses what happens meanwhile.
    LostWatchEvent,
    /// A progress notification tells what is published, not what was told.
    ProgressOvertakes,
    /// A watcher that begins at a revision is told the one before too.
    DuplicateAfterResume,
    /// One revision comes in two responses to who takes no fragments.
    SplitRevision,
    /// The pair before an event is the one after it.
    PrevKvAfter,
    /// Leases that ran out by an old leader's clock end in a later term too.
    OldLeadersClock,
    /// A leader renews leases without making sure that it still leads.
    RenewalByDeposed,
    /// The applied index is not stored with the effects: entries are applied again after a crash.
    AppliedIndexApart,
    /// A compaction drops the newest version of a key that lives.
    CompactionEatsKey,
    /// Conditions of nested transactions are judged after the first write.
    LateCompares,
}

impl Bug {
    /// All of them, with the number of seeds within which the simulator must find each.
    pub const ALL: [(Bug, u64); 12] = [
        (Bug::ReusedReadContext, 60),
        (Bug::StaleRead, 20),
        (Bug::LostWatchEvent, 20),
        (Bug::ProgressOvertakes, 20),
        (Bug::DuplicateAfterResume, 20),
        (Bug::SplitRevision, 20),
        (Bug::PrevKvAfter, 20),
        (Bug::OldLeadersClock, 100),
        (Bug::RenewalByDeposed, 60),
        (Bug::AppliedIndexApart, 20),
        (Bug::CompactionEatsKey, 20),
        (Bug::LateCompares, 20),
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Bug::ReusedReadContext => "reused-read-context",
            Bug::StaleRead => "stale-read",
            Bug::LostWatchEvent => "lost-watch-event",
            Bug::ProgressOvertakes => "progress-overtakes",
            Bug::DuplicateAfterResume => "duplicate-after-resume",
            Bug::SplitRevision => "split-revision",
            Bug::PrevKvAfter => "prev-kv-after",
            Bug::OldLeadersClock => "old-leaders-clock",
            Bug::RenewalByDeposed => "renewal-by-deposed",
            Bug::AppliedIndexApart => "applied-index-apart",
            Bug::CompactionEatsKey => "compaction-eats-key",
            Bug::LateCompares => "late-compares",
        }
    }

    /// The bug called `name`.
    pub fn named(name: &str) -> Option<Bug> {
        let mut all = Bug::ALL.into_iter().map(|(bug, _)| bug);
        all.find(|bug| bug.name() == name)
    }

    /// What of it lies in the consensus below.
    pub(crate) fn host(self) -> Option<HostBug> {
        (self == Bug::ReusedReadContext).then_some(HostBug::ReusedReadContext)
    }

    /// What of it lies in watch streams.
    pub(crate) fn stream(self) -> Option<Core> {
        match self {
            Bug::LostWatchEvent => Some(Core::LostWatchEvent),
            Bug::ProgressOvertakes => Some(Core::ProgressOvertakes),
            Bug::DuplicateAfterResume => Some(Core::DuplicateAfterResume),
            Bug::SplitRevision => Some(Core::SplitRevision),
            Bug::PrevKvAfter => Some(Core::PrevKvAfter),
            _ => None,
        }
    }

    /// What of it lies in the replicated machine.
    pub(crate) fn machine(self) -> Option<Core> {
        match self {
            Bug::OldLeadersClock => Some(Core::OldLeadersClock),
            Bug::AppliedIndexApart => Some(Core::AppliedIndexApart),
            Bug::CompactionEatsKey => Some(Core::CompactionEatsKey),
            Bug::LateCompares => Some(Core::LateCompares),
            _ => None,
        }
    }
}
