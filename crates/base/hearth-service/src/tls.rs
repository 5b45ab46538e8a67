//! TLS identities: our own certificate, the authorities that we trust, and who the peer is.
//!
//! Files are looked at again at most every [`RECHECK`] when a connection is made, so a renewed certificate is used
//! without a restart; a file that cannot be read leaves the old one in use and is logged.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::TlsConfig;

/// How often the files are looked at again, at most.
pub const RECHECK: Duration = Duration::from_secs(5);

/// Who the peer of a connection is, from its verified certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// Trust domain of the identity, for example `hearth.internal`.
    pub trust_domain: String,
    /// Path of the identity, for example `service/aegis` or `node/node01`.
    pub path: String,
}

/// The subject's common name of a verified certificate that carries no [`PeerIdentity`]. Only listeners that ask for
/// such certificates let them in ([`crate::server::ServeOptions::common_names`]).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CommonName(pub String);

/// Marks a request that came in plain text, which only listeners that allow it accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plaintext;

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// No connection without one.
    Required,
    /// People come without one; one that is shown must be valid.
    Optional,
}

/// Why an identity could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file is missing or malformed.
    #[error("cannot read `{path}`; `hearth cluster init` makes it")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate and the key do not belong together, or an authority is not usable.
    #[error("the certificate `{path}` cannot be used")]
    Certificate {
        /// The certificate.
        path: PathBuf,
        /// The library's reason.
        source: rustls::Error,
    },
    /// The certificate has no identity.
    #[error("the certificate `{path}` carries no spiffe:// identity")]
    NoIdentity {
        /// The certificate.
        path: PathBuf,
    },
}

/// Our certificate, key and trusted authorities. Clones share the state.
#[derive(Clone, Debug)]
pub struct Identity(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: TlsConfig,
    loaded: ArcSwap<Loaded>,
    checked: Mutex<(Instant, Vec<Option<SystemTime>>)>,
}

#[derive(Debug)]
struct Loaded {
    own: PeerIdentity,
    not_after: SystemTime,
    not_before: SystemTime,
    server_required: Arc<ServerConfig>,
    server_optional: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Identity {
    /// Reads the three files.
    ///
    /// # Errors
    /// [`TlsError`] naming the file at fault.
    pub fn load(files: &TlsConfig) -> Result<Self, TlsError> {
        let loaded = Loaded::read(files)?;
        let checked = Mutex::new((Instant::now(), modification_times(files)));
        Ok(Self(Arc::new(Shared {
            files: files.clone(),
            loaded: ArcSwap::from_pointee(loaded),
            checked,
        })))
    }

    /// Our own identity.
    #[must_use]
    pub fn own(&self) -> PeerIdentity {
        self.current().own.clone()
    }

    /// From when until when our certificate is valid.
    #[must_use]
    pub fn validity(&self) -> (SystemTime, SystemTime) {
        let loaded = self.current();
        (loaded.not_before, loaded.not_after)
    }

    /// The files that this identity is read from.
    #[must_use]
    pub fn files(&self) -> &TlsConfig {
        &self.0.files
    }

    /// For accepting one connection; ask again for each, so that renewed certificates come into use.
    #[must_use]
    pub fn server_config(&self, client_auth: ClientAuth) -> Arc<ServerConfig> {
        let loaded = self.current();
        match client_auth {
            ClientAuth::Required => loaded.server_required.clone(),
            ClientAuth::Optional => loaded.server_optional.clone(),
        }
    }

    /// For making one connection; ask again for each.
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.current().client.clone()
    }

    fn current(&self) -> Arc<Loaded> {
        self.refresh();
        self.0.loaded.load_full()
    }

    fn refresh(&self) {
        let mut checked = self.0.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked.0.elapsed() < RECHECK {
            return;
        }
        let times = modification_times(&self.0.files);
        let changed = times != checked.1;
        checked.0 = Instant::now();
        if !changed {
            return;
        }
        match Loaded::read(&self.0.files) {
            Ok(loaded) => {
                tracing::info!(cert = %self.0.files.cert.display(), "the certificate was read again");
                self.0.loaded.store(Arc::new(loaded));
                checked.1 = times;
            }
            // Left as unread, so that the next look tries again: the files may be half-way replaced.
            Err(error) => tracing::warn!(error = %crate::tasks::chain(&error), "keeping the old certificate"),
        }
    }
}

fn modification_times(files: &TlsConfig) -> Vec<Option<SystemTime>> {
    [&files.ca, &files.cert, &files.key]
        .into_iter()
        .map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok())
        .collect()
}

/// The authorities in a PEM file.
///
/// # Errors
/// [`TlsError`] when the file has none that can be used.
pub fn roots(path: &std::path::Path) -> Result<RootCertStore, TlsError> {
    let file = |source| TlsError::File {
        path: path.to_owned(),
        source,
    };
    let mut store = RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(path).map_err(file)? {
        store
            .add(cert.map_err(file)?)
            .map_err(|source| TlsError::Certificate {
                path: path.to_owned(),
                source,
            })?;
    }
    if store.is_empty() {
        return Err(file(rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(store)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A client without a certificate of its own that trusts the authorities in `ca`: what people's tools use.
///
/// # Errors
/// [`TlsError`] when the file has no usable authority.
pub fn anonymous_client_config(ca: &std::path::Path) -> Result<ClientConfig, TlsError> {
    let failed = |source| TlsError::Certificate {
        path: ca.to_owned(),
        source,
    };
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_root_certificates(roots(ca)?)
        .with_no_client_auth())
}

impl Loaded {
    fn read(files: &TlsConfig) -> Result<Self, TlsError> {
        let cert_file = |source| TlsError::File {
            path: files.cert.clone(),
            source,
        };
        let unusable = |source| TlsError::Certificate {
            path: files.cert.clone(),
            source,
        };
        let certs: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.cert)
            .map_err(cert_file)?
            .collect::<Result<_, _>>()
            .map_err(cert_file)?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|source| TlsError::File {
            path: files.key.clone(),
            source,
        })?;
        let roots = Arc::new(roots(&files.ca)?);
        let leaf = certs
            .first()
            .ok_or_else(|| cert_file(rustls::pki_types::pem::Error::NoItemsFound))?;
        let no_identity = || TlsError::NoIdentity {
            path: files.cert.clone(),
        };
        let own = peer_identity(leaf).ok_or_else(no_identity)?;
        let (not_before, not_after) = validity(leaf).ok_or_else(no_identity)?;

        let server = |required: bool| -> Result<Arc<ServerConfig>, TlsError> {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
            let verifier = if required {
                verifier
            } else {
                verifier.allow_unauthenticated()
            };
            let verifier = verifier
                .build()
                .map_err(|error| unusable(rustls::Error::General(error.to_string())))?;
            let mut config = ServerConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .map_err(unusable)?
                .with_client_cert_verifier(verifier)
                .with_single_cert(certs.clone(), key.clone_key())
                .map_err(unusable)?;
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            Ok(Arc::new(config))
        };
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(certs.clone(), key.clone_key())
            .map_err(unusable)?;
        client.alpn_protocols = vec![b"h2".to_vec()];
        let (server_required, server_optional) = (server(true)?, server(false)?);
        Ok(Self {
            own,
            not_before,
            not_after,
            server_required,
            server_optional,
            client: Arc::new(client),
        })
    }
}

/// The identity in a certificate: its first `spiffe://` URI. The caller must have verified the certificate.
#[must_use]
pub fn peer_identity(cert: &CertificateDer<'_>) -> Option<PeerIdentity> {
    let (_, parsed) = X509Certificate::from_der(cert).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => {
            let (trust_domain, path) = uri.strip_prefix("spiffe://")?.split_once('/')?;
            Some(PeerIdentity {
                trust_domain: trust_domain.to_owned(),
                path: path.to_owned(),
            })
        }
        _ => None,
    })
}

/// The subject's common name in a certificate. The caller must have verified the certificate.
#[must_use]
pub fn common_name(cert: &CertificateDer<'_>) -> Option<CommonName> {
    let (_, parsed) = X509Certificate::from_der(cert).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    (!name.is_empty()).then(|| CommonName(name.to_owned()))
}

/// Whether a certificate claims any URI of its own: then its common name stands for nothing.
fn has_uri(cert: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(cert) else {
        return true;
    };
    match parsed.subject_alternative_name() {
        Ok(Some(names)) => names
            .value
            .general_names
            .iter()
            .any(|name| matches!(name, GeneralName::URI(_))),
        Ok(None) => false,
        Err(_) => true,
    }
}

/// The common name of a certificate that has no identity, not even a malformed one.
pub(crate) fn bare_common_name(cert: &CertificateDer<'_>) -> Option<CommonName> {
    if has_uri(cert) { None } else { common_name(cert) }
}

fn validity(cert: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let (_, parsed) = X509Certificate::from_der(cert).ok()?;
    let instant =
        |seconds: i64| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?));
    let validity = parsed.validity();
    Some((
        instant(validity.not_before.timestamp())?,
        instant(validity.not_after.timestamp())?,
    ))
}

/// The name to verify a server's certificate against, from `host` of `host:port`.
pub(crate) fn server_name(host: &str) -> Option<ServerName<'static>> {
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) => Some(ServerName::IpAddress(ip.into())),
        Err(_) => ServerName::try_from(host.to_owned()).ok(),
    }
}
