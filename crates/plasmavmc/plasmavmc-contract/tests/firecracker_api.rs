//! The imitation is strict, and what the backend sends is right: its own requests are accepted, every planted
//! deviation from them is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use plasmavmc_hypervisor::firecracker::Request;
use plasmavmc_hypervisor::firecracker::plan::{Boot, requests};
use plasmavmc_hypervisor::{DiskSpec, ImageFormat, MachineId, MachineSpec, NetBackend, NicSpec};
use serde_json::{Value, json};

/// One process of the imitation; ended with its owner.
struct Imitation {
    child: Child,
    dir: tempfile::TempDir,
}

impl Imitation {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["kernel", "disk.raw", "seed.iso"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let child = Command::new(env!("CARGO_BIN_EXE_firecracker-imitation"))
            .args(["--id", "api-test", "--api-sock", "api.sock"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let this = Self { child, dir };
        let started = Instant::now();
        while UnixStream::connect(this.socket()).is_err() {
            assert!(started.elapsed() < Duration::from_secs(30), "it does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        this
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("api.sock")
    }

    fn send(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// Sends all; the first refusal, if there is one.
    fn play(&self, all: &[Request]) -> Result<(), String> {
        for request in all {
            let body = request.body.as_ref().map_or_else(String::new, Value::to_string);
            let (status, answer) = self.send(request.method, request.path, &body);
            match status {
                200 | 204 => {}
                400 => return Err(answer["fault_message"].as_str().unwrap().to_owned()),
                other => panic!("status {other}"),
            }
        }
        Ok(())
    }
}

impl Drop for Imitation {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the backend sends for a machine with everything.
fn backend_s_requests(dir: &Path) -> Vec<Request> {
    let spec = MachineSpec {
        id: MachineId::try_from("api-test".to_owned()).unwrap(),
        epoch: 1,
        generation: 1,
        name: "api-test".to_owned(),
        vcpus: 2,
        memory_mib: 128,
        disk: DiskSpec {
            image: "/image".into(),
            format: ImageFormat::Raw,
            size_bytes: 0,
        },
        seed: Some(dir.join("seed.iso")),
        nic: Some(NicSpec {
            mac: "02:00:00:00:00:0c".to_owned(),
            backend: NetBackend::Tap {
                ifname: "hearth0c".to_owned(),
            },
        }),
        movable: false,
    };
    let boot = Boot {
        kernel: dir.join("kernel"),
        initrd: None,
        args: "console=ttyS0 reboot=k".to_owned(),
    };
    requests(&spec, &boot).unwrap()
}

#[test]
fn the_backend_s_own_requests_are_accepted_and_the_states_follow() {
    let imitation = Imitation::start();
    let all = backend_s_requests(imitation.dir.path());
    assert_eq!(imitation.send("GET", "/", "").1["state"], "Not started");
    imitation.play(&all).unwrap();
    assert_eq!(imitation.send("GET", "/", "").1["state"], "Running");
    for (wanted, state) in [("Paused", "Paused"), ("Paused", "Paused"), ("Resumed", "Running")] {
        assert_eq!(
            imitation
                .send("PATCH", "/vm", &json!({"state": wanted}).to_string())
                .0,
            204
        );
        assert_eq!(imitation.send("GET", "/", "").1["state"], state);
    }
    // Nothing of what comes before the start is taken after it.
    for request in &all {
        let refused = imitation.play(std::slice::from_ref(request)).unwrap_err();
        assert_eq!(
            refused,
            "The requested operation is not supported after starting the microVM."
        );
    }
}

/// A deviation that somebody might build into the backend, and what the refusal must say.
type Deviation = (&'static str, fn(&mut Vec<Request>), &'static str);

fn member(all: &mut [Request], path: &str, name: &str, value: Value) {
    let request = all.iter_mut().find(|r| r.path == path).unwrap();
    request.body.as_mut().unwrap()[name] = value;
}

fn without(all: &mut Vec<Request>, path: &str) {
    all.retain(|r| r.path != path);
}

fn drop_member(all: &mut [Request], path: &str, name: &str) {
    let request = all.iter_mut().find(|r| r.path == path).unwrap();
    request
        .body
        .as_mut()
        .unwrap()
        .as_object_mut()
        .unwrap()
        .remove(name)
        .unwrap();
}

const DEVIATIONS: &[Deviation] = &[
    (
        "no boot source",
        |a| without(a, "/boot-source"),
        "without kernel configuration",
    ),
    (
        "start first",
        |a| a.rotate_right(1),
        "without kernel configuration",
    ),
    (
        "pause before the start",
        |a| a.insert(0, patch_vm()),
        "not supported before starting",
    ),
    (
        "drive after the start",
        |a| {
            let d = a.remove(3);
            a.push(d)
        },
        "not supported after starting",
    ),
    (
        "network after the start",
        |a| {
            let n = a.remove(5);
            a.push(n)
        },
        "not supported after starting",
    ),
    (
        "start twice",
        |a| {
            let s = a.last().unwrap().clone();
            a.push(s)
        },
        "not supported after starting",
    ),
    (
        "unknown member",
        |a| member(a, "/machine-config", "cpus", json!(1)),
        "unknown field `cpus`",
    ),
    (
        "unknown member of a drive",
        |a| member(a, "/drives/root", "format", json!("raw")),
        "unknown field `format`",
    ),
    (
        "unknown member of a boot",
        |a| member(a, "/boot-source", "cmdline", json!("")),
        "unknown field `cmdline`",
    ),
    (
        "unknown member of a card",
        |a| member(a, "/network-interfaces/net0", "mac", json!("")),
        "unknown field `mac`",
    ),
    (
        "unknown member of the log",
        |a| member(a, "/logger", "path", json!("")),
        "unknown field `path`",
    ),
    (
        "unknown member of the noise",
        |a| member(a, "/entropy", "source", json!("")),
        "unknown field `source`",
    ),
    (
        "unknown member of an action",
        |a| member(a, "/actions", "force", json!(true)),
        "unknown field `force`",
    ),
    (
        "unknown action",
        |a| member(a, "/actions", "action_type", json!("Reset")),
        "unknown variant `Reset`",
    ),
    (
        "unknown log level",
        |a| member(a, "/logger", "level", json!("Loud")),
        "Invalid LevelFilter",
    ),
    (
        "CPUs as text",
        |a| member(a, "/machine-config", "vcpu_count", json!("2")),
        "invalid type",
    ),
    (
        "no CPU",
        |a| member(a, "/machine-config", "vcpu_count", json!(0)),
        "number of vCPUs",
    ),
    (
        "33 CPUs",
        |a| member(a, "/machine-config", "vcpu_count", json!(33)),
        "number of vCPUs",
    ),
    (
        "no memory",
        |a| member(a, "/machine-config", "mem_size_mib", json!(0)),
        "memory size",
    ),
    (
        "negative memory",
        |a| member(a, "/machine-config", "mem_size_mib", json!(-1)),
        "invalid value",
    ),
    (
        "memory missing",
        |a| drop_member(a, "/machine-config", "mem_size_mib"),
        "missing field `mem_size_mib`",
    ),
    (
        "kernel missing",
        |a| drop_member(a, "/boot-source", "kernel_image_path"),
        "missing field",
    ),
    (
        "no such kernel",
        |a| member(a, "/boot-source", "kernel_image_path", json!("/no")),
        "kernel file cannot be opened",
    ),
    (
        "no such initrd",
        |a| member(a, "/boot-source", "initrd_path", json!("/no")),
        "initrd file cannot be opened",
    ),
    (
        "endless arguments",
        |a| member(a, "/boot-source", "boot_args", "x".repeat(4096).into()),
        "command line is invalid",
    ),
    (
        "no such disk",
        |a| member(a, "/drives/root", "path_on_host", json!("/no")),
        "backing file",
    ),
    (
        "no disk",
        |a| drop_member(a, "/drives/root", "path_on_host"),
        "invalid combination",
    ),
    (
        "a disk of unsaid access",
        |a| drop_member(a, "/drives/root", "is_read_only"),
        "invalid combination",
    ),
    (
        "unknown cache",
        |a| member(a, "/drives/root", "cache_type", json!("None")),
        "unknown variant `None`",
    ),
    (
        "wrong id",
        |a| member(a, "/drives/root", "drive_id", json!("other")),
        "does not match the id from the body",
    ),
    (
        "card with a wrong id",
        |a| member(a, "/network-interfaces/net0", "iface_id", json!("x")),
        "does not match",
    ),
    (
        "two roots",
        |a| {
            member(a, "/drives/root", "is_root_device", json!(true));
            member(a, "/drives/seed", "is_root_device", json!(true))
        },
        "already exists",
    ),
    (
        "bad MAC",
        |a| member(a, "/network-interfaces/net0", "guest_mac", json!("02:00")),
        "MAC",
    ),
    (
        "device of a long name",
        |a| {
            member(
                a,
                "/network-interfaces/net0",
                "host_dev_name",
                json!("x".repeat(16)),
            )
        },
        "interface name",
    ),
    (
        "MTU of 1",
        |a| member(a, "/network-interfaces/net0", "mtu", json!(1)),
        "MTU",
    ),
    (
        "bad character in an id",
        |a| a.insert(0, put("/drives/ro-ot", json!({}))),
        "alphanumeric",
    ),
    (
        "no id",
        |a| a.insert(0, put("/drives", json!({}))),
        "ID cannot be empty",
    ),
    (
        "unknown path",
        |a| a.insert(0, put("/machine", json!({}))),
        "Invalid request method and/or path",
    ),
    ("no body", |a| a[0].body = None, "Empty PUT request."),
    (
        "a body with GET",
        |a| {
            a[0] = Request {
                method: "GET",
                path: "/",
                body: Some(json!({})),
            }
        },
        "cannot have a body",
    ),
    ("half of a body", |a| a[0].body = Some(json!("{")), "invalid type"),
];

fn put(path: &'static str, body: Value) -> Request {
    Request {
        method: "PUT",
        path,
        body: Some(body),
    }
}

fn patch_vm() -> Request {
    Request {
        method: "PATCH",
        path: "/vm",
        body: Some(json!({"state": "Paused"})),
    }
}

#[test]
fn every_planted_deviation_is_refused_with_the_reason() {
    for (what, plant, expected) in DEVIATIONS {
        let imitation = Imitation::start();
        let mut all = backend_s_requests(imitation.dir.path());
        plant(&mut all);
        match imitation.play(&all) {
            Ok(()) => panic!("{what}: it was accepted"),
            Err(message) => assert!(message.contains(expected), "{what}: {message}"),
        }
    }
}

#[test]
fn wrong_arguments_end_it_at_once() {
    for args in [
        &["--id", "a b", "--api-sock", "s"][..],
        &["--apisock", "s"],
        &["--id"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_firecracker-imitation"))
            .args(args)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{args:?}");
    }
}
