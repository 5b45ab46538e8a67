//! Leases: keys that live as long as their owner keeps saying so.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use hearth_service::tasks::{Kind, Tasks};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    Client, Error, Result,
    conn::{CallKind, lease_stub, request},
    wire::etcdserverpb::{
        LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
        LeaseTimeToLiveResponse,
    },
};

/// A lease is renewed this many times within its time to live.
const RENEWALS_PER_TTL: u32 = 3;
/// Pause after a failed renewal.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// A granted lease. Cloning it does not prolong it.
#[derive(Debug, Clone)]
pub struct Lease {
    client: Client,
    id: i64,
    ttl_s: i64,
    granted_at: Instant,
}

/// Whether a lease is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// The server confirmed it; it lives at least `ttl_s` seconds from the moment the confirmed request was sent.
    Held {
        /// When the last confirmed renewal was sent.
        sent_at: Instant,
        /// Seconds it was renewed for.
        ttl_s: i64,
    },
    /// It ended: expired, revoked, or not renewed in time. It never comes back.
    Lost,
}

/// Watches over a lease that is kept alive in the background. Dropping it does not stop the renewals.
#[derive(Debug, Clone)]
pub struct KeepAlive {
    state: watch::Receiver<LeaseState>,
}

impl KeepAlive {
    /// The state now. A `Held` lease may be past its time if the process was stopped: compare `sent_at` with the
    /// clock before an act that must not happen without the lease.
    pub fn state(&self) -> LeaseState {
        let state = *self.state.borrow();
        match state {
            LeaseState::Held { sent_at, ttl_s } if Instant::now() >= sent_at + seconds(ttl_s) => {
                LeaseState::Lost
            }
            state => state,
        }
    }

    /// Resolves when the lease is lost (or its renewal task has ended with the process).
    pub async fn lost(&mut self) {
        while *self.state.borrow_and_update() != LeaseState::Lost {
            if self.state.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Client {
    /// Grants a lease of `ttl_s` seconds (the server may raise it).
    pub async fn lease_grant(&self, ttl_s: i64) -> Result<Lease> {
        let granted_at = Instant::now();
        let reply = self
            .call(CallKind::Write, |channel| {
                let message = request(LeaseGrantRequest { ttl: ttl_s, id: 0 });
                async move { Ok(lease_stub(channel).lease_grant(message).await?.into_inner()) }
            })
            .await?;
        Ok(Lease {
            client: self.clone(),
            id: reply.id,
            ttl_s: reply.ttl,
            granted_at,
        })
    }

    /// Revokes a lease and deletes its keys.
    pub async fn lease_revoke(&self, id: i64) -> Result<()> {
        self.call(CallKind::Write, |channel| {
            let message = request(LeaseRevokeRequest { id });
            async move { Ok(lease_stub(channel).lease_revoke(message).await?.into_inner()) }
        })
        .await?;
        Ok(())
    }

    /// Renews a lease once; the seconds it was renewed for.
    pub async fn lease_keep_alive_once(&self, id: i64) -> Result<i64> {
        let ttl = self
            .call(CallKind::Idempotent, |channel| {
                let message = request(futures::stream::iter([LeaseKeepAliveRequest { id }]));
                async move {
                    let mut replies = lease_stub(channel).lease_keep_alive(message).await?.into_inner();
                    match replies.next().await {
                        Some(reply) => Ok(reply?.ttl),
                        None => Err(tonic::Status::unavailable(
                            "the keep-alive stream ended without an answer",
                        )),
                    }
                }
            })
            .await?;
        if ttl <= 0 {
            Err(Error::LeaseNotFound)
        } else {
            Ok(ttl)
        }
    }

    /// What is left of a lease, and which keys hang on it.
    pub async fn lease_time_to_live(&self, id: i64) -> Result<LeaseTimeToLiveResponse> {
        let reply = self
            .call(CallKind::Idempotent, |channel| {
                let message = request(LeaseTimeToLiveRequest { id, keys: true });
                async move {
                    Ok(lease_stub(channel)
                        .lease_time_to_live(message)
                        .await?
                        .into_inner())
                }
            })
            .await?;
        if reply.ttl < 0 {
            Err(Error::LeaseNotFound)
        } else {
            Ok(reply)
        }
    }
}

impl Lease {
    /// The id that puts attach keys to.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// Seconds granted.
    pub fn ttl_s(&self) -> i64 {
        self.ttl_s
    }

    /// Renews once; the seconds it was renewed for.
    pub async fn keep_alive_once(&self) -> Result<i64> {
        self.client.lease_keep_alive_once(self.id).await
    }

    /// Renews it in the background until it is lost or the process stops. It is not revoked at the end: do that where
    /// the keys' owner ends in good order.
    pub fn keep_alive_in(&self, tasks: &Tasks) -> KeepAlive {
        let first = LeaseState::Held {
            sent_at: self.granted_at,
            ttl_s: self.ttl_s,
        };
        let (say, state) = watch::channel(first);
        let say = Arc::new(say);
        let (lease, stopping) = (self.clone(), tasks.clone());
        tasks.spawn("lease keep-alive", Kind::Background, async move {
            tokio::select! {
                () = stopping.stopping() => {}
                () = lease.renew_until_lost(&say) => {}
            }
            Ok(())
        });
        KeepAlive { state }
    }

    async fn renew_until_lost(&self, say: &watch::Sender<LeaseState>) {
        let mut sent_at = self.granted_at;
        let mut ttl = seconds(self.ttl_s);
        let mut wake = sent_at + ttl / RENEWALS_PER_TTL;
        loop {
            sleep_until(wake).await;
            let now = Instant::now();
            let end = sent_at + ttl;
            if now >= end {
                say.send_replace(LeaseState::Lost);
                return;
            }
            match self
                .client
                .with_deadline(end - now)
                .lease_keep_alive_once(self.id)
                .await
            {
                Ok(ttl_s) => {
                    sent_at = now;
                    ttl = seconds(ttl_s);
                    wake = sent_at + ttl / RENEWALS_PER_TTL;
                    say.send_replace(LeaseState::Held { sent_at, ttl_s });
                }
                Err(Error::LeaseNotFound) => {
                    say.send_replace(LeaseState::Lost);
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, lease = self.id, "lease not renewed; trying again");
                    wake = Instant::now() + RETRY_PAUSE;
                }
            }
        }
    }

    /// Revokes it: its keys are deleted at once.
    pub async fn revoke(self) -> Result<()> {
        self.client.lease_revoke(self.id).await
    }
}

fn seconds(ttl_s: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl_s).unwrap_or(0))
}
