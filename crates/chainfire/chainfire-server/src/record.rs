//! What lies in the Raft log and in the engine. Fields are only added, with new numbers: a log is replayed by the
//! release after the one that wrote it, and members of both releases run side by side during an update.

use bytes::Bytes;
use chainfire_client::wire::etcdserverpb as pb;
use chainfire_core::{Event, EventKind, KeyValue, OpError, Point, Version, error};

use crate::{
    auth::record::{AuthRecord, CallerRecord},
    members::table::MembersEntry,
};

/// A command in the log.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LogRecord {
    #[prost(oneof = "LogBody", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub(crate) body: Option<LogBody>,
    #[prost(message, optional, tag = "20")]
    pub(crate) caller: Option<CallerRecord>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum LogBody {
    #[prost(message, tag = "1")]
    Put(pb::PutRequest),
    #[prost(message, tag = "2")]
    Delete(pb::DeleteRangeRequest),
    #[prost(message, tag = "3")]
    Txn(pb::TxnRequest),
    #[prost(message, tag = "4")]
    Compact(pb::CompactionRequest),
    #[prost(message, tag = "5")]
    Grant(pb::LeaseGrantRequest),
    #[prost(message, tag = "6")]
    Revoke(pb::LeaseRevokeRequest),
    #[prost(message, tag = "7")]
    Expire(ExpireLeases),
    #[prost(message, tag = "8")]
    Alarm(pb::AlarmRequest),
    #[prost(message, tag = "10")]
    Checkpoint(CheckpointLeases),
    #[prost(message, tag = "11")]
    Members(MembersEntry),
    #[prost(message, tag = "9")]
    Auth(AuthRecord),
    /// The running hash begins anew here on every member (see [`crate::agreement`]).
    #[prost(message, tag = "12")]
    RestartDigest(RestartDigest),
}

/// Nothing but the place of its entry.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct RestartDigest {}

/// Leases that ran out by the clock of the leader of `term`. In another term it is void: the next leader has given
/// every lease its full time again.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ExpireLeases {
    #[prost(int64, repeated, tag = "1")]
    pub(crate) ids: Vec<i64>,
    #[prost(uint64, tag = "2")]
    pub(crate) term: u64,
}

/// What is left of leases by the clock of the leader of `term`, for the leader after it. In another term it is void:
/// that leader has counted on from what was stored when its term began.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CheckpointLeases {
    #[prost(int64, repeated, tag = "1")]
    pub(crate) ids: Vec<i64>,
    /// Seconds, one for each id; 0 clears what is stored.
    #[prost(int64, repeated, tag = "2")]
    pub(crate) remaining_s: Vec<i64>,
    #[prost(uint64, tag = "3")]
    pub(crate) term: u64,
}

/// A lease in keyspace `leases`: time to live, then what is left of it for the next leader (0: all), big endian. Earlier
/// releases wrote the first only.
pub(crate) fn lease_value(ttl_s: i64, remaining_s: i64) -> Vec<u8> {
    [ttl_s.to_be_bytes(), remaining_s.to_be_bytes()].concat()
}

/// Time to live and remaining time of a stored lease.
pub(crate) fn value_lease(value: &[u8]) -> Option<(i64, i64)> {
    let (ttl_s, rest) = value.split_first_chunk::<8>()?;
    let remaining_s = match rest {
        [] => 0,
        rest => i64::from_be_bytes(rest.try_into().ok()?),
    };
    Some((i64::from_be_bytes(*ttl_s), remaining_s))
}

/// The state machine's answer, from the Raft thread to the waiting call of the same process; never stored.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ReplyRecord {
    #[prost(oneof = "ReplyBody", tags = "1, 2, 3, 4, 5, 6, 7, 15")]
    pub(crate) body: Option<ReplyBody>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum ReplyBody {
    /// Place in [`error::TABLE`].
    #[prost(uint32, tag = "1")]
    Refused(u32),
    #[prost(message, tag = "2")]
    Put(pb::PutResponse),
    #[prost(message, tag = "3")]
    Delete(pb::DeleteRangeResponse),
    #[prost(message, tag = "4")]
    Txn(pb::TxnResponse),
    #[prost(message, tag = "5")]
    Granted(pb::LeaseGrantResponse),
    /// Done; the store's revision afterwards.
    #[prost(int64, tag = "6")]
    Done(i64),
    #[prost(message, tag = "7")]
    Alarms(pb::AlarmResponse),
    #[prost(message, tag = "15")]
    Token(TokenReply),
}

/// A token was given out.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TokenReply {
    #[prost(string, tag = "1")]
    pub(crate) token: String,
    #[prost(int64, tag = "2")]
    pub(crate) revision: i64,
}

impl ReplyBody {
    pub(crate) fn refused(error: OpError) -> ReplyBody {
        let place = error::TABLE.iter().position(|(row, _, _)| *row == error);
        ReplyBody::Refused(
            place
                .and_then(|place| u32::try_from(place).ok())
                .unwrap_or(u32::MAX),
        )
    }

    pub(crate) fn error(place: u32) -> OpError {
        let row = usize::try_from(place)
            .ok()
            .and_then(|place| error::TABLE.get(place));
        row.map_or(OpError::Corrupt, |(error, _, _)| *error)
    }
}

/// One change, in keyspace `revisions`, under [`point_key`].
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct EventRecord {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
    #[prost(int64, tag = "3")]
    pub(crate) create_revision: i64,
    /// 0: a deletion.
    #[prost(int64, tag = "4")]
    pub(crate) version: i64,
    #[prost(int64, tag = "5")]
    pub(crate) lease: i64,
    /// Where the version that it replaced stands; 0: there was none.
    #[prost(int64, tag = "6")]
    pub(crate) prev_main: i64,
    #[prost(uint32, tag = "7")]
    pub(crate) prev_sub: u32,
}

impl EventRecord {
    pub(crate) fn of(event: &Event) -> EventRecord {
        EventRecord {
            key: event.kv.key.clone(),
            value: event.kv.value.clone(),
            create_revision: event.kv.create_revision,
            version: event.kv.version,
            lease: event.kv.lease,
            prev_main: event.prev.map_or(0, |at| at.main),
            prev_sub: event.prev.map_or(0, |at| at.sub),
        }
    }

    pub(crate) fn event(self, at: Point) -> Event {
        let kind = if self.version == 0 {
            EventKind::Delete
        } else {
            EventKind::Put
        };
        let prev = (self.prev_main != 0).then_some(Point {
            main: self.prev_main,
            sub: self.prev_sub,
        });
        let kv = KeyValue {
            key: self.key,
            create_revision: self.create_revision,
            mod_revision: at.main,
            version: self.version,
            value: self.value,
            lease: self.lease,
        };
        Event { kind, kv, prev }
    }
}

/// The current version of a live key, in keyspace `keys`, under the key itself.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct KeyRecord {
    #[prost(int64, tag = "1")]
    pub(crate) main: i64,
    #[prost(uint32, tag = "2")]
    pub(crate) sub: u32,
    #[prost(int64, tag = "3")]
    pub(crate) create_revision: i64,
    #[prost(int64, tag = "4")]
    pub(crate) version: i64,
    #[prost(int64, tag = "5")]
    pub(crate) lease: i64,
}

impl KeyRecord {
    pub(crate) fn of(version: &Version) -> KeyRecord {
        KeyRecord {
            main: version.at.main,
            sub: version.at.sub,
            create_revision: version.create_revision,
            version: version.version,
            lease: version.lease,
        }
    }

    pub(crate) fn version(self) -> Version {
        Version {
            at: Point {
                main: self.main,
                sub: self.sub,
            },
            create_revision: self.create_revision,
            version: self.version,
            lease: self.lease,
        }
    }
}

/// A version of a key, in keyspace `history`, under [`crate::layout::history_key`].
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct HistoryRecord {
    #[prost(int64, tag = "1")]
    pub(crate) create_revision: i64,
    /// 0: a deletion.
    #[prost(int64, tag = "2")]
    pub(crate) version: i64,
    #[prost(int64, tag = "3")]
    pub(crate) lease: i64,
    #[prost(fixed32, tag = "4")]
    pub(crate) value_crc: u32,
    #[prost(uint32, tag = "5")]
    pub(crate) value_bytes: u32,
}

impl HistoryRecord {
    pub(crate) fn of(event: &Event) -> HistoryRecord {
        HistoryRecord {
            create_revision: event.kv.create_revision,
            version: event.kv.version,
            lease: event.kv.lease,
            value_crc: crc32fast::hash(&event.kv.value),
            value_bytes: u32::try_from(event.kv.value.len()).unwrap_or(u32::MAX),
        }
    }

    pub(crate) fn version(self, at: Point) -> Version {
        Version {
            at,
            create_revision: self.create_revision,
            version: self.version,
            lease: self.lease,
        }
    }
}

/// Everything that is not a change or a lease, in keyspace `meta` under [`META_KEY`], written with every batch.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MetaRecord {
    #[prost(uint64, tag = "1")]
    pub(crate) applied: u64,
    #[prost(int64, tag = "2")]
    pub(crate) revision: i64,
    #[prost(int64, tag = "3")]
    pub(crate) compacted: i64,
    /// Which keyspaces are complete; see [`crate::migrate::LAYOUT`].
    #[prost(uint32, tag = "4")]
    pub(crate) layout: u32,
    /// Logical bytes of all events ever stored; those of [`ReclaimRecord::freed_bytes`] are gone again.
    #[prost(uint64, tag = "5")]
    pub(crate) stored_bytes: u64,
    /// Running hash after `applied`.
    #[prost(fixed64, tag = "6")]
    pub(crate) digest: u64,
    /// Log index after which the running hash began; hashes are comparable only where this is the same.
    #[prost(uint64, tag = "7")]
    pub(crate) digest_since: u64,
    #[prost(message, repeated, tag = "8")]
    pub(crate) alarms: Vec<AlarmRecord>,
}

/// An alarm that is on.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct AlarmRecord {
    /// As in etcd's `AlarmType`.
    #[prost(int32, tag = "1")]
    pub(crate) kind: i32,
    #[prost(uint64, tag = "2")]
    pub(crate) member: u64,
}

/// Key of a [`MetaRecord`] in keyspace `meta`.
pub(crate) const META_KEY: &[u8] = b"state";

/// How far the reclaiming of space is, in keyspace `meta` under [`RECLAIM_KEY`], written with every batch of it.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct ReclaimRecord {
    /// Compacted revision whose space is completely given back.
    #[prost(int64, tag = "1")]
    pub(crate) done: i64,
    /// Where the walk through `revisions` goes on.
    #[prost(int64, tag = "2")]
    pub(crate) next_main: i64,
    #[prost(uint32, tag = "3")]
    pub(crate) next_sub: u32,
    /// Logical bytes given back ever.
    #[prost(uint64, tag = "4")]
    pub(crate) freed_bytes: u64,
    /// Compacted revision that the walk under way goes to; not beyond `done`: none is under way. A compaction
    /// meanwhile waits for the next walk, which begins with the changes of this revision again.
    #[prost(int64, tag = "5")]
    pub(crate) target: i64,
}

/// Key of a [`ReclaimRecord`].
pub(crate) const RECLAIM_KEY: &[u8] = b"reclaim";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_read_as_any_release_wrote_them() {
        assert_eq!(value_lease(&lease_value(60, 15)), Some((60, 15)));
        assert_eq!(value_lease(&60_i64.to_be_bytes()), Some((60, 0)));
        for bad in [&b""[..], b"1234567", b"123456789"] {
            assert_eq!(value_lease(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn every_refusal_comes_back() {
        for (error, _, _) in error::TABLE {
            let ReplyBody::Refused(place) = ReplyBody::refused(*error) else {
                unreachable!("it is a refusal")
            };
            assert_eq!(ReplyBody::error(place), *error);
        }
    }
}
