//! What members say to each other: our own prost messages, never the Raft library's (whose protobuf 2.28 must not
//! parse network input). [`crate::HostHandle::step`] checks and converts them.
//!
//! Changing this file: fields are only added, with new numbers; a message must stay readable by the release before.

use bytes::Bytes;

/// One message from a member to another.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PeerMessage {
    /// The group.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The sender's node id; the transport has verified it.
    #[prost(uint64, tag = "2")]
    pub from: u64,
    /// The receiver's node id. A message for another id is dropped: an address may have a new tenant.
    #[prost(uint64, tag = "3")]
    pub to: u64,
    /// The content.
    #[prost(oneof = "Body", tags = "4, 5, 6, 7, 8")]
    pub body: Option<Body>,
}

/// Content of a [`PeerMessage`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    /// A message of the Raft algorithm.
    #[prost(message, tag = "4")]
    Raft(RaftMessage),
    /// A piece of a snapshot.
    #[prost(message, tag = "5")]
    Chunk(SnapshotChunk),
    /// The answer to pieces of a snapshot.
    #[prost(message, tag = "6")]
    Ack(SnapshotAck),
    /// A proposal on its way to the leader.
    #[prost(message, tag = "7")]
    Forward(Forward),
    /// A forwarded proposal was refused.
    #[prost(message, tag = "8")]
    Refuse(Refuse),
}

/// Mirrors the Raft library's message, field by field; `kind` has its numbering.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RaftMessage {
    /// Which message.
    #[prost(int32, tag = "1")]
    pub kind: i32,
    /// Term of the sender (0 for a forwarded read-index).
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Term of the entry at `index`.
    #[prost(uint64, tag = "3")]
    pub log_term: u64,
    /// Meaning depends on `kind`.
    #[prost(uint64, tag = "4")]
    pub index: u64,
    /// Entries, consecutive from `index` + 1 in an append.
    #[prost(message, repeated, tag = "5")]
    pub entries: Vec<Entry>,
    /// The sender's commit index.
    #[prost(uint64, tag = "6")]
    pub commit: u64,
    /// Term of the entry at `commit`.
    #[prost(uint64, tag = "7")]
    pub commit_term: u64,
    /// A snapshot is wanted from this index on.
    #[prost(uint64, tag = "8")]
    pub request_snapshot: u64,
    /// The request was refused.
    #[prost(bool, tag = "9")]
    pub reject: bool,
    /// Where the refused log ends.
    #[prost(uint64, tag = "10")]
    pub reject_hint: u64,
    /// Read-index context, or the mark of a leadership transfer.
    #[prost(bytes = "bytes", tag = "11")]
    pub context: Bytes,
    /// Election priority.
    #[prost(int64, tag = "12")]
    pub priority: i64,
    /// What the snapshot is of; only in the first chunk of one.
    #[prost(message, optional, tag = "13")]
    pub snapshot: Option<SnapshotMeta>,
}

/// An entry of the log.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Entry {
    /// 0 command, 1 and 2 membership change.
    #[prost(int32, tag = "1")]
    pub kind: i32,
    /// Term.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Index.
    #[prost(uint64, tag = "3")]
    pub index: u64,
    /// Content.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
    /// Whose proposal it is: origin, incarnation, sequence.
    #[prost(bytes = "bytes", tag = "5")]
    pub context: Bytes,
}

/// What a snapshot is of.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotMeta {
    /// Applied index.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// Its term.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Members at that index.
    #[prost(message, optional, tag = "3")]
    pub membership: Option<MembershipRecord>,
}

/// Members of a group; also how the log stores them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MembershipRecord {
    /// All members.
    #[prost(message, repeated, tag = "1")]
    pub members: Vec<MemberRecord>,
    /// Voters of the outgoing configuration.
    #[prost(uint64, repeated, tag = "2")]
    pub outgoing: Vec<u64>,
    /// Voters that become learners.
    #[prost(uint64, repeated, tag = "3")]
    pub learners_next: Vec<u64>,
    /// Whether a joint change ends by itself.
    #[prost(bool, tag = "4")]
    pub auto_leave: bool,
}

/// One member.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemberRecord {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its address.
    #[prost(string, tag = "2")]
    pub address: String,
    /// Whether it is a learner.
    #[prost(bool, tag = "3")]
    pub learner: bool,
}

/// A piece of a snapshot.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotChunk {
    /// Which transfer of this sender.
    #[prost(uint64, tag = "1")]
    pub transfer: u64,
    /// Place of the piece, from 0.
    #[prost(uint64, tag = "2")]
    pub seq: u64,
    /// The piece.
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
    /// CRC32 of `data`.
    #[prost(fixed32, tag = "4")]
    pub crc: u32,
    /// No more pieces follow.
    #[prost(bool, tag = "5")]
    pub last: bool,
    /// With `last`: CRC32 over all pieces.
    #[prost(fixed32, tag = "6")]
    pub total_crc: u32,
    /// With `seq` 0: the Raft message that the snapshot belongs to.
    #[prost(message, optional, tag = "7")]
    pub head: Option<RaftMessage>,
}

/// Answer to pieces of a snapshot.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SnapshotAck {
    /// Which transfer.
    #[prost(uint64, tag = "1")]
    pub transfer: u64,
    /// The piece expected next: all before it have arrived.
    #[prost(uint64, tag = "2")]
    pub next: u64,
    /// The receiver gave up; the transfer failed.
    #[prost(bool, tag = "3")]
    pub failed: bool,
}

/// A proposal on its way to the leader of `term`. A leader of any other term refuses it, and the leader of that
/// term takes each `seq` once: so a message that the network doubles is still proposed at most once.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Forward {
    /// The term for which it is meant.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// Start of the origin's process.
    #[prost(uint64, tag = "2")]
    pub incarnation: u64,
    /// The origin's number for it.
    #[prost(uint64, tag = "3")]
    pub seq: u64,
    /// The command.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
}

/// A forwarded proposal was not proposed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Refuse {
    /// As in the [`Forward`].
    #[prost(uint64, tag = "1")]
    pub incarnation: u64,
    /// As in the [`Forward`].
    #[prost(uint64, tag = "2")]
    pub seq: u64,
    /// Too many proposals wait at the leader (else: it is not the leader of that term).
    #[prost(bool, tag = "3")]
    pub busy: bool,
}
