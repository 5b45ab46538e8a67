//! Leases and the keys that hang on them. When they run out is not part of the replicated state, but for what is
//! left of those whose owners seem gone (see [`crate::timers`]).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::OpError;

/// Longest time to live, seconds (etcd's limit).
pub const MAX_LEASE_TTL_S: i64 = 9_000_000_000;
/// Shortest time to live, seconds: one and a half election timeouts, rounded up. Shorter wishes are raised to it.
pub const MIN_LEASE_TTL_S: i64 = 2;

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Seconds it lives after each renewal.
    pub ttl_s: i64,
    /// Seconds that the next leader gives it; 0: all of them.
    pub remaining_s: i64,
    /// Its keys.
    pub keys: BTreeSet<Bytes>,
}

/// All leases.
#[derive(Debug, Default, Clone)]
pub struct Leases {
    leases: BTreeMap<i64, Lease>,
}

impl Leases {
    /// Creates a lease; the time to live it got.
    pub(crate) fn grant(&mut self, id: i64, ttl_s: i64) -> Result<i64, OpError> {
        if id == 0 {
            return Err(OpError::LeaseNotFound);
        }
        if ttl_s > MAX_LEASE_TTL_S {
            return Err(OpError::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(OpError::LeaseExists);
        }
        let ttl_s = ttl_s.max(MIN_LEASE_TTL_S);
        self.leases.insert(
            id,
            Lease {
                ttl_s,
                remaining_s: 0,
                keys: BTreeSet::new(),
            },
        );
        Ok(ttl_s)
    }

    /// Puts back a lease from storage, without its keys (they come with the pairs).
    pub(crate) fn restore(&mut self, id: i64, ttl_s: i64, remaining_s: i64) {
        self.leases.insert(
            id,
            Lease {
                ttl_s,
                remaining_s,
                keys: BTreeSet::new(),
            },
        );
    }

    /// Stores how much time is left of a lease, or clears it (0). Id, time to live and remaining time, if there is such a
    /// lease.
    pub(crate) fn checkpoint(&mut self, id: i64, remaining_s: i64) -> Option<(i64, i64, i64)> {
        let lease = self.leases.get_mut(&id)?;
        lease.remaining_s = remaining_s.clamp(0, lease.ttl_s);
        Some((id, lease.ttl_s, lease.remaining_s))
    }

    pub(crate) fn remove(&mut self, id: i64) -> Option<Lease> {
        self.leases.remove(&id)
    }

    pub(crate) fn attach(&mut self, id: i64, key: &Bytes) {
        if let Some(lease) = self.leases.get_mut(&id) {
            // A copy, for the same reason as in the key index.
            lease.keys.insert(Bytes::copy_from_slice(key));
        }
    }

    pub(crate) fn detach(&mut self, id: i64, key: &Bytes) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    /// A lease.
    pub fn get(&self, id: i64) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// All leases by id.
    pub fn iter(&self) -> impl Iterator<Item = (i64, &Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, lease))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }
}
