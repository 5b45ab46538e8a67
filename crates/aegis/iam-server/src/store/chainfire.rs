//! The store on Chainfire.

use chainfire_client::wire::etcdserverpb::{RangeRequest, range_request};
use chainfire_client::{Client, Compare, Error, KeyValue, Op, Txn, prefix_end};

use super::{Commit, StoreError, Stored};

fn failed(error: Error) -> StoreError {
    match error {
        Error::UnknownOutcome { .. } => StoreError::Unknown(error),
        other => StoreError::Chainfire(other),
    }
}

fn stored(kv: &KeyValue) -> Stored {
    Stored {
        key: kv.key_text().into_owned(),
        value: kv.value.to_vec(),
        mod_revision: kv.mod_revision,
    }
}

pub(super) async fn get(client: &Client, key: &str) -> Result<Option<Stored>, StoreError> {
    Ok(client.get(key).await.map_err(failed)?.as_ref().map(stored))
}

pub(super) async fn list(client: &Client, prefix: &str) -> Result<Vec<Stored>, StoreError> {
    let listing = client.list(prefix).await.map_err(failed)?;
    Ok(listing.kvs.iter().map(stored).collect())
}

pub(super) async fn list_back(
    client: &Client,
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
    let reply = client.range(range).await.map_err(failed)?;
    Ok(reply
        .kvs
        .into_iter()
        .map(KeyValue::from)
        .map(|kv| stored(&kv))
        .collect())
}

pub(super) async fn commit(client: &Client, commit: Commit) -> Result<i64, StoreError> {
    let guards = commit
        .guards
        .iter()
        .map(|(key, revision)| Compare::mod_revision(key).equal(*revision));
    let deletes = commit.deletes.iter().map(Op::delete);
    let puts = commit.puts.iter().map(|(key, value)| Op::put(key, value));
    let txn = Txn::new().when(guards).then(deletes.chain(puts));
    let outcome = client.txn(txn).await.map_err(failed)?;
    if outcome.succeeded {
        Ok(outcome.revision)
    } else {
        Err(StoreError::Conflict)
    }
}
