//! The list of checks, in order, and their sum.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::counts::Counts;
use crate::step;

/// What a step runs.
#[derive(Clone, Copy)]
enum Program {
    Cargo,
    /// This program itself, with another command.
    Own,
}

/// How a step's output is counted.
enum Kind {
    /// Passed or failed as a whole.
    Whole,
    /// libtest's own counts.
    Tests,
    /// As a whole; its last lines are figures that belong into the record of the run.
    Figures,
}

/// Lines of figures that are shown.
const FIGURE_LINES: usize = 72;

struct Step {
    name: &'static str,
    program: Program,
    args: Vec<String>,
    limit: Duration,
    kind: Kind,
    env: Vec<(&'static str, &'static str)>,
}

fn cargo(name: &'static str, args: &str, minutes: u64, kind: Kind) -> Step {
    Step {
        name,
        program: Program::Cargo,
        args: args.split_whitespace().map(str::to_owned).collect(),
        limit: Duration::from_secs(minutes * 60),
        kind,
        env: vec![],
    }
}

fn own(name: &'static str, args: &str, minutes: u64, kind: Kind) -> Step {
    Step {
        program: Program::Own,
        ..cargo(name, args, minutes, kind)
    }
}

/// Every check, in the order of running: cheap ones first.
fn steps(quick: bool) -> Vec<Step> {
    let mut doc = cargo("doc", "doc --workspace --no-deps --locked", 15, Kind::Whole);
    doc.env.push(("RUSTDOCFLAGS", "-D warnings"));
    let mut end_to_end = cargo(
        "e2e",
        "test -p hearth-tests --locked --no-fail-fast -- --test-threads=1 --show-output",
        25,
        Kind::Tests,
    );
    if quick {
        end_to_end.env.push(("HEARTH_TEST_QUICK", "1"));
    }
    vec![
        cargo("fmt", "fmt --all --check", 2, Kind::Whole),
        own("tidy", "tidy", 5, Kind::Whole),
        cargo(
            "clippy",
            "clippy --workspace --all-targets --locked -- -D warnings",
            25,
            Kind::Whole,
        ),
        doc,
        cargo(
            "test",
            "test --workspace --exclude hearth-tests --locked --no-fail-fast -- --show-output",
            35,
            Kind::Tests,
        ),
        own(
            "sim",
            if quick {
                "sim --seeds 50"
            } else {
                "sim --seeds 500"
            },
            20,
            Kind::Figures,
        ),
        own(
            "sim-chainfire",
            if quick {
                "sim chainfire --seeds 20"
            } else {
                "sim chainfire --seeds 100"
            },
            20,
            Kind::Figures,
        ),
        own(
            "sim-fence",
            if quick {
                "sim fence --seeds 100"
            } else {
                "sim fence --seeds 400"
            },
            10,
            Kind::Figures,
        ),
        cargo("build", "build -p hearth -p hearthd --locked", 20, Kind::Whole),
        end_to_end,
    ]
}

pub(crate) fn run(quick: bool, only: &[String]) -> Result<ExitCode> {
    let started = Instant::now();
    let logs = target_dir().join("ci");
    let mut sum = Counts::default();
    let mut failed_steps = vec![];
    for step in steps(quick) {
        if !only.is_empty() && !only.iter().any(|name| name == step.name) {
            println!("== {}: left out by --only", step.name);
            sum.skipped += 1;
            continue;
        }
        let counts = run_step(&step, &logs)?;
        println!("   {}: {counts}", step.name);
        if counts.failed > 0 {
            failed_steps.push(step.name);
        }
        sum.add(counts);
    }
    println!(
        "== all steps in {:.0} s; logs in {}",
        started.elapsed().as_secs_f64(),
        logs.display()
    );
    if !failed_steps.is_empty() {
        println!("failed steps: {}", failed_steps.join(", "));
    }
    // Whoever reads the run reads this line: it stays the last one.
    println!("{sum}");
    Ok(if sum.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn run_step(step: &Step, logs: &Path) -> Result<Counts> {
    let program = match step.program {
        Program::Cargo => std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
        Program::Own => std::env::current_exe()?.into_os_string(),
    };
    let mut command = Command::new(program);
    command
        .args(&step.args)
        .current_dir(root())
        .env_remove("RUST_LOG");
    // `cargo run -p xtask` sets these for us; inner cargo runs start clean.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(name);
    }
    for (name, value) in &step.env {
        command.env(name, value);
    }
    let outcome = step::run(step.name, &mut command, step.limit, logs)?;
    let counts = match step.kind {
        Kind::Whole => Counts::one(outcome.ok),
        Kind::Figures => {
            let lines: Vec<&str> = outcome.output.lines().collect();
            for line in lines
                .iter()
                .skip(lines.len().saturating_sub(FIGURE_LINES))
                .filter(|_| outcome.ok)
            {
                println!("   | {line}");
            }
            Counts::one(outcome.ok)
        }
        Kind::Tests => Counts::of_tests(&outcome.output, outcome.ok),
    };
    for line in outcome
        .output
        .lines()
        .filter(|l| l.trim_start().starts_with("SKIPPED: "))
    {
        println!("   {}", line.trim());
    }
    Ok(counts)
}

/// The workspace's root folder.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step that somebody takes out of the list shows up here.
    #[test]
    fn quick_leaves_no_step_out() {
        let names = |quick| steps(quick).iter().map(|s| s.name).collect::<Vec<_>>();
        assert_eq!(names(true), names(false));
        assert_eq!(
            names(true),
            [
                "fmt",
                "tidy",
                "clippy",
                "doc",
                "test",
                "sim",
                "sim-chainfire",
                "sim-fence",
                "build",
                "e2e"
            ]
        );
    }
}
