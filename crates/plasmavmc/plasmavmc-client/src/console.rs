//! A VM's serial console over a WebSocket.
//!
//! Binary frames carry the console's bytes both ways. The server closes with code 1000 when the console ends, and
//! with another code and a reason when it broke.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use hearth_types::Name;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::rest::{ClientError, PlasmaClient, error_from};

/// Longest until the console answers: the server waits for the node meanwhile.
const OPEN_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);

/// An open console.
#[derive(Debug)]
pub struct Console {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    url: String,
}

impl PlasmaClient {
    /// Opens a VM's serial console.
    ///
    /// # Errors
    /// [`ClientError`]: as any call, before a byte of the console was seen.
    pub async fn console(&self, project: &Name, vm: &Name) -> Result<Console, ClientError> {
        let open = self.open_console(project, vm);
        tokio::time::timeout(OPEN_TIMEOUT, open)
            .await
            .map_err(|_| self.transport("the console did not open within 20 seconds"))?
    }

    async fn open_console(&self, project: &Name, vm: &Name) -> Result<Console, ClientError> {
        let url = self.url(&format!("/v1/projects/{project}/vms/{vm}/console"));
        let ws_url = format!("wss{}", url.strip_prefix("https").unwrap_or(&url));
        let mut request = ws_url
            .into_client_request()
            .map_err(|e| ClientError::Setup(format!("the address `{url}` cannot be used: {e}")))?;
        let (host, port) = {
            let host = request
                .uri()
                .host()
                .unwrap_or_default()
                .trim_matches(['[', ']'])
                .to_owned();
            (host, request.uri().port_u16().unwrap_or(443))
        };
        let token = self.token.token().await.map_err(ClientError::Token)?;
        let bearer = format!("Bearer {token}").parse().map_err(|_| {
            ClientError::Token("the token has characters that a header cannot carry".to_owned())
        })?;
        request.headers_mut().insert(http::header::AUTHORIZATION, bearer);

        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .map_err(|e| self.transport(e))?;
        // Keystrokes are single bytes: they must not wait for company.
        stream.set_nodelay(true).map_err(|e| self.transport(e))?;
        let server = ServerName::try_from(host.clone())
            .map_err(|_| ClientError::Setup(format!("`{host}` is neither a host name nor an address")))?;
        let stream = TlsConnector::from(self.tls.clone())
            .connect(server, stream)
            .await
            .map_err(|e| self.transport(e))?;
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(Console { socket, url }),
            Err(WsError::Http(response)) => Err(error_from(
                response.status(),
                response.body().as_deref().unwrap_or_default(),
            )),
            Err(error) => Err(self.transport(error)),
        }
    }
}

impl Console {
    /// The next bytes of the console; `None` when it has ended. Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Transport`] with the reason when it broke.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
                Some(Ok(Message::Text(text))) => return Ok(Some(Bytes::from(text))),
                Some(Ok(Message::Close(Some(frame)))) if frame.code != CloseCode::Normal => {
                    return Err(self.broken(frame.reason.to_string()));
                }
                Some(Ok(Message::Close(_))) | None => return Ok(None),
                Some(Ok(_)) => {}
                Some(Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) => return Ok(None),
                Some(Err(error)) => return Err(self.broken(error)),
            }
        }
    }

    /// Sends bytes to the console.
    ///
    /// # Errors
    /// [`ClientError::Transport`] when the connection broke.
    pub async fn send(&mut self, bytes: impl Into<Bytes>) -> Result<(), ClientError> {
        let sent = self.socket.send(Message::Binary(bytes.into())).await;
        sent.map_err(|error| self.broken(error))
    }

    /// Says goodbye; errors do not matter any more.
    pub async fn close(mut self) {
        let _ = self.socket.close(None).await;
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Transport {
            url: self.url.clone(),
            source: source.into(),
        }
    }
}
