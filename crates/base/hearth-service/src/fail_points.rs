//! Named points at which a test ends this process, or cuts it off, as a crash would.
//!
//! Code says `fail_points.reach("create.written").await` between two steps that a crash may fall between. Nothing
//! happens there, unless a test has armed the point. In a process, by a file of that name in `DATA/fail-points`: it is
//! removed, and the process ends at once. In a test's own process, by [`FailPoints::arm`]: whoever reaches the point
//! stands there for ever, until the test drops the whole runtime. Release builds know none of it: [`FailPoints::below`]
//! is empty there.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// The points of one process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct FailPoints(Option<Arc<Kind>>);

#[derive(Debug)]
enum Kind {
    Folder(PathBuf),
    Here(Mutex<Vec<(String, oneshot::Sender<()>)>>),
}

impl FailPoints {
    /// No point ever does anything.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Points that are armed by files in `DATA/fail-points`, if that folder is there now and this is a debug build.
    #[must_use]
    pub fn below(data_dir: &Path) -> Self {
        let folder = data_dir.join("fail-points");
        if cfg!(debug_assertions) && folder.is_dir() {
            tracing::warn!(folder = %folder.display(), "a test may end this process at its fail points");
            return Self(Some(Arc::new(Kind::Folder(folder))));
        }
        Self::none()
    }

    /// Points that a test arms by [`Self::arm`].
    #[must_use]
    pub fn here() -> Self {
        Self(Some(Arc::new(Kind::Here(Mutex::default()))))
    }

    /// Arms a point for whoever reaches it next. The receiver hears of it.
    #[must_use]
    pub fn arm(&self, point: &str) -> oneshot::Receiver<()> {
        let (reached, hears) = oneshot::channel();
        if let Some(Kind::Here(armed)) = self.0.as_deref() {
            let mut armed = armed.lock().unwrap_or_else(PoisonError::into_inner);
            armed.push((point.to_owned(), reached));
        }
        hears
    }

    /// Goes on, or not.
    pub async fn reach(&self, point: &'static str) {
        match self.0.as_deref() {
            None => {}
            Some(Kind::Folder(folder)) => end_if_armed(folder, point),
            Some(Kind::Here(armed)) => {
                let reached = {
                    let mut armed = armed.lock().unwrap_or_else(PoisonError::into_inner);
                    let at = armed.iter().position(|(name, _)| name == point);
                    at.map(|at| armed.swap_remove(at).1)
                };
                if let Some(reached) = reached {
                    // The test may have stopped listening.
                    let _ = reached.send(());
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

/// Ends this process if a file says so. It is removed first: who starts again does not end here again.
fn end_if_armed(folder: &Path, point: &str) {
    if std::fs::remove_file(folder.join(point)).is_ok() {
        tracing::error!(point, "ending this process, as a test wants");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn an_armed_point_holds_whoever_reaches_it_first() {
        FailPoints::none().reach("a").await;
        let points = FailPoints::here();
        let mut hears = points.arm("a");
        points.reach("b").await;
        assert!(hears.try_recv().is_err());
        let stands = tokio::time::timeout(Duration::from_millis(20), points.reach("a")).await;
        assert!(stands.is_err(), "it went on");
        hears.try_recv().unwrap();
        points.reach("a").await;
    }

    #[tokio::test]
    async fn without_a_folder_there_are_no_points() {
        let dir = tempfile::tempdir().unwrap();
        assert!(FailPoints::below(dir.path()).0.is_none());
        std::fs::create_dir(dir.path().join("fail-points")).unwrap();
        let points = FailPoints::below(dir.path());
        assert_eq!(points.0.is_some(), cfg!(debug_assertions));
        points.reach("not armed").await;
    }
}
