//! `hearth`: the command line.
//!
//! What it is: a thin program over the typed clients, and the one that makes, starts and stops a
//! cluster on this machine (`hearth cluster init`, `up`, `down`, `status`, `doctor`).
//! Does not know: how any server works; it depends on clients only.
//! Entry points: `cli::Cli` (what can be typed), `commands` (one file per subject).
//! Invariants: data goes to standard output, everything else to standard error; a failure says what
//! happened, why and what to do, and its kind is the exit code (`failure`).

use std::process::ExitCode;

use clap::Parser;

mod cli;
mod cli_chainfire;
mod cluster;
mod commands;
mod context;
mod failure;
mod output;
mod processes;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = commands::run(cli) => outcome,
            _ = tokio::signal::ctrl_c() => Err(failure::interrupted()),
        }
    });
    // A read of the terminal may still hang in a helper thread; it does not hold the process.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
