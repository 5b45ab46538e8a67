//! Channels to other servers: gRPC over HTTP/2, with mutual TLS where an identity is given.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::tls::{Identity, peer_identity, server_name};

/// How a channel behaves.
#[derive(Clone, Debug)]
pub struct ChannelOptions {
    /// Longest time to make a connection, TLS included.
    pub connect_timeout: Duration,
    /// Longest time for one call, unless it sets its own. `None` for channels that carry long streams.
    pub timeout: Option<Duration>,
    /// How often an idle connection is probed; a peer that does not answer for as long again is dropped.
    pub keep_alive: Duration,
    /// The identity path that the server must have, for example `service/chainfire`; any of our CA when `None`.
    pub expect: Option<&'static str>,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            timeout: None,
            keep_alive: Duration::from_secs(10),
            expect: None,
        }
    }
}

/// An address that is not `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address of the form host:port")]
pub struct AddressError(String);

/// What stops a connection from being made.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("the address has no host or port")]
    Address,
    #[error("cannot connect")]
    Io(#[from] std::io::Error),
    #[error("the server is `{found}` and not `{expected}`")]
    Identity { found: String, expected: &'static str },
}

/// A channel to `endpoint` (`host:port`). It connects when first used and again after it broke; calls fail meanwhile
/// with `Unavailable`. Without an identity it speaks plain text.
///
/// # Errors
/// [`AddressError`] when `endpoint` is not `host:port`.
pub fn channel(
    endpoint: &str,
    identity: Option<&Identity>,
    options: &ChannelOptions,
) -> Result<Channel, AddressError> {
    let wrong = || AddressError(endpoint.to_owned());
    let uri: Uri = format!("http://{endpoint}").parse().map_err(|_| wrong())?;
    if uri.port_u16().is_none() || uri.host().is_none_or(str::is_empty) {
        return Err(wrong());
    }
    let mut builder = Endpoint::from(uri)
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(options.keep_alive)
        .keep_alive_timeout(options.keep_alive)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20);
    if let Some(timeout) = options.timeout {
        builder = builder.timeout(timeout);
    }
    Ok(builder.connect_with_connector_lazy(Connector {
        identity: identity.cloned(),
        expect: options.expect,
    }))
}

/// Makes the connections of a channel.
#[derive(Clone, Debug)]
struct Connector {
    identity: Option<Identity>,
    expect: Option<&'static str>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

type Connection = TokioIo<Box<dyn Stream>>;

impl tower::Service<Uri> for Connector {
    type Response = Connection;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(&uri).await.map_err(Into::into) })
    }
}

impl Connector {
    async fn connect(&self, uri: &Uri) -> Result<Connection, ConnectError> {
        let host = uri.host().ok_or(ConnectError::Address)?;
        let port = uri.port_u16().ok_or(ConnectError::Address)?;
        let tcp = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
        tcp.set_nodelay(true)?;
        let Some(identity) = &self.identity else {
            return Ok(TokioIo::new(Box::new(tcp)));
        };
        let name = server_name(host).ok_or(ConnectError::Address)?;
        let tls = TlsConnector::from(identity.client_config())
            .connect(name, tcp)
            .await?;
        if let Some(expected) = self.expect {
            let peer = tls
                .get_ref()
                .1
                .peer_certificates()
                .and_then(|certs| certs.first())
                .and_then(peer_identity);
            let found = peer.map(|peer| peer.path).unwrap_or_default();
            if found != expected {
                return Err(ConnectError::Identity { found, expected });
            }
        }
        Ok(TokioIo::new(Box::new(tls)))
    }
}
