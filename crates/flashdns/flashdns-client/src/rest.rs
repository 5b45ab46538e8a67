//! The typed client of the REST interface.

use std::{fmt, path::Path, time::Duration};

use hearth_service::{error::ErrorBody, error::ErrorDetail, tls::TlsError};
use hearth_types::ErrorKind;
use reqwest::{Method, RequestBuilder, header::CONTENT_TYPE};
use serde::de::DeserializeOwned;

use crate::types::{KeyList, MadeKey, NewKey, ZoneImport, ZoneList};

/// Longest the making of a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest a call may take; a large import is some hundred transactions.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Media type of zone files (RFC 4027).
const ZONE_FILE: &str = "text/dns";

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The CA file cannot be used, or TLS not be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No answer.
    #[error("cannot reach FlashDNS at {url}; `hearth status` shows what runs")]
    Unreachable {
        /// Where.
        url: String,
        /// What the connection said.
        source: reqwest::Error,
    },
    /// An answer that this client does not understand.
    #[error("FlashDNS answered in a way that this version does not understand ({status})")]
    Unexpected {
        /// The HTTP status.
        status: u16,
    },
    /// A refusal.
    #[error("{}", .0.message)]
    Api(ErrorDetail),
}

impl ClientError {
    /// The kind, where the server gave one or it is plain.
    #[must_use]
    pub const fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Api(detail) => Some(detail.kind),
            Self::Unreachable { .. } => Some(ErrorKind::Unavailable),
            Self::Tls(_) | Self::Unexpected { .. } => None,
        }
    }
}

/// A client of one FlashDNS server.
#[derive(Clone)]
pub struct DnsClient {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl fmt::Debug for DnsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsClient")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl DnsClient {
    /// A client of the server at `url` (such as `https://127.0.0.1:8081`) that trusts the CA in `ca` and signs in
    /// with `token`.
    ///
    /// # Errors
    /// [`ClientError`] when the CA's file cannot be used.
    pub fn new(url: &str, ca: &Path, token: &str) -> Result<Self, ClientError> {
        let url = url.trim_end_matches('/').to_owned();
        let mut tls = hearth_service::tls::anonymous_client_config(ca)?;
        // reqwest as it is built here speaks HTTP/1.1 only.
        tls.alpn_protocols.clear();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .no_proxy()
            .build();
        let http = http.map_err(|source| ClientError::Unreachable {
            url: url.clone(),
            source,
        })?;
        Ok(Self {
            http,
            url,
            token: token.to_owned(),
        })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.token)
    }

    async fn body(&self, request: RequestBuilder) -> Result<Vec<u8>, ClientError> {
        let unreachable = |source| ClientError::Unreachable {
            url: self.url.clone(),
            source,
        };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let body = response.bytes().await.map_err(unreachable)?;
        if status.is_success() {
            return Ok(body.into());
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => Err(ClientError::Api(body.error)),
            Err(_) => Err(ClientError::Unexpected {
                status: status.as_u16(),
            }),
        }
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let body = self.body(request).await?;
        // A success whose body is not ours comes from something that is not FlashDNS.
        serde_json::from_slice(&body).map_err(|_| ClientError::Unexpected { status: 200 })
    }

    /// The zones that the caller may see.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_zones(&self) -> Result<ZoneList, ClientError> {
        self.json(self.request(Method::GET, "/v1/zones")).await
    }

    /// A zone's stored records as a zone file.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn export_zone(&self, zone: &str) -> Result<String, ClientError> {
        let path = format!("/v1/zones/{}/file", segment(zone));
        let body = self.body(self.request(Method::GET, &path)).await?;
        String::from_utf8(body).map_err(|_| ClientError::Unexpected { status: 200 })
    }

    /// The caller's TSIG keys.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_keys(&self) -> Result<KeyList, ClientError> {
        self.json(self.request(Method::GET, "/v1/keys")).await
    }

    /// Makes a TSIG key; the answer holds its secret.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_key(&self, key: &NewKey) -> Result<MadeKey, ClientError> {
        self.json(self.request(Method::POST, "/v1/keys").json(key)).await
    }

    /// Deletes a TSIG key.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete_key(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/keys/{}", segment(name));
        self.body(self.request(Method::DELETE, &path)).await.map(|_| ())
    }

    /// Replaces a zone's stored records by those of a zone file; with `dry_run` it only says what would change.
    ///
    /// # Errors
    /// [`ClientError`]; one that concerns the file names line and column.
    pub async fn import_zone(
        &self,
        zone: &str,
        file: String,
        dry_run: bool,
    ) -> Result<ZoneImport, ClientError> {
        let path = format!("/v1/zones/{}/file", segment(zone));
        let request = self
            .request(Method::PUT, &path)
            .query(&[("dry_run", dry_run)])
            .header(CONTENT_TYPE, ZONE_FILE)
            .body(file);
        self.json(request).await
    }
}

/// A text as one segment of a path.
fn segment(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => shown.push(char::from(byte)),
            other => shown += &format!("%{other:02X}"),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_segment() {
        assert_eq!(segment("p.h.i."), "p.h.i.");
        assert_eq!(segment("a/../b?c"), "a%2F..%2Fb%3Fc");
    }
}
