//! Takes away what has ended: sessions and devices. Level-triggered and idempotent; every replica does it.

use super::{Aegis, now_ms};
use crate::store::records::{DEVICES, DeviceRecord, SESSIONS, SessionRecord, user_code_key};
use crate::store::{Commit, StoreError};

/// Most records that one sweep takes away; the next one goes on.
const MAX_SWEPT: usize = 500;

impl Aegis {
    /// Sweeps once and returns how many records went.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn sweep(&self) -> Result<usize, StoreError> {
        let now = now_ms();
        let mut commits = Vec::new();
        for stored in self.store().list(SESSIONS).await? {
            let record: SessionRecord = stored.read()?;
            if now >= record.end_ms || now >= record.idle_end_ms {
                commits.push(
                    Commit::default()
                        .guard(&stored.key, stored.mod_revision)
                        .delete(&stored.key),
                );
            }
        }
        for stored in self.store().list(DEVICES).await? {
            let record: DeviceRecord = stored.read()?;
            if now >= record.end_ms {
                let commit = Commit::default().guard(&stored.key, stored.mod_revision);
                commits.push(
                    commit
                        .delete(&stored.key)
                        .delete(user_code_key(&record.user_code)),
                );
            }
        }
        let mut swept = 0;
        for commit in commits.into_iter().take(MAX_SWEPT) {
            match self.store().commit(commit).await {
                Ok(_) => swept += 1,
                // It was used at this very moment, or another replica swept it.
                Err(StoreError::Conflict) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(swept)
    }
}
