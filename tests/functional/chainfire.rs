//! `hearth chainfire` on a platform as `hearth up` makes it: every command, a backup that is put back, and the disaster
//! of docs/guides/chainfire.md: two of three disks are gone.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use hearth_tests::{Cmd, Output, Platform, root, store, wait};
use serde_json::Value;

const MEMBERS: [&str; 3] = ["chainfire-1", "chainfire-2", "chainfire-3"];

const PASSWORD: &str = "correct horse battery staple\n";

/// How far revisions jump in a restored or recovered cluster, as the guide says.
const JUMP: i64 = 1_000_000;

/// Exit codes, as docs/guides/command-line.md has them.
const DEFECT: i32 = 1;
const BAD_ARGUMENT: i32 = 3;
const NOT_FOUND: i32 = 4;
const WRONG_STATE: i32 = 8;
const UNREACHABLE: i32 = 10;

#[test]
fn commands_backup_and_two_lost_disks() -> Result<()> {
    Platform::scenario(&[store::NEED], |platform| {
        platform.up("--no-first-vm")?;
        looking(platform).context("looking")?;
        leadership_history_space(platform).context("leadership, history, space")?;
        let backup = backup(platform).context("backup")?;
        records(platform, "before").context("records")?;
        two_disks_lost(platform).context("two of three disks are lost")?;
        has_records(platform, &["before"]).context("after the recovery")?;
        records(platform, "between")?;
        go_back(platform, &backup).context("restore")?;
        has_records(platform, &[]).context("after the restore")
    })
}

fn chainfire(platform: &Platform, words: &str) -> Result<Output> {
    platform.hearth("chainfire").words(words).ok()
}

fn json(platform: &Platform, words: &str) -> Result<Value> {
    chainfire(platform, &format!("{words} -o json"))?.json()
}

/// It must fail with this exit code, and say this.
fn refused(platform: &Platform, words: &str, code: i32, said: &[&str]) -> Result<()> {
    let output = platform.hearth("chainfire").words(words).refused()?;
    ensure!(output.code == Some(code), "not code {code}: {output}");
    output.says(said)?;
    Ok(())
}

fn names(list: &Value) -> Result<Vec<&str>> {
    let all = list.as_array().with_context(|| format!("no list: {list}"))?;
    let mut names: Vec<&str> = all.iter().filter_map(|one| one["name"].as_str()).collect();
    names.sort_unstable();
    Ok(names)
}

fn leader(status: &Value) -> Result<String> {
    let all = status.as_array().context("no list")?;
    let leading: Vec<&Value> = all.iter().filter(|one| one["role"] == "leader").collect();
    match leading.as_slice() {
        [one] => Ok(one["name"].as_str().context("no name")?.to_owned()),
        _ => anyhow::bail!("not one leader: {status}"),
    }
}

fn looking(platform: &Platform) -> Result<()> {
    let status = json(platform, "status")?;
    ensure!(names(&status)? == MEMBERS, "{status}");
    leader(&status)?;
    for one in status.as_array().context("no list")? {
        ensure!(one["revision"].as_i64() > Some(1), "{one}");
        ensure!(one["fsync"]["p99_ms"].is_number(), "no fsync times: {one}");
        ensure!(one["alarms"] == Value::Array(vec![]), "{one}");
    }
    chainfire(platform, "status")?.says(&["member", "role", "leader", "follower", "fsync"])?;
    let list = json(platform, "member list")?;
    ensure!(names(&list)? == MEMBERS, "{list}");
    chainfire(platform, "member list")?.says(&["chainfire-3", "voter", "https://127.0.0.1:"])?;
    let hashes = json(platform, "hash")?;
    let of = |name: &str| -> BTreeSet<String> {
        let all = hashes.as_array().into_iter().flatten();
        all.map(|one| one[name].to_string()).collect()
    };
    ensure!(of("member_id").len() == 3, "{hashes}");
    ensure!(of("hash").len() == 1 && of("revision").len() == 1, "{hashes}");
    chainfire(platform, "hash")?.says(&["all members hold the same state"])?;
    ensure!(json(platform, "alarm list")? == Value::Array(vec![]));
    chainfire(platform, "alarm list").map(drop)
}

fn leadership_history_space(platform: &Platform) -> Result<()> {
    let first = leader(&json(platform, "status")?)?;
    let next = MEMBERS.iter().find(|name| **name != first).context("no other")?;
    chainfire(platform, &format!("move-leader {next}"))?.says(&[next, "leads now"])?;
    wait::until_ok("the other one leads", 20, || {
        let now = leader(&json(platform, "status")?)?;
        ensure!(now == *next, "it is {now}");
        Ok(())
    })?;
    refused(
        platform,
        "move-leader nobody",
        NOT_FOUND,
        &["no member `nobody`", "member list"],
    )?;
    chainfire(platform, "compact")?.says(&["is forgotten"])?;
    refused(platform, "compact 1", WRONG_STATE, &["compacted"])?;
    chainfire(platform, "defrag")?.says(&["nothing to do"])?;
    chainfire(platform, "alarm disarm")?.says(&["none is raised"])?;
    // What needs stopped members says so.
    refused(platform, "recover", WRONG_STATE, &["hearth down"])?;
    platform.is_healthy(30)
}

fn backup(platform: &Platform) -> Result<std::path::PathBuf> {
    let folder = platform.sandbox().path();
    let file = folder.join("backup");
    let made = platform.hearth("chainfire backup").arg(&file).ok()?;
    made.says(&["revision", "sha256", "members then"])?;
    ensure!(!folder.join("backup.part").exists(), "half a backup is left");
    let info = platform
        .hearth("-o json chainfire backup-status")
        .arg(&file)
        .ok()?
        .json()?;
    ensure!(
        info["revision"].as_i64() > Some(1) && info["keys"].as_u64() > Some(0),
        "{info}"
    );
    let length = fs::metadata(&file)?.len();
    ensure!(info["bytes"].as_u64() == Some(length), "{length} bytes: {info}");
    let second = platform
        .hearth("-o json chainfire backup --member chainfire-2")
        .arg(folder.join("second"))
        .ok()?
        .json()?;
    ensure!(second["member"] == "chainfire-2", "{second}");

    let mut bytes = fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = folder.join("damaged");
    fs::write(&damaged, &bytes)?;
    let refused = platform
        .hearth("chainfire backup-status")
        .arg(&damaged)
        .refused()?;
    ensure!(refused.code == Some(DEFECT), "{refused}");
    refused.says(&["damaged"])?;
    let absent = platform
        .hearth("chainfire backup-status")
        .arg(folder.join("none"))
        .refused()?;
    ensure!(absent.code == Some(NOT_FOUND), "{absent}");
    Ok(file)
}

/// A person, a project and a VM of this name. The VM need not run yet: that it is to run is what must not be lost.
fn records(platform: &Platform, name: &str) -> Result<()> {
    platform.hearth(&format!("iam project create {name}")).ok()?;
    platform
        .hearth(&format!("iam user create {name} --password-stdin"))
        .stdin(PASSWORD)
        .ok()?;
    platform
        .hearth(&format!("vm create {name} --image tiny --cpus 1 --memory 128MiB"))
        .ok()
        .map(drop)
}

/// Exactly these of what [`records`] makes are there; people can sign in, and new records can be made.
fn has_records(platform: &Platform, expected: &[&str]) -> Result<()> {
    platform.is_healthy(90)?;
    let vms = platform.json("vm list")?;
    ensure!(names(&vms)? == expected, "VMs: {vms}");
    for name in ["before", "between"] {
        let login = platform
            .hearth_as(
                name,
                &format!("login --username {name} --password-stdin --url https://127.0.0.1:8443 --ca"),
            )
            .arg(platform.data().join("pki/ca.crt"))
            .stdin(PASSWORD)
            .run()?;
        ensure!((login.code == Some(0)) == expected.contains(&name), "{login}");
    }
    for name in expected {
        platform.settled(name, "running", 120)?;
    }
    looking(platform)
}

/// The commands of a chapter of the guide, as far as they are for this machine's cluster.
fn guided(chapter: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(root().join("docs/guides/chainfire.md"))?;
    let (_, part) = text
        .split_once(&format!("\n## {chapter}\n"))
        .context("no such chapter")?;
    let block = part.split("```").nth(1).context("no block of commands")?;
    let lines = block
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    Ok(lines.filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Runs such a chapter word for word; what it prints. `FILE` and `DATA` stand for a backup and the data folder.
fn follow(
    platform: &Platform,
    chapter: &str,
    file: &str,
    after_down: impl FnOnce() -> Result<()>,
) -> Result<Vec<Output>> {
    let mut after_down = Some(after_down);
    let mut outputs = vec![];
    let data = platform.data().to_str().context("no text")?.to_owned();
    for line in guided(chapter)? {
        let line = line.replace("FILE", file).replace("DATA", &data);
        let command = match line.strip_prefix("hearth ") {
            // Nobody sits at a terminal here.
            Some("chainfire recover") => platform.hearth("chainfire recover --yes"),
            Some(words) => platform.hearth(words),
            None => Cmd::new("sh").arg("-c").arg(&line),
        };
        outputs.push(command.ok()?);
        if let Some(after_down) = after_down.take() {
            ensure!(line == "hearth down", "{chapter} does not begin with it: {line}");
            after_down()?;
        }
    }
    Ok(outputs)
}

fn two_disks_lost(platform: &Platform) -> Result<()> {
    let before = json(platform, "status")?;
    let old_ids: BTreeSet<String> = ids(&before);
    let outputs = follow(platform, "Two of three disks are lost", "", || {
        refused(platform, "status", UNREACHABLE, &["3 members do not answer"])?;
        // All data is sound still.
        refused(platform, "recover --yes", WRONG_STATE, &["majority"])?;
        for lost in ["chainfire-1", "chainfire-3"] {
            fs::remove_dir_all(platform.data().join(lost))?;
        }
        refused(platform, "recover", BAD_ARGUMENT, &["--yes"])?;
        let found = json(platform, "inspect")?;
        let sound: Vec<&Value> = found
            .as_array()
            .context("no list")?
            .iter()
            .filter(|one| one["condition"] == "sound")
            .collect();
        ensure!(sound.len() == 1 && sound[0]["member"] == "chainfire-2", "{found}");
        Ok(())
    })?;
    outputs[1].says(&[
        "chainfire-2",
        "chainfire-1, chainfire-2, chainfire-3",
        "before-recovery-",
    ])?;
    let after = json(platform, "status")?;
    ensure!(ids(&after).is_disjoint(&old_ids), "old ids: {before} and {after}");
    let (old, new) = (newest(&before), newest(&after));
    ensure!(new >= old + JUMP, "revision {new} after {old}");
    Ok(())
}

/// Back to the backup, which is older than everything that [`records`] made.
fn go_back(platform: &Platform, backup: &std::path::Path) -> Result<()> {
    let file = backup.to_str().context("no text")?;
    let outputs = follow(platform, "Restore", file, || {
        let words = format!("restore {file}");
        refused(
            platform,
            &words,
            WRONG_STATE,
            &["not empty", "move the folder away"],
        )
    })?;
    outputs[2].says(&[
        "chainfire-1, chainfire-2, chainfire-3",
        "goes on at",
        "start the members now",
    ])?;
    Ok(())
}

fn ids(status: &Value) -> BTreeSet<String> {
    let all = status.as_array().into_iter().flatten();
    all.map(|one| one["id"].to_string()).collect()
}

fn newest(status: &Value) -> i64 {
    let all = status.as_array().into_iter().flatten();
    all.filter_map(|one| one["revision"].as_i64()).max().unwrap_or(0)
}
