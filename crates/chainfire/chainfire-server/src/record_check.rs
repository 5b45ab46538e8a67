//! Checks the records of a backup.

use bytes::Bytes;
use prost::Message;

use crate::{
    auth,
    layout::{key_point, split_history_key, unescape},
    members::table::MemberTable,
    record::{
        EventRecord, HistoryRecord, KeyRecord, META_KEY, MetaRecord, RECLAIM_KEY, ReclaimRecord, value_lease,
    },
};

/// Checks exported records one by one: that each can be read, and that they fit together.
#[derive(Debug, Default)]
pub(crate) struct RecordCheck {
    newest: i64,
    meta: Option<MetaRecord>,
}

impl RecordCheck {
    pub(crate) fn pair(&mut self, keyspace: &str, key: &[u8], value: &[u8]) -> Result<(), String> {
        match keyspace {
            "revisions" => {
                let at = key_point(key).ok_or("the key of a revision is malformed")?;
                EventRecord::decode(value).map_err(|_| format!("revision {} cannot be read", at.main))?;
                self.newest = self.newest.max(at.main);
            }
            "history" => {
                let split = split_history_key(key).filter(|(prefix, _)| unescape(prefix).is_some());
                split.ok_or("the key of a version is malformed")?;
                HistoryRecord::decode(value).map_err(|_| "a version cannot be read")?;
            }
            "keys" => {
                KeyRecord::decode(value).map_err(|_| "a key cannot be read")?;
            }
            "leases" => {
                if key.len() != 8 || value_lease(value).is_none() {
                    return Err("a lease is malformed".to_owned());
                }
            }
            "meta" if key == META_KEY => {
                self.meta = Some(MetaRecord::decode(value).map_err(|_| "the applied index cannot be read")?);
            }
            "meta" if key == RECLAIM_KEY => {
                ReclaimRecord::decode(value).map_err(|_| "the reclaimed revision cannot be read")?;
            }
            "meta" => {}
            "auth" => {
                let pair = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                auth::record::restore([pair]).ok_or("a user or a role cannot be read")?;
            }
            "members" => {
                let pair = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
                MemberTable::load(std::iter::once(pair)).map_err(|error| error.to_string())?;
            }
            other => {
                return Err(format!(
                    "it has a keyspace `{other}`, which this release does not know; use a newer one"
                ));
            }
        }
        Ok(())
    }

    /// Whether what was seen is the state at `revision` and `applied`.
    pub(crate) fn agrees_with(&self, revision: i64, applied: u64) -> Result<(), String> {
        let meta = self.meta.clone().unwrap_or(MetaRecord {
            revision: 1,
            compacted: -1,
            ..MetaRecord::default()
        });
        if meta.revision == revision && meta.applied == applied && self.newest <= revision {
            Ok(())
        } else {
            Err(format!(
                "its header tells of revision {revision} and entry {applied}, its content of revision {} (newest change \
                 {}) and entry {}",
                meta.revision, self.newest, meta.applied
            ))
        }
    }
}
