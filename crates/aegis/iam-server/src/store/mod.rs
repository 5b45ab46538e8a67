//! Where Aegis keeps everything: a small guarded key-value interface, on Chainfire or in memory.

mod chainfire;
mod memory;
pub mod records;

use hearth_service::error::{ApiError, ErrorKind};

pub use chainfire::ChainfireStore;
pub use memory::MemoryStore;

/// Most records that one listing reads.
pub const MAX_LISTED: usize = 1000;

/// A store. `Memory` loses everything at the end and serves one process: it is for tests.
#[derive(Clone, Debug)]
pub enum Store {
    /// The cluster's.
    Chainfire(ChainfireStore),
    /// One process's.
    Memory(MemoryStore),
}

/// A stored value with the revision of its last change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its key.
    pub key: String,
    /// Its bytes.
    pub value: Vec<u8>,
    /// What a guard compares with.
    pub mod_revision: i64,
}

/// Writes that happen together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// Keys that must have been changed last at these revisions; 0: must not exist.
    pub guards: Vec<(String, i64)>,
    /// Keys with their new values.
    pub puts: Vec<(String, Vec<u8>)>,
    /// Keys to delete.
    pub deletes: Vec<String>,
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A guard did not hold: somebody else was faster. Nothing was written.
    #[error("somebody else changed it meanwhile")]
    Conflict,
    /// A write may or may not have happened.
    #[error("it is not known whether the change was stored")]
    Unknown(#[source] chainfire_client::Error),
    /// The store does not answer, or refuses.
    #[error("the store does not answer")]
    Chainfire(#[source] chainfire_client::Error),
    /// A record is not what this version can read.
    #[error("the record `{0}` cannot be read; was it written by a newer version?")]
    Record(String),
    /// A secret that this seal key does not open, or that could not be sealed.
    #[error(
        "the secret `{0}` cannot be sealed or opened; is the seal key the one that this cluster began with?"
    )]
    Sealed(String),
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Conflict => {
                Self::new(ErrorKind::Conflict, error.to_string()).hint("read it again and retry")
            }
            StoreError::Unknown(_) => Self::new(ErrorKind::Unavailable, error.to_string())
                .hint("look whether it is there before repeating it")
                .source(error),
            StoreError::Chainfire(cause) if cause.is_retryable() => {
                Self::new(ErrorKind::Unavailable, "the store does not answer")
                    .hint("retry in a moment")
                    .source(error)
            }
            StoreError::Chainfire(_) | StoreError::Record(_) | StoreError::Sealed(_) => {
                Self::internal("the store", error)
            }
        }
    }
}

impl Store {
    /// The value now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get(&self, key: &str) -> Result<Option<Stored>, StoreError> {
        match self {
            Self::Chainfire(store) => store.get(key).await,
            Self::Memory(store) => {
                interleave().await;
                Ok(store.get(key))
            }
        }
    }

    /// The values under a prefix in key order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self, prefix: &str) -> Result<Vec<Stored>, StoreError> {
        match self {
            Self::Chainfire(store) => store.list(prefix).await,
            Self::Memory(store) => {
                interleave().await;
                Ok(store.list(prefix))
            }
        }
    }

    /// The last values under a prefix that stand before the key `before`, last first, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list_back(
        &self,
        prefix: &str,
        before: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Stored>, StoreError> {
        let limit = limit.min(MAX_LISTED);
        match self {
            Self::Chainfire(store) => store.list_back(prefix, before, limit).await,
            Self::Memory(store) => Ok(store.list_back(prefix, before, limit)),
        }
    }

    /// Writes all of it if every guard holds, and returns the revision that it made.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a guard does not hold.
    pub async fn commit(&self, commit: Commit) -> Result<i64, StoreError> {
        assert!(
            !commit.puts.is_empty() || !commit.deletes.is_empty(),
            "a commit writes something"
        );
        match self {
            Self::Chainfire(store) => store.commit(commit).await,
            Self::Memory(store) => {
                interleave().await;
                store.commit(commit)
            }
        }
    }
}

/// Lets others run between two steps, as a store behind a network does: races in tests then happen.
async fn interleave() {
    tokio::task::yield_now().await;
}

impl Commit {
    /// Requires that `key` was changed last at `mod_revision`; 0: that it does not exist.
    #[must_use]
    pub fn guard(mut self, key: impl Into<String>, mod_revision: i64) -> Self {
        self.guards.push((key.into(), mod_revision));
        self
    }

    /// Writes a record.
    #[must_use]
    pub fn put<T: serde::Serialize>(mut self, key: impl Into<String>, record: &T) -> Self {
        // Records are plain structs with text keys: writing them as JSON cannot fail.
        self.puts
            .push((key.into(), serde_json::to_vec(record).unwrap_or_default()));
        self
    }

    /// Deletes a record.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.deletes.push(key.into());
        self
    }
}

impl Stored {
    /// The record in it.
    ///
    /// # Errors
    /// [`StoreError::Record`] when this version cannot read it.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, StoreError> {
        serde_json::from_slice(&self.value).map_err(|_| StoreError::Record(self.key.clone()))
    }
}
