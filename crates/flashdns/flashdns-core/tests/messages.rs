//! Messages that are more than a question: signatures, transfers, updates; and whatever else somebody may send.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in tests a failure is a panic"
)]

mod common;

use std::{collections::BTreeMap, sync::Arc};

use common::{load, query, show};
use flashdns_core::{
    Catalog, DnsName, RrSet, Rtype, Transport, answer,
    journal::Journal,
    transfer::{self, Asked, Kind, Transfer},
    tsig::{self, Algorithm, Key, Refusal, Signer},
    update::{Update, is_update, rcode},
};
use proptest::{collection::vec, prelude::*};

const ZONE: &str = "example.";
const TEXT: &str = "@ 60 SOA ns h 5 1 2 3 4\n@ 60 NS ns\nns 60 A 192.0.2.1\n*.w 60 MX 10 Mail\nc 60 CNAME ns\n\
    sub 60 NS a.sub\na.sub 60 A 192.0.2.2\nt 60 TXT \"x\"\nd 60 DNAME ns\n";

fn name(text: &str) -> DnsName {
    text.parse().unwrap()
}

fn key(algorithm: Algorithm) -> Arc<Key> {
    Arc::new(Key::new(name("k.example"), algorithm, b"a secret of some length"))
}

/// A query for changes since a serial.
fn ixfr(serial: u32) -> Vec<u8> {
    let mut message = query(ZONE, 251, None);
    message[9] = 1;
    message.extend(b"\xc0\x0c\0\x06\0\x01\0\0\0\0\0\x16\0\0");
    message.extend(serial.to_be_bytes());
    message.extend([0; 16]);
    message
}

/// All records of a transfer, in order.
fn records(transfer: &mut Transfer, changes: &mut Option<transfer::Changes>, limit: usize) -> Vec<String> {
    let (mut lines, mut message) = (Vec::new(), Vec::new());
    while transfer.next(changes, limit, &mut message) {
        assert!(message.len() <= limit);
        let shown = show_in_order(&message);
        assert!(!shown.is_empty());
        lines.extend(shown);
    }
    lines
}

fn show_in_order(message: &[u8]) -> Vec<String> {
    use domain::{
        base::Message,
        base::zonefile_fmt::{DisplayKind, ZonefileFmt},
        rdata::AllRecordData,
    };
    let message = Message::from_octets(message).unwrap();
    let records = message.answer().unwrap();
    let lines = records.map(|record| {
        let record = record.unwrap().to_any_record::<AllRecordData<_, _>>().unwrap();
        let data = record.data().display_zonefile(DisplayKind::Simple);
        format!(
            "{} {} {} {data}",
            record.owner(),
            record.ttl().as_secs(),
            record.rtype()
        )
    });
    lines.collect()
}

fn is_soa(line: &&String) -> bool {
    line.contains(" SOA ")
}

#[test]
fn a_whole_zone_is_between_two_soas_and_leaves_out_no_record() {
    let mut catalog = Catalog::new();
    load(&mut catalog, ZONE, TEXT);
    load(
        &mut catalog,
        "inner.example.",
        "@ 60 SOA ns h 5 1 2 3 4\n@ 60 NS ns.example.\nx 60 A 192.0.2.9\n",
    );
    load(&mut catalog, "xample.", "@ 60 SOA ns h 5 1 2 3 4\n@ 60 NS ns\n");
    let snapshot = catalog.snapshot(77);
    let question = query(ZONE, 252, None);
    let asked = transfer::asked(&question).unwrap().unwrap();
    assert_eq!((&asked.zone, asked.from), (&name(ZONE), None));
    for limit in [200, 65_535] {
        let (mut transfer, mut changes) = Transfer::start(snapshot.clone(), &asked, None, &question).unwrap();
        assert_eq!(transfer.kind(), Kind::Whole);
        let mut lines = records(&mut transfer, &mut changes, limit);
        assert!(lines[0].contains("SOA ns.example. h.example. 77 ") && lines.last() == lines.first());
        lines.pop();
        lines.sort();
        assert_eq!(
            lines,
            [
                "*.w.example 60 MX 10 Mail.example.",
                "a.sub.example 60 A 192.0.2.2",
                "c.example 60 CNAME ns.example.",
                "d.example 60 DNAME ns.example.",
                "example 60 NS ns.example.",
                "example 60 SOA ns.example. h.example. 77 1 2 3 4",
                "inner.example 60 NS ns.example.",
                "ns.example 60 A 192.0.2.1",
                "sub.example 60 NS a.sub.example.",
                "t.example 60 TXT \"x\"",
            ]
        );
    }
    for zone in ["w.example.", "example.com.", "."] {
        let asked = Asked {
            zone: name(zone),
            from: None,
        };
        assert!(
            Transfer::start(snapshot.clone(), &asked, None, &question).is_none(),
            "{zone}"
        );
    }
}

fn sets_of(choice: u8) -> Vec<RrSet> {
    let set = |rtype, ttl_s, rdata: &[u8]| RrSet::new(rtype, ttl_s, vec![rdata.into()]).unwrap();
    match choice % 5 {
        0 => vec![],
        1 => vec![set(Rtype::A, 60, &[192, 0, 2, choice])],
        2 => vec![
            set(Rtype::A, 61, &[192, 0, 2, 1]),
            set(Rtype::TXT, 5, &[1, choice]),
        ],
        3 => vec![set(Rtype::CNAME, 5, b"\x01a\0")],
        _ => vec![set(Rtype::NS, 5, b"\x02ns\x07example\0")],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The changes, applied to the old zone as RFC 1995 says, give the new zone.
    #[test]
    fn changes_lead_from_one_whole_zone_to_the_other(
        edits in vec((0..12_u8, any::<u8>()), 1..40),
        from in 0..40_usize,
        limit in prop_oneof![Just(200), Just(65_535)],
    ) {
        let mut catalog = Catalog::new();
        load(&mut catalog, ZONE, TEXT);
        catalog.note_changes(true);
        let mut journal = Journal::default();
        journal.restart(Some(100));
        let question = query(ZONE, 252, None);
        let asked = Asked { zone: name(ZONE), from: None };
        let whole = |catalog: &Catalog, serial| {
            let (mut transfer, mut changes) =
                Transfer::start(catalog.snapshot(serial), &asked, None, &question).unwrap();
            let mut lines = records(&mut transfer, &mut changes, 65_535);
            lines.remove(0);
            lines.sort();
            lines
        };
        let mut states = vec![whole(&catalog, 100)];
        let mut serial = 100;
        for (who, what) in edits {
            serial += 1;
            catalog.set_records(&name(&format!("n{who}.example")), sets_of(what));
            journal.push(catalog.take_changes(serial.into()));
            states.push(whole(&catalog, serial));
        }
        let from = from % states.len();
        let old = 100 + u32::try_from(from).unwrap();
        let message = ixfr(old);
        let asked = transfer::asked(&message).unwrap().unwrap();
        prop_assert_eq!(asked.from, Some(old));
        let steps = journal.between(old, serial);
        prop_assert!(steps.is_some());
        let (mut transfer, mut changes) =
            Transfer::start(catalog.snapshot(serial), &asked, steps, &message).unwrap();
        let lines = records(&mut transfer, &mut changes, limit);
        if old == serial {
            prop_assert_eq!(transfer.kind(), Kind::Current);
            prop_assert_eq!(lines.len(), 1);
            return Ok(());
        }
        prop_assert_eq!(transfer.kind(), Kind::Changes);
        let new_soa = lines[0].clone();
        prop_assert_eq!(lines.last(), Some(&new_soa));
        let mut state = states[from].clone();
        let mut deleting = false;
        for line in &lines[1..lines.len() - 1] {
            if is_soa(&line) {
                deleting = !deleting;
            }
            if deleting {
                let at = state.iter().position(|known| known == line);
                prop_assert!(at.is_some(), "{} is not there to be deleted", line);
                state.remove(at.unwrap());
            } else {
                prop_assert!(!state.contains(line), "{} is there already", line);
                state.push(line.clone());
            }
        }
        state.sort();
        prop_assert_eq!(&state, states.last().unwrap());
    }
}

#[test]
fn signatures_are_good_once_whole_and_in_time() {
    for algorithm in Algorithm::ALL {
        let key = key(algorithm);
        let plain = query(
            "ns.example",
            1,
            Some(common::Edns {
                size: 1232,
                version: 0,
            }),
        );
        let mut signed = plain.clone();
        Signer::request(key.clone()).sign(&mut signed, 1_000_000);
        assert!(signed.len() - plain.len() <= key.room());
        assert!(tsig::may_be_signed(&signed) && !tsig::may_be_signed(&plain));
        let request = tsig::find(&signed).unwrap().unwrap();
        assert_eq!(request.key(), key.name());
        let verify = |now_s| request.verify(Some(&key), now_s).unwrap();
        let mut signer = verify(1_000_300).unwrap();
        assert_eq!(verify(1_000_301).unwrap_err(), Refusal::BadTime);
        assert_eq!(verify(999_699).unwrap_err(), Refusal::BadTime);
        assert_eq!(
            request.verify(None, 1_000_000).unwrap().unwrap_err(),
            Refusal::BadKey
        );
        let others = Algorithm::ALL.into_iter().filter(|other| *other != algorithm);
        for other in others {
            let other = Arc::new(Key::new(key.name().clone(), other, b"x"));
            assert_eq!(
                request.verify(Some(&other), 1_000_000).unwrap().unwrap_err(),
                Refusal::BadKey
            );
        }
        // No bit of it may change but those of the id, which relays change.
        for bit in 16..signed.len() * 8 {
            let mut changed = signed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            // A signature that names another key is looked up under that name.
            if let Ok(Some(request)) = tsig::find(&changed) {
                let good =
                    request.key() == key.name() && matches!(request.verify(Some(&key), 1_000_000), Ok(Ok(_)));
                // Letters' case in names does not count.
                let is_case = changed.eq_ignore_ascii_case(&signed);
                assert!(!good || is_case, "bit {bit} of {algorithm:?}");
            }
        }
        // Ordinary answers leave the room, and replies differ in signature by what came before.
        let mut catalog = Catalog::new();
        load(&mut catalog, ZONE, TEXT);
        let mut reply = Vec::new();
        answer(&catalog.snapshot(1), &signed, Transport::Udp, &mut reply);
        let mut first = reply.clone();
        signer.sign(&mut first, 1_000_000);
        let mut second = reply.clone();
        signer.sign(&mut second, 1_000_000);
        assert_ne!(first, second);
        assert!(show(&first).starts_with("NOERROR"));
        let mut refused = Vec::new();
        tsig::refuse(
            &signed,
            &request,
            Some(&key),
            Refusal::BadTime,
            2_000_000,
            &mut refused,
        );
        assert_eq!(
            (refused[3] & 0xf, tsig::find(&refused).unwrap().is_some()),
            (9, true)
        );
    }
}

/// An update message of these records: prerequisites and changes.
fn update(prerequisites: &[&[u8]], changes: &[&[u8]]) -> Vec<u8> {
    let mut message = vec![0xbe, 0xef, 0x28, 0, 0, 1];
    for records in [prerequisites, changes] {
        message.extend(u16::try_from(records.len()).unwrap().to_be_bytes());
    }
    message.extend(b"\0\0\x07example\0\0\x06\0\x01");
    message.extend(prerequisites.concat());
    message.extend(changes.concat());
    message
}

/// A record below the zone's name: type, class, time to live, data.
fn record(label: &str, rtype: u16, class: u16, ttl_s: u32, data: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    if !label.is_empty() {
        record.push(u8::try_from(label.len()).unwrap());
        record.extend(label.as_bytes());
    }
    record.extend([0xc0, 12]);
    record.extend(rtype.to_be_bytes());
    record.extend(class.to_be_bytes());
    record.extend(ttl_s.to_be_bytes());
    record.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    record.extend(data);
    record
}

#[test]
fn updates_are_read_as_rfc_2136_has_them() {
    let a = [192, 0, 2, 1];
    let read = |prerequisite: Option<Vec<u8>>, change: Option<Vec<u8>>| {
        let prerequisites: Vec<&[u8]> = prerequisite.iter().map(Vec::as_slice).collect();
        let changes: Vec<&[u8]> = change.iter().map(Vec::as_slice).collect();
        let message = update(&prerequisites, &changes);
        assert!(is_update(&message));
        Update::read(&message).map(|_| ()).err().unwrap_or(0)
    };
    // Class 255 is ANY, 254 NONE, 1 IN; type 255 is ANY.
    for (rtype, class, ttl_s, data, code) in [
        (255, 255, 0, &a[..0], rcode::NOERROR),
        (255, 254, 0, &a[..0], rcode::NOERROR),
        (1, 255, 0, &a[..0], rcode::NOERROR),
        (1, 1, 0, &a[..], rcode::NOERROR),
        (1, 1, 5, &a[..], rcode::FORMERR),
        (1, 255, 0, &a[..], rcode::FORMERR),
        (1, 3, 0, &a[..0], rcode::FORMERR),
        (1, 1, 0, &a[..3], rcode::FORMERR),
        (255, 1, 0, &a[..], rcode::FORMERR),
    ] {
        let prerequisite = record("x", rtype, class, ttl_s, data);
        assert_eq!(
            read(Some(prerequisite), None),
            code,
            "{rtype} {class} {ttl_s} {data:?}"
        );
    }
    for (rtype, class, ttl_s, data, code) in [
        (1, 1, 60, &a[..], rcode::NOERROR),
        (1, 255, 0, &a[..0], rcode::NOERROR),
        (255, 255, 0, &a[..0], rcode::NOERROR),
        (1, 254, 0, &a[..], rcode::NOERROR),
        (255, 1, 60, &a[..], rcode::FORMERR),
        (252, 1, 60, &a[..], rcode::FORMERR),
        (1, 255, 1, &a[..0], rcode::FORMERR),
        (1, 255, 0, &a[..], rcode::FORMERR),
        (255, 254, 0, &a[..0], rcode::FORMERR),
        (1, 254, 1, &a[..], rcode::FORMERR),
        (1, 4, 0, &a[..], rcode::FORMERR),
        (1, 1, 60, &a[..2], rcode::FORMERR),
    ] {
        let change = record("x", rtype, class, ttl_s, data);
        assert_eq!(read(None, Some(change)), code, "{rtype} {class} {ttl_s} {data:?}");
    }
    let outside = b"\x01x\x03com\0\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x01".to_vec();
    assert_eq!(read(None, Some(outside)), rcode::NOTZONE);
    let mut message = update(&[], &[]);
    let question = message.len() - 4;
    message[question + 1] = 1;
    assert_eq!(Update::read(&message), Err(rcode::FORMERR));
    message[question + 1] = 6;
    message[question + 3] = 3;
    assert_eq!(Update::read(&message), Err(rcode::NOTAUTH));
}

#[test]
fn changes_apply_as_rfc_2136_has_them() {
    let mut held: BTreeMap<DnsName, Vec<RrSet>> = BTreeMap::new();
    let mut apply = |changes: &[Vec<u8>]| {
        let changes: Vec<&[u8]> = changes.iter().map(Vec::as_slice).collect();
        let update = Update::read(&update(&[], &changes)).unwrap();
        update.apply(&mut held).unwrap();
        let sets = held.get(&name("x.example")).cloned().unwrap_or_default();
        sets.iter()
            .map(|set| (set.rtype().0, set.ttl_s(), set.rdatas().len()))
            .collect::<Vec<_>>()
    };
    let a = |last: u8, ttl_s| record("x", 1, 1, ttl_s, &[192, 0, 2, last]);
    let alias = |ttl_s, target: &[u8]| record("x", 5, 1, ttl_s, target);
    assert_eq!(apply(&[a(1, 60), a(2, 61), a(1, 62)]), [(1, 62, 2)]);
    assert_eq!(
        apply(&[alias(5, b"\x01a\0")]),
        [(1, 62, 2)],
        "no alias beside others"
    );
    assert_eq!(
        apply(&[record("x", 6, 1, 5, b"\0\0aaaabbbbccccddddeeee")]),
        [(1, 62, 2)],
        "no SOA"
    );
    assert_eq!(apply(&[record("x", 1, 254, 0, &[192, 0, 2, 1])]), [(1, 62, 1)]);
    assert_eq!(apply(&[record("x", 1, 254, 0, &[192, 0, 2, 9])]), [(1, 62, 1)]);
    // Names in data are decompressed and compare without regard to case.
    assert_eq!(
        apply(&[record("x", 15, 1, 5, b"\0\x0a\x04Mail\xc0\x0c")]),
        [(1, 62, 1), (15, 5, 1)]
    );
    assert_eq!(
        apply(&[record("x", 15, 254, 0, b"\0\x0a\x04mail\xc0\x0c")]),
        [(1, 62, 1)]
    );
    assert_eq!(
        apply(&[record("x", 255, 255, 0, &[]), alias(5, b"\x01a\0")]),
        [(5, 5, 1)]
    );
    assert_eq!(apply(&[a(1, 60)]), [(5, 5, 1)], "nothing beside an alias");
    assert_eq!(
        apply(&[alias(7, b"\x01b\0")]),
        [(5, 7, 1)],
        "an alias takes the other's place"
    );
    assert_eq!(apply(&[record("x", 5, 255, 0, &[])]), []);
}

/// Messages to bend: each is well-formed.
fn sound() -> Vec<Vec<u8>> {
    let mut signed = update(
        &[&record("x", 255, 254, 0, &[])],
        &[
            &record("x", 15, 1, 60, b"\0\x0a\x04Mail\xc0\x0c"),
            &record("", 255, 255, 0, &[]),
        ],
    );
    let mut all = vec![ixfr(3), query(ZONE, 252, None), signed.clone()];
    Signer::request(key(Algorithm::Sha256)).sign(&mut signed, 1000);
    all.push(signed);
    let mut cookie = query(
        "ns.example",
        1,
        Some(common::Edns {
            size: 1232,
            version: 0,
        }),
    );
    let at = cookie.len() - 1;
    cookie[at] = 28;
    cookie.extend(b"\0\x0a\0\x18");
    cookie.extend([1; 24]);
    all.push(cookie);
    all
}

/// Everything that a message from outside goes through.
fn swallow(message: &[u8], snapshot: &flashdns_core::Snapshot) {
    let key = key(Algorithm::Sha256);
    let mut out = Vec::new();
    if let Ok(Some(request)) = tsig::find(message) {
        let verdict = request.verify(Some(&key), 1000);
        let is_good = matches!(verdict, Ok(Ok(_))) && request.key() == key.name();
        assert!(!is_good || message == sound()[3], "forged");
        tsig::refuse(message, &request, Some(&key), Refusal::BadTime, 9, &mut out);
    }
    let _ = tsig::may_be_signed(message);
    if let Some(Ok(asked)) = transfer::asked(message) {
        assert!(
            transfer::may_ask(message)
                || message.len() > 300
                || message.get(12).is_some_and(|byte| *byte > 63)
        );
        if let Some((mut transfer, mut changes)) = Transfer::start(snapshot.clone(), &asked, None, message) {
            while transfer.next(&mut changes, 65_535, &mut out) {}
        }
    }
    if is_update(message) {
        let _ = Update::read(message).map(|update| update.apply(&mut BTreeMap::new()));
    }
    transfer::refuse(message, 5, &mut out);
    answer(snapshot, message, Transport::Udp, &mut out);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_read_or_refused(
        message in vec(any::<u8>(), 0..200),
        which in 0..5_usize,
        flips in vec((any::<u16>(), any::<u8>()), 0..6),
        cut in any::<u16>(),
    ) {
        let mut catalog = Catalog::new();
        load(&mut catalog, ZONE, TEXT);
        let snapshot = catalog.snapshot(9);
        swallow(&message, &snapshot);
        let mut bent = sound()[which].clone();
        for (at, bits) in flips {
            let at = usize::from(at) % bent.len();
            bent[at] ^= bits;
        }
        bent.truncate(bent.len() - usize::from(cut) % 8);
        swallow(&bent, &snapshot);
    }
}

#[test]
fn sound_messages_cut_anywhere_and_names_that_point_in_circles() {
    let mut catalog = Catalog::new();
    load(&mut catalog, ZONE, TEXT);
    let snapshot = catalog.snapshot(9);
    for message in sound() {
        for end in 0..message.len() {
            swallow(&message[..end], &snapshot);
        }
    }
    let mut circles = update(&[], &[]);
    circles[8..10].copy_from_slice(&2000_u16.to_be_bytes());
    let start = circles.len();
    for _ in 0..2000 {
        let at = u16::try_from(circles.len().min(0x3fff)).unwrap();
        circles.extend((0xc000 | at).to_be_bytes());
        circles.extend([0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    }
    assert_eq!(Update::read(&circles), Err(rcode::FORMERR));
    // A chain of pointers, each to the one before, is followed a bounded number of times.
    circles.truncate(start);
    circles[8..10].copy_from_slice(&[0, 1]);
    for step in 0..200_u16 {
        let target = if step == 0 {
            12
        } else {
            u16::try_from(start).unwrap() + 2 * (step - 1)
        };
        circles.extend((0xc000 | target).to_be_bytes());
    }
    swallow(&circles, &snapshot);
}
