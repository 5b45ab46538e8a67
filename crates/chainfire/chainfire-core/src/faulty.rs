//! Deliberate bugs that prove the simulator's checkers (feature `planted-bugs`, in no shipped binary). Unlike those of
//! [`crate::planted`], which hold for a process, each is planted into one store or one stream: many clusters are
//! simulated at once.

/// A bug to plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlantedBug {
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
    /// For the server: leases that ran out by an old leader's clock end in a later term too.
    OldLeadersClock,
    /// For the server: the applied index is not stored with the effects.
    AppliedIndexApart,
    /// A compaction drops the newest version of a key that lives.
    CompactionEatsKey,
    /// Conditions of nested transactions are judged after the first write.
    LateCompares,
}
