//! Watching a key or a prefix, across broken streams.
//!
//! ```text
//!            open (at `next`)            events: next = last revision + 1
//!  Closed ───────────────────> Open ────────────────────────────────────┐
//!    ^  ^                       │  ^────────────────────────────────────┘
//!    │  └── pause, next endpoint┘ stream broke, no leader
//!    └── Done: compacted (said once), or permission denied
//! ```

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    Client, Error, KeyValue, Result,
    conn::{request, watch_stub},
    error::{Attempt, judge},
    kv::{prefix_range, revision_of},
    login::{self, Login},
    wire::{
        etcdserverpb::{
            WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
            watch_request::RequestUnion,
        },
        mvccpb,
    },
};

/// Pause before a broken stream is opened again; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest such pause.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Time a member has to accept a watch.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);
/// Requests waiting to be sent on one stream: the creation, and progress requests.
const REQUEST_QUEUE: usize = 4;

/// What to watch and how.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    key: Bytes,
    range_end: Bytes,
    from_revision: i64,
    prev_kv: bool,
}

impl WatchOptions {
    /// All keys under a prefix, from now on.
    pub fn prefix(prefix: impl AsRef<[u8]>) -> WatchOptions {
        let (key, range_end) = prefix_range(prefix.as_ref());
        WatchOptions {
            key,
            range_end,
            from_revision: 0,
            prev_kv: false,
        }
    }

    /// One key, from now on.
    pub fn key(key: impl AsRef<[u8]>) -> WatchOptions {
        let key = Bytes::copy_from_slice(key.as_ref());
        WatchOptions {
            key,
            range_end: Bytes::new(),
            from_revision: 0,
            prev_kv: false,
        }
    }

    /// Begin with this revision (inclusive); 0: from now on.
    #[must_use]
    pub fn from_revision(mut self, revision: i64) -> WatchOptions {
        self.from_revision = revision;
        self
    }

    /// Also deliver the pair before each event, where it is still stored.
    #[must_use]
    pub fn with_prev(mut self) -> WatchOptions {
        self.prev_kv = true;
        self
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// A key was put.
    Put {
        /// The pair now.
        kv: KeyValue,
        /// The pair before, if asked for, existing and still stored.
        prev: Option<KeyValue>,
    },
    /// A key was deleted, or its lease ended.
    Delete {
        /// The key.
        key: Bytes,
        /// Revision of the deletion.
        mod_revision: i64,
        /// The pair before, if asked for and still stored.
        prev: Option<KeyValue>,
    },
}

impl WatchEvent {
    /// The key that changed.
    pub fn key(&self) -> &Bytes {
        match self {
            WatchEvent::Put { kv, .. } => &kv.key,
            WatchEvent::Delete { key, .. } => key,
        }
    }
}

/// What a watcher says next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchUpdate {
    /// Changes in order. All changes of one revision come in one batch; a batch may span revisions.
    Events {
        /// Revision of the last change in the batch.
        revision: i64,
        /// The changes.
        events: Vec<WatchEvent>,
    },
    /// Everything up to this revision has been delivered.
    Progress {
        /// That revision.
        revision: i64,
    },
    /// The wanted revisions are no longer stored; the watcher has ended. List again and watch from there.
    Compacted {
        /// Oldest revision that can be watched from.
        revision: i64,
    },
}

/// An endless, ordered, gapless sequence of changes.
pub struct Watcher {
    client: Client,
    options: WatchOptions,
    /// First revision not yet delivered; 0 until the server has said what "now" is.
    next: i64,
    state: State,
    pause: Duration,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher")
            .field("options", &self.options)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

type Opening = Pin<Box<dyn Future<Output = std::result::Result<Open, Status>> + Send>>;

enum State {
    Waiting { until: Instant },
    Opening { endpoint: usize, opening: Opening },
    Open { endpoint: usize, open: Box<Open> },
    Done(Error),
}

struct Open {
    requests: mpsc::Sender<WatchRequest>,
    replies: Streaming<WatchResponse>,
    /// The server's answer to the creation.
    created: Option<WatchResponse>,
}

impl Client {
    /// Watches all keys under `prefix` from `from_revision` on (inclusive; 0: from now on).
    pub fn watch(&self, prefix: impl AsRef<[u8]>, from_revision: i64) -> Watcher {
        self.watch_with(WatchOptions::prefix(prefix).from_revision(from_revision))
    }

    /// Watches as `options` say. Nothing is sent before the first [`Watcher::next`].
    pub fn watch_with(&self, options: WatchOptions) -> Watcher {
        let next = options.from_revision;
        let state = State::Waiting {
            until: Instant::now(),
        };
        Watcher {
            client: self.clone(),
            options,
            next,
            state,
            pause: FIRST_PAUSE,
        }
    }
}

impl Watcher {
    /// The next update. Broken streams are resumed silently; an error ends the watcher (permission denied, or a
    /// request that no server takes). Cancel-safe: an update is either returned or still to come.
    pub async fn next(&mut self) -> Result<WatchUpdate> {
        loop {
            match &mut self.state {
                State::Done(error) => return Err(error.clone()),
                State::Waiting { until } => {
                    sleep_until(*until).await;
                    let (endpoint, channel) = self.client.current();
                    let login = self.client.login().cloned();
                    let opening = Box::pin(open(channel, login, self.options.clone(), self.next));
                    self.state = State::Opening { endpoint, opening };
                }
                State::Opening { endpoint, opening } => {
                    let endpoint = *endpoint;
                    match opening.await {
                        Ok(open) => {
                            let open = Box::new(open);
                            self.state = State::Open { endpoint, open };
                        }
                        Err(status) => self.broke(endpoint, &status),
                    }
                }
                State::Open { endpoint, open } => {
                    let endpoint = *endpoint;
                    let reply = match open.created.take() {
                        Some(created) => Some(Ok(created)),
                        None => open.replies.next().await,
                    };
                    match reply {
                        Some(Ok(reply)) => {
                            if let Some(update) = self.take(endpoint, reply) {
                                return Ok(update);
                            }
                        }
                        Some(Err(status)) => self.broke(endpoint, &status),
                        None => self.broke(endpoint, &Status::unavailable("the watch stream ended")),
                    }
                }
            }
        }
    }

    /// Asks the server to say [`WatchUpdate::Progress`] once everything up to now has been delivered. Does nothing
    /// while the stream is being opened or too many requests wait.
    pub fn request_progress(&self) {
        if let State::Open { open, .. } = &self.state {
            let ask = WatchRequest {
                request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})),
            };
            let _ = open.requests.try_send(ask);
        }
    }

    /// First revision not yet delivered; 0 before the server has said what "now" is.
    pub fn next_revision(&self) -> i64 {
        self.next
    }

    /// The stream is gone: wait a little, then go on at the same revision with the next endpoint.
    fn broke(&mut self, endpoint: usize, status: &Status) {
        let renews = login::renews(self.client.login(), status.message());
        self.state = match judge(status) {
            Attempt::Final(error) if !renews => State::Done(error),
            _ => {
                tracing::debug!(%status, next = self.next, "watch stream broke; resuming");
                self.client.rotate(endpoint);
                let until = Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(MAX_PAUSE);
                State::Waiting { until }
            }
        };
    }

    /// Digests one reply; `None` when there is nothing to tell.
    fn take(&mut self, endpoint: usize, reply: WatchResponse) -> Option<WatchUpdate> {
        let revision = revision_of(reply.header.as_ref());
        if reply.compact_revision > 0 {
            self.state = State::Done(Error::Compacted);
            return Some(WatchUpdate::Compacted {
                revision: reply.compact_revision,
            });
        }
        if reply.canceled {
            // A refusal of the request itself comes as created and canceled; else the server dropped a live watch.
            if login::renews(self.client.login(), &reply.cancel_reason) {
                self.broke(endpoint, &Status::unavailable(reply.cancel_reason));
                return None;
            }
            let denied = reply.cancel_reason.contains("permission denied");
            let refusal = reply.created && !reply.cancel_reason.is_empty();
            match (denied, refusal) {
                (true, _) => self.state = State::Done(Error::PermissionDenied),
                (false, true) => {
                    let error = Error::Etcd {
                        code: tonic::Code::InvalidArgument,
                        message: reply.cancel_reason,
                    };
                    self.state = State::Done(error);
                }
                (false, false) => self.broke(endpoint, &Status::unavailable(reply.cancel_reason)),
            }
            return None;
        }
        self.pause = FIRST_PAUSE;
        if reply.created {
            if self.next == 0 {
                self.next = revision + 1;
            }
            return None;
        }
        let Some(last) = reply
            .events
            .iter()
            .filter_map(|event| event.kv.as_ref())
            .map(|kv| kv.mod_revision)
            .max()
        else {
            self.next = self.next.max(revision + 1);
            return Some(WatchUpdate::Progress { revision });
        };
        self.next = last + 1;
        Some(WatchUpdate::Events {
            revision: last,
            events: reply.events.into_iter().filter_map(event).collect(),
        })
    }
}

async fn open(
    channel: tonic::transport::Channel,
    login: Option<Arc<Login>>,
    options: WatchOptions,
    start_revision: i64,
) -> std::result::Result<Open, Status> {
    let (requests, queue) = mpsc::channel(REQUEST_QUEUE);
    let create = WatchCreateRequest {
        key: options.key,
        range_end: options.range_end,
        start_revision,
        prev_kv: options.prev_kv,
        progress_notify: true,
        ..Default::default()
    };
    let create = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    requests
        .try_send(create)
        .map_err(|_| Status::internal("the watch request queue is full"))?;
    let open = async move {
        let link = login::sign_in(login.as_ref(), channel).await?;
        let mut replies = watch_stub(link)
            .watch(request(ReceiverStream::new(queue)))
            .await?
            .into_inner();
        let created = replies.next().await.transpose()?;
        Ok(Open {
            requests,
            replies,
            created,
        })
    };
    match timeout(OPEN_DEADLINE, open).await {
        Ok(opened) => opened,
        Err(_) => Err(Status::unavailable("the watch was not accepted in time")),
    }
}

fn event(event: mvccpb::Event) -> Option<WatchEvent> {
    let deleted = event.r#type == i32::from(mvccpb::event::EventType::Delete);
    let kv = event.kv?;
    let prev = event.prev_kv.map(KeyValue::from);
    Some(if deleted {
        WatchEvent::Delete {
            key: kv.key,
            mod_revision: kv.mod_revision,
            prev,
        }
    } else {
        WatchEvent::Put { kv: kv.into(), prev }
    })
}
