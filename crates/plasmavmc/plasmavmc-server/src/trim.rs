//! Operations are settled, and records that have been kept long enough go: now and then, on the replica that holds the
//! election.

use std::time::{Duration, Instant};

use chainfire_client::Compare;
use hearth_service::tasks::chain;

use crate::app::vm::now_ms;
use crate::config::PlasmaConfig;
use crate::metrics::Metrics;
use crate::store::operation::OperationRecord;
use crate::store::requests::{Keep, RequestRecord};
use crate::store::{Store, StoreError, keys};

/// Longest time between two looks.
const PERIOD: Duration = Duration::from_secs(60);
/// Requests remembered; of more the oldest go before their time.
const MAX_REQUESTS: usize = 20_000;
/// Operations remembered after their end; of more the oldest go before their time.
const MAX_OPERATIONS: usize = 10_000;
/// A request is remembered for so long in any case: nobody repeats one later by himself.
const SURE_S: u64 = 900;

/// What is kept for how long, and when it was looked at last.
#[derive(Clone, Debug)]
pub(crate) struct Trimmer {
    requests: Keep,
    operations: Keep,
    limit_ms: i64,
    period: Duration,
    last: Option<Instant>,
}

fn ms(seconds: u64) -> i64 {
    i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX)
}

fn keep(seconds: u64, at_most: usize) -> Keep {
    Keep {
        for_ms: ms(seconds),
        at_most,
        at_least_ms: ms(SURE_S.min(seconds)),
    }
}

impl Trimmer {
    pub(crate) fn new(config: &PlasmaConfig) -> Self {
        Self {
            requests: keep(config.request_memory_s, MAX_REQUESTS),
            operations: keep(config.operation_memory_s, MAX_OPERATIONS),
            limit_ms: ms(config.operation_limit_s),
            period: PERIOD.min(Duration::from_secs(
                config.request_memory_s.min(config.operation_memory_s) / 2,
            )),
            last: None,
        }
    }

    /// Settles operations; trims, unless that was done a short time ago.
    pub(crate) async fn run(&mut self, store: &Store, leader: &Compare, metrics: &Metrics) {
        match store.settle_operations(leader, now_ms(), self.limit_ms).await {
            Ok(settled) => drop(metrics.operations_settled.inc_by(settled)),
            Err(error) => tracing::warn!(error = %chain(&error), "operations could not be settled"),
        }
        if self.last.is_some_and(|last| last.elapsed() < self.period) {
            return;
        }
        self.last = Some(Instant::now());
        match self.trim(store, leader).await {
            Ok(trimmed) => drop(metrics.records_trimmed.inc_by(trimmed)),
            Err(error) => tracing::warn!(error = %chain(&error), "old records could not be trimmed"),
        }
    }

    async fn trim(&self, store: &Store, leader: &Compare) -> Result<u64, StoreError> {
        let at = |request: &RequestRecord| Some(request.at_ms);
        let requests = store
            .trim(keys::REQUESTS, at, self.requests, now_ms(), leader)
            .await?;
        let ended = |operation: &OperationRecord| operation.ended_at_ms;
        let operations = store
            .trim(keys::OPERATIONS, ended, self.operations, now_ms(), leader)
            .await?;
        Ok(requests + operations)
    }
}
