//! Bugs on purpose: a test switches one on and must find it. Without the feature `planted-bugs`, which only test builds
//! have, nothing of this is compiled and `is` is a constant.

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// A range sorted by another target than the key, without an order, descends.
    SortDescends = 1,
    /// The count of a range ends at its limit.
    CountLimited,
    /// A deletion of nothing takes a revision.
    EmptyDeleteCounts,
    /// A value is found equal to that of a missing key.
    MissingValueHolds,
    /// A range in a transaction does not see the writes before it.
    ReadsPast,
    /// A key that is put without its lease stays on it.
    StaysAttached,
    /// Compaction takes the version that its revision shows.
    CompactsTooMuch,
    /// A watcher is not told of deletions.
    DeletionUntold,
}

/// All of them.
pub const ALL: [Bug; 8] = [
    Bug::SortDescends,
    Bug::CountLimited,
    Bug::EmptyDeleteCounts,
    Bug::MissingValueHolds,
    Bug::ReadsPast,
    Bug::StaysAttached,
    Bug::CompactsTooMuch,
    Bug::DeletionUntold,
];

impl Bug {
    /// Its name, as [`plant`] takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Bug::SortDescends => "sort-descends",
            Bug::CountLimited => "count-limited",
            Bug::EmptyDeleteCounts => "empty-delete-counts",
            Bug::MissingValueHolds => "missing-value-holds",
            Bug::ReadsPast => "reads-past",
            Bug::StaysAttached => "stays-attached",
            Bug::CompactsTooMuch => "compacts-too-much",
            Bug::DeletionUntold => "deletion-untold",
        }
    }
}

#[cfg(feature = "planted-bugs")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Switches a bug on for the rest of the process; false when there is none of this name.
#[cfg(feature = "planted-bugs")]
pub fn plant(name: &str) -> bool {
    let bug = ALL.into_iter().find(|bug| bug.name() == name);
    if let Some(bug) = bug {
        PLANTED.store(bug as u8, std::sync::atomic::Ordering::Relaxed);
    }
    bug.is_some()
}

/// Whether this bug is switched on.
#[cfg(feature = "planted-bugs")]
pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug as u8
}

/// Whether this bug is switched on.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) const fn is(_bug: Bug) -> bool {
    false
}
