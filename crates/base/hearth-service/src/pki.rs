//! The cluster's certificate authority: makes the root and signs leaf certificates.
//!
//! Identities are SPIFFE-style URIs (SPIFFE-ID specification, section 2): `spiffe://TRUST-DOMAIN/PATH` in the subject
//! alternative names, for example `spiffe://hearth.internal/service/aegis`.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use time::OffsetDateTime;

/// How long a root is valid: ten years.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a leaf is valid unless asked otherwise: thirty days; services renew at two thirds of it.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// Certificates are valid from this long before they are made, for peers whose clocks are behind.
const CLOCK_SLACK: Duration = Duration::from_secs(300);

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The library refused.
    #[error("cannot {action}")]
    Certificate {
        /// What was being done.
        action: &'static str,
        /// Its reason.
        source: rcgen::Error,
    },
    /// A name that cannot stand in a certificate.
    #[error("`{0}` cannot stand in a certificate")]
    Name(String),
    /// The clock is outside what certificates can say.
    #[error("the clock is outside the years that certificates can express; set the date of this machine")]
    Clock,
    /// A file could not be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A certificate authority with its private key.
#[derive(Debug)]
pub struct Authority {
    cert_pem: String,
    key_pem: String,
}

/// What a leaf certificate says.
#[derive(Clone, Debug)]
pub struct LeafRequest {
    /// The trust domain, for example `hearth.internal`.
    pub trust_domain: String,
    /// The path of the identity, for example `service/aegis`.
    pub path: String,
    /// DNS names that the holder serves under.
    pub dns: Vec<String>,
    /// Addresses that the holder serves on.
    pub ips: Vec<IpAddr>,
    /// How long it is valid.
    pub lifetime: Duration,
}

/// A certificate with its new private key, both PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The leaf.
    pub cert_pem: String,
    /// Its key, PKCS#8.
    pub key_pem: String,
}

fn certificate(action: &'static str) -> impl FnOnce(rcgen::Error) -> PkiError {
    move |source| PkiError::Certificate { action, source }
}

fn validity(params: &mut CertificateParams, now: SystemTime, lifetime: Duration) -> Result<(), PkiError> {
    let instant = |at: Option<SystemTime>| at.map(OffsetDateTime::from).ok_or(PkiError::Clock);
    params.not_before = instant(now.checked_sub(CLOCK_SLACK))?;
    params.not_after = instant(now.checked_add(lifetime))?;
    Ok(())
}

fn subject(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Hearth");
    name.push(DnType::CommonName, common_name);
    name
}

fn serial() -> SerialNumber {
    SerialNumber::from_slice(uuid::Uuid::now_v7().as_bytes())
}

impl Authority {
    /// Makes a new root for a trust domain, with a new ECDSA P-256 key.
    ///
    /// # Errors
    /// [`PkiError`] when the domain cannot stand in a certificate or the clock is absurd.
    pub fn create(trust_domain: &str, now: SystemTime) -> Result<Self, PkiError> {
        let key = KeyPair::generate().map_err(certificate("make a key"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&format!("{trust_domain} root"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial());
        validity(&mut params, now, ROOT_LIFETIME)?;
        let cert = params.self_signed(&key).map_err(certificate("sign the root"))?;
        Ok(Self {
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// An authority from its PEM texts.
    ///
    /// # Errors
    /// [`PkiError`] when either is not what it should be.
    pub fn load(cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let authority = Self {
            cert_pem: cert_pem.to_owned(),
            key_pem: key_pem.to_owned(),
        };
        authority.issuer()?;
        Ok(authority)
    }

    /// The root certificate, PEM.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The root's private key, PEM (PKCS#8). Whoever has it is the cluster.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, PkiError> {
        let key = KeyPair::from_pem(&self.key_pem).map_err(certificate("read the authority's key"))?;
        Issuer::from_ca_cert_pem(&self.cert_pem, key).map_err(certificate("read the authority's certificate"))
    }

    /// Signs a leaf for a key made here.
    ///
    /// # Errors
    /// [`PkiError`] when a name cannot stand in a certificate.
    pub fn issue(&self, request: &LeafRequest, now: SystemTime) -> Result<Issued, PkiError> {
        let key = KeyPair::generate().map_err(certificate("make a key"))?;
        let params = leaf(request, now)?;
        let cert = params
            .signed_by(&key, &self.issuer()?)
            .map_err(certificate("sign the certificate"))?;
        Ok(Issued {
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Signs a client certificate that carries a common name and no identity, for a key made here: what etcd's
    /// clients call a client certificate. It opens no door but Chainfire's client port, as the etcd user of that name.
    ///
    /// # Errors
    /// [`PkiError`] when the clock is absurd.
    pub fn issue_named(
        &self,
        common_name: &str,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, PkiError> {
        let key = KeyPair::generate().map_err(certificate("make a key"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.serial_number = Some(serial());
        validity(&mut params, now, lifetime)?;
        let cert = params
            .signed_by(&key, &self.issuer()?)
            .map_err(certificate("sign the certificate"))?;
        Ok(Issued {
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Signs a leaf for the key of a certificate signing request (PKCS#10, PEM). Only the key is taken from it: the
    /// names come from `request`.
    ///
    /// # Errors
    /// [`PkiError`] when the request is malformed or its signature is wrong.
    pub fn sign_csr(
        &self,
        csr_pem: &str,
        request: &LeafRequest,
        now: SystemTime,
    ) -> Result<String, PkiError> {
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(certificate("read the signing request"))?;
        csr.params = leaf(request, now)?;
        let cert = csr
            .signed_by(&self.issuer()?)
            .map_err(certificate("sign the certificate"))?;
        Ok(cert.pem())
    }
}

fn leaf(request: &LeafRequest, now: SystemTime) -> Result<CertificateParams, PkiError> {
    let uri = format!("spiffe://{}/{}", request.trust_domain, request.path);
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&request.path);
    let text = |name: &str| {
        name.to_owned()
            .try_into()
            .map_err(|_| PkiError::Name(name.to_owned()))
    };
    params.subject_alt_names.push(SanType::URI(text(&uri)?));
    for name in &request.dns {
        params.subject_alt_names.push(SanType::DnsName(text(name)?));
    }
    params
        .subject_alt_names
        .extend(request.ips.iter().copied().map(SanType::IpAddress));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.serial_number = Some(serial());
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, now, request.lifetime)?;
    Ok(params)
}

/// A new private key and a signing request for it, both PEM: what a service sends to have its certificate renewed.
///
/// # Errors
/// [`PkiError`] when `path` cannot stand in a certificate.
pub fn signing_request(path: &str) -> Result<(String, String), PkiError> {
    let key = KeyPair::generate().map_err(certificate("make a key"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(path);
    let csr = params
        .serialize_request(&key)
        .map_err(certificate("make the signing request"))?;
    Ok((
        key.serialize_pem(),
        csr.pem().map_err(certificate("write the signing request"))?,
    ))
}

/// Writes a secret file so that it is whole or absent: a new file beside it (mode 0600), synced, renamed over.
///
/// # Errors
/// [`PkiError::Write`] with what the system said.
pub fn write_private(path: &Path, contents: &[u8]) -> Result<(), PkiError> {
    let attempt = || -> std::io::Result<()> {
        let temporary = path.with_added_extension("new");
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        path.parent()
            .map_or(Ok(()), |parent| std::fs::File::open(parent)?.sync_all())
    };
    attempt().map_err(|source| PkiError::Write {
        path: path.display().to_string(),
        source,
    })
}
