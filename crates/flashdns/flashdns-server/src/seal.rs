//! Sealing of TSIG secrets at rest: AES-256-GCM under a key that lies in a file and never in the store.
//!
//! Every FlashDNS of a cluster has the same file. Without it there are no keys: the store, which other programs may
//! read, never holds a secret in the clear.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand,
};

/// Bytes of a seal key.
const KEY_LEN: usize = 32;

/// Why the seal key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file cannot be read.
    #[error("cannot read the seal key `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a seal key.
    #[error("the seal key `{path}` has {length} bytes; it must have 32 random ones")]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
}

/// Seals and opens.
pub(crate) struct Sealer(LessSafeKey);

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

impl Sealer {
    /// From the key's file.
    pub(crate) fn load(path: &Path) -> Result<Self, SealError> {
        let key = std::fs::read(path).map_err(|source| SealError::Read {
            path: path.to_owned(),
            source,
        })?;
        let length = || SealError::Length {
            path: path.to_owned(),
            length: key.len(),
        };
        if key.len() != KEY_LEN {
            return Err(length());
        }
        let key = UnboundKey::new(&AES_256_GCM, &key).map_err(|_| length())?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Seals a secret for a purpose: it opens for no other. `None`: the system has no randomness.
    pub(crate) fn seal(&self, purpose: &str, secret: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut sealed = secret.to_vec();
        let aad = Aad::from(purpose.as_bytes());
        self.0
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
            .ok()?;
        Some([&nonce[..], &sealed].concat())
    }

    /// Opens what was sealed for the purpose. `None`: by another key, for another purpose, or damaged.
    pub(crate) fn open(&self, purpose: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut body = body.to_vec();
        let aad = Aad::from(purpose.as_bytes());
        let opened = self
            .0
            .open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut body)
            .ok()?;
        Some(opened.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_for_its_purpose_only() {
        let folder = tempfile::tempdir().unwrap();
        let load = |bytes: &[u8]| {
            let path = folder.path().join("key");
            std::fs::write(&path, bytes).unwrap();
            Sealer::load(&path)
        };
        let sealer = load(&[7; 32]).unwrap();
        let sealed = sealer.seal("a", b"secret").unwrap();
        assert_eq!(sealer.open("a", &sealed).unwrap(), b"secret");
        assert_eq!(sealer.open("b", &sealed), None);
        assert_eq!(sealer.open("a", &sealed[..sealed.len() - 1]), None);
        assert_eq!(load(&[8; 32]).unwrap().open("a", &sealed), None);
        assert!(matches!(
            load(&[7; 31]),
            Err(SealError::Length { length: 31, .. })
        ));
    }
}
