//! The hub: one task for each member that finds out whom each change concerns, and wakes only their streams.
//!
//! It has a cursor of its own on the ring, so the apply path does not wait for it; when it lags behind the ring it
//! reads storage, and when even that is compacted it marks everybody.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chainfire_core::{
    KeyRange, OpError,
    watch::{Mark, Matcher, Page, Source, Stream},
};
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::yield_now,
};

use super::reader::Reader;
use crate::{machine::Shared, tables::StorageError};

/// Streams that read a page from storage at once; the others wait in turn.
const CATCH_UPS: usize = 2;

/// Bounds of a member's watching.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HubLimits {
    /// Watchers on all streams.
    pub(crate) watchers: usize,
    /// How often idle watchers that wish so are told the progress, milliseconds.
    pub(crate) progress_ms: u64,
}

/// What happened to the watchers of one stream since it last looked.
#[derive(Debug, Default)]
struct Marks {
    of: BTreeMap<i64, Mark>,
    all: Option<Mark>,
}

/// A stream as the hub sees it.
#[derive(Debug, Default)]
pub(super) struct Slot {
    marks: Mutex<Marks>,
    wake: Notify,
}

impl Slot {
    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark(&self, id: i64, mark: Mark) {
        let mut marks = self.marks();
        let entry = marks.of.entry(id).or_insert(mark);
        *entry = entry.join(mark);
        drop(marks);
        self.wake.notify_one();
    }

    fn mark_all(&self, mark: Mark) {
        let mut marks = self.marks();
        marks.all = Some(marks.all.map_or(mark, |all| all.join(mark)));
        drop(marks);
        self.wake.notify_one();
    }
}

#[derive(Default)]
struct Index {
    matcher: Matcher<(u64, i64)>,
    streams: HashMap<u64, (Arc<Slot>, BTreeSet<i64>)>,
    next_stream: u64,
    /// Everything up to here has been marked.
    matched: i64,
}

struct Inner {
    index: Mutex<Index>,
    matched: watch::Sender<i64>,
    catch_ups: Arc<Semaphore>,
    limits: HubLimits,
    shared: Arc<Shared>,
}

/// The hub of a member. Clones share it.
#[derive(Clone)]
pub(crate) struct Hub(Arc<Inner>);

impl Hub {
    pub(crate) fn new(shared: Arc<Shared>, limits: HubLimits) -> Hub {
        let now = *shared.revisions().borrow();
        Hub(Arc::new(Inner {
            index: Mutex::new(Index {
                matched: now,
                ..Index::default()
            }),
            matched: watch::Sender::new(now),
            catch_ups: Arc::new(Semaphore::new(CATCH_UPS)),
            limits,
            shared,
        }))
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watchers of all streams.
    pub(crate) fn watchers(&self) -> usize {
        self.index().matcher.len()
    }

    pub(super) fn progress_ms(&self) -> u64 {
        self.0.limits.progress_ms
    }

    /// Turns at storage.
    pub(super) fn catch_ups(&self) -> Arc<Semaphore> {
        self.0.catch_ups.clone()
    }

    /// A seat for a new stream.
    pub(super) fn join(&self) -> Seat {
        let slot = Arc::new(Slot::default());
        let mut index = self.index();
        index.next_stream += 1;
        let stream = index.next_stream;
        index.streams.insert(stream, (slot.clone(), BTreeSet::new()));
        drop(index);
        Seat {
            hub: self.clone(),
            stream,
            slot,
            matched: self.0.matched.subscribe(),
        }
    }

    /// Marks whatever happens; returns only when storage fails or the store is gone.
    pub(crate) async fn run(&self) -> Result<(), StorageError> {
        let mut revisions = self.0.shared.revisions();
        let reader = Reader::new(self.0.shared.clone());
        loop {
            let newest = *revisions.borrow_and_update();
            loop {
                let from = *self.0.matched.borrow() + 1;
                if from > newest {
                    break;
                }
                let page = match reader.recent(from, newest) {
                    Some(page) => Some(page),
                    None => {
                        let reader = reader.clone();
                        let read = tokio::task::spawn_blocking(move || reader.stored(from, newest));
                        match read.await {
                            Ok(page) => page?,
                            // The process is stopping.
                            Err(_) => return Ok(()),
                        }
                    }
                };
                match page {
                    Some(page) => self.publish(&page),
                    None => self.publish_all(Mark {
                        first: from,
                        last: newest,
                    }),
                }
                yield_now().await;
            }
            if revisions.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    fn publish(&self, page: &Page) {
        let mut index = self.index();
        index.matcher.concerned(&page.changes, |(stream, id), mark| {
            if let Some((slot, _)) = index.streams.get(&stream) {
                slot.mark(id, mark);
            }
        });
        index.matched = page.through;
        drop(index);
        self.0.matched.send_replace(page.through);
    }

    fn publish_all(&self, mark: Mark) {
        let mut index = self.index();
        index.streams.values().for_each(|(slot, _)| slot.mark_all(mark));
        index.matched = mark.last;
        drop(index);
        self.0.matched.send_replace(mark.last);
    }
}

/// A stream's place at the hub; leaving it forgets its watchers.
pub(super) struct Seat {
    hub: Hub,
    stream: u64,
    slot: Arc<Slot>,
    matched: watch::Receiver<i64>,
}

impl Seat {
    /// Whether the member has room for one more watcher.
    pub(super) fn room(&self) -> Result<(), OpError> {
        if self.hub.watchers() < self.hub.0.limits.watchers {
            Ok(())
        } else {
            Err(OpError::TooManyRequests)
        }
    }

    /// Makes a watcher known; everything behind the returned revision will be marked for it.
    pub(super) fn enrol(&self, id: i64, keys: &KeyRange) -> i64 {
        let mut index = self.hub.index();
        index.matcher.insert((self.stream, id), keys);
        if let Some((_, ids)) = index.streams.get_mut(&self.stream) {
            ids.insert(id);
        }
        index.matched
    }

    pub(super) fn withdraw(&self, id: i64) {
        let mut index = self.hub.index();
        index.matcher.remove((self.stream, id));
        if let Some((_, ids)) = index.streams.get_mut(&self.stream) {
            ids.remove(&id);
        }
    }

    /// Gives a stream what was marked for it, and up to where that is all.
    pub(super) fn feed(&self, stream: &mut Stream) {
        // In this order: what is marked up to there was marked before it was said.
        let matched = *self.matched.borrow();
        let marks = std::mem::take(&mut *self.slot.marks());
        for (id, mark) in marks.of {
            stream.mark(id, mark);
        }
        if let Some(mark) = marks.all {
            stream.mark_all(mark);
        }
        stream.published(matched);
    }

    /// Resolves when something was marked.
    pub(super) async fn marked(&self) {
        self.slot.wake.notified().await;
    }

    /// Resolves when everything up to `revision` has been marked; never when it was already or no revision is given.
    pub(super) async fn reached(&self, revision: Option<i64>) {
        let Some(revision) = revision else {
            return std::future::pending().await;
        };
        let mut matched = self.matched.clone();
        if matched.wait_for(|matched| *matched >= revision).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut index = self.hub.index();
        if let Some((_, ids)) = index.streams.remove(&self.stream) {
            for id in ids {
                index.matcher.remove((self.stream, id));
            }
        }
    }
}
