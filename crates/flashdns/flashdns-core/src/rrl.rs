//! Response-rate limiting: how much is sent to addresses that nobody has proven to be asking.
//!
//! Someone who forges the address of a victim makes us send to it. So replies to one network (a /24, a /56 of IPv6) are
//! counted by kind, and above a rate they are dropped; every `slip`-th goes out cut to its question with TC instead,
//! so that an honest client comes over TCP, where an address cannot be forged. Clients with a cookie are not counted.
//!
//! The table has a fixed size: who hashes to the same place shares a budget, which only ever limits more.

use std::net::IpAddr;

/// Places in the table of one thread.
const PLACES: usize = 1 << 16;
/// Bursts: this many seconds' worth may come at once.
const BURST_S: u32 = 2;
const MILLI: u32 = 1000;

/// How replies are limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Replies a second to one network for one kind of reply.
    pub per_second: u32,
    /// Every how manieth reply above that goes out cut short rather than not at all; 0: none.
    pub slip: u32,
}

/// What a reply says, as far as it is counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An answer, whatever the name: a wildcard answers to any.
    Answer,
    /// A name that does not exist.
    Missing,
    /// An error.
    Error,
}

/// What to do with a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it.
    Send,
    /// Send its question only, with TC.
    Slip,
    /// Send nothing.
    Drop,
}

#[derive(Clone, Copy, Default)]
struct Place {
    /// When it was last filled, in milliseconds.
    at_ms: u32,
    /// Thousandths of a reply that may still go.
    left: u32,
    over: u32,
}

/// The counts of one thread.
pub struct Limiter {
    limits: Limits,
    places: Vec<Place>,
    key: u64,
}

impl std::fmt::Debug for Limiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limiter")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Limiter {
    /// An empty table. `key` is random, so that nobody can choose who shares a place.
    #[must_use]
    pub fn new(limits: Limits, key: u64) -> Self {
        let full = Place {
            left: Self::most(limits),
            ..Place::default()
        };
        Self {
            limits,
            places: vec![full; PLACES],
            key,
        }
    }

    const fn most(limits: Limits) -> u32 {
        limits.per_second.saturating_mul(BURST_S).saturating_mul(MILLI)
    }

    /// Counts a reply. `now_ms` may wrap.
    pub fn count(&mut self, client: IpAddr, kind: Kind, now_ms: u32) -> Verdict {
        let network = match client {
            IpAddr::V4(v4) => u64::from(v4.to_bits() >> 8),
            IpAddr::V6(v6) => {
                u64::from_be_bytes(v6.octets().first_chunk().copied().unwrap_or_default()) >> 8 | 1 << 63
            }
        };
        let kind = match kind {
            Kind::Answer => 3,
            Kind::Missing => 1,
            Kind::Error => 2,
        };
        let hash = mix(mix(network ^ self.key) ^ kind);
        let most = Self::most(self.limits);
        let at = usize::try_from(hash).unwrap_or(usize::MAX) % PLACES;
        let Some(place) = self.places.get_mut(at) else {
            return Verdict::Send;
        };
        let passed = now_ms.wrapping_sub(place.at_ms);
        place.at_ms = now_ms;
        let filled = u64::from(place.left) + u64::from(passed) * u64::from(self.limits.per_second);
        place.left = u32::try_from(filled).unwrap_or(u32::MAX).min(most);
        if place.left >= MILLI {
            place.left -= MILLI;
            return Verdict::Send;
        }
        place.over = place.over.wrapping_add(1);
        if self.limits.slip > 0 && place.over.is_multiple_of(self.limits.slip) {
            Verdict::Slip
        } else {
            Verdict::Drop
        }
    }
}

/// A finaliser of 64 bits (SplitMix64).
const fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> Limiter {
        let limits = Limits {
            per_second: 10,
            slip: 2,
        };
        Limiter::new(limits, 7)
    }

    fn sent(limiter: &mut Limiter, client: &str, kind: Kind, now_ms: u32, replies: usize) -> [usize; 3] {
        let mut counts = [0; 3];
        for _ in 0..replies {
            match limiter.count(client.parse().unwrap(), kind, now_ms) {
                Verdict::Send => counts[0] += 1,
                Verdict::Slip => counts[1] += 1,
                Verdict::Drop => counts[2] += 1,
            }
        }
        counts
    }

    #[test]
    fn a_network_gets_its_rate_and_slips() {
        let mut limiter = limiter();
        let counts = sent(&mut limiter, "192.0.2.1", Kind::Missing, u32::MAX, 100);
        assert_eq!(counts, [20, 40, 40]);
        // The same network, another address: the same budget. The clock wraps.
        assert_eq!(
            sent(&mut limiter, "192.0.2.200", Kind::Missing, 499, 100),
            [5, 47, 48]
        );
        assert_eq!(
            sent(&mut limiter, "192.0.2.200", Kind::Error, 499, 20),
            [20, 0, 0]
        );
        assert_eq!(
            sent(&mut limiter, "192.0.3.1", Kind::Missing, 499, 20),
            [20, 0, 0]
        );
        assert_eq!(sent(&mut limiter, "2001:db8::1", Kind::Answer, 499, 30)[0], 20);
        assert_eq!(
            sent(&mut limiter, "2001:db8::ffff:1", Kind::Answer, 499, 30)[0],
            0
        );
        assert_eq!(
            sent(&mut limiter, "192.0.2.1", Kind::Missing, 1 << 30, 100)[0],
            20
        );
    }
}
