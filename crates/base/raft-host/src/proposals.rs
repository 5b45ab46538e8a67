//! Proposals that wait for their outcome, and the leader's memory of forwarded ones.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::host::RequestId;
use crate::{NodeId, ProposeError};

/// Forwarded proposals that a leader remembers per origin; older ones count as seen.
const SEEN_PER_ORIGIN: usize = 65_536;

/// An applied proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its place in the log.
    pub index: u64,
    /// The term in which it was proposed.
    pub term: u64,
    /// What this node's state machine answered.
    pub response: Bytes,
}

/// Identity of a proposal, carried by its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) seq: u64,
}

impl Origin {
    pub(crate) fn encode(self) -> Vec<u8> {
        [self.node, self.incarnation, self.seq]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Origin> {
        let (node, rest) = bytes.split_first_chunk::<8>()?;
        let (incarnation, rest) = rest.split_first_chunk::<8>()?;
        let (seq, []) = rest.split_first_chunk::<8>()? else {
            return None;
        };
        Some(Origin {
            node: u64::from_le_bytes(*node),
            incarnation: u64::from_le_bytes(*incarnation),
            seq: u64::from_le_bytes(*seq),
        })
    }
}

struct Waiting {
    request: RequestId,
    deadline: u64,
}

/// This node's proposals without an outcome yet.
#[derive(Default)]
pub(crate) struct Proposals {
    next_seq: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// Where the log holds those that were proposed here: index -> (term, seq).
    placed: BTreeMap<u64, (u64, u64)>,
}

impl Proposals {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn add(&mut self, request: RequestId, deadline: u64) -> u64 {
        self.next_seq += 1;
        self.waiting.insert(self.next_seq, Waiting { request, deadline });
        self.next_seq
    }

    pub(crate) fn placed(&mut self, seq: u64, index: u64, term: u64) {
        self.placed.insert(index, (term, seq));
    }

    pub(crate) fn take(&mut self, seq: u64) -> Option<RequestId> {
        self.waiting.remove(&seq).map(|w| w.request)
    }

    /// An entry of `term` was applied at `index`: a proposal placed there under another term is dropped for good.
    pub(crate) fn applied(&mut self, index: u64, term: u64) -> Option<RequestId> {
        let (placed_term, seq) = self.placed.remove(&index)?;
        if placed_term == term { None } else { self.take(seq) }
    }

    /// A snapshot took the place of everything up to `index`: outcomes there cannot be known.
    pub(crate) fn jumped(&mut self, index: u64) -> Vec<RequestId> {
        let later = self.placed.split_off(&(index + 1));
        let gone = std::mem::replace(&mut self.placed, later);
        gone.into_values().filter_map(|(_, seq)| self.take(seq)).collect()
    }

    pub(crate) fn expired(&mut self, now: u64) -> Vec<RequestId> {
        // Sequence numbers and deadlines grow together.
        let mut gone = Vec::new();
        while let Some(first) = self.waiting.first_entry() {
            if first.get().deadline > now {
                break;
            }
            gone.push(first.remove().request);
        }
        gone
    }
}

/// Which forwarded proposals a leader took in the term that it led last.
#[derive(Default)]
pub(crate) struct Forwarded {
    term: u64,
    seen: BTreeMap<(NodeId, u64), BTreeSet<u64>>,
}

/// What to do with a forwarded proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Propose it: it comes for the first time.
    Take,
    /// Tell the origin that it was not and will not be proposed.
    Refuse,
    /// Say nothing: a double, or nobody here can know what became of it.
    Ignore,
}

impl Forwarded {
    /// `leading` is the term that this node leads now, if it does. Whatever the verdict, a double of the same
    /// proposal will be ignored.
    pub(crate) fn judge(&mut self, origin: Origin, term: u64, leading: Option<u64>) -> Verdict {
        if let Some(led) = leading
            && led != self.term
        {
            self.term = led;
            self.seen.clear();
        }
        if term != self.term || term == 0 {
            return Verdict::Ignore;
        }
        let seen = self.seen.entry((origin.node, origin.incarnation)).or_default();
        let forgotten =
            seen.len() >= SEEN_PER_ORIGIN && seen.first().is_some_and(|first| origin.seq < *first);
        if forgotten || !seen.insert(origin.seq) {
            return Verdict::Ignore;
        }
        if seen.len() > SEEN_PER_ORIGIN {
            seen.pop_first();
        }
        if leading == Some(term) {
            Verdict::Take
        } else {
            Verdict::Refuse
        }
    }
}

/// What a waiting proposal hears when the leader refuses it.
pub(crate) fn refusal(busy: bool, leader: Option<NodeId>) -> ProposeError {
    if busy {
        ProposeError::Busy
    } else {
        ProposeError::NotLeader { leader }
    }
}
