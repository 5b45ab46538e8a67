//! Proofs of identity: access tokens, passwords, opaque secrets, device codes, certificate identities. Pure.
//!
//! What it does not know: who exists or is disabled, where anything is stored, the clock, randomness (salts, secrets
//! and times are inputs; the nonce inside an ECDSA signature is the one exception), HTTP.
//!
//! Entry points: [`token::sign`] and [`token::verify`], [`password::hash`] and [`password::verify`], [`Secret`],
//! [`device::user_code`], [`WorkloadPath`].
//!
//! Invariants: only ES256 with a known key and the header that we write ourselves is accepted; nothing of a secret but
//! its hash leaves this crate for a store; comparisons of secrets take the same time whatever they find.

pub mod device;
pub mod password;
mod secret;
pub mod token;
mod workload;

pub use secret::{Secret, SecretError, SecretHash, SecretKind};
pub use workload::{WorkloadKind, WorkloadPath, WorkloadPathError};
