//! The project's own tools: `cargo xtask ci|tidy|sim|bench|mutants`.
//!
//! What it is: the one place that knows how the project is checked. `./test` installs what the
//! tests need and calls `ci`; CI calls `./test`; nothing else describes a check.
//! Does not know: how any part works. It runs programs and counts what they report.
//! Entry points: `ci::run`, `tidy::run`, `sim::run`.
//! Invariants: no step of `ci` is left out silently; the last line carries all counts.

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod ci;
mod counts;
mod mutants;
mod sim;
mod step;
mod tidy;

#[derive(Parser)]
#[command(about = "Checks and tools of the Hearth project")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every check that CI runs; closes with `N passed, N failed, N skipped`.
    Ci {
        /// Fewer simulation seeds and no full-cluster fault run.
        #[arg(long)]
        quick: bool,
        /// Only the steps of these names (for work on one of them; CI never passes it).
        #[arg(long)]
        only: Vec<String>,
    },
    /// The consensus simulation: 500 seeds and every planted bug, or one seed with `--seed N`.
    Sim(sim::Args),
    /// Chainfire beside Debian's etcd under the same load, or the scheduler's decisions a second.
    Bench(bench::BenchArgs),
    /// Bugs planted in FlashDNS's answers, each of which the comparison with NSD, Knot and BIND must find.
    Mutants,
    /// The house's invariants: layers, pure cores, manifests, crate headers.
    Tidy,
}

fn main() -> Result<std::process::ExitCode> {
    match Cli::parse().command {
        Command::Ci { quick, only } => ci::run(quick, &only),
        Command::Sim(args) => sim::run(&args).map(|()| std::process::ExitCode::SUCCESS),
        Command::Bench(args) => bench::run(&args).map(|()| std::process::ExitCode::SUCCESS),
        Command::Mutants => mutants::run().map(|()| std::process::ExitCode::SUCCESS),
        Command::Tidy => tidy::run(),
    }
}
