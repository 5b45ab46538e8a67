//! Commands that are repeated until what stands in their way has passed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{Cmd, Output};

/// A request is repeated this often before the test gives up on it.
const ATTEMPTS: u32 = 30;
/// Exit codes that say "not now": unavailable, deadline exceeded, conflict, failed precondition.
const NOT_NOW: [i32; 4] = [10, 11, 7, 8];

/// Runs a command until it succeeds; how often it was repeated. Whatever fails must say so clearly, and be of a kind
/// that passes; `done` says which failure means that an earlier attempt had done it.
///
/// # Errors
/// When it has not succeeded in the end, or fails in another way.
pub fn repeat(command: impl Fn() -> Cmd, done: impl Fn(&Output) -> bool) -> Result<u32> {
    let mut last = None;
    for attempt in 0..ATTEMPTS {
        let output = command().run()?;
        if output.code == Some(0) || (attempt > 0 && done(&output)) {
            return Ok(attempt);
        }
        let code = output.code.context("ended by a signal")?;
        ensure!(
            NOT_NOW.contains(&code) && output.stderr.contains("error: "),
            "not a clear `not now`: {output}"
        );
        last = Some(output);
        std::thread::sleep(Duration::from_secs(1));
    }
    anyhow::bail!("no success in {ATTEMPTS} attempts: {last:?}")
}
