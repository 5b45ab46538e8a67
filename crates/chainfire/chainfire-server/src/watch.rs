//! etcd's Watch service: one task for each stream, a cursor for each watcher on it.
//!
//! The task alone writes to the stream, so the order is simple: a watcher's creation is announced before its events,
//! and a progress notification comes after every event that it covers. A client that reads slowly makes its own task
//! wait and fall behind; it is caught up from the ring or from storage, and nobody else notices.

use std::{collections::BTreeMap, pin::Pin, time::Duration};

use bytes::Bytes;
use chainfire_client::wire::{
    etcdserverpb::{
        self as pb, WatchCreateRequest, WatchResponse, watch_create_request::FilterType,
        watch_request::RequestUnion, watch_server::Watch,
    },
    mvccpb,
};
use chainfire_core::{
    KeyRange, OpError, Point,
    storage::RevisionReader,
    watch::{Change, Interest},
};
use hearth_service::tasks::Kind;
use prost::Message;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval_at},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    auth::Caller,
    node::{MAX_REQUEST_BYTES, Node, previous, status, storage_status, wants_leader},
    storage::StorageError,
};

/// Responses that wait for a client on one stream.
const RESPONSE_QUEUE: usize = 16;
/// Watchers on one stream.
const MAX_WATCHERS: usize = 10_000;
/// Changes taken from the ring for one watcher at a time.
const RING_PAGE: usize = 256;
/// Events read from storage for a watcher that lags, at a time.
const STORAGE_PAGE: usize = 1024;
/// How often an idle watcher that asked for it is told the progress (etcd's default).
const PROGRESS_PERIOD: Duration = Duration::from_secs(600);
/// How long a stream whose client requires a leader lives without one: an election is no reason to end it.
const LEADERLESS: Duration = Duration::from_secs(3);
/// The id that no watcher has: of refused creations and of answers to progress requests.
const NO_WATCHER: i64 = -1;

/// The Watch service of a member.
pub(crate) struct WatchService {
    node: Node,
}

impl WatchService {
    pub(crate) fn new(node: Node) -> WatchService {
        WatchService { node }
    }
}

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.node.require_leader(request.metadata())?;
        let caller = Caller::of(request.extensions());
        caller.known().map_err(status)?;
        let needs_leader = wants_leader(request.metadata());
        let (responses, stream) = mpsc::channel(RESPONSE_QUEUE);
        let session = Session {
            node: self.node.clone(),
            caller,
            watchers: BTreeMap::new(),
            next_id: 0,
            revisions: self.node.shared.revisions(),
            responses,
        };
        let stop = self.node.tasks.clone();
        let requests = request.into_inner();
        self.node
            .tasks
            .spawn("watch stream", Kind::Background, async move {
                tokio::select! {
                    () = stop.stopping() => {}
                    _ = session.run(requests, needs_leader) => {}
                }
                Ok(())
            });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// The client is gone: the stream's task ends.
struct Gone;

struct Watcher {
    interest: Interest,
    /// Next revision it has not been told of.
    next: i64,
    prev_kv: bool,
    fragment: bool,
    progress_notify: bool,
    /// It was told something since the last progress notification.
    told: bool,
}

struct Session {
    node: Node,
    caller: Caller,
    watchers: BTreeMap<i64, Watcher>,
    next_id: i64,
    revisions: watch::Receiver<i64>,
    responses: mpsc::Sender<Result<WatchResponse, Status>>,
}

impl Session {
    async fn run(
        mut self,
        mut requests: Streaming<pb::WatchRequest>,
        needs_leader: bool,
    ) -> Result<(), Gone> {
        let mut progress = interval_at(Instant::now() + PROGRESS_PERIOD, PROGRESS_PERIOD);
        let leader_lost = leader_lost(self.node.clone(), needs_leader);
        tokio::pin!(leader_lost);
        let closed = self.responses.clone();
        let mut requests_open = true;
        loop {
            tokio::select! {
                request = requests.message(), if requests_open => match request {
                    Ok(Some(request)) => self.take(request).await?,
                    // The client has said all it wants to say, and goes on listening.
                    Ok(None) => requests_open = false,
                    Err(_) => return Err(Gone),
                },
                changed = self.revisions.changed() => {
                    if changed.is_err() {
                        return Err(Gone);
                    }
                    self.pump().await?;
                }
                _ = progress.tick() => self.notify_progress().await?,
                () = &mut leader_lost => {
                    self.fail(status(OpError::NoLeader)).await?;
                    return Err(Gone);
                }
                () = closed.closed() => return Err(Gone),
            }
        }
    }

    async fn take(&mut self, request: pb::WatchRequest) -> Result<(), Gone> {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create).await,
            Some(RequestUnion::CancelRequest(cancel)) => {
                if self.watchers.remove(&cancel.watch_id).is_some() {
                    let header = self.node.header();
                    let watch_id = cancel.watch_id;
                    self.send(WatchResponse {
                        header,
                        watch_id,
                        canceled: true,
                        ..Default::default()
                    })
                    .await?;
                }
                Ok(())
            }
            Some(RequestUnion::ProgressRequest(_)) => {
                let synced = self.pump().await?;
                if self.watchers.values().all(|watcher| watcher.next > synced) {
                    let header = self.node.header_at(synced);
                    self.send(WatchResponse {
                        header,
                        watch_id: NO_WATCHER,
                        ..Default::default()
                    })
                    .await?;
                }
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, create: WatchCreateRequest) -> Result<(), Gone> {
        // No key means the first possible one.
        let key = if create.key.is_empty() {
            Bytes::from_static(b"\0")
        } else {
            create.key
        };
        let keys = KeyRange::new(key, create.range_end);
        if let Some(reason) = self.refusal(&keys, create.watch_id, create.start_revision) {
            let refused = WatchResponse {
                header: self.node.header(),
                watch_id: NO_WATCHER,
                created: true,
                canceled: true,
                cancel_reason: reason.to_owned(),
                ..Default::default()
            };
            return self.send(refused).await;
        }
        let id = match create.watch_id {
            0 => {
                while self.watchers.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.next_id - 1
            }
            id => id,
        };
        let header = self.node.header();
        let now = header.as_ref().map_or(0, |header| header.revision);
        let has = |filter: FilterType| create.filters.contains(&i32::from(filter));
        let watcher = Watcher {
            interest: Interest {
                keys,
                no_put: has(FilterType::Noput),
                no_delete: has(FilterType::Nodelete),
            },
            next: if create.start_revision == 0 {
                now + 1
            } else {
                create.start_revision
            },
            prev_kv: create.prev_kv,
            fragment: create.fragment,
            progress_notify: create.progress_notify,
            told: false,
        };
        self.watchers.insert(id, watcher);
        self.send(WatchResponse {
            header,
            watch_id: id,
            created: true,
            ..Default::default()
        })
        .await?;
        self.pump().await?;
        Ok(())
    }

    fn refusal(&self, keys: &KeyRange, id: i64, start_revision: i64) -> Option<&'static str> {
        if self.caller.read(keys).is_err() {
            return Some(OpError::PermissionDenied.text());
        }
        if keys.is_empty() {
            return Some("mvcc: watcher range is empty");
        }
        if start_revision < 0 {
            return Some("mvcc: the start revision is negative");
        }
        if id != 0 && self.watchers.contains_key(&id) {
            return Some("mvcc: duplicate watch ID provided on the WatchStream");
        }
        (self.watchers.len() >= MAX_WATCHERS).then_some(OpError::TooManyRequests.text())
    }

    /// Tells every watcher what it has not been told; the revision up to which that is everything.
    async fn pump(&mut self) -> Result<i64, Gone> {
        loop {
            let synced = *self.revisions.borrow_and_update();
            let behind: Vec<i64> = self
                .watchers
                .iter()
                .filter(|(_, watcher)| watcher.next <= synced)
                .map(|(id, _)| *id)
                .collect();
            if behind.is_empty() {
                return Ok(synced);
            }
            // One page each in turn: a watcher that lags far does not hold up the others of its stream.
            for id in behind {
                self.advance(id, synced).await?;
            }
        }
    }

    /// Tells one watcher one page of changes.
    async fn advance(&mut self, id: i64, synced: i64) -> Result<(), Gone> {
        let Some(watcher) = self.watchers.get(&id) else {
            return Ok(());
        };
        let from = watcher.next;
        let changes = match self.changes(from) {
            Ok(Some(changes)) => changes,
            Ok(None) => return self.compacted(id).await,
            Err(error) => {
                self.fail(storage_status(&error)).await?;
                return Err(Gone);
            }
        };
        let last = changes.last().map_or(synced, |change| change.revision);
        let events = match self.events(id, &changes) {
            Ok(events) => events,
            Err(error) => {
                self.fail(storage_status(&error)).await?;
                return Err(Gone);
            }
        };
        let fragment = watcher.fragment;
        for response in pack(id, events, fragment) {
            let header = self.node.header_at(synced);
            self.send(WatchResponse { header, ..response }).await?;
            if let Some(watcher) = self.watchers.get_mut(&id) {
                watcher.told = true;
            }
        }
        if let Some(watcher) = self.watchers.get_mut(&id) {
            watcher.next = last + 1;
        }
        Ok(())
    }

    /// The changes from a revision on, whole revisions only; `None` when they have been compacted away.
    fn changes(&self, from: i64) -> Result<Option<Vec<Change>>, StorageError> {
        let shared = &self.node.shared;
        if from < shared.store().compacted() {
            return Ok(None);
        }
        if let Some(changes) = shared.ring().since(from, RING_PAGE) {
            return Ok(Some(changes));
        }
        let mut limit = STORAGE_PAGE;
        let changes = loop {
            let mut page = shared.tables.scan(Point { main: from, sub: 0 }, limit)?;
            let full = page.len() == limit;
            let last = page.last().map(|(at, _)| at.main);
            if full {
                // The last revision may go on behind the page.
                page.retain(|(at, _)| Some(at.main) != last);
            }
            if !full || !page.is_empty() {
                break group(page);
            }
            limit *= 2;
        };
        // What was compacted while the page was read may be missing from it.
        Ok((from >= shared.store().compacted()).then_some(changes))
    }

    /// The events of some changes as one watcher wants them, by revision.
    fn events(&self, id: i64, changes: &[Change]) -> Result<Vec<Vec<mvccpb::Event>>, StorageError> {
        let Some(watcher) = self.watchers.get(&id) else {
            return Ok(Vec::new());
        };
        let mut wanted = Vec::new();
        for change in changes {
            let mut events = Vec::new();
            for event in change
                .events
                .iter()
                .filter(|event| watcher.interest.matches(event))
            {
                let prev = if watcher.prev_kv {
                    let shared = &self.node.shared;
                    previous(shared, &shared.tables, &event.kv.key, change.revision)?
                } else {
                    None
                };
                events.push(crate::convert::event(event.clone(), prev));
            }
            if !events.is_empty() {
                wanted.push(events);
            }
        }
        Ok(wanted)
    }

    /// Ends a watcher whose next revision is gone.
    async fn compacted(&mut self, id: i64) -> Result<(), Gone> {
        self.watchers.remove(&id);
        let compact_revision = self.node.shared.store().compacted();
        self.send(WatchResponse {
            header: self.node.header(),
            watch_id: id,
            canceled: true,
            compact_revision,
            cancel_reason: OpError::Compacted.text().to_owned(),
            ..Default::default()
        })
        .await
    }

    /// Tells idle watchers that asked for it how far they are.
    async fn notify_progress(&mut self) -> Result<(), Gone> {
        let synced = self.pump().await?;
        let mut idle = Vec::new();
        for (id, watcher) in &mut self.watchers {
            let told = std::mem::take(&mut watcher.told);
            // A watcher that begins in the future has no progress before that.
            if watcher.progress_notify && !told && watcher.next == synced + 1 {
                idle.push(*id);
            }
        }
        for watch_id in idle {
            let header = self.node.header_at(synced);
            self.send(WatchResponse {
                header,
                watch_id,
                ..Default::default()
            })
            .await?;
        }
        Ok(())
    }

    async fn send(&self, response: WatchResponse) -> Result<(), Gone> {
        self.responses.send(Ok(response)).await.map_err(|_| Gone)
    }

    async fn fail(&self, status: Status) -> Result<(), Gone> {
        self.responses.send(Err(status)).await.map_err(|_| Gone)
    }
}

/// Resolves when there has been no leader for too long.
async fn leader_lost(node: Node, needed: bool) {
    if !needed {
        std::future::pending::<()>().await;
    }
    let mut leader = node.leader.clone();
    loop {
        if leader.wait_for(|info| info.leader.is_none()).await.is_err() {
            return;
        }
        let back = tokio::time::timeout(LEADERLESS, leader.wait_for(|info| info.leader.is_some())).await;
        if !matches!(back, Ok(Ok(_))) {
            return;
        }
    }
}

/// Groups events by revision.
fn group(page: Vec<(Point, chainfire_core::Event)>) -> Vec<Change> {
    page.chunk_by(|a, b| a.0.main == b.0.main)
        .filter_map(|chunk| {
            let revision = chunk.first()?.0.main;
            Some(Change {
                revision,
                events: chunk.iter().map(|(_, event)| event.clone()).collect(),
            })
        })
        .collect()
}

/// Packs events into responses of bounded size. A revision stays in one response, however large, unless the watcher
/// takes fragments.
fn pack(id: i64, revisions: Vec<Vec<mvccpb::Event>>, fragment: bool) -> Vec<WatchResponse> {
    let mut responses = Vec::new();
    let mut events: Vec<mvccpb::Event> = Vec::new();
    let mut bytes = 0;
    let response = |events: &mut Vec<mvccpb::Event>, fragment| WatchResponse {
        watch_id: id,
        fragment,
        events: std::mem::take(events),
        ..Default::default()
    };
    for revision in revisions {
        let size: usize = revision.iter().map(Message::encoded_len).sum();
        if !events.is_empty() && bytes + size > MAX_REQUEST_BYTES {
            responses.push(response(&mut events, false));
            bytes = 0;
        }
        for event in revision {
            let size = event.encoded_len();
            if fragment && !events.is_empty() && bytes + size > MAX_REQUEST_BYTES {
                // Only within a revision: the part before belongs to the same one.
                responses.push(response(&mut events, true));
                bytes = 0;
            }
            bytes += size;
            events.push(event);
        }
    }
    if !events.is_empty() {
        responses.push(response(&mut events, false));
    }
    responses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(bytes: usize) -> mvccpb::Event {
        let kv = mvccpb::KeyValue {
            value: Bytes::from(vec![0; bytes]),
            ..Default::default()
        };
        mvccpb::Event {
            kv: Some(kv),
            ..Default::default()
        }
    }

    fn shape(responses: &[WatchResponse]) -> Vec<(usize, bool)> {
        responses
            .iter()
            .map(|response| (response.events.len(), response.fragment))
            .collect()
    }

    #[test]
    fn a_revision_stays_whole_unless_fragments_are_taken() {
        let big = MAX_REQUEST_BYTES * 2 / 3;
        let revisions = || vec![vec![event(1)], vec![event(big), event(big)], vec![event(1)]];
        assert_eq!(
            shape(&pack(7, revisions(), false)),
            [(1, false), (2, false), (1, false)]
        );
        assert_eq!(
            shape(&pack(7, revisions(), true)),
            [(1, false), (1, true), (2, false)]
        );
        assert_eq!(
            shape(&pack(7, vec![vec![event(1)], vec![event(1)]], true)),
            [(2, false)]
        );
        assert!(pack(7, vec![], true).is_empty());
    }
}
