//! The replicated state machine of the registers with put and compare-and-set, on the real kv-engine.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kv_engine::{Batch, Engine, EngineError, Export, Import, Keyspace, MemoryDisk};
use raft_host::{Committed, MachineError, Payload, SnapshotSink, SnapshotSource, StateMachine};

use crate::sim::journal::SharedJournal;

/// A command, with the operation's number so that a double can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Put { op: u64, key: u64, value: u64 },
    Cas { op: u64, key: u64, old: u64, new: u64 },
}

impl Command {
    pub(crate) fn encode(self) -> Bytes {
        let mut bytes = BytesMut::new();
        let numbers = match self {
            Command::Put { op, key, value } => [0, op, key, value, 0],
            Command::Cas { op, key, old, new } => [1, op, key, old, new],
        };
        numbers.into_iter().for_each(|n| bytes.put_u64(n));
        bytes.freeze()
    }

    fn decode(mut bytes: &[u8]) -> Result<Command, MachineError> {
        let mut numbers = [0u64; 5];
        for number in &mut numbers {
            *number = bytes.try_get_u64()?;
        }
        let [kind, op, key, a, b] = numbers;
        Ok(match kind {
            0 => Command::Put { op, key, value: a },
            _ => Command::Cas {
                op,
                key,
                old: a,
                new: b,
            },
        })
    }

    fn op(self) -> u64 {
        match self {
            Command::Put { op, .. } | Command::Cas { op, .. } => op,
        }
    }
}

/// Reads the registers of one member, from outside of its host.
#[derive(Clone, Debug)]
pub struct View {
    engine: Engine,
    registers: Keyspace,
}

impl View {
    pub(crate) fn get(&self, key: u64) -> Result<Option<u64>, EngineError> {
        let value = self.engine.get(&self.registers, &key.to_be_bytes())?;
        Ok(value.and_then(|mut v| v.try_get_u64().ok()))
    }
}

pub(crate) struct RegisterMachine {
    node: u64,
    engine: Engine,
    registers: Keyspace,
    meta: Keyspace,
    applied: u64,
    state: u64,
    journal: SharedJournal,
    /// A planted bug: every so many-th command on this node has no effect.
    lose_every: Option<u64>,
}

const APPLIED: &[u8] = b"applied";
const STATE: &[u8] = b"state";

impl RegisterMachine {
    pub(crate) fn open(
        node: u64,
        disk: &MemoryDisk,
        journal: SharedJournal,
        lose_every: Option<u64>,
    ) -> Result<(RegisterMachine, View), EngineError> {
        let engine = Engine::memory(disk);
        let registers = engine.keyspace("registers")?;
        let meta = engine.keyspace("meta")?;
        let view = View {
            engine: engine.clone(),
            registers: registers.clone(),
        };
        let mut machine = RegisterMachine {
            node,
            engine,
            registers,
            meta,
            applied: 0,
            state: 0,
            journal,
            lose_every,
        };
        machine.load()?;
        Ok((machine, view))
    }

    fn load(&mut self) -> Result<(), EngineError> {
        let number = |key| -> Result<u64, EngineError> {
            Ok(self
                .engine
                .get(&self.meta, key)?
                .and_then(|mut v| v.try_get_u64().ok())
                .unwrap_or(0))
        };
        (self.applied, self.state) = (number(APPLIED)?, number(STATE)?);
        Ok(())
    }

    fn command(&self, command: Command, pending: &mut BTreeMap<u64, u64>) -> Result<bool, EngineError> {
        let key = match command {
            Command::Put { key, .. } | Command::Cas { key, .. } => key,
        };
        let now = match pending.get(&key) {
            Some(value) => Some(*value),
            None => {
                let value = self.engine.get(&self.registers, &key.to_be_bytes())?;
                value.and_then(|mut v| v.try_get_u64().ok())
            }
        };
        let (done, value) = match command {
            Command::Put { value, .. } => (true, value),
            Command::Cas { old, new, .. } => (now == Some(old), new),
        };
        if done {
            pending.insert(key, value);
        }
        Ok(done)
    }
}

impl StateMachine for RegisterMachine {
    fn applied_index(&self) -> u64 {
        self.applied
    }

    fn apply(&mut self, entries: &[Committed<'_>]) -> Result<Vec<Bytes>, MachineError> {
        let shared = self.journal.clone();
        let mut journal = shared.lock();
        let mut pending = BTreeMap::new();
        let mut responses = Vec::new();
        for entry in entries {
            let content = match entry.payload {
                Payload::Command(bytes) => crc32fast::hash(bytes),
                Payload::Noop => 1,
                Payload::Membership(_) => 2,
            };
            journal.entry(self.node, entry.index, entry.term, content);
            let mut response = Bytes::new();
            if let Payload::Command(bytes) = entry.payload {
                let command = Command::decode(bytes)?;
                journal.op(self.node, command.op(), entry.index);
                let lost = self.lose_every.is_some_and(|n| entry.index.is_multiple_of(n));
                let done = if lost {
                    true
                } else {
                    self.command(command, &mut pending)?
                };
                self.state = mix(
                    self.state,
                    &[entry.index, command.op(), u64::from(done), u64::from(lost)],
                );
                response = Bytes::copy_from_slice(&[u8::from(done)]);
            }
            journal.state(self.node, entry.index, self.state);
            self.applied = entry.index;
            responses.push(response);
        }
        let mut batch = Batch::new();
        for (key, value) in pending {
            batch.put(
                &self.registers,
                key.to_be_bytes().to_vec(),
                value.to_be_bytes().to_vec(),
            );
        }
        batch.put(&self.meta, APPLIED, self.applied.to_be_bytes().to_vec());
        batch.put(&self.meta, STATE, self.state.to_be_bytes().to_vec());
        self.engine.write(batch)?;
        Ok(responses)
    }

    fn persist(&mut self) -> Result<u64, MachineError> {
        self.engine.persist()?;
        Ok(self.applied)
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        let keyspaces = [self.registers.clone(), self.meta.clone()];
        Ok(Box::new(Source {
            export: self.engine.snapshot()?.export(&keyspaces),
        }))
    }

    fn receive(&mut self) -> Result<Box<dyn SnapshotSink>, MachineError> {
        let import = self.engine.import(&[self.registers.clone(), self.meta.clone()])?;
        Ok(Box::new(Sink { import }))
    }

    fn restore(&mut self, index: u64, sink: Box<dyn SnapshotSink>) -> Result<(), MachineError> {
        let sink: Box<dyn Any> = sink;
        let sink = sink
            .downcast::<Sink>()
            .map_err(|_| "the sink is not of this machine")?;
        sink.import.finish()?;
        self.load()?;
        // The index of a group's first entry is not applied by anybody.
        if self.applied != index && !(self.applied == 0 && index == 1) {
            return Err(format!("the snapshot is of entry {}, not {index}", self.applied).into());
        }
        let mut journal = self.journal.lock();
        if self.applied > 0 {
            journal.state(self.node, self.applied, self.state);
        }
        Ok(())
    }
}

struct Sink {
    import: Import,
}

impl SnapshotSink for Sink {
    fn feed(&mut self, data: &[u8]) -> Result<(), MachineError> {
        Ok(self.import.feed(data)?)
    }
}

struct Source {
    export: Export,
}

impl SnapshotSource for Source {
    fn next_chunk(&mut self, max: usize) -> Result<Option<Bytes>, MachineError> {
        Ok(self.export.next_chunk(max)?)
    }
}

fn mix(state: u64, numbers: &[u64]) -> u64 {
    numbers.iter().fold(state, |s, n| {
        (s ^ n).wrapping_mul(0x0100_0000_01B3).rotate_left(23) ^ 0x9E37
    })
}

/// Checksum of all registers of a view, for comparing members.
pub(super) fn digest(view: &View) -> Result<u64, EngineError> {
    let range = view
        .engine
        .snapshot()?
        .range(&view.registers, (Bound::Unbounded, Bound::Unbounded))?;
    let mut state = 0;
    for pair in range {
        let (key, value) = pair?;
        state = mix(
            state,
            &[
                u64::from(crc32fast::hash(&key)),
                u64::from(crc32fast::hash(&value)),
            ],
        );
    }
    Ok(state)
}
