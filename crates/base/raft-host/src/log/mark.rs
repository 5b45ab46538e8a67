//! The file `MARK`: the number of the last batch that is known to be durable.
//!
//! It is written after every fsync of the log, without an fsync of its own, so it may lag behind after a power
//! cut, but never runs ahead: a lower bound. Two slots are used in turn, each with a checksum, so a torn write
//! costs one number at most.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use raft_engine::env::{FileSystem, Permission};

/// Distance of the slots: in different sectors, so that one torn sector cannot take both.
const SLOT: u64 = 4096;
/// A slot: number (8 bytes), CRC32 of it (4 bytes), little-endian.
const SLOT_BYTES: usize = 12;

pub(super) struct Mark<F: FileSystem> {
    writer: F::Writer,
    next_slot: u64,
}

impl<F: FileSystem> Mark<F> {
    /// Opens or creates the file; also returns the highest intact number in it (0: none).
    pub(super) fn open(dir: &Path, file_system: &Arc<F>) -> io::Result<(Mark<F>, u64)> {
        let path = dir.join("MARK");
        let handle = match file_system.open(&path, Permission::ReadWrite) {
            Err(e) if e.kind() == ErrorKind::NotFound => file_system.create(&path)?,
            other => other?,
        };
        let handle = Arc::new(handle);
        let mut reader = file_system.new_reader(handle.clone())?;
        let mut marked = 0;
        for slot in 0..2 {
            marked = marked.max(read_slot(&mut reader, slot * SLOT)?.unwrap_or(0));
        }
        let writer = file_system.new_writer(handle)?;
        Ok((
            Mark {
                writer,
                next_slot: (marked + 1) % 2,
            },
            marked,
        ))
    }

    pub(super) fn write(&mut self, number: u64) -> io::Result<()> {
        let mut slot = [0u8; SLOT_BYTES];
        let (value, crc) = slot.split_at_mut(8);
        value.copy_from_slice(&number.to_le_bytes());
        crc.copy_from_slice(&crc32fast::hash(&number.to_le_bytes()).to_le_bytes());
        self.writer.seek(SeekFrom::Start(self.next_slot * SLOT))?;
        self.writer.write_all(&slot)?;
        self.next_slot = (self.next_slot + 1) % 2;
        Ok(())
    }
}

fn read_slot(reader: &mut (impl Read + Seek), offset: u64) -> io::Result<Option<u64>> {
    let mut slot = [0u8; SLOT_BYTES];
    reader.seek(SeekFrom::Start(offset))?;
    match reader.read_exact(&mut slot) {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let (value, crc) = slot.split_at(8);
    let (Ok(value), Ok(crc)) = (<[u8; 8]>::try_from(value), <[u8; 4]>::try_from(crc)) else {
        return Ok(None);
    };
    Ok((crc32fast::hash(&value) == u32::from_le_bytes(crc)).then_some(u64::from_le_bytes(value)))
}
