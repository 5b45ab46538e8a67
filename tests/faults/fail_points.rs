//! Agent and server end themselves at named points of a creation and a deletion; the same commands, repeated with the
//! same keys: each VM exists once, and in the end nothing of it is left.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use hearth_tests::{Platform, is_left_out, leaks, repeat, send, store, wait};
use nix::sys::signal::Signal;

const AGENT: &str = "agent-node01";
const SERVER: &str = "plasmavmc";

/// Who ends at which point of a creation, and of the deletion after it.
const CYCLES: [(&str, &str, &str); 5] = [
    (AGENT, "agent.start.journaled", "agent.delete.ended"),
    (AGENT, "agent.start.image", "agent.delete.files"),
    (AGENT, "agent.start.network", "agent.delete.network"),
    (AGENT, "agent.start.started", "agent.delete.noted"),
    (SERVER, "create.written", "release.decided"),
];

#[test]
fn a_crash_at_any_point_makes_no_second_vm_and_leaves_nothing() -> Result<()> {
    if is_left_out("crashes at fail points") {
        return Ok(());
    }
    Platform::scenario(&[store::NEED], |platform| {
        platform.up("--no-first-vm --nodes 1")?;
        for service in [AGENT, SERVER] {
            fs::create_dir_all(folder(platform, service))?;
            // A process looks for the folder when it starts.
            let old = platform.pid(service)?;
            send(old, Signal::SIGKILL);
            wait::until_ok(&format!("{service} is started again"), 30, || {
                ensure!(platform.pid(service)? != old, "still the killed process");
                Ok(())
            })?;
        }
        platform.is_healthy(60)?;
        let clean = leaks::Traces::of(platform)?;
        let mut ids = vec![];
        for (number, (service, creation, deletion)) in CYCLES.into_iter().enumerate() {
            let id =
                created_once(platform, number, service, creation).with_context(|| creation.to_owned())?;
            deleted(platform, number, service, deletion).with_context(|| deletion.to_owned())?;
            clean.are_all(platform, 30).with_context(|| deletion.to_owned())?;
            ids.push(id);
        }
        leaks::no_file_names(platform, &ids)
    })
}

fn folder(platform: &Platform, service: &str) -> PathBuf {
    platform.data().join(service).join("fail-points")
}

/// Arms a point; what it returns fails unless the point has been reached since.
fn arm(platform: &Platform, service: &str, point: &str) -> Result<impl Fn() -> Result<()> + use<>> {
    let file = folder(platform, service).join(point);
    fs::write(&file, "")?;
    Ok(move || {
        ensure!(!file.exists(), "the point was not reached");
        Ok(())
    })
}

fn created_once(platform: &Platform, number: usize, service: &str, point: &str) -> Result<String> {
    let reached = arm(platform, service, point)?;
    let create = format!(
        "--idempotency-key create-{number} vm create vm{number} --image tiny --cpus 1 --memory 96MiB --wait"
    );
    repeat(|| platform.hearth(&create), |_| false)?;
    reached()?;
    let id = platform.vm(&format!("vm{number}"))?["id"]
        .as_str()
        .context("no id")?
        .to_owned();
    platform.guest(&id)?;
    let all = platform.json("vm list")?;
    ensure!(all.as_array().map(Vec::len) == Some(1), "{all}");
    // The very same command once more is the very same request.
    platform.hearth(&create).ok()?;
    ensure!(platform.guests().len() == 1, "{:?}", platform.guests());
    Ok(id)
}

fn deleted(platform: &Platform, number: usize, service: &str, point: &str) -> Result<()> {
    let reached = arm(platform, service, point)?;
    let delete = format!("--idempotency-key delete-{number} vm delete vm{number} --wait");
    repeat(|| platform.hearth(&delete), |_| false)?;
    reached()?;
    platform.hearth(&delete).ok()?;
    let gone = platform.json(&format!("op list --vm vm{number}"))?;
    let states: Vec<_> = gone
        .as_array()
        .context("no list")?
        .iter()
        .map(|operation| (operation["kind"].clone(), operation["state"].clone()))
        .collect();
    let done = |kind: &str| (kind.into(), "done".into());
    ensure!(states == [done("create"), done("delete")], "{gone}");
    Ok(())
}
