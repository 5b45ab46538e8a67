//! Whose turn it is to place VMs, or to free them.
//!
//! Everything that makes or frees a VM writes its project's quota, so of those at once only one can win in the store:
//! within one server they take turns, and only servers race. Turns are given in the order of asking. Placing and
//! freeing have turns of their own, so that a node's reports do not wait behind a crowd of creations.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hearth_types::ProjectId;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Turns at once in one server; more would only lose against each other for nodes.
const MAX_TURNS: usize = 8;
/// Projects remembered before those that nobody waits for are forgotten.
const MAX_REMEMBERED: usize = 256;

/// The turns of one server.
#[derive(Debug)]
pub(crate) struct Turns {
    all: Arc<Semaphore>,
    projects: Mutex<HashMap<ProjectId, Weak<Semaphore>>>,
}

/// A turn; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Turn {
    _project: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Turns {
    pub(crate) fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(MAX_TURNS)),
            projects: Mutex::default(),
        }
    }

    /// Waits for a turn. The project's first: who waits for it keeps nobody else waiting.
    pub(crate) async fn take(&self, project: ProjectId) -> Result<Turn, AcquireError> {
        let project = self.project(project).acquire_owned().await?;
        Ok(Turn {
            _project: project,
            _all: Arc::clone(&self.all).acquire_owned().await?,
        })
    }

    fn project(&self, project: ProjectId) -> Arc<Semaphore> {
        let mut projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = projects.get(&project).and_then(Weak::upgrade) {
            return known;
        }
        if projects.len() >= MAX_REMEMBERED {
            projects.retain(|_, turns| turns.strong_count() > 0);
        }
        let fresh = Arc::new(Semaphore::new(1));
        projects.insert(project, Arc::downgrade(&fresh));
        fresh
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn one_turn_for_a_project_and_some_for_all() {
        let turns = Turns::new();
        let project = |n| ProjectId::from_uuid(uuid::Uuid::from_u128(n));
        let soon = |n| tokio::time::timeout(Duration::from_millis(50), turns.take(project(n)));
        let first = turns.take(project(0)).await.unwrap();
        assert!(soon(0).await.is_err(), "a second turn of one project");
        let mut others = Vec::new();
        for n in 1..MAX_TURNS as u128 {
            others.push(turns.take(project(n)).await.unwrap());
        }
        assert!(soon(99).await.is_err(), "more turns than there are");
        drop(first);
        assert!(soon(0).await.is_ok());
        for n in 0..3 * MAX_REMEMBERED as u128 {
            drop(others.pop());
            drop(turns.take(project(1000 + n)).await.unwrap());
        }
        assert!(turns.projects.lock().unwrap().len() <= MAX_REMEMBERED);
    }
}
