//! One watch stream: feeds the pure core, and sends what it yields.
//!
//! A client that does not read costs at most: [`QUEUE_BYTES`] in the queue, one response in hand ([`PAGE_BYTES`], or
//! one revision where that is larger), and what the connection holds (one encoded response and its send buffer). Its
//! watchers fall behind and are caught up from storage when it reads again: no event waits for it in memory.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use chainfire_client::wire::etcdserverpb::{
    WatchCreateRequest, WatchRequest, WatchResponse, watch_create_request::FilterType,
    watch_request::RequestUnion,
};
use chainfire_core::{
    KeyRange, OpError,
    auth::Auth,
    watch::{Create, Interest, Limits, Pull, Response, Say, Stream as Core},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, interval_at},
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Status, Streaming};

use super::{
    hub::{Hub, Seat},
    reader::Reader,
};
use crate::{
    auth::{Caller, Credential},
    node::{Node, status, storage_status},
    tables::StorageError,
};

/// Watchers on one stream.
const MAX_WATCHERS: usize = 10_000;
/// Bytes of events in one response, about.
const PAGE_BYTES: usize = 64 << 10;
/// Bytes of responses that wait for a client on one stream.
const QUEUE_BYTES: usize = 64 << 10;
/// What a response counts at least; bounds how many may wait.
const MIN_BYTES: usize = 512;
/// Announcements that wait on one stream before no more of its requests are read.
const MAX_ANNOUNCEMENTS: usize = 128;
/// How long a stream whose client requires a leader lives without one: an election is no reason to end it.
const LEADERLESS: Duration = Duration::from_secs(3);

/// A response on its way, with its share of the queue.
type Outgoing = (
    Result<Box<WatchResponse>, Box<Status>>,
    Option<OwnedSemaphorePermit>,
);
/// A turn at storage that is waited for.
type Turn = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

/// The stream ends: the client is gone, or was told why.
pub(super) struct Gone;

pub(super) struct Session {
    node: Node,
    credential: Credential,
    /// Who asked for the newest watcher.
    caller: Option<Caller>,
    auth: watch::Receiver<Arc<Auth>>,
    core: Core,
    reader: Reader,
    seat: Seat,
    catch_ups: Arc<Semaphore>,
    progress_ms: u64,
    /// The core may have something to say.
    busy: bool,
    /// The next response, until the queue has room.
    hand: Option<Response>,
    queue: Arc<Semaphore>,
    responses: mpsc::Sender<Outgoing>,
}

impl Session {
    /// A session and what the client hears.
    pub(super) fn new(
        node: Node,
        hub: &Hub,
        credential: Credential,
    ) -> (
        Session,
        impl Stream<Item = Result<WatchResponse, Status>> + Send + use<>,
    ) {
        let (responses, queue) = mpsc::channel::<Outgoing>(QUEUE_BYTES / MIN_BYTES + 1);
        let limits = Limits {
            watchers: MAX_WATCHERS,
            page_bytes: PAGE_BYTES,
        };
        let session = Session {
            core: Core::new(limits, 0),
            reader: Reader::new(node.shared.clone()),
            seat: hub.join(),
            catch_ups: hub.catch_ups(),
            progress_ms: hub.progress_ms(),
            auth: node.shared.auth.changes(),
            node,
            credential,
            caller: None,
            busy: false,
            hand: None,
            queue: Arc::new(Semaphore::new(QUEUE_BYTES)),
            responses,
        };
        // The share of the queue is given back when the connection takes the response.
        let heard = ReceiverStream::new(queue).map(|(response, _share)| match response {
            Ok(response) => Ok(*response),
            Err(status) => Err(*status),
        });
        (session, heard)
    }

    pub(super) async fn run(
        mut self,
        mut requests: Streaming<WatchRequest>,
        needs_leader: bool,
    ) -> Result<(), Gone> {
        let period = progress_period(self.progress_ms);
        let mut progress = interval_at(Instant::now() + period, period);
        let leader_lost = leader_lost(self.node.clone(), needs_leader);
        tokio::pin!(leader_lost);
        let closed = self.responses.clone();
        let mut requests_open = true;
        let mut turn: Option<Turn> = None;
        loop {
            self.fill().await?;
            if self.hand.is_some() {
                // A turn that came up while a stuck client's response is in hand would be kept from everybody.
                turn = None;
            } else if self.core.wants_storage() && turn.is_none() {
                let catch_ups = self.catch_ups.clone();
                turn = Some(Box::pin(async move { catch_ups.acquire_owned().await.ok() }));
            }
            let listening = requests_open && self.core.announcements() < MAX_ANNOUNCEMENTS;
            tokio::select! {
                request = requests.message(), if listening => match request {
                    Ok(Some(request)) => self.take(request).await,
                    // The client has said all it wants to say, and goes on listening.
                    Ok(None) => requests_open = false,
                    Err(_) => return Err(Gone),
                },
                share = share(&self.queue, self.hand.as_ref()) => self.send(share)?,
                () = self.seat.marked() => self.busy = true,
                changed = self.auth.changed() => {
                    if changed.is_err() {
                        return Err(Gone);
                    }
                    self.auth.mark_changed();
                    self.judge();
                }
                () = self.seat.reached(self.core.awaits()) => self.busy = true,
                held = async { turn.as_mut()?.await }, if turn.is_some() && self.hand.is_none() => {
                    turn = None;
                    let Some(held) = held else { return Err(Gone) };
                    self.catch_up(held).await?;
                }
                _ = progress.tick() => {
                    self.core.notify_progress();
                    self.busy = true;
                }
                () = &mut leader_lost => {
                    self.fail(status(OpError::NoLeader));
                    return Err(Gone);
                }
                () = closed.closed() => return Err(Gone),
            }
        }
    }

    /// Takes responses from the core and sends them, as long as the queue has room.
    async fn fill(&mut self) -> Result<(), Gone> {
        while self.busy && self.hand.is_none() {
            self.seat.feed(&mut self.core);
            match self.core.pull(&self.reader) {
                Ok(Pull::Response(response)) => self.hand = Some(response),
                Ok(Pull::Again) => tokio::task::yield_now().await,
                Ok(Pull::Idle) => self.busy = false,
                Err(error) => return self.broken(&error),
            }
            self.withdraw();
            self.judge();
            if let Some(response) = &self.hand
                && let Ok(share) = self.queue.clone().try_acquire_many_owned(cost(response))
            {
                self.send(Some(share))?;
            }
        }
        Ok(())
    }

    /// One page from storage, on a thread that may block.
    async fn catch_up(&mut self, turn: OwnedSemaphorePermit) -> Result<(), Gone> {
        self.seat.feed(&mut self.core);
        let limits = Limits {
            watchers: 0,
            page_bytes: 0,
        };
        let mut core = std::mem::replace(&mut self.core, Core::new(limits, 0));
        let reader = self.reader.clone();
        let read = tokio::task::spawn_blocking(move || {
            let said = core.pull_stored(&reader);
            (core, said)
        });
        let Ok((core, said)) = read.await else {
            return Err(Gone);
        };
        drop(turn);
        self.core = core;
        self.busy = true;
        match said {
            Ok(response) => self.hand = response,
            Err(error) => return self.broken(&error),
        }
        self.withdraw();
        self.judge();
        Ok(())
    }

    fn withdraw(&mut self) {
        for id in self.core.take_withdrawn() {
            self.seat.withdraw(id);
        }
    }

    async fn take(&mut self, request: WatchRequest) {
        // Published before any reply was sent, so the client never sees an older one than it has heard of.
        let now = self.node.shared.revision();
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create, now).await,
            Some(RequestUnion::CancelRequest(cancel)) => {
                self.core.cancel(cancel.watch_id, now);
                self.withdraw();
            }
            Some(RequestUnion::ProgressRequest(_)) => self.core.request_progress(now),
            None => {}
        }
        self.busy = true;
    }

    async fn create(&mut self, create: WatchCreateRequest, now: i64) {
        // No key means the first possible one.
        let key = if create.key.is_empty() {
            Bytes::from_static(b"\0")
        } else {
            create.key
        };
        let keys = KeyRange::new(key, create.range_end);
        let permitted = self.admit(&keys).await.and_then(|()| self.seat.room());
        let has = |filter: FilterType| create.filters.contains(&i32::from(filter));
        let create = Create {
            watch_id: create.watch_id,
            interest: Interest {
                keys,
                no_put: has(FilterType::Noput),
                no_delete: has(FilterType::Nodelete),
            },
            start_revision: create.start_revision,
            prev_kv: create.prev_kv,
            fragment: create.fragment,
            progress_notify: create.progress_notify,
        };
        if let Some(enrol) = self.core.create(create, now, permitted) {
            let matched = self.seat.enrol(enrol.watch_id, &enrol.keys);
            self.core.enrolled(enrol.watch_id, matched);
        }
    }

    /// Whether whoever opened the stream may read the keys now.
    async fn admit(&mut self, keys: &KeyRange) -> Result<(), OpError> {
        let caller = self.node.caller(&self.credential).await?;
        caller.read(keys)?;
        self.caller = Some(caller);
        Ok(())
    }

    /// Ends the watchers whose caller has lost the right to their keys, when rights have changed. The state machine
    /// shows changes of rights before the events after them: asked after a page was read, this keeps back whatever of
    /// it the caller must not see.
    fn judge(&mut self) {
        if !self.auth.has_changed().unwrap_or(false) {
            return;
        }
        self.auth.borrow_and_update();
        let Some(caller) = &self.caller else { return };
        let now = self.node.shared.revision();
        self.core.recheck(now, |keys| caller.still_reads(keys).is_ok());
        self.busy = true;
        for id in self.core.take_withdrawn() {
            self.seat.withdraw(id);
            let about_it = |response: &mut Response| {
                response.watch_id == id && matches!(response.say, Say::Events { .. })
            };
            let _kept_back = self.hand.take_if(about_it);
        }
    }

    /// Sends what is in hand with its share of the queue.
    fn send(&mut self, share: Option<OwnedSemaphorePermit>) -> Result<(), Gone> {
        let (Some(response), Some(share)) = (self.hand.take(), share) else {
            return Err(Gone);
        };
        let response = Box::new(wire(&self.node, response));
        // Whoever holds a share finds a place: there are as many as the smallest shares.
        self.responses
            .try_send((Ok(response), Some(share)))
            .map_err(|_| Gone)
    }

    /// Storage failed: the log has the detail, the client an error.
    fn broken(&self, error: &StorageError) -> Result<(), Gone> {
        self.fail(storage_status(error));
        Err(Gone)
    }

    fn fail(&self, status: Status) {
        // Without a place in the queue the client sees the stream end, which it takes the same way.
        let _ = self.responses.try_send((Err(Box::new(status)), None));
    }
}

/// What a response takes of the queue.
fn cost(response: &Response) -> u32 {
    let bytes = response.weight().clamp(MIN_BYTES, QUEUE_BYTES);
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Room for what is in hand; never when that is nothing.
async fn share(queue: &Arc<Semaphore>, hand: Option<&Response>) -> Option<OwnedSemaphorePermit> {
    match hand {
        Some(response) => queue.clone().acquire_many_owned(cost(response)).await.ok(),
        None => std::future::pending().await,
    }
}

/// The period of progress notifications: up to a tenth longer, so that streams do not speak all at once.
fn progress_period(progress_ms: u64) -> Duration {
    let jitter = rand::random::<u64>() % (progress_ms / 10 + 1);
    Duration::from_millis(progress_ms + jitter)
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

fn wire(node: &Node, response: Response) -> WatchResponse {
    let plain = WatchResponse {
        header: node.header_at(response.revision),
        watch_id: response.watch_id,
        ..Default::default()
    };
    match response.say {
        Say::Created => WatchResponse {
            created: true,
            ..plain
        },
        Say::Refused { reason } => WatchResponse {
            created: true,
            canceled: true,
            cancel_reason: reason.to_owned(),
            ..plain
        },
        Say::Canceled {
            reason,
            compact_revision,
        } => WatchResponse {
            canceled: true,
            compact_revision,
            cancel_reason: reason.to_owned(),
            ..plain
        },
        Say::Progress => plain,
        Say::Events { events, fragment } => WatchResponse {
            events: events
                .into_iter()
                .map(|told| crate::convert::event(told.event, told.prev))
                .collect(),
            fragment,
            ..plain
        },
    }
}
