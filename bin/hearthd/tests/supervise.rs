//! The supervisor as a program: order, restart, take-over, stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use hearth_service::pki::{Authority, LeafRequest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(20);

/// A data folder whose processes are shells that sleep, and the socket that makes stage 1 ready.
struct Folder {
    dir: tempfile::TempDir,
    supervisors: Vec<Child>,
}

impl Folder {
    fn new() -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        fs::create_dir_all(data.join("conf")).unwrap();
        let authority = Authority::create("test.internal", SystemTime::now()).unwrap();
        let leaf = LeafRequest {
            trust_domain: "test.internal".into(),
            path: "operator/root".into(),
            dns: vec!["localhost".into()],
            ips: vec![],
            lifetime: Duration::from_secs(3600),
        };
        let issued = authority.issue(&leaf, SystemTime::now()).unwrap();
        fs::write(data.join("ca.crt"), authority.cert_pem()).unwrap();
        fs::write(data.join("root.crt"), issued.cert_pem).unwrap();
        fs::write(data.join("root.key"), issued.key_pem).unwrap();
        let d = data.display();
        let process = |name: &str, stage: u32, ready: &str| {
            format!(
                "[[process]]\nname='{name}'\nstage={stage}\nready='unix:{d}/{ready}'\nprogram='/bin/sh'\n\
                 args=['-c','echo {name} is here; exec sleep 1000']\n"
            )
        };
        let plan = format!("[tls]\nca='{d}/ca.crt'\ncert='{d}/root.crt'\nkey='{d}/root.key'\n")
            + &process("late", 2, "late.sock")
            + &process("first", 1, "first.sock")
            + &process("second", 1, "first.sock");
        fs::write(data.join("conf/processes.toml"), plan).unwrap();
        Folder {
            dir,
            supervisors: vec![],
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn supervise(&mut self) -> u32 {
        let child = Command::new(env!("CARGO_BIN_EXE_hearthd"))
            .args(["supervise", "--data-dir"])
            .arg(self.dir.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        self.supervisors.push(child);
        pid
    }

    fn pid(&self, name: &str) -> Option<u32> {
        let text = fs::read_to_string(self.path(&format!("run/{name}.pid"))).ok()?;
        text.split(' ').next()?.parse().ok()
    }

    fn wait_for(&self, name: &str, other_than: Option<u32>) -> u32 {
        wait(name, || self.pid(name).filter(|pid| Some(*pid) != other_than))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for child in &mut self.supervisors {
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in ["first", "second", "late"] {
            if let Some(pid) = self.pid(name) {
                signal(pid, Signal::SIGKILL);
            }
        }
    }
}

fn wait<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(begin.elapsed() < LIMIT, "{what} did not happen in {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal);
}

fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|s| !s.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

#[test]
fn starts_in_order_restarts_what_dies_and_stops_everything() {
    let mut folder = Folder::new();
    let supervisor = folder.supervise();
    let first = folder.wait_for("first", None);
    folder.wait_for("second", None);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(
        folder.pid("late"),
        None,
        "stage 2 was started before stage 1 was ready"
    );

    let _ready = UnixListener::bind(folder.path("first.sock")).unwrap();
    let late = folder.wait_for("late", None);
    assert!(
        fs::read_to_string(folder.path("log/late.log"))
            .unwrap()
            .contains("late is here")
    );

    signal(first, Signal::SIGKILL);
    let again = folder.wait_for("first", Some(first));
    assert!(alive(again) && alive(late));

    signal(supervisor, Signal::SIGTERM);
    let status = folder.supervisors.remove(0).wait().unwrap();
    assert!(status.success(), "{status}");
    for pid in [again, late] {
        assert!(!alive(pid));
    }
    assert_eq!(folder.pid("first"), None);
    assert!(!folder.path("run/supervisor.pid").exists());
}

#[test]
fn a_second_supervisor_is_refused_and_a_killed_one_is_succeeded() {
    let mut folder = Folder::new();
    let _ready = UnixListener::bind(folder.path("first.sock")).unwrap();
    let supervisor = folder.supervise();
    let pids: Vec<u32> = ["first", "second", "late"]
        .iter()
        .map(|n| folder.wait_for(n, None))
        .collect();

    let second = refused(folder.dir.path());
    assert!(second.contains("another supervisor"), "{second}");

    signal(supervisor, Signal::SIGKILL);
    folder.supervisors.remove(0).wait().unwrap();
    assert!(
        pids.iter().all(|pid| alive(*pid)),
        "processes die with their supervisor"
    );

    let successor = folder.supervise();
    wait("take-over", || {
        (folder.pid("supervisor") == Some(successor)).then_some(())
    });
    std::thread::sleep(Duration::from_millis(500));
    let now: Vec<u32> = ["first", "second", "late"]
        .iter()
        .map(|n| folder.wait_for(n, None))
        .collect();
    assert_eq!(now, pids, "running processes were started again");

    signal(successor, Signal::SIGTERM);
    assert!(folder.supervisors.remove(0).wait().unwrap().success());
    assert!(pids.iter().all(|pid| !alive(*pid)));
}

fn refused(data: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_hearthd"))
        .args(["supervise", "--data-dir"])
        .arg(data)
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}
