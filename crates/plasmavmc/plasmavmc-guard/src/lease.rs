//! The guard's lease and record in the store.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chainfire_client::{Client, Compare, Error, Op, Txn};
use hearth_service::tasks::chain;
use plasmavmc_client::guard::{self, GuardRecord};
use plasmavmc_core::fence::{GuardInput, TIMES};
use plasmavmc_hypervisor::host_boot_id;

use crate::clock::now_ms;
use crate::config::GuardConfig;
use crate::enforcer::movable_alive;
use crate::shared::Shared;

/// Time that a renewal may take before it is tried again, at another member.
const RENEW_LIMIT: Duration = Duration::from_millis(2_500);
const ACQUIRE_LIMIT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(300);

/// Holds the lease.
#[derive(Debug)]
pub(crate) struct Holder {
    chainfire: Client,
    shared: Arc<Shared>,
    node: String,
    agent_data_dir: PathBuf,
    record: GuardRecord,
    /// The lease that we hold, as far as we know.
    lease: Option<i64>,
    /// Revision of our record; 0: there is none.
    known: i64,
    fenced: bool,
}

impl Holder {
    pub(crate) fn new(chainfire: Client, shared: Arc<Shared>, config: &GuardConfig) -> Self {
        let node = config.node.to_string();
        let record = GuardRecord {
            version: guard::FORMAT,
            node: node.clone(),
            boot_id: host_boot_id(),
            incarnation: uuid::Uuid::now_v7().to_string(),
            fenced_at_ms: None,
        };
        Self {
            chainfire,
            shared,
            node,
            agent_data_dir: config.agent_data_dir.clone(),
            record,
            lease: None,
            known: 0,
            fenced: false,
        }
    }

    /// Never ends.
    pub(crate) async fn hold(mut self) {
        loop {
            let pause = match self.lease {
                Some(lease) => self.renew(lease).await,
                None => self.acquire().await,
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn renew(&mut self, lease: i64) -> Duration {
        let sent_ms = now_ms();
        let client = self.chainfire.with_deadline(RENEW_LIMIT);
        match client.lease_keep_alive_once(lease).await {
            Ok(_) => {
                self.shared.hear(GuardInput::Held { sent_ms });
                let next = sent_ms + TIMES.renew_ms;
                Duration::from_millis(next.saturating_sub(now_ms()))
            }
            Err(Error::LeaseNotFound) => {
                tracing::warn!(node = self.node, "the lease has ended; asking for a new one");
                self.shared.hear(GuardInput::Gone);
                self.lease = None;
                Duration::ZERO
            }
            Err(error) => self.trouble("the lease was not renewed", &error),
        }
    }

    /// Asks for a lease, if the record is as we know it: so a fence that somebody has written is never overlooked.
    async fn acquire(&mut self) -> Duration {
        let folder = self.agent_data_dir.clone();
        let alive = tokio::task::spawn_blocking(move || movable_alive(&folder))
            .await
            .unwrap_or(1);
        if !self.shared.may_acquire(self.fenced, alive) {
            return RETRY;
        }
        let sent_ms = now_ms();
        match self.try_acquire().await {
            Ok(Some((lease, revision))) => {
                self.lease = Some(lease);
                self.known = revision;
                if std::mem::take(&mut self.fenced) {
                    tracing::warn!(
                        node = self.node,
                        "no movable guest is left; the fence is taken away"
                    );
                }
                tracing::info!(node = self.node, lease, "the guard holds its lease");
                self.shared.hear(GuardInput::Held { sent_ms });
                Duration::from_millis(TIMES.renew_ms)
            }
            Ok(None) => {
                if self.fenced {
                    tracing::warn!(
                        node = self.node,
                        "this node was fenced: its movable guests may run elsewhere"
                    );
                    self.shared.hear(GuardInput::Fenced);
                }
                RETRY
            }
            Err(error) => self.trouble("no lease for this node's guard", &error),
        }
    }

    /// Lease and revision; none: the record is not as we knew it, but now we know.
    async fn try_acquire(&mut self) -> Result<Option<(i64, i64)>, Error> {
        let client = self.chainfire.with_deadline(ACQUIRE_LIMIT);
        let ttl_s = i64::try_from(TIMES.lease_ms / 1000).unwrap_or(i64::MAX);
        let lease = client.lease_grant(ttl_s).await?.id();
        let value = serde_json::to_vec(&self.record).unwrap_or_default();
        let (record, held) = (guard::record_key(&self.node), guard::lease_key(&self.node));
        let txn = Txn::new()
            .when([Compare::mod_revision(&record).equal(self.known)])
            .then([Op::put(&record, &value), Op::put_with_lease(&held, &value, lease)])
            .otherwise([Op::get(&record)]);
        let outcome = client.txn(txn).await?;
        if outcome.succeeded {
            return Ok(Some((lease, outcome.revision)));
        }
        let found = outcome.get(0);
        self.known = found.map_or(0, |kv| kv.mod_revision);
        // What cannot be read is taken for a fence: then nothing movable lives before it is replaced.
        self.fenced = found.is_some_and(|kv| {
            serde_json::from_slice::<GuardRecord>(&kv.value)
                .map_or(true, |record| record.fenced_at_ms.is_some())
        });
        // Nothing hangs on the lease; if this fails it runs out.
        let _ = client.lease_revoke(lease).await;
        Ok(None)
    }

    fn trouble(&self, what: &str, error: &Error) -> Duration {
        let why = chain(error);
        tracing::warn!(node = self.node, error = why, "{what}; trying again");
        self.shared.note_trouble(format!("{what}: {why}"));
        RETRY
    }
}
