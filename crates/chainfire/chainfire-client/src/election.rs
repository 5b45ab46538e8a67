//! One leader among many: whoever creates the key under a lease leads until the key goes.
//!
//! The leader's *fencing token* is the key's create revision. It grows with every change of leader. Holding a lease
//! proves nothing to a process that was paused: guard every write with [`Leadership::guard`] in its transaction, or
//! hand the token to whoever executes the act and let it refuse smaller ones.

use std::time::Duration;

use bytes::Bytes;

use crate::{Client, Compare, Error, Lease, Op, Result, Txn, WatchEvent, WatchOptions, WatchUpdate};

/// Pause before a claim whose fate is unknown is looked at again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// A key whose holder leads.
#[derive(Debug, Clone)]
pub struct Election {
    client: Client,
    key: Bytes,
}

/// A won election.
#[derive(Debug, Clone)]
pub struct Leadership {
    client: Client,
    key: Bytes,
    token: i64,
}

impl Client {
    /// The election held on `key`.
    pub fn election(&self, key: impl AsRef<[u8]>) -> Election {
        Election {
            client: self.clone(),
            key: Bytes::copy_from_slice(key.as_ref()),
        }
    }
}

impl Election {
    /// Waits until this candidate leads. `value` says who it is. The lease must be kept alive by the caller.
    pub async fn campaign(&self, lease: &Lease, value: impl AsRef<[u8]>) -> Result<Leadership> {
        loop {
            let claim = Txn::new()
                .when([Compare::absent(&self.key)])
                .then([Op::put_with_lease(&self.key, value.as_ref(), lease.id())])
                .otherwise([Op::get(&self.key)]);
            let outcome = match self.client.txn(claim).await {
                // The claim may be in the log: asking again finds it under our own lease.
                Err(Error::UnknownOutcome { .. }) => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
                other => other?,
            };
            if outcome.succeeded {
                return Ok(self.won(outcome.revision));
            }
            match outcome.get(0) {
                Some(holder) if holder.lease == lease.id() => return Ok(self.won(holder.create_revision)),
                Some(_) => self.vacant(outcome.revision + 1).await?,
                None => {}
            }
        }
    }

    fn won(&self, token: i64) -> Leadership {
        Leadership {
            client: self.client.clone(),
            key: self.key.clone(),
            token,
        }
    }

    /// Resolves when the key has been deleted at or after `from`.
    async fn vacant(&self, from: i64) -> Result<()> {
        let mut watcher = self
            .client
            .watch_with(WatchOptions::key(&self.key).from_revision(from));
        loop {
            match watcher.next().await? {
                WatchUpdate::Events { events, .. } => {
                    if events
                        .iter()
                        .any(|event| matches!(event, WatchEvent::Delete { .. }))
                    {
                        return Ok(());
                    }
                }
                WatchUpdate::Progress { .. } => {}
                // Too far behind to know: the next claim will tell.
                WatchUpdate::Compacted { .. } => return Ok(()),
            }
        }
    }
}

impl Leadership {
    /// The fencing token: the key's create revision. Grows with every change of leader.
    pub fn token(&self) -> i64 {
        self.token
    }

    /// The condition that this leadership still holds; put it into every transaction the leader makes.
    pub fn guard(&self) -> Compare {
        Compare::create_revision(&self.key).equal(self.token)
    }

    /// Resolves when the leadership is over: the key is gone or belongs to another term.
    pub async fn lost(&self) -> Result<()> {
        loop {
            let now = self.client.get_at(&self.key, 0).await?;
            if now.kv.is_none_or(|kv| kv.create_revision != self.token) {
                return Ok(());
            }
            let election = Election {
                client: self.client.clone(),
                key: self.key.clone(),
            };
            election.vacant(now.revision + 1).await?;
        }
    }

    /// Steps down at once; does nothing when the leadership is already lost.
    pub async fn resign(self) -> Result<()> {
        self.client
            .txn(Txn::new().when([self.guard()]).then([Op::delete(&self.key)]))
            .await?;
        Ok(())
    }
}
