//! Keys and values: get, list, put, delete.

use bytes::Bytes;

use crate::{
    Client, Error, Result,
    conn::{CallKind, kv_stub, request},
    wire::{
        etcdserverpb::{
            CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, ResponseHeader,
        },
        mvccpb,
    },
};

/// Keys fetched per request by [`Client::list`].
pub const PAGE_KEYS: i64 = 500;
/// How often [`Client::list`] starts again when its revision is compacted under it.
pub const MAX_LIST_RESTARTS: usize = 5;

/// A stored pair with its history counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// Revision that brought the key into being.
    pub create_revision: i64,
    /// Revision of the last change; compare on it to guard a change.
    pub mod_revision: i64,
    /// 1 at creation, one more with every put.
    pub version: i64,
    /// Lease the key hangs on; 0: none.
    pub lease: i64,
}

impl KeyValue {
    /// The key as text; bytes that are not UTF-8 are replaced.
    pub fn key_text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.key)
    }
}

impl From<mvccpb::KeyValue> for KeyValue {
    fn from(kv: mvccpb::KeyValue) -> KeyValue {
        KeyValue {
            key: kv.key,
            value: kv.value,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
        }
    }
}

/// Answer to a read of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetOutcome {
    /// Store revision at which this was true.
    pub revision: i64,
    /// The pair, if the key exists.
    pub kv: Option<KeyValue>,
}

/// All pairs under a prefix at one revision, in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Revision at which the list is complete; watch from the next one.
    pub revision: i64,
    /// The pairs.
    pub kvs: Vec<KeyValue>,
}

/// Answer to a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutOutcome {
    /// Revision that the put made.
    pub revision: i64,
}

/// Answer to a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeleteOutcome {
    /// Store revision afterwards (unchanged when nothing was deleted).
    pub revision: i64,
    /// Keys deleted.
    pub deleted: i64,
}

/// The exclusive end of the range that holds exactly the keys with this prefix; `\0` (all keys from here on) when
/// there is no such end.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}

/// First key and exclusive end of a prefix range; the empty prefix means all keys.
pub(crate) fn prefix_range(prefix: &[u8]) -> (Bytes, Bytes) {
    if prefix.is_empty() {
        return (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
    }
    (Bytes::copy_from_slice(prefix), prefix_end(prefix))
}

pub(crate) fn revision_of(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

impl Client {
    /// The pair at `key` now (linearizable).
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<KeyValue>> {
        Ok(self.get_at(key, 0).await?.kv)
    }

    /// The pair at `key` at `revision` (0: now) and the revision of the answer.
    pub async fn get_at(&self, key: impl AsRef<[u8]>, revision: i64) -> Result<GetOutcome> {
        let range = RangeRequest {
            key: Bytes::copy_from_slice(key.as_ref()),
            revision,
            ..Default::default()
        };
        let reply = self.range(range).await?;
        let kv = reply.kvs.into_iter().next().map(KeyValue::from);
        Ok(GetOutcome {
            revision: revision_of(reply.header.as_ref()),
            kv,
        })
    }

    /// Any range request, as etcd defines it.
    pub async fn range(&self, range: RangeRequest) -> Result<RangeResponse> {
        self.call(CallKind::Idempotent, |channel| {
            let message = request(range.clone());
            async move { Ok(kv_stub(channel).range(message).await?.into_inner()) }
        })
        .await
    }

    /// All pairs under `prefix`, fetched page by page at one revision.
    pub async fn list(&self, prefix: impl AsRef<[u8]>) -> Result<Listing> {
        let mut restarts = 0;
        loop {
            match self.list_once(prefix.as_ref()).await {
                // Somebody compacted between two pages: the list starts again at a newer revision.
                Err(Error::Compacted) if restarts < MAX_LIST_RESTARTS => restarts += 1,
                done => return done,
            }
        }
    }

    async fn list_once(&self, prefix: &[u8]) -> Result<Listing> {
        let (mut key, range_end) = prefix_range(prefix);
        let mut listing = Listing {
            revision: 0,
            kvs: Vec::new(),
        };
        loop {
            let page = self
                .range(RangeRequest {
                    key: key.clone(),
                    range_end: range_end.clone(),
                    limit: PAGE_KEYS,
                    revision: listing.revision,
                    ..Default::default()
                })
                .await?;
            if listing.revision == 0 {
                listing.revision = revision_of(page.header.as_ref());
            }
            listing.kvs.extend(page.kvs.into_iter().map(KeyValue::from));
            match listing.kvs.last() {
                Some(last) if page.more => {
                    // The smallest key after `last`.
                    let mut next = last.key.to_vec();
                    next.push(0);
                    key = next.into();
                }
                _ => return Ok(listing),
            }
        }
    }

    /// Stores `value` at `key`, without a lease.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<PutOutcome> {
        self.put_with_lease(key, value, 0).await
    }

    /// Stores `value` at `key` for as long as `lease` lives (0: no lease).
    pub async fn put_with_lease(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        lease: i64,
    ) -> Result<PutOutcome> {
        let put = PutRequest {
            key: Bytes::copy_from_slice(key.as_ref()),
            value: Bytes::copy_from_slice(value.as_ref()),
            lease,
            ..Default::default()
        };
        let reply = self
            .call(CallKind::Write, |channel| {
                let message = request(put.clone());
                async move { Ok(kv_stub(channel).put(message).await?.into_inner()) }
            })
            .await?;
        Ok(PutOutcome {
            revision: revision_of(reply.header.as_ref()),
        })
    }

    /// Deletes one key; deleting what is not there is no error.
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<DeleteOutcome> {
        self.delete_range(Bytes::copy_from_slice(key.as_ref()), Bytes::new())
            .await
    }

    /// Deletes all keys under `prefix`.
    pub async fn delete_prefix(&self, prefix: impl AsRef<[u8]>) -> Result<DeleteOutcome> {
        let (key, end) = prefix_range(prefix.as_ref());
        self.delete_range(key, end).await
    }

    async fn delete_range(&self, key: Bytes, range_end: Bytes) -> Result<DeleteOutcome> {
        let delete = DeleteRangeRequest {
            key,
            range_end,
            prev_kv: false,
        };
        let reply = self
            .call(CallKind::Write, |channel| {
                let message = request(delete.clone());
                async move { Ok(kv_stub(channel).delete_range(message).await?.into_inner()) }
            })
            .await?;
        Ok(DeleteOutcome {
            revision: revision_of(reply.header.as_ref()),
            deleted: reply.deleted,
        })
    }

    /// Forgets history before `revision`.
    pub async fn compact(&self, revision: i64) -> Result<()> {
        self.call(CallKind::Write, |channel| {
            let message = request(CompactionRequest {
                revision,
                physical: false,
            });
            async move { Ok(kv_stub(channel).compact(message).await?.into_inner()) }
        })
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::prefix_end;

    #[test]
    fn prefix_end_is_the_smallest_key_outside() {
        assert_eq!(prefix_end(b"a").as_ref(), b"b");
        assert_eq!(prefix_end(b"a\xff").as_ref(), b"b");
        assert_eq!(prefix_end(b"\xff\xff").as_ref(), b"\0");
        assert_eq!(prefix_end(b"").as_ref(), b"\0");
    }
}
