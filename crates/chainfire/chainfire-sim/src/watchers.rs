//! Watching clients: streams with several watchers at any member, read at any speed, broken and resumed.
//!
//! ```text
//!   member's revision ──> Session {stream: the server's core, seen} ──pull──> in flight (few) ──> client: next, record
//! ```

use bytes::Bytes;
use chainfire_core::KeyRange;
use chainfire_core::watch::{Create, Interest, Limits, Mark, NO_WATCHER, Pull, Response, Say, Stream};
use testkit::sim::{MS, SimRng, World};

use crate::{Chainfire, Event};

/// Watching clients.
const CLIENTS: usize = 3;
/// Watchers of each.
const WATCHERS: u64 = 3;
/// Responses under way to one client.
const IN_FLIGHT: usize = 4;
/// Bounds of a stream: so few bytes that revisions have to be cut.
const LIMITS: Limits = Limits {
    watchers: 8,
    page_bytes: 400,
};
/// Bounds one pump: the task gives way.
const PULLS: usize = 64;

/// What a client wants to watch, over all its connections.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) key: Bytes,
    pub(crate) range_end: Bytes,
    pub(crate) no_put: bool,
    pub(crate) no_delete: bool,
    pub(crate) prev_kv: bool,
    pub(crate) fragment: bool,
    pub(crate) progress_notify: bool,
}

/// A watcher on one connection, with everything that it was told.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) wish: Wish,
    pub(crate) node: u64,
    pub(crate) session: u64,
    /// The start that was asked for; 0: from now on.
    pub(crate) start: i64,
    /// Responses with their time, announcements included.
    pub(crate) told: Vec<(u64, Response)>,
    /// It is open at the end of the run.
    pub(crate) open: bool,
}

/// A wish as its client carries it from connection to connection.
#[derive(Debug)]
struct Logical {
    wish: Wish,
    /// Where it goes on; 0: from now on.
    next: i64,
    /// Its watcher on the present connection.
    current: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct Session {
    number: u64,
    node: u64,
    life: u64,
    stream: Stream,
    /// Revision that the stream knows to be published.
    seen: i64,
    in_flight: usize,
    /// Watchers that the member does not know yet.
    enrolling: usize,
    last_arrival: u64,
    pump_at: Option<u64>,
    stored_at: Option<u64>,
    /// Microseconds that this client takes for a response, at most.
    slowness: u64,
}

#[derive(Debug)]
struct Client {
    session: Option<Session>,
    logical: Vec<Logical>,
}

#[derive(Debug)]
pub(crate) struct Watchers {
    rng: SimRng,
    clients: Vec<Client>,
    pub(crate) all: Vec<Watcher>,
    sessions: u64,
}

impl Watchers {
    pub(crate) fn new(mut rng: SimRng) -> Watchers {
        let clients = (0..CLIENTS).map(|_| Client {
            session: None,
            logical: (0..rng.between(1, WATCHERS))
                .map(|_| Logical::new(&mut rng, 0))
                .collect(),
        });
        Watchers {
            clients: clients.collect(),
            rng,
            all: Vec::new(),
            sessions: 0,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.clients.len()
    }

    fn session(&mut self, client: usize, number: u64) -> Option<&mut Session> {
        let session = self.clients.get_mut(client)?.session.as_mut()?;
        (session.number == number).then_some(session)
    }

    /// Whether some watcher may still be told something.
    pub(crate) fn busy(&self, published: impl Fn(u64) -> Option<i64>) -> bool {
        self.clients.iter().any(|client| {
            client.session.as_ref().is_none_or(|session| {
                session.in_flight > 0
                    || session.enrolling > 0
                    || session.pump_at.is_some()
                    || session.stored_at.is_some()
                    || published(session.node).is_none_or(|revision| revision > session.seen)
            })
        })
    }

    /// Marks the watchers that are open now.
    pub(crate) fn finish(&mut self) {
        for client in &self.clients {
            for current in client.logical.iter().filter_map(|logical| logical.current) {
                if let Some(watcher) = self.all.get_mut(current) {
                    watcher.open = client.session.is_some();
                }
            }
        }
    }
}

impl Logical {
    fn new(rng: &mut SimRng, revision: i64) -> Logical {
        let key = |number: u64| Bytes::from(format!("k/{number}"));
        let start = rng.below(6);
        let (key, range_end) = match rng.below(4) {
            0 | 1 => ("k/".into(), "k0".into()),
            2 => (key(start), Bytes::new()),
            _ => (key(start), key(start + 1 + rng.below(4))),
        };
        let next = match rng.below(5) {
            // In the past (compacted, perhaps), or in the future.
            0 | 1 if revision > 0 => (revision - 30 + i64::try_from(rng.below(45)).unwrap_or(0)).max(1),
            _ => 0,
        };
        let filter = rng.below(6);
        Logical {
            wish: Wish {
                key,
                range_end,
                no_put: filter == 0,
                no_delete: filter == 1,
                prev_kv: rng.chance(500),
                fragment: rng.chance(400),
                progress_notify: rng.chance(500),
            },
            next,
            current: None,
        }
    }
}

/// A client connects, breaks, asks or waits.
pub(crate) fn act(world: &mut World<'_, Chainfire>, client: usize) {
    let pause = world.service.watchers.rng.between(100, 900) * MS;
    world.schedule(world.now + pause, Event::Watch { client });
    let resting = world.service.clients.resting;
    let connected = session_lives(world, client);
    if !connected {
        drop_session(world, client);
        return connect(world, client);
    }
    create_missing(world, client);
    let watchers = &mut world.service.watchers;
    let now = watchers.rng.below(100);
    if let Some(session) = watchers.clients.get_mut(client).and_then(|c| c.session.as_mut()) {
        // Slow for a while, and then quick again.
        session.slowness = match watchers.rng.below(6) {
            0 if !resting => 900 * MS,
            1 if !resting => 200 * MS,
            _ => 3 * MS,
        };
    }
    match now {
        0..=9 if !resting => drop_session(world, client),
        10..=15 if !resting => replace_one(world, client),
        16..=45 => progress(world, client, true),
        46..=65 => progress(world, client, false),
        _ => {}
    }
}

fn session_lives(world: &World<'_, Chainfire>, client: usize) -> bool {
    let session = world
        .service
        .watchers
        .clients
        .get(client)
        .and_then(|c| c.session.as_ref());
    let resting = world.service.clients.resting;
    session.is_some_and(|s| {
        // In the end clients leave a member that has been removed and does not know it.
        world.view(s.node).is_some() && world.life(s.node) == s.life && (!resting || world.is_member(s.node))
    })
}

/// The connection is gone, and with it what was on its way.
fn drop_session(world: &mut World<'_, Chainfire>, client: usize) {
    let watchers = &mut world.service.watchers;
    if let Some(client) = watchers.clients.get_mut(client)
        && client.session.take().is_some()
    {
        client
            .logical
            .iter_mut()
            .for_each(|logical| logical.current = None);
        world.faults.note("WatchBroken", 1);
    }
}

fn connect(world: &mut World<'_, Chainfire>, client: usize) {
    let up = world.up();
    // One that waits to be a member would keep its watchers from ever being told everything.
    let resting = world.service.clients.resting;
    let members: Vec<u64> = up
        .into_iter()
        .filter(|node| !resting || world.is_member(*node))
        .collect();
    let Some(node) = world.service.watchers.rng.pick(&members).copied() else {
        return;
    };
    let Some(seen) = world.view(node).map(|view| view.member.published()) else {
        return;
    };
    let life = world.life(node);
    let now = world.now;
    let watchers = &mut world.service.watchers;
    watchers.sessions += 1;
    let mut stream = Stream::new(LIMITS, seen);
    if let Some(bug) = world.service.bug.and_then(crate::Bug::stream) {
        stream.plant(bug);
    }
    let session = Session {
        number: watchers.sessions,
        node,
        life,
        stream,
        seen,
        in_flight: 0,
        enrolling: 0,
        last_arrival: now,
        pump_at: None,
        stored_at: None,
        slowness: 3 * MS,
    };
    if let Some(client) = watchers.clients.get_mut(client) {
        client.session = Some(session);
    }
    create_missing(world, client);
}

/// Creates what the client wants and the connection does not have.
fn create_missing(world: &mut World<'_, Chainfire>, client: usize) {
    let session = world
        .service
        .watchers
        .clients
        .get(client)
        .and_then(|c| c.session.as_ref());
    let Some((node, number)) = session.map(|s| (s.node, s.number)) else {
        return;
    };
    let Some(now) = world.view(node).map(|view| view.member.revision()) else {
        return;
    };
    let at = world.now;
    let watchers = &mut world.service.watchers;
    let Some(it) = watchers.clients.get_mut(client) else {
        return;
    };
    let mut enrolled = Vec::new();
    let mut resumed = 0;
    for logical in &mut it.logical {
        let Some(session) = it.session.as_mut().filter(|_| logical.current.is_none()) else {
            continue;
        };
        logical.current = Some(watchers.all.len());
        let wish = &logical.wish;
        let create = Create {
            // The watcher's place, so that responses find it.
            watch_id: i64::try_from(watchers.all.len()).unwrap_or(0) + 1,
            interest: Interest {
                keys: KeyRange::new(wish.key.clone(), wish.range_end.clone()),
                no_put: wish.no_put,
                no_delete: wish.no_delete,
            },
            start_revision: logical.next,
            prev_kv: wish.prev_kv,
            fragment: wish.fragment,
            progress_notify: wish.progress_notify,
        };
        resumed += u64::from(logical.next > 0);
        watchers.all.push(Watcher {
            wish: wish.clone(),
            node,
            session: number,
            start: logical.next,
            told: Vec::new(),
            open: false,
        });
        if let Some(enrol) = session.stream.create(create, now, Ok(())) {
            let later = at + watchers.rng.below(5 * MS);
            session.enrolling += 1;
            enrolled.push((later, enrol.watch_id));
        }
    }
    world.faults.note("WatchResumed", resumed);
    for (later, watch_id) in enrolled {
        world.schedule(
            later,
            Event::Enrolled {
                client,
                session: number,
                watch_id,
            },
        );
    }
    pump_at(world, client, at);
}

/// One watcher is cancelled, and another begun.
fn replace_one(world: &mut World<'_, Chainfire>, client: usize) {
    let revision = world.service.clients.ops.revision;
    let watchers = &mut world.service.watchers;
    let Some(it) = watchers.clients.get_mut(client) else {
        return;
    };
    let place = usize::try_from(watchers.rng.below(it.logical.len() as u64)).unwrap_or(0);
    let new = Logical::new(&mut watchers.rng, revision);
    let Some(old) = it.logical.get_mut(place) else {
        return;
    };
    let old = std::mem::replace(old, new);
    let now = it.session.as_ref().map(|session| session.seen).unwrap_or(0);
    if let (Some(current), Some(session)) = (old.current, it.session.as_mut()) {
        session
            .stream
            .cancel(i64::try_from(current).unwrap_or(0) + 1, now);
    }
    world.faults.note("WatchCancelled", 1);
    create_missing(world, client);
}

/// The client asks for progress, or the period of notifications is over.
fn progress(world: &mut World<'_, Chainfire>, client: usize, asked: bool) {
    let session = world
        .service
        .watchers
        .clients
        .get(client)
        .and_then(|c| c.session.as_ref());
    let revision = session
        .and_then(|s| world.view(s.node))
        .map(|view| view.member.revision());
    let session = world
        .service
        .watchers
        .clients
        .get_mut(client)
        .and_then(|c| c.session.as_mut());
    if let (Some(session), Some(revision)) = (session, revision) {
        if asked {
            session.stream.request_progress(revision);
        } else {
            session.stream.notify_progress();
        }
    }
    pump_at(world, client, world.now);
}

/// The member knows the watcher from now on.
pub(crate) fn enrolled(world: &mut World<'_, Chainfire>, client: usize, number: u64, watch_id: i64) {
    feed(world, client, number);
    if let Some(session) = world.service.watchers.session(client, number) {
        let seen = session.seen;
        session.enrolling -= 1;
        session.stream.enrolled(watch_id, seen);
    }
    pump_at(world, client, world.now);
}

/// A member has done something: its streams hear of new revisions.
pub(crate) fn after_round(world: &mut World<'_, Chainfire>, node: u64, at: u64) {
    let Some(published) = world.view(node).map(|view| view.member.published()) else {
        return;
    };
    for client in 0..world.service.watchers.count() {
        let session = world
            .service
            .watchers
            .clients
            .get(client)
            .and_then(|c| c.session.as_ref());
        if session.is_some_and(|s| s.node == node && s.seen < published) {
            let later = at + world.service.watchers.rng.below(3 * MS);
            pump_at(world, client, later);
        }
    }
}

fn pump_at(world: &mut World<'_, Chainfire>, client: usize, at: u64) {
    let session = world
        .service
        .watchers
        .clients
        .get_mut(client)
        .and_then(|c| c.session.as_mut());
    let Some(session) = session.filter(|session| session.pump_at.is_none_or(|already| at < already)) else {
        return;
    };
    session.pump_at = Some(at);
    let number = session.number;
    world.schedule(
        at,
        Event::Pump {
            client,
            session: number,
        },
    );
}

/// Tells a stream what has been published.
fn feed(world: &mut World<'_, Chainfire>, client: usize, number: u64) -> Option<u64> {
    let session = world.service.watchers.session(client, number)?;
    let (node, life) = (session.node, session.life);
    let published = world.view(node).map(|view| view.member.published())?;
    if world.life(node) != life {
        return None;
    }
    let pieces = world.service.watchers.rng.chance(500);
    let session = world.service.watchers.session(client, number)?;
    while session.seen < published {
        let last = if pieces { session.seen + 1 } else { published };
        session.stream.mark_all(Mark {
            first: session.seen + 1,
            last,
        });
        session.stream.published(last);
        session.seen = last;
    }
    Some(node)
}

/// The task of a stream runs.
pub(crate) fn pump(world: &mut World<'_, Chainfire>, client: usize, number: u64) {
    let now = world.now;
    match world.service.watchers.session(client, number) {
        Some(session) if session.pump_at.is_some_and(|at| at <= now) => session.pump_at = None,
        _ => return,
    }
    let Some(node) = feed(world, client, number) else {
        return;
    };
    if world.free_at(node) > now {
        let at = world.free_at(node);
        return pump_at(world, client, at);
    }
    for _ in 0..PULLS {
        let Some(member) = world.view(node).map(|view| view.member.clone()) else {
            return;
        };
        let Some(session) = world.service.watchers.session(client, number) else {
            return;
        };
        if session.in_flight >= IN_FLIGHT {
            world.faults.note("WatchClientSlow", 1);
            return;
        }
        match session.stream.pull(&member) {
            Ok(Pull::Response(response)) => send(world, client, number, response),
            Ok(Pull::Again) => {}
            Ok(Pull::Idle) => return read_storage(world, client, number),
            Err(error) => return world.fail(format!("a watch stream of node {node} failed: {error}")),
        }
    }
    pump_at(world, client, now + MS);
}

/// The stream waits for a thread that may block.
fn read_storage(world: &mut World<'_, Chainfire>, client: usize, number: u64) {
    let now = world.now;
    let delay = world.service.watchers.rng.below(20 * MS);
    let Some(session) = world.service.watchers.session(client, number) else {
        return;
    };
    if session.stream.wants_storage() && session.stored_at.is_none() {
        session.stored_at = Some(now + delay);
        world.schedule(
            now + delay,
            Event::Stored {
                client,
                session: number,
            },
        );
    }
}

/// A page from storage.
pub(crate) fn stored(world: &mut World<'_, Chainfire>, client: usize, number: u64) {
    let Some(session) = world.service.watchers.session(client, number) else {
        return;
    };
    session.stored_at = None;
    let node = session.node;
    if world.free_at(node) > world.now {
        let at = world.free_at(node);
        if let Some(session) = world.service.watchers.session(client, number) {
            session.stored_at = Some(at);
        }
        return world.schedule(
            at,
            Event::Stored {
                client,
                session: number,
            },
        );
    }
    let Some(member) = world.view(node).map(|view| view.member.clone()) else {
        return;
    };
    let Some(session) = world.service.watchers.session(client, number) else {
        return;
    };
    if session.in_flight < IN_FLIGHT {
        match session.stream.pull_stored(&member) {
            Ok(Some(response)) => {
                world.faults.note("WatchFromStorage", 1);
                send(world, client, number, response);
            }
            Ok(None) => {}
            Err(error) => return world.fail(format!("a watch stream of node {node} failed: {error}")),
        }
    }
    pump_at(world, client, world.now);
}

fn send(world: &mut World<'_, Chainfire>, client: usize, number: u64, response: Response) {
    let now = world.now;
    let watchers = &mut world.service.watchers;
    let slowness = watchers
        .session(client, number)
        .map_or(0, |session| session.slowness);
    let delay = 100 + watchers.rng.below(slowness);
    let Some(session) = watchers.session(client, number) else {
        return;
    };
    session.in_flight += 1;
    session.last_arrival = session.last_arrival.max(now) + delay;
    let at = session.last_arrival;
    let response = Box::new(response);
    world.schedule(
        at,
        Event::Told {
            client,
            session: number,
            response,
        },
    );
}

/// A response arrives.
pub(crate) fn told(world: &mut World<'_, Chainfire>, client: usize, number: u64, response: Response) {
    let now = world.now;
    world.note(&[
        client as u64,
        response.watch_id.cast_unsigned(),
        response.revision.cast_unsigned(),
    ]);
    let watchers = &mut world.service.watchers;
    let Some(session) = watchers.session(client, number) else {
        return;
    };
    session.in_flight -= 1;
    let Some(it) = watchers.clients.get_mut(client) else {
        return;
    };
    let place = usize::try_from(response.watch_id - 1).ok();
    if let Say::Refused { reason } = response.say {
        return world.fail(format!("a watcher was refused: {reason}"));
    }
    let stream_wide = response.watch_id == NO_WATCHER && response.say == Say::Progress;
    let mut kind = None;
    for logical in &mut it.logical {
        let Some(watcher) = logical.current.and_then(|current| watchers.all.get_mut(current)) else {
            continue;
        };
        let created = watcher.told.iter().any(|(_, told)| told.say == Say::Created);
        if (stream_wide && created) || logical.current == place {
            watcher.told.push((now, response.clone()));
            kind = Some(logical.hears(&response));
        }
    }
    if let Some(watcher) = place.and_then(|place| watchers.all.get_mut(place))
        && kind.is_none()
    {
        // Cancelled meanwhile.
        watcher.told.push((now, response));
    }
    if let Some(kind) = kind {
        world.faults.note(kind, 1);
    }
    pump_at(world, client, now);
}

impl Logical {
    /// Moves on; what happened, for the count.
    fn hears(&mut self, response: &Response) -> &'static str {
        match &response.say {
            Say::Created => {
                if self.next == 0 {
                    self.next = response.revision + 1;
                }
                "WatchCreated"
            }
            Say::Progress => {
                self.next = self.next.max(response.revision + 1);
                "WatchProgress"
            }
            Say::Events { events, fragment } => {
                let last = events.last().map_or(0, |event| event.event.kv.mod_revision);
                // A revision that came in part begins anew after a break.
                self.next = last + i64::from(!*fragment);
                if *fragment { "WatchFragment" } else { "WatchEvents" }
            }
            Say::Canceled { compact_revision, .. } => {
                self.current = None;
                self.next = (*compact_revision).max(self.next);
                "WatchCompacted"
            }
            Say::Refused { .. } => "WatchRefused",
        }
    }
}
