//! The host on its thread, with real files; messages go from queue to queue.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::any::Any;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use raft_host::wire::{Body, Entry, PeerMessage, RaftMessage};
use raft_host::{
    Applied, Committed, ConfChange, ConfChangeError, DefaultFileSystem, GroupConfig, HostConfig, HostHandle,
    LogConfig, MachineError, NodeId, OpenError, Payload, Peer, ProposeError, SnapshotSink, SnapshotSource,
    StateMachine, TransferError, Transport,
};

const LONG: Duration = Duration::from_secs(30);

/// Remembers all commands; outlives its host.
#[derive(Clone, Default)]
struct Lines {
    state: Arc<Mutex<(u64, Vec<String>)>>,
}

impl Lines {
    fn all(&self) -> Vec<String> {
        self.state.lock().unwrap().1.clone()
    }
}

impl StateMachine for Lines {
    fn applied_index(&self) -> u64 {
        self.state.lock().unwrap().0
    }

    fn apply(&mut self, entries: &[Committed<'_>]) -> Result<Vec<Bytes>, MachineError> {
        let mut state = self.state.lock().unwrap();
        let mut responses = Vec::new();
        for entry in entries {
            if let Payload::Command(command) = entry.payload {
                state.1.push(String::from_utf8(command.to_vec())?);
            }
            state.0 = entry.index;
            responses.push(Bytes::from(state.1.len().to_string()));
        }
        Ok(responses)
    }

    fn persist(&mut self) -> Result<u64, MachineError> {
        Ok(self.applied_index())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(LinesSource(self.all().join("\n").into())))
    }

    fn receive(&mut self) -> Result<Box<dyn SnapshotSink>, MachineError> {
        Ok(Box::<LinesSink>::default())
    }

    fn restore(&mut self, index: u64, sink: Box<dyn SnapshotSink>) -> Result<(), MachineError> {
        let sink: Box<dyn Any> = sink;
        let sink = sink.downcast::<LinesSink>().map_err(|_| "a foreign sink")?;
        let text = String::from_utf8(sink.0)?;
        *self.state.lock().unwrap() = (index, text.lines().map(str::to_owned).collect());
        Ok(())
    }
}

#[derive(Default)]
struct LinesSink(Vec<u8>);

impl SnapshotSink for LinesSink {
    fn feed(&mut self, data: &[u8]) -> Result<(), MachineError> {
        self.0.extend_from_slice(data);
        Ok(())
    }
}

struct LinesSource(Bytes);

impl SnapshotSource for LinesSource {
    fn next_chunk(&mut self, max: usize) -> Result<Option<Bytes>, MachineError> {
        let take = max.min(self.0.len());
        Ok((take > 0).then(|| self.0.split_to(take)))
    }
}

type Routes = Arc<Mutex<HashMap<NodeId, HostHandle>>>;

struct Queues(Routes);

impl Transport for Queues {
    fn send(&mut self, message: PeerMessage) {
        let to = self.0.lock().unwrap().get(&message.to).cloned();
        if let Some(to) = to {
            to.step(message);
        }
    }

    fn peer_changed(&mut self, _node: NodeId, _address: Option<&str>) {}
}

fn config(node: NodeId, dir: &Path) -> HostConfig {
    HostConfig {
        node,
        log_dir: dir.join(format!("log-{node}")),
        incarnation: 7 * node,
        seed: 1,
        // Elections only after half a second: test machines are busy.
        tick: Duration::from_millis(50),
        request_timeout_ticks: 500,
        compact_entries: 50,
        keep_entries: 10,
        snapshot_chunk_bytes: 100,
        log: LogConfig {
            file_bytes: 64 << 10,
            purge_bytes: 256 << 10,
            prefill_bytes: 0,
        },
        ..HostConfig::default()
    }
}

fn peer(id: NodeId) -> Peer {
    Peer {
        id,
        address: format!("node-{id}"),
    }
}

fn start(node: NodeId, dir: &Path, initial: &[Peer], lines: &Lines, routes: &Routes) -> HostHandle {
    let group = GroupConfig {
        id: 1,
        initial: initial.to_vec(),
        machine: Box::new(lines.clone()),
    };
    let file_system = Arc::new(DefaultFileSystem);
    let handle = raft_host::start(
        config(node, dir),
        file_system,
        Queues(routes.clone()),
        vec![group],
    )
    .unwrap();
    routes.lock().unwrap().insert(node, handle.clone());
    handle
}

/// Ends a host and waits until its files are free.
async fn stop(handle: HostHandle, routes: &Routes, node: NodeId) {
    routes.lock().unwrap().remove(&node);
    let mut failed = handle.failed();
    handle.shutdown();
    while failed.changed().await.is_ok() {}
    // The watch closes a moment before the log does.
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn leader(of: &HostHandle) -> NodeId {
    let mut watch = of.leader(1).unwrap();
    let found = tokio::time::timeout(LONG, watch.wait_for(|info| info.leader.is_some())).await;
    found.expect("a leader in time").unwrap().leader.unwrap()
}

/// Proposes until a leader takes it: on a busy machine leadership moves, and a refusal is definite.
async fn propose(host: &HostHandle, text: String) -> Applied {
    let deadline = Instant::now() + LONG;
    loop {
        match host.propose(1, text.clone().into()).await {
            Ok(applied) => return applied,
            Err(ProposeError::NotLeader { .. } | ProposeError::Dropped | ProposeError::Busy) => {
                assert!(Instant::now() < deadline, "nobody takes proposals");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(e) => panic!("{e}"),
        }
    }
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done().await {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

struct Three {
    dir: tempfile::TempDir,
    routes: Routes,
    lines: HashMap<NodeId, Lines>,
    hosts: HashMap<NodeId, HostHandle>,
}

fn three() -> Three {
    let dir = tempfile::tempdir().unwrap();
    let routes = Routes::default();
    let peers = [peer(1), peer(2), peer(3)];
    let lines: HashMap<NodeId, Lines> = (1..=3).map(|id| (id, Lines::default())).collect();
    let hosts = (1..=3)
        .map(|id| (id, start(id, dir.path(), &peers, &lines[&id], &routes)))
        .collect();
    Three {
        dir,
        routes,
        lines,
        hosts,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_takes_proposals_and_reads() {
    let three = three();
    let leader = leader(&three.hosts[&1]).await;
    let mut index = 0;
    for id in 1..=3 {
        until("a leader is known", async || {
            three.hosts[&id].leader(1).unwrap().borrow().leader == Some(leader)
        })
        .await;
        let applied = propose(&three.hosts[&id], format!("from {id}")).await;
        assert_eq!(
            applied.response,
            id.to_string(),
            "the response of this node's own state machine"
        );
        assert!(applied.index > index);
        index = applied.index;
        assert_eq!(three.lines[&id].all().len() as u64, id);
    }
    for id in 1..=3 {
        assert!(three.hosts[&id].read_index(1).await.unwrap() >= index);
        assert_eq!(three.lines[&id].all(), ["from 1", "from 2", "from 3"]);
    }
    let status = three.hosts[&leader].status(1).await.unwrap();
    assert_eq!(status.leader.leader, Some(leader));
    assert!(status.applied >= index && !status.fsyncs.is_empty());
    assert_eq!(status.progress.len(), 2);
    assert_eq!(status.membership.voters().collect::<Vec<_>>(), [1, 2, 3]);

    let big = vec![0u8; (2 << 20) + 1];
    let error = three.hosts[&leader].propose(1, big.into()).await.unwrap_err();
    assert!(matches!(error, ProposeError::TooBig { .. }));
    assert_eq!(
        three.hosts[&1].propose(9, Bytes::new()).await,
        Err(ProposeError::NoGroup(9))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_proposals_share_a_sync() {
    let three = three();
    let host = three.hosts[&leader(&three.hosts[&1]).await].clone();
    let waits = (0..2000).map(|n| {
        let host = host.clone();
        async move { propose(&host, n.to_string()).await }
    });
    let waits: Vec<_> = waits.map(Box::pin).collect();
    let begin = host.status(1).await.unwrap();
    let mut set = tokio::task::JoinSet::new();
    for wait in waits {
        set.spawn(wait);
    }
    let applied = set.join_all().await;
    assert_eq!(applied.len(), 2000);
    let end = host.status(1).await.unwrap();
    assert!(end.applied - begin.applied >= 2000);
    let syncs = end.syncs - begin.syncs;
    assert!(syncs < 500, "{syncs} syncs for 2000 proposals");
    let leader_lines = three.lines[&end.node].all();
    assert_eq!(leader_lines.len(), 2000, "each exactly once");
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_and_members_change_under_snapshots() {
    let mut three = three();
    let first = leader(&three.hosts[&1]).await;
    let other = if first == 1 { 2 } else { 1 };
    assert!(matches!(
        three.hosts[&other].transfer_leader(1, other).await,
        Err(TransferError::NotLeader { .. })
    ));
    assert_eq!(
        three.hosts[&first].transfer_leader(1, 9).await,
        Err(TransferError::NotVoter(9))
    );
    three.hosts[&first].transfer_leader(1, other).await.unwrap();
    until("the new leader knows", async || {
        three.hosts[&other].leader(1).unwrap().borrow().leader == Some(other)
    })
    .await;
    let host = three.hosts[&other].clone();
    for n in 0..200 {
        propose(&host, format!("line {n}")).await;
    }
    let status = host.status(1).await.unwrap();
    assert!(status.first_index > 100, "the log is compacted: {status:?}");

    assert_eq!(
        host.conf_change(1, ConfChange::Remove(other)).await,
        Err(ConfChangeError::IsLeader)
    );
    assert!(matches!(
        host.conf_change(1, ConfChange::Promote(4)).await,
        Err(ConfChangeError::Invalid(_))
    ));
    let lines = Lines::default();
    let joined = start(4, three.dir.path(), &[], &lines, &three.routes);
    let members = host
        .conf_change(1, ConfChange::AddLearner(peer(4)))
        .await
        .unwrap();
    assert!(members.get(4).unwrap().learner);
    until("the learner has everything", async || lines.all().len() == 200).await;
    host.conf_change(1, ConfChange::Promote(4)).await.unwrap();
    let gone = (1..=3).find(|id| *id != other).unwrap();
    let members = host.conf_change(1, ConfChange::Remove(gone)).await.unwrap();
    assert_eq!(members.get(gone), None);
    assert_eq!(members.get(4).unwrap().address, "node-4");
    let moved = Peer {
        id: 4,
        address: "elsewhere".to_owned(),
    };
    let before = members.voters().count();
    let members = host.conf_change(1, ConfChange::Update(moved)).await.unwrap();
    assert_eq!(
        (members.get(4).unwrap().address.as_str(), members.voters().count()),
        ("elsewhere", before)
    );
    let nobody = ConfChange::Update(peer(77));
    assert!(matches!(
        host.conf_change(1, nobody).await,
        Err(ConfChangeError::Invalid(_))
    ));
    until("the new one knows its own address", async || {
        joined
            .membership(1)
            .unwrap()
            .borrow()
            .get(4)
            .is_some_and(|m| m.address == "elsewhere")
    })
    .await;
    let removed = three.hosts.remove(&gone).unwrap();
    stop(removed, &three.routes, gone).await;
    propose(&joined, "from the new one".to_owned()).await;
    assert_eq!(lines.all().last().unwrap(), "from the new one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_host_has_its_log_and_a_busy_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let routes = Routes::default();
    let host = start(1, dir.path(), &[peer(1)], &Lines::default(), &routes);
    leader(&host).await;
    for n in 0..30 {
        propose(&host, n.to_string()).await;
    }
    let twice = raft_host::start(
        config(1, dir.path()),
        Arc::new(DefaultFileSystem),
        Queues(routes.clone()),
        vec![],
    );
    assert!(matches!(twice, Err(OpenError::Locked { .. })), "{twice:?}");
    stop(host, &routes, 1).await;
    // An empty state machine: everything comes back from the log.
    let lines = Lines::default();
    let host = start(1, dir.path(), &[peer(1)], &lines, &routes);
    leader(&host).await;
    host.read_index(1).await.unwrap();
    assert_eq!(lines.all().len(), 30);
    stop(host, &routes, 1).await;
}

/// A log with 30 commands in it, not in use.
async fn closed_log(dir: &Path) {
    let routes = Routes::default();
    let host = start(1, dir, &[peer(1)], &Lines::default(), &routes);
    leader(&host).await;
    for n in 0..30 {
        propose(&host, n.to_string()).await;
    }
    stop(host, &routes, 1).await;
}

fn open(dir: &Path, lines: Lines) -> Result<HostHandle, OpenError> {
    let group = GroupConfig {
        id: 1,
        initial: vec![peer(1)],
        machine: Box::new(lines),
    };
    raft_host::start(
        config(1, dir),
        Arc::new(DefaultFileSystem),
        Queues(Routes::default()),
        vec![group],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_refused_with_folder_and_cure() {
    let dir = tempfile::tempdir().unwrap();
    closed_log(dir.path()).await;
    let folder = dir.path().join("log-1");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "raftlog"));
    let path = files.iter().max().unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
    for attempt in 0..2 {
        let error = open(dir.path(), Lines::default()).unwrap_err();
        assert!(
            matches!(error, OpenError::Damaged { .. }),
            "attempt {attempt}: {error}"
        );
        let text = error.to_string();
        assert!(
            text.contains(folder.to_str().unwrap()) && text.contains("add it again"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_ahead_of_its_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    closed_log(dir.path()).await;
    let ahead = Lines::default();
    ahead.state.lock().unwrap().0 = 5_000;
    let error = open(dir.path(), ahead).unwrap_err();
    assert!(matches!(error, OpenError::Mismatch { group: 1, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_of_a_peer_change_nothing() {
    let three = three();
    let leader = leader(&three.hosts[&1]).await;
    let victim = if leader == 1 { 2 } else { 1 };
    let host = &three.hosts[&victim];
    let term = host.status(1).await.unwrap().leader.term;
    let raft = |kind, index, entries| {
        Body::Raft(RaftMessage {
            kind,
            term,
            index,
            entries,
            ..RaftMessage::default()
        })
    };
    let entry = |index, term| Entry {
        index,
        term,
        ..Entry::default()
    };
    let bad = [
        None,
        Some(raft(0, 0, vec![])),
        Some(raft(2, 0, vec![entry(1, 1)])),
        Some(raft(7, 0, vec![])),
        Some(raft(99, 0, vec![])),
        Some(raft(3, 1, vec![entry(5, term)])),
        Some(raft(3, 1, vec![entry(2, term + 9)])),
        Some(raft(15, 0, vec![])),
        Some(raft(16, 0, vec![])),
    ];
    for body in bad {
        host.step(PeerMessage {
            group: 1,
            from: leader,
            to: victim,
            body: body.clone(),
        });
        host.step(PeerMessage {
            group: 1,
            from: leader,
            to: 77,
            body: body.clone(),
        });
        host.step(PeerMessage {
            group: 9,
            from: 55,
            to: victim,
            body,
        });
    }
    propose(host, "still here".to_owned()).await;
    assert!(host.failed().borrow().is_none());
}

/// Loses acknowledgements of snapshots until it is told otherwise.
struct Hoarse(Queues, Arc<AtomicBool>);

impl Transport for Hoarse {
    fn send(&mut self, message: PeerMessage) {
        let lost = matches!(message.body, Some(Body::Ack(_))) && !self.1.load(Ordering::SeqCst);
        if !lost {
            self.0.send(message);
        }
    }

    fn peer_changed(&mut self, _node: NodeId, _address: Option<&str>) {}
}

/// A member that takes long over a snapshot finds in the log what came after it.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_held_for_a_member_that_gets_a_snapshot() {
    let three = three();
    let host = three.hosts[&leader(&three.hosts[&1]).await].clone();
    for n in 0..200 {
        propose(&host, format!("line {n}")).await;
    }
    let (lines, heard) = (Lines::default(), Arc::new(AtomicBool::new(false)));
    let group = GroupConfig {
        id: 1,
        initial: Vec::new(),
        machine: Box::new(lines.clone()),
    };
    let transport = Hoarse(Queues(three.routes.clone()), heard.clone());
    let joined = raft_host::start(
        config(4, three.dir.path()),
        Arc::new(DefaultFileSystem),
        transport,
        vec![group],
    )
    .unwrap();
    three.routes.lock().unwrap().insert(4, joined);
    host.conf_change(1, ConfChange::AddLearner(peer(4)))
        .await
        .unwrap();
    let begun = async || {
        let status = host.status(1).await.unwrap();
        status.progress.iter().any(|p| p.id == 4 && p.snapshot)
    };
    until("the snapshot has begun", begun).await;
    let at = host.status(1).await.unwrap().applied;
    for n in 200..500 {
        propose(&host, format!("line {n}")).await;
    }
    let status = host.status(1).await.unwrap();
    assert!(
        status.first_index <= at + 1,
        "nothing after {at} may go: {}",
        status.first_index
    );
    heard.store(true, Ordering::SeqCst);
    until("the learner has everything", async || lines.all().len() == 500).await;
    until("the log is compacted again", async || {
        propose(&host, "more".to_owned()).await;
        host.status(1).await.unwrap().first_index > at + 100
    })
    .await;
}
