//! The world of one run: nodes, guests, messages, and time in small steps.

use plasmavmc_core::fence::Owner;
use testkit::sim::{Faults, SimRng};

use crate::bug::Bug;
use crate::check::Judge;
use crate::control::Control;
use crate::nemesis::{Kind, Scenario};
use crate::node::Node;
use crate::store::{MEMBERS, Record, Store};
use crate::{check, control, nemesis, node};

pub(crate) const NODES: usize = 3;
/// One guest on a shared disk and one on a local disk for each node.
pub(crate) const VMS: usize = 2 * NODES;
pub(crate) const CONTROLS: usize = 2;
/// Milliseconds of a step.
pub(crate) const STEP_MS: u64 = 50;
/// Longest that a member holds a request for which it has no leader.
const HOLD_MS: u64 = 5_000;
/// How often a member looks at the requests it holds.
const HELD_LOOK_MS: u64 = 100;
const DELAY_MS: u64 = 40;
const SLOW_MS: u64 = 9_000;
/// Messages under way at once; more would mean that somebody sends without end.
const MAX_MESSAGES: usize = 10_000;

/// A process with a disk open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) vm: usize,
    pub(crate) node: usize,
    pub(crate) epoch: u64,
    /// The guard has stopped it.
    pub(crate) still: bool,
    pub(crate) dies_at: Option<u64>,
    /// Its agent was stopped between its look at the gate and the start.
    pub(crate) blind: bool,
}

/// Who sends requests; a later life does not hear the answers to an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Party {
    Guard { node: usize, life: u64 },
    Control { control: usize, life: u64 },
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Renew,
    Acquire {
        known: Option<i64>,
    },
    Look,
    Campaign,
    Fence {
        node: usize,
        known: Option<i64>,
        token: i64,
    },
    Move {
        vm: usize,
        to: usize,
        revision: i64,
        fence: Option<i64>,
        token: i64,
    },
    Renewed(bool),
    Acquired(Result<i64, Option<Record>>),
    Looked(Box<Seen>),
    Elected(Option<i64>),
    /// A fence or a move was tried.
    Tried,
}

/// What a control plane reads in one look.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) leases: [bool; NODES],
    pub(crate) records: [Option<Record>; NODES],
    pub(crate) vms: Vec<crate::store::Vm>,
}

#[derive(Clone, Debug)]
pub(crate) struct Message {
    at: u64,
    party: Party,
    member: usize,
    /// The sender's clock.
    sent: u64,
    give_up_at: u64,
    body: Body,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) operations: u64,
    pub(crate) unanswered: u64,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: SimRng,
    pub(crate) bug: Option<Bug>,
    pub(crate) scenario: Scenario,
    pub(crate) store: Store,
    pub(crate) nodes: Vec<Node>,
    pub(crate) controls: Vec<Control>,
    pub(crate) guests: Vec<Guest>,
    /// The notes beside the shared disks.
    pub(crate) notes: Vec<Option<Owner>>,
    pub(crate) slow_until: u64,
    pub(crate) judge: Judge,
    pub(crate) faults: Faults,
    pub(crate) counts: Counts,
    pub(crate) trace: u64,
    messages: Vec<Message>,
}

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = SimRng::new(seed);
        let scenario = Scenario::of(seed, &mut rng);
        let store = Store::new(&mut rng);
        let nodes = (0..NODES).map(|_| Node::new(&mut rng)).collect();
        let controls = (0..CONTROLS).map(|_| Control::new(&mut rng)).collect();
        Self {
            now: 0,
            rng,
            bug,
            scenario,
            store,
            nodes,
            controls,
            guests: Vec::new(),
            notes: vec![None; VMS],
            slow_until: 0,
            judge: Judge::default(),
            faults: Faults::default(),
            counts: Counts::default(),
            trace: 0xcbf2_9ce4_8422_2325,
            messages: Vec::new(),
        }
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Mixes something that happened into the checksum of the run.
    pub(crate) fn mix(&mut self, what: u64) {
        self.trace = (self.trace ^ what ^ self.now).wrapping_mul(0x100_0000_01b3);
    }

    pub(crate) fn note(&mut self, kind: &'static str) {
        self.faults.note(kind, 1);
        let sum = kind.bytes().fold(0_u64, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        self.mix(sum);
    }

    /// Runs to the end of the scenario.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        let end = self.scenario.end_ms();
        while self.now < end {
            self.step()
                .map_err(|what| format!("at {} ms: {what}", self.now))?;
        }
        check::at_the_end(self).map_err(|what| format!("at the end: {what}"))
    }

    fn step(&mut self) -> Result<(), String> {
        self.now += STEP_MS;
        nemesis::act(self);
        self.store
            .tick(self.now, STEP_MS, &mut self.rng, &mut self.faults);
        let now = self.now;
        self.guests
            .retain(|guest| guest.dies_at.is_none_or(|at| now < at));
        self.deliver()?;
        for control in 0..CONTROLS {
            control::act(self, control);
        }
        for node in 0..NODES {
            node::act(self, node)?;
        }
        check::each_step(self)
    }

    /// Sends a request to a member.
    pub(crate) fn send(&mut self, party: Party, member: usize, sent: u64, body: Body) {
        self.counts.operations += 1;
        let message = Message {
            at: self.now + self.delay(),
            party,
            member,
            sent,
            give_up_at: self.now + HOLD_MS,
            body,
        };
        if self.messages.len() < MAX_MESSAGES {
            self.messages.push(message);
        }
    }

    pub(crate) fn delay(&mut self) -> u64 {
        if self.now < self.slow_until && self.rng.chance(300) {
            self.rng.between(1, SLOW_MS)
        } else {
            self.rng.between(1, DELAY_MS)
        }
    }

    fn linked(&self, party: Party, member: usize) -> bool {
        match party {
            Party::Guard { node, .. } => self.nodes[node].links[member],
            Party::Control { control, .. } => self.controls[control].links[member],
        }
    }

    fn is_mute(&self, party: Party) -> bool {
        matches!(party, Party::Guard { node, .. } if self.nodes[node].mute)
    }

    fn deliver(&mut self) -> Result<(), String> {
        let now = self.now;
        let (mut due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.messages)
            .into_iter()
            .partition(|m| m.at <= now);
        self.messages = later;
        due.sort_by_key(|m| m.at);
        for mut message in due {
            if !self.linked(message.party, message.member) || self.is_mute(message.party) {
                self.counts.unanswered += 1;
                continue;
            }
            match message.body {
                Body::Renewed(_) | Body::Acquired(_) | Body::Looked(_) | Body::Elected(_) | Body::Tried => {
                    self.answer(message)?;
                }
                _ => {
                    let member = &self.store.members[message.member];
                    if !member.up {
                        self.counts.unanswered += 1;
                    } else if !member.acts(now) {
                        message.at = member.stopped_until;
                        self.messages.push(message);
                    } else if !self.store.serves_through(message.member, now) {
                        if now < message.give_up_at {
                            message.at = now + HELD_LOOK_MS;
                            self.messages.push(message);
                        }
                    } else {
                        message.body = self.execute(message.party, message.body)?;
                        message.at = now + self.delay();
                        self.messages.push(message);
                    }
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, mut message: Message) -> Result<(), String> {
        let now = self.now;
        let until = match message.party {
            Party::Guard { node, .. } => self.nodes[node].guard_stopped_until(),
            Party::Control { control, .. } => self.controls[control].stopped_until,
        };
        if now < until {
            message.at = until;
            self.messages.push(message);
            return Ok(());
        }
        match message.party {
            Party::Guard { node, life } => node::answered(self, node, life, message.sent, &message.body),
            Party::Control { control, life } => {
                control::answered(self, control, life, message.sent, message.body);
            }
        }
        Ok(())
    }

    /// A transaction at the leader.
    fn execute(&mut self, party: Party, body: Body) -> Result<Body, String> {
        let now = self.now;
        let who = match party {
            Party::Guard { node, .. } => node,
            Party::Control { control, .. } => control,
        };
        Ok(match body {
            Body::Renew => {
                let held = self.store.renew(who, now);
                if held {
                    self.faults.note("LeaseRenewed", 1);
                }
                Body::Renewed(held)
            }
            Body::Acquire { known } => {
                let before = self.store.record(who);
                let outcome = self.store.acquire(who, known, now);
                self.note(match (&outcome, before) {
                    (Ok(_), Some(record)) if record.fenced => "FenceTakenAway",
                    (Ok(_), _) => "LeaseAcquired",
                    (Err(_), _) => "AcquireRefused",
                });
                if outcome.is_ok() && before.is_some_and(|record| record.fenced) {
                    check::unfenced(self, who)?;
                }
                Body::Acquired(outcome)
            }
            Body::Look => Body::Looked(Box::new(Seen {
                leases: std::array::from_fn(|node| self.store.lease(node)),
                records: self.store.records,
                vms: self.store.vms.clone(),
            })),
            Body::Campaign => Body::Elected(self.store.campaign(who)),
            Body::Fence { node, known, token } => {
                let done = self.store.fence(node, known, token);
                self.note(if done { "Fenced" } else { "FenceRefused" });
                if done {
                    check::fenced(self, node)?;
                }
                Body::Tried
            }
            Body::Move {
                vm,
                to,
                revision,
                fence,
                token,
            } => {
                control::moved(self, vm, to, revision, fence, token)?;
                Body::Tried
            }
            other => other,
        })
    }

    /// Whether anybody has the disk of a VM open.
    pub(crate) fn is_open(&self, vm: usize) -> bool {
        self.guests.iter().any(|guest| guest.vm == vm)
    }

    /// Whether the storage has locks: in one kind of scenario the guards alone must do.
    pub(crate) fn has_locks(&self) -> bool {
        self.scenario.kind != Kind::Bare && !self.has(Bug::OpensWithoutLock)
    }

    /// A member to ask, by chance.
    pub(crate) fn some_member(&mut self) -> usize {
        usize::try_from(self.rng.below(MEMBERS as u64)).unwrap_or(0)
    }
}
