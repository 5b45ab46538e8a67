//! The running hashes of the newest log entries, for comparing with other members.

use std::collections::VecDeque;

use chainfire_core::Digest;

/// Entries whose hash is remembered: at ten thousand entries a second, what two members exchange within a second.
const REMEMBERED: usize = 16_384;

/// The hash after one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) index: u64,
    /// Index after which the hash began.
    pub(crate) since: u64,
    pub(crate) digest: Digest,
}

/// The newest entries' hashes, without gaps.
#[derive(Debug)]
pub(crate) struct Digests {
    stamps: VecDeque<Stamp>,
    newest: Stamp,
}

impl Digests {
    pub(crate) fn new(newest: Stamp) -> Digests {
        Digests {
            stamps: VecDeque::from([newest]),
            newest,
        }
    }

    /// The hash after the newest entry.
    pub(crate) fn newest(&self) -> Stamp {
        self.newest
    }

    pub(crate) fn push(&mut self, stamp: Stamp) {
        assert!(stamp.index > self.newest.index, "entries come in order");
        if stamp.index != self.newest.index + 1 {
            // A group's log does not begin with entry 1.
            self.stamps.clear();
        }
        if self.stamps.len() == REMEMBERED {
            self.stamps.pop_front();
        }
        self.stamps.push_back(stamp);
        self.newest = stamp;
    }

    /// The hash after an entry, if that is remembered.
    pub(crate) fn at(&self, index: u64) -> Option<Stamp> {
        let first = self.stamps.front()?.index;
        let place = usize::try_from(index.checked_sub(first)?).ok()?;
        self.stamps.get(place).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_remembered_and_nothing_else() {
        let stamp = |index| Stamp {
            index,
            since: 0,
            digest: Digest::resume(index * 7),
        };
        let mut digests = Digests::new(stamp(5));
        assert_eq!(
            (digests.at(5), digests.at(4), digests.at(6)),
            (Some(stamp(5)), None, None)
        );
        let last = 5 + REMEMBERED as u64;
        for index in 6..=last {
            digests.push(stamp(index));
        }
        assert_eq!(
            (digests.newest(), digests.at(last)),
            (stamp(last), Some(stamp(last)))
        );
        assert_eq!((digests.at(5), digests.at(6)), (None, Some(stamp(6))));
        digests.push(stamp(last + 2));
        assert_eq!((digests.at(last), digests.at(last + 1)), (None, None));
        assert_eq!(digests.at(last + 2), Some(stamp(last + 2)));
    }
}
