//! What lies in the Raft log and in the engine. Fields are only added, with new numbers: a log is replayed by the
//! release after the one that wrote it, and members of both releases run side by side during an update.

use bytes::Bytes;
use chainfire_client::wire::etcdserverpb as pb;
use chainfire_core::{Event, EventKind, KeyValue, OpError, Point, error};

use crate::{
    auth::record::{AuthRecord, CallerRecord},
    members::table::MembersEntry,
};

/// A command in the log.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct LogRecord {
    #[prost(oneof = "LogBody", tags = "1, 2, 3, 4, 5, 6, 7, 9, 10, 11")]
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
    #[prost(message, tag = "10")]
    Checkpoint(CheckpointLeases),
    #[prost(message, tag = "11")]
    Members(MembersEntry),
    #[prost(message, tag = "9")]
    Auth(AuthRecord),
}

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
    #[prost(oneof = "ReplyBody", tags = "1, 2, 3, 4, 5, 6, 15")]
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
}

impl EventRecord {
    pub(crate) fn of(event: &Event) -> EventRecord {
        EventRecord {
            key: event.kv.key.clone(),
            value: event.kv.value.clone(),
            create_revision: event.kv.create_revision,
            version: event.kv.version,
            lease: event.kv.lease,
        }
    }

    pub(crate) fn event(self, at: Point) -> Event {
        let kind = if self.version == 0 {
            EventKind::Delete
        } else {
            EventKind::Put
        };
        let kv = KeyValue {
            key: self.key,
            create_revision: self.create_revision,
            mod_revision: at.main,
            version: self.version,
            value: self.value,
            lease: self.lease,
        };
        Event { kind, kv }
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
}

/// Key of the only record in keyspace `meta`.
pub(crate) const META_KEY: &[u8] = b"state";

/// Key of a change: sorts as the point does.
pub(crate) fn point_key(at: Point) -> [u8; 12] {
    let mut key = [0; 12];
    let (main, sub) = key.split_at_mut(8);
    main.copy_from_slice(&at.main.to_be_bytes());
    sub.copy_from_slice(&at.sub.to_be_bytes());
    key
}

/// The point of a key.
pub(crate) fn key_point(key: &[u8]) -> Option<Point> {
    let (main, rest) = key.split_first_chunk::<8>()?;
    let sub: [u8; 4] = rest.try_into().ok()?;
    Some(Point {
        main: i64::from_be_bytes(*main),
        sub: u32::from_be_bytes(sub),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_points_sort_and_come_back() {
        let points = [(1, 0), (1, 1), (1, 256), (2, 0), (300, 0), (i64::MAX, u32::MAX)];
        let keys: Vec<[u8; 12]> = points
            .iter()
            .map(|(main, sub)| {
                point_key(Point {
                    main: *main,
                    sub: *sub,
                })
            })
            .collect();
        assert!(keys.is_sorted());
        for ((main, sub), key) in points.iter().zip(&keys) {
            assert_eq!(
                key_point(key),
                Some(Point {
                    main: *main,
                    sub: *sub
                })
            );
        }
        assert_eq!(key_point(b"short"), None);
    }

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
