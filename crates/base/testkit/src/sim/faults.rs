//! What goes wrong, counted by kind.

use std::collections::BTreeMap;

/// Every kind of fault and of administrative act that a run must contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A message was lost.
    MessageLost,
    /// A message came twice.
    MessageDoubled,
    /// A message took long enough to outlive a leader.
    MessageLate,
    /// A message overtook an earlier one of its link.
    MessageReordered,
    /// One member was cut off both ways.
    PartitionIsolate,
    /// One direction of some links was cut.
    PartitionOneWay,
    /// The members were cut into two parts.
    PartitionSplit,
    /// A process was killed; its page cache survived.
    ProcessKilled,
    /// A member's power was cut.
    PowerCut,
    /// All members' power was cut at once.
    PowerCutAll,
    /// Writes that were not synced were lost.
    WritesLost,
    /// A write was torn in two.
    WriteTorn,
    /// State machine writes that were not synced were lost.
    StateLost,
    /// A disk was full.
    DiskFull,
    /// A sync failed.
    SyncFailed,
    /// Syncs were slow.
    SyncSlow,
    /// A bit of a log file turned round.
    BitFlipped,
    /// A damaged log was refused.
    DamageDetected,
    /// A member stood still for a while and then went on.
    Paused,
    /// A member's clock ran faster or slower than the others'.
    ClockSkewed,
    /// Leadership was handed over on request.
    LeaderTransferred,
    /// A learner was added.
    LearnerAdded,
    /// A learner became a voter.
    LearnerPromoted,
    /// A member was removed.
    MemberRemoved,
    /// A joint change of several members at once was made.
    JointChange,
    /// A snapshot from another member was installed.
    SnapshotInstalled,
    /// Old log entries were dropped.
    LogCompacted,
    /// A request went to a follower and was forwarded.
    ProposalForwarded,
    /// An operation ended without a known outcome.
    OutcomeUnknown,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Fault; 29] = [
        Fault::MessageLost,
        Fault::MessageDoubled,
        Fault::MessageLate,
        Fault::MessageReordered,
        Fault::PartitionIsolate,
        Fault::PartitionOneWay,
        Fault::PartitionSplit,
        Fault::ProcessKilled,
        Fault::PowerCut,
        Fault::PowerCutAll,
        Fault::WritesLost,
        Fault::WriteTorn,
        Fault::StateLost,
        Fault::DiskFull,
        Fault::SyncFailed,
        Fault::SyncSlow,
        Fault::BitFlipped,
        Fault::DamageDetected,
        Fault::Paused,
        Fault::ClockSkewed,
        Fault::LeaderTransferred,
        Fault::LearnerAdded,
        Fault::LearnerPromoted,
        Fault::MemberRemoved,
        Fault::JointChange,
        Fault::SnapshotInstalled,
        Fault::LogCompacted,
        Fault::ProposalForwarded,
        Fault::OutcomeUnknown,
    ];
}

/// Counts of faults, and of what a service wants to have happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    counts: BTreeMap<Fault, u64>,
    own: BTreeMap<&'static str, u64>,
}

impl Faults {
    /// Counts.
    pub fn add(&mut self, fault: Fault, count: u64) {
        if count > 0 {
            *self.counts.entry(fault).or_default() += count;
        }
    }

    /// Adds another run's counts.
    pub fn merge(&mut self, other: &Faults) {
        for (fault, count) in &other.counts {
            self.add(*fault, *count);
        }
        for (kind, count) in &other.own {
            self.note(kind, *count);
        }
    }

    /// Counts something of the service's own.
    pub fn note(&mut self, kind: &'static str, count: u64) {
        if count > 0 {
            *self.own.entry(kind).or_default() += count;
        }
    }

    /// How often something of the service's own happened.
    pub fn noted(&self, kind: &str) -> u64 {
        self.own.get(kind).copied().unwrap_or(0)
    }

    /// How often `fault` happened.
    pub fn count(&self, fault: Fault) -> u64 {
        self.counts.get(&fault).copied().unwrap_or(0)
    }

    /// Kinds that never happened.
    pub fn missing(&self) -> Vec<Fault> {
        Fault::ALL.into_iter().filter(|f| self.count(*f) == 0).collect()
    }
}
