//! Zones on their way to other servers: whole (AXFR, RFC 5936) or as changes (IXFR, RFC 1995).
//!
//! ```text
//!   query ── asked ──> Asked ── Transfer::start(snapshot, journal's steps) ── next, next, ... ──> messages
//! ```
//! Nothing here decides who may have a zone.

use std::{cmp::Ordering, sync::Arc};

use crate::{
    journal::{Rr, Step},
    limits::MAX_IXFR_RECORDS,
    message::{self, Flags, HEADER, Section, Writer, rcode},
    name::DnsName,
    node::Node,
    rr::{RrSet, Rtype},
    serial,
    tree::{Row, Snapshot},
    wire::{Reader, u16_at, u32_at},
};

const CLASS_IN: u16 = 1;
/// Most authority records of a query that are looked at for the SOA of an IXFR.
const MAX_AUTHORITY: u16 = 8;

/// A query for a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The zone.
    pub zone: DnsName,
    /// The serial that the other side has: it asks for changes only.
    pub from: Option<u32>,
}

/// Whether a message asks for a transfer, by its type alone: a cheap look before [`asked`].
#[must_use]
pub fn may_ask(query: &[u8]) -> bool {
    let question = query.get(HEADER..).unwrap_or(&[]);
    let rtype = crate::name::wire_len(question).and_then(|length| u16_at(question, length));
    matches!(rtype.map(Rtype), Some(Rtype::AXFR | Rtype::IXFR))
        && message::header(query).is_some_and(|(_, flags)| !flags.is_response() && flags.opcode() == 0)
}

/// Reads a query for a transfer; `None`: it is another query. The error is the response code.
#[must_use]
pub fn asked(query: &[u8]) -> Option<Result<Asked, u16>> {
    let (_, flags) = message::header(query)?;
    if flags.is_response() || flags.opcode() != 0 {
        return None;
    }
    let mut reader = Reader::new(query);
    if reader.count(0) != 1 {
        return None;
    }
    let (zone, rtype, class) = reader.question()?;
    match rtype {
        Rtype::AXFR if class == CLASS_IN => Some(Ok(Asked { zone, from: None })),
        Rtype::IXFR if class == CLASS_IN => {
            Some(from(&zone, &mut reader).map_or(Err(rcode::FORMERR), |from| {
                Ok(Asked {
                    from: Some(from),
                    zone: zone.clone(),
                })
            }))
        }
        Rtype::AXFR | Rtype::IXFR => Some(Err(rcode::REFUSED)),
        _ => None,
    }
}

/// The serial in the authority section of an IXFR query (RFC 1995, 3).
fn from(zone: &DnsName, reader: &mut Reader<'_>) -> Option<u32> {
    if reader.count(1) != 0 || reader.count(2) > MAX_AUTHORITY {
        return None;
    }
    let mut from = None;
    for _ in 0..reader.count(2) {
        let record = reader.record()?;
        if record.rtype == Rtype::SOA && record.owner == *zone {
            let at = record.data.len().checked_sub(20)?;
            from = from.or(Some(u32_at(record.data, at)?));
        }
    }
    from
}

/// How a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The whole zone.
    Whole,
    /// What changed.
    Changes,
    /// The other side has everything.
    Current,
}

/// A transfer that is running: a zone of one snapshot, message by message.
#[derive(Debug)]
pub struct Transfer {
    snapshot: Snapshot,
    zone: DnsName,
    query: Vec<u8>,
    kind: Kind,
    /// The SOA with the snapshot's serial.
    soa: Rr,
    place: Place,
    is_first: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Open,
    /// A record of the tree: shard, slot, record within the slot's name.
    Tree(usize, usize, usize),
    Close,
    Done,
}

impl Transfer {
    /// Starts the transfer that `query` asks for. `steps` are the journal's from the other side's serial to this
    /// snapshot's, if it has them. `None`: there is no such zone here.
    #[must_use]
    pub fn start(
        snapshot: Snapshot,
        asked: &Asked,
        steps: Option<Vec<Arc<Step>>>,
        query: &[u8],
    ) -> Option<(Self, Option<Changes>)> {
        let serial = snapshot.serial();
        let node = snapshot.node(asked.zone.wire()).filter(|node| node.is_apex())?;
        let set = node.set(Rtype::SOA)?.to_owned()?;
        let soa = soa_with(&asked.zone, &set, serial)?;
        let older = asked.from.map(|from| serial::compare(from, serial));
        let changes = match (asked.from, older) {
            (Some(from), Some(Some(Ordering::Less))) => {
                steps.and_then(|steps| Changes::new(&snapshot, &asked.zone, &set, from, &steps))
            }
            _ => None,
        };
        let kind = match older {
            Some(Some(Ordering::Equal | Ordering::Greater)) => Kind::Current,
            _ if changes.is_some() => Kind::Changes,
            _ => Kind::Whole,
        };
        let transfer = Self {
            zone: asked.zone.clone(),
            snapshot,
            query: query.to_vec(),
            kind,
            soa,
            place: Place::Open,
            is_first: true,
        };
        Some((transfer, changes))
    }

    /// How it goes.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Writes the next message of at most `limit` bytes into `out`; `false`: the one before was the last. `changes` is
    /// what [`Transfer::start`] gave.
    pub fn next(&mut self, changes: &mut Option<Changes>, limit: usize, out: &mut Vec<u8>) -> bool {
        let Some((id, flags)) = message::header(&self.query) else {
            return false;
        };
        if self.place == Place::Done {
            return false;
        }
        let question = message::question(&self.query).map(|(question, _)| question);
        let question = question.filter(|_| self.is_first);
        self.is_first = false;
        let mut writer = Writer::new(out, limit, id, flags, question, None);
        writer.set(Flags::AA);
        let mut place = self.place;
        let end = match changes {
            Some(changes) => changes.write(&mut writer, &self.soa, &mut place),
            None => self.write(&mut writer, &mut place),
        };
        // A record is at most 60000 bytes and so fits an empty message.
        debug_assert!(end.is_ok() || !writer.is_empty(), "a record fits a message");
        if end.is_err() && writer.is_empty() {
            place = Place::Done;
        }
        writer.finish(rcode::NOERROR);
        self.place = place;
        true
    }

    fn write<'a>(&'a self, writer: &mut Writer<'_, 'a>, place: &mut Place) -> Result<(), message::Full> {
        loop {
            match *place {
                Place::Open => {
                    put(writer, &self.soa)?;
                    *place = if self.kind == Kind::Current {
                        Place::Done
                    } else {
                        Place::Tree(0, 0, 0)
                    };
                }
                Place::Tree(shard, slot, record) => match self.snapshot.row(shard, slot) {
                    Row::End => *place = Place::Close,
                    Row::NextShard => *place = Place::Tree(shard + 1, 0, 0),
                    Row::Free => *place = Place::Tree(shard, slot + 1, 0),
                    Row::Node(node) => {
                        self.node(writer, node, record).map_err(|(done, full)| {
                            *place = Place::Tree(shard, slot, done);
                            full
                        })?;
                        *place = Place::Tree(shard, slot + 1, 0);
                    }
                },
                Place::Close => {
                    put(writer, &self.soa)?;
                    *place = Place::Done;
                }
                Place::Done => return Ok(()),
            }
        }
    }

    /// Writes the records of a name behind the first `skip`. The error says how many are written by now.
    fn node<'a>(
        &'a self,
        writer: &mut Writer<'_, 'a>,
        node: Node<'a>,
        skip: usize,
    ) -> Result<(), (usize, message::Full)> {
        let Some(part) = self.part(node) else {
            return Ok(());
        };
        let mut at = 0;
        for set in node.sets() {
            let is_wanted = match part {
                Part::All => set.rtype != Rtype::SOA,
                Part::Cut => set.rtype == Rtype::NS,
            };
            for rdata in set.rdatas().filter(|_| is_wanted) {
                if at >= skip {
                    writer
                        .put(Section::Answer, node.name(), set.rtype, set.ttl_s, rdata)
                        .map_err(|full| (at, full))?;
                }
                at += 1;
            }
        }
        Ok(())
    }

    /// What of a name belongs to the zone.
    fn part(&self, node: Node<'_>) -> Option<Part> {
        let (name, apex) = (node.name(), self.zone.wire());
        let start = name.len().checked_sub(apex.len())?;
        if name.get(start..) != Some(apex) || !message::starts_label(name, start) {
            return None;
        }
        let walk = self.snapshot.walk(name);
        let is_zone = |found: Option<(Node<'_>, usize)>| found.is_some_and(|(zone, _)| zone.name() == apex);
        match (is_zone(walk.zone), is_zone(walk.parent)) {
            (true, _) => Some(Part::All),
            // The top of a zone below that is served here too: its NS delegate it.
            (_, true) if node.is_apex() => Some(Part::Cut),
            _ => None,
        }
    }
}

enum Part {
    All,
    Cut,
}

fn put<'a>(writer: &mut Writer<'_, 'a>, rr: &'a Rr) -> Result<(), message::Full> {
    writer.put(Section::Answer, rr.owner.wire(), rr.rtype, rr.ttl_s, &rr.rdata)
}

/// A zone's SOA as a record with a serial.
fn soa_with(zone: &DnsName, set: &RrSet, serial: u32) -> Option<Rr> {
    let mut rdata = set.rdatas().first()?.clone();
    let at = rdata.len().checked_sub(20)?;
    rdata.get_mut(at..at + 4)?.copy_from_slice(&serial.to_be_bytes());
    Some(Rr {
        owner: zone.clone(),
        rtype: Rtype::SOA,
        ttl_s: set.ttl_s(),
        rdata,
    })
}

/// The records of an incremental transfer, in order, without the first and last SOA.
#[derive(Debug)]
pub struct Changes {
    records: Vec<Rr>,
    at: usize,
    apex: Vec<u8>,
}

impl Changes {
    /// `None`: too many; the zone is sent whole.
    fn new(snapshot: &Snapshot, zone: &DnsName, soa: &RrSet, from: u32, steps: &[Arc<Step>]) -> Option<Self> {
        let belongs = |rr: &&Rr| {
            let walk = snapshot.walk(rr.owner.wire());
            walk.zone.is_some_and(|(apex, _)| apex.name() == zone.wire())
        };
        let (mut records, mut old) = (Vec::new(), from);
        for step in steps {
            let removed: Vec<Rr> = step.removed.iter().filter(belongs).cloned().collect();
            let added: Vec<Rr> = step.added.iter().filter(belongs).cloned().collect();
            if removed.is_empty() && added.is_empty() {
                continue;
            }
            let new = serial::from_revision(u64::try_from(step.revision).ok()?);
            records.push(soa_with(zone, soa, old)?);
            records.extend(removed);
            records.push(soa_with(zone, soa, new)?);
            records.extend(added);
            old = new;
            if records.len() > MAX_IXFR_RECORDS {
                return None;
            }
        }
        if old != snapshot.serial() {
            // Nothing of this zone changed since; its serial did.
            records.push(soa_with(zone, soa, old)?);
            records.push(soa_with(zone, soa, snapshot.serial())?);
        }
        Some(Self {
            records,
            at: 0,
            apex: zone.wire().to_vec(),
        })
    }

    fn write<'a>(
        &'a mut self,
        writer: &mut Writer<'_, 'a>,
        soa: &'a Rr,
        place: &mut Place,
    ) -> Result<(), message::Full> {
        debug_assert_eq!(self.apex, soa.owner.wire());
        if *place == Place::Open {
            put(writer, soa)?;
            *place = Place::Tree(0, 0, 0);
        }
        while let Some(rr) = self.records.get(self.at) {
            put(writer, rr)?;
            self.at += 1;
        }
        *place = Place::Close;
        put(writer, soa)?;
        *place = Place::Done;
        Ok(())
    }
}

/// Writes a reply without records: what becomes of a query that is not served.
pub fn refuse(query: &[u8], rcode: u16, out: &mut Vec<u8>) {
    message::reply(query, rcode, out);
}

/// Writes a NOTIFY (RFC 1996) for a zone of a snapshot. `false`: there is no such zone.
pub fn notify(snapshot: &Snapshot, zone: &DnsName, id: [u8; 2], out: &mut Vec<u8>) -> bool {
    const NOTIFY_AA: u16 = 4 << 11 | 0x0400;
    let set = snapshot
        .node(zone.wire())
        .and_then(|node| node.set(Rtype::SOA)?.to_owned());
    let Some(soa) = set.and_then(|set| soa_with(zone, &set, snapshot.serial())) else {
        return false;
    };
    out.clear();
    out.extend(id);
    out.extend(NOTIFY_AA.to_be_bytes());
    out.extend([0, 1, 0, 1, 0, 0, 0, 0]);
    out.extend_from_slice(zone.wire());
    out.extend(Rtype::SOA.0.to_be_bytes());
    out.extend(CLASS_IN.to_be_bytes());
    out.extend([0xc0, 12]);
    out.extend(Rtype::SOA.0.to_be_bytes());
    out.extend(CLASS_IN.to_be_bytes());
    out.extend(soa.ttl_s.to_be_bytes());
    out.extend(u16::try_from(soa.rdata.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&soa.rdata);
    true
}
