//! Clients: one operation at a time each, on any member, and what they saw.

use std::collections::BTreeSet;

use raft_host::{Input, ProposeError, Reply};

use super::history::{Op, Record};
use super::machine::Command;
use super::{Ask, Event, Registers};
use crate::sim::faults::Fault;
use crate::sim::node::GROUP;
use crate::sim::options::Options;
use crate::sim::rng::SimRng;
use crate::sim::world::{MS, World};

/// After this long without an answer a client goes on; the outcome is unknown.
const PATIENCE_US: u64 = 3_500 * MS;
/// Registers used at one time. They change every few seconds, so that an operation with an unknown outcome, which
/// may take effect for ever after, cannot make later searches long.
const KEYS: u64 = 3;
const KEY_EPOCH_US: u64 = 4_000 * MS;

#[derive(Clone, Copy, Debug)]
enum Asked {
    Put(u64),
    Get,
    Cas(u64, u64),
}

#[derive(Clone, Copy, Debug)]
struct Running {
    op: u64,
    key: u64,
    asked: Asked,
    called: u64,
}

#[derive(Debug)]
pub(crate) struct Clients {
    rng: SimRng,
    running: Vec<Option<Running>>,
    next_op: u64,
    /// The last value that anybody wrote to each key in use, to make exchanges that succeed.
    recent: Vec<u64>,
    pub(crate) records: Vec<Record>,
    /// Operations of which a client was told that they never happen.
    refused: BTreeSet<u64>,
    pub(crate) successes: u64,
    resting: bool,
}

impl Clients {
    pub(crate) fn new(options: &Options, rng: SimRng) -> Clients {
        Clients {
            rng,
            running: vec![None; options.clients as usize],
            next_op: 1,
            recent: vec![0; KEYS as usize],
            records: Vec::new(),
            refused: BTreeSet::new(),
            successes: 0,
            resting: false,
        }
    }

    fn take(&mut self, client: u32, op: u64) -> Option<Running> {
        self.running.get_mut(client as usize)?.take_if(|r| r.op == op)
    }

    /// No new operations from now on.
    pub(crate) fn rest(&mut self) {
        self.resting = true;
    }

    /// Whether an operation is under way.
    pub(crate) fn busy(&self) -> bool {
        self.running.iter().any(Option::is_some)
    }

    /// Operations still under way when the run ends.
    pub(crate) fn finish(&mut self) {
        for client in 0..self.running.len() {
            if let Some(running) = self.running.get_mut(client).and_then(Option::take) {
                self.unknown(u32::try_from(client).unwrap_or(0), running);
            }
        }
    }

    /// Notes an operation that may or may not have happened; a read that nobody answered says nothing.
    fn unknown(&mut self, client: u32, running: Running) -> bool {
        let op = match running.asked {
            Asked::Put(value) => Op::Put(value),
            Asked::Cas(old, new) => Op::Cas(old, new, None),
            Asked::Get => return false,
        };
        self.records.push(Record {
            client,
            key: running.key,
            op,
            called: running.called,
            returned: None,
        });
        true
    }
}

impl World<'_, Registers> {
    pub(crate) fn client_acts(&mut self, client: u32) {
        let free = self
            .service
            .clients
            .running
            .get(client as usize)
            .is_some_and(Option::is_none);
        if !free || self.service.clients.resting {
            return;
        }
        let up = self.up();
        let leader = self.leader();
        let clients = &mut self.service.clients;
        let prefer = leader.filter(|_| clients.rng.chance(500));
        let Some(node) = prefer.or_else(|| clients.rng.pick(&up).copied()) else {
            self.schedule(self.now + 100 * MS, Event::Client { client });
            return;
        };
        let slot = clients.rng.below(KEYS);
        let key = self.now / KEY_EPOCH_US * KEYS + slot;
        let op = clients.next_op;
        clients.next_op += 1;
        let recent = clients.recent.get_mut(slot as usize);
        let asked = match clients.rng.below(10) {
            0..=3 => Asked::Put(op),
            4..=7 => Asked::Get,
            _ => Asked::Cas(recent.as_ref().map_or(0, |r| **r), op),
        };
        if let (Some(recent), Asked::Put(_) | Asked::Cas(..)) = (recent, asked) {
            *recent = op;
        }
        if let Some(running) = clients.running.get_mut(client as usize) {
            *running = Some(Running {
                op,
                key,
                asked,
                called: self.now,
            });
        }
        self.schedule(self.now + PATIENCE_US, Event::GiveUp { client, op });
        if matches!(asked, Asked::Get) && self.service.stale_reads {
            self.finish_read(client, op, node, self.now + 50);
            return;
        }
        let waiter = Ask {
            client,
            op,
            to_follower: leader != Some(node),
        };
        let command = match asked {
            Asked::Get => None,
            Asked::Put(value) => Some(Command::Put { op, key, value }),
            Asked::Cas(old, new) => Some(Command::Cas { op, key, old, new }),
        };
        self.ask(node, waiter, |id| match command {
            None => Input::ReadIndex { group: GROUP, id },
            Some(command) => Input::Propose {
                group: GROUP,
                id,
                data: command.encode(),
            },
        });
    }

    /// Reads the register from a member's state as it is now.
    fn finish_read(&mut self, client: u32, op: u64, node: u64, at: u64) {
        let Some(running) = self.service.clients.take(client, op) else {
            return;
        };
        if let Some(Ok(value)) = self.view(node).map(|v| v.get(running.key)) {
            self.done(client, running, Op::Get(value), at);
        }
        self.think(client, at);
    }

    fn done(&mut self, client: u32, running: Running, op: Op, at: u64) {
        self.service.clients.successes += 1;
        self.note(&[u64::from(client), running.op, at]);
        self.service.clients.records.push(Record {
            client,
            key: running.key,
            op,
            called: running.called,
            returned: Some(at),
        });
    }

    fn think(&mut self, client: u32, at: u64) {
        let pause = self.service.clients.rng.below(60) * MS;
        self.schedule(at + pause, Event::Client { client });
    }

    pub(crate) fn client_reply(&mut self, client: u32, op: u64, node: u64, reply: Reply, at: u64) {
        match reply {
            Reply::Read(_, Ok(_)) => self.finish_read(client, op, node, at),
            Reply::Proposed(_, Ok(applied)) => {
                let Some(running) = self.service.clients.take(client, op) else {
                    return;
                };
                let exchanged = applied.response.first().map(|done| *done == 1);
                let seen = match running.asked {
                    Asked::Put(value) => Op::Put(value),
                    Asked::Cas(old, new) => Op::Cas(old, new, exchanged),
                    Asked::Get => return,
                };
                self.done(client, running, seen, at);
                self.think(client, at);
            }
            Reply::Proposed(_, Err(ProposeError::Unknown | ProposeError::Stopped)) => {
                self.client_lost(client, op);
            }
            Reply::Proposed(_, Err(_)) => {
                self.service.clients.refused.insert(op);
                self.service.clients.take(client, op);
                self.think(client, at + 50 * MS);
            }
            _ => {
                self.service.clients.take(client, op);
                self.think(client, at + 50 * MS);
            }
        }
    }

    /// The member that was asked is gone, or does not know.
    pub(crate) fn client_lost(&mut self, client: u32, op: u64) {
        let Some(running) = self.service.clients.take(client, op) else {
            return;
        };
        let unknown = self.service.clients.unknown(client, running);
        self.faults.add(Fault::OutcomeUnknown, u64::from(unknown));
        self.think(client, self.now + 50 * MS);
    }

    pub(crate) fn client_gives_up(&mut self, client: u32, op: u64) {
        self.client_lost(client, op);
    }

    /// An operation that was refused for good must not be found in the log.
    pub(crate) fn check_refused(&self) {
        let mut journal = self.journal.lock();
        if let Some(op) = self
            .service
            .clients
            .refused
            .iter()
            .find(|op| journal.applied(**op))
        {
            let what =
                format!("operation {op} was applied although its client was told that it never would be");
            journal.fail(what);
        }
    }
}
