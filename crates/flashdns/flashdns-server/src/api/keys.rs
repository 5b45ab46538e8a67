//! TSIG keys of the caller: made, listed, deleted. A secret is shown once, in the answer that makes it.

use aws_lc_rs::rand;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use chainfire_client::{Compare, Op, Txn};
use flashdns_client::types::{Key, KeyList, MadeKey, NewKey};
use flashdns_core::{DnsName, tsig::Algorithm};
use hearth_service::error::{ApiError, ErrorKind};
use iam_client::{OpContext, ResourceRef};

use super::app::{App, invalid, store_error};
use crate::keys::{self, KnownKey};

/// Keys of one principal.
const MAX_KEYS_PER_OWNER: usize = 32;
/// Shortest secret that may be brought along, in bytes (RFC 8945, 6.1: 128 bits and more).
const MIN_SECRET: usize = 16;
const MAX_SECRET: usize = 128;

fn shown(name: &DnsName, known: &KnownKey) -> Key {
    Key {
        name: name.to_string(),
        algorithm: known.algorithm.name().to_owned(),
        owner: known.owner_name.clone(),
        transfer: known.may_transfer,
    }
}

fn parse_name(name: &str) -> Result<DnsName, ApiError> {
    let parsed: DnsName = name
        .parse()
        .map_err(|error| invalid(format!("`{name}` is not a key's name: {error}")))?;
    if parsed == DnsName::root() {
        return Err(invalid("a key needs a name, such as `office.example`"));
    }
    Ok(parsed)
}

impl App {
    /// Whether the caller may see and delete everybody's keys: those who edit the cluster's own zones.
    fn minds_all_keys(ctx: &OpContext) -> bool {
        ctx.check("dns.record.delete", &ResourceRef::Root).is_ok()
    }

    pub(super) fn list_keys(&self, ctx: &OpContext) -> KeyList {
        let all = Self::minds_all_keys(ctx);
        let ring = self.keys.load();
        let mut keys: Vec<Key> = ring
            .iter()
            .filter(|(_, known)| all || known.owner == *ctx.actor().subject())
            .map(|(name, known)| shown(name, known))
            .collect();
        keys.sort_by(|a, b| a.name.cmp(&b.name));
        KeyList { keys }
    }

    pub(super) async fn create_key(&self, ctx: &OpContext, new: NewKey) -> Result<MadeKey, ApiError> {
        let sealer = self.sealer.as_ref().ok_or_else(|| {
            ApiError::new(ErrorKind::FailedPrecondition, "this cluster keeps no TSIG keys")
                .hint("the operator sets `seal_key_file` in the `[flashdns]` table of every FlashDNS")
        })?;
        let name = parse_name(&new.name)?;
        let algorithm = Algorithm::named(&new.algorithm).ok_or_else(|| {
            let known = Algorithm::ALL.map(Algorithm::name).join(", ");
            invalid(format!("the algorithm `{}` is none of {known}", new.algorithm))
        })?;
        if new.transfer {
            ctx.check("dns.record.list", &ResourceRef::Root)?;
        }
        let subject = ctx.actor().subject();
        let ring = self.keys.load();
        if ring.values().filter(|known| known.owner == *subject).count() >= MAX_KEYS_PER_OWNER {
            return Err(ApiError::new(
                ErrorKind::ResourceExhausted,
                format!("you have {MAX_KEYS_PER_OWNER} keys, more are not kept"),
            )
            .hint("delete keys that are not used"));
        }
        let secret = secret(algorithm, new.secret.as_deref())?;
        let owner = (subject, ctx.actor().name());
        let value = keys::value(sealer, &name, algorithm, &secret, owner, new.transfer)
            .ok_or_else(|| ApiError::internal("sealing the key", std::io::Error::other("no randomness")))?;
        let key = keys::key(&name);
        let txn = Txn::new()
            .when([Compare::absent(&key)])
            .then([Op::put(&key, value)]);
        let done = self.store.txn(txn).await.map_err(store_error)?;
        if !done.succeeded {
            return Err(ApiError::new(
                ErrorKind::AlreadyExists,
                format!("there is a key `{name}` already"),
            ));
        }
        tracing::info!(actor = ctx.actor().name(), request = ctx.request_id(), %name, transfer = new.transfer, "key created");
        self.served(done.revision).await;
        Ok(MadeKey {
            name: name.to_string(),
            algorithm: algorithm.name().to_owned(),
            secret: STANDARD.encode(secret),
            transfer: new.transfer,
        })
    }

    pub(super) async fn delete_key(&self, ctx: &OpContext, name: &str) -> Result<(), ApiError> {
        let name = parse_name(name)?;
        let missing = || ApiError::new(ErrorKind::NotFound, format!("you have no key `{name}`"));
        let known = self.keys.load().get(&name).cloned().ok_or_else(missing)?;
        if known.owner != *ctx.actor().subject() && !Self::minds_all_keys(ctx) {
            return Err(missing());
        }
        let done = self.store.delete(keys::key(&name)).await.map_err(store_error)?;
        tracing::info!(actor = ctx.actor().name(), request = ctx.request_id(), %name, "key deleted");
        self.served(done.revision).await;
        Ok(())
    }
}

/// The secret given in base64, or a new one.
fn secret(algorithm: Algorithm, given: Option<&str>) -> Result<Vec<u8>, ApiError> {
    let Some(given) = given else {
        let mut secret = vec![0; algorithm.length()];
        rand::fill(&mut secret)
            .map_err(|_| ApiError::internal("making the key", std::io::Error::other("no randomness")))?;
        return Ok(secret);
    };
    let secret = STANDARD.decode(given);
    let secret = secret.map_err(|_| invalid("the secret is not base64"))?;
    if !(MIN_SECRET..=MAX_SECRET).contains(&secret.len()) {
        return Err(invalid(format!(
            "a secret has {MIN_SECRET} to {MAX_SECRET} bytes; this one has {}",
            secret.len()
        )));
    }
    Ok(secret)
}
