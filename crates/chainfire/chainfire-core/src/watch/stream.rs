//! One watch stream: takes requests, marks and revisions; yields responses one bounded page at a time.
//!
//! ```text
//!   create ──> Enrolling ──enrolled──> behind (next <= until) ──told all──> clean (next > until)
//!                                        ^                                    │
//!                                        └───────────── mark ─────────────────┘
//!   cancel, recheck, compacted: gone from any state
//! ```
//! It does not know who finds out which watcher a change concerns. Whoever does (the hub) promises: after
//! `enrolled(id, matched)`, every event behind `matched` that touches the watcher's keys is marked, in the order of
//! revisions, before [`Stream::published`] names its revision.
//!
//! Invariants:
//! 1. a watcher is told every event that it wants from its start on, once, in order;
//! 2. its creation is announced before its events, and nothing of it comes after its cancellation;
//! 3. a progress notification at revision P comes after every event up to P that the notified watchers want;
//! 4. nothing waits here but announcements: events are read when they can be sent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Change, Interest};
#[cfg(feature = "planted-bugs")]
use crate::faulty::PlantedBug;
use crate::{Event, EventKind, KeyRange, KeyValue, OpError};

/// The id that no watcher has: of refused creations and of progress notifications for a whole stream.
pub const NO_WATCHER: i64 = -1;
/// Pages without an event of interest that one [`Stream::pull`] reads before it gives way.
const IDLE_PAGES: usize = 8;
/// What an event costs beyond its keys and values, bytes.
const EVENT_OVERHEAD: usize = 48;

/// Where a stream reads.
pub trait Source {
    /// Why storage failed. Fatal: the stream ends.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Oldest revision that can be read; -1 before the first compaction.
    fn compacted(&self) -> i64;

    /// Changes from `from` to `until`, a bounded number, when they are at hand in memory.
    fn recent(&self, from: i64, until: i64) -> Option<Page>;

    /// The same from storage; this may block. `None` when `from` has been compacted, also while it was read.
    fn stored(&self, from: i64, until: i64) -> Result<Option<Page>, Self::Error>;

    /// The pair as it was before this event, if it is still stored.
    fn before(&self, event: &Event) -> Result<Option<KeyValue>, Self::Error>;
}

/// Consecutive changes.
#[derive(Debug, Clone)]
pub struct Page {
    /// Whole revisions, in order.
    pub changes: Vec<Change>,
    /// Everything from the wanted revision to this one is in the page. Not before the wanted revision.
    pub through: i64,
}

/// A wish to watch, as etcd's WatchCreateRequest says it.
#[derive(Debug, Clone)]
pub struct Create {
    /// The id that the client chose; 0: any.
    pub watch_id: i64,
    /// What it wants to hear of.
    pub interest: Interest,
    /// First revision of interest; 0: from now on.
    pub start_revision: i64,
    /// Deliver the pair before each event.
    pub prev_kv: bool,
    /// Large revisions may come in parts.
    pub fragment: bool,
    /// Tell it the progress from time to time while it is idle.
    pub progress_notify: bool,
}

/// A watcher to make known to the hub, which answers with [`Stream::enrolled`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrol {
    /// The watcher.
    pub watch_id: i64,
    /// Its keys.
    pub keys: KeyRange,
}

/// Revisions between which something happened to a watcher's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The first of them.
    pub first: i64,
    /// The last of them.
    pub last: i64,
}

impl Mark {
    /// The mark that covers both.
    #[must_use]
    pub fn join(self, other: Mark) -> Mark {
        Mark {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        }
    }
}

/// An event as a watcher is told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchEvent {
    /// What happened.
    pub event: Event,
    /// The pair before, where asked for and still stored.
    pub prev: Option<KeyValue>,
}

impl WatchEvent {
    /// Bytes it takes in a response, about.
    pub fn weight(&self) -> usize {
        let pair = |kv: &KeyValue| EVENT_OVERHEAD + kv.key.len() + kv.value.len();
        pair(&self.event.kv) + self.prev.as_ref().map_or(0, pair)
    }
}

/// One message to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Whom it concerns.
    pub watch_id: i64,
    /// The revision in its header.
    pub revision: i64,
    /// What it says.
    pub say: Say,
}

/// What a [`Response`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Say {
    /// The watcher exists.
    Created,
    /// It was not created (etcd says "created" and "canceled" at once).
    Refused {
        /// Why.
        reason: &'static str,
    },
    /// The watcher is gone.
    Canceled {
        /// Why, unless the client asked for it.
        reason: &'static str,
        /// Oldest revision that can be watched, when history is the reason; else 0.
        compact_revision: i64,
    },
    /// Everything up to the header's revision has been told.
    Progress,
    /// Changes.
    Events {
        /// They, in order.
        events: Vec<WatchEvent>,
        /// More of the same revision follows.
        fragment: bool,
    },
}

impl Response {
    /// Bytes it takes, about.
    pub fn weight(&self) -> usize {
        EVENT_OVERHEAD
            + match &self.say {
                Say::Events { events, .. } => events.iter().map(WatchEvent::weight).sum(),
                _ => 0,
            }
    }
}

/// What [`Stream::pull`] came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pull {
    /// Send this.
    Response(Response),
    /// Nothing to send yet, but there is more to look at.
    Again,
    /// Nothing to do before the next input; [`Stream::wants_storage`] may still hold.
    Idle,
}

/// Bounds of one stream.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Watchers.
    pub watchers: usize,
    /// Bytes of events in one response, about. One revision may be larger for who does not take fragments.
    pub page_bytes: usize,
}

#[derive(Debug)]
struct Watcher {
    interest: Interest,
    prev_kv: bool,
    fragment: bool,
    progress_notify: bool,
    enrolled: bool,
    /// No page was read for it yet: its start is the client's wish and may lie before what is stored.
    fresh: bool,
    /// The start that the client named; 0: none.
    start: i64,
    /// First revision that it has not been told of.
    next: i64,
    /// Events of `next` that it has been told of, in fragments.
    told_of_next: usize,
    /// Last revision that may hold something for it.
    until: i64,
    /// It was told something since the last progress notification.
    told: bool,
}

impl Watcher {
    fn is_behind(&self) -> bool {
        self.next <= self.until
    }
}

/// One watch stream.
#[derive(Debug)]
pub struct Stream {
    limits: Limits,
    watchers: BTreeMap<i64, Watcher>,
    next_id: i64,
    /// Everything up to here has been marked.
    published: i64,
    /// The newest revision in any event told.
    told: i64,
    announcements: VecDeque<Response>,
    /// Watchers behind, by the first revision they miss.
    behind: BTreeSet<(i64, i64)>,
    /// Those of them whose next page may be at hand, in turn.
    turn: VecDeque<i64>,
    /// Those whose next page lies in storage, in turn.
    deep: VecDeque<i64>,
    /// Watchers that wait for the hub.
    enrolling: usize,
    /// Explicit starts that were not reached when last looked at.
    to_begin: BTreeSet<(i64, i64)>,
    /// A progress request came at this revision.
    progress_wanted: Option<i64>,
    /// Watchers to notify of progress.
    notify: VecDeque<i64>,
    withdrawn: Vec<i64>,
    #[cfg(feature = "planted-bugs")]
    planted: Option<PlantedBug>,
}

impl Stream {
    /// A stream without watchers. Every revision up to `published` is complete.
    pub fn new(limits: Limits, published: i64) -> Stream {
        Stream {
            limits,
            watchers: BTreeMap::new(),
            next_id: 0,
            published,
            told: 0,
            announcements: VecDeque::new(),
            behind: BTreeSet::new(),
            turn: VecDeque::new(),
            deep: VecDeque::new(),
            enrolling: 0,
            to_begin: BTreeSet::new(),
            progress_wanted: None,
            notify: VecDeque::new(),
            withdrawn: Vec::new(),
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }

    /// Plants a bug, for tests of the checkers.
    #[cfg(feature = "planted-bugs")]
    pub fn plant(&mut self, bug: PlantedBug) {
        self.planted = Some(bug);
    }

    /// Creates a watcher, or announces why not. `now` is the store's revision; `permitted` is what the caller's rights
    /// say of the keys, and whether the member has room for one more.
    pub fn create(&mut self, create: Create, now: i64, permitted: Result<(), OpError>) -> Option<Enrol> {
        if let Some(reason) = self.refusal(&create, permitted) {
            self.announce(NO_WATCHER, now, Say::Refused { reason });
            return None;
        }
        let id = match create.watch_id {
            0 => self.free_id(),
            id => id,
        };
        let start = create.start_revision;
        #[cfg(feature = "planted-bugs")]
        let start = if self.planted == Some(PlantedBug::DuplicateAfterResume) && start > 1 {
            start - 1
        } else {
            start
        };
        let keys = create.interest.keys.clone();
        let watcher = Watcher {
            interest: create.interest,
            prev_kv: create.prev_kv,
            fragment: create.fragment,
            progress_notify: create.progress_notify,
            enrolled: false,
            fresh: true,
            start,
            next: if start == 0 { now + 1 } else { start },
            told_of_next: 0,
            until: 0,
            told: false,
        };
        self.watchers.insert(id, watcher);
        self.enrolling += 1;
        if start > 0 {
            self.to_begin.insert((start, id));
        }
        self.announce(id, now, Say::Created);
        Some(Enrol { watch_id: id, keys })
    }

    fn refusal(&self, create: &Create, permitted: Result<(), OpError>) -> Option<&'static str> {
        if create.start_revision < 0 {
            return Some(OpError::Compacted.text());
        }
        if let Err(error) = permitted {
            return Some(error.text());
        }
        if create.interest.keys.is_empty() {
            return Some("mvcc: watcher range is empty");
        }
        if create.watch_id != 0 && self.watchers.contains_key(&create.watch_id) {
            return Some("mvcc: duplicate watch ID provided on the WatchStream");
        }
        (self.watchers.len() >= self.limits.watchers).then_some(OpError::TooManyRequests.text())
    }

    fn free_id(&mut self) -> i64 {
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// The hub knows the watcher: it will mark what happens behind `matched`; what was before is for it to read.
    pub fn enrolled(&mut self, id: i64, matched: i64) {
        let Some(watcher) = self.watchers.get_mut(&id).filter(|watcher| !watcher.enrolled) else {
            return;
        };
        watcher.enrolled = true;
        self.enrolling -= 1;
        watcher.until = watcher.until.max(matched);
        if watcher.is_behind() {
            self.behind.insert((watcher.next, id));
            self.turn.push_back(id);
        }
    }

    /// Cancels a watcher at the client's wish.
    pub fn cancel(&mut self, id: i64, now: i64) {
        if self.remove(id) {
            self.announce_canceled(id, now, "", 0);
        }
    }

    /// Cancels every watcher whose keys its owner may no longer read.
    pub fn recheck(&mut self, now: i64, allowed: impl Fn(&KeyRange) -> bool) {
        let lost: Vec<i64> = self
            .watchers
            .iter()
            .filter(|(_, watcher)| !allowed(&watcher.interest.keys))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.remove(id);
            self.announce_canceled(id, now, OpError::PermissionDenied.text(), 0);
        }
    }

    /// The client asks for the progress of the stream, when the store's revision is `now`. It is told as soon as
    /// everything up to there has been.
    pub fn request_progress(&mut self, now: i64) {
        // Nobody's progress is none, as etcd has it.
        self.progress_wanted = (!self.watchers.is_empty()).then_some(now);
    }

    /// The period of progress notifications is over: idle watchers that wish so are told.
    pub fn notify_progress(&mut self) {
        self.notify.clear();
        for (id, watcher) in &mut self.watchers {
            if watcher.progress_notify && !std::mem::take(&mut watcher.told) {
                self.notify.push_back(*id);
            }
        }
    }

    /// Something happened to a watcher's keys.
    pub fn mark(&mut self, id: i64, mark: Mark) {
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return;
        };
        if mark.last < watcher.next {
            return;
        }
        #[cfg(feature = "planted-bugs")]
        if self.planted == Some(PlantedBug::LostWatchEvent) && watcher.is_behind() {
            return;
        }
        if !watcher.enrolled || watcher.is_behind() {
            watcher.until = watcher.until.max(mark.last);
            return;
        }
        // Nothing of interest lies between.
        watcher.next = watcher.next.max(mark.first);
        watcher.until = mark.last;
        watcher.fresh = false;
        self.behind.insert((watcher.next, id));
        self.turn.push_back(id);
    }

    /// Something may have happened to anybody's keys.
    pub fn mark_all(&mut self, mark: Mark) {
        let ids: Vec<i64> = self.watchers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.mark(id, mark));
    }

    /// Every event up to `revision` has been marked.
    pub fn published(&mut self, revision: i64) {
        self.published = self.published.max(revision);
    }

    /// Watchers that are gone since the last call, for the hub to forget.
    pub fn take_withdrawn(&mut self) -> Vec<i64> {
        std::mem::take(&mut self.withdrawn)
    }

    /// The revision that a progress request waits for, while it is not published.
    pub fn awaits(&self) -> Option<i64> {
        self.progress_wanted.filter(|wanted| *wanted > self.published)
    }

    /// Announcements that wait. Take no more requests while there are many.
    pub fn announcements(&self) -> usize {
        self.announcements.len()
    }

    /// How many watchers there are.
    pub fn watchers(&self) -> usize {
        self.watchers.len()
    }

    /// Whether some watcher can only go on with [`Stream::pull_stored`].
    pub fn wants_storage(&self) -> bool {
        !self.deep.is_empty()
    }

    /// The next response, as far as it needs no page from storage.
    pub fn pull<S: Source>(&mut self, source: &S) -> Result<Pull, S::Error> {
        if let Some(response) = self.announcements.pop_front() {
            return Ok(Pull::Response(response));
        }
        if let Some(response) = self.progress() {
            return Ok(Pull::Response(response));
        }
        for _ in 0..IDLE_PAGES {
            let Some(id) = self.turn.pop_front() else {
                return Ok(Pull::Idle);
            };
            let Some((from, until, fresh)) = self.wanted(id) else {
                continue;
            };
            let compacted = fresh && from < source.compacted();
            match source.recent(from, until).filter(|_| !compacted) {
                None => self.deep.push_back(id),
                Some(page) => {
                    if let Some(response) = self.tell(id, &page, source)? {
                        return Ok(Pull::Response(response));
                    }
                }
            }
        }
        Ok(Pull::Again)
    }

    /// One page from storage for the watcher whose turn it is. This may block.
    pub fn pull_stored<S: Source>(&mut self, source: &S) -> Result<Option<Response>, S::Error> {
        let Some(id) = self.deep.pop_front() else {
            return Ok(None);
        };
        let Some((from, until, _)) = self.wanted(id) else {
            return Ok(None);
        };
        let page = if from < source.compacted() {
            None
        } else {
            source.stored(from, until)?
        };
        match page {
            Some(page) => self.tell(id, &page, source),
            None => {
                self.remove(id);
                let compacted = source.compacted();
                let reason = OpError::Compacted.text();
                Ok(Some(Response {
                    watch_id: id,
                    revision: self.published.max(self.told),
                    say: Say::Canceled {
                        reason,
                        compact_revision: compacted,
                    },
                }))
            }
        }
    }

    /// What a watcher reads next, if there is anything.
    fn wanted(&self, id: i64) -> Option<(i64, i64, bool)> {
        let watcher = self.watchers.get(&id)?;
        (watcher.enrolled && watcher.is_behind()).then_some((watcher.next, watcher.until, watcher.fresh))
    }

    /// Tells a watcher of one page, as much as fits into one response; the watcher gets another turn for the rest.
    fn tell<S: Source>(&mut self, id: i64, page: &Page, source: &S) -> Result<Option<Response>, S::Error> {
        let limit = self.limits.page_bytes;
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return Ok(None);
        };
        assert!(
            page.through >= watcher.next,
            "a page covers at least one revision"
        );
        self.behind.remove(&(watcher.next, id));
        let told = cut(watcher, page, limit, source)?;
        #[cfg(feature = "planted-bugs")]
        let told = spoil(told, watcher, self.planted);
        (watcher.next, watcher.told_of_next) = (told.next, told.of_next);
        watcher.fresh = false;
        if watcher.is_behind() {
            self.behind.insert((watcher.next, id));
            self.turn.push_back(id);
        }
        let Some(last) = told.events.last() else {
            return Ok(None);
        };
        watcher.told = true;
        self.told = self.told.max(last.event.kv.mod_revision);
        Ok(Some(Response {
            watch_id: id,
            revision: self.published.max(self.told),
            say: Say::Events {
                events: told.events,
                fragment: told.fragment,
            },
        }))
    }

    /// A progress notification that is due and true.
    fn progress(&mut self) -> Option<Response> {
        if let Some(wanted) = self.progress_wanted
            && let Some(revision) = self.complete().filter(|revision| *revision >= wanted)
        {
            self.progress_wanted = None;
            return Some(Response {
                watch_id: NO_WATCHER,
                revision,
                say: Say::Progress,
            });
        }
        while let Some(id) = self.notify.pop_front() {
            // One that is behind is told events instead, and one that begins in the future has no progress before that.
            if let Some(watcher) = self.watchers.get(&id)
                && watcher.enrolled
                && !watcher.is_behind()
                && watcher.next <= self.published + 1
                && watcher.start <= self.published
            {
                return Some(Response {
                    watch_id: id,
                    revision: self.published,
                    say: Say::Progress,
                });
            }
        }
        None
    }

    /// The revision up to which every watcher of the stream has been told everything, if that can be said: all have
    /// begun, and none was told more.
    fn complete(&mut self) -> Option<i64> {
        if self.watchers.is_empty() || self.enrolling > 0 {
            return None;
        }
        #[cfg(feature = "planted-bugs")]
        if self.planted == Some(PlantedBug::ProgressOvertakes) {
            return Some(self.published);
        }
        let first_missing = self.behind.first().map(|(next, _)| *next);
        let complete = first_missing.map_or(self.published, |next| self.published.min(next - 1));
        while self.to_begin.first().is_some_and(|(start, _)| *start <= complete) {
            self.to_begin.pop_first();
        }
        (complete >= self.told && self.to_begin.is_empty()).then_some(complete)
    }

    fn remove(&mut self, id: i64) -> bool {
        let Some(watcher) = self.watchers.remove(&id) else {
            return false;
        };
        self.enrolling -= usize::from(!watcher.enrolled);
        self.to_begin.remove(&(watcher.start, id));
        if self.behind.remove(&(watcher.next, id)) {
            // Another watcher may take the id: no turn of this one may be left.
            self.turn.retain(|other| *other != id);
            self.deep.retain(|other| *other != id);
        }
        self.withdrawn.push(id);
        true
    }

    fn announce(&mut self, watch_id: i64, revision: i64, say: Say) {
        self.announcements.push_back(Response {
            watch_id,
            revision,
            say,
        });
    }

    fn announce_canceled(&mut self, id: i64, now: i64, reason: &'static str, compact_revision: i64) {
        let say = Say::Canceled {
            reason,
            compact_revision,
        };
        self.announce(id, now, say);
    }
}

/// What of a page goes into one response.
struct Cut {
    events: Vec<WatchEvent>,
    /// More of the last revision follows.
    fragment: bool,
    /// Where the watcher stands then.
    next: i64,
    of_next: usize,
}

/// Takes from a page as many revisions as fit, at least one. A revision stays whole, unless the watcher takes
/// fragments: then one that is too large comes alone and in parts.
fn cut<S: Source>(watcher: &Watcher, page: &Page, limit: usize, source: &S) -> Result<Cut, S::Error> {
    let mut cut = Cut {
        events: Vec::new(),
        fragment: false,
        next: page.through.min(watcher.until) + 1,
        of_next: 0,
    };
    let mut bytes = 0;
    for change in &page.changes {
        let revision = change.revision;
        if revision > watcher.until {
            break;
        }
        let told = if revision == watcher.next {
            watcher.told_of_next
        } else {
            0
        };
        let before = cut.events.len();
        let wanted = change
            .events
            .iter()
            .filter(|event| watcher.interest.matches(event));
        for (place, event) in wanted.enumerate().skip(told) {
            let created = event.kind == EventKind::Put && event.kv.version == 1;
            let prev = if watcher.prev_kv && !created {
                source.before(event)?
            } else {
                None
            };
            let event = WatchEvent {
                event: event.clone(),
                prev,
            };
            let weight = event.weight();
            if bytes + weight > limit && before > 0 {
                // The revisions before fill the response: this one comes whole with the next.
                cut.events.truncate(before);
                (cut.next, cut.of_next) = (revision, 0);
                return Ok(cut);
            }
            if bytes + weight > limit && watcher.fragment && !cut.events.is_empty() {
                cut.fragment = true;
                (cut.next, cut.of_next) = (revision, place);
                return Ok(cut);
            }
            bytes += weight;
            cut.events.push(event);
        }
        if told > 0 || bytes >= limit {
            (cut.next, cut.of_next) = (revision + 1, 0);
            return Ok(cut);
        }
    }
    Ok(cut)
}

/// Makes a planted bug of what a response should say.
#[cfg(feature = "planted-bugs")]
fn spoil(mut told: Cut, watcher: &Watcher, bug: Option<PlantedBug>) -> Cut {
    let first = told.events.first().map(|event| event.event.kv.mod_revision);
    let one_revision = told
        .events
        .iter()
        .all(|event| Some(event.event.kv.mod_revision) == first);
    let half = told.events.len() / 2;
    match (bug, first) {
        (Some(PlantedBug::SplitRevision), Some(revision)) if one_revision && half > 0 && !told.fragment => {
            told.events.truncate(half);
            let before = if revision == watcher.next {
                watcher.told_of_next
            } else {
                0
            };
            (told.next, told.of_next) = (revision, before + half);
        }
        (Some(PlantedBug::PrevKvAfter), _) => {
            for event in told.events.iter_mut().filter(|event| event.prev.is_some()) {
                event.prev = Some(event.event.kv.clone());
            }
        }
        _ => {}
    }
    told
}
