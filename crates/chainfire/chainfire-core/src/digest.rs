//! A running hash over everything that commands did, the same on every member: a member whose hash differs at the same
//! log index has another state.
//!
//! It is not cryptographic: it finds defects and bad memory, not forgery.

use crate::{Applied, Event, EventKind, Version};

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const PRIME: u64 = 0xff51_afd7_ed55_8ccd;

/// The hash so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Digest {
        Digest(SEED)
    }
}

/// What kind of effect follows, so that no two kinds look alike. New kinds get new numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Effect {
    Change = 1,
    LeaseGranted = 2,
    LeaseEnded = 3,
    Compacted = 4,
    Alarms = 5,
    Auth = 6,
    Members = 7,
    LeaseCheckpoint = 8,
}

impl Digest {
    /// Goes on from a stored value.
    pub fn resume(value: u64) -> Digest {
        Digest(value)
    }

    /// The value to store and to compare.
    pub fn value(self) -> u64 {
        self.0
    }

    fn word(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(PRIME);
        self.0 = mixed ^ (mixed >> 29);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        self.word(u64::from_le_bytes(last));
        // The length tells zeros at the end from padding, and one part from the next.
        self.word(bytes.len() as u64);
    }

    /// Adds an effect: the one function for everything that a command changes. Call it with what really changed, in
    /// the order of the log, and never with anything that only this member knows.
    pub fn add(&mut self, effect: Effect, numbers: &[i64], parts: &[&[u8]]) {
        self.word(u64::from(effect as u8));
        numbers
            .iter()
            .for_each(|number| self.word(number.cast_unsigned()));
        parts.iter().for_each(|part| self.bytes(part));
    }

    /// Adds everything that a command of the store did. A refused command did nothing.
    pub fn add_applied(&mut self, applied: &Applied) {
        for (revision, events) in &applied.changes {
            for event in events {
                self.add_event(*revision, event);
            }
        }
        if let Some((id, ttl_s)) = applied.granted {
            self.add(Effect::LeaseGranted, &[id, ttl_s], &[]);
        }
        for (id, ttl_s, remaining_s) in &applied.checkpoints {
            self.add(Effect::LeaseCheckpoint, &[*id, *ttl_s, *remaining_s], &[]);
        }
        for id in &applied.ended {
            self.add(Effect::LeaseEnded, &[*id], &[]);
        }
        if let Some(revision) = applied.compacted {
            self.add(Effect::Compacted, &[revision], &[]);
        }
        for (alarm, on) in &applied.alarms {
            let numbers = [alarm.kind as i64, alarm.member.cast_signed(), i64::from(*on)];
            self.add(Effect::Alarms, &numbers, &[]);
        }
    }

    fn add_event(&mut self, revision: i64, event: &Event) {
        let kv = &event.kv;
        let numbers = [
            revision,
            i64::from(event.kind == EventKind::Put),
            kv.create_revision,
            kv.version,
            kv.lease,
        ];
        self.add(Effect::Change, &numbers, &[&kv.key, &kv.value]);
    }

    /// Adds a stored version of a key, for a hash over a whole state.
    pub fn add_version(&mut self, key: &[u8], version: &Version, value_crc: u32) {
        let numbers = [
            version.at.main,
            i64::from(version.at.sub),
            version.create_revision,
            version.version,
            version.lease,
            i64::from(value_crc),
        ];
        self.add(Effect::Change, &numbers, &[key]);
    }

    /// Half of it, for fields of 32 bits.
    pub fn folded(self) -> u32 {
        let folded = self.0 ^ (self.0 >> 32);
        u32::try_from(folded & u64::from(u32::MAX)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[&[u8]]) -> u64 {
        let mut digest = Digest::default();
        digest.add(Effect::Change, &[1, 2], parts);
        digest.value()
    }

    #[test]
    fn every_difference_shows() {
        let base = of(&[b"key", b"value"]);
        assert_eq!(base, of(&[b"key", b"value"]));
        for other in [
            of(&[b"keyv", b"alue"]),
            of(&[b"key", b"value\0"]),
            of(&[b"key", b"valuf"]),
            of(&[b"key"]),
            of(&[b"key", b"value", b""]),
        ] {
            assert_ne!(base, other);
        }
        let mut resumed = Digest::resume(base);
        resumed.add(Effect::LeaseEnded, &[7], &[]);
        assert_ne!(resumed.value(), base);
    }

    /// Members of two releases compare their hashes: the function must not change.
    #[test]
    fn the_function_stays_what_it_is() {
        assert_eq!(of(&[b"key", b"a longer value"]), PINNED);
    }

    const PINNED: u64 = 417_744_740_131_844_491;
}
