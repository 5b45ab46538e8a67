//! Black-box tests of the built programs `hearth` and `hearthd`, and what those tests stand on.
//!
//! It knows the programs' command line, their documented ports, key layout and files, and nothing of their code:
//! a test here sees what a user, `etcdctl`, `dig`, `ping` or `curl` sees.
//!
//! Entry points: [`Platform`] (a whole platform in a sandbox of its own), [`Sandbox`] (an empty one), [`Cmd`]
//! (a program run under a time limit), [`wait::until`], [`guest::Console`].
//!
//! Invariants: every wait has a limit; each test has its own network namespace (so the default ports are free),
//! mount namespace, data folder and sign-in file; whatever was started is killed when the sandbox is dropped, also
//! after a failure; what a machine cannot do is printed as `SKIPPED: reason`, never passed over in silence.
//!
//! `HEARTH_TEST_KEEP=1` keeps the data folder of a test. Tests run one at a time (`--test-threads=1`): two platforms
//! at once would be slow, not wrong.

mod cmd;
pub mod guest;
mod image;
pub mod leaks;
mod platform;
mod repeat;
mod sandbox;
pub mod store;
pub mod wait;

pub use cmd::{Cmd, Output};
pub use image::tiny_image;
pub use platform::Platform;
pub use repeat::repeat;
pub use sandbox::{Need, Sandbox, is_running, send};

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// True, with a line that says so, for a test that `./test --quick` leaves out.
#[must_use]
pub fn is_left_out(what: &str) -> bool {
    let quick = std::env::var_os("HEARTH_TEST_QUICK").is_some();
    if quick {
        println!("SKIPPED: {what} takes long; run ./test without --quick");
    }
    quick
}

/// A program of this workspace as cargo has built it in the profile of the tests.
///
/// # Errors
/// When it has not been built; the error says what to do.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = target_dir()?.join(name);
    ensure!(
        path.is_file(),
        "{} does not exist. Build it first: cargo build -p hearth -p hearthd (./test does so)",
        path.display()
    );
    Ok(path)
}

/// The folder of built programs: the test's own program lies in its `deps`.
fn target_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the test program")?;
    let dir = own.parent().and_then(|deps| deps.parent());
    Ok(dir.context("the test program lies in no folder")?.to_path_buf())
}

/// The workspace's root folder.
#[must_use]
pub fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or_else(|| here.clone(), PathBuf::from)
}
