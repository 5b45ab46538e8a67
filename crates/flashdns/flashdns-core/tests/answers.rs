//! Answers as pictures: question, flags, sections. `=` answer, `@` authority, `+` additional.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in tests a failure is a panic"
)]

mod common;

use common::{Edns, ask, load, query, show, zone};
use expect_test::{Expect, expect};
use flashdns_core::{Catalog, Outcome, Rtype, Snapshot, Transport, answer};

const ZONE: &str = "\
$TTL 300
@ 3600 IN SOA ns hostmaster 7 3600 600 86400 60
@ NS ns
ns A 192.0.2.53
www A 192.0.2.1
www A 192.0.2.2
www AAAA 2001:db8::1
mail MX 10 www
_sip._tcp SRV 0 5 5060 www
alias CNAME www
out CNAME www.elsewhere.test.
gone CNAME nothing
chain1 CNAME chain2
chain2 CNAME chain3
chain3 CNAME www
loop1 CNAME loop2
loop2 CNAME loop1
a.ent TXT \"below\"
*.wild TXT \"star\"
host.wild A 192.0.2.9
*.walias CNAME www
sub NS ns.sub
sub NS ns.other.test.
sub DS 1 8 2 0000000000000000000000000000000000000000000000000000000000000000
ns.sub A 192.0.2.54
unknown TYPE65280 \\# 3 010203
";

fn check(snapshot: &Snapshot, name: &str, rtype: Rtype, expected: Expect) {
    expected.assert_eq(&ask(snapshot, name, rtype));
}

#[test]
fn positive_answers() {
    let z = zone("example.", ZONE);
    check(
        &z,
        "WWW.example",
        Rtype::A,
        expect![[r#"
        NOERROR aa rd
        ? WWW.example A
        = WWW.example 300 A 192.0.2.1
        = WWW.example 300 A 192.0.2.2
    "#]],
    );
    check(
        &z,
        "mail.example",
        Rtype::MX,
        expect![[r#"
        NOERROR aa rd
        ? mail.example MX
        = mail.example 300 MX 10 www.example.
        + www.example 300 A 192.0.2.1
        + www.example 300 A 192.0.2.2
        + www.example 300 AAAA 2001:db8::1
    "#]],
    );
    check(
        &z,
        "example",
        Rtype::SOA,
        expect![[r#"
        NOERROR aa rd
        ? example SOA
        = example 3600 SOA ns.example. hostmaster.example. 7 3600 600 86400 60
    "#]],
    );
    check(
        &z,
        "example",
        Rtype::NS,
        expect![[r#"
        NOERROR aa rd
        ? example NS
        = example 300 NS ns.example.
        + ns.example 300 A 192.0.2.53
    "#]],
    );
    check(
        &z,
        "unknown.example",
        Rtype(65280),
        expect![[r#"
        NOERROR aa rd
        ? unknown.example TYPE65280
        = unknown.example 300 TYPE65280 \# 3 01 02 03
    "#]],
    );
}

#[test]
fn negative_answers() {
    let z = zone("example.", ZONE);
    // RFC 2308: the SOA's own TTL is 3600, MINIMUM 60.
    check(
        &z,
        "no.such.example",
        Rtype::A,
        expect![[r#"
        NXDOMAIN aa rd
        ? no.such.example A
        @ example 60 SOA ns.example. hostmaster.example. 7 3600 600 86400 60
    "#]],
    );
    check(
        &z,
        "www.example",
        Rtype::TXT,
        expect![[r#"
        NOERROR aa rd
        ? www.example TXT
        @ example 60 SOA ns.example. hostmaster.example. 7 3600 600 86400 60
    "#]],
    );
    // An empty non-terminal exists.
    check(
        &z,
        "ent.example",
        Rtype::A,
        expect![[r#"
        NOERROR aa rd
        ? ent.example A
        @ example 60 SOA ns.example. hostmaster.example. 7 3600 600 86400 60
    "#]],
    );
    check(
        &z,
        "elsewhere.test",
        Rtype::A,
        expect![[r#"
        REFUSED rd
        ? elsewhere.test A
    "#]],
    );
}

#[test]
fn aliases() {
    let z = zone("example.", ZONE);
    check(
        &z,
        "chain1.example",
        Rtype::AAAA,
        expect![[r#"
        NOERROR aa rd
        ? chain1.example AAAA
        = chain1.example 300 CNAME chain2.example.
        = chain2.example 300 CNAME chain3.example.
        = chain3.example 300 CNAME www.example.
        = www.example 300 AAAA 2001:db8::1
    "#]],
    );
    check(
        &z,
        "alias.example",
        Rtype::CNAME,
        expect![[r#"
        NOERROR aa rd
        ? alias.example CNAME
        = alias.example 300 CNAME www.example.
    "#]],
    );
    // RFC 6604: the response code is the one of the chain's last name.
    check(
        &z,
        "gone.example",
        Rtype::A,
        expect![[r#"
        NXDOMAIN aa rd
        ? gone.example A
        = gone.example 300 CNAME nothing.example.
        @ example 60 SOA ns.example. hostmaster.example. 7 3600 600 86400 60
    "#]],
    );
    check(
        &z,
        "out.example",
        Rtype::A,
        expect![[r#"
        NOERROR aa rd
        ? out.example A
        = out.example 300 CNAME www.elsewhere.test.
    "#]],
    );
    check(
        &z,
        "loop1.example",
        Rtype::A,
        expect![[r#"
        NOERROR aa rd
        ? loop1.example A
        = loop1.example 300 CNAME loop2.example.
        = loop2.example 300 CNAME loop1.example.
    "#]],
    );
}

#[test]
fn wildcards() {
    let z = zone("example.", ZONE);
    check(
        &z,
        "x.y.wild.example",
        Rtype::TXT,
        expect![[r#"
        NOERROR aa rd
        ? x.y.wild.example TXT
        = x.y.wild.example 300 TXT "star"
    "#]],
    );
    // RFC 4592, 2.2.1: a name that exists hides the wildcard, for all types and for names below.
    check(
        &z,
        "host.wild.example",
        Rtype::TXT,
        expect![[r#"
        NOERROR aa rd
        ? host.wild.example TXT
        @ example 60 SOA ns.example. hostmaster.example. 7 3600 600 86400 60
    "#]],
    );
    check(
        &z,
        "x.host.wild.example",
        Rtype::TXT,
        expect![[r#"
        NXDOMAIN aa rd
        ? x.host.wild.example TXT
        @ example 60 SOA ns.example. hostmaster.example. 7 3600 600 86400 60
    "#]],
    );
    check(
        &z,
        "x.walias.example",
        Rtype::A,
        expect![[r#"
        NOERROR aa rd
        ? x.walias.example A
        = www.example 300 A 192.0.2.1
        = www.example 300 A 192.0.2.2
        = x.walias.example 300 CNAME www.example.
    "#]],
    );
}

#[test]
fn delegations() {
    let z = zone("example.", ZONE);
    check(
        &z,
        "a.sub.example",
        Rtype::A,
        expect![[r#"
        NOERROR rd
        ? a.sub.example A
        @ sub.example 300 NS ns.other.test.
        @ sub.example 300 NS ns.sub.example.
        + ns.sub.example 300 A 192.0.2.54
    "#]],
    );
    // DS belongs to the parent's side of the cut (RFC 4035, 3.1.4.1).
    check(
        &z,
        "sub.example",
        Rtype(43),
        expect![[r#"
        NOERROR aa rd
        ? sub.example DS
        = sub.example 300 DS 1 8 2 0000000000000000000000000000000000000000000000000000000000000000
    "#]],
    );
}

#[test]
fn the_closest_zone_answers() {
    let mut catalog = Catalog::new();
    load(&mut catalog, "example.", ZONE);
    let serial = load(
        &mut catalog,
        "deep.sub.example.",
        "@ 60 SOA ns.a. h.a. 9 1 1 1 5\n@ 60 NS ns.a.\nx 60 A 192.0.2.7\n",
    );
    let z = catalog.snapshot(serial);
    check(
        &z,
        "x.deep.sub.example",
        Rtype::A,
        expect![[r#"
        NOERROR aa rd
        ? x.deep.sub.example A
        = x.deep.sub.example 60 A 192.0.2.7
    "#]],
    );
    check(
        &z,
        "y.deep.sub.example",
        Rtype::A,
        expect![[r#"
        NXDOMAIN aa rd
        ? y.deep.sub.example A
        @ deep.sub.example 5 SOA ns.a. h.a. 9 1 1 1 5
    "#]],
    );
}

#[test]
fn any_is_answered_with_the_smallest_set() {
    let z = zone("example.", ZONE);
    check(
        &z,
        "www.example",
        Rtype::ANY,
        expect![[r#"
        NOERROR aa rd
        ? www.example ANY
        = www.example 300 AAAA 2001:db8::1
    "#]],
    );
}

#[test]
fn transfers_and_other_kinds_are_refused() {
    let z = zone("example.", ZONE);
    check(
        &z,
        "example",
        Rtype::AXFR,
        expect![[r#"
        REFUSED rd
        ? example AXFR
    "#]],
    );
    check(
        &z,
        "example",
        Rtype(250),
        expect![[r#"
        NOTIMP rd
        ? example TSIG
    "#]],
    );
}

fn reply(snapshot: &Snapshot, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let mut out = vec![1, 2, 3];
    match answer(snapshot, query, transport, &mut out) {
        Outcome::Reply { .. } => Some(out),
        Outcome::Silence => None,
    }
}

#[test]
fn large_answers_are_cut_over_udp_only() {
    let records: String = (0..60).map(|n| format!("big 60 TXT \"{n:0100}\"\n")).collect();
    let z = zone("example.", &format!("{ZONE}{records}"));
    for (edns, most) in [
        (None, 512),
        (Some(4096), 1232),
        (Some(100), 512),
        (Some(1000), 1000),
    ] {
        let query = query("big.example", 16, edns.map(|size| Edns { size, version: 0 }));
        let udp = reply(&z, &query, Transport::Udp).unwrap();
        assert!(udp.len() <= most, "{} bytes", udp.len());
        assert!(show(&udp).starts_with("NOERROR aa tc rd"), "{}", show(&udp));
        let tcp = reply(&z, &query, Transport::Tcp).unwrap();
        assert_eq!(show(&tcp).matches("TXT \"0").count(), 60);
    }
}

#[test]
fn glue_that_does_not_fit_sets_tc() {
    let servers: String = (0..20)
        .map(|n| format!("cut 60 NS ns{n:040}.cut\nns{n:040}.cut 60 A 192.0.2.1\n"))
        .collect();
    let z = zone("example.", &format!("{ZONE}{servers}"));
    let udp = reply(
        &z,
        &query(
            "x.cut.example",
            1,
            Some(Edns {
                size: 1232,
                version: 0,
            }),
        ),
        Transport::Udp,
    )
    .unwrap();
    assert!(show(&udp).starts_with("NOERROR tc rd"), "{}", show(&udp));
}

#[test]
fn edns() {
    let z = zone("example.", ZONE);
    let bad = reply(
        &z,
        &query(
            "www.example",
            1,
            Some(Edns {
                size: 1232,
                version: 1,
            }),
        ),
        Transport::Udp,
    )
    .unwrap();
    assert!(show(&bad).starts_with("BADVERS rd"), "{}", show(&bad));
    let plain = reply(&z, &query("www.example", 1, None), Transport::Udp).unwrap();
    assert_eq!(plain[11], 0, "no OPT unless asked");
    let mut options = query(
        "www.example",
        1,
        Some(Edns {
            size: 1232,
            version: 0,
        }),
    );
    let end = options.len();
    options[end - 2..].copy_from_slice(&6_u16.to_be_bytes());
    options.extend([0xfd, 0xe9, 0, 2, 7, 7]);
    let ignored = reply(&z, &options, Transport::Udp).unwrap();
    assert!(show(&ignored).starts_with("NOERROR aa rd"), "{}", show(&ignored));
    assert_eq!(
        ignored[ignored.len() - 11..],
        [0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]
    );
}

/// The list in the notes on hostile input: each packet with the response code it gets, `None` for silence.
#[test]
fn hostile_packets() {
    let z = zone("example.", ZONE);
    let good = query(
        "www.example",
        1,
        Some(Edns {
            size: 1232,
            version: 0,
        }),
    );
    let plain = query("www.example", 1, None);
    let with = |base: &[u8], at: usize, bytes: &[u8]| {
        let mut packet = base.to_vec();
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        packet
    };
    let name = |labels: &[usize]| {
        let mut packet = plain[..12].to_vec();
        for length in labels {
            packet.push(u8::try_from(*length).unwrap());
            packet.extend(vec![b'a'; *length]);
        }
        packet.extend([0, 0, 1, 0, 1]);
        packet
    };
    let twice = [&with(&good, 10, &[0, 2])[..], &good[good.len() - 11..]].concat();
    let cases: Vec<(&str, Vec<u8>, Option<u8>)> = vec![
        ("empty", vec![], None),
        ("half a header", good[..11].to_vec(), None),
        ("a response", with(&good, 2, &[0x81]), None),
        ("no question", with(&good, 4, &[0, 0]), Some(1)),
        ("two questions", with(&good, 4, &[0, 2]), Some(1)),
        ("65535 questions", with(&good, 4, &[0xff, 0xff]), Some(1)),
        ("65535 answers", with(&good, 6, &[0xff, 0xff]), Some(1)),
        ("65535 authorities", with(&good, 8, &[0xff, 0xff]), Some(1)),
        ("65535 additional", with(&good, 10, &[0xff, 0xff]), Some(1)),
        (
            "a name that points at itself",
            with(&plain, 12, &[0xc0, 12]),
            Some(1),
        ),
        (
            "a name that points forward",
            with(&plain, 12, &[0xc0, 40]),
            Some(1),
        ),
        ("a label of 64", with(&plain, 12, &[64]), Some(1)),
        ("a name of 255", name(&[63, 63, 63, 61]), Some(5)),
        ("a name of 256", name(&[63, 63, 63, 62]), Some(1)),
        ("two OPT", twice, Some(1)),
        (
            "OPT that is not at the root",
            with(&good, good.len() - 11, &[0xc0, 12, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0]),
            Some(1),
        ),
        (
            "OPT with a wrong length",
            with(&good, good.len() - 1, &[9]),
            Some(1),
        ),
        ("garbage behind", [&good[..], b"x"].concat(), Some(1)),
        ("NOTIFY", with(&good, 2, &[0x24]), Some(4)),
        ("UPDATE", with(&good, 2, &[0x28]), Some(4)),
        ("class CH", with(&plain, plain.len() - 1, &[3]), Some(5)),
    ];
    for (what, packet, expected) in cases {
        for transport in [Transport::Udp, Transport::Tcp] {
            let rcode = reply(&z, &packet, transport).map(|reply| reply[3] & 0xf);
            assert_eq!(rcode, expected, "{what}");
        }
    }
    for end in 12..good.len() {
        assert_eq!(
            reply(&z, &good[..end], Transport::Udp).unwrap()[3] & 0xf,
            1,
            "cut at {end}"
        );
    }
}
