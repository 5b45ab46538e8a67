//! A real agent, a real guest (QEMU, TCG, the tiny image), and a control plane that says what is wanted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "support/hub.rs"]
mod hub;
#[path = "../../plasmavmc-hypervisor/tests/support/tiny.rs"]
mod tiny;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use hearth_service::config::TlsConfig;
use hearth_service::pki::Authority;
use hearth_service::tasks::{Kind, Tasks};
use hub::{Consoles, TestHub, certificate};
use plasmavmc_agent::{Config, run};
use plasmavmc_client::agent::{
    Action, Assignment, ConsoleChunk, ImageRef, Nic, OpenConsole, Power, Reset, VmSpec, VmState, action,
    hub_message,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::time::{sleep, timeout};

const BOOT_LIMIT: Duration = Duration::from_secs(100);
const VM: &str = "0190a1b2-0000-7000-8000-00000000000a";

struct World {
    dir: tempfile::TempDir,
    hub: TestHub,
    hub_address: String,
    consoles: Consoles,
    agent_tls: TlsConfig,
    network: &'static str,
    resolver: String,
    hub_tasks: Tasks,
}

impl World {
    async fn new(image: &Path, network: &'static str, resolver: String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create("hearth.internal", SystemTime::now()).unwrap();
        let hub_tls = certificate(&authority, dir.path(), "service/plasmavmc");
        let agent_tls = certificate(&authority, dir.path(), "node/node01");
        let hub_tasks = Tasks::new();
        let (hub, address, consoles) = TestHub::start(&hub_tls, image, &hub_tasks).await;
        Self {
            dir,
            hub,
            hub_address: address.to_string(),
            consoles,
            agent_tls,
            network,
            resolver,
            hub_tasks,
        }
    }

    fn data_dir(&self) -> PathBuf {
        // Longer than a socket's path may be, with everything that is put below it.
        self.dir.path().join("d".repeat(70))
    }

    fn config(&self) -> Config {
        let text = serde_json::json!({
            "service": {"name": "agent-node01", "data_dir": self.data_dir()},
            "tls": {"ca": self.agent_tls.ca, "cert": self.agent_tls.cert, "key": self.agent_tls.key},
            // Nobody listens there: guests must not care.
            "chainfire_client": {"endpoints": ["127.0.0.1:9"]},
            "agent": {"node": "node01", "hubs": ["127.0.0.1:9", self.hub_address], "network": self.network,
                      "accelerator": "tcg", "resolver": self.resolver, "forward_ports": [22, 7]},
        });
        serde_json::from_value(text).unwrap()
    }

    fn start_agent(&self) -> Tasks {
        hearth_service::telemetry::init(&self.config().service);
        let tasks = Tasks::new();
        let (config, group) = (self.config(), tasks.clone());
        tasks.spawn("agent", Kind::Critical, async move {
            let ended = run(config, group).await;
            if let Err(error) = &ended {
                eprintln!("the agent did not start: {}", hearth_service::tasks::chain(error));
            }
            Ok(ended?)
        });
        tasks
    }
}

/// Guests outlive everybody, also a test that fails.
impl Drop for World {
    fn drop(&mut self) {
        for folder in std::fs::read_dir(self.data_dir().join("vms"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let pid = std::fs::read_to_string(folder.path().join("qemu.pid")).unwrap_or_default();
            if let Ok(pid) = pid.trim().parse() {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
    }
}

async fn stop_agent(tasks: Tasks) {
    tasks.stop("test");
    assert!(
        tasks.finished(Duration::from_secs(20)).await,
        "the agent does not stop"
    );
}

fn assignment(image: &Path, nic: Nic) -> Assignment {
    let size_bytes = std::fs::metadata(image).unwrap().len();
    let sum = Command::new("sha256sum").arg(image).output().unwrap();
    let sha256 = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
    Assignment {
        vm_id: VM.to_owned(),
        epoch: 2,
        generation: 1,
        power: Power::On.into(),
        delete: false,
        spec: Some(VmSpec {
            name: "web".to_owned(),
            project: "default".to_owned(),
            hostname: "web".to_owned(),
            vcpus: 1,
            memory_bytes: 192 << 20,
            image: Some(ImageRef {
                id: "tiny".to_owned(),
                sha256,
                size_bytes,
                format: "qcow2".to_owned(),
            }),
            nic: Some(nic),
            ssh_keys: vec!["ssh-ed25519 AAAATESTKEY test".to_owned()],
            user_data: "#!/bin/sh\necho from-user-data >/run/ud\n".to_owned(),
            ..Default::default()
        }),
        graceful_stop_timeout_s: 20,
        ..Default::default()
    }
}

/// A console as a viewer sees it.
struct Viewer {
    from: tonic::Streaming<ConsoleChunk>,
    to: tokio::sync::mpsc::Sender<Result<ConsoleChunk, tonic::Status>>,
    seen: String,
}

impl Viewer {
    async fn open(world: &mut World, id: &str) -> Self {
        let open = OpenConsole {
            console_id: id.to_owned(),
            vm_id: VM.to_owned(),
        };
        world.hub.send(hub_message::Kind::OpenConsole(open));
        let (mut from, to) = timeout(Duration::from_secs(20), world.consoles.recv())
            .await
            .unwrap()
            .unwrap();
        let first = timeout(Duration::from_secs(20), from.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!((first.console_id.as_str(), first.error.as_str()), (id, ""));
        Self {
            from,
            to,
            seen: String::from_utf8_lossy(&first.data).into_owned(),
        }
    }

    /// Reads until `marker` is there; what was read up to it is used up.
    async fn until(&mut self, marker: &str) -> String {
        let started = Instant::now();
        loop {
            if let Some(at) = self.seen.find(marker) {
                let rest = self.seen.split_off(at + marker.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let left = BOOT_LIMIT.saturating_sub(started.elapsed());
            let chunk = timeout(left, self.from.message()).await;
            let chunk = chunk.unwrap_or_else(|_| panic!("no `{marker}`: {}", self.seen));
            let chunk = chunk
                .unwrap()
                .unwrap_or_else(|| panic!("closed before `{marker}`: {}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&chunk.data));
        }
    }

    async fn say(&self, text: &str) {
        let chunk = ConsoleChunk {
            data: text.as_bytes().to_vec(),
            ..Default::default()
        };
        self.to.send(Ok(chunk)).await.unwrap();
    }
}

async fn echo_until_answered(address: Ipv4Addr, port: u16) {
    let started = Instant::now();
    let echo = async || -> std::io::Result<[u8; 6]> {
        let mut stream = TcpStream::connect((address, port)).await?;
        stream.write_all(b"hello\n").await?;
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    };
    loop {
        match timeout(Duration::from_secs(3), echo()).await {
            Ok(Ok(answer)) => return assert_eq!(&answer, b"hello\n"),
            other => assert!(started.elapsed() < Duration::from_secs(40), "no echo: {other:?}"),
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn control(data_dir: &Path, request: &str) -> String {
    use std::os::fd::AsRawFd;
    let folder = std::fs::File::open(data_dir).unwrap();
    let path = format!("/proc/self/fd/{}/control.sock", folder.as_raw_fd());
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream
        .write_all(
            format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                .as_bytes(),
        )
        .await
        .unwrap();
    let mut answer = String::new();
    timeout(Duration::from_secs(60), stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    answer
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/fd/0")).exists()
}

fn left_behind(world: &World) -> Vec<String> {
    let mut left = Vec::new();
    for folder in ["vms", "seeds"] {
        let entries = std::fs::read_dir(world.data_dir().join(folder))
            .into_iter()
            .flatten()
            .flatten();
        left.extend(entries.map(|e| e.path().display().to_string()));
    }
    left
}

/// The whole life of a guest, with everything that the agent is there for.
async fn life(
    world: &mut World,
    mut wanted: Assignment,
    echo: (Ipv4Addr, u16),
    settings: &str,
    resolver: Option<UdpSocket>,
) {
    let agent = world.start_agent();
    world.hub.inventory(0).await;
    let status = world.hub.status().await;
    assert_eq!(
        (status.network_mode.as_str(), status.accelerator.as_str()),
        (world.network, "tcg")
    );
    assert!(status.memory_bytes > 0 && status.disk_bytes > 0 && status.vcpus > 0);

    let started = Instant::now();
    world.hub.assign(&wanted);
    let running = world.hub.observed(VM, VmState::Running).await;
    println!("running after {:.2} s", started.elapsed().as_secs_f64());
    assert_eq!(
        (
            running.epoch,
            running.observed_generation,
            running.accelerator.as_str()
        ),
        (2, 1, "tcg")
    );
    assert_eq!(
        world.hub.states(VM),
        [VmState::Preparing, VmState::Starting, VmState::Running]
    );
    world.hub.acked().await;
    let mut first = Viewer::open(world, "c1").await;
    let boot = first.until("web login: ").await;
    println!("login after {:.2} s", started.elapsed().as_secs_f64());
    assert!(boot.contains(&format!("settings from {settings}")), "{boot}");
    echo_until_answered(echo.0, echo.1).await;
    println!("echo after {:.2} s", started.elapsed().as_secs_f64());
    // Two viewers: one types, both see, the later one with history.
    let mut second = Viewer::open(world, "c2").await;
    first.say("root\n").await;
    first.until("# ").await;
    second.log_in_seen().await;
    second
        .say("while [ ! -s /run/ud ]; do sleep 0.2; done; cat /root/.ssh/authorized_keys /run/ud; hostname\n")
        .await;
    for viewer in [&mut first, &mut second] {
        let shown = viewer.until("from-user-data\r\nweb\r\n").await;
        assert!(shown.contains("AAAATESTKEY"), "{shown}");
    }

    if let Some(resolver) = resolver {
        guest_is_kept_in_its_place(&mut first, echo.0, resolver).await;
    }

    // The agent goes and comes back: same process, and the inventory tells so.
    stop_agent(agent).await;
    assert!(alive(running.pid), "the guest died with the agent");
    let agent = world.start_agent();
    let inventory = world.hub.inventory(1).await;
    assert_eq!(
        inventory
            .vms
            .iter()
            .map(|o| (o.pid, o.state()))
            .collect::<Vec<_>>(),
        [(running.pid, VmState::Running)]
    );
    assert_eq!(inventory.orphans, Vec::<String>::new());
    echo_until_answered(echo.0, echo.1).await;

    // Switched off by the user, in good order; and on again, from the cached image.
    wanted.generation = 2;
    wanted.power = Power::Off.into();
    let asked = Instant::now();
    world.hub.assign(&wanted);
    let stopped = world.hub.observed(VM, VmState::Stopped).await;
    println!("stopped after {:.2} s", asked.elapsed().as_secs_f64());
    assert_eq!((stopped.observed_generation, stopped.reason.as_str()), (2, ""));
    assert!(!alive(running.pid));
    let mut on = wanted.clone();
    (on.generation, on.power) = (3, Power::On.into());
    world.hub.assign(&on);
    let again = world.hub.observed(VM, VmState::Running).await;
    assert_eq!((world.hub.fetches(), again.pid == running.pid), (1, false));
    let mut third = Viewer::open(world, "c3").await;
    assert!(
        third.seen.contains("powering off"),
        "the history goes back to before the stop: {}",
        third.seen
    );
    reset_twice(world, &mut third).await;
    held_and_back(world, again.pid, agent).await;
}

/// `hearth down` stops the guests, the next start brings them back. Then the VM is deleted.
async fn held_and_back(world: &World, pid: u32, agent: Tasks) {
    // The guest still boots and cannot hear the button: it is ended at once.
    let answer = control(&world.data_dir(), "POST /stop-guests?deadline_s=0").await;
    assert!(answer.contains(&format!("\"forced\":[\"{VM}\"]")), "{answer}");
    assert!(!alive(pid));
    let guests = control(&world.data_dir(), "GET /guests").await;
    assert!(
        guests.contains("\"state\":\"stopped\"") && guests.contains("going down"),
        "{guests}"
    );
    stop_agent(agent).await;
    world.hub.forget(VM);
    let agent = world.start_agent();
    let last = world.hub.observed(VM, VmState::Running).await;
    world.hub.assign_deletion(VM);
    world.hub.observed(VM, VmState::Gone).await;
    assert!(!alive(last.pid));
    assert_eq!(left_behind(world), Vec::<String>::new());
    let peers = world.hub.peers();
    assert!(peers.iter().all(|p| p == "node/node01"), "{peers:?}");
    stop_agent(agent).await;
}

async fn reset_twice(world: &mut World, viewer: &mut Viewer) {
    let reset = Action {
        action_id: "act-1".to_owned(),
        vm_id: VM.to_owned(),
        epoch: 2,
        kind: Some(action::Kind::Reset(Reset {})),
    };
    viewer.seen.clear();
    world.hub.send(hub_message::Kind::Action(reset.clone()));
    let result = world.hub.result("act-1", 0).await;
    assert!(result.ok, "{}", result.error);
    world.hub.send(hub_message::Kind::Action(reset));
    assert!(world.hub.result("act-1", 1).await.ok);
    viewer.until("hearth-tiny: kernel is up").await;
    let stale = Action {
        action_id: "act-2".to_owned(),
        vm_id: VM.to_owned(),
        epoch: 1,
        kind: Some(action::Kind::Reset(Reset {})),
    };
    world.hub.send(hub_message::Kind::Action(stale));
    assert!(
        !world.hub.result("act-2", 0).await.ok,
        "an action of another epoch was done"
    );
}

impl Viewer {
    /// Another viewer logs in; this one sees it.
    async fn log_in_seen(&mut self) {
        self.until("web login: ").await;
        self.until("# ").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_mode() {
    let image = match tiny::image() {
        Ok(image) => image,
        Err(reason) => return println!("SKIPPED: {reason}"),
    };
    if Command::new("genisoimage").arg("--version").output().is_err() {
        return println!("SKIPPED: `genisoimage` is not installed (package genisoimage)");
    }
    let low = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, 77, low[2], low[3] | 1);
    if std::net::TcpListener::bind((address, 7)).is_err() {
        return println!("SKIPPED: port 7 of {address} cannot be bound (not root, or taken)");
    }
    let mut world = World::new(&image, "user", "127.0.0.1:9".to_owned()).await;
    let nic = Nic {
        mac: "02:00:00:00:00:0a".to_owned(),
        address: address.to_string(),
        prefix_length: 16,
        ..Default::default()
    };
    life(&mut world, assignment(&image, nic), (address, 7), "seed", None).await;
    world.hub_tasks.stop("test");
}

/// Runs the test `routed_mode_inside` in a network namespace of its own.
#[test]
fn routed_mode() {
    if let Err(reason) = tiny::image() {
        return println!("SKIPPED: {reason}");
    }
    let possible = Command::new("unshare")
        .args(["--net", "nft", "list", "tables"])
        .output();
    if !possible.is_ok_and(|o| o.status.success()) || !Path::new("/dev/net/tun").exists() {
        return println!("SKIPPED: no privilege for network namespaces, no nft, or no /dev/net/tun");
    }
    let script = "ip link set lo up && exec \"$0\" --exact routed_mode_inside --ignored --nocapture";
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("1 passed"), "the inner test did not run");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by `routed_mode` in a network namespace of its own"]
async fn routed_mode_inside() {
    let image = tiny::image().unwrap();
    let resolver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut world = World::new(&image, "routed", resolver.local_addr().unwrap().to_string()).await;
    let address = Ipv4Addr::new(10, 77, 0, 10);
    let nic = Nic {
        mac: "02:00:00:00:00:0a".to_owned(),
        address: address.to_string(),
        prefix_length: 16,
        gateway: "10.77.0.1".to_owned(),
        search_domain: "default.hearth.internal".to_owned(),
        ..Default::default()
    };
    life(
        &mut world,
        assignment(&image, nic),
        (address, 7),
        "metadata",
        Some(resolver),
    )
    .await;
    let links = Command::new("ip").args(["-o", "link"]).output().unwrap();
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(!links.contains(": hv"), "a tap is left: {links}");
    let routes = Command::new("ip").args(["route"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&routes.stdout), "");
    let rules = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&rules.stdout), "");
    world.hub_tasks.stop("test");
}

/// What the guest may and may not do on its tap.
async fn guest_is_kept_in_its_place(viewer: &mut Viewer, address: Ipv4Addr, resolver: UdpSocket) {
    let secret = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = secret.local_addr().unwrap().port();
    viewer.seen.clear();
    // Its questions reach the node's resolver.
    viewer.say("nslookup web.default.hearth.internal\n").await;
    let mut question = [0; 512];
    let n = timeout(Duration::from_secs(30), resolver.recv(&mut question))
        .await
        .unwrap()
        .unwrap();
    let asked = String::from_utf8_lossy(&question[..n]).into_owned();
    assert!(
        asked.contains("hearth") && asked.contains("internal"),
        "{asked:?}"
    );
    viewer.say("\x03").await;
    viewer.until("# ").await;
    // Other services of this machine do not answer it.
    viewer
        .say(&format!("nc -w 2 10.77.0.1 {port} </dev/null; echo code $?\n"))
        .await;
    let shown = viewer.until("code 1\r\n").await;
    assert!(!shown.contains("code 0"), "{shown}");
    // Nor can it speak under another address.
    let dropped = async {
        loop {
            let rules = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
            let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
            let line = rules
                .lines()
                .find(|l| l.contains(&format!("ip saddr != {address} counter")));
            if line.is_some_and(|l| !l.contains("packets 0 ")) {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    viewer
        .say("ip addr add 10.77.0.99/32 dev eth0; ping -c 2 -W 1 -I 10.77.0.99 10.77.0.1\n")
        .await;
    timeout(Duration::from_secs(20), dropped)
        .await
        .expect("no packet with a foreign address was dropped");
}
