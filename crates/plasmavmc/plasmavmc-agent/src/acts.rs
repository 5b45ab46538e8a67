//! Pause and reset: what is wanted of a guest that runs, beside that it runs.
//!
//! A pause is a level: the guest stands still as long as that is wanted. A reset is done once; it comes as a level,
//! too, as the number of resets that were asked for since the VM was made. The journal keeps how many have been done.
//!
//! ```text
//!   wanted > done:  journal "begun" ─> stop the CPUs ─> reset ─> journal "done" ─> let them go on
//! ```
//!
//! Between "begun" and "done" the guest executes nothing. So whoever finds "begun" after a crash resets (again): if it
//! had been done, nothing has happened since, and nobody can tell one reset from two. Where a reset makes a new
//! process, the process tells: is it another one than at the beginning, it has been done.
//!
//! Only who stands still because of an assignment is woken: `held` is in the journal before the CPUs are stopped.

use plasmavmc_client::agent::Assignment;
use plasmavmc_hypervisor::{Machine, RunState};
use serde::{Deserialize, Serialize};

use crate::vm::Trouble;

/// QEMU's word for a guest that waits for its disk.
const IO_ERROR: &str = "io-error";

/// What the journal keeps of a VM's pauses and resets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Acts {
    /// Resets done, or made needless by a start.
    pub(crate) resets: u64,
    /// A reset that was begun: its number, and the process then.
    pub(crate) begun: Option<(u64, u32)>,
    /// The guest stands still because it was assigned so, or for a reset.
    pub(crate) held: bool,
}

/// What a look at a running guest found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// It runs, or stands still and why.
    Here { paused: bool, reason: String },
    /// It does not run any more.
    Ended,
}

impl Acts {
    /// When no guest runs: whatever was asked of one is void.
    pub(crate) fn without_guest(wanted: &Assignment) -> Self {
        Self {
            resets: wanted.resets,
            ..Self::default()
        }
    }

    /// The record that has to be in the journal before a guest is reset, if one is due.
    pub(crate) fn begin_reset(&self, wanted: &Assignment, pid: u32, in_place: bool) -> Option<Self> {
        if self.resets >= wanted.resets {
            return None;
        }
        let begun = self.begun.filter(|(number, _)| *number == wanted.resets);
        Some(Self {
            begun: Some(begun.unwrap_or((wanted.resets, pid))),
            held: self.held || in_place,
            ..self.clone()
        })
    }

    /// The record once it is done.
    pub(crate) fn reset_done(&self, wanted: &Assignment) -> Self {
        Self {
            resets: wanted.resets,
            begun: None,
            held: self.held,
        }
    }
}

/// Resets a guest for which that is in the journal as begun.
pub(crate) async fn reset(acts: &Acts, machine: &mut dyn Machine, in_place: bool) -> Result<(), Trouble> {
    let replaced = !in_place && acts.begun.is_some_and(|(_, pid)| pid != machine.info().pid);
    if replaced {
        return Ok(());
    }
    if in_place {
        machine.pause_for_reset().await?;
    }
    Ok(machine.reset().await?)
}

/// What has to be done about a guest's CPUs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Cpus {
    /// Nothing.
    Leave(Look),
    /// Stop them, once that is in the journal.
    Stop,
    /// Let them go on, then forget that they were held.
    Wake,
    /// Let them try their disk again.
    Retry,
    /// They run although they were held: somebody else has woken them.
    Forget,
}

/// Decides by what is wanted, what is, and whether the guest stands still by our doing.
pub(crate) fn judge(paused: bool, state: RunState, held: bool) -> Cpus {
    let here = |paused, reason: String| Cpus::Leave(Look::Here { paused, reason });
    match state {
        RunState::Running if paused => Cpus::Stop,
        RunState::Running if held => Cpus::Forget,
        RunState::Running => here(false, String::new()),
        // QEMU's doing when the disk fails or is full. Going on tries the same writes again, so a guest comes back by
        // itself once there is room.
        RunState::Paused(why) if why == IO_ERROR && paused => here(true, disk()),
        RunState::Paused(why) if why == IO_ERROR => Cpus::Retry,
        RunState::Paused(_) if paused => here(true, String::new()),
        RunState::Paused(_) if held => Cpus::Wake,
        RunState::Paused(why) => here(false, format!("the guest stands still: {why}")),
        RunState::PoweredOff | RunState::Gone => Cpus::Leave(Look::Ended),
    }
}

/// Why a guest stands still whose disk does not take its writes.
pub(crate) fn disk() -> String {
    "the guest stands still: its disk failed, or this node's disk is full".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_was_held_is_woken() {
        let paused = |why: &str| RunState::Paused(why.to_owned());
        let mut table = String::new();
        for state in [
            RunState::Running,
            paused("paused"),
            paused("prelaunch"),
            paused(IO_ERROR),
            RunState::PoweredOff,
        ] {
            for (wanted, held) in [(true, false), (true, true), (false, true), (false, false)] {
                let verdict = match judge(wanted, state.clone(), held) {
                    Cpus::Leave(Look::Ended) => "ended".to_owned(),
                    Cpus::Leave(Look::Here { paused, .. }) => format!("is paused: {paused}"),
                    other => format!("{other:?}"),
                };
                table += &format!("{state:?}, wanted paused: {wanted}, held: {held} -> {verdict}\n");
            }
        }
        expect_test::expect![[r#"
            Running, wanted paused: true, held: false -> Stop
            Running, wanted paused: true, held: true -> Stop
            Running, wanted paused: false, held: true -> Forget
            Running, wanted paused: false, held: false -> is paused: false
            Paused("paused"), wanted paused: true, held: false -> is paused: true
            Paused("paused"), wanted paused: true, held: true -> is paused: true
            Paused("paused"), wanted paused: false, held: true -> Wake
            Paused("paused"), wanted paused: false, held: false -> is paused: false
            Paused("prelaunch"), wanted paused: true, held: false -> is paused: true
            Paused("prelaunch"), wanted paused: true, held: true -> is paused: true
            Paused("prelaunch"), wanted paused: false, held: true -> Wake
            Paused("prelaunch"), wanted paused: false, held: false -> is paused: false
            Paused("io-error"), wanted paused: true, held: false -> is paused: true
            Paused("io-error"), wanted paused: true, held: true -> is paused: true
            Paused("io-error"), wanted paused: false, held: true -> Retry
            Paused("io-error"), wanted paused: false, held: false -> Retry
            PoweredOff, wanted paused: true, held: false -> ended
            PoweredOff, wanted paused: true, held: true -> ended
            PoweredOff, wanted paused: false, held: true -> ended
            PoweredOff, wanted paused: false, held: false -> ended
        "#]]
        .assert_eq(&table);
    }
}
