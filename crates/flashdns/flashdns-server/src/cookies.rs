//! The secrets of DNS cookies: one set for all servers, in Chainfire, with roll-over.
//!
//! ```text
//! /flashdns/v1/cookies   JSON: sealed secrets, oldest first, with the second each was made (StoredSecrets)
//!
//!   made ── 5 minutes: known everywhere, not used ── a day: used ── until two newer ones stand behind it: known
//! ```
//! Every server looks once an hour; whoever finds the newest secret older than a day adds one. Without a seal key a
//! server has a secret of its own, in memory: its cookies are good, and unknown to the others.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use aws_lc_rs::rand;
use chainfire_client::{Client, Compare, Op, Txn};
use flashdns_core::cookie::Secret;
use hearth_service::tasks::{TaskError, Tasks, chain};
use serde::{Deserialize, Serialize};

use crate::{
    record::{self, RecordError},
    seal::Sealer,
    signed,
};

/// Where the secrets stand.
pub(crate) const KEY: &str = "/flashdns/v1/cookies";
const VERSION: u32 = 1;
const PURPOSE: &str = "flashdns cookies";
/// A secret is used this long after it was made: by then every server has it.
const SPREAD_S: u64 = 300;
/// The newest secret is replaced when it is older than this.
const LIFETIME_S: u64 = 86_400;
/// Secrets that are kept: to come, in use, before.
const KEPT: usize = 3;
/// How often a server looks.
const LOOK: Duration = Duration::from_secs(3600);
/// How soon it looks again when the store did not answer.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredSecrets {
    version: u32,
    secrets: Vec<StoredSecret>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredSecret {
    made_s: u64,
    /// Sealed, in hexadecimal digits.
    secret: String,
}

/// The secrets that are known, oldest first; never empty.
#[derive(Clone, Debug)]
pub(crate) struct Secrets(Vec<(u64, Secret)>);

/// Why stored secrets cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretsError {
    #[error("the value does not hold cookie secrets")]
    Json(#[from] serde_json::Error),
    #[error("the value has version {0}, newer than this program")]
    Version(u32),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("there is no seal key; set `seal_key_file`")]
    NoSealKey,
    #[error("a secret cannot be unsealed, or there is none")]
    Sealed,
}

impl Secrets {
    /// A secret of this process only.
    pub(crate) fn own() -> Result<Self, std::io::Error> {
        let mut secret = [0; 16];
        rand::fill(&mut secret).map_err(|_| std::io::Error::other("no randomness"))?;
        Ok(Self(vec![(0, secret)]))
    }

    pub(crate) fn parse(sealer: Option<&Sealer>, value: &[u8]) -> Result<Self, SecretsError> {
        let stored: StoredSecrets = serde_json::from_slice(value)?;
        if stored.version != VERSION {
            return Err(SecretsError::Version(stored.version));
        }
        let sealer = sealer.ok_or(SecretsError::NoSealKey)?;
        let mut secrets = Vec::with_capacity(stored.secrets.len());
        for stored in stored.secrets {
            let sealed = record::unhex(&stored.secret).ok_or(RecordError::Hex)?;
            let opened = sealer.open(PURPOSE, &sealed);
            let secret = opened.and_then(|secret| secret.try_into().ok());
            secrets.push((stored.made_s, secret.ok_or(SecretsError::Sealed)?));
        }
        if secrets.is_empty() {
            return Err(SecretsError::Sealed);
        }
        Ok(Self(secrets))
    }

    /// The secret to make cookies with, and the others.
    pub(crate) fn at(&self, now_s: u64) -> (Secret, Vec<Secret>) {
        let known_everywhere = |(made_s, _): &&(u64, Secret)| made_s + SPREAD_S <= now_s;
        let current = self.0.iter().rev().find(known_everywhere).or(self.0.first());
        let current = current.map_or([0; 16], |(_, secret)| *secret);
        let others = self.0.iter().map(|(_, secret)| *secret);
        (current, others.filter(|secret| *secret != current).collect())
    }
}

/// Keeps the stored secrets young until the stop.
pub(crate) async fn keep(client: Client, sealer: Arc<Sealer>, tasks: Tasks) -> Result<(), TaskError> {
    loop {
        let pause = match roll(&client, &sealer, signed::now_s()).await {
            Ok(()) => LOOK,
            Err(error) => {
                tracing::debug!(error = %chain(&*error), "the cookie secrets cannot be looked after");
                LOOK_AGAIN
            }
        };
        tokio::select! {
            () = tasks.stopping() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Adds a secret when the newest one is old.
async fn roll(client: &Client, sealer: &Sealer, now_s: u64) -> Result<(), TaskError> {
    let found = client.get(KEY).await?;
    // What cannot be read is replaced: a cookie that is not known any more costs its client one question.
    let usable = found
        .as_ref()
        .filter(|kv| Secrets::parse(Some(sealer), &kv.value).is_ok());
    let stored = usable.and_then(|kv| serde_json::from_slice::<StoredSecrets>(&kv.value).ok());
    let mut secrets = stored.map_or_else(Vec::new, |stored| stored.secrets);
    if secrets
        .last()
        .is_some_and(|newest| now_s < newest.made_s + LIFETIME_S)
    {
        return Ok(());
    }
    let mut secret = [0; 16];
    rand::fill(&mut secret).map_err(|_| "no randomness")?;
    let sealed = sealer.seal(PURPOSE, &secret).ok_or("no randomness")?;
    secrets.push(StoredSecret {
        // The first one is used at once: there is nothing that a server could know instead.
        made_s: if secrets.is_empty() {
            now_s.saturating_sub(SPREAD_S)
        } else {
            now_s
        },
        secret: record::hex(&sealed),
    });
    secrets.drain(..secrets.len().saturating_sub(KEPT));
    let value = serde_json::to_vec(&StoredSecrets {
        version: VERSION,
        secrets,
    })?;
    let unchanged = Compare::mod_revision(KEY).equal(found.map_or(0, |kv| kv.mod_revision));
    // Losing the race is fine: the winner's secret comes by the watch.
    client
        .txn(Txn::new().when([unchanged]).then([Op::put(KEY, value)]))
        .await?;
    tracing::info!("a new secret for DNS cookies was made");
    Ok(())
}

/// Where everybody reads the secrets.
pub(crate) type Shared = Arc<ArcSwap<Secrets>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_used_when_all_know_it_and_known_while_it_may_be_used() {
        let secrets = Secrets(vec![(0, [1; 16]), (1000, [2; 16]), (90_000, [3; 16])]);
        let current = |now_s| secrets.at(now_s).0[0];
        assert_eq!(
            [0, 299, 300, 1299, 1300, 90_299, 90_300].map(current),
            [1, 1, 1, 1, 2, 2, 3]
        );
        assert_eq!(secrets.at(1300).1, [[1; 16], [3; 16]]);
    }
}
