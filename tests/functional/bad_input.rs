//! What a user gets wrong: a message that says what, why and what to do, a code other than 0, nothing half-made.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hearth_tests::{Cmd, Platform, leaks, program, store, wait};

const MIB: u64 = 1 << 20;
/// Room for PlasmaVMC's images: the tiny one fits in twice, the test's own does not.
const IMAGE_ROOM: u64 = 34 * MIB;
/// Room for the agent's copies of images: less than the tiny one.
const CACHE_ROOM: u64 = 4 * MIB;
/// A key that is in the store's log once.
const RECORD: &[u8] = b"/full/and/again";
const DAMAGED_BYTES: usize = 512;
/// Room for the store.
const STORE_ROOM: u64 = 512 * MIB;

#[test]
fn each_mistake_gets_an_answer_and_leaves_nothing() -> Result<()> {
    Platform::scenario(&[store::NEED], |platform| {
        let images = platform.data().join("plasmavmc/images");
        taken_port(platform).context("a taken port")?;
        platform.sandbox().mount_small(&images, IMAGE_ROOM)?;
        platform
            .sandbox()
            .mount_small(&platform.data().join("agent-node01/images"), CACHE_ROOM)?;
        platform
            .sandbox()
            .mount_small(&platform.data().join("chainfire-1"), STORE_ROOM)?;
        platform.up("--nodes 1 --no-first-vm")?;
        let clean = leaks::Traces::of(platform)?;
        bad_requests(platform).context("bad requests")?;
        clean.are_all(platform, 5)?;
        bad_images(platform, &images).context("bad images")?;
        node_disk_full(platform, &clean).context("a full disk of a node")?;
        store_disk_full(platform).context("a full disk of the store")?;
        damaged_log(platform).context("a damaged log")
    })
}

fn taken_port(platform: &Platform) -> Result<()> {
    let holder = TcpListener::bind("127.0.0.1:8444")?;
    let own = format!("pid {}", std::process::id());
    platform.up_command("--nodes 1 --no-first-vm").refused()?.says(&[
        "port 8444",
        "plasmavmc",
        "held by",
        &own,
        "hint: stop that process",
        "--base-port",
    ])?;
    ensure!(
        !platform.data().exists(),
        "a refused `hearth up` made {}",
        platform.data().display()
    );
    ensure!(platform.sandbox().processes().is_empty());
    drop(holder);
    Ok(())
}

fn bad_requests(platform: &Platform) -> Result<()> {
    let long = "x".repeat(64);
    for (words, says) in [
        (
            "vm create a --image nope",
            vec!["`nope`", "image", "`hearth image list`"],
        ),
        ("vm create a --image tiny --memory 0", vec!["memory", "64 MiB"]),
        ("vm create a --image tiny --memory 1MiB", vec!["memory", "64 MiB"]),
        ("vm create a --image tiny --memory 900TiB", vec!["memory"]),
        ("vm create a --image tiny --memory many", vec!["many", "256MiB"]),
        ("vm create a --image tiny --cpus 0", vec!["cpu"]),
        ("vm create a --image tiny --cpus 100000", vec!["cpu"]),
        ("vm create Bad_Name --image tiny", vec!["`Bad_Name`", "use a-z"]),
        ("vm create 7up --image tiny", vec!["`7up`", "letter"]),
        (&format!("vm create {long} --image tiny"), vec!["63"]),
        ("vm show nothing", vec!["`nothing`"]),
        ("vm delete nothing --wait", vec!["`nothing`"]),
        ("--project nowhere vm create a --image tiny", vec!["`nowhere`"]),
    ] {
        let output = platform.hearth(words).refused()?;
        output.says(&says)?;
        ensure!(
            output.stdout.is_empty(),
            "messages belong to standard error: {output}"
        );
    }
    ensure!(platform.json("vm list")? == serde_json::json!([]));
    Ok(())
}

fn bad_images(platform: &Platform, folder: &Path) -> Result<()> {
    let before = (platform.json("image list")?, files(folder)?);
    let tiny = platform.image().display().to_string();
    let wrong = "0".repeat(64);
    platform
        .hearth(&format!("image import {tiny} --name wrong --sha256 {wrong}"))
        .refused()?
        .says(&["SHA-256", &wrong, "check the file"])?;
    platform
        .hearth("image import /nowhere/disk.qcow2 --name wrong")
        .refused()?
        .says(&["/nowhere/disk.qcow2", "no such file"])?;
    let text = platform.sandbox().path().join("text.qcow2");
    fs::write(
        &text,
        "this is no disk image, whatever its name says\n".repeat(100),
    )?;
    platform
        .hearth(&format!(
            "image import {} --name wrong --format qcow2",
            text.display()
        ))
        .refused()?
        .says(&["qcow2"])?;
    // 24 MiB of what no file system can shrink to nothing.
    let large = platform.sandbox().path().join("large.raw");
    fs::write(&large, vec![7; 24 << 20])?;
    platform
        .hearth(&format!("image import {} --name wrong", large.display()))
        .refused()?
        .says(&["the disk for images is full", "delete images"])?;
    let after = (platform.json("image list")?, files(folder)?);
    ensure!(before == after, "{before:?} became {after:?}");
    platform.is_healthy(10)
}

fn files(folder: &Path) -> Result<Vec<String>> {
    let mut names = vec![];
    for entry in fs::read_dir(folder)?.chain(fs::read_dir(folder.join("incoming"))?) {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn node_disk_full(platform: &Platform, clean: &leaks::Traces) -> Result<()> {
    platform
        .hearth("vm create stuck --image tiny --memory 96MiB --wait --timeout 60")
        .refused()?
        .says(&[
            "`stuck`",
            "the disk of this node is full",
            "hearth vm delete stuck",
        ])?;
    platform.hearth("vm delete stuck --wait").ok()?;
    clean.are_all(platform, 20)?;
    let left: Vec<_> = fs::read_dir(platform.data().join("agent-node01/images"))?.collect();
    ensure!(left.is_empty(), "half an image stays: {left:?}");
    Ok(())
}

fn store_disk_full(platform: &Platform) -> Result<()> {
    let filler = platform.data().join("chainfire-1/filler");
    let space = nix::sys::statvfs::statvfs(&platform.data().join("chainfire-1"))?;
    let free = space.blocks_available() * space.fragment_size();
    // Four MiB stay: the member must refuse before the file system does.
    fs::write(&filler, vec![0; usize::try_from(free.saturating_sub(4 * MIB))?])?;
    let put = || store::at(&store::MEMBERS[..1]).words("put /full/and/again x");
    wait::until_ok("writes are refused", 20, || {
        put().refused()?.says(&["database space exceeded"]).map(drop)
    })?;
    // Reading goes on, and the user hears what is the matter.
    store::at(&store::MEMBERS[..1])
        .words("get /full/and/again")
        .ok()?;
    platform.hearth("vm list").ok()?;
    let refused = platform.hearth("vm create a --image tiny").refused()?;
    refused.says(&["space"])?;
    fs::remove_file(&filler)?;
    wait::until_ok("writes are accepted again", 20, || put().ok().map(drop))?;
    platform.is_healthy(10)
}

fn damaged_log(platform: &Platform) -> Result<()> {
    platform.hearth("down").ok()?;
    let folder = platform.data().join("chainfire-1/raft");
    flip_record(&folder)?;
    let output = Cmd::new(program("hearthd")?)
        .words("chainfire --config")
        .arg(platform.data().join("conf/chainfire-1.toml"))
        .refused()?;
    output.says(&[
        "raft log",
        &folder.display().to_string(),
        "damaged",
        "restore a backup",
    ])?;
    ensure!(!output.stderr.contains("panicked"), "{output}");
    Ok(())
}

/// Flips bits in the middle of the log: from the key that was put while the disk was full on, over the end of its
/// batch (the entry alone is looked at when it is read, and an applied one may never be).
fn flip_record(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let bytes = fs::read(&path)?;
        let Some(at) = bytes.windows(RECORD.len()).position(|part| part == RECORD) else {
            continue;
        };
        let file = File::options().write(true).open(&path)?;
        let flipped: Vec<u8> = bytes.iter().skip(at).take(DAMAGED_BYTES).map(|b| !b).collect();
        file.write_all_at(&flipped, u64::try_from(at)?)?;
        return Ok(());
    }
    anyhow::bail!("no file of the log has the record")
}
