//! Bugs to plant, each in the shell around a state machine: what it is told, or what is made of its answer.

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The guard counts from the answer to a renewal, not from its sending.
    CountsFromAnswer,
    /// One member without a leader is taken for a majority.
    OneMemberIsEnough,
    /// Members that have only just lost their leader are taken for those that have had none for long.
    AnyAbsenceIsEnough,
    /// A member that does not answer is taken for one whose machine refuses.
    SilenceIsRefusal,
    /// A store without quorum is taken for a partition.
    QuorumLossIsPartition,
    /// Once the store has had no leader, the guard does not count any more.
    StopsCounting,
    /// The guard's clock stands while the guard is stopped.
    ClockStands,
    /// Movable guests are only paused.
    NeverKills,
    /// A guard that was started again begins to count anew.
    ForgetsAtRestart,
    /// Guests on local disks are killed too.
    KillsLocal,
    /// The control plane looks at the margin only, not at how long the store has been steady.
    Unsteady,
    /// Guests on local disks are moved.
    MovesLocal,
    /// The epoch is not raised.
    SameEpoch,
    /// The opener does not look at the lock.
    OpensWithoutLock,
    /// The agent starts movable guests whether or not the lease is held.
    StartsWithoutLease,
    /// The agent starts what it was told to start before the lease was lost.
    StartsUntold,
}

impl Bug {
    /// All of them, each with the number of seeds within which it must be found.
    pub const ALL: [(Bug, u64); 16] = [
        (Bug::CountsFromAnswer, 400),
        (Bug::OneMemberIsEnough, 400),
        (Bug::AnyAbsenceIsEnough, 1000),
        (Bug::SilenceIsRefusal, 400),
        (Bug::QuorumLossIsPartition, 50),
        (Bug::StopsCounting, 400),
        (Bug::ClockStands, 400),
        (Bug::NeverKills, 50),
        (Bug::ForgetsAtRestart, 800),
        (Bug::KillsLocal, 50),
        (Bug::Unsteady, 1000),
        (Bug::MovesLocal, 50),
        (Bug::SameEpoch, 100),
        (Bug::OpensWithoutLock, 400),
        (Bug::StartsWithoutLease, 400),
        (Bug::StartsUntold, 1500),
    ];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Bug::CountsFromAnswer => "counts-from-answer",
            Bug::OneMemberIsEnough => "one-member-is-enough",
            Bug::AnyAbsenceIsEnough => "any-absence-is-enough",
            Bug::SilenceIsRefusal => "silence-is-refusal",
            Bug::QuorumLossIsPartition => "quorum-loss-is-partition",
            Bug::StopsCounting => "stops-counting",
            Bug::ClockStands => "clock-stands",
            Bug::NeverKills => "never-kills",
            Bug::ForgetsAtRestart => "forgets-at-restart",
            Bug::KillsLocal => "kills-local",
            Bug::Unsteady => "unsteady",
            Bug::MovesLocal => "moves-local",
            Bug::SameEpoch => "same-epoch",
            Bug::OpensWithoutLock => "opens-without-lock",
            Bug::StartsWithoutLease => "starts-without-lease",
            Bug::StartsUntold => "starts-untold",
        }
    }
}
