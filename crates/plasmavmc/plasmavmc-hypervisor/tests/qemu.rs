//! One real guest from its first start to its last trace: QEMU, TCG, the tiny image.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "support/sweep.rs"]
mod sweep;
#[path = "support/tiny.rs"]
mod tiny;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use plasmavmc_hypervisor::kvm::probe::decide;
use plasmavmc_hypervisor::{
    Accelerator, AcceleratorKind, Adopted, ConsoleStream, DiskSpec, Ended, Forward, Hypervisor,
    HypervisorError, ImageFormat, KvmBackend, Machine, MachineId, MachineSpec, NetBackend, NicSpec,
    Preference, RunState,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// A guest under TCG on a machine that builds other things at the same time.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

fn backend(root: &Path) -> KvmBackend {
    let accelerator = Accelerator {
        kind: AcceleratorKind::Tcg,
        reason: "test".to_owned(),
    };
    KvmBackend::new(root, accelerator).unwrap()
}

fn spec(image: &Path, host: Ipv4Addr) -> MachineSpec {
    let forward = |port| Forward {
        host: std::net::SocketAddrV4::new(host, 10_000 + port),
        guest_port: port,
    };
    MachineSpec {
        id: MachineId::try_from(format!("qemu-test-{}", std::process::id())).unwrap(),
        epoch: 3,
        generation: 7,
        name: "qemu-test".to_owned(),
        vcpus: 1,
        memory_mib: 192,
        disk: DiskSpec {
            image: image.to_owned(),
            format: ImageFormat::Qcow2,
            size_bytes: 0,
        },
        seed: None,
        nic: Some(NicSpec {
            mac: "02:00:00:00:00:09".to_owned(),
            backend: NetBackend::User {
                forwards: vec![forward(7), forward(22)],
                outbound: false,
            },
        }),
        movable: false,
    }
}

async fn read_until(console: &mut Box<dyn ConsoleStream>, marker: &str) -> String {
    let mut seen = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&seen).contains(marker) {
            let n = console.read(&mut buffer).await.unwrap();
            assert!(
                n > 0,
                "the console closed before `{marker}`: {}",
                String::from_utf8_lossy(&seen)
            );
            seen.extend_from_slice(&buffer[..n]);
        }
    };
    let in_time = timeout(BOOT_LIMIT, reading).await.is_ok();
    let text = String::from_utf8_lossy(&seen).into_owned();
    assert!(in_time, "no `{marker}` in time: {text}");
    text
}

async fn echo(address: Ipv4Addr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((address, 10_007)).await?;
    stream.write_all(b"hello guest\n").await?;
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// QEMU accepts connections before the guest listens: tried again until one is answered.
async fn echo_until_answered(address: Ipv4Addr) {
    let started = Instant::now();
    loop {
        match timeout(Duration::from_secs(5), echo(address)).await {
            Ok(Ok(answer)) => return assert_eq!(answer, b"hello guest\n"),
            other => assert!(started.elapsed() < Duration::from_secs(30), "no echo: {other:?}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}

fn sum(path: &Path) -> String {
    let output = std::process::Command::new("sha256sum")
        .arg(path)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout)
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}

/// Files that a process holds open, but for its own sockets and anonymous ones.
fn open_files(pid: u32) -> Vec<String> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    links
        .flatten()
        .filter_map(|e| std::fs::read_link(e.path()).ok())
        .map(|p| p.to_string_lossy().into_owned())
        .collect()
}

#[tokio::test]
async fn a_guest_lives_is_adopted_and_leaves_nothing() {
    let image = match tiny::image() {
        Ok(image) => image,
        Err(reason) => return println!("SKIPPED: {reason}"),
    };
    let dir = tempfile::tempdir().unwrap();
    // A path longer than a socket's may be: backends must cope.
    let root = dir.path().join("a".repeat(60)).join("b".repeat(60));
    let _sweep = sweep::Sweep(root.clone());
    let low = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, 78, low[2], low[3] | 1);
    let (before, spec) = (sum(&image), spec(&image, address));

    let first = backend(&root);
    let started = Instant::now();
    let machine = first.start(&spec).await.unwrap();
    assert!(matches!(
        first.start(&spec).await,
        Err(HypervisorError::AlreadyRunning(_))
    ));
    let pid = machine.info().pid;
    let mut console = machine.console().await.unwrap();
    let text = read_until(&mut console, "login: ").await;
    println!("login after {:.2} s", started.elapsed().as_secs_f64());
    assert!(
        text.contains("hearth-tiny: kernel is up") && text.contains("tiny login: "),
        "{text}"
    );
    echo_until_answered(address).await;
    console.write_all(b"root\n").await.unwrap();
    read_until(&mut console, "# ").await;
    console.write_all(b"echo 6 times 7 is $((6*7))\n").await.unwrap();
    read_until(&mut console, "6 times 7 is 42").await;
    let strange: Vec<String> = open_files(pid)
        .into_iter()
        .filter(|f| {
            f.starts_with('/')
                && !f.starts_with("/dev/")
                && !f.contains("/bbb")
                && *f != image.to_string_lossy()
        })
        .collect();
    assert!(strange.is_empty(), "inherited files: {strange:?}");

    // The owner dies; another finds the same process and its whole console history.
    drop((console, machine, first));
    let second = backend(&root);
    let Adopted::Running(mut machine) = second.adopt(&spec.id).await.unwrap() else {
        panic!("not adopted")
    };
    let info = machine.info().clone();
    assert_eq!(
        (info.pid, info.epoch, info.generation, info.accelerator.as_str()),
        (pid, 3, 7, "tcg")
    );
    assert!(String::from_utf8_lossy(&machine.console_history(1 << 16).unwrap()).contains("6 times 7 is 42"));
    let inventory = second.inventory().unwrap();
    assert_eq!(
        (inventory.machines, inventory.orphans),
        (vec![spec.id.clone()], vec![])
    );
    pause_and_resume(&mut machine, address).await;

    let asked = Instant::now();
    assert_eq!(
        machine.stop(Duration::from_secs(20)).await.unwrap(),
        Ended::PoweredOff
    );
    println!("stopped after {:.2} s", asked.elapsed().as_secs_f64());
    assert!(!Path::new(&format!("/proc/{pid}/fd/0")).exists());
    let Adopted::Ended {
        epoch: 3,
        generation: 7,
        ended: Ended::PoweredOff,
    } = second.adopt(&spec.id).await.unwrap()
    else {
        panic!("the end was not recorded")
    };

    // The next start goes on with the same disk; a killed process is a crash, and is seen at once.
    let mut machine = second.start(&spec).await.unwrap();
    let pid = machine.info().pid;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.cast_signed()),
        nix::sys::signal::SIGKILL,
    )
    .unwrap();
    timeout(Duration::from_secs(60), async {
        while machine.status().await.unwrap() != RunState::Gone {
            machine.changed().await;
        }
    })
    .await
    .unwrap();
    drop(machine);
    assert!(matches!(
        second.adopt(&spec.id).await.unwrap(),
        Adopted::Ended {
            ended: Ended::Crashed,
            ..
        }
    ));

    // Deleting ends what runs, unasked.
    let machine = second.start(&spec).await.unwrap();
    let pid = machine.info().pid;
    drop(machine);
    second.delete(&spec.id).await.unwrap();
    assert!(!Path::new(&format!("/proc/{pid}/fd/0")).exists());
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    assert!(matches!(second.adopt(&spec.id).await.unwrap(), Adopted::Absent));
    second.delete(&spec.id).await.unwrap();
    assert_eq!(before, sum(&image), "the base image was written to");
}

async fn pause_and_resume(machine: &mut Box<dyn Machine>, address: Ipv4Addr) {
    machine.pause().await.unwrap();
    assert_eq!(
        machine.status().await.unwrap(),
        RunState::Paused("paused".to_owned())
    );
    assert!(
        timeout(Duration::from_millis(700), echo(address)).await.is_err(),
        "a paused guest answered"
    );
    machine.resume().await.unwrap();
    assert_eq!(machine.status().await.unwrap(), RunState::Running);
    echo_until_answered(address).await;
}

#[tokio::test]
async fn a_failed_start_leaves_neither_process_nor_disk() {
    let image = match tiny::image() {
        Ok(image) => image,
        Err(reason) => return println!("SKIPPED: {reason}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let backend = backend(dir.path());
    let mut spec = spec(&image, Ipv4Addr::new(127, 78, 0, 1));
    let nic = NicSpec {
        mac: "02:00:00:00:00:09".to_owned(),
        // No address of this host: QEMU cannot listen there.
        backend: NetBackend::User {
            forwards: vec![Forward {
                host: "192.0.2.1:10007".parse().unwrap(),
                guest_port: 7,
            }],
            outbound: false,
        },
    };
    spec.nic = Some(nic);
    let error = backend.start(&spec).await.unwrap_err();
    assert!(
        error.to_string().contains("hostfwd") || error.to_string().contains("forward"),
        "{error}"
    );
    assert!(matches!(
        backend.adopt(&spec.id).await.unwrap(),
        Adopted::Ended {
            ended: Ended::NeverRan,
            ..
        }
    ));
    spec.disk.image = dir.path().join("missing.qcow2");
    backend.delete(&spec.id).await.unwrap();
    assert!(backend.start(&spec).await.is_err());
    assert!(!backend.folder(&spec.id).join("disk.qcow2").exists());
}

#[tokio::test]
async fn kvm_is_tried_once_with_a_real_kernel() {
    let image = match tiny::image() {
        Ok(image) => image,
        Err(reason) => return println!("SKIPPED: {reason}"),
    };
    if !Path::new("/dev/kvm").exists() {
        return println!("SKIPPED: this machine has no /dev/kvm");
    }
    let dir = tempfile::tempdir().unwrap();
    let before = sum(&image);
    let first = decide(Preference::Auto, Some(&image), dir.path()).await.unwrap();
    println!("{first:?}");
    let asked_again = Instant::now();
    let second = decide(Preference::Auto, Some(&image), dir.path()).await.unwrap();
    assert_eq!(first, second);
    assert!(
        asked_again.elapsed() < Duration::from_secs(1),
        "the verdict was not remembered"
    );
    assert_eq!(before, sum(&image));
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert!(
        !left.iter().any(|n| n.to_string_lossy().starts_with("kvm-try")),
        "{left:?}"
    );
}
