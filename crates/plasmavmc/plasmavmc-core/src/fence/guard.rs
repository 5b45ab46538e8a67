//! A node's guard: how long its movable guests may go on.
//!
//! ```text
//!             proof                        proof
//!   Run <──────────────> Pause ──11 s──> Kill ──proof, and nobody has fenced us──> Run
//!    │        8 s          │              ^
//!    └─────────────────────┴── fenced ────┘ leaves `Kill` only by a new lease over the fence, which may be asked for
//!                                           once no movable guest is left
//! ```
//!
//! It counts on the node's own clock, which must not stop while the process does (CLOCK_BOOTTIME).

use super::Times;

/// What a movable guest may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Run.
    Run,
    /// Stand still.
    Pause,
    /// Nothing: it must end.
    Kill,
}

/// What a guard hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardInput {
    /// The store confirmed a grant or a renewal.
    Held {
        /// When it was sent.
        sent_ms: u64,
    },
    /// The store says that the lease has ended.
    Gone,
    /// The guard's record bears a fence.
    Fenced,
}

/// What a member said when it was asked for its leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Said {
    /// Nothing, within the time of the round.
    #[default]
    Nothing,
    /// Its machine refused the connection: it does not run.
    Refused,
    /// It has one.
    Leader,
    /// It has had none for so long.
    NoLeader {
        /// By its own clock; since its start at most.
        for_ms: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lease {
    /// As far as we know.
    Held,
    /// The store has said that it ended, at this moment.
    Gone { heard_ms: u64 },
    /// Somebody else may have our guests.
    Fenced,
}

/// The state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    times: Times,
    lease: Lease,
    /// From when the time is counted. None: there never was a proof.
    basis_ms: Option<u64>,
    /// The last renewal alone, without the proofs of missing leaders.
    renewed_ms: Option<u64>,
    /// Since when the lease is held without a loss.
    held_since_ms: Option<u64>,
    /// For each member that refuses: the end of the first round in a row in which it did.
    refuses_since_ms: Vec<Option<u64>>,
    /// End of the last round.
    round_ms: Option<u64>,
}

impl Guard {
    /// A guard that counts from `basis_ms`, which an earlier process of the same boot has left (with `held_since_ms`);
    /// without it, from nothing, so that no movable guest may live.
    #[must_use]
    pub const fn new(times: Times, basis_ms: Option<u64>, held_since_ms: Option<u64>) -> Self {
        Self {
            times,
            lease: Lease::Held,
            basis_ms,
            renewed_ms: None,
            held_since_ms,
            refuses_since_ms: Vec::new(),
            round_ms: None,
        }
    }

    /// Takes note of something.
    pub fn hear(&mut self, input: GuardInput, now_ms: u64) {
        match input {
            GuardInput::Held { sent_ms } => {
                if self.lease != Lease::Held
                    || self.level(now_ms) == Level::Kill
                    || self.held_since_ms.is_none()
                {
                    self.held_since_ms = Some(now_ms);
                }
                self.lease = Lease::Held;
                self.renewed_ms = self.renewed_ms.max(Some(sent_ms.min(now_ms)));
                self.basis_ms = self.basis_ms.max(self.renewed_ms);
            }
            GuardInput::Gone => {
                if self.lease == Lease::Held {
                    self.lease = Lease::Gone { heard_ms: now_ms };
                }
            }
            GuardInput::Fenced => self.lease = Lease::Fenced,
        }
    }

    /// Takes note of a round of questions: when the first was sent, when the last answer was there or given up, and
    /// what each member said, all of them in the same order each time.
    pub fn hear_round(&mut self, began_ms: u64, ended_ms: u64, said: &[Said]) {
        let in_a_row = self
            .round_ms
            .is_some_and(|last| began_ms.saturating_sub(last) <= self.times.rounds_ms);
        self.round_ms = Some(ended_ms);
        if !in_a_row {
            self.refuses_since_ms.clear();
        }
        self.refuses_since_ms.resize(said.len(), None);
        // In all that time, up to the beginning of this round, nobody of the majority heard a leader.
        let wanted = self.times.leaderless_ms;
        let (mut spoken, mut refused) = (0, 0);
        for (said, since) in said.iter().zip(&mut self.refuses_since_ms) {
            match said {
                Said::Refused => {
                    let since = *since.get_or_insert(ended_ms);
                    refused += usize::from(began_ms.saturating_sub(since) >= wanted);
                    continue;
                }
                Said::NoLeader { for_ms } => {
                    spoken += usize::from(*for_ms >= wanted + ended_ms.saturating_sub(began_ms));
                }
                Said::Leader | Said::Nothing => {}
            }
            *since = None;
        }
        // What has been let go of does not come back by the absence of a leader.
        let holds = self.lease == Lease::Held && self.level(ended_ms) != Level::Kill;
        if holds && spoken > 0 && (spoken + refused) * 2 > said.len() {
            self.basis_ms = self.basis_ms.max(Some(began_ms));
        }
    }

    /// What movable guests may do now.
    #[must_use]
    pub fn level(&self, now_ms: u64) -> Level {
        let Some(basis) = self.basis_ms else {
            return Level::Kill;
        };
        let mut kill_at = basis.saturating_add(self.times.kill_ms);
        match self.lease {
            Lease::Held => {}
            Lease::Gone { heard_ms } => kill_at = kill_at.min(heard_ms.saturating_add(self.times.gone_ms)),
            Lease::Fenced => return Level::Kill,
        }
        if now_ms >= kill_at {
            Level::Kill
        } else if now_ms >= basis.saturating_add(self.times.pause_ms) || self.lease != Lease::Held {
            Level::Pause
        } else {
            Level::Run
        }
    }

    /// Until when a movable guest may be started, if the lease is held: a start takes a while, and must not be caught
    /// by the end of the lease.
    #[must_use]
    pub fn may_start_until_ms(&self) -> Option<u64> {
        let renewed = self.renewed_ms.filter(|_| self.lease == Lease::Held)?;
        Some(renewed.saturating_add(self.times.start_ms))
    }

    /// Since when the lease is held without a loss. Whoever was told to start a movable guest before that must be told
    /// again: it may have been given to another node meanwhile.
    #[must_use]
    pub const fn held_since_ms(&self) -> Option<u64> {
        self.held_since_ms
    }

    /// What the next process needs to count on: see [`Guard::new`].
    #[must_use]
    pub fn basis_ms(&self) -> Option<u64> {
        // A guard that dies fenced must not be followed by one that is not.
        self.basis_ms.filter(|_| self.lease == Lease::Held)
    }

    /// Whether a lease may be asked for over a fence (`fenced`) or over nothing: while a movable guest lives, a fence
    /// must stand.
    #[must_use]
    pub const fn may_acquire(&self, fenced: bool, movable_alive: usize) -> bool {
        !fenced || movable_alive == 0
    }

    /// Whether somebody has fenced this node.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.lease == Lease::Fenced
    }

    /// Time since the last proof; none: there was none.
    #[must_use]
    pub fn without_proof_ms(&self, now_ms: u64) -> Option<u64> {
        self.basis_ms.map(|basis| now_ms.saturating_sub(basis))
    }
}

#[cfg(test)]
mod tests {
    use super::super::TIMES;
    use super::*;

    fn held(at_ms: u64) -> Guard {
        let mut guard = Guard::new(TIMES, None, None);
        guard.hear(GuardInput::Held { sent_ms: at_ms }, at_ms + 10);
        guard
    }

    /// The levels at each second.
    fn levels(guard: &Guard) -> String {
        (0..16)
            .map(|second| match guard.level(second * 1000) {
                Level::Run => 'r',
                Level::Pause => 'p',
                Level::Kill => 'K',
            })
            .collect()
    }

    #[test]
    fn it_counts_from_the_sending_of_the_last_proof() {
        assert_eq!(levels(&Guard::new(TIMES, None, None)), "KKKKKKKKKKKKKKKK");
        let mut guard = held(0);
        assert_eq!(levels(&guard), "rrrrrrrrpppKKKKK");
        guard.hear(GuardInput::Held { sent_ms: 2000 }, 9000);
        assert_eq!(levels(&guard), "rrrrrrrrrrpppKKK");
        guard.hear(GuardInput::Held { sent_ms: 1000 }, 9100);
        assert_eq!(
            levels(&guard),
            "rrrrrrrrrrpppKKK",
            "a late answer takes nothing back"
        );
        assert_eq!(levels(&Guard::new(TIMES, Some(0), None)), "rrrrrrrrpppKKKKK");
    }

    #[test]
    fn a_lease_that_ended_early_leaves_a_second() {
        let mut guard = held(0);
        guard.hear(GuardInput::Gone, 3000);
        assert_eq!(guard.level(3999), Level::Pause);
        assert_eq!(guard.level(4000), Level::Kill);
        assert_eq!(guard.may_start_until_ms(), None);
        guard.hear(GuardInput::Held { sent_ms: 3100 }, 3200);
        assert_eq!(guard.level(4000), Level::Run, "nobody had fenced it");
    }

    #[test]
    fn a_fence_ends_everything_until_a_new_lease() {
        let mut guard = held(0);
        guard.hear(GuardInput::Fenced, 100);
        assert_eq!((guard.level(101), guard.basis_ms()), (Level::Kill, None));
        assert!(!guard.may_acquire(true, 1));
        assert!(guard.may_acquire(true, 0));
        guard.hear(GuardInput::Gone, 200);
        assert!(guard.is_fenced());
        assert_eq!(guard.held_since_ms(), Some(10));
        guard.hear(GuardInput::Held { sent_ms: 300 }, 310);
        assert_eq!(guard.level(320), Level::Run);
        assert_eq!(guard.held_since_ms(), Some(310));
        guard.hear(GuardInput::Held { sent_ms: 9000 }, 9100);
        assert_eq!(guard.held_since_ms(), Some(310), "late, but not lost");
    }

    const NONE: Said = Said::NoLeader { for_ms: 60_000 };
    const FRESH: Said = Said::NoLeader { for_ms: 2_200 };

    fn after(rounds: &[(u64, [Said; 3])]) -> String {
        let mut guard = held(0);
        for (began_ms, said) in rounds {
            guard.hear_round(*began_ms, began_ms + 50, said);
        }
        levels(&guard)
    }

    #[test]
    fn a_majority_without_a_leader_for_long_counts_as_a_renewal() {
        let renewed = "rrrrrrrrrrrrpppK";
        let not = "rrrrrrrrpppKKKKK";
        assert_eq!(after(&[(4000, [NONE, NONE, Said::Nothing])]), renewed);
        assert_eq!(
            after(&[(4000, [NONE, FRESH, Said::Nothing])]),
            not,
            "somebody may have had an answer"
        );
        assert_eq!(
            after(&[(4000, [NONE, Said::Nothing, Said::Nothing])]),
            not,
            "no majority"
        );
        assert_eq!(after(&[(4000, [NONE, Said::Leader, Said::Nothing])]), not);
        let mut guard = held(0);
        guard.hear_round(4000, 5000, &[NONE, NONE, Said::Nothing]);
        assert_eq!(
            guard.may_start_until_ms(),
            Some(5000),
            "but nothing is started by it"
        );
    }

    #[test]
    fn who_refuses_for_long_does_not_run() {
        let refused = [NONE, Said::Refused, Said::Refused];
        let rounds = |times: &[u64]| times.iter().map(|at| (*at, refused)).collect::<Vec<_>>();
        assert_eq!(
            after(&rounds(&[1600, 2700])),
            "rrrrrrrrpppKKKKK",
            "not long enough"
        );
        assert_eq!(after(&rounds(&[1600, 2700, 4000])), "rrrrrrrrrrrrpppK");
        assert_eq!(
            after(&rounds(&[1000, 4000])),
            "rrrrrrrrpppKKKKK",
            "it may have run meanwhile"
        );
        let mut wall = rounds(&[1600, 2700, 4000, 5000]);
        wall.iter_mut().for_each(|(_, said)| *said = [Said::Refused; 3]);
        assert_eq!(after(&wall), "rrrrrrrrpppKKKKK", "nobody has said anything");
    }

    #[test]
    fn what_is_lost_is_not_won_back_without_a_leader() {
        let mut guard = held(0);
        guard.hear_round(11_000, 11_100, &[NONE; 3]);
        assert_eq!(guard.level(12_500), Level::Kill);
        let mut guard = held(0);
        guard.hear(GuardInput::Gone, 100);
        guard.hear_round(200, 300, &[NONE; 3]);
        assert_eq!(guard.level(1500), Level::Kill);
    }
}
