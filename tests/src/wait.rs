//! Waiting with a limit.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const STEP: Duration = Duration::from_millis(100);

/// Asks again and again until there is a value, at most `seconds`.
///
/// # Errors
/// At the limit; with the last error of `found`, if it had one.
pub fn until<T>(what: &str, seconds: u64, mut found: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        let last = match found() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if begin.elapsed() > Duration::from_secs(seconds) {
            let late = format!("{what}: not within {seconds} s");
            return match last {
                Some(error) => Err(error).context(late),
                None => bail!(late),
            };
        }
        std::thread::sleep(STEP);
    }
}

/// Asks until `check` has no complaint, at most `seconds`.
///
/// # Errors
/// At the limit: the last complaint.
pub fn until_ok(what: &str, seconds: u64, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    until(what, seconds, || check().map(Some))
}
