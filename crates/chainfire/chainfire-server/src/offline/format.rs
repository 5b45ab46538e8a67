//! The backup's format: what `Maintenance.Snapshot` streams and a backup file holds.
//!
//! ```text
//!   "CHAINFIRE-BACKUP" | format u32 | header length u32 | header (BackupHeader) | kv-engine's export | zeros | SHA-256
//! ```
//! Numbers are little-endian. The zeros fill up to a multiple of 512, and the digest is over everything before it: so
//! the file passes the one check that etcd's clients make (`length % 512 == 32`). It is not a bbolt file.
//!
//! Changing it: fields of the header are only added; another layout is another format number.

use kv_engine::{EngineError, Export, Keyspace, Snapshot};
use prost::Message;
use sha2::{Digest, Sha256};

/// First bytes of every backup.
pub(crate) const MAGIC: &[u8; 16] = b"CHAINFIRE-BACKUP";
/// The layout described above.
pub(crate) const FORMAT: u32 = 1;
/// Bytes before the header: magic, format, header length.
pub(crate) const PREFIX_BYTES: usize = 24;
/// A header longer than this is damage.
pub(crate) const MAX_HEADER_BYTES: usize = 1 << 20;
/// The body is filled up to a multiple of this.
pub(crate) const SECTOR: u64 = 512;
/// Length of the digest at the end.
pub(crate) const DIGEST_BYTES: u64 = 32;
/// About the size of one frame of the export, bytes.
const FRAME_BYTES: usize = 256 << 10;

/// What a backup is of.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct BackupHeader {
    /// The cluster's name, with its incarnation.
    #[prost(string, tag = "1")]
    pub(crate) cluster: String,
    #[prost(uint64, tag = "2")]
    pub(crate) cluster_id: u64,
    /// The member that made it.
    #[prost(string, tag = "3")]
    pub(crate) member: String,
    #[prost(uint64, tag = "4")]
    pub(crate) member_id: u64,
    #[prost(int64, tag = "5")]
    pub(crate) revision: i64,
    #[prost(int64, tag = "6")]
    pub(crate) compacted: i64,
    /// Raft index of the last entry in it.
    #[prost(uint64, tag = "7")]
    pub(crate) applied: u64,
    /// Raft term of the member when it was made.
    #[prost(uint64, tag = "8")]
    pub(crate) term: u64,
    #[prost(message, repeated, tag = "9")]
    pub(crate) members: Vec<BackupMember>,
    /// Release that wrote it.
    #[prost(string, tag = "10")]
    pub(crate) release: String,
    /// Keys that exist.
    #[prost(uint64, tag = "11")]
    pub(crate) keys: u64,
    #[prost(uint64, tag = "12")]
    pub(crate) leases: u64,
    /// Seconds since 1970 by the member's clock.
    #[prost(uint64, tag = "13")]
    pub(crate) created_s: u64,
}

/// A member of the cluster that a backup is of; for people only.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct BackupMember {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(string, tag = "2")]
    pub(crate) peer: String,
    #[prost(bool, tag = "3")]
    pub(crate) learner: bool,
}

/// A consistent picture of a member's state, from which a backup can be written any number of times, equal each time.
pub(crate) struct Picture {
    pub(crate) header: BackupHeader,
    pub(crate) snapshot: Snapshot,
    pub(crate) keyspaces: Vec<Keyspace>,
}

/// Why writing ended early.
#[derive(Debug)]
pub(crate) enum WriteEnd<E> {
    Engine(EngineError),
    /// The sink's own error.
    Sink(E),
}

impl Picture {
    fn head(&self) -> Vec<u8> {
        let header = self.header.encode_to_vec();
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&FORMAT.to_le_bytes());
        head.extend_from_slice(&u32::try_from(header.len()).unwrap_or(u32::MAX).to_le_bytes());
        head.extend_from_slice(&header);
        head
    }

    fn export(&self) -> Export {
        self.snapshot.export(&self.keyspaces)
    }

    /// Length of the whole backup; reads everything once, so that nothing of it has to be kept.
    pub(crate) fn length(&self) -> Result<u64, EngineError> {
        let mut length = self.head().len() as u64;
        let mut export = self.export();
        while let Some(frame) = export.next_chunk(FRAME_BYTES)? {
            length += frame.len() as u64;
        }
        Ok(length.next_multiple_of(SECTOR) + DIGEST_BYTES)
    }

    /// Gives the whole backup to `sink`, in pieces of any size.
    pub(crate) fn write<E>(&self, mut sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), WriteEnd<E>> {
        let mut digest = Sha256::new();
        let mut length = 0;
        let mut put = |bytes: &[u8]| {
            digest.update(bytes);
            length += bytes.len() as u64;
            sink(bytes).map_err(WriteEnd::Sink)
        };
        put(&self.head())?;
        let mut export = self.export();
        while let Some(frame) = export.next_chunk(FRAME_BYTES).map_err(WriteEnd::Engine)? {
            put(&frame)?;
        }
        let zeros = [0; 512];
        let missing = length.next_multiple_of(SECTOR) - length;
        let missing = usize::try_from(missing).unwrap_or_default();
        if let Some((fill, _)) = zeros.split_at_checked(missing) {
            digest.update(fill);
            sink(fill).map_err(WriteEnd::Sink)?;
        }
        sink(&digest.finalize()).map_err(WriteEnd::Sink)
    }
}
