//! Agent and server end themselves at named points of a creation and a deletion; the same commands, repeated with the
//! same keys: each VM exists once, and in the end nothing of it is left.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use hearth_tests::{Platform, is_left_out, leaks, repeat, store};

const AGENT: &str = "agent-node01";
const SERVER: &str = "plasmavmc";

/// Who ends at which point.
type Points = &'static [(&'static str, &'static str)];

/// Points of a creation, and of the deletion after it.
const CYCLES: [(Points, Points); 4] = [
    (
        &[(SERVER, "create.written"), (AGENT, "agent.start.journaled")],
        &[(AGENT, "agent.delete.ended"), (SERVER, "release.decided")],
    ),
    (&[(AGENT, "agent.start.image")], &[(AGENT, "agent.delete.files")]),
    (
        &[(AGENT, "agent.start.network")],
        &[(AGENT, "agent.delete.network")],
    ),
    (
        &[(AGENT, "agent.start.started")],
        &[(AGENT, "agent.delete.noted")],
    ),
];

#[test]
fn a_crash_at_any_point_makes_no_second_vm_and_leaves_nothing() -> Result<()> {
    if is_left_out("crashes at fail points") {
        return Ok(());
    }
    Platform::scenario(&[store::NEED], |platform| {
        // A process looks for the folder when it starts.
        platform.hearth("cluster init --nodes 1").ok()?;
        for service in [AGENT, SERVER] {
            fs::create_dir_all(folder(platform, service))?;
        }
        platform.up("--no-first-vm --nodes 1")?;
        let clean = leaks::Traces::of(platform)?;
        let mut ids = vec![];
        for (number, (creation, deletion)) in CYCLES.into_iter().enumerate() {
            ids.push(created_once(platform, number, creation).with_context(|| format!("{creation:?}"))?);
            deleted(platform, number, deletion).with_context(|| format!("{deletion:?}"))?;
            clean
                .are_all(platform, 30)
                .with_context(|| format!("{deletion:?}"))?;
        }
        leaks::no_file_names(platform, &ids)
    })
}

fn folder(platform: &Platform, service: &str) -> PathBuf {
    platform.data().join(service).join("fail-points")
}

/// Arms points; what it returns fails unless all of them have been reached since.
fn arm(platform: &Platform, points: Points) -> Result<impl Fn() -> Result<()> + use<>> {
    let files: Vec<PathBuf> = points
        .iter()
        .map(|(service, point)| folder(platform, service).join(point))
        .collect();
    for file in &files {
        fs::write(file, "")?;
    }
    Ok(move || {
        for file in &files {
            ensure!(!file.exists(), "not reached: {}", file.display());
        }
        Ok(())
    })
}

fn created_once(platform: &Platform, number: usize, points: Points) -> Result<String> {
    let reached = arm(platform, points)?;
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

fn deleted(platform: &Platform, number: usize, points: Points) -> Result<()> {
    let reached = arm(platform, points)?;
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
