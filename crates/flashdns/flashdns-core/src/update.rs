//! Dynamic updates (RFC 2136): reading a message, checking its prerequisites, applying it to a name's records.
//!
//! ```text
//!   message ── Update::read ──> names it concerns ── (fetch what they hold) ── check, apply ──> what they hold then
//! ```
//! All errors are response codes, as the RFC has them. Nothing here decides who may change what.

use std::collections::BTreeMap;

use crate::{
    limits::{MAX_UPDATE_NAMES, MAX_UPDATE_RECORDS},
    message,
    name::DnsName,
    rr::{RrSet, Rtype},
    wire::{self, Reader, Record},
};

const OPCODE: u16 = 5;
const CLASS_IN: u16 = 1;
const CLASS_NONE: u16 = 254;
const CLASS_ANY: u16 = 255;

/// Response codes of updates (RFC 2136, 2.2).
pub mod rcode {
    /// Done.
    pub const NOERROR: u16 = 0;
    /// The message is malformed.
    pub const FORMERR: u16 = 1;
    /// The server failed.
    pub const SERVFAIL: u16 = 2;
    /// A name that must exist does not.
    pub const NXDOMAIN: u16 = 3;
    /// Not allowed.
    pub const REFUSED: u16 = 5;
    /// A name that must not exist does.
    pub const YXDOMAIN: u16 = 6;
    /// A record set that must not exist does.
    pub const YXRRSET: u16 = 7;
    /// A record set that must exist does not.
    pub const NXRRSET: u16 = 8;
    /// The zone is not served here, or nobody knows who asks.
    pub const NOTAUTH: u16 = 9;
    /// A name is not in the zone.
    pub const NOTZONE: u16 = 10;
}

/// What must be so (RFC 2136, 2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
enum Prerequisite {
    NameInUse(DnsName),
    NameNotInUse(DnsName),
    SetExists(DnsName, Rtype),
    SetDoesNotExist(DnsName, Rtype),
    /// With exactly this data, in order.
    SetIs(DnsName, Rtype, Vec<Box<[u8]>>),
}

/// What is to change (RFC 2136, 2.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add a record.
    Add {
        /// Its name.
        name: DnsName,
        /// Its type.
        rtype: Rtype,
        /// Its time to live in seconds.
        ttl_s: u32,
        /// Its data.
        rdata: Box<[u8]>,
    },
    /// Delete all of a name.
    DeleteName(DnsName),
    /// Delete the records of a type.
    DeleteSet(DnsName, Rtype),
    /// Delete one record.
    DeleteRecord(DnsName, Rtype, Box<[u8]>),
}

impl Change {
    /// The name that it is about.
    #[must_use]
    pub const fn name(&self) -> &DnsName {
        match self {
            Self::Add { name, .. }
            | Self::DeleteName(name)
            | Self::DeleteSet(name, _)
            | Self::DeleteRecord(name, ..) => name,
        }
    }

    /// Its type, unless it is about all types.
    #[must_use]
    pub const fn rtype(&self) -> Option<Rtype> {
        match self {
            Self::Add { rtype, .. } | Self::DeleteSet(_, rtype) | Self::DeleteRecord(_, rtype, _) => {
                Some(*rtype)
            }
            Self::DeleteName(_) => None,
        }
    }

    /// Whether it adds.
    #[must_use]
    pub const fn adds(&self) -> bool {
        matches!(self, Self::Add { .. })
    }
}

/// An update that is well-formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    zone: DnsName,
    prerequisites: Vec<Prerequisite>,
    changes: Vec<Change>,
}

/// Whether a message is an update.
#[must_use]
pub fn is_update(message: &[u8]) -> bool {
    message::header(message).is_some_and(|(_, flags)| !flags.is_response() && flags.opcode() == OPCODE)
}

impl Update {
    /// Reads an update message.
    ///
    /// # Errors
    /// The response code: FORMERR, NOTZONE, or REFUSED where it is larger than is taken.
    pub fn read(message: &[u8]) -> Result<Self, u16> {
        let mut reader = Reader::new(message);
        let too_many = |count| usize::from(count) > MAX_UPDATE_RECORDS;
        if reader.count(0) != 1 {
            return Err(rcode::FORMERR);
        }
        if too_many(reader.count(1)) || too_many(reader.count(2)) {
            return Err(rcode::REFUSED);
        }
        let (zone, rtype, class) = reader.question().ok_or(rcode::FORMERR)?;
        if rtype != Rtype::SOA {
            return Err(rcode::FORMERR);
        }
        if class != CLASS_IN {
            return Err(rcode::NOTAUTH);
        }
        let mut update = Self {
            zone,
            prerequisites: Vec::new(),
            changes: Vec::new(),
        };
        for _ in 0..reader.count(1) {
            let record = reader.record().ok_or(rcode::FORMERR)?;
            update.prerequisite(message, &record)?;
        }
        for _ in 0..reader.count(2) {
            let record = reader.record().ok_or(rcode::FORMERR)?;
            update.change(message, &record)?;
        }
        for _ in 0..reader.count(3) {
            reader.record().ok_or(rcode::FORMERR)?;
        }
        if reader.at() != message.len() {
            return Err(rcode::FORMERR);
        }
        if update.names().len() > MAX_UPDATE_NAMES {
            return Err(rcode::REFUSED);
        }
        Ok(update)
    }

    /// RFC 2136, 3.2.
    fn prerequisite(&mut self, message: &[u8], record: &Record<'_>) -> Result<(), u16> {
        if record.ttl_s != 0 {
            return Err(rcode::FORMERR);
        }
        let name = self.inside(record)?;
        let is_empty = record.data.is_empty();
        let prerequisite = match (record.class, record.rtype) {
            (CLASS_ANY, Rtype::ANY) if is_empty => Prerequisite::NameInUse(name),
            (CLASS_NONE, Rtype::ANY) if is_empty => Prerequisite::NameNotInUse(name),
            (CLASS_ANY, rtype) if is_empty && is_data(rtype) => Prerequisite::SetExists(name, rtype),
            (CLASS_NONE, rtype) if is_empty && is_data(rtype) => Prerequisite::SetDoesNotExist(name, rtype),
            (CLASS_IN, rtype) if is_data(rtype) => {
                let rdata = data(message, record)?;
                let known = self.prerequisites.iter_mut().find_map(|known| match known {
                    Prerequisite::SetIs(owner, known, rdatas) if *owner == name && *known == rtype => {
                        Some(rdatas)
                    }
                    _ => None,
                });
                if let Some(rdatas) = known {
                    if let Err(place) = rdatas.binary_search(&rdata) {
                        rdatas.insert(place, rdata);
                    }
                    return Ok(());
                }
                Prerequisite::SetIs(name, rtype, vec![rdata])
            }
            _ => return Err(rcode::FORMERR),
        };
        self.prerequisites.push(prerequisite);
        Ok(())
    }

    /// RFC 2136, 3.4.1.
    fn change(&mut self, message: &[u8], record: &Record<'_>) -> Result<(), u16> {
        let name = self.inside(record)?;
        let is_bare = record.data.is_empty() && record.ttl_s == 0;
        let change = match (record.class, record.rtype) {
            (CLASS_IN, rtype) if is_data(rtype) => Change::Add {
                name,
                rtype,
                ttl_s: record.ttl_s,
                rdata: data(message, record)?,
            },
            (CLASS_ANY, Rtype::ANY) if is_bare => Change::DeleteName(name),
            (CLASS_ANY, rtype) if is_bare && is_data(rtype) => Change::DeleteSet(name, rtype),
            (CLASS_NONE, rtype) if record.ttl_s == 0 && is_data(rtype) => {
                Change::DeleteRecord(name, rtype, data(message, record)?)
            }
            _ => return Err(rcode::FORMERR),
        };
        self.changes.push(change);
        Ok(())
    }

    fn inside(&self, record: &Record<'_>) -> Result<DnsName, u16> {
        if record.owner.is_within(&self.zone) {
            Ok(record.owner.clone())
        } else {
            Err(rcode::NOTZONE)
        }
    }

    /// The zone that it names.
    #[must_use]
    pub fn zone(&self) -> &DnsName {
        &self.zone
    }

    /// The changes, in order.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// All names that it looks at or changes, each once.
    #[must_use]
    pub fn names(&self) -> Vec<&DnsName> {
        let looked_at = self.prerequisites.iter().map(|prerequisite| match prerequisite {
            Prerequisite::NameInUse(name)
            | Prerequisite::NameNotInUse(name)
            | Prerequisite::SetExists(name, _)
            | Prerequisite::SetDoesNotExist(name, _)
            | Prerequisite::SetIs(name, ..) => name,
        });
        let mut names: Vec<&DnsName> = looked_at.chain(self.changes.iter().map(Change::name)).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Checks the prerequisites against what names answer with (RFC 2136, 3.2.5).
    ///
    /// # Errors
    /// The response code of the first that does not hold.
    pub fn check(&self, served: impl Fn(&DnsName) -> Vec<RrSet>) -> Result<(), u16> {
        for prerequisite in &self.prerequisites {
            let set = |name, rtype| served(name).into_iter().find(|set| set.rtype() == rtype);
            let (holds, code) = match prerequisite {
                Prerequisite::NameInUse(name) => (!served(name).is_empty(), rcode::NXDOMAIN),
                Prerequisite::NameNotInUse(name) => (served(name).is_empty(), rcode::YXDOMAIN),
                Prerequisite::SetExists(name, rtype) => (set(name, *rtype).is_some(), rcode::NXRRSET),
                Prerequisite::SetDoesNotExist(name, rtype) => (set(name, *rtype).is_none(), rcode::YXRRSET),
                Prerequisite::SetIs(name, rtype, rdatas) => (
                    set(name, *rtype).is_some_and(|set| same_data(*rtype, set.rdatas(), rdatas)),
                    rcode::NXRRSET,
                ),
            };
            if !holds {
                return Err(code);
            }
        }
        Ok(())
    }

    /// Applies the changes to what names hold (RFC 2136, 3.4.2): names that are absent from `held` hold nothing.
    ///
    /// # Errors
    /// REFUSED where records cannot stand together in one set.
    pub fn apply(&self, held: &mut BTreeMap<DnsName, Vec<RrSet>>) -> Result<(), u16> {
        for change in &self.changes {
            let sets = held.entry(change.name().clone()).or_default();
            match change {
                Change::Add {
                    rtype, ttl_s, rdata, ..
                } => add(sets, *rtype, *ttl_s, rdata)?,
                Change::DeleteName(_) => sets.clear(),
                Change::DeleteSet(_, rtype) => sets.retain(|set| set.rtype() != *rtype),
                Change::DeleteRecord(_, rtype, rdata) => remove(sets, *rtype, rdata)?,
            }
        }
        Ok(())
    }
}

/// Whether records of a type can be stored.
fn is_data(rtype: Rtype) -> bool {
    !rtype.is_meta() && rtype.0 != 0
}

fn data(message: &[u8], record: &Record<'_>) -> Result<Box<[u8]>, u16> {
    let data = wire::data(message, record).ok_or(rcode::FORMERR)?;
    let data: Box<[u8]> = data.into();
    // Proves that the data has its type's form.
    RrSet::new(record.rtype, 0, vec![data.clone()]).map_err(|_| rcode::FORMERR)?;
    Ok(data)
}

/// Data compares without regard to case where it is a name (RFC 2136, 1.1.1).
fn same_record(rtype: Rtype, a: &[u8], b: &[u8]) -> bool {
    match rtype {
        Rtype::NS | Rtype::CNAME | Rtype::PTR | Rtype::DNAME | Rtype::MX | Rtype::SRV => {
            a.eq_ignore_ascii_case(b)
        }
        _ => a == b,
    }
}

fn same_data(rtype: Rtype, a: &[Box<[u8]>], b: &[Box<[u8]>]) -> bool {
    a.len() == b.len() && a.iter().all(|a| b.iter().any(|b| same_record(rtype, a, b)))
}

fn add(sets: &mut Vec<RrSet>, rtype: Rtype, ttl_s: u32, rdata: &[u8]) -> Result<(), u16> {
    let has_alias = sets.iter().any(|set| set.rtype() == Rtype::CNAME);
    let has_others = sets.iter().any(|set| set.rtype() != Rtype::CNAME);
    // RFC 2136, 3.4.2.2: what cannot stand together is passed over in silence; so is the SOA, which is the server's.
    let passed_over = match rtype {
        Rtype::SOA => true,
        Rtype::CNAME => has_others,
        _ => has_alias,
    };
    if passed_over {
        return Ok(());
    }
    let old = sets.iter().position(|set| set.rtype() == rtype);
    let mut rdatas: Vec<Box<[u8]>> = match old {
        // There is only one of these; the new one takes its place.
        Some(_) if matches!(rtype, Rtype::CNAME | Rtype::DNAME) => Vec::new(),
        Some(at) => sets.get(at).map_or_else(Vec::new, |set| set.rdatas().to_vec()),
        None => Vec::new(),
    };
    rdatas.retain(|known| !same_record(rtype, known, rdata));
    rdatas.push(rdata.into());
    let set = RrSet::new(rtype, ttl_s, rdatas).map_err(|_| rcode::REFUSED)?;
    match old.and_then(|at| sets.get_mut(at)) {
        Some(old) => *old = set,
        None => sets.push(set),
    }
    Ok(())
}

fn remove(sets: &mut Vec<RrSet>, rtype: Rtype, rdata: &[u8]) -> Result<(), u16> {
    let Some(at) = sets.iter().position(|set| set.rtype() == rtype) else {
        return Ok(());
    };
    let Some(old) = sets.get(at) else { return Ok(()) };
    let ttl_s = old.ttl_s();
    let mut rdatas = old.rdatas().to_vec();
    rdatas.retain(|known| !same_record(rtype, known, rdata));
    sets.remove(at);
    if !rdatas.is_empty() {
        sets.insert(at, RrSet::new(rtype, ttl_s, rdatas).map_err(|_| rcode::SERVFAIL)?);
    }
    Ok(())
}
