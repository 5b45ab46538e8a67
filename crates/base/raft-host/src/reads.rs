//! Linearizable reads: which wait, which were asked for under which context, which are confirmed.
//!
//! ```text
//!   waiting --issue(context)--> asked --confirmed(index)--> known --applied >= index--> done
//!      ^                          |
//!      '--- leader or term changed, or no answer in time: a NEW context ---'
//! ```

use std::collections::BTreeMap;

use crate::host::RequestId;

struct Read {
    request: RequestId,
    deadline: u64,
}

#[derive(Default)]
pub(crate) struct Reads {
    next_context: u64,
    waiting: Vec<Read>,
    /// Context -> (reads, tick when asked).
    asked: BTreeMap<u64, (Vec<Read>, u64)>,
    /// Index -> reads.
    known: BTreeMap<u64, Vec<Read>>,
}

impl Reads {
    pub(crate) fn add(&mut self, request: RequestId, deadline: u64) {
        self.waiting.push(Read { request, deadline });
    }

    /// A new context for all reads that wait, when any does.
    pub(crate) fn issue(&mut self, now: u64, reuse_context: bool) -> Option<u64> {
        if self.waiting.is_empty() {
            return None;
        }
        if !reuse_context {
            self.next_context += 1;
        }
        let reads = std::mem::take(&mut self.waiting);
        let (slot, at) = self.asked.entry(self.next_context).or_default();
        slot.extend(reads);
        *at = now;
        Some(self.next_context)
    }

    /// A leader confirmed `context` at `index`. Contexts that are void are ignored.
    pub(crate) fn confirmed(&mut self, context: u64, index: u64) {
        if let Some((reads, _)) = self.asked.remove(&context) {
            self.known.entry(index).or_default().extend(reads);
        }
    }

    /// Leader or term changed: every context is void, its reads ask again under a new one.
    pub(crate) fn reset(&mut self) {
        for (_, (reads, _)) in std::mem::take(&mut self.asked) {
            self.waiting.extend(reads);
        }
    }

    /// Reads asked before tick `before` without an answer ask again under a new context.
    pub(crate) fn retry(&mut self, before: u64) {
        let stale: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, (_, at))| *at < before)
            .map(|(context, _)| *context)
            .collect();
        for context in stale {
            if let Some((reads, _)) = self.asked.remove(&context) {
                self.waiting.extend(reads);
            }
        }
    }

    /// Reads whose index has been applied.
    pub(crate) fn done(&mut self, applied: u64) -> Vec<(RequestId, u64)> {
        let mut done = Vec::new();
        while let Some(first) = self.known.first_entry() {
            let index = *first.key();
            if index > applied {
                break;
            }
            done.extend(first.remove().into_iter().map(|r| (r.request, index)));
        }
        done
    }

    pub(crate) fn expired(&mut self, now: u64) -> Vec<RequestId> {
        let mut gone = Vec::new();
        let mut sweep = |reads: &mut Vec<Read>| {
            reads.retain(|r| {
                let keep = r.deadline > now;
                if !keep {
                    gone.push(r.request);
                }
                keep
            });
        };
        sweep(&mut self.waiting);
        self.asked.values_mut().for_each(|(reads, _)| sweep(reads));
        self.known.values_mut().for_each(&mut sweep);
        self.asked.retain(|_, (reads, _)| !reads.is_empty());
        self.known.retain(|_, reads| !reads.is_empty());
        gone
    }
}
