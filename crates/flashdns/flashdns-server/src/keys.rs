//! TSIG keys: how they lie in Chainfire, and the ring of those that are known.
//!
//! ```text
//! /flashdns/v1/keys/NAME   JSON: algorithm, sealed secret, whose it is, whether it may transfer zones (StoredKey)
//! ```
//! A key acts with the rights of the principal that made it.

use std::{collections::HashMap, sync::Arc};

use flashdns_core::{DnsName, tsig};
use iam_client::Subject;
use serde::{Deserialize, Serialize};

use crate::{
    record::{self, RecordError},
    seal::Sealer,
};

/// Keys begin with this.
pub(crate) const PREFIX: &str = "/flashdns/v1/keys/";
/// Version of [`StoredKey`] that is written. A reader refuses a newer one.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredKey {
    version: u32,
    algorithm: String,
    /// Sealed, in hexadecimal digits.
    secret: String,
    owner: Subject,
    owner_name: String,
    #[serde(default)]
    transfer: bool,
}

/// A key that is known.
#[derive(Clone, Debug)]
pub(crate) struct KnownKey {
    pub(crate) key: Arc<tsig::Key>,
    pub(crate) algorithm: tsig::Algorithm,
    pub(crate) owner: Subject,
    pub(crate) owner_name: String,
    /// It may transfer whole zones.
    pub(crate) may_transfer: bool,
}

/// All keys by name.
pub(crate) type Keyring = HashMap<DnsName, KnownKey>;

/// Why a stored key cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("the key's name has not its one spelling")]
    Name,
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the value is not a stored key")]
    Json(#[from] serde_json::Error),
    #[error("the value has version {0}, newer than this program")]
    Version(u32),
    #[error("the algorithm `{0}` is not known")]
    Algorithm(String),
    #[error("there is no seal key; set `seal_key_file`")]
    NoSealKey,
    #[error("the secret cannot be unsealed: the seal key is another one, or the record is damaged")]
    Sealed,
}

pub(crate) fn key(name: &DnsName) -> String {
    format!("{PREFIX}{name}")
}

/// What a secret is sealed for: it cannot be moved to another key's name.
fn purpose(name: &DnsName) -> String {
    format!("flashdns key {name}")
}

/// The name of a stored key.
pub(crate) fn parse_key(key: &[u8]) -> Result<DnsName, KeyError> {
    let text = std::str::from_utf8(key).map_err(|_| KeyError::Name)?;
    let name: DnsName = text
        .strip_prefix(PREFIX)
        .and_then(|name| name.parse().ok())
        .ok_or(KeyError::Name)?;
    if self::key(&name) == text {
        Ok(name)
    } else {
        Err(KeyError::Name)
    }
}

/// The value of a new key. `None`: it cannot be sealed.
pub(crate) fn value(
    sealer: &Sealer,
    name: &DnsName,
    algorithm: tsig::Algorithm,
    secret: &[u8],
    (owner, owner_name): (&Subject, &str),
    transfer: bool,
) -> Option<Vec<u8>> {
    let sealed = sealer.seal(&purpose(name), secret)?;
    serde_json::to_vec(&StoredKey {
        version: VERSION,
        algorithm: algorithm.name().to_owned(),
        secret: record::hex(&sealed),
        owner: owner.clone(),
        owner_name: owner_name.to_owned(),
        transfer,
    })
    .ok()
}

/// Reads a stored key.
pub(crate) fn parse(sealer: Option<&Sealer>, name: &DnsName, value: &[u8]) -> Result<KnownKey, KeyError> {
    let stored: StoredKey = serde_json::from_slice(value)?;
    if stored.version != VERSION {
        return Err(KeyError::Version(stored.version));
    }
    let algorithm = tsig::Algorithm::named(&stored.algorithm);
    let algorithm = algorithm.ok_or_else(|| KeyError::Algorithm(stored.algorithm.clone()))?;
    let sealed = record::unhex(&stored.secret).ok_or(RecordError::Hex)?;
    let sealer = sealer.ok_or(KeyError::NoSealKey)?;
    let secret = sealer.open(&purpose(name), &sealed).ok_or(KeyError::Sealed)?;
    Ok(KnownKey {
        key: Arc::new(tsig::Key::new(name.clone(), algorithm, &secret)),
        algorithm,
        owner: stored.owner,
        owner_name: stored.owner_name,
        may_transfer: stored.transfer,
    })
}
