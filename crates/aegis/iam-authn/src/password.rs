//! Passwords: argon2id (RFC 9106).

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};

/// Memory of one hash, in KiB. With two passes, the second of OWASP's recommended minima.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// Shortest password, in characters.
pub const MIN_LENGTH: usize = 10;
/// Longest password, in bytes, so that hashing is no way to keep a server busy.
pub const MAX_LENGTH: usize = 256;
/// Bytes of salt.
pub const SALT_LENGTH: usize = 16;

/// Why a password is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// Fewer than [`MIN_LENGTH`] characters.
    #[error("the password is shorter than {MIN_LENGTH} characters; use a few words")]
    TooShort,
    /// More than [`MAX_LENGTH`] bytes.
    #[error("the password is longer than {MAX_LENGTH} bytes")]
    TooLong,
    /// It is the user's name.
    #[error("the password contains the user's name; choose another")]
    ContainsName,
    /// One character again and again.
    #[error("the password repeats too few characters; use a few words")]
    TooPlain,
    /// The library refused.
    #[error("the password could not be hashed")]
    Hash,
}

/// Whether a new password may be chosen.
///
/// # Errors
/// [`PasswordError`] says what to do instead.
pub fn check(password: &str, username: &str) -> Result<(), PasswordError> {
    if password.len() > MAX_LENGTH {
        return Err(PasswordError::TooLong);
    }
    if password.chars().count() < MIN_LENGTH {
        return Err(PasswordError::TooShort);
    }
    if !username.is_empty() && password.to_lowercase().contains(username) {
        return Err(PasswordError::ContainsName);
    }
    let distinct: std::collections::BTreeSet<char> = password.chars().collect();
    if distinct.len() < 4 {
        return Err(PasswordError::TooPlain);
    }
    Ok(())
}

fn argon2() -> Result<Argon2<'static>, PasswordError> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|_| PasswordError::Hash)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// Hashes a password with a fresh random salt, to a text that carries its parameters (PHC string format). Takes tens
/// of milliseconds and 19 MiB: callers limit how many run at once.
///
/// # Errors
/// [`PasswordError::TooLong`] or [`PasswordError::Hash`].
pub fn hash(password: &str, salt: &[u8; SALT_LENGTH]) -> Result<String, PasswordError> {
    if password.len() > MAX_LENGTH {
        return Err(PasswordError::TooLong);
    }
    let hash: PasswordHash = argon2()?
        .hash_password_with_salt(password.as_bytes(), salt)
        .map_err(|_| PasswordError::Hash)?;
    Ok(hash.to_string())
}

/// Whether the password is the one that was hashed. With `None` (no such user) it takes as long and says no.
#[must_use]
pub fn verify(password: &str, stored: Option<&str>) -> bool {
    if password.len() > MAX_LENGTH {
        return false;
    }
    let Some(parsed) = stored.and_then(|stored| PasswordHash::new(stored).ok()) else {
        let _same_work = hash(password, &[0; SALT_LENGTH]);
        return false;
    };
    argon2().is_ok_and(|argon2| argon2.verify_password(password.as_bytes(), &parsed).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_password_verifies() {
        let stored = hash("correct horse battery", &[7; SALT_LENGTH]).unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert!(!stored.contains("horse"));
        assert!(verify("correct horse battery", Some(&stored)));
        assert!(!verify("correct horse batterz", Some(&stored)));
        assert!(!verify("", Some(&stored)));
        assert!(!verify("correct horse battery", None));
        assert!(!verify("correct horse battery", Some("$argon2id$nonsense")));
        assert!(!verify(&"x".repeat(MAX_LENGTH + 1), Some(&stored)));
        assert_ne!(stored, hash("correct horse battery", &[8; SALT_LENGTH]).unwrap());
    }

    #[test]
    fn weak_passwords_are_refused_with_a_reason() {
        assert_eq!(check("short", "ada"), Err(PasswordError::TooShort));
        assert_eq!(check("aaaaaaaaaaaaa", "bob"), Err(PasswordError::TooPlain));
        assert_eq!(
            check("my-name-is-Ada-yes", "ada"),
            Err(PasswordError::ContainsName)
        );
        assert_eq!(check(&"xyzw".repeat(100), "ada"), Err(PasswordError::TooLong));
        assert_eq!(check("correct horse battery", "ada"), Ok(()));
    }
}
