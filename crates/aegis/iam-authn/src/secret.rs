//! Opaque secrets: refresh tokens, service account secrets, device codes, the bootstrap token. The holder has the
//! text, the store has its hash.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Random bytes in a secret: as strong as the hash.
const SECRET_BYTES: usize = 32;
/// Longest handle before the secret.
const MAX_HANDLE: usize = 64;

/// What a secret is for; its text begins with it, so that scanners find leaked ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretKind {
    /// Gets new access tokens.
    Refresh,
    /// A service account's.
    ServiceAccount,
    /// Held by the device that waits for a sign-in.
    DeviceCode,
}

impl SecretKind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Refresh => "hearth-rt",
            Self::ServiceAccount => "hearth-sa",
            Self::DeviceCode => "hearth-dc",
        }
    }
}

/// A secret with the handle that its record is found by: `PREFIX.HANDLE.SECRET`. `Debug` does not show the secret.
#[derive(Clone)]
pub struct Secret {
    kind: SecretKind,
    handle: String,
    secret: String,
}

/// A text that is no secret of the kind asked for. Says nothing about the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a secret of this cluster")]
pub struct SecretError;

/// The SHA-256 of a secret's random part, which is enough since that part has 256 bits (a password would not).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretHash(String);

impl Secret {
    /// A new secret from fresh random bytes.
    #[must_use]
    pub fn new(kind: SecretKind, handle: &str, random: &[u8; SECRET_BYTES]) -> Self {
        Self {
            kind,
            handle: handle.to_owned(),
            secret: URL_SAFE_NO_PAD.encode(random),
        }
    }

    /// Reads what a client sent.
    ///
    /// # Errors
    /// [`SecretError`] when it is anything else.
    pub fn parse(kind: SecretKind, text: &str) -> Result<Self, SecretError> {
        let mut parts = text.split('.');
        let (Some(prefix), Some(handle), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(SecretError);
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let handle_is_plain = (1..=MAX_HANDLE).contains(&handle.len()) && handle.chars().all(plain);
        let decoded = URL_SAFE_NO_PAD.decode(secret).map_err(|_| SecretError)?;
        if prefix != kind.prefix() || !handle_is_plain || decoded.len() != SECRET_BYTES {
            return Err(SecretError);
        }
        Ok(Self {
            kind,
            handle: handle.to_owned(),
            secret: secret.to_owned(),
        })
    }

    /// What the record is found by; not secret.
    #[must_use]
    pub fn handle(&self) -> &str {
        &self.handle
    }

    /// What the client gets, once.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{}.{}.{}", self.kind.prefix(), self.handle, self.secret)
    }

    /// What the store gets.
    #[must_use]
    pub fn hash(&self) -> SecretHash {
        SecretHash::of(&self.secret)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("kind", &self.kind)
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}

impl SecretHash {
    /// The hash of a text of high entropy, for example the bootstrap token.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(URL_SAFE_NO_PAD.encode(Sha256::digest(text.as_bytes())))
    }

    /// Whether it is the hash of `text`; takes the same time either way.
    #[must_use]
    pub fn is_of(&self, text: &str) -> bool {
        self.0.as_bytes().ct_eq(Self::of(text).0.as_bytes()).into()
    }

    /// Whether two hashes are the same; takes the same time either way.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }

    /// The hash as text, for keys that a record is found by.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

impl FromStr for SecretHash {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let decoded = URL_SAFE_NO_PAD.decode(text).map_err(|_| SecretError)?;
        if decoded.len() == 32 {
            Ok(Self(text.to_owned()))
        } else {
            Err(SecretError)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reveals_once_and_stores_a_hash() {
        let secret = Secret::new(SecretKind::Refresh, "0199-a", &[3; SECRET_BYTES]);
        let text = secret.reveal();
        assert!(text.starts_with("hearth-rt.0199-a."));
        let read = Secret::parse(SecretKind::Refresh, &text).unwrap();
        assert_eq!(
            (read.handle(), read.hash().as_str()),
            ("0199-a", secret.hash().as_str())
        );
        assert!(read.hash().matches(&secret.hash()));
        assert!(!text.contains(secret.hash().as_str()));
        assert!(!format!("{secret:?}").contains(&secret.secret));
    }

    #[test]
    fn refuses_other_kinds_and_shapes() {
        let text = Secret::new(SecretKind::Refresh, "h", &[3; SECRET_BYTES]).reveal();
        assert!(Secret::parse(SecretKind::ServiceAccount, &text).is_err());
        for bad in [
            "",
            "a.b.c",
            "hearth-rt.h.",
            "hearth-rt..x",
            "hearth-rt.../x.AAAA",
            &format!("{text}.x"),
            &text[..40],
        ] {
            assert!(Secret::parse(SecretKind::Refresh, bad).is_err(), "`{bad}`");
        }
    }
}
