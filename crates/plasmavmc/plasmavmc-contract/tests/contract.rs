//! The contract suite over every backend: QEMU, Firecracker's imitation, the real Firecracker where one is
//! named, and the backend that lives in memory only.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "support/suite.rs"]
mod suite;
#[path = "../../plasmavmc-hypervisor/tests/support/sweep.rs"]
mod sweep;
#[path = "../../plasmavmc-hypervisor/tests/support/tiny.rs"]
mod tiny;
#[path = "support/toy.rs"]
mod toy;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plasmavmc_hypervisor::fake::{FakeHost, FakeHypervisor};
use plasmavmc_hypervisor::firecracker::Settings;
use plasmavmc_hypervisor::{
    Accelerator, AcceleratorKind, Capabilities, DiskSpec, FirecrackerBackend, Host, Hypervisor,
    HypervisorRegistry, ImageFormat, KvmBackend, MachineId, MachineSpec, NetBackend, NicSpec, Preference,
};
use serde_json::json;
use suite::{Subject, kill_process};

fn spec(name: &str, image: &Path, format: ImageFormat) -> MachineSpec {
    MachineSpec {
        id: MachineId::try_from(format!("{name}-{}", std::process::id())).unwrap(),
        epoch: 3,
        generation: 7,
        name: name.to_owned(),
        vcpus: 1,
        memory_mib: 192,
        disk: DiskSpec {
            image: image.to_owned(),
            format,
            size_bytes: 0,
        },
        seed: None,
        nic: None,
        movable: false,
    }
}

/// A root whose sockets have longer paths than a Unix socket may have.
fn long_root(dir: &Path) -> PathBuf {
    let root = dir.join("a".repeat(60)).join("b".repeat(60));
    std::fs::create_dir_all(&root).unwrap();
    root.canonicalize().unwrap()
}

fn raw_image(dir: &Path) -> PathBuf {
    let image = dir.join("image.raw");
    std::fs::write(&image, vec![0x5a; 1 << 20]).unwrap();
    image
}

#[tokio::test]
async fn qemu_keeps_the_contract() {
    let image = match tiny::image() {
        Ok(image) => image,
        Err(reason) => return println!("SKIPPED: {reason}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let root = long_root(dir.path());
    let at = root.clone();
    let subject = Subject {
        open: Box::new(move || {
            let accelerator = Accelerator {
                kind: AcceleratorKind::Tcg,
                reason: "test".to_owned(),
            };
            Arc::new(KvmBackend::new(&at, accelerator).unwrap())
        }),
        spec: spec("contract-qemu", &image, ImageFormat::Qcow2),
        root: Some(root),
        up: "hearth-tiny: kernel is up",
        ready: "tiny login: ",
        typed: None, // tests/qemu.rs of the hypervisor's crate logs in
        tick: None,
        deafen: Box::new(|| {}), // a guest that boots is deaf
        vanish: Box::new(kill_process),
    };
    suite::run(&subject).await;
}

#[tokio::test]
async fn a_backend_in_memory_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let image = raw_image(dir.path());
    let host = FakeHost::new();
    let spec = spec("contract-memory", &image, ImageFormat::Raw);
    let (at, deaf, gone, id) = (host.clone(), host.clone(), host, spec.id.clone());
    let subject = Subject {
        open: Box::new(move || Arc::new(FakeHypervisor::named("imitation", at.clone()))),
        spec,
        root: None,
        up: "imitated console",
        ready: "imitated console",
        typed: None,
        tick: None,
        deafen: Box::new(move || deaf.deaf_guests(true)),
        vanish: Box::new(move |_| gone.crash(&id)),
    };
    suite::run(&subject).await;
}

#[tokio::test]
async fn firecracker_keeps_the_contract_against_a_strict_imitation() {
    if std::process::Command::new("qemu-img")
        .arg("--version")
        .output()
        .is_err()
    {
        return println!("SKIPPED: `qemu-img` is not installed (package qemu-utils)");
    }
    let dir = tempfile::tempdir().unwrap();
    let (kernel, seed) = (dir.path().join("kernel"), dir.path().join("seed.iso"));
    std::fs::write(&kernel, "kernel").unwrap();
    std::fs::write(&seed, "seed").unwrap();
    let mut spec = spec("contract-firecracker", &raw_image(dir.path()), ImageFormat::Raw);
    spec.disk.size_bytes = 8 << 20;
    spec.seed = Some(seed);
    // The imitation opens no device: everything about this one but its existence is checked.
    spec.nic = Some(NicSpec {
        mac: "02:00:00:00:00:0a".to_owned(),
        backend: NetBackend::Tap {
            ifname: "hearth0a".to_owned(),
        },
    });
    let settings = Settings {
        program: env!("CARGO_BIN_EXE_firecracker-imitation").into(),
        kernel,
        initrd: None,
        boot_args: "console=ttyS0 reboot=k panic=1".to_owned(),
    };
    let root = long_root(dir.path());
    let at = root.clone();
    let subject = Subject {
        open: Box::new(move || Arc::new(FirecrackerBackend::new(&at, settings.clone()).unwrap())),
        spec,
        root: Some(root),
        up: "imitation: kernel is up",
        ready: "imitation: kernel is up",
        typed: Some(("hello\n", "heard: hello")),
        tick: Some("tick "),
        deafen: Box::new(|| {}), // it takes longer to end than the grace
        vanish: Box::new(kill_process),
    };
    suite::run(&subject).await;
}

/// With a toy kernel of a few instructions: it ticks, and resets itself on Ctrl+Alt+Del. Ordinary kernels
/// hang under the nested KVM of many test machines; this one runs.
#[tokio::test]
async fn the_real_firecracker_keeps_the_contract() {
    let Some(program) = std::env::var_os("HEARTH_FIRECRACKER").map(PathBuf::from) else {
        return println!("SKIPPED: HEARTH_FIRECRACKER names no firecracker binary");
    };
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        return println!("SKIPPED: /dev/kvm cannot be opened: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("kernel");
    std::fs::write(&kernel, toy::kernel()).unwrap();
    let settings = Settings {
        program: program.canonicalize().unwrap(),
        kernel,
        initrd: None,
        boot_args: "console=ttyS0 reboot=k panic=1".to_owned(),
    };
    let mut spec = spec("contract-real", &raw_image(dir.path()), ImageFormat::Raw);
    spec.seed = Some(raw_image(dir.path()));
    let root = long_root(dir.path());
    let at = root.clone();
    let subject = Subject {
        open: Box::new(move || Arc::new(FirecrackerBackend::new(&at, settings.clone()).unwrap())),
        spec,
        root: Some(root),
        up: toy::UP,
        ready: toy::UP,
        typed: None,
        tick: Some(toy::TICK),
        deafen: Box::new(|| {}),
        vanish: Box::new(kill_process),
    };
    suite::run(&subject).await;
}

/// The registry is the only place that knows the backends: a third one, which nothing outside that crate
/// has heard of, is chosen by its name in the configuration and keeps the contract like the others.
#[tokio::test]
async fn a_third_backend_is_chosen_by_its_name_from_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let host = Host {
        data_dir: dir.path().to_owned(),
        accelerator: Preference::Tcg,
        probe_image: None,
        verdict_dir: dir.path().to_owned(),
    };
    let settings = BTreeMap::from([("imitation".to_owned(), json!({}))]);
    let registry = HypervisorRegistry::open(&host, &settings).await.unwrap();
    let names: Vec<_> = registry.iter().map(|h| h.name()).collect();
    assert_eq!(names, ["imitation", "kvm"]);
    let third = registry.get("imitation").unwrap().clone();
    let mut spec = spec("third", &raw_image(dir.path()), ImageFormat::Raw);
    spec.seed = None;
    let at: Arc<dyn Hypervisor> = third.clone();
    let mut machine = at.start(&spec).await.unwrap();
    machine.pause().await.unwrap();
    machine.resume().await.unwrap();
    machine.end().await.unwrap();
    third.delete(&spec.id).await.unwrap();
}

#[tokio::test]
async fn capabilities_are_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("kernel");
    std::fs::write(&kernel, "kernel").unwrap();
    let settings = Settings {
        program: env!("CARGO_BIN_EXE_firecracker-imitation").into(),
        kernel,
        initrd: None,
        boot_args: String::new(),
    };
    let backend = FirecrackerBackend::new(&dir.path().join("vms"), settings).unwrap();
    let expected = Capabilities {
        max_vcpus: 32,
        user_network: false,
        reboot_by_guest: false,
        reset_in_place: false,
        vnc: false,
        hot_plug_disks: false,
        live_migration: false,
    };
    assert_eq!(backend.capabilities(), expected);
    let mut spec = spec("user-network", &raw_image(dir.path()), ImageFormat::Raw);
    spec.nic = Some(NicSpec {
        mac: "02:00:00:00:00:0b".to_owned(),
        backend: NetBackend::User {
            forwards: Vec::new(),
            outbound: false,
        },
    });
    let error = backend.start(&spec).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("firecracker cannot use the user-mode network"),
        "{error}"
    );
    assert!(backend.inventory().unwrap().machines.is_empty());
}
