//! Requests that were carried out under an idempotency key: what was asked and what was answered.
//!
//! A record is written in the transaction of the change itself, never altered, and trimmed by the reconciler.

use std::collections::VecDeque;

use chainfire_client::wire::etcdserverpb::RangeRequest;
use chainfire_client::{Compare, KeyValue, Op, Txn, prefix_end};
use serde::{Deserialize, Serialize};

use super::records::Record;
use super::{Store, StoreError, Stored, decode, while_doing};

/// Records read at once.
const PAGE: i64 = 500;
/// Records deleted in one transaction (etcd allows 128 operations).
const BATCH: usize = 100;

/// A request that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RequestRecord {
    pub(crate) version: u32,
    /// The call, such as `stop_vm`.
    pub(crate) call: String,
    /// SHA-256 of call, target and body.
    pub(crate) sha256: String,
    /// The body of the answer.
    pub(crate) answer: serde_json::Value,
    /// When, by the clock of the server that did it.
    pub(crate) at_ms: i64,
}

impl Record for RequestRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

/// What goes into a change's transaction beside the change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Along {
    pub(crate) guards: Vec<Compare>,
    pub(crate) writes: Vec<Op>,
}

impl Along {
    /// Both together.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.guards.extend(other.guards);
        self.writes.extend(other.writes);
        self
    }
}

/// How long and how many records of a kind are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    /// Older ones go.
    pub(crate) for_ms: i64,
    /// Of more than so many the oldest go.
    pub(crate) at_most: usize,
    /// But none that is younger than this.
    pub(crate) at_least_ms: i64,
}

impl Store {
    /// The request that a key was used for.
    pub(crate) async fn request(&self, key: &str) -> Result<Option<Stored<RequestRecord>>, StoreError> {
        self.get(key).await
    }

    /// Writes an answer without any other change. False when its guards do not hold.
    pub(crate) async fn keep_answer(&self, along: Along) -> Result<bool, StoreError> {
        let txn = Txn::new().when(along.guards).then(along.writes);
        Ok(self.txn("keeping an answer", txn).await?.succeeded)
    }

    /// Deletes what has been kept long enough; how many. Idempotent; can be cut anywhere.
    pub(crate) async fn trim<T: Record>(
        &self,
        prefix: &str,
        ended_at_ms: impl Fn(&T) -> Option<i64>,
        keep: Keep,
        now_ms: i64,
        leader: &Compare,
    ) -> Result<u64, StoreError> {
        let mut ended: Vec<(i64, Vec<u8>)> = Vec::new();
        let mut start = prefix.as_bytes().to_vec();
        loop {
            let range = RangeRequest {
                key: start.clone().into(),
                range_end: prefix_end(prefix.as_bytes()),
                limit: PAGE,
                ..Default::default()
            };
            let page = self
                .client()
                .range(range)
                .await
                .map_err(while_doing("reading what can be trimmed"))?;
            for kv in page.kvs {
                let kv = KeyValue::from(kv);
                start = [&kv.key[..], &[0]].concat();
                if let Some(at) = ended_at_ms(&decode(&kv)?.value) {
                    ended.push((at, kv.key.to_vec()));
                }
            }
            if !page.more {
                break;
            }
        }
        let due = due(ended, keep, now_ms);
        let mut trimmed = 0;
        for batch in due.chunks(BATCH) {
            let txn = Txn::new()
                .when([leader.clone()])
                .then(batch.iter().map(Op::delete));
            if !self.txn("trimming old records", txn).await?.succeeded {
                break;
            }
            trimmed += batch.len() as u64;
        }
        Ok(trimmed)
    }
}

/// Which of the records that have ended may go: those that are too old, and the oldest of those that are too many.
fn due(mut ended: Vec<(i64, Vec<u8>)>, keep: Keep, now_ms: i64) -> Vec<Vec<u8>> {
    ended.sort_unstable();
    let mut kept: VecDeque<_> = ended.into();
    let mut due = Vec::new();
    while let Some((at, _)) = kept.front() {
        let age = now_ms - at;
        let goes = age >= keep.for_ms || (kept.len() > keep.at_most && age >= keep.at_least_ms);
        if !goes {
            break;
        }
        due.extend(kept.pop_front().map(|(_, key)| key));
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_and_the_too_many_go_but_never_the_youngest() {
        let ended = |ages: &[i64]| ages.iter().map(|age| (1000 - age, vec![*age as u8])).collect();
        let keep = Keep {
            for_ms: 100,
            at_most: 2,
            at_least_ms: 10,
        };
        let check = |ages: &[i64], gone: &[u8]| {
            let gone: Vec<_> = gone.iter().map(|age| vec![*age]).collect();
            assert_eq!(due(ended(ages), keep, 1000), gone, "{ages:?}");
        };
        check(&[], &[]);
        check(&[5, 99], &[]);
        check(&[5, 100], &[100]);
        check(&[20, 30, 40, 50], &[50, 40]);
        check(&[1, 2, 3, 4], &[]);
        check(&[1, 2, 3, 11], &[11]);
        check(&[120, 110, 1], &[120, 110]);
    }
}
