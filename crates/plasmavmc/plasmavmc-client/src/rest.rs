//! The typed client of the REST API.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use hearth_types::{ErrorKind, Name, PageToken};
use reqwest::{RequestBuilder, Response, StatusCode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use crate::types::{
    ErrorBody, Image, ImageFormat, ImageList, ImageQuery, NodeList, PageQuery, Vm, VmCreate, VmList, VmStop,
};

/// Longest a call other than an upload may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest the making of a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Attempts of a call that may be repeated safely.
const MAX_ATTEMPTS: u32 = 4;
/// Wait before the second attempt; doubled for each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(150);
/// Bytes read from a file at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Longest error body that is looked at.
const MAX_ERROR_BYTES: usize = 64 << 10;

/// The header that makes a request one that may be repeated: the server carries it out once, and answers the same.
pub const KEY_HEADER: &str = "idempotency-key";

/// Where the bearer token of each request comes from; asked before every request, so it may renew.
pub trait TokenProvider: Send + Sync {
    /// The token to send now.
    fn token(&self) -> BoxFuture<'_, Result<String, String>>;
}

/// A token that never changes.
#[derive(Clone)]
pub struct StaticToken(pub String);

impl fmt::Debug for StaticToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StaticToken(..)")
    }
}

impl TokenProvider for StaticToken {
    fn token(&self) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(async { Ok(self.0.clone()) })
    }
}

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered with an error.
    #[error("{}{}", .detail.message, .detail.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default())]
    Api {
        /// The HTTP status.
        status: StatusCode,
        /// What the server said.
        detail: crate::types::ErrorDetail,
    },
    /// The server could not be reached, or the connection broke.
    #[error("cannot reach PlasmaVMC at {url}")]
    Transport {
        /// Address that was tried.
        url: String,
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not what this version of the client understands.
    #[error("PlasmaVMC's answer to {what} is not understood")]
    Answer {
        /// The call.
        what: &'static str,
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No token could be had.
    #[error("no valid sign-in: {0}")]
    Token(String),
    /// A local file could not be read.
    #[error("cannot read `{}`", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: std::io::Error,
    },
    /// The certificate or the address given to the client is unusable.
    #[error("{0}")]
    Setup(String),
}

impl ClientError {
    /// The kind, where the server gave one or it is plain.
    #[must_use]
    pub const fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Api { detail, .. } => Some(detail.kind),
            Self::Transport { .. } => Some(ErrorKind::Unavailable),
            Self::Token(_) => Some(ErrorKind::Unauthenticated),
            Self::Answer { .. } | Self::File { .. } | Self::Setup(_) => None,
        }
    }

    /// True when the thing asked for is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.kind() == Some(ErrorKind::NotFound)
    }
}

/// A rustls configuration that trusts the certificates in `ca_pem` and nothing else, for a client that signs in
/// with tokens.
///
/// # Errors
/// [`ClientError::Setup`] when there is no certificate in it.
pub fn tls_from_ca(ca_pem: &[u8]) -> Result<Arc<rustls::ClientConfig>, ClientError> {
    let setup = |error: &dyn fmt::Display| {
        ClientError::Setup(format!("the cluster's CA certificate cannot be used: {error}"))
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        roots
            .add(certificate.map_err(|e| setup(&e))?)
            .map_err(|e| setup(&e))?;
    }
    if roots.is_empty() {
        return Err(setup(&"there is none in the file"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| setup(&e))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// A file to import as an image.
#[derive(Clone, Debug)]
pub struct ImageUpload {
    /// Name the image gets.
    pub name: Name,
    /// Form of the file.
    pub format: ImageFormat,
    /// The file.
    pub path: PathBuf,
    /// SHA-256 the file should have; absent: it is computed first.
    pub sha256: Option<String>,
}

/// A client of one PlasmaVMC server. Clones share connections.
#[derive(Clone)]
pub struct PlasmaClient {
    base: String,
    pub(crate) http: reqwest::Client,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    pub(crate) token: Arc<dyn TokenProvider>,
    /// Of every change; a fresh one for each when absent.
    key: Option<Arc<str>>,
}

impl fmt::Debug for PlasmaClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlasmaClient")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

impl PlasmaClient {
    /// A client of the server at `base_url` (such as `https://127.0.0.1:8444`), trusting what `tls` trusts and
    /// signing in with what `token` gives.
    ///
    /// # Errors
    /// [`ClientError::Setup`] when the address is not `https://...` or TLS cannot be set up.
    pub fn new(
        base_url: &str,
        tls: Arc<rustls::ClientConfig>,
        token: Arc<dyn TokenProvider>,
    ) -> Result<Self, ClientError> {
        let base = base_url.trim_end_matches('/').to_owned();
        if !base.starts_with("https://") {
            return Err(ClientError::Setup(format!(
                "the address `{base_url}` does not begin with https://; PlasmaVMC speaks nothing else"
            )));
        }
        // WebSockets need HTTP/1.1, and so does reqwest as it is built here.
        let mut config = rustls::ClientConfig::clone(&tls);
        config.alpn_protocols.clear();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(config.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .no_proxy()
            .build()
            .map_err(|error| ClientError::Setup(format!("cannot set up the HTTP client: {error}")))?;
        Ok(Self {
            base,
            http,
            tls: Arc::new(config),
            token,
            key: None,
        })
    }

    /// A client whose changes all carry this idempotency key, so that one of them can be repeated by another process:
    /// it is carried out once. Without it each call makes a key of its own, for its own attempts.
    #[must_use]
    pub fn with_idempotency_key(&self, key: &str) -> Self {
        Self {
            key: Some(key.into()),
            ..self.clone()
        }
    }

    /// The key of one change.
    pub(crate) fn change_key(&self) -> Arc<str> {
        self.key
            .clone()
            .unwrap_or_else(|| uuid::Uuid::now_v7().to_string().into())
    }

    /// Sends a change, which the server carries out once however often it arrives.
    pub(crate) async fn change<T: DeserializeOwned>(
        &self,
        what: &'static str,
        make: impl Fn() -> RequestBuilder + Send + Sync,
    ) -> Result<T, ClientError> {
        let key = self.change_key();
        self.call(what, true, || make().header(KEY_HEADER, &*key)).await
    }

    /// Sends a deletion that has nothing to show.
    pub(crate) async fn remove(&self, url: &str) -> Result<(), ClientError> {
        let key = self.change_key();
        let make = || self.http.delete(url).header(KEY_HEADER, &*key);
        self.send(true, || make().timeout(CALL_TIMEOUT)).await.map(drop)
    }

    /// The server's address.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base
    }

    /// Creates a VM. The call is repeated by itself when the connection breaks; with an idempotency key it can be
    /// repeated by the caller, too: the same key and request give the same VM.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_vm(
        &self,
        project: &Name,
        request: &VmCreate,
        idempotency_key: Option<&str>,
    ) -> Result<Vm, ClientError> {
        let url = self.url(&format!("/v1/projects/{project}/vms"));
        let key = idempotency_key.map_or_else(|| self.change_key(), Arc::from);
        self.call("creating a VM", true, || {
            self.http.post(&url).json(request).header(KEY_HEADER, &*key)
        })
        .await
    }

    /// One page of a project's VMs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_vms(&self, project: &Name, page: &PageQuery) -> Result<VmList, ClientError> {
        let url = self.url(&format!("/v1/projects/{project}/vms"));
        self.call("listing VMs", true, || self.http.get(&url).query(page))
            .await
    }

    /// All of a project's VMs, page by page, at most `limit`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn all_vms(&self, project: &Name, limit: usize) -> Result<Vec<Vm>, ClientError> {
        let mut all = Vec::new();
        let mut page_token: Option<PageToken> = None;
        loop {
            let page = self
                .list_vms(
                    project,
                    &PageQuery {
                        page_size: Some(500),
                        page_token,
                    },
                )
                .await?;
            all.extend(page.items);
            page_token = page.next_page_token;
            if page_token.is_none() || all.len() >= limit {
                all.truncate(limit);
                return Ok(all);
            }
        }
    }

    /// One VM.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_vm(&self, project: &Name, vm: &Name) -> Result<Vm, ClientError> {
        let url = self.vm_url(project, vm, "");
        self.call("reading a VM", true, || self.http.get(&url)).await
    }

    /// Asks for a VM's deletion; the answer is the VM as it is being deleted. It is done when [`Self::get_vm`]
    /// finds it no more.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete_vm(&self, project: &Name, vm: &Name) -> Result<Vm, ClientError> {
        let url = self.vm_url(project, vm, "");
        self.change("deleting a VM", || self.http.delete(&url)).await
    }

    /// Asks for a VM to run.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn start_vm(&self, project: &Name, vm: &Name) -> Result<Vm, ClientError> {
        let url = self.vm_url(project, vm, "/start");
        self.change("starting a VM", || self.http.post(&url)).await
    }

    /// Asks for a VM to be off.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn stop_vm(&self, project: &Name, vm: &Name, how: &VmStop) -> Result<Vm, ClientError> {
        let url = self.vm_url(project, vm, "/stop");
        self.change("stopping a VM", || self.http.post(&url).json(how))
            .await
    }

    /// Asks for a running VM to be reset, as its reset button would.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reset_vm(&self, project: &Name, vm: &Name) -> Result<Vm, ClientError> {
        let url = self.vm_url(project, vm, "/reset");
        self.change("resetting a VM", || self.http.post(&url)).await
    }

    /// Asks for a running VM to stand still.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn pause_vm(&self, project: &Name, vm: &Name) -> Result<Vm, ClientError> {
        let url = self.vm_url(project, vm, "/pause");
        self.change("pausing a VM", || self.http.post(&url)).await
    }

    /// Asks for a paused VM to go on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn resume_vm(&self, project: &Name, vm: &Name) -> Result<Vm, ClientError> {
        let url = self.vm_url(project, vm, "/resume");
        self.change("resuming a VM", || self.http.post(&url)).await
    }

    /// All images.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_images(&self) -> Result<ImageList, ClientError> {
        let url = self.url("/v1/images");
        self.call("listing images", true, || self.http.get(&url)).await
    }

    /// One image.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_image(&self, name: &Name) -> Result<Image, ClientError> {
        let url = self.url(&format!("/v1/images/{name}"));
        self.call("reading an image", true, || self.http.get(&url)).await
    }

    /// Removes an image that no VM uses.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete_image(&self, name: &Name) -> Result<(), ClientError> {
        let url = self.url(&format!("/v1/images/{name}"));
        self.remove(&url).await
    }

    /// Imports a file as an image. `progress` is told the bytes sent so far and the whole size.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn upload_image(
        &self,
        upload: &ImageUpload,
        progress: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Result<Image, ClientError> {
        let file_error = |source| ClientError::File {
            path: upload.path.clone(),
            source,
        };
        let sha256 = match &upload.sha256 {
            Some(given) => given.to_ascii_lowercase(),
            None => sha256_of(&upload.path).await.map_err(file_error)?,
        };
        let file = tokio::fs::File::open(&upload.path).await.map_err(file_error)?;
        let total = file.metadata().await.map_err(file_error)?.len();
        let mut sent = 0;
        let body = ReaderStream::with_capacity(file, CHUNK_BYTES).inspect(move |chunk| {
            sent += chunk.as_ref().map_or(0, |bytes| bytes.len() as u64);
            progress(sent, total);
        });
        let url = self.url(&format!("/v1/images/{}", upload.name));
        let query = ImageQuery {
            format: upload.format,
            sha256,
        };
        let call = self
            .http
            .put(&url)
            .query(&query)
            .header(KEY_HEADER, &*self.change_key())
            .header(reqwest::header::CONTENT_LENGTH, total)
            .header(reqwest::header::CONTENT_TYPE, "application/octet-stream")
            .body(reqwest::Body::wrap_stream(body));
        let response = self.attempt(call).await?;
        self.read("importing an image", response).await
    }

    /// All nodes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_nodes(&self) -> Result<NodeList, ClientError> {
        let url = self.url("/v1/nodes");
        self.call("listing nodes", true, || self.http.get(&url)).await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn vm_url(&self, project: &Name, vm: &Name, rest: &str) -> String {
        self.url(&format!("/v1/projects/{project}/vms/{vm}{rest}"))
    }

    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        what: &'static str,
        repeatable: bool,
        make: impl Fn() -> RequestBuilder + Send + Sync,
    ) -> Result<T, ClientError> {
        let response = self.send(repeatable, || make().timeout(CALL_TIMEOUT)).await?;
        self.read(what, response).await
    }

    /// Sends until there is an answer that says more than "try again", at most [`MAX_ATTEMPTS`] times.
    pub(crate) async fn send(
        &self,
        repeatable: bool,
        make: impl Fn() -> RequestBuilder + Send + Sync,
    ) -> Result<Response, ClientError> {
        let mut backoff = FIRST_BACKOFF;
        let mut attempt = 1;
        loop {
            let outcome = self.attempt(make()).await;
            let again = matches!(&outcome, Err(error) if error.kind() == Some(ErrorKind::Unavailable));
            if !(again && repeatable) || attempt == MAX_ATTEMPTS {
                return outcome;
            }
            tokio::time::sleep(backoff).await;
            backoff *= 2;
            attempt += 1;
        }
    }

    async fn attempt(&self, call: RequestBuilder) -> Result<Response, ClientError> {
        let token = self.token.token().await.map_err(ClientError::Token)?;
        let response = call
            .bearer_auth(token)
            .send()
            .await
            .map_err(|e| self.transport(e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = response.bytes().await.map_err(|e| self.transport(e))?;
        Err(error_from(status, &bytes))
    }

    async fn read<T: DeserializeOwned>(
        &self,
        what: &'static str,
        response: Response,
    ) -> Result<T, ClientError> {
        let bytes = response.bytes().await.map_err(|e| self.transport(e))?;
        serde_json::from_slice(&bytes).map_err(|e| ClientError::Answer {
            what,
            source: e.into(),
        })
    }

    pub(crate) fn transport(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ClientError {
        ClientError::Transport {
            url: self.base.clone(),
            source: source.into(),
        }
    }
}

/// An error answer as a [`ClientError`], also when something between us and the server made it.
pub(crate) fn error_from(status: StatusCode, body: &[u8]) -> ClientError {
    let body = body.get(..MAX_ERROR_BYTES).unwrap_or(body);
    let detail = serde_json::from_slice::<ErrorBody>(body).map_or_else(
        |_| crate::types::ErrorDetail {
            kind: kind_of(status),
            message: format!("the server answered {status}"),
            hint: None,
            request_id: None,
        },
        |body| body.error,
    );
    ClientError::Api { status, detail }
}

const fn kind_of(status: StatusCode) -> ErrorKind {
    match status.as_u16() {
        401 => ErrorKind::Unauthenticated,
        403 => ErrorKind::PermissionDenied,
        404 => ErrorKind::NotFound,
        409 => ErrorKind::Conflict,
        429 => ErrorKind::ResourceExhausted,
        502 | 503 => ErrorKind::Unavailable,
        504 => ErrorKind::DeadlineExceeded,
        400..=499 => ErrorKind::InvalidArgument,
        _ => ErrorKind::Internal,
    }
}

/// SHA-256 of a file's bytes, 64 hexadecimal digits.
///
/// # Errors
/// What the file system says.
pub async fn sha256_of(path: &std::path::Path) -> std::io::Result<String> {
    let mut file = tokio::fs::File::open(path).await?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count = file.read(&mut buffer).await?;
        let Some(read) = buffer.get(..count).filter(|read| !read.is_empty()) else {
            return Ok(hex::encode(hash.finalize()));
        };
        hash.update(read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_read_from_our_body_and_from_foreign_ones() {
        let ours = br#"{"error":{"kind":"not_found","message":"no VM `web`","hint":"list them"}}"#;
        let error = error_from(StatusCode::NOT_FOUND, ours);
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "no VM `web`; list them");
        let foreign = error_from(StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(foreign.kind(), Some(ErrorKind::Unavailable));
    }

    #[test]
    fn a_client_refuses_what_is_not_https_and_an_empty_ca() {
        assert!(matches!(tls_from_ca(b"nothing"), Err(ClientError::Setup(_))));
        let roots = rustls::RootCertStore::empty();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let token = Arc::new(StaticToken("secret".to_owned()));
        assert!(!format!("{token:?}").contains("secret"));
        let refused = PlasmaClient::new("http://127.0.0.1:8444", Arc::new(tls), token);
        assert!(matches!(refused, Err(ClientError::Setup(_))));
    }

    #[tokio::test]
    async fn a_file_is_hashed_in_full() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"abc").unwrap();
        assert_eq!(
            sha256_of(file.path()).await.unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
