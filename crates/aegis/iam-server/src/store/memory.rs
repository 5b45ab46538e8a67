//! The store in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iam_client::Authorizer;
use iam_client::records::PUBLIC_PREFIX;

use super::{Commit, Store, StoreError, Stored};

/// Keys and values in memory, with revisions as Chainfire counts them. Clones share them. It feeds an authorizer, since
/// nothing can watch it.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
    authorizer: Authorizer,
}

#[derive(Debug)]
struct Inner {
    revision: i64,
    values: BTreeMap<String, (Vec<u8>, i64)>,
}

impl MemoryStore {
    /// An empty store that feeds `authorizer`.
    #[must_use]
    pub fn new(authorizer: Authorizer) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                revision: 1,
                values: BTreeMap::new(),
            })),
            authorizer,
        }
    }

    /// As a [`Store`].
    #[must_use]
    pub fn into_store(self) -> Store {
        Store::Memory(self)
    }

    /// Everything in it, for tests that look for what should not be there.
    #[must_use]
    pub fn dump(&self) -> Vec<Stored> {
        self.list("")
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &str) -> Option<Stored> {
        self.lock()
            .values
            .get(key)
            .map(|(value, revision)| stored(key, value, *revision))
    }

    pub(super) fn list(&self, prefix: &str) -> Vec<Stored> {
        let inner = self.lock();
        let range = inner.values.range(prefix.to_owned()..);
        range
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, (value, revision))| stored(key, value, *revision))
            .collect()
    }

    pub(super) fn list_back(&self, prefix: &str, before: Option<&str>, limit: usize) -> Vec<Stored> {
        let all = self.list(prefix);
        let earlier = all
            .into_iter()
            .rev()
            .filter(|one| before.is_none_or(|before| one.key.as_str() < before));
        earlier.take(limit).collect()
    }

    pub(super) fn commit(&self, commit: Commit) -> Result<i64, StoreError> {
        let mut inner = self.lock();
        let holds =
            |(key, revision): &(String, i64)| inner.values.get(key).map_or(0, |(_, at)| *at) == *revision;
        if !commit.guards.iter().all(holds) {
            return Err(StoreError::Conflict);
        }
        inner.revision += 1;
        let revision = inner.revision;
        for key in &commit.deletes {
            inner.values.remove(key);
        }
        for (key, value) in &commit.puts {
            inner.values.insert(key.clone(), (value.clone(), revision));
        }
        let public = |key: &&str| key.starts_with(PUBLIC_PREFIX);
        let deletes = commit
            .deletes
            .iter()
            .map(String::as_str)
            .filter(public)
            .map(|key| (key, None));
        let puts = commit
            .puts
            .iter()
            .map(|(key, value)| (key.as_str(), Some(value.as_slice())));
        let puts = puts.filter(|(key, _)| key.starts_with(PUBLIC_PREFIX));
        // Under the lock, so that the authorizer sees the revisions in order.
        self.authorizer.apply(revision, deletes.chain(puts));
        Ok(revision)
    }
}

fn stored(key: &str, value: &[u8], mod_revision: i64) -> Stored {
    Stored {
        key: key.to_owned(),
        value: value.to_vec(),
        mod_revision,
    }
}
