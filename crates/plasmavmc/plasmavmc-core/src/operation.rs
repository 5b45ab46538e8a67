//! Operations: what became of something that a user asked of a VM.
//!
//! ```text
//!   asked for ──> Pending ──the node reports on it──> Running ──> Done
//!                    └────────────────┬──────────────────┘
//!                                     └──> Failed: superseded, lost, switched off, or not done in time
//! ```
//!
//! An operation is not a task that runs somewhere: it is a goal, compared with what is observed. Whoever sees an
//! observation can advance it, after any crash, and comes to the same verdict. A node that reports a failure tries
//! again, so that is trouble and not the end.

use serde::{Deserialize, Serialize};

use crate::lifecycle::{Desired, Phase};

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// A new VM.
    Create,
    /// To run.
    Start,
    /// To be off.
    Stop,
    /// To be gone.
    Delete,
    /// To stand still.
    Pause,
    /// To go on.
    Resume,
    /// To begin anew.
    Reset,
}

impl OperationKind {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Delete => "delete",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Reset => "reset",
        }
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// The node has not reported on it yet.
    Pending,
    /// The node acts.
    Running,
    /// It is so.
    Done,
    /// It will not be so by this operation.
    Failed,
}

impl OperationState {
    /// True when it has ended.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}

/// What has to be observed for it to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goal {
    /// The state of the VM.
    pub desired: Desired,
    /// Its CPUs stand still.
    pub paused: bool,
    /// Resets done.
    pub resets: u64,
    /// The version of what is wanted that a report has to speak of.
    pub generation: u64,
}

/// What was last observed in the VM's current epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight<'a> {
    /// The version of what is wanted that the node acts on.
    pub generation: u64,
    /// What the VM does.
    pub phase: Phase,
    /// Its CPUs stand still.
    pub paused: bool,
    /// Resets done.
    pub resets: u64,
    /// Why, in the node's words.
    pub reason: &'a str,
}

/// How an operation stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The node has not reported on it yet.
    Pending,
    /// It acts; what it says that it does, and what is in its way.
    Running(Phase, Option<String>),
    /// It is so.
    Done,
    /// It will not be so; why.
    Failed(String),
}

/// Compares a goal with what is observed.
#[must_use]
pub fn progress(goal: &Goal, sight: &Sight<'_>) -> Progress {
    if sight.generation < goal.generation {
        return Progress::Pending;
    }
    let why = |what: &str| match sight.reason {
        "" => what.to_owned(),
        reason => format!("{what}: {reason}"),
    };
    match (goal.desired, sight.phase) {
        (_, Phase::Scheduled) => Progress::Pending,
        (Desired::Deleted, phase) => Progress::Running(phase, trouble(sight)),
        (_, Phase::Gone) => Progress::Failed(why("its node has nothing of the VM any more")),
        (Desired::Running, Phase::Running) if sight.paused == goal.paused && sight.resets >= goal.resets => {
            Progress::Done
        }
        (Desired::Running, Phase::Stopped) => Progress::Failed(why("the VM is off again")),
        (Desired::Stopped, Phase::Stopped) => Progress::Done,
        (Desired::Running | Desired::Stopped, phase) => Progress::Running(phase, trouble(sight)),
    }
}

fn trouble(sight: &Sight<'_>) -> Option<String> {
    (sight.phase == Phase::Failed).then(|| sight.reason.to_owned())
}

#[cfg(test)]
mod tests {
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

    /// One letter per phase: waits, acts, has trouble, is done, or has failed.
    fn line(goal: Goal, paused: bool, resets: u64) -> String {
        let verdict = |phase| {
            let sight = Sight {
                generation: 3,
                phase,
                paused,
                resets,
                reason: "so",
            };
            match progress(&goal, &sight) {
                Progress::Pending => '.',
                Progress::Running(_, None) => 'r',
                Progress::Running(_, Some(_)) => '!',
                Progress::Done => 'D',
                Progress::Failed(_) => 'x',
            }
        };
        PHASES.into_iter().map(verdict).collect()
    }

    #[test]
    fn every_phase_says_how_an_operation_stands() {
        let goal = |desired, paused, resets, generation| Goal {
            desired,
            paused,
            resets,
            generation,
        };
        let mut table = String::new();
        for (what, goal) in [
            ("run", goal(Desired::Running, false, 0, 3)),
            ("pause", goal(Desired::Running, true, 0, 3)),
            ("reset", goal(Desired::Running, false, 1, 3)),
            ("stop", goal(Desired::Stopped, false, 0, 2)),
            ("delete", goal(Desired::Deleted, false, 0, 3)),
            ("later", goal(Desired::Running, false, 0, 4)),
        ] {
            for (paused, resets) in [(false, 0), (true, 1)] {
                let line = line(goal, paused, resets);
                table += &format!("{line} {what}, paused: {paused}, resets: {resets}\n");
            }
        }
        expect_test::expect![[r#"
            .rrDrx!x run, paused: false, resets: 0
            .rrrrx!x run, paused: true, resets: 1
            .rrrrx!x pause, paused: false, resets: 0
            .rrDrx!x pause, paused: true, resets: 1
            .rrrrx!x reset, paused: false, resets: 0
            .rrrrx!x reset, paused: true, resets: 1
            .rrrrD!x stop, paused: false, resets: 0
            .rrrrD!x stop, paused: true, resets: 1
            .rrrrr!r delete, paused: false, resets: 0
            .rrrrr!r delete, paused: true, resets: 1
            ........ later, paused: false, resets: 0
            ........ later, paused: true, resets: 1
        "#]]
        .assert_eq(&table);
    }
}
