//! The shared connection state: one lazy channel per endpoint, the one in use, and the retry rule.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hearth_service::{client::ChannelOptions, tls::Identity};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Request, Status, metadata::MetadataValue, transport::Channel};

use crate::{
    ClientConfig, Error, Result,
    error::{Attempt, judge},
    login::{self, Link, Login},
    wire::etcdserverpb::{
        cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
        maintenance_client::MaintenanceClient, watch_client::WatchClient,
    },
};

/// Time a call may take with all its retries, unless [`Client::with_deadline`] says otherwise.
pub(crate) const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// Time one attempt of a read may take before the next endpoint is asked.
const READ_ATTEMPT: Duration = Duration::from_secs(3);
/// How often one call signs in anew: users and roles may change while it is repeated.
const MAX_SIGN_INS: u32 = 5;
/// Time a member has to say how it is.
pub(crate) const STATUS_DEADLINE: Duration = Duration::from_secs(2);
/// Pause after every endpoint has failed once; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between rounds over the endpoints.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The certificate that a member must show; any other server of our CA is refused.
const SERVER_IDENTITY: &str = "service/chainfire";
/// Replies may be as large as the server makes them (a watch delivers a revision in one piece).
const MAX_REPLY_BYTES: usize = 512 * 1024 * 1024;

/// A handle on a Chainfire cluster. Cloning is cheap and shares the connections.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
    deadline: Duration,
}

#[derive(Debug)]
struct Shared {
    endpoints: Vec<(String, Channel)>,
    /// Index of the endpoint that calls go to now.
    current: AtomicUsize,
    /// Who the client is beyond its certificate.
    login: Option<Arc<Login>>,
}

/// What may be done with a call whose fate is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// Changes nothing (or nothing that a repetition would change): repeat freely.
    Idempotent,
    /// The same, and it may take long: one attempt gets all the time there is.
    Slow,
    /// Repeat only when provably not applied.
    Write,
}

impl Client {
    /// A client of the members in `config`; connects when first used. Without an identity it speaks plain text
    /// (loopback tools only).
    pub fn connect(config: &ClientConfig, identity: Option<Identity>) -> Result<Client> {
        Client::open(config, identity, None)
    }

    /// The same as the user `name` (etcd's `--user`). It signs in when first used and again whenever its token ends; a
    /// wrong password is an [`Error::Etcd`] of the call. Where authentication is off, the name does not matter.
    pub fn connect_as(
        config: &ClientConfig,
        identity: Option<Identity>,
        name: impl Into<String>,
        password: impl Into<String>,
    ) -> Result<Client> {
        let login = Login::new(name.into(), password.into());
        Client::open(config, identity, Some(Arc::new(login)))
    }

    fn open(config: &ClientConfig, identity: Option<Identity>, login: Option<Arc<Login>>) -> Result<Client> {
        if config.endpoints.is_empty() {
            return Err(Error::Endpoint {
                endpoint: String::new(),
                reason: "the list is empty".into(),
            });
        }
        let endpoints = config
            .endpoints
            .iter()
            .map(|endpoint| Ok((endpoint.clone(), open_channel(endpoint, identity.as_ref())?)))
            .collect::<Result<Vec<_>>>()?;
        let shared = Shared {
            endpoints,
            current: AtomicUsize::new(0),
            login,
        };
        Ok(Client {
            shared: Arc::new(shared),
            deadline: DEFAULT_DEADLINE,
        })
    }

    /// The same client with another deadline for each call (retries included).
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Client {
        Client {
            shared: self.shared.clone(),
            deadline,
        }
    }

    pub(crate) fn endpoints(&self) -> &[(String, Channel)] {
        &self.shared.endpoints
    }

    /// Whether a new token may help against this refusal.
    pub(crate) fn renews(&self, status: &Status) -> bool {
        login::renews(self.login(), status.message())
    }

    pub(crate) fn login(&self) -> Option<&Arc<Login>> {
        self.shared.login.as_ref()
    }

    /// The endpoint in use and its channel.
    pub(crate) fn current(&self) -> (usize, Channel) {
        let index = self.shared.current.load(Ordering::Relaxed) % self.shared.endpoints.len();
        // `connect` refuses an empty list, so the index is in range.
        let (_, channel) = &self.shared.endpoints[index];
        (index, channel.clone())
    }

    /// Moves on from a failed endpoint, unless somebody else already has.
    pub(crate) fn rotate(&self, failed: usize) {
        let next = (failed + 1) % self.shared.endpoints.len();
        let _ = self
            .shared
            .current
            .compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Runs one call under the retry rule.
    pub(crate) async fn call<T, F, Fut>(&self, kind: CallKind, attempt: F) -> Result<T>
    where
        F: Fn(Link) -> Fut,
        Fut: Future<Output = std::result::Result<T, Status>>,
    {
        let end = Instant::now() + self.deadline;
        let mut pause = FIRST_PAUSE;
        let mut failures = 0;
        let mut sign_ins = 0;
        // Why it goes on trying. When the time ends within an attempt, this says more than that.
        let mut refused = None;
        loop {
            let (index, channel) = self.current();
            let attempt_end = match kind {
                CallKind::Idempotent => end.min(Instant::now() + READ_ATTEMPT),
                // A write that is given up is lost from sight: it gets all the time there is.
                CallKind::Write | CallKind::Slow => end,
            };
            let signed_in = timeout_at(attempt_end, login::sign_in(self.login(), channel)).await;
            let failed = match signed_in {
                Ok(Ok(link)) => match timeout_at(attempt_end, attempt(link)).await {
                    Ok(Ok(reply)) => return Ok(reply),
                    Ok(Err(status)) if sign_ins < MAX_SIGN_INS && self.renews(&status) => {
                        sign_ins += 1;
                        continue;
                    }
                    Ok(Err(status)) => judge(&status),
                    Err(_) => Attempt::Unknown("no answer within the deadline".into()),
                },
                // Nothing but the sign-in was sent.
                Ok(Err(status)) => match judge(&status) {
                    Attempt::Unknown(detail) => Attempt::NotApplied(Error::Unavailable { detail }),
                    judged => judged,
                },
                Err(_) => Attempt::NotApplied(Error::Unavailable {
                    detail: "no answer to the sign-in within the deadline".into(),
                }),
            };
            let error = match (failed, kind) {
                (Attempt::Final(error), _) => return Err(error),
                (Attempt::NotApplied(error), _) => error,
                (Attempt::Unknown(detail), CallKind::Write) => return Err(Error::UnknownOutcome { detail }),
                (Attempt::Unknown(_), _) if Instant::now() >= end => {
                    return Err(refused.unwrap_or(Error::Timeout));
                }
                (Attempt::Unknown(detail), _) => Error::Unavailable { detail },
            };
            self.rotate(index);
            failures += 1;
            if failures % self.shared.endpoints.len() == 0 {
                let wake = Instant::now() + pause;
                if wake >= end {
                    return Err(error);
                }
                refused = Some(error);
                sleep_until(wake).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }
}

/// The seam to the transport: plain text without an identity, mutual TLS with one.
fn open_channel(endpoint: &str, identity: Option<&Identity>) -> Result<Channel> {
    let options = ChannelOptions {
        expect: Some(SERVER_IDENTITY),
        ..ChannelOptions::default()
    };
    hearth_service::client::channel(endpoint, identity, &options).map_err(|error| Error::Endpoint {
        endpoint: endpoint.to_owned(),
        reason: error.to_string(),
    })
}

/// Wraps a message; `hasleader` makes a member without a leader say so instead of keeping the caller waiting.
pub(crate) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("hasleader", MetadataValue::from_static("true"));
    request
}

pub(crate) fn kv_stub(channel: Link) -> KvClient<Link> {
    KvClient::new(channel).max_decoding_message_size(MAX_REPLY_BYTES)
}

pub(crate) fn watch_stub(channel: Link) -> WatchClient<Link> {
    WatchClient::new(channel).max_decoding_message_size(MAX_REPLY_BYTES)
}

pub(crate) fn lease_stub(channel: Link) -> LeaseClient<Link> {
    LeaseClient::new(channel).max_decoding_message_size(MAX_REPLY_BYTES)
}

pub(crate) fn cluster_stub(channel: Link) -> ClusterClient<Link> {
    ClusterClient::new(channel)
}

pub(crate) fn maintenance_stub(channel: Link) -> MaintenanceClient<Link> {
    MaintenanceClient::new(channel)
}
