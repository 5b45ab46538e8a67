//! npm's package `etcd3`, unmodified, against three members over TLS. Skipped, with a line that says so, where node or
//! npm are not installed or the package cannot be had.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use common::Cluster;

/// The tour and what it needs.
const FILES: [&str; 3] = ["package.json", "package-lock.json", "tour.js"];

/// Steps of the tour.
const STEPS: usize = 10;

/// How long fetching the packages may take.
const INSTALL_LIMIT: Duration = Duration::from_secs(120);

/// How long the tour may take.
const TOUR_LIMIT: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_tour() {
    let folder = tempfile::tempdir().unwrap();
    if let Err(reason) = install(folder.path()) {
        println!("SKIPPED: {reason}");
        return;
    }
    let cluster = Cluster::start_with(3, "bcrypt_cost = 4").await;
    let files = cluster.named("tour");
    let hosts: Vec<String> = cluster
        .endpoints()
        .iter()
        .map(|endpoint| format!("https://{endpoint}"))
        .collect();
    let mut tour = Command::new("node");
    tour.current_dir(folder.path())
        .arg("tour.js")
        .arg(hosts.join(","))
        .args([&files.ca, &files.cert, &files.key]);
    let out = limited(tour, folder.path(), TOUR_LIMIT).unwrap();
    let (said, errors) = texts(&out);
    assert!(out.status.success(), "{said}{errors}\n{}", cluster.logs());
    assert_eq!(
        said.lines().filter(|line| line.starts_with("ok ")).count(),
        STEPS,
        "{said}{errors}"
    );
}

/// The package and what it needs, exactly as the lock file has them, without running anything of theirs.
fn install(folder: &Path) -> Result<(), String> {
    for program in ["node", "npm"] {
        let found = Command::new(program).arg("--version").output();
        if !found.is_ok_and(|out| out.status.success()) {
            return Err(format!("{program} is not installed"));
        }
    }
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/compat/etcd3");
    for file in FILES {
        std::fs::copy(source.join(file), folder.join(file)).unwrap();
    }
    let mut npm = Command::new("npm");
    npm.current_dir(folder)
        .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
        .args(["--fetch-retries=1", "--fetch-timeout=20000"]);
    let out = limited(npm, folder, INSTALL_LIMIT)?;
    if out.status.success() {
        return Ok(());
    }
    let (_, errors) = texts(&out);
    // A lock file that does not fit is the project's own mistake; only what cannot be fetched is the machine's.
    let code = errors.lines().find(|line| line.contains("code E")).unwrap_or("");
    assert!(
        !code.contains("EUSAGE") && !code.contains("EINTEGRITY"),
        "{errors}"
    );
    Err(format!(
        "npm cannot install the package etcd3 here ({})",
        code.trim()
    ))
}

/// Runs a command to its end, or kills it at the limit. Files take its output, so that a full pipe never stops it.
fn limited(mut command: Command, folder: &Path, limit: Duration) -> Result<Output, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let (said, errors) = (folder.join("said"), folder.join("errors"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&said).unwrap())
        .stderr(std::fs::File::create(&errors).unwrap())
        .spawn()
        .map_err(|error| format!("{name}: {error}"))?;
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            let said = std::fs::read_to_string(&said).unwrap();
            return Err(format!("{name} had no end after {limit:?}; it said: {said}"));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    Ok(Output {
        status,
        stdout: std::fs::read(&said).unwrap(),
        stderr: std::fs::read(&errors).unwrap(),
    })
}

fn texts(out: &Output) -> (String, String) {
    (
        String::from_utf8_lossy(&out.stdout).into_owned(),
        String::from_utf8_lossy(&out.stderr).into_owned(),
    )
}
