//! Zone files in and out.
//!
//! A file stands for the records that people stored in a zone: those of running VMs come and go by themselves
//! and are neither in an export nor touched by an import. What the server makes itself (SOA, the zone's NS, the
//! name server's addresses) makes an export a whole zone and is passed over in an import.
//!
//! An import is checked wholly before the first write. It is one transaction as long as it changes at most
//! [`MAX_OPS`] names and [`MAX_TXN_BYTES`]; beyond that it is as many as it takes, names that are put before
//! names that go. Each is guarded by the whole zone: whoever else changes the zone in between makes it fail, not
//! lose.

use std::collections::BTreeMap;

use bytes::Bytes;
use chainfire_client::{Compare, Op, Txn};
use flashdns_client::types::ZoneImport;
use flashdns_core::{DnsName, RrSet, Rtype, zonefile::ZoneFile};
use hearth_service::error::{ApiError, ErrorKind};
use iam_client::OpContext;

use super::app::{ATTEMPTS, App, MAX_NAMES_PER_ZONE, MAX_SETS_PER_NAME, invalid, store_error};
use crate::{config::Zones, record};

/// Longest zone file, in bytes: what the names a zone may have need, and more.
pub(super) const MAX_FILE_BYTES: usize = 16 << 20;
/// Names that one transaction changes; the store takes 128 operations.
const MAX_OPS: usize = 128;
/// Keys and values of one transaction; the store takes requests of 1.5 MiB.
const MAX_TXN_BYTES: usize = 1 << 20;
/// Files read at once, in memory and processor time.
pub(super) const MAX_READERS: usize = 2;

/// Records by name, as a file has them.
type Names = BTreeMap<DnsName, Vec<RrSet>>;

/// What the file says, without what the server makes itself.
struct Wanted {
    names: Names,
    passed_over: usize,
}

/// One name's change.
enum Edit {
    Put(String, Vec<u8>),
    Delete(Bytes),
}

impl Edit {
    fn size(&self) -> usize {
        match self {
            Self::Put(key, value) => key.len() + value.len(),
            Self::Delete(key) => key.len(),
        }
    }

    fn op(&self) -> Op {
        match self {
            Self::Put(key, value) => Op::put(key, value),
            Self::Delete(key) => Op::delete(key),
        }
    }
}

impl App {
    /// The zone as a file.
    pub(super) async fn export_zone(&self, ctx: &OpContext, zone: &str) -> Result<String, ApiError> {
        let zone = self.zone(ctx, "dns.record.list", zone)?;
        let page = self.names(&zone, None, usize::MAX).await?;
        let stored = page.names.into_iter().filter(|listed| !listed.is_vm);
        let mut names: Names = stored.map(|listed| (listed.name, listed.sets)).collect();
        let serial = self.published.load().serial();
        let internal = |error: &dyn std::fmt::Display| {
            ApiError::internal("exporting the zone", std::io::Error::other(error.to_string()))
        };
        let settings = self.zones.settings(&zone).map_err(|error| internal(&error))?;
        let soa = settings.soa(serial).map_err(|error| internal(&error))?;
        let ns = settings.ns().map_err(|error| internal(&error))?;
        names.entry(zone.clone()).or_default().insert(0, ns);
        let server = self.zones.server().map_err(|error| internal(&error))?;
        if zone == self.zones.domain {
            let addresses = self.zones.server_addresses().map_err(|error| internal(&error))?;
            names.insert(server, addresses);
        }
        for sets in names.values_mut() {
            sets.sort_by_key(|set| set.rtype());
        }
        let file = ZoneFile::new(zone, soa, names);
        let written = tokio::task::spawn_blocking(move || file.write()).await;
        written.map_err(|error| ApiError::internal("writing the zone file", error))
    }

    /// Replaces the stored records of a zone by those of a file.
    pub(super) async fn import_zone(
        &self,
        ctx: &OpContext,
        zone: &str,
        file: String,
        dry_run: bool,
    ) -> Result<ZoneImport, ApiError> {
        let zone = self.zone(ctx, "dns.record.create", zone)?;
        self.zone(ctx, "dns.record.delete", &zone.to_string())?;
        let wanted = self.read(&zone, file).await?;
        let mut attempt = 0;
        let (done, revision) = loop {
            attempt += 1;
            match self.replace(&zone, &wanted, dry_run).await? {
                Some(done) => break done,
                None if attempt < ATTEMPTS => {}
                None => {
                    return Err(ApiError::new(
                        ErrorKind::Conflict,
                        format!("others keep changing the zone `{zone}`; nothing was imported"),
                    )
                    .hint("try again"));
                }
            }
        };
        if let Some(revision) = revision {
            tracing::info!(
                actor = ctx.actor().name(), request = ctx.request_id(), %zone, revision,
                added = done.added, changed = done.changed, removed = done.removed, "zone file imported"
            );
            self.served(revision).await;
        }
        Ok(done)
    }

    /// Reads and checks the whole file, on a thread for such work.
    async fn read(&self, zone: &DnsName, file: String) -> Result<Wanted, ApiError> {
        let slot = self.readers.acquire().await;
        let slot = slot.map_err(|error| ApiError::internal("reading the zone file", error))?;
        let (zones, zone) = (self.zones.clone(), zone.clone());
        let wanted = tokio::task::spawn_blocking(move || wanted(&zones, &zone, &file)).await;
        drop(slot);
        wanted.map_err(|error| ApiError::internal("reading the zone file", error))?
    }

    /// Makes the zone as wanted. `None`: somebody else changed it meanwhile, and nothing was written.
    async fn replace(
        &self,
        zone: &DnsName,
        wanted: &Wanted,
        dry_run: bool,
    ) -> Result<Option<(ZoneImport, Option<i64>)>, ApiError> {
        let prefix = record::zone_prefix(zone);
        let listing = self.store.list(&prefix).await.map_err(store_error)?;
        let mut done = ZoneImport {
            passed_over: wanted.passed_over,
            dry_run,
            ..ZoneImport::default()
        };
        let (mut puts, mut deletes) = (Vec::new(), Vec::new());
        let mut known: BTreeMap<Bytes, Bytes> =
            listing.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect();
        for (name, sets) in &wanted.names {
            let key = record::key(zone, name);
            let value = record::value(sets);
            let value = value.map_err(|error| ApiError::internal("storing the name", error))?;
            match known.remove(key.as_bytes()) {
                Some(old) if record::parse_value(&old).is_ok_and(|old| same(old, sets)) => {
                    done.unchanged += 1;
                    continue;
                }
                Some(_) => done.changed += 1,
                None => done.added += 1,
            }
            puts.push(Edit::Put(key, value));
        }
        done.removed = known.len();
        deletes.extend(known.into_keys().map(Edit::Delete));
        puts.append(&mut deletes);
        let steps = steps(&puts);
        done.transactions = steps.len();
        if dry_run {
            return Ok(Some((done, None)));
        }
        let (mut revision, mut written) = (listing.revision, None);
        for (made, step) in steps.iter().enumerate() {
            let unchanged = Compare::mod_revision(&prefix).of_prefix().less(revision + 1);
            let txn = Txn::new().when([unchanged]).then(step.iter().map(Edit::op));
            let reply = self.store.txn(txn).await.map_err(|error| {
                let error = store_error(error);
                if made > 0 {
                    broken_off(zone, made, steps.len(), error.kind)
                } else {
                    error
                }
            })?;
            if !reply.succeeded && made == 0 {
                return Ok(None);
            }
            if !reply.succeeded {
                return Err(broken_off(zone, made, steps.len(), ErrorKind::Conflict));
            }
            revision = reply.revision;
            written = Some(revision);
        }
        Ok(Some((done, written)))
    }
}

fn broken_off(zone: &DnsName, made: usize, all: usize, kind: ErrorKind) -> ApiError {
    ApiError::new(
        kind,
        format!(
            "the import into `{zone}` broke off after {made} of {all} transactions; each name is as a whole as it \
             was or as the file has it"
        ),
    )
    .hint("import the same file again: that completes it")
}

/// Whether sets that are stored are those of the file, in whatever order.
fn same(mut stored: Vec<RrSet>, wanted: &[RrSet]) -> bool {
    stored.sort_by_key(RrSet::rtype);
    let mut wanted: Vec<&RrSet> = wanted.iter().collect();
    wanted.sort_by_key(|set| set.rtype());
    stored.iter().eq(wanted)
}

/// Cuts edits into transactions that the store takes.
fn steps(edits: &[Edit]) -> Vec<&[Edit]> {
    let (mut steps, mut start, mut size) = (Vec::new(), 0, 0);
    for (at, edit) in edits.iter().enumerate() {
        if at > start && (at - start == MAX_OPS || size + edit.size() > MAX_TXN_BYTES) {
            steps.extend(edits.get(start..at));
            (start, size) = (at, 0);
        }
        size += edit.size();
    }
    steps.extend(edits.get(start..).filter(|rest| !rest.is_empty()));
    steps
}

/// Reads a file for a zone.
fn wanted(zones: &Zones, zone: &DnsName, file: &str) -> Result<Wanted, ApiError> {
    let server = zones.server().ok();
    let is_ours = |name: &DnsName, rtype: Rtype| {
        let is_top = name == zone && matches!(rtype, Rtype::SOA | Rtype::NS);
        is_top || (matches!(rtype, Rtype::A | Rtype::AAAA) && server.as_ref() == Some(name))
    };
    let mut rule = |name: &DnsName, rtype: Rtype| {
        if is_ours(name, rtype) {
            return Ok(());
        }
        match zones.zone_of(name) {
            Some(owner) if owner == *zone => zones.refuse(zone, name, rtype),
            Some(owner) => Err(format!(
                "`{name}` belongs to the zone `{owner}`: its records go into a file of that zone"
            )),
            None => Err(format!("`{name}` is in none of the zones served here")),
        }
    };
    let read = ZoneFile::read_if(file, zone, &mut rule);
    let read = read.map_err(|error| {
        invalid(error.to_string()).hint("nothing was changed; correct the file and import it again")
    })?;
    let mut passed_over = 1;
    let mut names = Names::new();
    for (name, sets) in read.names() {
        let kept: Vec<RrSet> = sets
            .iter()
            .filter(|set| !is_ours(name, set.rtype()))
            .cloned()
            .collect();
        passed_over += sets.len() - kept.len();
        if !kept.is_empty() {
            names.insert(name.clone(), kept);
        }
    }
    check_limits(zone, &names)?;
    Ok(Wanted { names, passed_over })
}

fn check_limits(zone: &DnsName, names: &Names) -> Result<(), ApiError> {
    if names.len() > MAX_NAMES_PER_ZONE {
        return Err(ApiError::new(
            ErrorKind::ResourceExhausted,
            format!(
                "the file has {} names for the zone `{zone}`; at most {MAX_NAMES_PER_ZONE} are stored",
                names.len()
            ),
        ));
    }
    for (name, sets) in names {
        if sets.len() > MAX_SETS_PER_NAME {
            return Err(invalid(format!(
                "`{name}` has {} types; at most {MAX_SETS_PER_NAME} are stored",
                sets.len()
            )));
        }
        let size = record::value(sets).map_or(usize::MAX, |value| value.len());
        if size > MAX_TXN_BYTES / 2 {
            return Err(invalid(format!(
                "the records of `{name}` are too large to be stored together"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_hold_what_the_store_takes() {
        let put = |size: usize| Edit::Put(String::new(), vec![0; size]);
        let counts = |edits: Vec<Edit>| steps(&edits).iter().map(|step| step.len()).collect::<Vec<_>>();
        assert!(counts(vec![]).is_empty());
        assert_eq!(counts((0..128).map(|_| put(1)).collect()), [128]);
        assert_eq!(counts((0..300).map(|_| put(1)).collect()), [128, 128, 44]);
        assert_eq!(
            counts((0..5).map(|_| put(MAX_TXN_BYTES / 2)).collect()),
            [2, 2, 1]
        );
    }
}
