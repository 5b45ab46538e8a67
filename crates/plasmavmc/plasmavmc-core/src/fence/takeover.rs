//! The control plane's look at one node's guard: whether the node is proved to be out of the way.
//!
//! ```text
//!   Held <──lease──> Gone(since) ──margin, and a steady store──> MayFence ──transaction──> Fenced
//!     ^                                                                                     │
//!     └───────────────────────────── the guard has taken the fence away ────────────────────┘
//! ```
//!
//! It lives in the holder of the election and starts from nothing with each term of that: whoever has not seen the
//! absence himself knows nothing about it.

use super::Times;

/// A guard's record in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardSeen {
    /// Revision of the record's last change.
    pub revision: i64,
    /// Whether it bears a fence.
    pub fenced: bool,
}

/// One linearizable look at the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// When the question was sent, on the clock of whoever looks.
    pub asked_ms: u64,
    /// When the answer was there.
    pub now_ms: u64,
    /// Whether the guard's lease stands.
    pub lease: bool,
    /// The guard's record; none: the node never had a guard.
    pub record: Option<GuardSeen>,
}

/// What is known about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No guard has ever run there: nothing can be proved.
    Unguarded,
    /// Its guard holds its lease.
    Held,
    /// The lease is gone, but not for long enough.
    Gone {
        /// What is left to wait, if nothing happens.
        left_ms: u64,
    },
    /// A fence may be written over this revision of the record.
    MayFence {
        /// To be compared.
        revision: i64,
    },
    /// It is fenced: its guests may be started elsewhere while the record is at this revision.
    Fenced {
        /// To be compared.
        revision: i64,
    },
}

/// What was seen of one node so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakeOver {
    times: Times,
    /// The absence of the lease: since when, and at which revision of the record.
    gone: Option<(u64, i64)>,
    /// Since when the store was seen without a gap.
    steady_ms: Option<u64>,
    /// When the last look was asked for.
    last_ms: Option<u64>,
}

impl TakeOver {
    /// Nothing seen.
    #[must_use]
    pub const fn new(times: Times) -> Self {
        Self {
            times,
            gone: None,
            steady_ms: None,
            last_ms: None,
        }
    }

    /// Takes a look into account.
    pub fn look(&mut self, look: &Look) -> Standing {
        let gap = self
            .last_ms
            .is_none_or(|last| look.now_ms.saturating_sub(last) > self.times.gap_ms);
        self.last_ms = Some(look.asked_ms);
        if gap || self.steady_ms.is_none() {
            self.gone = None;
            // From the answer on: the question may have waited for a leader.
            self.steady_ms = Some(look.now_ms);
        }
        let Some(record) = look.record else {
            self.gone = None;
            return Standing::Unguarded;
        };
        if look.lease {
            self.gone = None;
            return Standing::Held;
        }
        if record.fenced {
            return Standing::Fenced {
                revision: record.revision,
            };
        }
        let since = match self.gone {
            Some((since, revision)) if revision == record.revision => since,
            _ => look.now_ms,
        };
        self.gone = Some((since, record.revision));
        let steady_since = self.steady_ms.unwrap_or(look.now_ms);
        // Up to the question: the answer may be as old as that.
        let left = |since: u64, wanted: u64| (since + wanted).saturating_sub(look.asked_ms);
        let left_ms = left(since, self.times.margin_ms).max(left(steady_since, self.times.steady_ms));
        if left_ms > 0 {
            return Standing::Gone { left_ms };
        }
        Standing::MayFence {
            revision: record.revision,
        }
    }

    /// The store did not answer: what was seen so far was seen with a gap.
    pub fn missed(&mut self) {
        self.gone = None;
        self.steady_ms = None;
        self.last_ms = None;
    }
}

#[cfg(test)]
mod tests {
    use super::super::TIMES;
    use super::*;

    fn look(second: u64, lease: bool, revision: i64) -> Look {
        Look {
            asked_ms: second * 1000,
            now_ms: second * 1000,
            lease,
            record: Some(GuardSeen {
                revision,
                fenced: false,
            }),
        }
    }

    /// One letter a second: held, gone, may fence.
    fn run(looks: impl IntoIterator<Item = Look>) -> String {
        let mut seen = TakeOver::new(TIMES);
        let letter = |standing| match standing {
            Standing::Held => 'h',
            Standing::Gone { .. } => 'g',
            Standing::MayFence { .. } => 'F',
            Standing::Fenced { .. } => 'X',
            Standing::Unguarded => 'u',
        };
        looks.into_iter().map(|l| letter(seen.look(&l))).collect()
    }

    #[test]
    fn the_margin_counts_from_the_first_look_without_a_lease() {
        let text = run((0..33).map(|s| look(s, s < 25, 7)));
        assert_eq!(text, "hhhhhhhhhhhhhhhhhhhhhhhhhgggggFFF");
    }

    #[test]
    fn a_gap_makes_it_wait_for_a_steady_store() {
        let gap = run((0..60)
            .filter(|s| !(26..30).contains(s))
            .map(|s| look(s, false, 7)));
        assert_eq!(gap.find('F'), Some(20));
        assert_eq!(&gap[26..50], "ggggggggggggggggggggFFFF");
    }

    #[test]
    fn another_absence_is_counted_anew() {
        let text = run((0..40).map(|s| look(s, s < 22, if s < 25 { 7 } else { 8 })));
        assert_eq!(&text[22..32], "ggggggggFF");
    }

    #[test]
    fn a_fence_stands_and_a_node_without_a_guard_is_never_fenced() {
        let mut seen = TakeOver::new(TIMES);
        let mut look = look(0, false, 9);
        look.record = None;
        assert_eq!(seen.look(&look), Standing::Unguarded);
        look.record = Some(GuardSeen {
            revision: 9,
            fenced: true,
        });
        assert_eq!(seen.look(&look), Standing::Fenced { revision: 9 });
        look.lease = true;
        assert_eq!(seen.look(&look), Standing::Held, "never over a lease");
    }
}
