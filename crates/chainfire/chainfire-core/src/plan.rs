//! How a range is answered in two steps: what the index in memory knows is picked under the store's lock, values and
//! versions of the past are fetched from storage without it.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::{
    KeyRange, KeyValue, OpError, Range, RangeOutcome, SortOrder, SortTarget, Version,
    planted::{self, Bug},
    storage::RevisionReader,
};

/// A range, resolved as far as the index can.
#[derive(Debug, Clone)]
pub struct RangePlan {
    /// The store's revision when it was made.
    now: i64,
    range: Range,
    picked: Picked,
}

#[derive(Debug, Clone)]
enum Picked {
    /// At the newest revision: these versions.
    Now {
        count: i64,
        entries: Vec<(Bytes, Version)>,
    },
    /// At this revision of the past, which only storage knows.
    Past(i64),
}

impl RangePlan {
    /// Resolves a range at the newest revision.
    pub(crate) fn now<'a>(
        range: &Range,
        now: i64,
        keys: impl Iterator<Item = (&'a Bytes, Version)>,
    ) -> RangePlan {
        let mut picker = Picker::new(range);
        for (key, version) in keys {
            picker.offer(key, version);
        }
        RangePlan {
            now,
            range: range.clone(),
            picked: Picked::Now {
                count: picker.count,
                entries: picker.entries,
            },
        }
    }

    /// Leaves a range of the past to storage.
    pub(crate) fn past(range: &Range, now: i64, at: i64) -> RangePlan {
        RangePlan {
            now,
            range: range.clone(),
            picked: Picked::Past(at),
        }
    }

    /// Pairs that fetching will look at in storage; `usize::MAX` when nobody can tell.
    pub fn cost(&self) -> usize {
        match &self.picked {
            Picked::Now { entries, .. } => entries.len(),
            Picked::Past(_) if self.range.keys.is_single() => 1,
            Picked::Past(_) => usize::MAX,
        }
    }

    /// Fetches the rest. `None` when compaction has overtaken the plan: plan again.
    pub fn fetch<S: RevisionReader>(self, storage: &S) -> Result<Option<RangeOutcome>, S::Error> {
        let (count, entries) = match self.picked {
            Picked::Now { count, entries } => (count, entries),
            Picked::Past(at) => {
                let mut picker = Picker::new(&self.range);
                let there = storage.versions_at(&self.range.keys, at, &mut |key, version| {
                    picker.offer(key, version);
                    ControlFlow::Continue(())
                })?;
                if !there {
                    return Ok(None);
                }
                (picker.count, picker.entries)
            }
        };
        finish(&self.range, self.now, count, entries, storage)
    }
}

/// A stretch of a range in order of keys, resolved without looking at what follows it.
#[derive(Debug, Clone)]
pub struct Page {
    /// Revision of the store when it was made.
    pub now: i64,
    stretch: Stretch,
}

#[derive(Debug, Clone)]
enum Stretch {
    Now {
        entries: Vec<(Bytes, Version)>,
        more: bool,
    },
    /// So many of these keys, at this revision of the past.
    Past { keys: KeyRange, at: i64, limit: usize },
}

impl Page {
    pub(crate) fn now<'a>(
        now: i64,
        mut keys: impl Iterator<Item = (&'a Bytes, Version)>,
        limit: usize,
    ) -> Page {
        let entries = keys
            .by_ref()
            .take(limit)
            .map(|(key, version)| (key.clone(), version))
            .collect();
        let more = keys.next().is_some();
        Page {
            now,
            stretch: Stretch::Now { entries, more },
        }
    }

    pub(crate) fn past(now: i64, keys: &KeyRange, at: i64, limit: usize) -> Page {
        let keys = keys.clone();
        Page {
            now,
            stretch: Stretch::Past { keys, at, limit },
        }
    }

    /// Fetches pairs until they weigh `max_bytes` (one pair at least), and whether pairs follow. `None` when compaction has
    /// overtaken it.
    pub fn fetch<S: RevisionReader>(
        self,
        storage: &S,
        keys_only: bool,
        max_bytes: usize,
    ) -> Result<Option<(Vec<KeyValue>, bool)>, S::Error> {
        let (entries, more) = match self.stretch {
            Stretch::Now { entries, more } => (entries, more),
            Stretch::Past { keys, at, limit } => {
                let (mut entries, mut more) = (Vec::new(), false);
                let there = storage.versions_at(&keys, at, &mut |key, version| {
                    more = entries.len() == limit;
                    if more {
                        return ControlFlow::Break(());
                    }
                    entries.push((key.clone(), version));
                    ControlFlow::Continue(())
                })?;
                if !there {
                    return Ok(None);
                }
                (entries, more)
            }
        };
        let (mut kvs, mut bytes) = (Vec::new(), 0);
        for (key, version) in entries {
            if bytes >= max_bytes {
                return Ok(Some((kvs, true)));
            }
            let value = if keys_only {
                Bytes::new()
            } else {
                let Some(event) = storage.get(version.at)? else {
                    return Ok(None);
                };
                event.kv.value
            };
            bytes += key.len() + value.len();
            kvs.push(pair(key, version, value));
        }
        Ok(Some((kvs, more)))
    }
}

/// Counts all of a range and keeps what may be part of the answer.
struct Picker<'a> {
    range: &'a Range,
    /// Entries needed at most.
    keep: usize,
    count: i64,
    entries: Vec<(Bytes, Version)>,
}

impl<'a> Picker<'a> {
    fn new(range: &'a Range) -> Picker<'a> {
        // With an order or a filter everything is looked at; else one pair more than wanted tells `more`. A sort
        // target without an order sorts what the limit let through: odd, and etcd's way.
        let keep = if range.count_only {
            0
        } else if range.sort_order != SortOrder::None || is_filtered(range) {
            usize::MAX
        } else {
            limit(range).saturating_add(1)
        };
        Picker {
            range,
            keep,
            count: 0,
            entries: Vec::new(),
        }
    }

    fn offer(&mut self, key: &Bytes, version: Version) {
        self.count += 1;
        if self.entries.len() < self.keep && passes(self.range, &version) {
            self.entries.push((key.clone(), version));
        }
    }
}

fn finish<S: RevisionReader>(
    range: &Range,
    now: i64,
    count: i64,
    mut entries: Vec<(Bytes, Version)>,
    storage: &S,
) -> Result<Option<RangeOutcome>, S::Error> {
    let limit = limit(range);
    let count = if planted::is(Bug::CountLimited) {
        count.min(i64::try_from(limit).unwrap_or(i64::MAX))
    } else {
        count
    };
    let by_value = sort(range, &mut entries);
    if by_value.is_none() {
        entries.truncate(limit.saturating_add(1));
    }
    let mut more = entries.len() > limit;
    if by_value.is_none() {
        entries.truncate(limit);
    }
    let mut kvs = Vec::with_capacity(entries.len());
    for (key, version) in entries {
        let value = if range.keys_only && by_value.is_none() {
            Bytes::new()
        } else {
            let Some(event) = storage.get(version.at)? else {
                return Ok(None);
            };
            event.kv.value
        };
        kvs.push(pair(key, version, value));
    }
    match by_value {
        Some(SortOrder::Descend) => kvs.sort_by(|a, b| b.value.cmp(&a.value)),
        Some(_) => kvs.sort_by(|a, b| a.value.cmp(&b.value)),
        None => {}
    }
    more |= kvs.len() > limit;
    kvs.truncate(limit);
    if range.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    Ok(Some(RangeOutcome {
        revision: now,
        kvs,
        more,
        count,
    }))
}

fn pair(key: Bytes, version: Version, value: Bytes) -> KeyValue {
    KeyValue {
        key,
        create_revision: version.create_revision,
        mod_revision: version.at.main,
        version: version.version,
        value,
        lease: version.lease,
    }
}

fn limit(range: &Range) -> usize {
    usize::try_from(range.limit)
        .ok()
        .filter(|limit| *limit > 0)
        .unwrap_or(usize::MAX)
}

fn is_filtered(range: &Range) -> bool {
    [
        range.min_mod_revision,
        range.max_mod_revision,
        range.min_create_revision,
        range.max_create_revision,
    ]
    .iter()
    .any(|bound| *bound != 0)
}

fn passes(range: &Range, version: &Version) -> bool {
    let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(version.at.main, range.min_mod_revision, range.max_mod_revision)
        && within(
            version.create_revision,
            range.min_create_revision,
            range.max_create_revision,
        )
}

/// Sorts by what the index knows; else says in which order the values are to be sorted.
fn sort(range: &Range, entries: &mut [(Bytes, Version)]) -> Option<SortOrder> {
    let order = match (range.sort_order, range.sort_target) {
        (SortOrder::None, SortTarget::Key) => return None,
        (SortOrder::None, _) if planted::is(Bug::SortDescends) => SortOrder::Descend,
        (SortOrder::None, _) => SortOrder::Ascend,
        (order, _) => order,
    };
    let by = |of: fn(&Version) -> i64, entries: &mut [(Bytes, Version)]| match order {
        SortOrder::Descend => entries.sort_by_key(|entry| std::cmp::Reverse(of(&entry.1))),
        _ => entries.sort_by_key(|entry| of(&entry.1)),
    };
    match range.sort_target {
        SortTarget::Key if order == SortOrder::Descend => entries.reverse(),
        SortTarget::Key => {}
        SortTarget::Version => by(|version| version.version, entries),
        SortTarget::Create => by(|version| version.create_revision, entries),
        SortTarget::Mod => by(|version| version.at.main, entries),
        SortTarget::Value => return Some(order),
    }
    None
}

/// The revision that a read asks for (0 or less: the newest), if it can be read.
pub(crate) fn readable(revision: i64, now: i64, compacted: i64) -> Result<i64, OpError> {
    let at = if revision <= 0 { now } else { revision };
    if at > now {
        return Err(OpError::FutureRevision);
    }
    if at < compacted {
        return Err(OpError::Compacted);
    }
    Ok(at)
}
