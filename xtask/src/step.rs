//! Runs one program of a check under a time bound, keeps its output, shows the tail on failure.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Lines of a failed step's output that are shown.
const TAIL_LINES: usize = 80;
/// A line of life is printed this often while a step runs.
const HEARTBEAT: Duration = Duration::from_secs(120);

pub(crate) struct Outcome {
    pub(crate) ok: bool,
    pub(crate) output: String,
}

/// Runs `command` (its own process group) for at most `limit`; output goes to `logs/name.log`.
pub(crate) fn run(name: &str, command: &mut Command, limit: Duration, logs: &Path) -> Result<Outcome> {
    fs::create_dir_all(logs)?;
    let log = logs.join(format!("{name}.log"));
    println!("== {name}: {}", shown(command));
    let started = Instant::now();
    let status = run_bounded(command, limit, &log).with_context(|| format!("step {name}"))?;
    let output = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let took = started.elapsed().as_secs_f64();
    let ok = match status {
        Some(status) => status.success(),
        None => {
            println!("   {name} was stopped: it took longer than {} s", limit.as_secs());
            false
        }
    };
    println!("   {name}: {} in {took:.1} s", if ok { "ok" } else { "FAILED" });
    if !ok {
        show_tail(&output, &log);
    }
    Ok(Outcome { ok, output })
}

fn run_bounded(command: &mut Command, limit: Duration, log: &PathBuf) -> Result<Option<ExitStatus>> {
    let file = File::create(log)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let started = Instant::now();
    let mut next_sign = HEARTBEAT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() > limit {
            // The group, so that what the step started does not outlive it.
            let _ = killpg(group, Signal::SIGTERM);
            std::thread::sleep(Duration::from_secs(5));
            let _ = killpg(group, Signal::SIGKILL);
            child.wait()?;
            return Ok(None);
        }
        if started.elapsed() > next_sign {
            println!("   ... {} s", started.elapsed().as_secs());
            next_sign += HEARTBEAT;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// What a reader needs first: the failed tests and what they printed, then the end of the log.
fn show_tail(output: &str, log: &Path) {
    for line in failures(output) {
        println!("   | {line}");
    }
    println!("   --- last lines of {} ---", log.display());
    let lines: Vec<&str> = output.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)) {
        println!("   | {line}");
    }
}

/// The lines `test NAME ... FAILED`, each program's after the last lines that its failed tests printed: libtest puts
/// them between `failures:` and `test result:`, each test's under a heading of its own.
fn failures(output: &str) -> Vec<&str> {
    let (mut shown, mut printed) = (Vec::new(), None::<Vec<&str>>);
    for line in output.lines() {
        let ends = line.starts_with("test result:");
        if (ends || is_heading(line))
            && let Some(printed) = &mut printed
        {
            shown.extend_from_slice(&printed[printed.len().saturating_sub(TAIL_LINES)..]);
            printed.clear();
        }
        if line.starts_with("test ") && line.ends_with("FAILED") {
            shown.push(line);
        }
        match &mut printed {
            _ if ends => printed = None,
            Some(printed) => printed.push(line),
            None if line == "failures:" => printed = Some(Vec::new()),
            None => {}
        }
    }
    shown
}

fn is_heading(line: &str) -> bool {
    line.starts_with("---- ") && line.ends_with(" stdout ----")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("xtask-step-{}-{name}", std::process::id()))
    }

    #[test]
    fn shows_what_failed_tests_printed_and_not_what_others_did() {
        let output = "\
test a ... ok
test b ... FAILED

successes:

---- a stdout ----
noise

successes:
    a

failures:

---- b stdout ----
why it failed

failures:
    b

test result: FAILED. 1 passed; 1 failed;
after it
";
        let shown = failures(output);
        assert!(
            shown.contains(&"test b ... FAILED") && shown.contains(&"why it failed"),
            "{shown:?}"
        );
        assert!(
            !shown.contains(&"noise") && !shown.contains(&"after it"),
            "{shown:?}"
        );
        let long = format!(
            "failures:\n---- b stdout ----\n{}test result: FAILED.",
            "line\n".repeat(1000)
        );
        assert_eq!(failures(&long).len(), TAIL_LINES);
    }

    #[test]
    fn keeps_output_and_status() {
        let dir = logs("output");
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2; exit 3"]);
        let outcome = run("sh", &mut command, Duration::from_secs(10), &dir).unwrap();
        assert!(!outcome.ok);
        assert!(outcome.output.contains("out") && outcome.output.contains("err"));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_step_over_its_bound_is_stopped_with_its_children() {
        let dir = logs("bound");
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & echo $!; wait"]);
        let started = Instant::now();
        let outcome = run("sleep", &mut command, Duration::from_millis(300), &dir).unwrap();
        assert!(!outcome.ok);
        assert!(started.elapsed() < Duration::from_secs(30));
        let child: i32 = outcome.output.trim().parse().unwrap();
        let gone = (0..50).any(|_| {
            std::thread::sleep(Duration::from_millis(100));
            !is_running(child)
        });
        assert!(gone, "the child of a stopped step still runs");
        fs::remove_dir_all(dir).unwrap();
    }

    /// A process that nobody reaped yet (state Z) does not count as running.
    fn is_running(pid: i32) -> bool {
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => !stat
                .rsplit(')')
                .next()
                .unwrap_or("")
                .trim_start()
                .starts_with('Z'),
            Err(_) => false,
        }
    }
}
