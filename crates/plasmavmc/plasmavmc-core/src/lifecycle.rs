//! The life of a VM on its node, as the node's reports tell it.
//!
//! ```text
//!   placement (epoch + 1)
//!        v
//!    Scheduled ───> Preparing ───> Starting ───> Running
//!                    ^  ^  │          │  ^         │
//!                    │  │  v          v  │         v
//!                    │  └─ Failed <───┴──┼──── Stopping ───> Stopped
//!                    │                   │                      │
//!                    └───────────────────┴──────────────────────┘ powered on again
//!
//!    every phase ───> Gone: nothing of it is left on the node; the epoch has ended
//! ```
//!
//! Reports are level-triggered: a node says what is, not what happened, and steps in between may never be seen. So
//! every phase may follow every other, but for two: nothing follows `Gone` within an epoch, and no node can report
//! `Scheduled`, which means that no node has reported. Both are [`IllegalTransition`].
//!
//! `Gone` frees claims only when deletion is desired. A VM that is gone although it is wanted is shown as failed and
//! keeps its name and address until somebody deletes it. A node that does not answer frees nothing, ever.

use serde::{Deserialize, Serialize};

/// What a user wants of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// It runs.
    Running,
    /// It is off; its disk is kept.
    Stopped,
    /// Nothing of it is left.
    Deleted,
}

/// What a VM is doing on its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Placed; the node has not reported anything yet.
    #[default]
    Scheduled,
    /// Image, disk and network are being made.
    Preparing,
    /// The guest is being started.
    Starting,
    /// The guest runs.
    Running,
    /// The guest is being stopped.
    Stopping,
    /// The guest is off.
    Stopped,
    /// It could not be done; the node tries again.
    Failed,
    /// Nothing is left.
    Gone,
}

/// What the control plane holds of a VM when a report arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// What is wanted.
    pub desired: Desired,
    /// The current incarnation.
    pub epoch: u64,
    /// The current version of what is wanted.
    pub generation: u64,
    /// The last phase accepted in this epoch.
    pub phase: Phase,
    /// Which run of the agent made the last report accepted in this epoch; empty: none.
    pub reporter: String,
    /// The last report's sequence number.
    pub seq: u64,
}

/// A node's report about one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The incarnation it speaks of.
    pub epoch: u64,
    /// The version of what is wanted that the node acts on.
    pub generation: u64,
    /// Which run of the agent says it.
    pub reporter: String,
    /// Rises with every report of one run.
    pub seq: u64,
    /// What it is doing.
    pub phase: Phase,
}

/// A phase that cannot follow another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a VM that is {from:?} cannot become {to:?} in the same epoch")]
pub struct IllegalTransition {
    /// The last phase accepted.
    pub from: Phase,
    /// The phase reported.
    pub to: Phase,
}

/// Why a report changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It speaks of another incarnation.
    #[error("the report is of epoch {reported}, the VM is in epoch {current}")]
    Epoch {
        /// The epoch now.
        current: u64,
        /// The epoch in the report.
        reported: u64,
    },
    /// It claims to act on something that was never wanted.
    #[error("the report is of generation {reported}, the VM is at {current}")]
    Generation {
        /// The generation now.
        current: u64,
        /// The generation in the report.
        reported: u64,
    },
    /// A later one of the same run has been accepted.
    #[error("the report {reported} is older than {accepted}, which was accepted")]
    Old {
        /// Number of the last one accepted.
        accepted: u64,
        /// Number of this one.
        reported: u64,
    },
    /// It cannot be.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
}

/// What happens to a VM's published name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publication {
    /// It stands.
    Put,
    /// It goes.
    Delete,
}

/// What accepting a report means; all of it is one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effects {
    /// What happens to the published name.
    pub publication: Publication,
    /// Claim, address, name and all records are freed.
    pub release: bool,
}

/// What is left to do for a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// What is wanted is so.
    Settled,
    /// The node has to act.
    NodeActs,
    /// The control plane has to free everything.
    Release,
    /// It is gone from its node although it is wanted: a person has to decide.
    Lost,
}

/// What people see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// As the node reports.
    Phase(Phase),
    /// Being deleted.
    Deleting,
    /// Gone although wanted.
    Lost,
    /// The node does not answer.
    Unknown,
}

impl Phase {
    /// Checks that `next` can follow.
    ///
    /// # Errors
    /// [`IllegalTransition`] after `Gone` and to `Scheduled`.
    pub const fn follow(self, next: Self) -> Result<Self, IllegalTransition> {
        match (self, next) {
            (Self::Gone, Self::Gone) => Ok(next),
            (Self::Gone, _) | (_, Self::Scheduled) => Err(IllegalTransition { from: self, to: next }),
            _ => Ok(next),
        }
    }
}

/// Judges a report.
///
/// # Errors
/// [`Refused`]: the report must not change anything.
pub fn accept(vm: &Tracked, report: &Report) -> Result<Effects, Refused> {
    if report.epoch != vm.epoch {
        return Err(Refused::Epoch {
            current: vm.epoch,
            reported: report.epoch,
        });
    }
    if report.generation > vm.generation {
        return Err(Refused::Generation {
            current: vm.generation,
            reported: report.generation,
        });
    }
    if report.reporter == vm.reporter && report.seq <= vm.seq {
        return Err(Refused::Old {
            accepted: vm.seq,
            reported: report.seq,
        });
    }
    let phase = vm.phase.follow(report.phase)?;
    // A VM that is being deleted must not be found under its name any more, whatever it still does.
    let answers = phase == Phase::Running && vm.desired != Desired::Deleted;
    let effects = Effects {
        publication: if answers {
            Publication::Put
        } else {
            Publication::Delete
        },
        release: next_step(vm.desired, phase) == Step::Release,
    };
    assert!(
        !effects.release || phase == Phase::Gone,
        "only what is gone is freed"
    );
    Ok(effects)
}

/// What is left to do.
#[must_use]
pub const fn next_step(desired: Desired, phase: Phase) -> Step {
    match (desired, phase) {
        (Desired::Deleted, Phase::Gone) => Step::Release,
        (_, Phase::Gone) => Step::Lost,
        (Desired::Running, Phase::Running) | (Desired::Stopped, Phase::Stopped) => Step::Settled,
        _ => Step::NodeActs,
    }
}

/// What people see of a VM. A node that does not answer hides everything but that deletion was asked for.
#[must_use]
pub const fn shown_state(desired: Desired, phase: Phase, node_alive: bool) -> Shown {
    match (desired, phase) {
        (Desired::Deleted, _) => Shown::Deleting,
        (_, Phase::Gone) => Shown::Lost,
        _ if !node_alive => Shown::Unknown,
        (_, phase) => Shown::Phase(phase),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PHASES: [Phase; 8] = [
        Phase::Scheduled,
        Phase::Preparing,
        Phase::Starting,
        Phase::Running,
        Phase::Stopping,
        Phase::Stopped,
        Phase::Failed,
        Phase::Gone,
    ];

    fn tracked(desired: Desired, phase: Phase) -> Tracked {
        Tracked {
            desired,
            epoch: 2,
            generation: 3,
            phase,
            reporter: "a".to_owned(),
            seq: 5,
        }
    }

    fn report(phase: Phase) -> Report {
        Report {
            epoch: 2,
            generation: 3,
            reporter: "a".to_owned(),
            seq: 6,
            phase,
        }
    }

    /// One row per phase before, one column per phase reported: what happens to the name (+ stands, - goes), `R` when
    /// everything is freed, `x` when the report is refused.
    fn table(desired: Desired) -> String {
        PHASES
            .iter()
            .map(|from| {
                let cells: String = PHASES
                    .iter()
                    .map(|to| match accept(&tracked(desired, *from), &report(*to)) {
                        Err(_) => 'x',
                        Ok(Effects { release: true, .. }) => 'R',
                        Ok(Effects {
                            publication: Publication::Put,
                            ..
                        }) => '+',
                        Ok(_) => '-',
                    })
                    .collect();
                format!("{cells} {from:?}\n")
            })
            .collect()
    }

    #[test]
    fn every_transition_is_decided() {
        expect_test::expect![[r#"
            x--+---- Scheduled
            x--+---- Preparing
            x--+---- Starting
            x--+---- Running
            x--+---- Stopping
            x--+---- Stopped
            x--+---- Failed
            xxxxxxx- Gone
        "#]]
        .assert_eq(&table(Desired::Running));
        expect_test::expect![[r#"
            x------R Scheduled
            x------R Preparing
            x------R Starting
            x------R Running
            x------R Stopping
            x------R Stopped
            x------R Failed
            xxxxxxxR Gone
        "#]]
        .assert_eq(&table(Desired::Deleted));
    }

    #[test]
    fn reports_of_other_epochs_and_old_ones_are_refused() {
        let vm = tracked(Desired::Deleted, Phase::Running);
        let gone = report(Phase::Gone);
        assert!(accept(&vm, &gone).unwrap().release);
        for epoch in [1, 3] {
            let other = Report {
                epoch,
                ..gone.clone()
            };
            assert_eq!(
                accept(&vm, &other),
                Err(Refused::Epoch {
                    current: 2,
                    reported: epoch
                })
            );
        }
        let old = Report {
            seq: 5,
            ..gone.clone()
        };
        assert!(matches!(accept(&vm, &old), Err(Refused::Old { .. })));
        let restarted = Report {
            seq: 1,
            reporter: "b".to_owned(),
            ..gone.clone()
        };
        assert!(accept(&vm, &restarted).is_ok());
        let future = Report {
            generation: 4,
            ..gone
        };
        assert!(matches!(accept(&vm, &future), Err(Refused::Generation { .. })));
    }

    proptest! {
        /// Nothing is freed unless it is wanted gone and reported gone in this epoch; a lost node shows as unknown and
        /// frees nothing.
        #[test]
        fn only_gone_in_the_epoch_frees(
            desired in prop::sample::select(vec![Desired::Running, Desired::Stopped, Desired::Deleted]),
            from in prop::sample::select(PHASES.to_vec()), to in prop::sample::select(PHASES.to_vec()),
            epoch in 0_u64..5, generation in 0_u64..6, seq in 0_u64..10,
        ) {
            let vm = tracked(desired, from);
            let report = Report { epoch, generation, reporter: "a".to_owned(), seq, phase: to };
            if let Ok(effects) = accept(&vm, &report) {
                prop_assert_eq!(epoch, vm.epoch);
                if effects.release {
                    prop_assert_eq!((desired, to), (Desired::Deleted, Phase::Gone));
                }
            }
            if desired != Desired::Deleted && from != Phase::Gone {
                prop_assert_eq!(shown_state(desired, from, false), Shown::Unknown);
            }
        }
    }
}
