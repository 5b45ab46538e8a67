//! Keyspaces as a stream of bytes, and back.
//!
//! The stream is a sequence of frames `length u32 | crc32 u32 | payload` (little-endian, both over the payload). A
//! payload begins with its kind: 1, pairs: `name length u8 | name | (key length u32 | value length u32 | key |
//! value)*`; 2, the end: `number of pairs u64`. The receiver may get the bytes in pieces cut anywhere.

use std::ops::Bound;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::disk::DiskReplace;
use crate::memory::MemoryReplace;
use crate::range::Range;
use crate::{EngineError, Keyspace, Snapshot};

/// Length and checksum.
const HEAD: usize = 8;
/// A frame longer than this is damage, not data.
const MAX_FRAME_BYTES: usize = 1 << 30;
const KIND_PAIRS: u8 = 1;
const KIND_END: u8 = 2;

/// A running export. See [`Snapshot::export`].
#[derive(Debug)]
pub struct Export {
    snapshot: Snapshot,
    /// Still to do, the next one last.
    keyspaces: Vec<Keyspace>,
    open: Option<(Keyspace, Range)>,
    pairs: u64,
    ended: bool,
}

impl Export {
    pub(crate) fn new(snapshot: Snapshot, keyspaces: &[Keyspace]) -> Export {
        let keyspaces = keyspaces.iter().rev().cloned().collect();
        Export {
            snapshot,
            keyspaces,
            open: None,
            pairs: 0,
            ended: false,
        }
    }

    /// The next piece, one frame of about `max` bytes (a single pair may be larger); `None` after the end.
    pub fn next_chunk(&mut self, max: usize) -> Result<Option<Bytes>, EngineError> {
        if self.ended {
            return Ok(None);
        }
        loop {
            if self.open.is_none() {
                let Some(keyspace) = self.keyspaces.pop() else {
                    self.ended = true;
                    let mut payload = BytesMut::new();
                    payload.put_u8(KIND_END);
                    payload.put_u64_le(self.pairs);
                    return Ok(Some(frame(&payload)));
                };
                let range = self
                    .snapshot
                    .range(&keyspace, (Bound::Unbounded, Bound::Unbounded))?;
                self.open = Some((keyspace, range));
            }
            let Some((keyspace, range)) = &mut self.open else {
                continue;
            };
            let mut payload = BytesMut::new();
            payload.put_u8(KIND_PAIRS);
            payload.put_u8(u8::try_from(keyspace.name().len()).unwrap_or(u8::MAX));
            payload.put_slice(keyspace.name().as_bytes());
            let empty = payload.len();
            while payload.len() < max.max(empty + 1) {
                let Some(pair) = range.next() else { break };
                let (key, value) = pair?;
                payload.put_u32_le(u32::try_from(key.len()).map_err(|_| EngineError::Key(key.len()))?);
                payload.put_u32_le(u32::try_from(value.len()).map_err(|_| EngineError::Key(value.len()))?);
                payload.put_slice(&key);
                payload.put_slice(&value);
                self.pairs += 1;
            }
            if payload.len() > empty {
                return Ok(Some(frame(&payload)));
            }
            self.open = None;
        }
    }
}

fn frame(payload: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(HEAD + payload.len());
    framed.put_u32_le(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    framed.put_u32_le(crc32fast::hash(payload));
    framed.put_slice(payload);
    framed.freeze()
}

#[derive(Debug)]
pub(crate) enum Target {
    Disk(DiskReplace),
    Memory(MemoryReplace),
}

/// Takes an export apart and checks it, without an engine: feed it every byte, then ask [`ExportReader::is_complete`].
#[derive(Debug, Default)]
pub struct ExportReader {
    rest: BytesMut,
    pairs: u64,
    ended: bool,
}

/// Pairs of one keyspace, in the order of the export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The keyspace's name.
    pub keyspace: String,
    /// Keys and values.
    pub pairs: Vec<(Bytes, Bytes)>,
}

impl ExportReader {
    /// Takes the next bytes; returns the pairs that are complete with them. Bytes behind
    /// the export's end stay in [`ExportReader::rest`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Exported>, EngineError> {
        self.rest.extend_from_slice(bytes);
        let mut found = Vec::new();
        loop {
            if self.ended {
                return Ok(found);
            }
            let Some((mut head, _)) = self.rest.split_at_checked(HEAD) else {
                return Ok(found);
            };
            let (length, crc) = (head.get_u32_le() as usize, head.get_u32_le());
            if length > MAX_FRAME_BYTES {
                return Err(EngineError::Import("a frame has an impossible length"));
            }
            if self.rest.len() < HEAD + length {
                return Ok(found);
            }
            self.rest.advance(HEAD);
            let payload = self.rest.split_to(length).freeze();
            if crc32fast::hash(&payload) != crc {
                return Err(EngineError::Import("a checksum is wrong"));
            }
            found.extend(self.frame(payload)?);
        }
    }

    /// Whether the end has come, with all pairs that it tells of.
    pub fn is_complete(&self) -> bool {
        self.ended
    }

    /// What has been fed and not taken: a begun frame, or what follows the end.
    pub fn rest(&self) -> &[u8] {
        &self.rest
    }

    /// Pairs so far.
    pub fn pairs(&self) -> u64 {
        self.pairs
    }

    fn frame(&mut self, mut payload: Bytes) -> Result<Option<Exported>, EngineError> {
        const SHORT: EngineError = EngineError::Import("a frame is too short");
        match payload.try_get_u8().map_err(|_| SHORT)? {
            KIND_END => {
                self.ended = true;
                let told = payload.try_get_u64_le().map_err(|_| SHORT)?;
                if told == self.pairs {
                    Ok(None)
                } else {
                    Err(EngineError::Import("pairs are missing"))
                }
            }
            KIND_PAIRS => {
                let name = take(&mut payload, |p| p.try_get_u8().map(usize::from)).ok_or(SHORT)?;
                let keyspace = String::from_utf8_lossy(&name).into_owned();
                let mut pairs = Vec::new();
                while payload.has_remaining() {
                    let key_length = payload.try_get_u32_le().map_err(|_| SHORT)? as usize;
                    let value = payload.try_get_u32_le().map_err(|_| SHORT)? as usize;
                    if payload.len() < key_length + value {
                        return Err(SHORT);
                    }
                    pairs.push((payload.split_to(key_length), payload.split_to(value)));
                }
                self.pairs += pairs.len() as u64;
                Ok(Some(Exported { keyspace, pairs }))
            }
            _ => Err(EngineError::Import("a frame of an unknown kind")),
        }
    }
}

/// A running import: [`Import::feed`] every byte of an export, then [`Import::finish`]. Until then, and when it is
/// dropped, the keyspaces keep their content. No other import of the same keyspaces may run meanwhile; what is
/// written to them meanwhile is lost.
#[derive(Debug)]
pub struct Import {
    target: Target,
    reader: ExportReader,
}

impl Import {
    pub(crate) fn new(target: Target) -> Import {
        Import {
            target,
            reader: ExportReader::default(),
        }
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        for Exported { keyspace, pairs } in self.reader.feed(bytes)? {
            match &mut self.target {
                Target::Disk(target) => target.put(&keyspace, pairs),
                Target::Memory(target) => target.put(&keyspace, pairs),
            }?;
        }
        if self.reader.is_complete() && !self.reader.rest().is_empty() {
            return Err(EngineError::Import("something follows its end"));
        }
        Ok(())
    }

    /// Replaces the keyspaces in one step, durably.
    pub fn finish(self) -> Result<(), EngineError> {
        if !self.reader.is_complete() {
            return Err(EngineError::Import("its end is missing"));
        }
        match self.target {
            Target::Disk(target) => target.finish(),
            Target::Memory(target) => target.finish(),
        }
    }
}

fn take<E>(payload: &mut Bytes, length: impl FnOnce(&mut Bytes) -> Result<usize, E>) -> Option<Bytes> {
    let length = length(payload).ok()?;
    (payload.len() >= length).then(|| payload.split_to(length))
}
