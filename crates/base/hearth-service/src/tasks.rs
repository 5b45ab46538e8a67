//! Supervised tasks and ordered shutdown.
//!
//! Every spawned task has a name and a [`Kind`]; the kind says what its end means for the process:
//!
//! ```text
//!              ends or fails while running        shutdown begins
//! Critical     the process stops with the error   waits for it, up to the grace period
//! Background   an error is logged                 waits for it, up to the grace period
//! ```

use std::error::Error;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a task may fail with.
pub type TaskError = Box<dyn Error + Send + Sync>;

/// What the end of a task means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The process is of no use without it: its failure or early end stops the process.
    Critical,
    /// The process goes on without it; a failure is logged.
    Background,
}

/// The critical task that ended the process.
#[derive(Debug, thiserror::Error)]
pub enum TaskFailure {
    /// It returned an error.
    #[error("`{task}` failed")]
    Failed {
        /// Name of the task.
        task: &'static str,
        /// Its error.
        source: TaskError,
    },
    /// It returned although it should run until the stop.
    #[error("`{0}` ended although nobody had asked it to")]
    Ended(&'static str),
    /// It panicked; the message is in the log.
    #[error("`{0}` panicked")]
    Panicked(&'static str),
    /// The process could not listen for signals.
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
}

#[derive(Debug, Default)]
struct Inner {
    stop: CancellationToken,
    tracker: TaskTracker,
    failure: Mutex<Option<TaskFailure>>,
}

/// A group of supervised tasks with one stop signal. Clones share the group.
#[derive(Clone, Debug, Default)]
pub struct Tasks(Arc<Inner>);

impl Tasks {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future` until it ends. It should return soon after [`Tasks::stopping`] resolves.
    pub fn spawn<F>(&self, name: &'static str, kind: Kind, future: F)
    where
        F: Future<Output = Result<(), TaskError>> + Send + 'static,
    {
        let tasks = self.clone();
        self.0.tracker.spawn(async move {
            let outcome = AssertUnwindSafe(future).catch_unwind().await;
            tasks.ended(name, kind, outcome);
        });
    }

    fn ended(&self, name: &'static str, kind: Kind, outcome: std::thread::Result<Result<(), TaskError>>) {
        let failure = match (outcome, kind) {
            (Ok(Ok(())), Kind::Critical) if !self.is_stopping() => TaskFailure::Ended(name),
            (Ok(Ok(())), _) => return,
            (Ok(Err(source)), _) => TaskFailure::Failed { task: name, source },
            (Err(_), _) => TaskFailure::Panicked(name),
        };
        if kind == Kind::Background {
            tracing::warn!(task = name, error = %chain(&failure), "a background task ended");
            return;
        }
        let mut slot = self
            .0
            .failure
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(failure);
        }
        drop(slot);
        self.0.stop.cancel();
    }

    /// Resolves when the group is asked to stop.
    pub async fn stopping(&self) {
        self.0.stop.cancelled().await;
    }

    /// True once the group was asked to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.0.stop.is_cancelled()
    }

    /// Asks every task to end.
    pub fn stop(&self, why: &str) {
        if !self.is_stopping() {
            tracing::info!(why, "stopping");
        }
        self.0.stop.cancel();
    }

    /// Waits until all tasks have ended, at most `grace`. True when all have.
    pub async fn finished(&self, grace: Duration) -> bool {
        self.0.tracker.close();
        tokio::time::timeout(grace, self.0.tracker.wait()).await.is_ok()
    }

    /// Waits for SIGTERM, SIGINT or the failure of a critical task, then stops the group and waits `grace` for it. A
    /// second signal cuts the wait short.
    ///
    /// # Errors
    /// The failure of the critical task that ended the process.
    pub async fn run_until_signal(&self, grace: Duration) -> Result<(), TaskFailure> {
        let mut terminate = signal(SignalKind::terminate()).map_err(TaskFailure::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(TaskFailure::Signals)?;
        tokio::select! {
            _ = terminate.recv() => self.stop("SIGTERM"),
            _ = interrupt.recv() => self.stop("SIGINT"),
            () = self.stopping() => {}
        }
        tokio::select! {
            all = self.finished(grace) => if !all {
                tracing::warn!(grace_s = grace.as_secs(), "tasks were still running at the end of the grace period");
            },
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        self.0
            .failure
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take()
            .map_or(Ok(()), Err)
    }
}

/// An error and all its sources in one line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_critical_failure_stops_the_group_and_is_reported() {
        let tasks = Tasks::new();
        let waiter = tasks.clone();
        tasks.spawn("waiter", Kind::Background, async move {
            waiter.stopping().await;
            Ok(())
        });
        tasks.spawn("disk", Kind::Critical, async { Err("no space".into()) });
        let failure = tokio::time::timeout(SOON, tasks.run_until_signal(SOON))
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(chain(&failure), "`disk` failed: no space");
    }

    #[tokio::test]
    async fn a_critical_task_may_not_end_early_but_a_background_one_may() {
        let tasks = Tasks::new();
        tasks.spawn("short", Kind::Background, async { Ok(()) });
        tasks.spawn("server", Kind::Critical, async { Ok(()) });
        let failure = tokio::time::timeout(SOON, tasks.run_until_signal(SOON))
            .await
            .unwrap()
            .unwrap_err();
        assert!(matches!(failure, TaskFailure::Ended("server")));
    }

    #[tokio::test]
    async fn stop_waits_for_tasks_but_not_longer_than_the_grace() {
        let tasks = Tasks::new();
        tasks.spawn("stuck", Kind::Background, std::future::pending());
        tasks.stop("test");
        assert!(!tasks.finished(Duration::from_millis(50)).await);
    }
}
