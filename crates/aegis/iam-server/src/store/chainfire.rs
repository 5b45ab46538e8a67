//! The store on Chainfire. Everything under [`SECRET`] is sealed, bound to its key: whoever reads Chainfire, a backup of
//! it or its log without the seal key sees ciphertext, and no record can be passed off as another.

use std::sync::Arc;

use chainfire_client::wire::etcdserverpb::{RangeRequest, range_request};
use chainfire_client::{Client, Compare, Error, KeyValue, Op, Txn, prefix_end};

use super::{Commit, StoreError, Stored};
use crate::seal::Sealer;

/// What is sealed.
const SECRET: &str = "/aegis/v1/secret/";

/// Chainfire with the key that seals.
#[derive(Clone, Debug)]
pub struct ChainfireStore {
    client: Client,
    sealer: Arc<Sealer>,
}

fn failed(error: Error) -> StoreError {
    match error {
        Error::UnknownOutcome { .. } => StoreError::Unknown(error),
        other => StoreError::Chainfire(other),
    }
}

impl ChainfireStore {
    /// A store that seals with this key.
    #[must_use]
    pub fn new(client: Client, sealer: Arc<Sealer>) -> Self {
        Self { client, sealer }
    }

    fn stored(&self, kv: &KeyValue) -> Result<Stored, StoreError> {
        let key = kv.key_text().into_owned();
        let value = if key.starts_with(SECRET) {
            let opened = self.sealer.open_bytes(key.as_bytes(), &kv.value);
            opened.ok_or_else(|| StoreError::Sealed(key.clone()))?
        } else {
            kv.value.to_vec()
        };
        Ok(Stored {
            key,
            value,
            mod_revision: kv.mod_revision,
        })
    }

    pub(super) async fn get(&self, key: &str) -> Result<Option<Stored>, StoreError> {
        let found = self.client.get(key).await.map_err(failed)?;
        found.as_ref().map(|kv| self.stored(kv)).transpose()
    }

    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<Stored>, StoreError> {
        let listing = self.client.list(prefix).await.map_err(failed)?;
        listing.kvs.iter().map(|kv| self.stored(kv)).collect()
    }

    pub(super) async fn list_back(
        &self,
        prefix: &str,
        before: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Stored>, StoreError> {
        let range_end = before.map_or_else(
            || prefix_end(prefix.as_bytes()),
            |before| before.to_owned().into(),
        );
        let range = RangeRequest {
            key: prefix.to_owned().into(),
            range_end,
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
            sort_order: range_request::SortOrder::Descend.into(),
            sort_target: range_request::SortTarget::Key.into(),
            ..RangeRequest::default()
        };
        let reply = self.client.range(range).await.map_err(failed)?;
        let kvs = reply.kvs.into_iter().map(KeyValue::from);
        kvs.map(|kv| self.stored(&kv)).collect()
    }

    pub(super) async fn commit(&self, commit: Commit) -> Result<i64, StoreError> {
        let guards = commit
            .guards
            .iter()
            .map(|(key, revision)| Compare::mod_revision(key).equal(*revision));
        let deletes = commit.deletes.iter().map(Op::delete);
        let mut puts = Vec::with_capacity(commit.puts.len());
        for (key, value) in &commit.puts {
            if key.starts_with(SECRET) {
                let sealed = self.sealer.seal_bytes(key.as_bytes(), value);
                puts.push(Op::put(
                    key,
                    sealed.ok_or_else(|| StoreError::Sealed(key.clone()))?,
                ));
            } else {
                puts.push(Op::put(key, value));
            }
        }
        let txn = Txn::new().when(guards).then(deletes.chain(puts));
        let outcome = self.client.txn(txn).await.map_err(failed)?;
        if outcome.succeeded {
            Ok(outcome.revision)
        } else {
            Err(StoreError::Conflict)
        }
    }
}
