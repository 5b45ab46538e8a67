//! The owner of a VM against an imitated hypervisor: what is hard to bring about with a real one.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use hearth_service::tasks::Tasks;
use plasmavmc_client::agent::{Assignment, ImageRef, Nic, Observed, Power, VmSpec, VmState};
use plasmavmc_hypervisor::fake::{FakeHost, FakeHypervisor};
use plasmavmc_hypervisor::{HypervisorRegistry, MachineId};
use sha2::{Digest, Sha256};

use crate::config::{AgentConfig, NetworkPreference};
use crate::images::{ImageCache, ImageSource, ImageStream};
use crate::journal::Journal;
use crate::net::Network;
use crate::node::{Node, Parts, Refused};
use crate::vm::Held;

const IMAGE: &[u8] = b"an image";
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct OneImage;

struct OnePiece(Option<Bytes>);

impl ImageSource for OneImage {
    fn open(&self, _: &str, _: u64) -> BoxFuture<'_, Result<Box<dyn ImageStream>, String>> {
        async { Ok(Box::new(OnePiece(Some(Bytes::from_static(IMAGE)))) as Box<dyn ImageStream>) }.boxed()
    }
}

impl ImageStream for OnePiece {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, String>> {
        let piece = self.0.take();
        async move { Ok(piece) }.boxed()
    }
}

/// One node whose agent can be stopped and started again over the same host and folder.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) host: FakeHost,
    pub(crate) node: Arc<Node>,
    tasks: Tasks,
}

pub(crate) fn id() -> MachineId {
    MachineId::try_from("vm-1".to_owned()).unwrap()
}

pub(crate) async fn start_node(dir: &std::path::Path, host: &FakeHost) -> (Arc<Node>, Tasks) {
    let tasks = Tasks::new();
    let config = AgentConfig {
        guard_dir: None,
        node: "node01".parse().unwrap(),
        hubs: vec!["127.0.0.1:9".to_owned()],
        network: NetworkPreference::User,
        accelerator: plasmavmc_hypervisor::Preference::Tcg,
        resolver: "127.0.0.1:9".parse().unwrap(),
        vcpus: 2,
        memory_mib: 512,
        probe_image: None,
        verdict_dir: None,
        hypervisors: BTreeMap::new(),
        image_cache_mib: 1,
        metrics_listen: None,
        forward_ports: Vec::new(),
        user_outbound: false,
        labels: BTreeMap::new(),
    };
    let network = Network::open(&config, dir, &tasks).await.unwrap();
    let images = ImageCache::open(&dir.join("images"), 1, Arc::new(OneImage)).unwrap();
    let (journal, entries) = Journal::open(&dir.join("journal")).unwrap();
    let mut registry = HypervisorRegistry::new();
    registry.register(Arc::new(FakeHypervisor::new(host.clone())));
    let data_dir = dir.to_owned();
    let parts = Parts {
        config,
        data_dir,
        registry,
        images,
        network,
        journal,
        tasks: tasks.clone(),
    };
    (Node::start(parts, entries), tasks)
}

impl World {
    /// `None` where seed drives cannot be made.
    pub(crate) async fn new() -> Option<Self> {
        if std::process::Command::new("genisoimage")
            .arg("--version")
            .output()
            .is_err()
        {
            println!("SKIPPED: `genisoimage` is not installed (package genisoimage)");
            return None;
        }
        let (dir, host) = (tempfile::tempdir().unwrap(), FakeHost::new());
        let (node, tasks) = start_node(dir.path(), &host).await;
        Some(Self {
            dir,
            host,
            node,
            tasks,
        })
    }

    pub(crate) async fn restart(&mut self) {
        self.stop_agent().await;
        (self.node, self.tasks) = start_node(self.dir.path(), &self.host).await;
    }

    pub(crate) async fn stop_agent(&self) {
        self.tasks.stop("test");
        assert!(self.tasks.finished(LIMIT).await);
    }

    pub(crate) async fn observed(&self, wanted: VmState) -> Observed {
        self.observed_with(wanted, |_| true).await
    }

    pub(crate) async fn observed_with(&self, wanted: VmState, fits: impl Fn(&Observed) -> bool) -> Observed {
        let mut changed = self.node.observations.subscribe();
        let waiting = async {
            loop {
                let seen = self.node.observations.all();
                if let Some(o) = seen.get(&id()).filter(|o| o.state() == wanted && fits(o)) {
                    return o.clone();
                }
                changed.changed().await.unwrap();
            }
        };
        let result = tokio::time::timeout(LIMIT, waiting).await;
        result.unwrap_or_else(|_| panic!("no {wanted:?}: {:?}", self.node.observations.all()))
    }
}

pub(crate) fn wanted(power: Power) -> Assignment {
    let nic = Nic {
        mac: "02:00:00:00:00:01".to_owned(),
        address: Ipv4Addr::new(127, 77, 0, 1).to_string(),
        prefix_length: 16,
        ..Default::default()
    };
    let image = ImageRef {
        id: "tiny".to_owned(),
        sha256: hex::encode(Sha256::digest(IMAGE)),
        size_bytes: IMAGE.len() as u64,
        format: "raw".to_owned(),
    };
    let spec = VmSpec {
        name: "web".to_owned(),
        hostname: "web".to_owned(),
        vcpus: 1,
        memory_bytes: 64 << 20,
        image: Some(image),
        nic: Some(nic),
        ..Default::default()
    };
    Assignment {
        vm_id: "vm-1".to_owned(),
        epoch: 5,
        generation: 1,
        power: power.into(),
        delete: false,
        spec: Some(spec),
        graceful_stop_timeout_s: 1,
        ..Default::default()
    }
}

#[tokio::test]
async fn lower_epochs_are_refused_also_after_a_restart_and_after_deletion() {
    let Some(mut world) = World::new().await else {
        return;
    };
    world.node.assign(wanted(Power::On)).unwrap();
    world.observed(VmState::Running).await;
    let stale = Assignment {
        epoch: 4,
        delete: true,
        ..wanted(Power::Off)
    };
    let refuses = |node: &Arc<Node>| {
        let refused = node.assign(stale.clone()).unwrap_err();
        assert!(
            matches!(
                refused,
                Refused::Epoch {
                    offered: 4,
                    highest: 5
                }
            ),
            "{refused}"
        );
    };
    refuses(&world.node);
    world.restart().await;
    refuses(&world.node);
    world
        .node
        .assign(Assignment {
            delete: true,
            ..wanted(Power::On)
        })
        .unwrap();
    world.observed(VmState::Gone).await;
    assert_eq!(world.node.vms(), []);
    world.restart().await;
    refuses(&world.node);
    assert_eq!(world.host.starts(), 1);
    world.stop_agent().await;
}

#[tokio::test]
async fn metrics_count_what_is_observed() {
    let Some(world) = World::new().await else { return };
    let health = hearth_service::health::Health::new("agent");
    crate::metrics::register(&health, &world.node);
    world.node.assign(wanted(Power::On)).unwrap();
    world.observed(VmState::Running).await;
    let text = health.metrics();
    assert!(text.contains("hearth_agent_vms{state=\"running\"} 1\n"), "{text}");
    assert!(text.contains("hearth_agent_vms{state=\"failed\"} 0\n"), "{text}");
    assert!(text.contains("hearth_agent_memory_bytes 536870912\n"), "{text}");
    world.stop_agent().await;
}

#[tokio::test]
async fn a_higher_epoch_ends_the_older_incarnation_first() {
    let Some(world) = World::new().await else { return };
    world.node.assign(wanted(Power::On)).unwrap();
    let old = world.observed(VmState::Running).await;
    world
        .node
        .assign(Assignment {
            epoch: 6,
            ..wanted(Power::On)
        })
        .unwrap();
    let new = world
        .observed_with(VmState::Running, |o| o.epoch == 6 && o.pid != old.pid)
        .await;
    assert_eq!(
        (world.host.starts(), world.host.running(&id()).unwrap().epoch),
        (2, 6)
    );
    assert!(new.pid != 0);
    world.stop_agent().await;
}

#[tokio::test]
async fn a_guest_that_switched_itself_off_stays_off_until_something_else_is_wanted() {
    let Some(mut world) = World::new().await else {
        return;
    };
    world.node.assign(wanted(Power::On)).unwrap();
    world.observed(VmState::Running).await;
    world.host.power_off(&id());
    let off = world.observed(VmState::Stopped).await;
    assert_eq!(off.reason, "the guest switched itself off");
    world.restart().await;
    world.observed(VmState::Stopped).await;
    assert_eq!(world.host.starts(), 1);
    world
        .node
        .assign(Assignment {
            generation: 2,
            ..wanted(Power::On)
        })
        .unwrap();
    world
        .observed_with(VmState::Running, |o| o.observed_generation == 2)
        .await;
    assert_eq!(world.host.starts(), 2);
    world.stop_agent().await;
}

#[tokio::test]
async fn a_vanished_process_and_failed_starts_are_said_and_tried_again() {
    let Some(world) = World::new().await else { return };
    world.host.fail_starts(1);
    world.node.assign(wanted(Power::On)).unwrap();
    let failed = world.observed(VmState::Failed).await;
    assert_eq!(failed.reason, "imitation failed: told to fail");
    let first = world.observed(VmState::Running).await;
    world.host.crash(&id());
    let failed = world.observed(VmState::Failed).await;
    assert_eq!(failed.reason, "the guest's process vanished");
    world
        .observed_with(VmState::Running, |o| o.pid != first.pid)
        .await;
    world.stop_agent().await;
}

#[tokio::test]
async fn a_deaf_guest_is_ended_at_its_deadline_and_a_stop_can_be_taken_back() {
    let Some(world) = World::new().await else { return };
    world.node.assign(wanted(Power::On)).unwrap();
    let running = world.observed(VmState::Running).await;
    world.host.deaf_guests(true);
    let patient = Assignment {
        graceful_stop_timeout_s: 3600,
        generation: 2,
        ..wanted(Power::Off)
    };
    world.node.assign(patient).unwrap();
    world.observed(VmState::Stopping).await;
    world
        .node
        .assign(Assignment {
            generation: 3,
            ..wanted(Power::On)
        })
        .unwrap();
    let still = world
        .observed_with(VmState::Running, |o| o.observed_generation == 3)
        .await;
    assert_eq!(still.pid, running.pid);
    // It obeys the button late: that is our doing, so it is started again.
    world.host.power_off(&id());
    world
        .observed_with(VmState::Running, |o| o.pid != running.pid)
        .await;
    let asked = tokio::time::Instant::now();
    world
        .node
        .assign(Assignment {
            generation: 4,
            ..wanted(Power::Off)
        })
        .unwrap();
    world.observed(VmState::Stopped).await;
    assert!(
        asked.elapsed() >= Duration::from_secs(1),
        "ended before its deadline"
    );
    assert!(world.host.running(&id()).is_none());
    world.stop_agent().await;
}

#[tokio::test]
async fn guests_are_adopted_and_held_guests_come_back_with_the_next_agent() {
    let Some(mut world) = World::new().await else {
        return;
    };
    world.node.assign(wanted(Power::On)).unwrap();
    let running = world.observed(VmState::Running).await;
    world.restart().await;
    assert_eq!(world.observed(VmState::Running).await.pid, running.pid);
    assert_eq!(world.host.starts(), 1);
    let held = world.node.stop_guests(Duration::from_secs(5)).await;
    assert_eq!(held, BTreeMap::from([(id(), Some(Held::SwitchedOff))]));
    assert!(world.host.running(&id()).is_none());
    world.host.deaf_guests(true);
    world.restart().await;
    world.observed(VmState::Running).await;
    let held = world.node.stop_guests(Duration::ZERO).await;
    assert_eq!(held, BTreeMap::from([(id(), Some(Held::Forced))]));
    world.stop_agent().await;
}

#[tokio::test]
async fn an_action_has_one_effect_however_often_it_comes() {
    let Some(mut world) = World::new().await else {
        return;
    };
    world.node.assign(wanted(Power::On)).unwrap();
    world.observed(VmState::Running).await;
    for _ in 0..3 {
        world.node.reset_once("a1", "vm-1", 5).await.unwrap();
    }
    world.restart().await;
    world.node.reset_once("a1", "vm-1", 5).await.unwrap();
    assert_eq!(world.host.resets(&id()), 1);
    world.observed(VmState::Running).await;
    assert!(
        world.node.reset_once("a2", "vm-1", 4).await.is_err(),
        "a stale epoch"
    );
    assert!(world.node.reset_once("a3", "vm-2", 5).await.is_err(), "not here");
    assert_eq!(world.host.resets(&id()), 1);
    world.stop_agent().await;
}

#[tokio::test]
async fn what_is_not_assigned_any_more_is_left_alone_and_strangers_are_reported() {
    let Some(world) = World::new().await else { return };
    world.node.assign(wanted(Power::On)).unwrap();
    world.observed(VmState::Running).await;
    world.node.unassigned(&id());
    assert!(world.host.running(&id()).is_some());
    assert_eq!(world.node.vms(), [id()]);
    world.stop_agent().await;
    // The journal is lost: the guest is nobody's. It is not touched.
    std::fs::remove_dir_all(world.dir.path().join("journal")).unwrap();
    let (node, tasks) = start_node(world.dir.path(), &world.host).await;
    assert_eq!(node.orphans(), ["machine vm-1 is assigned by nobody"]);
    assert!(world.host.running(&id()).is_some());
    tasks.stop("test");
    assert!(tasks.finished(LIMIT).await);
}
