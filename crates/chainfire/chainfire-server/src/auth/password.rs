//! Password hashes: bcrypt, which is what stands on etcd's wire. Slow by intention, so off the runtime's threads, a few
//! at a time, and no more than a bounded number may wait.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use chainfire_core::OpError;
use tokio::sync::Semaphore;
use tonic::Status;

use crate::node::status;

/// etcd's default strength; each step more doubles the time.
pub(crate) const DEFAULT_COST: u32 = 10;
/// Strengths that bcrypt knows.
pub(crate) const COSTS: std::ops::RangeInclusive<u32> = 4..=31;
/// bcrypt sees no more of a password.
const MAX_PASSWORD_BYTES: usize = 72;
/// Hashes under way at once.
const AT_ONCE: usize = 2;
/// Calls that may wait for their turn.
const MAX_WAITING: usize = 256;

/// Makes and checks hashes. Clones share the bounds.
#[derive(Debug, Clone)]
pub(crate) struct Hasher {
    cost: u32,
    turns: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    /// A hash that nothing fits, of the same strength as real ones.
    decoy: Arc<str>,
}

/// Counts a waiting call for as long as it is one.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hasher {
    pub(crate) fn new(cost: u32) -> Hasher {
        // Its salt and digest are all zeros: no password is known for it.
        let decoy = format!("$2a${cost:02}${}", ".".repeat(53));
        Hasher {
            cost,
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Arc::new(AtomicUsize::new(0)),
            decoy: decoy.into(),
        }
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let waiting = Waiting(self.waiting.clone());
        if waiting.0.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            return Err(status(OpError::TooManyRequests));
        }
        let turn = self.turns.clone().acquire_owned().await;
        let turn = turn.map_err(|_| status(OpError::Stopped))?;
        drop(waiting);
        let worked = tokio::task::spawn_blocking(move || {
            let done = work();
            // Held by the work and not by the caller, who may go away while it is done.
            drop(turn);
            done
        });
        worked.await.map_err(|_| status(OpError::Stopped))
    }

    /// The hash of a new password.
    pub(crate) async fn hash(&self, password: String) -> Result<String, Status> {
        if password.len() > MAX_PASSWORD_BYTES {
            // etcd's words, and it has no code for them.
            return Err(Status::unknown("bcrypt: password length exceeds 72 bytes"));
        }
        let cost = self.cost;
        let salt: [u8; 16] = rand::random();
        let hashed = self.in_turn(move || {
            bcrypt::hash_with_salt(password, cost, salt)
                .map(|parts| parts.format_for_version(bcrypt::Version::TwoA))
        });
        hashed.await?.map_err(|error| Status::unknown(error.to_string()))
    }

    /// Whether a password fits a hash. Without a hash none does, and that takes as long.
    pub(crate) async fn fits(&self, password: String, hash: Option<String>) -> Result<bool, Status> {
        let decoy = self.decoy.clone();
        self.in_turn(move || {
            let real = hash.filter(|hash| hash.parse::<bcrypt::HashParts>().is_ok());
            let fits = bcrypt::verify(&password, real.as_deref().unwrap_or(&decoy)).unwrap_or(false);
            fits && real.is_some() && password.len() <= MAX_PASSWORD_BYTES
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_fits_its_own_hash_only() {
        let hasher = Hasher::new(4);
        let hash = hasher.hash("secret".into()).await.unwrap();
        assert!(hash.starts_with("$2a$04$"), "{hash}");
        let fits = async |password: &str, hash: Option<&str>| {
            let hash = hash.map(str::to_owned);
            hasher.fits(password.to_owned(), hash).await.unwrap()
        };
        assert!(fits("secret", Some(&hash)).await);
        assert!(!fits("Secret", Some(&hash)).await);
        assert!(!fits("", Some("")).await);
        assert!(!fits("", None).await);
        assert!(!fits("secret", None).await);
        assert!(!fits("secret", Some("not a hash")).await);
        assert_ne!(hash, hasher.hash("secret".into()).await.unwrap(), "salted");
        // Made elsewhere: other variants of the prefix are the same function.
        let other = hash.replace("$2a$", "$2b$");
        assert!(fits("secret", Some(&other)).await);
    }

    #[tokio::test]
    async fn long_passwords_are_refused_and_not_cut() {
        let hasher = Hasher::new(4);
        assert!(hasher.hash("x".repeat(72)).await.is_ok());
        let refused = hasher.hash("x".repeat(73)).await.unwrap_err();
        assert_eq!(refused.message(), "bcrypt: password length exceeds 72 bytes");
    }

    /// The decoy must be a real hash: a malformed one would be refused at once, and the time would tell.
    #[tokio::test]
    async fn the_decoy_costs_what_a_hash_costs() {
        let hasher = Hasher::new(8);
        assert!(hasher.decoy.parse::<bcrypt::HashParts>().is_ok());
        let hash = hasher.hash("x".into()).await.unwrap();
        let time = async |hash: Option<String>| {
            let mut best = std::time::Duration::MAX;
            for _ in 0..5 {
                let start = std::time::Instant::now();
                let _ = hasher.fits("y".into(), hash.clone()).await;
                best = best.min(start.elapsed());
            }
            best
        };
        let (real, decoy) = (time(Some(hash)).await, time(None).await);
        assert!(decoy > real / 4, "{decoy:?} against {real:?}");
    }
}
