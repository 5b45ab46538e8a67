//! Brakes on guessing.
//!
//! Failed sign-ins are counted per source address and name together, and per source address. There is no lockout of a
//! name: whoever guesses from elsewhere slows down themselves and not the owner of the name.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Failures that one address may have for one name before it must wait.
const NAME_BURST: u32 = 6;
/// It regains one try in this time.
const NAME_REFILL: Duration = Duration::from_secs(10);
/// Failures that one address may have over all names.
const ADDRESS_BURST: u32 = 30;
/// It regains one try in this time.
const ADDRESS_REFILL: Duration = Duration::from_secs(2);
/// Most entries of a table; when it is full, those that have recovered are forgotten, then all.
const MAX_ENTRIES: usize = 20_000;

#[derive(Debug, Default)]
pub(crate) struct Limiter {
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    names: HashMap<(IpAddr, String), Instant>,
    addresses: HashMap<IpAddr, Instant>,
}

/// Each entry is the instant at which all tries are back (a token bucket as one number): a failure moves it by one
/// refill; it may not be more than `burst` refills away.
fn wait<K: Eq + Hash>(
    table: &HashMap<K, Instant>,
    key: &K,
    now: Instant,
    burst: u32,
    refill: Duration,
) -> Duration {
    let full_again = table
        .get(key)
        .map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
    full_again.saturating_sub(refill * (burst - 1))
}

fn fail<K: Eq + Hash>(table: &mut HashMap<K, Instant>, key: K, now: Instant, refill: Duration) {
    if table.len() >= MAX_ENTRIES {
        table.retain(|_, at| *at > now);
        if table.len() >= MAX_ENTRIES {
            table.clear();
        }
    }
    let at = table.entry(key).or_insert(now);
    *at = (*at).max(now) + refill;
}

impl Limiter {
    /// How long the address must wait before it may try the name; zero when it may now.
    pub(crate) fn wait(&self, address: IpAddr, name: &str, now: Instant) -> Duration {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let by_name = wait(
            &tables.names,
            &(address, name.to_owned()),
            now,
            NAME_BURST,
            NAME_REFILL,
        );
        by_name.max(wait(
            &tables.addresses,
            &address,
            now,
            ADDRESS_BURST,
            ADDRESS_REFILL,
        ))
    }

    /// Counts a failure.
    pub(crate) fn failed(&self, address: IpAddr, name: &str, now: Instant) {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        fail(&mut tables.names, (address, name.to_owned()), now, NAME_REFILL);
        fail(&mut tables.addresses, address, now, ADDRESS_REFILL);
    }
}

impl Limiter {
    /// As [`Self::wait`], for acts that have no name to guess.
    pub(crate) fn wait_address(&self, address: IpAddr, now: Instant) -> Duration {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        wait(&tables.addresses, &address, now, ADDRESS_BURST, ADDRESS_REFILL)
    }

    /// Counts an act of the address.
    pub(crate) fn count(&self, address: IpAddr, now: Instant) {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        fail(&mut tables.addresses, address, now, ADDRESS_REFILL);
    }
}

/// When each waiting device polled last, to tell those that poll too fast to slow down.
#[derive(Debug, Default)]
pub(crate) struct Polls(Mutex<HashMap<String, Instant>>);

impl Polls {
    /// Notes a poll; true when it came sooner than `interval` after the one before.
    pub(crate) fn too_fast(&self, device: &str, interval: Duration, now: Instant) -> bool {
        let mut polls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if polls.len() >= MAX_ENTRIES {
            polls.retain(|_, at| now.saturating_duration_since(*at) < interval);
        }
        polls
            .insert(device.to_owned(), now)
            .is_some_and(|last| now.saturating_duration_since(last) < interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessing_slows_down_and_the_owner_elsewhere_does_not_notice() {
        let limiter = Limiter::default();
        let (attacker, owner): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let now = Instant::now();
        for _ in 0..NAME_BURST {
            assert_eq!(limiter.wait(attacker, "ada", now), Duration::ZERO);
            limiter.failed(attacker, "ada", now);
        }
        assert_eq!(limiter.wait(attacker, "ada", now), NAME_REFILL);
        assert_eq!(limiter.wait(owner, "ada", now), Duration::ZERO);
        assert_eq!(limiter.wait(attacker, "ada", now + NAME_REFILL), Duration::ZERO);
        for n in 0..ADDRESS_BURST {
            limiter.failed(attacker, &format!("user{n}"), now);
        }
        assert!(
            limiter.wait(attacker, "somebody", now) > Duration::ZERO,
            "spraying over names"
        );
        assert_eq!(limiter.wait(owner, "somebody", now), Duration::ZERO);
    }

    #[test]
    fn tables_are_bounded() {
        let limiter = Limiter::default();
        let now = Instant::now();
        for n in 0..MAX_ENTRIES + 10 {
            limiter.failed([10, 0, 0, 1].into(), &n.to_string(), now);
        }
        assert!(limiter.tables.lock().unwrap().names.len() <= MAX_ENTRIES);
    }
}
