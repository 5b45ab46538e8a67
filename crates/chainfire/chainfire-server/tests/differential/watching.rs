//! The watchers of both servers: one stream each, the same watchers on it.
//!
//! Events come when they come, so they are compared at quiet points: when our member says by a progress notification
//! that it has told everything, the other server must soon have told the same, watcher by watcher.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use chainfire_client::wire::{
    etcdserverpb::{self as pb, WatchResponse, watch_client::WatchClient, watch_request::RequestUnion},
    mvccpb::Event,
};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use tokio_stream::wrappers::ReceiverStream;

use crate::{known, server::Server};

/// Id of the watcher that opens a stream: etcd sends its headers with its first answer only.
const OPENER: i64 = 1_000_000;

/// How often in a row both must have told the same where there is no progress to go by.
const SETTLED: u32 = 3;

/// What one watcher was told since the last quiet point.
#[derive(Debug, Default, PartialEq, Clone)]
pub struct Told {
    /// Creations and ends.
    pub control: Vec<String>,
    pub events: Vec<Event>,
}

#[derive(Debug, Default)]
struct Seen {
    told: BTreeMap<i64, Told>,
    /// Newest revision that a progress notification spoke of.
    progress: i64,
    /// Revisions torn apart without need.
    torn: Vec<String>,
    /// Per watcher: last revision told, and whether a fragment of it is to follow.
    last: BTreeMap<i64, (i64, bool)>,
}

impl Seen {
    fn take(&mut self, reply: WatchResponse) {
        let id = reply.watch_id;
        if !(reply.created || reply.canceled) && reply.events.is_empty() {
            self.progress = reply.header.unwrap_or_default().revision;
            return;
        }
        let told = self.told.entry(id).or_default();
        if reply.created || reply.canceled {
            told.control.push(format!(
                "created {} canceled {} compacted {} reason {:?}",
                reply.created,
                reply.canceled,
                reply.compact_revision,
                known::reason(&reply.cancel_reason, reply.compact_revision)
            ));
        }
        let revision = |event: Option<&Event>| {
            event
                .and_then(|event| event.kv.as_ref())
                .map(|kv| kv.mod_revision)
        };
        if let (Some(first), Some(newest)) = (revision(reply.events.first()), revision(reply.events.last())) {
            if let Some((last, in_pieces)) = self.last.get(&id)
                && first <= *last
                && !in_pieces
            {
                self.torn
                    .push(format!("watcher {id}: revision {first} after {last}"));
            }
            self.last.insert(id, (newest, reply.fragment));
        }
        told.events.extend(reply.events);
    }
}

struct Stream {
    asks: mpsc::Sender<pb::WatchRequest>,
    seen: Arc<Mutex<Seen>>,
    reader: JoinHandle<()>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Stream {
    async fn open(server: &Server) -> Stream {
        let (asks, queue) = mpsc::channel(64);
        let opener = pb::WatchCreateRequest {
            key: "opener".into(),
            watch_id: OPENER,
            ..Default::default()
        };
        let request = RequestUnion::CreateRequest(opener);
        asks.send(ask(request)).await.unwrap();
        let mut stub = WatchClient::new(server.channel.clone()).max_decoding_message_size(usize::MAX);
        let mut replies = stub.watch(ReceiverStream::new(queue)).await.unwrap().into_inner();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = seen.clone();
        #[expect(clippy::disallowed_methods, reason = "tests have no supervised tasks")]
        let reader = tokio::spawn(async move {
            while let Ok(Some(reply)) = replies.message().await {
                shared.lock().unwrap().take(reply);
            }
        });
        Stream { asks, seen, reader }
    }

    async fn ask(&self, request: RequestUnion) {
        self.asks.send(ask(request)).await.unwrap();
    }
}

fn ask(request: RequestUnion) -> pb::WatchRequest {
    pb::WatchRequest {
        request_union: Some(request),
    }
}

/// Both streams.
pub struct Watching {
    ours: Stream,
    theirs: Stream,
    patience: Duration,
    /// Watchers that are no more.
    ended: BTreeSet<i64>,
    /// The newest revision that a watcher begins at.
    future: i64,
    pub events: usize,
}

impl Watching {
    pub async fn open(ours: &Server, theirs: &Server, patience: Duration) -> Watching {
        Watching {
            patience,
            ours: Stream::open(ours).await,
            theirs: Stream::open(theirs).await,
            ended: BTreeSet::new(),
            future: 0,
            events: 0,
        }
    }

    pub async fn create(&mut self, create: &pb::WatchCreateRequest) {
        self.future = self.future.max(create.start_revision);
        let request = || RequestUnion::CreateRequest(create.clone());
        self.ours.ask(request()).await;
        self.theirs.ask(request()).await;
    }

    /// Whether both ended this watcher.
    pub fn has_ended(&self, id: i64) -> bool {
        self.ended.contains(&id)
    }

    pub async fn cancel(&self, watch_id: i64) {
        if self.has_ended(watch_id) {
            return;
        }
        let cancel = pb::WatchCancelRequest { watch_id };
        self.ours.ask(RequestUnion::CancelRequest(cancel)).await;
        self.theirs.ask(RequestUnion::CancelRequest(cancel)).await;
    }

    /// Waits until both have told everything up to `revision`, and compares.
    pub async fn compare(&mut self, revision: i64) -> Result<(), String> {
        let end = Instant::now() + self.patience;
        if revision < self.future {
            return self.settle(end).await;
        }
        // Our stream answers in order: what was asked before this is answered when the progress comes.
        self.ours.seen.lock().unwrap().progress = 0;
        let progress = || RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
        self.ours.ask(progress()).await;
        let mut asked = Instant::now();
        while self.ours.seen.lock().unwrap().progress < revision {
            if Instant::now() > end {
                return Err(format!("our member never said that revision {revision} was told"));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            // It keeps silent while a watcher lags.
            if asked.elapsed() > Duration::from_millis(100) {
                asked = Instant::now();
                self.ours.ask(progress()).await;
            }
        }
        while !self.equal_now()? {
            if Instant::now() > end {
                let (ours, theirs) = (self.ours.seen.lock().unwrap(), self.theirs.seen.lock().unwrap());
                return Err(difference(&ours.told, &theirs.told));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// While a watcher waits for a revision to come, nobody tells progress: both have told what they will when they
    /// have told the same and go on to.
    async fn settle(&mut self, end: Instant) -> Result<(), String> {
        let mut equal = 0;
        while equal < SETTLED {
            equal = if self.equal_now()? { equal + 1 } else { 0 };
            if Instant::now() > end {
                let (ours, theirs) = (self.ours.seen.lock().unwrap(), self.theirs.seen.lock().unwrap());
                return Err(difference(&ours.told, &theirs.told));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Whether both have told the same since the last time that they had.
    fn equal_now(&mut self) -> Result<bool, String> {
        let (mut ours, mut theirs) = (self.ours.seen.lock().unwrap(), self.theirs.seen.lock().unwrap());
        if !ours.torn.is_empty() {
            return Err(format!("our member tore revisions: {:?}", ours.torn));
        }
        if ours.told != theirs.told {
            return Ok(false);
        }
        self.events += ours.told.values().map(|told| told.events.len()).sum::<usize>();
        let ended = |told: &Told| told.control.iter().any(|line| line.contains("canceled true"));
        let ended = ours.told.iter().filter(|(_, told)| ended(told));
        self.ended.extend(ended.map(|(id, _)| *id));
        ours.told.clear();
        theirs.told.clear();
        Ok(true)
    }
}

fn difference(ours: &BTreeMap<i64, Told>, theirs: &BTreeMap<i64, Told>) -> String {
    let ids: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    for id in ids {
        let (ours, theirs) = (ours.get(id), theirs.get(id));
        if ours != theirs {
            return format!("watcher {id}:\n  ours   {ours:?}\n  theirs {theirs:?}");
        }
    }
    String::new()
}
