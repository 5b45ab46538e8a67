//! Properties over random zones, packets and edits.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in tests a failure is a panic"
)]

mod common;

use std::collections::BTreeMap;

use common::{Edns, query, show, zone};
use flashdns_core::{Catalog, DnsName, Host, Outcome, RrSet, Rtype, Snapshot, Transport, answer, text};
use proptest::{collection::vec, prelude::*};

const ZONE: &str = "\
@ 60 SOA ns h 1 2 3 4 5
@ 60 NS ns
ns 60 A 192.0.2.1
a 60 CNAME b
b 60 CNAME a
*.c 60 MX 5 a.c
d 60 NS x.d
x.d 60 A 192.0.2.2
e.f.g 60 TXT \"t\"
big 60 TXT \"0123456789012345678901234567890123456789012345678901234567890123456789\"
";

static SNAPSHOT: std::sync::LazyLock<Snapshot> = std::sync::LazyLock::new(|| zone("o.", ZONE));

/// Whatever comes, the reply is a whole message within its limit that repeats the id, or nothing.
fn check(snapshot: &Snapshot, packet: &[u8]) {
    let mut out = Vec::new();
    for (transport, most) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
        match answer(snapshot, packet, transport, &mut out) {
            Outcome::Silence => assert!(packet.len() < 12 || packet[2] & 0x80 != 0),
            Outcome::Reply { .. } => {
                assert!(out.len() >= 12 && out.len() <= most);
                assert_eq!(out[..2], packet[..2]);
                assert_eq!(out[2] & 0x80, 0x80);
                show(&out);
            }
        }
    }
}

fn label() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "a", "b", "c", "d", "e", "f", "g", "x", "*", "ns", "big", "A", "zz",
    ])
    .prop_map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic(packet in vec(any::<u8>(), 0..200)) {
        check(&SNAPSHOT, &packet);
    }

    #[test]
    fn mutated_queries_never_panic(
        labels in vec(label(), 0..6),
        rtype in prop::sample::select(vec![1u16, 2, 5, 6, 12, 15, 16, 28, 33, 41, 43, 251, 252, 255, 65280]),
        edns in prop::option::of((any::<u16>(), 0u8..2)),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let name = format!("{}.o", labels.join("."));
        let edns = edns.map(|(size, version)| Edns { size, version });
        let mut packet = query(&name, rtype, edns);
        for (at, value) in changes {
            let at = at.index(packet.len());
            packet[at] = value;
        }
        if let Some(cut) = cut {
            packet.truncate(cut.index(packet.len()));
        }
        check(&SNAPSHOT, &packet);
    }

    #[test]
    fn data_texts_never_panic_and_read_back(rtype in prop::sample::select(vec![1u16, 2, 5, 12, 15, 16, 28, 33, 257, 65280]), data in "\\PC{0,60}|[ -~\\t\\\\\"();#0-9a-f.]{0,60}") {
        let rtype = Rtype(rtype);
        if let Ok(wire) = text::parse_rdata(rtype, &data) {
            let shown = text::show_rdata(rtype, &wire);
            prop_assert_eq!(text::parse_rdata(rtype, &shown).unwrap(), wire);
        }
    }

    #[test]
    fn any_data_can_be_shown(rtype in prop::sample::select(vec![1u16, 2, 6, 15, 16, 28, 33, 257, 65280]), data in vec(any::<u8>(), 0..64)) {
        let rtype = Rtype(rtype);
        let shown = text::show_rdata(rtype, &data);
        if RrSet::new(rtype, 0, vec![data.clone().into()]).is_ok() && rtype != Rtype::SOA {
            prop_assert_eq!(&*text::parse_rdata(rtype, &shown).unwrap(), &data[..]);
        }
    }

    #[test]
    fn names_never_panic(text in "\\PC{0,80}|[a-z.\\\\0-9]{0,300}") {
        if let Ok(name) = text.parse::<DnsName>() {
            prop_assert_eq!(name.to_string().parse::<DnsName>().unwrap(), name.clone());
            prop_assert_eq!(DnsName::from_wire(name.wire()).unwrap(), name);
        }
    }
}

#[derive(Clone, Debug)]
enum Edit {
    Records(usize, Option<u8>),
    Host(usize, Option<Vec<u8>>),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (0..8usize, prop::option::of(any::<u8>())).prop_map(|(name, value)| Edit::Records(name, value)),
        (0..8usize, prop::option::of(vec(0u8..4, 1..3))).prop_map(|(name, value)| Edit::Host(name, value)),
    ]
}

const NAMES: [&str; 8] = ["a.o", "b.a.o", "c.b.a.o", "d.o", "e.d.o", "o", "x.y.z.o", "y.z.o"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Edits in any order lead to the same answers as building the last state afresh, and a snapshot taken
    /// before an edit never changes.
    #[test]
    fn edits_equal_a_fresh_build(edits in vec(edit(), 0..40)) {
        let mut catalog = base();
        let mut last: BTreeMap<(usize, bool), Edit> = BTreeMap::new();
        let mut before = catalog.snapshot(1);
        let mut shown = picture(&before);
        for edit in edits {
            prop_assert_eq!(&picture(&before), &shown);
            apply(&mut catalog, &edit);
            before = catalog.snapshot(1);
            shown = picture(&before);
            let key = match &edit {
                Edit::Records(name, _) => (*name, false),
                Edit::Host(name, _) => (*name, true),
            };
            last.insert(key, edit);
        }
        let mut fresh = base();
        for edit in last.values() {
            apply(&mut fresh, edit);
        }
        prop_assert_eq!(fresh.snapshot(1).names(), before.names());
        prop_assert_eq!(picture(&fresh.snapshot(1)), shown);
    }
}

fn base() -> Catalog {
    let mut catalog = Catalog::new();
    common::load(&mut catalog, "o.", "@ 60 SOA ns h 1 2 3 4 5\n");
    common::load(&mut catalog, "10.in-addr.arpa.", "@ 60 SOA ns h 1 2 3 4 5\n");
    catalog
}

fn apply(catalog: &mut Catalog, edit: &Edit) {
    match edit {
        Edit::Records(name, value) => {
            let set = value.map(|byte| RrSet::new(Rtype::TXT, 60, vec![[1, byte].into()]).unwrap());
            catalog.set_records(&NAMES[*name].parse().unwrap(), set.into_iter().collect());
        }
        Edit::Host(name, value) => {
            let host = value.as_ref().map(|bytes| Host {
                addresses: bytes.iter().map(|byte| [10, 0, 0, *byte].into()).collect(),
                ttl_s: 30,
            });
            catalog.set_host(&NAMES[*name].parse().unwrap(), host);
        }
    }
}

fn picture(snapshot: &Snapshot) -> String {
    let mut shown = String::new();
    for name in NAMES
        .iter()
        .copied()
        .chain(["z.o", "q.o", "0.0.0.10.in-addr.arpa", "1.0.0.10.in-addr.arpa"])
    {
        for rtype in [Rtype::A, Rtype::TXT, Rtype::PTR] {
            shown += &common::ask(snapshot, name, rtype);
        }
    }
    shown
}

/// NXDOMAIN in a large zone costs what it costs in a small one: no path may look at all names.
#[test]
fn names_that_do_not_exist_cost_the_same_in_large_zones() {
    let cost = |names: u32| {
        let mut catalog = Catalog::new();
        common::load(&mut catalog, "o.", "@ 60 SOA ns h 1 2 3 4 5\n");
        for n in 0..names {
            let set = RrSet::new(Rtype::A, 60, vec![n.to_be_bytes().into()]).unwrap();
            catalog.set_records(&format!("h{n}.o").parse().unwrap(), vec![set]);
        }
        let snapshot = catalog.snapshot(1);
        let deep = format!("{}o", "nope.".repeat(40));
        let query = query(&deep, 1, None);
        let mut out = Vec::new();
        let mut rounds: Vec<_> = (0..9)
            .map(|_| {
                let start = std::time::Instant::now();
                for _ in 0..2000 {
                    answer(&snapshot, &query, Transport::Udp, &mut out);
                }
                start.elapsed()
            })
            .collect();
        rounds.sort();
        assert_eq!(out[3] & 0xf, 3);
        rounds[0]
    };
    let (small, large) = (cost(100), cost(100_000));
    println!("2000 queries: {small:?} of 100 names, {large:?} of 100000");
    // A scan would cost a thousand times as much; caches and a busy machine cost some.
    assert!(large < small * 8, "{small:?} against {large:?}");
}
