//! Building queries and reading replies with the `domain` crate, an independent reader of messages.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "each test file uses a part of the helpers; in tests a failure is a panic"
)]

use std::collections::BTreeMap;

use domain::{
    base::{Message, Name, iana::Rtype as DomainRtype, rdata::ComposeRecordData, zonefile_fmt::ZonefileFmt},
    rdata::AllRecordData,
    zonefile::inplace::{Entry, Zonefile},
};
use flashdns_core::{Catalog, DnsName, Outcome, RrSet, Rtype, Snapshot, Transport, answer};

/// Loads a zone file; its SOA's serial becomes the snapshot's.
pub fn load(catalog: &mut Catalog, origin: &str, text: &str) -> u32 {
    type Data = (u32, Vec<Box<[u8]>>);
    let apex: DnsName = origin.parse().unwrap();
    let mut file = Zonefile::from(text);
    file.set_origin(Name::from_octets(bytes::Bytes::copy_from_slice(apex.wire())).unwrap());
    file.set_default_class(domain::base::iana::Class::IN);
    let mut found: BTreeMap<(DnsName, u16), Data> = BTreeMap::new();
    while let Some(entry) = file.next_entry().unwrap() {
        let Entry::Record(record) = entry else {
            panic!("no includes in tests")
        };
        let owner: DnsName = record.owner().to_string().parse().unwrap();
        let mut wire = Vec::new();
        record.data().compose_rdata(&mut wire).unwrap();
        let key = (owner, record.rtype().to_int());
        let set = found.entry(key).or_insert((record.ttl().as_secs(), Vec::new()));
        set.1.push(wire.into());
    }
    let mut serial = 0;
    let mut names: BTreeMap<DnsName, Vec<RrSet>> = BTreeMap::new();
    for ((owner, rtype), (ttl_s, rdatas)) in found {
        let set = RrSet::new(Rtype(rtype), ttl_s, rdatas).unwrap();
        if set.rtype() == Rtype::SOA {
            let rdata = &set.rdatas()[0];
            serial = u32::from_be_bytes(rdata[rdata.len() - 20..rdata.len() - 16].try_into().unwrap());
            catalog.add_zone_records(&apex, &set, vec![]).unwrap();
        } else {
            names.entry(owner).or_default().push(set);
        }
    }
    for (owner, sets) in names {
        catalog.set_records(&owner, sets);
    }
    serial
}

/// A snapshot of one zone file.
pub fn zone(origin: &str, text: &str) -> Snapshot {
    let mut catalog = Catalog::new();
    let serial = load(&mut catalog, origin, text);
    catalog.snapshot(serial)
}

/// How a query is made.
#[derive(Clone, Copy)]
pub struct Edns {
    pub size: u16,
    pub version: u8,
}

/// A query in wire form. The name keeps its case.
pub fn query(name: &str, rtype: u16, edns: Option<Edns>) -> Vec<u8> {
    let mut query = vec![0xbe, 0xef, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(rtype.to_be_bytes());
    query.extend([0, 1]);
    if let Some(Edns { size, version }) = edns {
        query.extend([0, 0, 41]);
        query.extend(size.to_be_bytes());
        query.extend([0, version, 0, 0, 0, 0]);
    }
    query
}

/// A reply as sorted lines of text.
pub fn show(reply: &[u8]) -> String {
    let message = Message::from_octets(reply).unwrap();
    let header = message.header();
    let flags = [
        ("aa", header.aa()),
        ("tc", header.tc()),
        ("rd", header.rd()),
        ("ra", header.ra()),
    ];
    let flags: Vec<&str> = flags
        .iter()
        .filter(|(_, set)| *set)
        .map(|(name, _)| *name)
        .collect();
    let mut shown = format!("{} {}\n", message.opt_rcode(), flags.join(" "));
    let question = message.sole_question();
    if let Ok(question) = question {
        shown += &format!("? {} {}\n", question.qname(), question.qtype());
    }
    let (_, answer, authority, additional) = message.sections().unwrap();
    for (mark, section) in [('=', answer), ('@', authority), ('+', additional)] {
        let mut lines = Vec::new();
        for record in section {
            let record = record.unwrap();
            if record.rtype() == DomainRtype::OPT {
                continue;
            }
            let record = record.to_any_record::<AllRecordData<_, _>>().unwrap();
            let data = record
                .data()
                .display_zonefile(domain::base::zonefile_fmt::DisplayKind::Simple);
            lines.push(format!(
                "{mark} {} {} {} {data}\n",
                record.owner(),
                record.ttl().as_secs(),
                record.rtype()
            ));
        }
        lines.sort();
        shown.extend(lines);
    }
    shown
}

/// Asks over UDP with EDNS and shows the reply.
pub fn ask(snapshot: &Snapshot, name: &str, rtype: Rtype) -> String {
    let mut reply = Vec::new();
    let query = query(
        name,
        rtype.0,
        Some(Edns {
            size: 1232,
            version: 0,
        }),
    );
    match answer(snapshot, &query, Transport::Udp, &mut reply) {
        Outcome::Reply { .. } => show(&reply),
        Outcome::Silence => "silence\n".to_owned(),
    }
}
