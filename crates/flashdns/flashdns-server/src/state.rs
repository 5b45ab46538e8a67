//! What Chainfire holds that concerns DNS, and the catalog made from it. No I/O: feeds push entries in,
//! snapshots come out.
//!
//! The serial is a Chainfire revision, and all servers must come to the same one, also a server that lists
//! the store afresh and so cannot see deletions. What a fresh list shows is the newest revision among the
//! entries and the mark at [`record::SERIAL_KEY`]. Whoever knows a newer revision (it saw a deletion) is
//! [due](State::mark_due) to write that into the mark, where every other server finds it.
//!
//! The two sources are watched apart, so a change may come after a newer one of the other source. Then the records
//! are right but the serial was already told without them: the server is [unsettled](State::take_unsettled) and writes
//! [`record::SETTLE_KEY`], whose revision becomes everybody's next serial. Between, and whenever the serial moves
//! other than by a change seen in its order, the journal knows nothing and secondaries get whole zones.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use flashdns_core::{Catalog, DnsName, Host, RrSet, Snapshot, journal::Journal, serial};
use hearth_service::tasks::chain;
use plasmavmc_client::names;

use crate::{
    config::Zones,
    cookies::{self, Secrets, SecretsError},
    keys::{self, KeyError, Keyring},
    metrics::Metrics,
    persist::Saved,
    record::{self, RecordError},
    seal::Sealer,
    zones::ZoneError,
};

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Our own zones and records.
    Zones,
    /// Names of running VMs.
    Names,
}

impl Source {
    pub(crate) const ALL: [Self; 2] = [Self::Zones, Self::Names];

    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            Self::Zones => record::PREFIX,
            Self::Names => names::PREFIX,
        }
    }

    fn of(key: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|source| key.starts_with(source.prefix().as_bytes()))
    }
}

/// A pair as it stands in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Bytes,
    pub(crate) value: Bytes,
    pub(crate) mod_revision: i64,
}

/// One change of the store.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Put(Entry),
    Delete { key: Bytes, mod_revision: i64 },
}

impl Change {
    fn revision(&self) -> i64 {
        match self {
            Self::Put(entry) => entry.mod_revision,
            Self::Delete { mod_revision, .. } => *mod_revision,
        }
    }
}

#[derive(Debug)]
pub(crate) struct State {
    zones: Arc<Zones>,
    catalog: Catalog,
    entries: BTreeMap<Bytes, (Bytes, i64)>,
    cluster: u64,
    /// The serial as a revision: never falls while the cluster stays the same.
    serial_revision: i64,
    /// The serial that a server which lists now would come to.
    shown: i64,
    /// Revisions up to which each source is known; 0: never listed.
    revisions: [i64; 2],
    restored: bool,
    metrics: Metrics,
    sealer: Option<Arc<Sealer>>,
    keys: Keyring,
    keys_changed: bool,
    secrets: Option<Secrets>,
    journal: Arc<Mutex<Journal>>,
    /// The serial moved without a change that was seen.
    jumped: bool,
    unsettled: bool,
}

/// A name with its records.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) name: DnsName,
    pub(crate) sets: Vec<RrSet>,
    /// The records of a running VM rather than stored ones.
    pub(crate) is_vm: bool,
}

/// Some names of a zone.
#[derive(Debug)]
pub(crate) struct NamePage {
    pub(crate) names: Vec<Listed>,
    /// There are names behind the last one.
    pub(crate) more: bool,
    /// Names stored in the whole zone.
    pub(crate) stored: usize,
}

/// A key or value that has to be passed over.
#[derive(Debug, thiserror::Error)]
enum EntryError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Name(#[from] names::NameError),
    #[error("the name does not fit below the domain")]
    Long(#[from] flashdns_core::name::NameError),
    #[error("the name does not belong to the zone in its key")]
    Zone,
    #[error("the cookie secrets cannot be used")]
    Secrets(#[from] SecretsError),
    #[error("the TSIG key cannot be used")]
    Key(#[from] KeyError),
    #[error("the mark is not a revision")]
    Mark,
    #[error("nothing of FlashDNS's has this prefix")]
    Prefix,
}

impl State {
    pub(crate) fn new(
        zones: Arc<Zones>,
        metrics: Metrics,
        sealer: Option<Arc<Sealer>>,
    ) -> Result<Self, ZoneError> {
        let mut catalog = Catalog::new();
        zones.add_to(&mut catalog)?;
        Ok(Self {
            zones,
            catalog,
            entries: BTreeMap::new(),
            cluster: 0,
            serial_revision: 0,
            shown: 0,
            revisions: [0; 2],
            restored: false,
            metrics,
            sealer,
            keys: Keyring::new(),
            keys_changed: false,
            secrets: None,
            journal: Arc::default(),
            jumped: false,
            unsettled: false,
        })
    }

    /// What changed lately; shared with whoever serves transfers.
    pub(crate) fn journal(&self) -> Arc<Mutex<Journal>> {
        self.journal.clone()
    }

    /// The keys, when they changed since the last look.
    pub(crate) fn take_keys(&mut self) -> Option<Keyring> {
        std::mem::take(&mut self.keys_changed).then(|| self.keys.clone())
    }

    /// The secrets of cookies, when they changed since the last look.
    pub(crate) fn take_secrets(&mut self) -> Option<Secrets> {
        self.secrets.take()
    }

    /// Whether the serial was told without a change that it should have had.
    pub(crate) fn take_unsettled(&mut self) -> bool {
        std::mem::take(&mut self.unsettled)
    }

    /// Takes over what was saved before the restart.
    pub(crate) fn restore(&mut self, saved: Saved) {
        self.cluster = saved.cluster;
        for (key, value, mod_revision) in saved.entries {
            self.put(Entry {
                key: key.into(),
                value: value.into(),
                mod_revision,
            });
        }
        self.serial_revision = self.serial_revision.max(saved.serial_revision);
        self.restored = true;
    }

    /// What to save.
    pub(crate) fn saved(&self) -> Saved {
        let text = |bytes: &Bytes| std::str::from_utf8(bytes).ok().map(str::to_owned);
        // What is not text cannot be read either way and has been reported.
        let entry =
            |(key, (value, revision)): (&Bytes, &(Bytes, i64))| Some((text(key)?, text(value)?, *revision));
        Saved {
            cluster: self.cluster,
            serial_revision: self.serial_revision,
            entries: self.entries.iter().filter_map(entry).collect(),
        }
    }

    /// Whether there is anything to answer from.
    pub(crate) fn is_filled(&self) -> bool {
        self.restored || self.revisions.iter().all(|revision| *revision > 0)
    }

    /// The revision up to which a source is known.
    pub(crate) fn revision(&self, source: Source) -> i64 {
        self.revisions[source as usize]
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let revision = u64::try_from(self.serial_revision).unwrap_or(0);
        self.catalog.snapshot(serial::from_revision(revision))
    }

    /// The mark that has to be written for other servers to come to our serial.
    pub(crate) fn mark_due(&self) -> Option<i64> {
        (self.serial_revision > self.shown).then_some(self.serial_revision)
    }

    /// What names would answer with if these records were stored at them.
    pub(crate) fn answers(&self, stored: Vec<(DnsName, Vec<RrSet>)>) -> BTreeMap<DnsName, Vec<RrSet>> {
        let answer =
            |(name, stored): (DnsName, Vec<RrSet>)| (name.clone(), self.catalog.served_with(&name, stored));
        stored.into_iter().map(answer).collect()
    }

    /// Names of a zone in the order of their text, behind `after`: those stored and, in a project's zone,
    /// those of its running VMs.
    pub(crate) fn list(&self, zone: &DnsName, after: Option<&str>, limit: usize) -> NamePage {
        let prefix = record::zone_prefix(zone);
        let within = |prefix: &str| {
            let prefix = prefix.to_owned();
            let keys = self.entries.range(Bytes::from(prefix.clone())..);
            keys.take_while(move |(key, _)| key.starts_with(prefix.as_bytes()))
        };
        let is_behind = |name: &DnsName| after.is_none_or(|after| *name.to_string() > *after);
        let mut names: Vec<Listed> = within(&prefix)
            .filter_map(|(key, _)| self.record_name(key).ok())
            .filter(is_behind)
            .take(limit.saturating_add(1))
            .map(|name| Listed {
                sets: self.catalog.stored(&name),
                name,
                is_vm: false,
            })
            .collect();
        if let Some(project) = self.zones.project_of_zone(zone) {
            let running = within(&format!("{}{project}/", names::PREFIX));
            let running = running.filter_map(|(key, (value, _))| self.read(key, value).ok());
            names.extend(running.filter_map(|content| match content {
                Content::Host(name, host) => Some(Listed {
                    sets: host.records(),
                    name,
                    is_vm: true,
                }),
                Content::Records(..) => None,
            }));
            names.retain(|listed| is_behind(&listed.name));
            names.sort_by_cached_key(|listed| (listed.name.to_string(), listed.is_vm));
        }
        // A name that is stored and runs is listed twice; a page does not end between the two.
        let mut end = limit.min(names.len());
        while end > 0
            && names
                .get(end)
                .is_some_and(|next| names.get(end - 1).is_some_and(|at| at.name == next.name))
        {
            end += 1;
        }
        let more = names.len() > end;
        names.truncate(end);
        NamePage {
            names,
            more,
            stored: within(&prefix).count(),
        }
    }

    /// Tells which cluster the revisions are of. Those of another one do not compare with ours.
    pub(crate) fn set_cluster(&mut self, cluster: u64) {
        if self.cluster != 0 && self.cluster != cluster {
            tracing::warn!(
                "Chainfire is another cluster than before: serials start again from its revisions"
            );
            self.serial_revision = 0;
            self.shown = 0;
        }
        self.cluster = cluster;
    }

    /// Replaces everything known of a source.
    pub(crate) fn listed(&mut self, source: Source, revision: i64, entries: Vec<Entry>) {
        let before = self.serial_revision;
        self.catalog.note_changes(false);
        let kept: std::collections::HashSet<&Bytes> = entries.iter().map(|entry| &entry.key).collect();
        let gone: Vec<Bytes> = self
            .entries
            .keys()
            .filter(|key| Source::of(key) == Some(source) && !kept.contains(key))
            .cloned()
            .collect();
        drop(kept);
        for key in &gone {
            self.entries.remove(key);
            self.withdraw(key);
        }
        for entry in entries {
            let known = self.entries.get(&entry.key);
            if known.is_none_or(|(value, revision)| *value != entry.value || *revision != entry.mod_revision)
            {
                self.put(entry);
            } else {
                self.shown = self.shown.max(entry.mod_revision);
            }
        }
        if !gone.is_empty() && self.serial_revision <= before {
            // Something went while nobody looked; no entry and no mark tells when.
            self.serial_revision = revision;
        }
        self.revisions[source as usize] = revision;
        let moved = self.catalog.was_touched() || self.serial_revision != before;
        self.catalog.note_changes(true);
        self.jumped = false;
        let known = self.is_filled().then_some(self.serial_revision);
        let mut journal = lock(&self.journal);
        if moved || !journal.is_running() {
            journal.restart(known);
        }
    }

    /// Notes what changed at one revision, for incremental transfers.
    fn close_step(&mut self, before: i64) {
        let step = self.catalog.take_changes(self.serial_revision);
        let jumped = std::mem::take(&mut self.jumped);
        let mut journal = lock(&self.journal);
        if self.serial_revision <= before {
            if !step.is_empty() {
                journal.restart(None);
                self.unsettled = true;
            }
        } else if jumped || !journal.is_running() {
            journal.restart(self.is_filled().then_some(self.serial_revision));
        } else {
            journal.push(step);
        }
    }

    /// Applies changes in order.
    pub(crate) fn changed(&mut self, source: Source, revision: i64, changes: Vec<Change>) {
        let (mut before, mut step) = (self.serial_revision, None);
        for change in changes {
            let at = change.revision();
            if step.is_some_and(|step| step != at) {
                self.close_step(before);
                before = self.serial_revision;
            }
            step = Some(at);
            match change {
                Change::Put(entry) => self.put(entry),
                Change::Delete { key, mod_revision } => {
                    self.entries.remove(&key);
                    self.withdraw(&key);
                    if *key != *record::SERIAL_KEY.as_bytes() {
                        self.serial_revision = self.serial_revision.max(mod_revision);
                    }
                }
            }
        }
        if step.is_some() {
            self.close_step(before);
        }
        let known = &mut self.revisions[source as usize];
        *known = revision.max(*known);
    }

    fn put(&mut self, entry: Entry) {
        let Entry {
            key,
            value,
            mod_revision,
        } = entry;
        let (outcome, reached) = if *key == *record::SERIAL_KEY.as_bytes() {
            match mark(&value) {
                Ok(mark) => {
                    self.jumped |= mark > self.serial_revision;
                    (Ok(()), mark)
                }
                Err(error) => (Err(error), 0),
            }
        } else if *key == *record::SETTLE_KEY.as_bytes() {
            self.jumped = true;
            (Ok(()), mod_revision)
        } else if *key == *cookies::KEY.as_bytes() {
            let read = Secrets::parse(self.sealer.as_deref(), &value);
            let read = read.map(|secrets| self.secrets = Some(secrets));
            (read.map_err(EntryError::from), mod_revision)
        } else if key.starts_with(keys::PREFIX.as_bytes()) {
            (self.take_key(&key, &value), mod_revision)
        } else {
            (self.take(&key, &value), mod_revision)
        };
        if let Err(error) = outcome {
            self.metrics.bad_entries.inc();
            let key = String::from_utf8_lossy(&key);
            tracing::error!(%key, error = %chain(&error), "an entry in Chainfire cannot be read and is passed over");
        }
        self.shown = self.shown.max(reached);
        self.serial_revision = self.serial_revision.max(reached);
        self.entries.insert(key, (value, mod_revision));
    }

    fn take_key(&mut self, key: &[u8], value: &[u8]) -> Result<(), EntryError> {
        let name = keys::parse_key(key)?;
        self.keys_changed = true;
        match keys::parse(self.sealer.as_deref(), &name, value) {
            Ok(known) => {
                self.keys.insert(name, known);
                Ok(())
            }
            Err(error) => {
                self.keys.remove(&name);
                Err(error.into())
            }
        }
    }

    /// Puts an entry's records in place. One that cannot be read counts as absent, on every server alike.
    fn take(&mut self, key: &Bytes, value: &Bytes) -> Result<(), EntryError> {
        let read = self.read(key, value);
        match read {
            Ok(Content::Records(name, sets)) => self.catalog.set_records(&name, sets),
            Ok(Content::Host(name, host)) => self.catalog.set_host(&name, Some(host)),
            Err(error) => {
                self.withdraw(key);
                return Err(error);
            }
        }
        Ok(())
    }

    fn read(&self, key: &[u8], value: &[u8]) -> Result<Content, EntryError> {
        match Source::of(key).ok_or(EntryError::Prefix)? {
            Source::Zones => {
                let name = self.record_name(key)?;
                Ok(Content::Records(name, record::parse_value(value)?))
            }
            Source::Names => {
                let published = names::parse(key, value)?;
                let name = self.host_name(&published.project, &published.name)?;
                let host = Host {
                    addresses: published.addresses,
                    ttl_s: published.ttl_s,
                };
                Ok(Content::Host(name, host))
            }
        }
    }

    /// Takes away what a key stood for.
    fn withdraw(&mut self, key: &[u8]) {
        if let Ok(name) = keys::parse_key(key) {
            self.keys_changed |= self.keys.remove(&name).is_some();
            return;
        }
        match Source::of(key) {
            Some(Source::Zones) => {
                if let Ok(name) = self.record_name(key) {
                    self.catalog.set_records(&name, Vec::new());
                }
            }
            Some(Source::Names) => {
                let parsed = names::parse_key(key).ok();
                if let Some(Ok(name)) = parsed.map(|(project, name)| self.host_name(&project, &name)) {
                    self.catalog.set_host(&name, None);
                }
            }
            None => {}
        }
    }

    fn record_name(&self, key: &[u8]) -> Result<DnsName, EntryError> {
        let (zone, name) = record::parse_key(key)?;
        let reserved = self.zones.server().is_ok_and(|server| server == name);
        if reserved || self.zones.zone_of(&name).as_ref() != Some(&zone) {
            return Err(EntryError::Zone);
        }
        Ok(name)
    }

    fn host_name(
        &self,
        project: &hearth_types::Name,
        name: &hearth_types::Name,
    ) -> Result<DnsName, EntryError> {
        Ok(self.zones.project_zone(project)?.child(name.as_str())?)
    }
}

fn lock(journal: &Mutex<Journal>) -> MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Content {
    Records(DnsName, Vec<RrSet>),
    Host(DnsName, Host),
}

fn mark(value: &[u8]) -> Result<i64, EntryError> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(EntryError::Mark)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashdns_core::Rtype;

    fn state() -> State {
        let zones = Zones {
            domain: "h.i".parse().unwrap(),
            reverse: vec!["77.10.in-addr.arpa".parse().unwrap()],
            servers: vec!["127.0.0.1".parse().unwrap()],
        };
        State::new(Arc::new(zones), Metrics::default(), None).unwrap()
    }

    fn vm(name: &str, address: &str, mod_revision: i64) -> Entry {
        let published = names::PublishedName {
            project: "p".parse().unwrap(),
            name: name.parse().unwrap(),
            vm: "0190d0c0-0000-7000-8000-000000000001".parse().unwrap(),
            addresses: vec![address.parse().unwrap()],
            ttl_s: 30,
        };
        Entry {
            key: published.key().into(),
            value: published.value().unwrap().into(),
            mod_revision,
        }
    }

    fn gone(name: &str, mod_revision: i64) -> Change {
        Change::Delete {
            key: format!("{}p/{name}", names::PREFIX).into(),
            mod_revision,
        }
    }

    fn served(state: &State, name: &str) -> Vec<Rtype> {
        state
            .catalog
            .served(&name.parse().unwrap())
            .iter()
            .map(RrSet::rtype)
            .collect()
    }

    #[test]
    fn vms_appear_and_vanish_with_their_reverse_names() {
        let mut state = state();
        assert!(!state.is_filled());
        state.listed(Source::Zones, 10, vec![]);
        state.listed(Source::Names, 10, vec![vm("web", "10.77.0.5", 8)]);
        assert!(state.is_filled());
        assert_eq!(served(&state, "web.p.h.i"), [Rtype::A]);
        assert_eq!(served(&state, "5.0.77.10.in-addr.arpa"), [Rtype::PTR]);
        assert_eq!(state.snapshot().serial(), 8);
        state.changed(Source::Names, 12, vec![gone("web", 12)]);
        assert!(served(&state, "web.p.h.i").is_empty());
        assert!(served(&state, "5.0.77.10.in-addr.arpa").is_empty());
        assert_eq!(state.snapshot().serial(), 12);
    }

    #[test]
    fn a_fresh_server_comes_to_the_same_serial() {
        let mut old = state();
        old.listed(Source::Zones, 10, vec![]);
        old.listed(
            Source::Names,
            10,
            vec![vm("a", "10.77.0.1", 5), vm("b", "10.77.0.2", 9)],
        );
        assert_eq!(old.mark_due(), None);
        old.changed(Source::Names, 11, vec![gone("b", 11)]);
        assert_eq!(old.mark_due(), Some(11));
        let mark = |mod_revision| Entry {
            key: record::SERIAL_KEY.into(),
            value: "11".into(),
            mod_revision,
        };
        old.changed(Source::Zones, 12, vec![Change::Put(mark(12))]);
        assert_eq!(old.mark_due(), None);
        let mut fresh = state();
        fresh.listed(Source::Zones, 15, vec![mark(12)]);
        fresh.listed(Source::Names, 15, vec![vm("a", "10.77.0.1", 5)]);
        assert_eq!((old.snapshot().serial(), fresh.snapshot().serial()), (11, 11));
        assert_eq!(fresh.mark_due(), None);
    }

    #[test]
    fn what_went_while_nobody_looked_still_raises_the_serial() {
        let mut state = state();
        state.listed(
            Source::Names,
            10,
            vec![vm("a", "10.77.0.1", 5), vm("b", "10.77.0.2", 9)],
        );
        state.listed(Source::Names, 20, vec![vm("a", "10.77.0.1", 5)]);
        assert_eq!(state.snapshot().serial(), 20);
        assert_eq!(state.mark_due(), Some(20));
    }

    #[test]
    fn a_restart_without_the_store_answers_the_same() {
        let mut before = state();
        before.set_cluster(7);
        before.listed(Source::Zones, 10, vec![]);
        before.listed(
            Source::Names,
            10,
            vec![vm("a", "10.77.0.1", 5), vm("b", "10.77.0.2", 9)],
        );
        before.changed(Source::Names, 11, vec![gone("b", 11)]);
        let mut after = state();
        after.restore(before.saved());
        assert!(after.is_filled());
        assert_eq!(served(&after, "a.p.h.i"), [Rtype::A]);
        assert!(served(&after, "b.p.h.i").is_empty());
        assert_eq!(after.snapshot().serial(), 11);
        assert_eq!(after.saved(), before.saved());
        after.set_cluster(8);
        after.listed(Source::Names, 3, vec![vm("c", "10.77.0.3", 2)]);
        assert_eq!(after.snapshot().serial(), 2);
        assert!(served(&after, "a.p.h.i").is_empty());
    }

    #[test]
    fn the_journal_follows_changes_in_their_order_only() {
        let mut state = state();
        let journal = state.journal();
        let steps = |from: u32, to: u32| {
            let steps = lock(&journal).between(from, to);
            steps.map(|steps| steps.iter().map(|step| step.revision).collect::<Vec<_>>())
        };
        let put = |name: &str, address: &str, revision| Change::Put(vm(name, address, revision));
        state.listed(Source::Zones, 10, vec![]);
        assert_eq!(steps(0, 0), None);
        state.listed(Source::Names, 10, vec![vm("a", "10.77.0.1", 5)]);
        assert_eq!(steps(5, 5), Some(vec![]));
        let changes = vec![
            put("b", "10.77.0.2", 11),
            put("c", "10.77.0.3", 12),
            gone("b", 13),
        ];
        state.changed(Source::Names, 13, changes);
        assert_eq!(steps(5, 13), Some(vec![11, 12, 13]));
        assert_eq!(steps(11, 13), Some(vec![12, 13]));
        assert_eq!(steps(4, 13), None);
        // The mark that its own deletion made due tells nothing new.
        let mark = |value: &'static str, mod_revision| {
            Change::Put(Entry {
                key: record::SERIAL_KEY.into(),
                value: value.into(),
                mod_revision,
            })
        };
        state.changed(Source::Zones, 14, vec![mark("13", 14)]);
        assert_eq!(steps(5, 13), Some(vec![11, 12, 13]));
        // One that raises the serial does: another server saw what this one did not.
        state.changed(Source::Zones, 16, vec![mark("15", 16)]);
        assert_eq!((steps(13, 15), steps(15, 15)), (None, Some(vec![])));
        // A change that comes late has no serial of its own until all have settled.
        let entry = |key: &'static str, value: &'static str, mod_revision| {
            Change::Put(Entry {
                key: key.into(),
                value: value.into(),
                mod_revision,
            })
        };
        state.changed(Source::Names, 20, vec![put("d", "10.77.0.4", 20)]);
        assert!(!state.take_unsettled());
        let late = r#"{"version":1,"sets":[{"type":1,"ttl_s":1,"data":["01020304"]}]}"#;
        state.changed(
            Source::Zones,
            19,
            vec![entry("/flashdns/v1/zones/h.i./names/late.h.i.", late, 19)],
        );
        assert!(state.take_unsettled());
        assert_eq!((state.snapshot().serial(), steps(20, 20)), (20, None));
        state.changed(Source::Zones, 21, vec![entry(record::SETTLE_KEY, "", 21)]);
        assert_eq!(state.snapshot().serial(), 21);
        assert_eq!((steps(20, 21), steps(21, 21)), (None, Some(vec![])));
        assert_eq!(state.metrics.bad_entries.get(), 0);
    }

    #[test]
    fn entries_that_cannot_be_read_are_passed_over() {
        let mut state = state();
        state.listed(Source::Names, 10, vec![vm("web", "10.77.0.5", 8)]);
        let Entry { key, .. } = vm("web", "10.77.0.5", 8);
        state.changed(
            Source::Names,
            11,
            vec![Change::Put(Entry {
                key,
                value: "{".into(),
                mod_revision: 11,
            })],
        );
        assert!(served(&state, "web.p.h.i").is_empty());
        assert_eq!(state.metrics.bad_entries.get(), 1);
        let stray = |key: &'static str| Entry {
            key: key.into(),
            value: r#"{"version":1,"sets":[]}"#.into(),
            mod_revision: 12,
        };
        for (count, key) in [
            (2, "/flashdns/v1/zones/h.i./names/web.p.h.i."),
            (3, "/flashdns/v1/zones/h.i./names/ns.h.i."),
            (4, "/flashdns/v1/zones/example./names/a.example."),
            (5, "/flashdns/v1/else"),
        ] {
            state.changed(Source::Zones, 12, vec![Change::Put(stray(key))]);
            assert_eq!(state.metrics.bad_entries.get(), count, "{key}");
        }
        state.changed(
            Source::Zones,
            12,
            vec![Change::Put(stray("/flashdns/v1/zones/p.h.i./names/web.p.h.i."))],
        );
        assert_eq!(state.metrics.bad_entries.get(), 5);
    }
}
