//! Clients of the key-value store: one operation at a time each, at any member, and what they saw.

use std::collections::BTreeSet;

use chainfire_client::wire::etcdserverpb as pb;
use chainfire_core::OpError;
use chainfire_server::simulation::{Answer, Command};
use raft_host::{Input, ProposeError, Reply};
use testkit::sim::{Fault, GROUP, MS, SimRng, World};

use crate::ops::{Asked, Ops};
use crate::{Ask, Bug, Chainfire, Event};

/// After this long without an answer a client goes on; the outcome is unknown.
const PATIENCE_US: u64 = 3_500 * MS;

/// What came of an operation.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Wrote(Answer),
    Range(pb::RangeResponse),
    Read(pb::TxnResponse),
    Refused(OpError),
    /// It will never be applied.
    Dropped,
    /// Nobody knows.
    Unknown,
}

/// One operation.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) client: u32,
    pub(crate) node: u64,
    /// Which start of the node.
    pub(crate) life: u64,
    pub(crate) asked: Asked,
    pub(crate) called: u64,
    pub(crate) returned: u64,
    pub(crate) outcome: Outcome,
    /// Where in the log it stands, if it was acknowledged or refused there.
    pub(crate) index: u64,
}

#[derive(Debug)]
struct Running {
    op: u64,
    node: u64,
    life: u64,
    asked: Asked,
    called: u64,
}

#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) ops: Ops,
    running: Vec<Option<Running>>,
    next_op: u64,
    pub(crate) records: Vec<Record>,
    /// Entries of which a client was told that they never happen.
    pub(crate) dropped: BTreeSet<bytes::Bytes>,
    pub(crate) successes: u64,
    pub(crate) resting: bool,
}

impl Clients {
    pub(crate) fn new(clients: u32, rng: SimRng) -> Clients {
        Clients {
            ops: Ops::new(rng),
            running: (0..clients).map(|_| None).collect(),
            next_op: 1,
            records: Vec::new(),
            dropped: BTreeSet::new(),
            successes: 0,
            resting: false,
        }
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.running.len()).unwrap_or(0)
    }

    pub(crate) fn busy(&self) -> bool {
        self.running.iter().any(Option::is_some)
    }

    fn take(&mut self, client: u32, op: u64) -> Option<Running> {
        self.running
            .get_mut(client as usize)?
            .take_if(|running| running.op == op)
    }

    fn record(&mut self, client: u32, running: Running, returned: u64, outcome: Outcome, index: u64) {
        if let Some(revision) = revision_of(&outcome) {
            self.ops.revision = self.ops.revision.max(revision);
        }
        self.records.push(Record {
            client,
            node: running.node,
            life: running.life,
            asked: running.asked,
            called: running.called,
            returned,
            outcome,
            index,
        });
    }

    /// Operations still under way when the run ends.
    pub(crate) fn finish(&mut self, now: u64) {
        for client in 0..self.count() {
            if let Some(running) = self.running.get_mut(client as usize).and_then(Option::take) {
                self.record(client, running, now, Outcome::Unknown, 0);
            }
        }
    }
}

/// The revision in the header.
pub(crate) fn revision_of(outcome: &Outcome) -> Option<i64> {
    let header = match outcome {
        Outcome::Wrote(Answer::Done(revision)) => return Some(*revision),
        Outcome::Wrote(Answer::Put(reply)) => &reply.header,
        Outcome::Wrote(Answer::Delete(reply)) => &reply.header,
        Outcome::Wrote(Answer::Txn(reply)) => &reply.header,
        Outcome::Wrote(Answer::Granted(reply)) => &reply.header,
        Outcome::Range(reply) => &reply.header,
        Outcome::Read(reply) => &reply.header,
        Outcome::Refused(_) | Outcome::Dropped | Outcome::Unknown => return None,
    };
    header.as_ref().map(|header| header.revision)
}

/// A client looks for something to do.
pub(crate) fn act(world: &mut World<'_, Chainfire>, client: u32) {
    let clients = &world.service.clients;
    let busy = clients.running.get(client as usize).is_none_or(Option::is_some);
    if busy || clients.resting {
        return;
    }
    let up = world.up();
    let leader = world.leader();
    let now = world.now;
    let clients = &mut world.service.clients;
    let prefer = leader.filter(|_| clients.ops.rng().chance(400));
    let Some(node) = prefer.or_else(|| clients.ops.rng().pick(&up).copied()) else {
        world.schedule(now + 100 * MS, Event::Client { client });
        return;
    };
    let asked = clients.ops.next(now);
    let op = clients.next_op;
    clients.next_op += 1;
    let life = world.life(node);
    let running = Running {
        op,
        node,
        life,
        asked: asked.clone(),
        called: now,
    };
    if let Some(slot) = world.service.clients.running.get_mut(client as usize) {
        *slot = Some(running);
    }
    world.schedule(now + PATIENCE_US, Event::GiveUp { client, op });
    ask(world, client, op, node, &asked);
}

fn ask(world: &mut World<'_, Chainfire>, client: u32, op: u64, node: u64, asked: &Asked) {
    let to_follower = world.leader() != Some(node);
    let waiter = Ask::Operation {
        client,
        op,
        to_follower,
    };
    let stale = world.service.bug == Some(Bug::StaleRead);
    match asked {
        Asked::Write(command) => match command.encode() {
            Ok(data) => world.ask(node, waiter, |id| Input::Propose {
                group: GROUP,
                id,
                data,
            }),
            Err(error) => end(world, client, op, world.now, Outcome::Refused(error), 0),
        },
        Asked::Range(range) if range.serializable || stale => read(world, client, op, node, world.now),
        Asked::Range(_) | Asked::Read(_) => {
            world.ask(node, waiter, |id| Input::ReadIndex { group: GROUP, id });
        }
    }
}

/// Answers a read from a member's state as it is now.
fn read(world: &mut World<'_, Chainfire>, client: u32, op: u64, node: u64, at: u64) {
    let running = world
        .service
        .clients
        .running
        .get(client as usize)
        .and_then(Option::as_ref);
    let Some(asked) = running
        .filter(|running| running.op == op)
        .map(|running| running.asked.clone())
    else {
        return;
    };
    let Some(view) = world.view(node) else {
        return lost(world, client, op);
    };
    let outcome = match asked {
        Asked::Range(range) => view.member.range(range).map(Outcome::Range),
        Asked::Read(txn) => view.member.read_txn(txn).map(Outcome::Read),
        Asked::Write(_) => return,
    };
    end(world, client, op, at, outcome.unwrap_or_else(Outcome::Refused), 0);
}

/// The operation is over.
fn end(world: &mut World<'_, Chainfire>, client: u32, op: u64, at: u64, outcome: Outcome, index: u64) {
    let Some(running) = world.service.clients.take(client, op) else {
        return;
    };
    let pause = match &outcome {
        Outcome::Unknown | Outcome::Dropped => 50 * MS,
        _ => world.service.clients.ops.rng().below(40) * MS,
    };
    let known = !matches!(outcome, Outcome::Unknown | Outcome::Dropped);
    world.service.clients.successes += u64::from(known);
    world.note(&[
        u64::from(client),
        op,
        at,
        revision_of(&outcome).unwrap_or(0).cast_unsigned(),
    ]);
    count(world, &running.asked, &outcome);
    match (&running.asked, &outcome) {
        (Asked::Write(Command::Grant(grant)), Outcome::Wrote(Answer::Granted(reply))) => {
            crate::leases::granted(world, grant.id, reply.ttl, running.called, at);
        }
        (Asked::Write(Command::Revoke(revoke)), Outcome::Wrote(_)) => {
            crate::leases::revoked(world, revoke.id);
        }
        (Asked::Write(command), Outcome::Dropped) => {
            // Only what no other operation can look like: most have a value of their own.
            if let (Command::Put(put), Ok(entry)) = (command, command.encode())
                && !put.ignore_value
            {
                world.service.clients.dropped.insert(entry);
            }
        }
        _ => {}
    }
    world.service.clients.record(client, running, at, outcome, index);
    world.schedule(at + pause, Event::Client { client });
}

/// Counts kinds of answers that a whole run must contain.
fn count(world: &mut World<'_, Chainfire>, asked: &Asked, outcome: &Outcome) {
    let kind = match (asked, outcome) {
        (Asked::Write(_), Outcome::Unknown) => return world.faults.add(Fault::OutcomeUnknown, 1),
        (Asked::Range(range), Outcome::Range(_)) if range.serializable => "SerializableRead",
        (Asked::Range(range), Outcome::Range(_)) if range.revision > 0 => "PastRead",
        (Asked::Range(_), Outcome::Range(_)) => "LinearizableRead",
        (Asked::Range(_), Outcome::Refused(OpError::Compacted)) => "CompactedRead",
        (Asked::Range(_), Outcome::Refused(OpError::FutureRevision)) => "FutureRead",
        (Asked::Read(_), Outcome::Read(_)) => "ReadingTxn",
        (Asked::Write(Command::Txn(_)), Outcome::Wrote(_)) => "WritingTxn",
        (Asked::Write(Command::Compact(_)), Outcome::Wrote(_)) => "Compaction",
        (Asked::Write(Command::Revoke(_)), Outcome::Wrote(_)) => "LeaseRevoked",
        (Asked::Write(_), Outcome::Refused(_)) => "WriteRefused",
        _ => return,
    };
    world.faults.note(kind, 1);
}

/// A member's host answered.
pub(crate) fn answered(
    world: &mut World<'_, Chainfire>,
    client: u32,
    op: u64,
    node: u64,
    reply: Reply,
    at: u64,
) {
    match reply {
        Reply::Read(_, Ok(_)) => read(world, client, op, node, at),
        Reply::Proposed(_, Ok(applied)) => {
            let outcome = Answer::decode(&applied.response).map(Outcome::Wrote);
            end(
                world,
                client,
                op,
                at,
                outcome.unwrap_or_else(Outcome::Refused),
                applied.index,
            );
        }
        Reply::Proposed(_, Err(ProposeError::Unknown | ProposeError::Stopped)) => lost(world, client, op),
        _ => end(world, client, op, at, Outcome::Dropped, 0),
    }
}

/// Nobody will answer.
pub(crate) fn lost(world: &mut World<'_, Chainfire>, client: u32, op: u64) {
    end(world, client, op, world.now, Outcome::Unknown, 0);
}
