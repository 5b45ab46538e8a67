//! Sealing of private keys at rest: AES-256-GCM under a key that lies in a file and never in the store.

use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Bytes of a seal key.
const KEY_LEN: usize = 32;

/// Why something cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file cannot be read.
    #[error("cannot read the seal key `{path}`; `hearth cluster init` makes it")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a seal key.
    #[error("the seal key `{path}` has {length} bytes; it must have 32")]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// Sealed with another key, for another purpose, or damaged.
    #[error(
        "the {0} cannot be unsealed: the seal key is not the one that sealed it, or the record is damaged"
    )]
    Open(&'static str),
    /// The system has no randomness, or the library refused.
    #[error("the {0} cannot be sealed")]
    Seal(&'static str),
}

/// A ciphertext with its nonce, base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(String);

/// Seals and opens.
#[derive(Debug)]
pub struct Sealer(LessSafeKey);

impl Sealer {
    /// From the key's file.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn load(path: &Path) -> Result<Self, SealError> {
        let key = std::fs::read(path).map_err(|source| SealError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::new(&key).ok_or_else(|| SealError::Length {
            path: path.to_owned(),
            length: key.len(),
        })
    }

    /// From the key's 32 bytes.
    #[must_use]
    pub fn new(key: &[u8]) -> Option<Self> {
        if key.len() != KEY_LEN {
            return None;
        }
        UnboundKey::new(&AES_256_GCM, key)
            .ok()
            .map(LessSafeKey::new)
            .map(Self)
    }

    /// Seals a secret for a purpose: it opens for no other.
    ///
    /// # Errors
    /// [`SealError::Seal`].
    pub fn seal(&self, purpose: &'static str, secret: &[u8]) -> Result<Sealed, SealError> {
        let bytes = self
            .seal_bytes(purpose.as_bytes(), secret)
            .ok_or(SealError::Seal(purpose))?;
        Ok(Sealed(STANDARD.encode(bytes)))
    }

    /// Opens what was sealed for the purpose.
    ///
    /// # Errors
    /// [`SealError::Open`].
    pub fn open(&self, purpose: &'static str, sealed: &Sealed) -> Result<Vec<u8>, SealError> {
        STANDARD
            .decode(&sealed.0)
            .ok()
            .and_then(|bytes| self.open_bytes(purpose.as_bytes(), &bytes))
            .ok_or(SealError::Open(purpose))
    }

    /// Nonce and ciphertext of a secret that opens only for `purpose`. `None` when the system has no randomness.
    #[must_use]
    pub fn seal_bytes(&self, purpose: &[u8], secret: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0_u8; NONCE_LEN];
        getrandom::fill(&mut nonce).ok()?;
        let mut bytes = secret.to_vec();
        let aad = Aad::from(purpose);
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut bytes)
            .ok()?;
        Some([nonce.as_slice(), &bytes].concat())
    }

    /// Opens what [`Sealer::seal_bytes`] made for `purpose`. `None` when it was another key or purpose, or damaged.
    #[must_use]
    pub fn open_bytes(&self, purpose: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut rest = rest.to_vec();
        let plain = self.0.open_in_place(nonce, Aad::from(purpose), &mut rest).ok()?;
        Some(plain.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_with_the_key_for_the_purpose_and_whole() {
        let sealer = Sealer::new(&[1; 32]).unwrap();
        let sealed = sealer.seal("CA key", b"canary").unwrap();
        assert_eq!(sealer.open("CA key", &sealed).unwrap(), b"canary");
        assert!(sealer.open("signing key", &sealed).is_err());
        assert!(Sealer::new(&[2; 32]).unwrap().open("CA key", &sealed).is_err());
        let mut bytes = STANDARD.decode(&sealed.0).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert!(
                sealer.open("CA key", &Sealed(STANDARD.encode(&bytes))).is_err(),
                "byte {at}"
            );
            bytes[at] ^= 1;
        }
        assert!(sealer.open("CA key", &Sealed(String::new())).is_err());
        assert_ne!(
            sealed,
            sealer.seal("CA key", b"canary").unwrap(),
            "a nonce of its own each time"
        );
        assert!(Sealer::new(&[1; 31]).is_none());
    }
}
