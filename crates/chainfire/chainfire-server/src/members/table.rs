//! What all members know of each member beside Raft's configuration: what it published of itself, and every id that
//! was ever used. Part of the replicated state: keyspace `members`, one record for each id, and the level.
//!
//! ```text
//!   (no record) --level entry or added--> known --publish--> published --removed--> removed, for ever
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use chainfire_core::OpError;
use prost::Message;
use raft_host::{Membership, NodeId};

use crate::tables::StorageError;

/// What this release understands. A release with a new kind of log entry raises it by one; entries of that kind are
/// proposed only when the cluster's level is as high.
///
/// 1: entries about members (tag 11), checkpoints of leases (tag 10).
pub(crate) const LEVEL: u32 = 1;
/// Key of the cluster's level; ids have eight bytes.
const LEVEL_KEY: &[u8] = b"level";

/// What a member says of itself.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MemberRecord {
    /// Its name; empty until it has started.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, repeated, tag = "2")]
    pub(crate) client_urls: Vec<String>,
    /// The random number of its log; 0 until it has started.
    #[prost(fixed64, tag = "3")]
    pub(crate) disk: u64,
    /// What it understands: see [`LEVEL`].
    #[prost(uint32, tag = "4")]
    pub(crate) level: u32,
    /// It is no member any more; its id is never used again.
    #[prost(bool, tag = "5")]
    pub(crate) removed: bool,
}

/// An entry about members in the log.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MembersEntry {
    #[prost(oneof = "MembersBody", tags = "1, 2")]
    pub(crate) body: Option<MembersBody>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum MembersBody {
    #[prost(message, tag = "1")]
    Publish(Publish),
    #[prost(message, tag = "2")]
    Level(RaiseLevel),
}

/// A member tells of itself.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Publish {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) record: Option<MemberRecord>,
}

/// All members understand `level`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RaiseLevel {
    #[prost(uint32, tag = "1")]
    pub(crate) level: u32,
    /// The members at that time: those of the cluster's beginning were not added by an entry.
    #[prost(uint64, repeated, tag = "2")]
    pub(crate) members: Vec<u64>,
}

/// A pair for the keyspace.
pub(crate) type Write = (Vec<u8>, Vec<u8>);

/// The whole keyspace, in memory: a record for each id ever used.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct MemberTable {
    level: u32,
    records: BTreeMap<NodeId, MemberRecord>,
}

impl MemberTable {
    /// Reads what [`MemberTable::apply`] and [`MemberTable::changed`] gave to write.
    pub(crate) fn load(pairs: impl Iterator<Item = (Bytes, Bytes)>) -> Result<MemberTable, StorageError> {
        let damaged = || StorageError::Record {
            what: "a member".into(),
        };
        let mut table = MemberTable::default();
        for (key, value) in pairs {
            if key == LEVEL_KEY {
                let level = <[u8; 4]>::try_from(value.as_ref()).map_err(|_| damaged())?;
                table.level = u32::from_be_bytes(level);
                continue;
            }
            let id = <[u8; 8]>::try_from(key.as_ref()).map_err(|_| damaged())?;
            let record = MemberRecord::decode(value).map_err(|_| damaged())?;
            table.records.insert(u64::from_be_bytes(id), record);
        }
        Ok(table)
    }

    /// What every member understands; 0: not all have said so yet.
    pub(crate) fn level(&self) -> u32 {
        self.level
    }

    /// The record of an id ever used.
    pub(crate) fn get(&self, id: NodeId) -> Option<&MemberRecord> {
        self.records.get(&id)
    }

    /// Whether this id was a member and is none any more.
    pub(crate) fn is_removed(&self, id: NodeId) -> bool {
        self.get(id).is_some_and(|record| record.removed)
    }

    /// The disk that a member published, if it has.
    pub(crate) fn disk(&self, id: NodeId) -> Option<u64> {
        self.get(id).map(|record| record.disk).filter(|disk| *disk != 0)
    }

    /// Applies an entry: what to write, or why it has no effect.
    pub(crate) fn apply(&mut self, entry: MembersEntry) -> Result<Vec<Write>, OpError> {
        match entry.body {
            Some(MembersBody::Publish(publish)) => self.publish(publish),
            Some(MembersBody::Level(raise)) => Ok(self.raise(&raise)),
            None => Err(OpError::NotCapable),
        }
    }

    fn publish(&mut self, publish: Publish) -> Result<Vec<Write>, OpError> {
        // A first member of a restored cluster has no record yet, although the level is known.
        let known = self.records.entry(publish.id).or_default();
        let Some(mut record) = publish.record.filter(|_| !known.removed) else {
            return Err(OpError::MemberNotFound);
        };
        // A member under its old id on a new disk has forgotten what it promised.
        if known.disk != 0 && record.disk != known.disk {
            return Err(OpError::MemberExists);
        }
        record.removed = false;
        *known = record;
        Ok(vec![pair(publish.id, known)])
    }

    fn raise(&mut self, raise: &RaiseLevel) -> Vec<Write> {
        let mut writes = Vec::new();
        if raise.level > self.level {
            self.level = raise.level;
            writes.push((LEVEL_KEY.to_vec(), raise.level.to_be_bytes().to_vec()));
        }
        for id in &raise.members {
            writes.extend(self.know(*id));
        }
        writes
    }

    /// Raft's configuration changed: notes new ids, and those that are gone, for ever. What to write.
    pub(crate) fn changed(&mut self, membership: &Membership) -> Vec<Write> {
        let mut writes = Vec::new();
        for member in &membership.members {
            writes.extend(self.know(member.id));
        }
        for (id, record) in &mut self.records {
            if !record.removed && membership.get(*id).is_none() {
                record.removed = true;
                writes.push(pair(*id, record));
            }
        }
        writes
    }

    fn know(&mut self, id: NodeId) -> Option<Write> {
        if self.records.contains_key(&id) {
            return None;
        }
        let record = MemberRecord::default();
        let write = pair(id, &record);
        self.records.insert(id, record);
        Some(write)
    }
}

fn pair(id: NodeId, record: &MemberRecord) -> Write {
    (id.to_be_bytes().to_vec(), record.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use raft_host::Peer;

    use super::*;

    fn membership(ids: &[u64]) -> Membership {
        let peers: Vec<Peer> = ids
            .iter()
            .map(|id| Peer {
                id: *id,
                address: String::new(),
            })
            .collect();
        Membership::initial(&peers)
    }

    fn publish(id: u64, disk: u64) -> MembersEntry {
        let record = MemberRecord {
            name: format!("m{id}"),
            disk,
            level: LEVEL,
            ..MemberRecord::default()
        };
        MembersEntry {
            body: Some(MembersBody::Publish(Publish {
                id,
                record: Some(record),
            })),
        }
    }

    fn level(level: u32, members: &[u64]) -> MembersEntry {
        let raise = RaiseLevel {
            level,
            members: members.to_vec(),
        };
        MembersEntry {
            body: Some(MembersBody::Level(raise)),
        }
    }

    #[test]
    fn a_members_life() {
        let mut table = MemberTable::default();
        let mut stored = BTreeMap::new();
        let mut write = |writes: Vec<Write>| stored.extend(writes);
        write(table.apply(level(1, &[1, 2])).unwrap());
        write(table.apply(publish(1, 7)).unwrap());
        write(table.apply(publish(1, 7)).unwrap());
        assert_eq!(
            table.apply(publish(1, 8)),
            Err(OpError::MemberExists),
            "another disk"
        );
        write(table.changed(&membership(&[1, 2, 3])));
        write(table.apply(publish(3, 9)).unwrap());
        write(table.changed(&membership(&[1, 2])));
        assert_eq!(
            table.apply(publish(3, 9)),
            Err(OpError::MemberNotFound),
            "removed"
        );
        assert!(table.is_removed(3) && !table.is_removed(2) && table.get(4).is_none());
        assert_eq!((table.level(), table.disk(1), table.disk(2)), (1, Some(7), None));
        write(table.changed(&membership(&[1, 2, 3])));
        assert!(table.is_removed(3), "an id never comes back");
        write(table.apply(publish(8, 1)).unwrap());
        assert_eq!(table.disk(8), Some(1), "of a restored cluster");
        write(table.apply(level(0, &[])).unwrap());
        assert_eq!(table.level(), 1, "the level never falls");
        let pairs = stored.into_iter().map(|(k, v)| (Bytes::from(k), Bytes::from(v)));
        assert_eq!(
            MemberTable::load(pairs).unwrap(),
            table,
            "what was written is what was known"
        );
    }
}
