//! Dynamic updates (RFC 2136): from a signed message to one transaction.
//!
//! ```text
//!   listener ── Job ──> here: read ── rights ── fetch names ── prerequisites ── apply ── one guarded transaction
//! ```
//! A key acts with the rights of the principal that made it, name by name: what the API would refuse is refused here.
//! An update is made wholly or not at all, and its reply is sent when this server answers with it.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
};

use chainfire_client::{Compare, Op, Txn};
use flashdns_core::{
    DnsName, RrSet, transfer,
    tsig::Signer,
    update::{Update, is_update, rcode},
};
use hearth_service::tasks::{Kind, TaskError, Tasks, chain};
use iam_client::ResourceRef;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::{
    api::{App, MAX_NAMES_PER_ZONE, MAX_SETS_PER_NAME},
    keeper::Event,
    keys::KnownKey,
    metrics::UpdateLabels,
    record,
    server::Shared,
    signed::{self, Checked},
};

/// Updates that wait for their turn.
pub(crate) const QUEUE: usize = 128;
/// Updates that are worked on at once.
const MAX_RUNNING: usize = 16;
/// Times an update is tried again when others change the same names meanwhile.
const ATTEMPTS: usize = 8;
/// Signatures that are remembered, so that a message that comes again is not done again.
const MAX_SEEN: usize = 8192;
/// Bytes of values that one update may write; the store takes requests of 1.5 MiB.
const MAX_VALUE: usize = 1 << 20;
/// How long they are remembered: as long as the clocks of both sides may differ, twice.
const SEEN_S: u64 = 600;

/// An update whose signature is good.
#[derive(Debug)]
pub(crate) struct Job {
    message: Vec<u8>,
    client: IpAddr,
    known: KnownKey,
    signer: Signer,
    back: Back,
}

/// Where the reply goes.
#[derive(Debug)]
enum Back {
    Stream(oneshot::Sender<Vec<u8>>),
    Datagram(Arc<UdpSocket>, SocketAddr),
}

/// What became of a message at the listener.
pub(crate) enum Taken {
    /// The reply is written.
    Replied,
    /// It is in the queue; the reply comes later.
    Queued,
    /// The queue is full: whoever sent it tries again.
    Dropped,
}

/// What a listener does with an update that came as a datagram.
pub(crate) fn datagram(
    shared: &Shared,
    message: &[u8],
    socket: &Arc<UdpSocket>,
    client: SocketAddr,
    out: &mut Vec<u8>,
) -> Taken {
    let Some((known, signer)) = admit(shared, message, out) else {
        return Taken::Replied;
    };
    let job = Job {
        message: message.to_vec(),
        client: client.ip(),
        known,
        signer,
        back: Back::Datagram(socket.clone(), client),
    };
    match shared.updates.try_send(job) {
        Ok(()) => Taken::Queued,
        Err(_) => Taken::Dropped,
    }
}

/// Does an update that came on a stream; the reply is in `out`.
pub(crate) async fn on_stream(shared: &Shared, message: &[u8], client: IpAddr, out: &mut Vec<u8>) {
    let Some((known, signer)) = admit(shared, message, out) else {
        return;
    };
    let (back, reply) = oneshot::channel();
    let job = Job {
        message: message.to_vec(),
        client,
        known,
        signer,
        back: Back::Stream(back),
    };
    match (shared.updates.send(job).await, reply.await) {
        (Ok(()), Ok(reply)) => *out = reply,
        _ => transfer::refuse(message, rcode::SERVFAIL, out),
    }
}

/// Who sends it, when it is signed well; else the reply is in `out`. Without a signature nothing is changed.
fn admit(shared: &Shared, message: &[u8], out: &mut Vec<u8>) -> Option<(KnownKey, Signer)> {
    match signed::check(shared, message, out) {
        Checked::Good(known, signer) => Some((known, signer)),
        Checked::Refused => {
            count(shared, rcode::NOTAUTH);
            None
        }
        Checked::Unsigned => {
            count(shared, rcode::REFUSED);
            transfer::refuse(message, rcode::REFUSED, out);
            None
        }
    }
}

fn count(shared: &Shared, code: u16) {
    let rcode = match code {
        rcode::NOERROR => "NOERROR",
        rcode::FORMERR => "FORMERR",
        rcode::SERVFAIL => "SERVFAIL",
        rcode::NXDOMAIN => "NXDOMAIN",
        rcode::REFUSED => "REFUSED",
        rcode::YXDOMAIN => "YXDOMAIN",
        rcode::YXRRSET => "YXRRSET",
        rcode::NXRRSET => "NXRRSET",
        rcode::NOTAUTH => "NOTAUTH",
        rcode::NOTZONE => "NOTZONE",
        _ => "other",
    };
    shared
        .metrics
        .updates
        .get_or_create(&UpdateLabels { rcode })
        .inc();
}

/// Messages that were done, by their last bytes: the signature is the end of the message.
#[derive(Debug, Default)]
struct Seen(VecDeque<(u64, Box<[u8]>, u16)>);

/// Bytes of a message that tell it from any other: most of its signature.
const FINGERPRINT: usize = 80;

impl Seen {
    fn fingerprint(message: &[u8]) -> &[u8] {
        message
            .get(message.len().saturating_sub(FINGERPRINT)..)
            .unwrap_or(message)
    }

    fn find(&self, message: &[u8]) -> Option<u16> {
        let fingerprint = Self::fingerprint(message);
        let found = self.0.iter().find(|(_, known, _)| **known == *fingerprint);
        found.map(|(.., code)| *code)
    }

    /// Whether there is room; what is old goes.
    fn has_room(&mut self, now_s: u64) -> bool {
        while self.0.front().is_some_and(|(at, ..)| at + SEEN_S < now_s) {
            self.0.pop_front();
        }
        self.0.len() < MAX_SEEN
    }

    fn note(&mut self, message: &[u8], now_s: u64, code: u16) {
        self.0.push_back((now_s, Self::fingerprint(message).into(), code));
    }
}

/// Works on updates until the stop.
pub(crate) async fn run(
    app: App,
    shared: Arc<Shared>,
    mut jobs: mpsc::Receiver<Job>,
    tasks: Tasks,
) -> Result<(), TaskError> {
    let slots = Arc::new(Semaphore::new(MAX_RUNNING));
    let seen = Arc::new(Mutex::new(Seen::default()));
    loop {
        let job = tokio::select! {
            () = tasks.stopping() => return Ok(()),
            job = jobs.recv() => job,
        };
        let Some(job) = job else { return Ok(()) };
        let slot = slots.clone().acquire_owned().await?;
        let (app, shared, seen) = (app.clone(), shared.clone(), seen.clone());
        tasks.spawn("dns-update", Kind::Background, async move {
            finish(&app, &shared, &seen, job).await;
            drop(slot);
            Ok(())
        });
    }
}

async fn finish(app: &App, shared: &Shared, seen: &Mutex<Seen>, mut job: Job) {
    let lock = || seen.lock().unwrap_or_else(PoisonError::into_inner);
    let now_s = signed::now_s();
    let (known, has_room) = {
        let mut seen = lock();
        (seen.find(&job.message), seen.has_room(now_s))
    };
    let code = match known {
        // A repetition, by the sender for want of a reply, or by somebody else: the same reply, nothing done.
        Some(code) => code,
        None if !has_room => rcode::SERVFAIL,
        None => {
            let code = app.update(&job).await.err().unwrap_or(rcode::NOERROR);
            if code != rcode::SERVFAIL {
                lock().note(&job.message, now_s, code);
            }
            code
        }
    };
    count(shared, code);
    let mut reply = Vec::new();
    transfer::refuse(&job.message, code, &mut reply);
    job.signer.sign(&mut reply, signed::now_s());
    match job.back {
        // A client that has gone needs no reply.
        Back::Stream(back) => drop(back.send(reply)),
        Back::Datagram(socket, client) => {
            if socket.send_to(&reply, client).is_err() {
                shared.metrics.send_failures.inc();
            }
        }
    }
}

/// What a name holds in the store, and its revision there.
type Held = BTreeMap<DnsName, (Vec<RrSet>, i64)>;

impl App {
    /// Does an update; the error is the response code.
    async fn update(&self, job: &Job) -> Result<(), u16> {
        debug_assert!(is_update(&job.message));
        let update = Update::read(&job.message)?;
        let is_zone =
            self.zones.has_apex(update.zone()) || self.zones.project_of_zone(update.zone()).is_some();
        if !is_zone || self.zones.zone_of(update.zone()).is_none() {
            return Err(rcode::NOTAUTH);
        }
        self.permit(&update, job)?;
        for _ in 0..ATTEMPTS {
            if self.attempt(&update, job).await? {
                return Ok(());
            }
        }
        tracing::warn!(zone = %update.zone(), "others keep changing what an update concerns");
        Err(rcode::SERVFAIL)
    }

    /// Whether the key's principal may make every change.
    fn permit(&self, update: &Update, job: &Job) -> Result<(), u16> {
        let refused = |why: &dyn std::fmt::Display| {
            tracing::info!(key = %job.known.key.name(), actor = job.known.owner_name, client = %job.client, %why, "update refused");
            rcode::REFUSED
        };
        let actor = self
            .authorizer
            .vouch(&job.known.owner)
            .map_err(|why| refused(&why))?;
        for change in update.changes() {
            let action = if change.adds() {
                "dns.record.create"
            } else {
                "dns.record.delete"
            };
            let zone = self.zones.zone_of(change.name()).ok_or(rcode::NOTAUTH)?;
            if let (true, Some(rtype)) = (change.adds(), change.rtype())
                && rtype != flashdns_core::Rtype::SOA
            {
                self.zones
                    .refuse(&zone, change.name(), rtype)
                    .map_err(|why| refused(&why))?;
            }
            let allowed = match self.zones.project_of_zone(&zone) {
                Some(project) if !self.zones.has_apex(&zone) => self
                    .authorizer
                    .check_project(&actor, action, &project)
                    .map(|_| ())
                    .map_err(|error| error.to_string()),
                _ => self
                    .authorizer
                    .check(&actor, action, &ResourceRef::Root)
                    .map(|_| ())
                    .map_err(|denied| denied.to_string()),
            };
            allowed.map_err(|why| refused(&why))?;
        }
        Ok(())
    }

    /// Tries once; `false`: somebody changed the same names meanwhile.
    async fn attempt(&self, update: &Update, job: &Job) -> Result<bool, u16> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            tracing::warn!(zone = %update.zone(), error = %chain(error), "an update failed");
            rcode::SERVFAIL
        };
        let mut held = Held::new();
        for name in update.names() {
            let zone = self.zones.zone_of(name).ok_or(rcode::NOTZONE)?;
            let found = self.store.get(record::key(&zone, name)).await;
            let value = match found.map_err(|error| failed(&error))? {
                Some(kv) => {
                    let sets = record::parse_value(&kv.value).map_err(|error| failed(&error))?;
                    (sets, kv.mod_revision)
                }
                None => (Vec::new(), 0),
            };
            held.insert(name.clone(), value);
        }
        // Prerequisites are about what is answered, running VMs included.
        let stored = held.iter().map(|(name, (sets, _))| (name.clone(), sets.clone()));
        let (reply, answer) = oneshot::channel();
        let question = Event::Answers {
            stored: stored.collect(),
            reply,
        };
        self.keeper.send(question).await.map_err(|_| rcode::SERVFAIL)?;
        let answers = answer.await.map_err(|_| rcode::SERVFAIL)?;
        update.check(|name| answers.get(name).cloned().unwrap_or_default())?;
        let mut sets: BTreeMap<DnsName, Vec<RrSet>> = held
            .iter()
            .map(|(name, (sets, _))| (name.clone(), sets.clone()))
            .collect();
        update.apply(&mut sets)?;
        let (mut ops, mut size, mut added) = (Vec::new(), 0, 0);
        for (name, sets) in &sets {
            let Some((before, _)) = held.get(name) else {
                continue;
            };
            if before == sets {
                continue;
            }
            let zone = self.zones.zone_of(name).ok_or(rcode::NOTZONE)?;
            let key = record::key(&zone, name);
            if sets.is_empty() {
                ops.push(Op::delete(&key));
                continue;
            }
            let value = record::value(sets).map_err(|error| failed(&error))?;
            if sets.len() > MAX_SETS_PER_NAME || value.len() > MAX_VALUE {
                return Err(rcode::REFUSED);
            }
            size += value.len();
            if before.is_empty() {
                added += 1;
                let page = self.names(&zone, None, 0).await.map_err(|_| rcode::SERVFAIL)?;
                if page.stored + added > MAX_NAMES_PER_ZONE {
                    return Err(rcode::REFUSED);
                }
            }
            ops.push(Op::put(&key, value));
        }
        if size > MAX_VALUE {
            return Err(rcode::REFUSED);
        }
        if ops.is_empty() {
            return Ok(true);
        }
        let mut unchanged = Vec::with_capacity(held.len());
        for (name, (_, revision)) in &held {
            let zone = self.zones.zone_of(name).ok_or(rcode::NOTZONE)?;
            unchanged.push(Compare::mod_revision(record::key(&zone, name)).equal(*revision));
        }
        let count = ops.len();
        let done = self.store.txn(Txn::new().when(unchanged).then(ops)).await;
        let done = done.map_err(|error| failed(&error))?;
        if !done.succeeded {
            return Ok(false);
        }
        tracing::info!(
            key = %job.known.key.name(), actor = job.known.owner_name, client = %job.client, zone = %update.zone(),
            names = count, revision = done.revision, "updated"
        );
        self.served(done.revision).await;
        Ok(true)
    }
}
