//! The very first `hearth up`, and then the README's first VM in five commands, word for word.

use std::fs;

use anyhow::{Context, Result, ensure};
use hearth_tests::guest::Console;
use hearth_tests::{Cmd, Need, Platform, leaks, root, store};

#[test]
fn one_command_runs_the_main_job_and_the_readme_is_true() -> Result<()> {
    let dig = Need::Program("dig", "bind9-dnsutils");
    Platform::scenario(&[store::NEED, dig], |platform| {
        first_start(platform).context("the first `hearth up`")?;
        readme(platform).context("the five commands of the README")
    })
}

/// It ends with a guest at its login, and says where everything is.
fn first_start(platform: &Platform) -> Result<()> {
    let output = platform.up_command("--nodes 1").ok()?;
    output.says(&["hearth-tiny: kernel is up", "hello login:"])?;
    let address = platform.address("hello")?.to_string();
    let data = platform.data().display().to_string();
    for said in [
        address.as_str(),
        "hello.default.hearth.internal",
        "hearth vm console hello",
        "https://127.0.0.1:8443",
        "https://127.0.0.1:8444",
        "admin-credentials",
        &data,
    ] {
        ensure!(
            output.stdout.contains(said),
            "the summary lacks `{said}`: {output}"
        );
    }
    // The next start is an ordinary one.
    let again = platform.up_command("").ok()?;
    ensure!(
        !again.stderr.contains("kernel is up"),
        "the first VM is shown again: {again}"
    );
    Ok(())
}

fn readme(platform: &Platform) -> Result<()> {
    let text = fs::read_to_string(root().join("README.md"))?;
    let (_, part) = text
        .split_once("First VM in five commands")
        .context("no such chapter")?;
    let block = part.split("```").nth(1).context("no block of commands")?;
    let lines: Vec<&str> = block.lines().filter(|l| !l.trim().is_empty()).collect();
    ensure!(lines.len() == 5, "not five commands: {lines:?}");
    for line in lines {
        let words = line.split('#').next().unwrap_or_default().trim();
        let output = match words.strip_prefix("./hearth ") {
            Some(words) if words.contains("console") => {
                Console::open(platform.hearth(words))?.log_in("web")?;
                continue;
            }
            Some(words) => platform.hearth(words).ok()?,
            None => Cmd::new("sh").arg("-c").arg(words).ok()?,
        };
        if words.contains("image list") {
            output.says(&["tiny"])?;
        } else if words.starts_with("dig") {
            let address = platform.address("web")?.to_string();
            ensure!(output.stdout.trim() == address, "it is {address}: {output}");
        }
    }
    leaks::no_name("web")
}
