//! From records and running VMs to a tree of names.
//!
//! Three things can stand at a name: stored records, a host (a running VM) and the addresses that point
//! back at hosts. Each edit recomputes the one name it touches. Where they disagree the running VM wins:
//! its A and AAAA replace stored ones and silence a stored CNAME, its PTR replaces a stored PTR; the stored
//! records come back when it goes.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use crate::{
    journal::Step,
    name::DnsName,
    node::Set,
    reverse,
    rr::{RrSet, RrSetError, Rtype},
    tree::Snapshot,
};

/// A zone whose SOA and NS records are made here.
#[derive(Clone, Debug)]
pub struct ZoneSettings {
    /// Name of the zone.
    pub apex: DnsName,
    /// Primary server, the SOA's MNAME.
    pub primary: DnsName,
    /// Mailbox of who keeps the zone, the SOA's RNAME.
    pub mailbox: DnsName,
    /// The zone's name servers, at least one.
    pub servers: Vec<DnsName>,
    /// Time to live of SOA and NS, in seconds.
    pub ttl_s: u32,
    /// How long secondaries wait between checks, in seconds.
    pub refresh_s: u32,
    /// How long secondaries wait after a failed check, in seconds.
    pub retry_s: u32,
    /// How long secondaries answer without a successful check, in seconds.
    pub expire_s: u32,
    /// How long "does not exist" may be remembered, in seconds (RFC 2308).
    pub negative_ttl_s: u32,
}

impl ZoneSettings {
    /// The zone's SOA with a serial.
    ///
    /// # Errors
    /// [`RrSetError`] when the time to live is out of range.
    pub fn soa(&self, serial: u32) -> Result<RrSet, RrSetError> {
        let mut soa = [self.primary.wire(), self.mailbox.wire()].concat();
        for field in [
            serial,
            self.refresh_s,
            self.retry_s,
            self.expire_s,
            self.negative_ttl_s,
        ] {
            soa.extend(field.to_be_bytes());
        }
        RrSet::new(Rtype::SOA, self.ttl_s, vec![soa.into()])
    }

    /// The zone's NS.
    ///
    /// # Errors
    /// [`RrSetError`] when the time to live is out of range or there is no server.
    pub fn ns(&self) -> Result<RrSet, RrSetError> {
        let servers = self.servers.iter().map(|server| server.wire().into());
        RrSet::new(Rtype::NS, self.ttl_s, servers.collect())
    }
}

/// A named machine that runs now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Time to live of its records, in seconds.
    pub ttl_s: u32,
}

impl Host {
    /// Its A and AAAA records. None where there is no address, too many, or the TTL is out of range.
    #[must_use]
    pub fn records(&self) -> Vec<RrSet> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in &self.addresses {
            match address {
                IpAddr::V4(address) => v4.push(Box::from(address.octets())),
                IpAddr::V6(address) => v6.push(Box::from(address.octets())),
            }
        }
        let sets = [
            RrSet::new(Rtype::A, self.ttl_s, v4),
            RrSet::new(Rtype::AAAA, self.ttl_s, v6),
        ];
        sets.into_iter().flatten().collect()
    }
}

/// What a name's records were made from.
#[derive(Default)]
struct Owner {
    soa: Option<RrSet>,
    /// Records that come with the zone (its NS).
    fixed: Vec<RrSet>,
    stored: Vec<RrSet>,
    host: Option<Host>,
    /// Hosts whose address this name is the reverse name of, with their TTL.
    pointers: BTreeMap<DnsName, u32>,
}

/// All zones, with what each name's records were made from.
#[derive(Default)]
pub struct Catalog {
    /// Only names at which something else stands than what was stored; for all others the tree says both.
    owners: HashMap<DnsName, Owner>,
    tree: Snapshot,
    watch: Watch,
}

/// What is noted of the names that change.
#[derive(Default)]
struct Watch {
    /// What they answered with before; `None`: that is not noted.
    before: Option<BTreeMap<DnsName, Vec<RrSet>>>,
    /// Something changed.
    is_touched: bool,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog")
            .field("tree", &self.tree)
            .finish_non_exhaustive()
    }
}

impl Catalog {
    /// An empty catalog: it refuses every question.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a zone with its SOA and NS records.
    ///
    /// # Errors
    /// [`RrSetError`] when a time to live is out of range or there is no server.
    pub fn add_zone(&mut self, settings: &ZoneSettings) -> Result<(), RrSetError> {
        self.add_zone_records(&settings.apex, &settings.soa(0)?, vec![settings.ns()?])
    }

    /// Adds a zone whose SOA is given as a record set, with other records at its apex.
    ///
    /// # Errors
    /// [`RrSetError::Data`] when `soa` is not an SOA.
    pub fn add_zone_records(
        &mut self,
        apex: &DnsName,
        soa: &RrSet,
        fixed: Vec<RrSet>,
    ) -> Result<(), RrSetError> {
        if soa.rtype() != Rtype::SOA {
            return Err(RrSetError::Data);
        }
        self.edit(apex, |owner| {
            owner.soa = Some(soa.clone());
            owner.fixed = fixed;
        });
        Ok(())
    }

    /// Replaces the stored records of a name; none removes them.
    pub fn set_records(&mut self, name: &DnsName, sets: Vec<RrSet>) {
        let served_otherwise = sets.iter().any(|set| match set.rtype() {
            Rtype::SOA => true,
            Rtype::CNAME => sets.len() > 1,
            _ => false,
        });
        if served_otherwise || self.owners.contains_key(name) {
            self.edit(name, |owner| owner.stored = sets);
        } else {
            self.put(name, &sets);
        }
    }

    fn put(&mut self, name: &DnsName, sets: &[RrSet]) {
        if self
            .watch
            .before
            .as_ref()
            .is_some_and(|before| !before.contains_key(name))
        {
            let served = self.served(name);
            if let Some(before) = &mut self.watch.before {
                before.insert(name.clone(), served);
            }
        }
        self.watch.is_touched = true;
        self.tree.put(name, sets);
    }

    /// Notes from now on what names answered with before they changed, or no longer.
    pub fn note_changes(&mut self, on: bool) {
        self.watch = Watch {
            before: on.then(BTreeMap::new),
            is_touched: false,
        };
    }

    /// Whether a name was written since the last look.
    pub fn was_touched(&mut self) -> bool {
        std::mem::take(&mut self.watch.is_touched)
    }

    /// The changes noted since the last look, as a step of a journal.
    pub fn take_changes(&mut self, revision: i64) -> Step {
        let mut step = Step {
            revision,
            ..Step::default()
        };
        let noted = self.watch.before.as_mut().map(std::mem::take).unwrap_or_default();
        self.watch.is_touched = false;
        for (name, before) in noted {
            step.change(&name, &before, &self.served(&name));
        }
        step
    }

    /// Sets or removes the running machine that has a name, and the reverse names of its addresses.
    pub fn set_host(&mut self, name: &DnsName, host: Option<Host>) {
        let old = self.owners.get(name).and_then(|owner| owner.host.clone());
        if old == host {
            return;
        }
        for address in old.iter().flat_map(|host| &host.addresses) {
            self.edit_pointer(*address, |pointers| {
                pointers.remove(name);
            });
        }
        for (address, ttl_s) in host
            .iter()
            .flat_map(|host| host.addresses.iter().map(|a| (a, host.ttl_s)))
        {
            self.edit_pointer(*address, |pointers| {
                pointers.insert(name.clone(), ttl_s);
            });
        }
        self.edit(name, |owner| owner.host = host);
    }

    fn edit_pointer(&mut self, address: IpAddr, change: impl FnOnce(&mut BTreeMap<DnsName, u32>)) {
        if let Ok(name) = reverse::pointer_name(address) {
            self.edit(&name, |owner| change(&mut owner.pointers));
        }
    }

    fn edit(&mut self, name: &DnsName, change: impl FnOnce(&mut Owner)) {
        let mut owner = self.owners.remove(name).unwrap_or_else(|| Owner {
            stored: self.served(name),
            ..Owner::default()
        });
        change(&mut owner);
        let sets = owner.records();
        if !owner.is_plain() || sets != owner.stored {
            self.owners.insert(name.clone(), owner);
        }
        self.put(name, &sets);
    }

    /// The records stored at a name by [`Catalog::set_records`].
    #[must_use]
    pub fn stored(&self, name: &DnsName) -> Vec<RrSet> {
        match self.owners.get(name) {
            Some(owner) => owner.stored.clone(),
            None => self.served(name),
        }
    }

    /// What a name would answer with if these records were stored at it.
    #[must_use]
    pub fn served_with(&self, name: &DnsName, stored: Vec<RrSet>) -> Vec<RrSet> {
        let made = self.owners.get(name).map(Owner::made).unwrap_or_default();
        combined(made, &stored)
    }

    /// What a name answers with.
    #[must_use]
    pub fn served(&self, name: &DnsName) -> Vec<RrSet> {
        let node = self.tree.node(name.wire());
        node.map_or_else(Vec::new, |node| node.sets().filter_map(Set::to_owned).collect())
    }

    /// The state now, under a serial number. Cheap: it shares the tree.
    #[must_use]
    pub fn snapshot(&self, serial: u32) -> Snapshot {
        let mut snapshot = self.tree.clone();
        snapshot.serial = serial;
        snapshot
    }
}

impl Owner {
    /// Whether nothing but stored records is known of the name.
    fn is_plain(&self) -> bool {
        self.soa.is_none() && self.fixed.is_empty() && self.host.is_none() && self.pointers.is_empty()
    }

    /// What the name answers with, by the precedence in the module's header.
    fn records(&self) -> Vec<RrSet> {
        combined(self.made(), &self.stored)
    }

    /// Records made from the zone's settings, the host and the pointers.
    fn made(&self) -> Vec<RrSet> {
        let mut sets: Vec<RrSet> = self.soa.iter().chain(&self.fixed).cloned().collect();
        sets.extend(self.host.iter().flat_map(Host::records));
        if let Some(ttl_s) = self.pointers.values().min() {
            let targets = self.pointers.keys().map(|name| name.wire().into()).collect();
            sets.extend(RrSet::new(Rtype::PTR, *ttl_s, targets));
        }
        sets
    }
}

/// What stands at a name: what is made, and of what is stored that which may stand beside it.
fn combined(mut sets: Vec<RrSet>, stored: &[RrSet]) -> Vec<RrSet> {
    // Nothing stands beside a CNAME (RFC 1034, 3.6.2), and the SOA belongs to the zone.
    let crowded = !sets.is_empty();
    for stored in stored {
        let rtype = stored.rtype();
        let taken = sets.iter().any(|set| set.rtype() == rtype);
        if !taken && rtype != Rtype::SOA && !(crowded && rtype == Rtype::CNAME) {
            sets.push(stored.clone());
        }
    }
    if let Some(alias) = sets.iter().position(|set| set.rtype() == Rtype::CNAME) {
        return vec![sets.swap_remove(alias)];
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DnsName {
        text.parse().unwrap()
    }

    fn host(addresses: &[&str]) -> Option<Host> {
        Some(Host {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ttl_s: 30,
        })
    }

    fn types(catalog: &Catalog, text: &str) -> Vec<u16> {
        catalog
            .served(&name(text))
            .iter()
            .map(|set| set.rtype().0)
            .collect()
    }

    #[test]
    fn hosts_bring_and_take_their_reverse_names() {
        let mut catalog = Catalog::new();
        catalog.set_host(&name("web.p.d"), host(&["10.0.0.1", "fd00::1"]));
        assert_eq!(types(&catalog, "web.p.d"), [1, 28]);
        assert_eq!(types(&catalog, "1.0.0.10.in-addr.arpa"), [12]);
        catalog.set_host(&name("web.p.d"), host(&["10.0.0.2"]));
        assert_eq!(types(&catalog, "web.p.d"), [1]);
        assert!(types(&catalog, "1.0.0.10.in-addr.arpa").is_empty());
        assert_eq!(types(&catalog, "2.0.0.10.in-addr.arpa"), [12]);
        catalog.set_host(&name("web.p.d"), None);
        assert_eq!(catalog.snapshot(1).names(), 0);
        assert!(catalog.owners.is_empty());
    }

    #[test]
    fn two_hosts_may_share_an_address() {
        let mut catalog = Catalog::new();
        catalog.set_host(&name("a.d"), host(&["10.0.0.1"]));
        catalog.set_host(&name("b.d"), host(&["10.0.0.1"]));
        let pointers = || name("1.0.0.10.in-addr.arpa");
        assert_eq!(catalog.served(&pointers())[0].rdatas().len(), 2);
        catalog.set_host(&name("a.d"), None);
        assert_eq!(catalog.served(&pointers())[0].rdatas().len(), 1);
    }

    #[test]
    fn a_running_host_wins_over_stored_records() {
        let mut catalog = Catalog::new();
        let alias = RrSet::new(Rtype::CNAME, 60, vec![name("x.d").wire().into()]).unwrap();
        catalog.set_records(&name("web.d"), vec![alias]);
        assert_eq!(types(&catalog, "web.d"), [5]);
        catalog.set_host(&name("web.d"), host(&["10.0.0.1"]));
        assert_eq!(types(&catalog, "web.d"), [1]);
        catalog.set_host(&name("web.d"), None);
        assert_eq!(types(&catalog, "web.d"), [5]);
    }
}
