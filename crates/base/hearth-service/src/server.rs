//! The listener of every server: HTTP/1 and HTTP/2 (and so gRPC) on one port, over TLS, plain text or both.
//!
//! A connection's first byte tells TLS from plain text: 0x16 opens a TLS handshake record (RFC 8446 section 5.1) and
//! is no beginning of an HTTP request.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use http::{HeaderName, HeaderValue, Request};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing::Instrument;

use crate::error::{ApiError, ErrorBody, ErrorDetail, ErrorKind};
use crate::tasks::{Kind, Tasks, chain};
use crate::tls::{
    ClientAuth, CommonName, Identity, PeerIdentity, Plaintext, bare_common_name, peer_identity,
};

/// Longest time a client may take for the TLS handshake, or for its first byte where both are accepted.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time an HTTP/1 client may take for its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long open connections get to end after a stop was asked for.
const DRAIN: Duration = Duration::from_secs(3);
/// Most bytes of an unread request body that are taken before the answer.
const MAX_DRAINED: usize = 64 * 1024;
/// Longest wait for them.
const DRAIN_BODY: Duration = Duration::from_millis(500);
/// Concurrent HTTP/2 streams on one connection.
const MAX_STREAMS: u32 = 4096;
/// Bytes of a response that wait on one HTTP/2 stream for a client that does not read: what a stuck one costs.
const MAX_SEND_BUFFER: usize = 64 << 10;
/// Pause after a failed accept, so that a lack of file descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const TLS_HANDSHAKE_RECORD: u8 = 0x16;

/// The header that carries a request's id, both ways.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request: from its `x-request-id` header or new. In the extensions of every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub String);

/// A bound port.
#[derive(Debug)]
pub struct Listener(TcpListener, SocketAddr);

/// A port that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}; `hearth doctor` says who holds the port")]
pub struct BindError {
    /// The address asked for.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

/// How a port is served.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Serve TLS with this identity.
    pub tls: Option<(Identity, ClientAuth)>,
    /// Also serve plain text to clients on loopback addresses.
    pub plaintext_loopback: bool,
    /// Also serve certificates that carry no identity but a common name: requests then carry
    /// [`CommonName`] in the place of [`PeerIdentity`].
    pub common_names: bool,
    /// Open connections at once; further ones wait in the kernel's queue.
    pub max_connections: usize,
}

impl Listener {
    /// Binds a port; port 0 takes a free one.
    ///
    /// # Errors
    /// [`BindError`] when the address is taken or not ours.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let failed = |source| BindError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        Ok(Self(listener, local))
    }

    /// The address that was bound.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.1
    }
}

impl ServeOptions {
    /// TLS only.
    #[must_use]
    pub const fn tls(identity: Identity, client_auth: ClientAuth) -> Self {
        Self {
            tls: Some((identity, client_auth)),
            plaintext_loopback: false,
            common_names: false,
            max_connections: 4096,
        }
    }
}

/// Serves `router` until the group stops, then gives open connections a moment to end. Requests carry
/// [`RequestId`], [`ConnectInfo`]`<SocketAddr>`, and [`PeerIdentity`], [`CommonName`] or [`Plaintext`] in their extensions.
///
/// # Errors
/// None today; the result lets it be a critical task.
pub async fn serve(
    listener: Listener,
    router: Router,
    options: ServeOptions,
    tasks: Tasks,
) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(options.max_connections));
    loop {
        let slot = tokio::select! {
            slot = slots.clone().acquire_owned() => slot,
            () = tasks.stopping() => return Ok(()),
        };
        let (stream, remote) = tokio::select! {
            accepted = listener.0.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = tasks.stopping() => return Ok(()),
        };
        let (router, options, stop) = (router.clone(), options.clone(), tasks.clone());
        tasks.spawn("connection", Kind::Background, async move {
            let _slot = slot;
            // How a connection ends is the client's doing and worth no more than a debug line.
            if let Err(error) = accept(stream, remote, router, &options, &stop).await {
                tracing::debug!(%remote, error = %chain(error.as_ref()), "connection ended");
            }
            Ok(())
        });
    }
}

type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

async fn accept(
    stream: TcpStream,
    remote: SocketAddr,
    router: Router,
    options: &ServeOptions,
    stop: &Tasks,
) -> Result<(), ConnectionError> {
    stream.set_nodelay(true)?;
    let plaintext_allowed = options.plaintext_loopback && remote.ip().is_loopback();
    let encrypted = match (&options.tls, plaintext_allowed) {
        (Some(_), false) => true,
        (None, true) => false,
        (None, false) => return Err("plain text from another machine is refused".into()),
        (Some(_), true) => {
            let mut first = [0_u8; 1];
            let read = tokio::time::timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)).await??;
            read == 1 && first == [TLS_HANDSHAKE_RECORD]
        }
    };
    if !encrypted {
        return drive(stream, remote, Peer::Plaintext, router, stop).await;
    }
    let Some((identity, client_auth)) = &options.tls else {
        return Err("a TLS client on a plain-text port".into());
    };
    let acceptor = TlsAcceptor::from(identity.server_config(*client_auth));
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let peer = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|certs| certs.first());
    let peer =
        match peer {
            None => Peer::Anonymous,
            Some(cert) => match (peer_identity(cert), options.common_names) {
                (Some(identity), _) => Peer::Certificate(identity),
                (None, true) => Peer::Named(bare_common_name(cert).ok_or(
                    "the client's certificate carries neither a spiffe:// identity nor a common name",
                )?),
                (None, false) => return Err("the client's certificate carries no spiffe:// identity".into()),
            },
        };
    drive(stream, remote, peer, router, stop).await
}

#[derive(Clone, Debug)]
enum Peer {
    Plaintext,
    Anonymous,
    Certificate(PeerIdentity),
    Named(CommonName),
}

async fn drive<S>(
    stream: S,
    remote: SocketAddr,
    peer: Peer,
    router: Router,
    stop: &Tasks,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (router, peer) = (router.clone(), peer.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(router, request, remote, peer).await) }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.stopping() => connection.as_mut().graceful_shutdown(),
    }
    // Streams that never end by themselves are cut when the time is over.
    tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
}

async fn answer(router: Router, request: Request<Incoming>, remote: SocketAddr, peer: Peer) -> Response {
    let (parts, incoming) = request.into_parts();
    let unread = Arc::new(Mutex::new(Some(incoming)));
    let body = Body::new(ReadOnDemand {
        unread: unread.clone(),
        reading: None,
    });
    let mut request = Request::from_parts(parts, body);
    let grpc = is_grpc(&request);
    let given = request_id(&request);
    let asked = given.is_some();
    let id = given.unwrap_or_else(next_id);
    note_origin(&mut request, &id, remote, peer);
    let span = if grpc {
        tracing::info_span!("request", id = %id, path = %request.uri().path())
    } else {
        tracing::info_span!("request", id = %id, method = %request.method(), path = %request.uri().path())
    };
    let Ok(mut response) = router.oneshot(request).instrument(span.clone()).await;
    drain(unread).await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        response = span.in_scope(|| finish_error(response, error, &id));
    }
    // gRPC is on the path of every read and write of the store, where a header of its own for each answer costs: there
    // the id stands in errors (a status among the headers) and where it was asked for.
    if (!grpc || asked || response.headers().contains_key("grpc-status"))
        && let Ok(value) = HeaderValue::from_str(&id)
    {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(http::header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Says in the request's extensions who asks, and the request's id.
fn note_origin(request: &mut Request<Body>, id: &str, remote: SocketAddr, peer: Peer) {
    let extensions = request.extensions_mut();
    extensions.insert(ConnectInfo(remote));
    extensions.insert(RequestId(id.to_owned()));
    match peer {
        Peer::Plaintext => drop(extensions.insert(Plaintext)),
        Peer::Certificate(identity) => drop(extensions.insert(identity)),
        Peer::Named(name) => drop(extensions.insert(name)),
        Peer::Anonymous => {}
    }
}

/// An id that no other process and no other request of this one has: a random part made once, and a number.
fn next_id() -> String {
    static PROCESS: LazyLock<uuid::Uuid> = LazyLock::new(uuid::Uuid::now_v7);
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!(
        "{:x}-{:x}",
        PROCESS.as_u128() as u64,
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// A request's body that stays with the connection until somebody reads it.
#[derive(Debug)]
struct ReadOnDemand {
    unread: Arc<Mutex<Option<Incoming>>>,
    reading: Option<Incoming>,
}

impl hyper::body::Body for ReadOnDemand {
    type Data = bytes::Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.reading.is_none() {
            let body = self.unread.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.reading = body;
        }
        match &mut self.reading {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.reading {
            Some(body) => body.is_end_stream(),
            None => with(&self.unread, hyper::body::Body::is_end_stream).unwrap_or(true),
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match &self.reading {
            Some(body) => body.size_hint(),
            None => with(&self.unread, hyper::body::Body::size_hint).unwrap_or_default(),
        }
    }
}

fn with<T>(slot: &Mutex<Option<Incoming>>, look: impl FnOnce(&Incoming) -> T) -> Option<T> {
    slot.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
        .map(look)
}

/// Reads a small body that the handler has dropped unread, a 401 for example. Without this the stream is reset while
/// the body still arrives, and curl 7.88 then loses the answer (RFC 9113 section 8.1 lets the server reset, and tells
/// the client to keep the answer).
async fn drain(unread: Arc<Mutex<Option<Incoming>>>) {
    // A handler that still holds the body may read it later: streams do.
    let Some(mut body) =
        Arc::into_inner(unread).and_then(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner))
    else {
        return;
    };
    let read = async {
        let mut left = MAX_DRAINED;
        while !body.is_end_stream() {
            let Some(Ok(frame)) = body.frame().await else {
                return;
            };
            let length = frame.data_ref().map_or(0, bytes::Bytes::len);
            let Some(rest) = left.checked_sub(length) else {
                return;
            };
            left = rest;
        }
    };
    // Whoever sends no end of a body in time gets the answer all the same.
    let _ = tokio::time::timeout(DRAIN_BODY, read).await;
}

/// Writes the request's id into an error answer and logs the cause, once.
fn finish_error(response: Response, error: ApiError, id: &str) -> Response {
    if matches!(error.kind, ErrorKind::Internal | ErrorKind::DataLoss) {
        tracing::error!(error = %chain(&error), "the request failed");
    } else {
        tracing::debug!(error = %chain(&error), kind = %error.kind, "the request was refused");
    }
    let detail = ErrorDetail {
        kind: error.kind,
        message: error.message,
        hint: error.hint,
        request_id: Some(id.to_owned()),
    };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(http::header::CONTENT_LENGTH);
    let body = serde_json::to_vec(&ErrorBody { error: detail }).unwrap_or_default();
    Response::from_parts(parts, Body::from(body))
}

/// The client's id when it is a plain token of at most 64 bytes.
fn request_id<B>(request: &Request<B>) -> Option<String> {
    let given = request.headers().get(REQUEST_ID)?.to_str().ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    ((1..=64).contains(&given.len()) && given.bytes().all(plain)).then(|| given.to_owned())
}
