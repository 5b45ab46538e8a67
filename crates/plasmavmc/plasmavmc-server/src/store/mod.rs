//! Everything that is kept in Chainfire: keys, records, and the transactions that change them.
//!
//! Each change is one transaction guarded by the revisions of what it was decided on. A transaction whose fate is
//! unknown (the connection broke) is answered by reading, never by hoping.

pub(crate) mod image;
pub(crate) mod keys;
pub(crate) mod node;
pub(crate) mod observe;
pub(crate) mod operation;
pub(crate) mod power;
pub(crate) mod quota;
pub(crate) mod records;
pub(crate) mod requests;
pub(crate) mod sweep;
pub(crate) mod takeover;
pub(crate) mod vm;

use std::sync::Arc;

use chainfire_client::wire::etcdserverpb::RangeRequest;
use chainfire_client::{Client, Compare, KeyValue, Op, OpOutcome, Txn, TxnOutcome, prefix_end};
use hearth_service::error::{ApiError, ErrorKind};
use hearth_service::fail_points::FailPoints;
use records::{Record, VERSION};

use crate::turns::Turns;

/// Attempts of a change that loses against others before it is given up.
pub(crate) const MAX_CONTENTION: u32 = 64;

/// Why the store could not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{doing}")]
    Chainfire {
        doing: &'static str,
        #[source]
        source: chainfire_client::Error,
    },
    #[error("the record at `{key}` cannot be read: {why}")]
    Damaged { key: String, why: String },
    #[error("{doing} lost against other changes too many times")]
    Contended { doing: &'static str },
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Chainfire { source, .. } => match source.kind() {
                kind @ (ErrorKind::Unavailable | ErrorKind::DeadlineExceeded) => Self::new(
                    kind,
                    "the store does not answer now, so the request may or may not have taken effect",
                )
                .hint("repeat it with the same idempotency key; `hearth status` shows the store's health")
                .source(error),
                kind @ ErrorKind::ResourceExhausted => Self::new(
                    kind,
                    format!("the store takes no changes now: {source}"),
                )
                .hint("if its disk is full, give Chainfire's data folders more room; then repeat the request")
                .source(error),
                _ => Self::internal("using the store", error),
            },
            StoreError::Damaged { .. } => {
                Self::new(ErrorKind::DataLoss, "a stored record is damaged").source(error)
            }
            StoreError::Contended { .. } => Self::new(ErrorKind::Unavailable, "too many changes at once")
                .hint("try again")
                .source(error),
        }
    }
}

/// Marks an error with what was being done.
pub(crate) fn while_doing(doing: &'static str) -> impl FnOnce(chainfire_client::Error) -> StoreError {
    move |source| StoreError::Chainfire { doing, source }
}

/// A record with the revision that guards its change. 0: it does not exist.
#[derive(Clone, Debug)]
pub(crate) struct Stored<T> {
    pub(crate) value: T,
    pub(crate) revision: i64,
}

/// The store. Clones share the connection.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    client: Client,
    freeing: Arc<Turns>,
    fail_points: FailPoints,
}

impl Store {
    pub(crate) fn new(client: Client, fail_points: FailPoints) -> Self {
        Self {
            client,
            freeing: Arc::new(Turns::new()),
            fail_points,
        }
    }

    pub(crate) const fn fail_points(&self) -> &FailPoints {
        &self.fail_points
    }

    pub(crate) const fn client(&self) -> &Client {
        &self.client
    }

    async fn get<T: Record>(&self, key: &str) -> Result<Option<Stored<T>>, StoreError> {
        let found = self
            .client
            .get(key)
            .await
            .map_err(while_doing("reading a record"))?;
        found.as_ref().map(decode).transpose()
    }

    /// Records below a prefix after a position, at most `limit`, and whether there are more.
    async fn page<T: Record>(
        &self,
        doing: &'static str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<(Vec<Stored<T>>, bool), StoreError> {
        // The key after `position` in byte order is the same with a zero byte at its end.
        let start = after.map_or_else(|| prefix.to_owned(), |position| format!("{prefix}{position}\0"));
        let range = RangeRequest {
            key: start.into_bytes().into(),
            range_end: prefix_end(prefix.as_bytes()),
            limit: limit.into(),
            ..Default::default()
        };
        let page = self.client.range(range).await.map_err(while_doing(doing))?;
        let records = page.kvs.into_iter().map(|kv| decode(&KeyValue::from(kv)));
        Ok((records.collect::<Result<_, _>>()?, page.more))
    }

    async fn txn(&self, doing: &'static str, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.client.txn(txn).await.map_err(while_doing(doing))
    }
}

/// Reads a record.
pub(crate) fn decode<T: Record>(kv: &KeyValue) -> Result<Stored<T>, StoreError> {
    let damaged = |why: String| StoreError::Damaged {
        key: kv.key_text().into_owned(),
        why,
    };
    let value: T = serde_json::from_slice(&kv.value).map_err(|error| damaged(error.to_string()))?;
    if value.version() > VERSION {
        return Err(damaged(format!(
            "it is of version {}, this server knows {VERSION}",
            value.version()
        )));
    }
    Ok(Stored {
        value,
        revision: kv.mod_revision,
    })
}

/// Writes a record.
pub(crate) fn encode<T: Record>(key: &str, value: &T) -> Result<Op, StoreError> {
    let bytes = serde_json::to_vec(value).map_err(|error| StoreError::Damaged {
        key: key.to_owned(),
        why: error.to_string(),
    })?;
    Ok(Op::put(key, bytes))
}

/// The guard that a key is as it was read; revision 0: it does not exist.
pub(crate) fn unchanged(key: &str, revision: i64) -> Compare {
    Compare::mod_revision(key).equal(revision)
}

/// The pairs read by operation number `index`.
pub(crate) fn pairs(outcome: &TxnOutcome, index: usize) -> &[KeyValue] {
    match outcome.responses.get(index) {
        Some(OpOutcome::Get { kvs }) => kvs,
        _ => &[],
    }
}
