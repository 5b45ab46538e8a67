//! Zone files: what is read, what is refused and where, and that what is written reads back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in tests a failure is a panic"
)]

mod common;

use common::ask;
use expect_test::{Expect, expect};
use flashdns_core::{Catalog, DnsName, Rtype, zonefile::ZoneFile};
use proptest::{collection::vec, prelude::*};

fn read(text: &str) -> Result<ZoneFile, String> {
    let origin: DnsName = "example.".parse().unwrap();
    let zone = ZoneFile::read(text, &origin).map_err(|error| error.to_string())?;
    let again = ZoneFile::read(&zone.write(), &origin).map_err(|error| error.to_string())?;
    assert_eq!(
        again,
        zone,
        "what is written reads back as another zone:\n{}",
        zone.write()
    );
    Ok(zone)
}

fn check(text: &str, expected: Expect) {
    expected.assert_eq(&read(text).map_or_else(|error| error + "\n", |zone| zone.write()));
}

const SOA: &str = "@ 60 SOA ns h 1 2 3 4 5\n";

fn wrong(text: &str, expected: &str) {
    let error = read(&format!("{SOA}{text}")).expect_err(text);
    assert_eq!(error, expected, "{text}");
}

#[test]
fn a_file_with_everything() {
    check(
        "$TTL 1h\r\n\
         ; a comment\n\
         @ IN SOA Ns.Example. hostmaster ( 2026112400 ; serial\n\
         \t3h 15m\n\
         \t1w 5 )\n\
         \tNS ns\n\
         \n\
         ns IN 30 A 192.0.2.53\n\
         \x20  AAAA 2001:db8::53\n\
         $ORIGIN sub.example.\n\
         @ 7 IN MX 10 Mail\n\
         @ 9 IN MX 20 mail.Elsewhere.test.\n\
         *.w TXT \"a b\" c\\\"d \"\\009;(\" (\n\
          more )\n\
         a\\.b\\032c CNAME @\n\
         d DNAME example.\n\
         u TYPE65280 \\# 3 01 0203\n\
         u2 TYPE65280 \\# 0\n\
         k DNSKEY 257 3 13 AAEC AwQF\n\
         s SRV 0 5 443 s\n",
        expect![[r#"
            $ORIGIN example.
            example. 3600 IN SOA Ns.Example. hostmaster.example. 2026112400 10800 900 604800 5
            example. 3600 IN NS ns.example.
            *.w.sub.example. 3600 IN TXT "a b" "c\"d" "\009;(" "more"
            d.sub.example. 3600 IN DNAME example.
            k.sub.example. 3600 IN DNSKEY 257 3 13 AAECAwQF
            s.sub.example. 3600 IN SRV 0 5 443 s.sub.example.
            u.sub.example. 3600 IN TYPE65280 \# 3 010203
            ns.example. 30 IN A 192.0.2.53
            ns.example. 3600 IN AAAA 2001:db8::53
            u2.sub.example. 3600 IN TYPE65280 \# 0
            sub.example. 7 IN MX 10 Mail.sub.example.
            sub.example. 7 IN MX 20 mail.Elsewhere.test.
            a\046b\032c.sub.example. 3600 IN CNAME sub.example.
        "#]],
    );
}

#[test]
fn defaults_of_the_time_to_live() {
    check(
        "@ SOA ns h 1 2 3 4 5\n\
         a A 192.0.2.1\n\
         b 70 A 192.0.2.1\n\
         c A 192.0.2.1\n\
         $TTL 9\n\
         d A 192.0.2.1\n\
         e 20 A 192.0.2.1\n\
         e 10 A 192.0.2.2\n",
        expect![[r#"
            $ORIGIN example.
            example. 5 IN SOA ns.example. h.example. 1 2 3 4 5
            a.example. 5 IN A 192.0.2.1
            b.example. 70 IN A 192.0.2.1
            c.example. 70 IN A 192.0.2.1
            d.example. 9 IN A 192.0.2.1
            e.example. 10 IN A 192.0.2.1
            e.example. 10 IN A 192.0.2.2
        "#]],
    );
}

#[test]
fn errors_say_where_and_what() {
    for (text, expected) in [
        (
            "a 60 A 1.2.3",
            "line 2, column 8: `1.2.3` does not fit here: write one IPv4 address such as 192.0.2.1",
        ),
        (
            "a 60 A",
            "line 2, column 7: write one IPv4 address such as 192.0.2.1",
        ),
        ("a 60", "line 2, column 5: a type and its data are missing"),
        (
            "é 60 TXT \"é\" \"\\300\"",
            "line 2, column 15: `\\` must be followed by a character or three digits up to 255",
        ),
        (
            "a 60 TXT (\n b\n c",
            "line 2, column 10: this `(` is never closed",
        ),
        (
            "a 60 TXT ( ( b ) )",
            "line 2, column 12: a `(` stands inside of another",
        ),
        ("a 60 TXT b )", "line 2, column 12: there is no `(` for this `)`"),
        (
            "\n\na 60 TXT \"b\nc\"",
            "line 4, column 10: this quote is not closed on its line",
        ),
        (
            "a 60 TXT \"b\"c",
            "line 2, column 13: there is no space behind a closing quote",
        ),
        (
            "a 60 TXT b\"c\"",
            "line 2, column 11: there is no space before an opening quote",
        ),
        (
            "$INCLUDE /etc/shadow",
            "line 2, column 1: `$INCLUDE` is refused: no other file is read; put its records in its place",
        ),
        (
            "$generate 0-4294967295 a$ A 192.0.2.1",
            "line 2, column 1: `$GENERATE` is refused; write the records out",
        ),
        (
            "$X",
            "line 2, column 1: this is no directive: there are `$ORIGIN` and `$TTL`",
        ),
        ("a CH TXT b", "line 2, column 3: only class IN is served"),
        (
            "a 60 NOPE b",
            "line 2, column 6: `NOPE` is not a record type; write one such as `A` or `TXT`, or `TYPE` and its number",
        ),
        (
            "b.test. 60 A 192.0.2.1",
            "line 2, column 1: `b.test.` does not lie in the zone `example.`",
        ),
        (
            "a..b 60 A 192.0.2.1",
            "line 2, column 1: `a..b` is not a name: a domain name must not have an empty label",
        ),
        (
            "a 60 CNAME b\na 60 A 192.0.2.1",
            "line 3, column 6: at `a.example.` a CNAME and other records would stand together (RFC 1034, 3.6.2)",
        ),
        (
            "@ 60 CNAME b",
            "line 2, column 6: at `example.` a CNAME and other records would stand together (RFC 1034, 3.6.2)",
        ),
        (
            "a 60 CNAME b\na 60 CNAME c",
            "line 2, column 6: the CNAME records of `a.example.` cannot be used: \
             there is at most one record of this type at a name",
        ),
        (
            "a 60 DNAME b\nx.y.a 60 A 192.0.2.1",
            "line 3, column 10: `x.y.a.example.` lies below the DNAME `a.example.` (RFC 6672, 2.4)",
        ),
        (
            "a 60 DNAME b\na 60 NS c",
            "line 3, column 6: at `a.example.` a DNAME and NS would stand together (RFC 6672, 2.3)",
        ),
        (
            "a 2147483648 A 192.0.2.1",
            "line 2, column 3: a time to live is seconds up to 2147483647",
        ),
        (
            "a 60 ANY b",
            "line 2, column 10: write `\\#`, the number of bytes, and two hexadecimal digits for each",
        ),
        (
            "a 60 A \\# 3 c00002",
            "line 2, column 8: the data does not have the form that its type demands",
        ),
        (
            "a\u{1} 60 A 192.0.2.1",
            "line 2, column 2: a control character is written as `\\` and three digits",
        ),
    ] {
        wrong(text, expected);
    }
    assert_eq!(
        read("a 60 A 192.0.2.1\n").unwrap_err(),
        "line 1, column 1: `example.` has no SOA record"
    );
    assert_eq!(
        read(" A 192.0.2.1\n").unwrap_err(),
        "line 1, column 1: the first record must name its owner"
    );
}

#[test]
fn a_file_is_served() {
    let zone = read(&format!(
        "{SOA}@ 60 NS ns\nns 60 A 192.0.2.1\nold 60 DNAME new\nw.new 60 TXT \"t\"\n"
    ))
    .unwrap();
    let mut catalog = Catalog::new();
    zone.add_to(&mut catalog).unwrap();
    expect![[r#"
        NOERROR aa rd
        ? W.old.example TXT
        = W.new.example 60 TXT "t"
        = W.old.example 60 CNAME W.new.example.
        = old.example 60 DNAME new.example.
    "#]]
    .assert_eq(&ask(&catalog.snapshot(1), "W.old.example", Rtype::TXT));
}

/// A word of zone text: mostly what belongs there.
fn word() -> impl Strategy<Value = String> {
    let known = vec![
        "@",
        "a",
        "*.b",
        "IN",
        "60",
        "1h",
        "A",
        "NS",
        "CNAME",
        "DNAME",
        "MX",
        "TXT",
        "TYPE65280",
        "SRV",
        "CAA",
        "NAPTR",
        "DS",
        "DNSKEY",
        "192.0.2.1",
        "10",
        "\\#",
        "2",
        "0a0b",
        "\"q\"",
        "(",
        ")",
        ";",
        "\n",
        "\n",
        "\n",
        "$TTL",
        "$ORIGIN",
        "$INCLUDE",
        "\\",
        "\"",
        "\\065",
        "AAEC",
        "issue",
    ];
    prop_oneof![
        9 => prop::sample::select(known).prop_map(str::to_owned),
        1 => "\\PC{0,6}",
        1 => "[ -~\\n\\t]{0,12}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn any_text_is_read_or_refused(words in vec(word(), 0..40)) {
        let _ = read(&format!("{SOA}{}", words.join(" ")));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        let _ = read(&String::from_utf8_lossy(&bytes));
    }
}

/// Hostile files of the research notes: each is refused or read in the time its length explains.
#[test]
fn hostile_files() {
    let long = "x".repeat(1 << 20);
    assert!(read(&format!("{SOA}a 60 TXT \"{long}\"\n")).is_err());
    assert!(read(&format!("{SOA}a 60 TXT {}\n", "\"y\" ".repeat(100_000))).is_err());
    assert!(read(&format!("{SOA}{} 60 A 192.0.2.1\n", "a.".repeat(500_000))).is_err());
    assert!(read(&format!("{SOA}{}\n", "(".repeat(1 << 20))).is_err());
    assert!(read(&"\\".repeat(1 << 20)).is_err());
    let many: String = (0..20_000).map(|n| format!("n{n} 60 A 192.0.2.1\n")).collect();
    assert_eq!(read(&format!("{SOA}{many}")).unwrap().names().len(), 20_000);
}

#[test]
fn service_parameters_and_locations() {
    check(
        "@ 60 SOA ns h 1 2 3 4 5\n\
         a HTTPS 0 other\n\
         b HTTPS 1 . port=443 alpn=h2,h3 no-default-alpn ipv6hint=2001:db8::1,::2 ( ; on two lines\n\
         mandatory=port,alpn )\n\
         c SVCB 16 x.example. alpn=\"f\\\\\\\\oo\\\\,bar,h2\" key667=\"hel\\210qoo\" dohpath=/q{?dns} key1000\n\
         d SVCB 1 . ech=\"AEX+DQ==\" ipv4hint=\"192.0.2.1\" ohttp\n\
         l LOC 42 21 54 N 71 06 18 W -24m 30m\n\
         m LOC 90 S 180 E 0 0m 90000000m 0.00m\n",
        expect![[r#"
            $ORIGIN example.
            example. 60 IN SOA ns.example. h.example. 1 2 3 4 5
            a.example. 60 IN HTTPS 0 other.example.
            b.example. 60 IN HTTPS 1 . mandatory=alpn,port alpn="h2,h3" no-default-alpn port=443 ipv6hint=2001:db8::1,::2
            c.example. 60 IN SVCB 16 x.example. alpn="f\\\\oo\\,bar,h2" dohpath="/q{?dns}" key667="hel\210qoo" key1000=""
            d.example. 60 IN SVCB 1 . ipv4hint=192.0.2.1 ech=AEX+DQ== ohttp
            l.example. 60 IN LOC 42 21 54.000 N 71 6 18.000 W -24.00m 30.00m 10000.00m 10.00m
            m.example. 60 IN LOC 90 0 0.000 S 180 0 0.000 E 0.00m 0.00m 90000000.00m 0.00m
        "#]],
    );
    for (data, place) in [
        ("a 1 SVCB 1 . alpn", 14),
        ("a 1 SVCB 1 . alpn=", 14),
        ("a 1 SVCB 1 . alpn=h2,,h3", 14),
        ("a 1 SVCB 1 . alpn=h2\\\\", 14),
        ("a 1 SVCB 1 . port=1 port=2", 21),
        ("a 1 SVCB 1 . port=65536", 14),
        ("a 1 SVCB 1 . port=+1", 14),
        ("a 1 SVCB 1 . key65535=x", 14),
        ("a 1 SVCB 1 . key01=x", 14),
        ("a 1 SVCB 1 . key3=x", 14),
        ("a 1 SVCB 1 . nokey=x", 14),
        ("a 1 SVCB 1 . mandatory=mandatory", 14),
        ("a 1 SVCB 1 . mandatory=port", 14),
        ("a 1 SVCB 1 . mandatory=port,port port=1", 14),
        ("a 1 SVCB 1 . no-default-alpn", 14),
        ("a 1 SVCB 1 . ipv4hint=192.0.2", 14),
        ("a 1 SVCB 1 . ech=A", 14),
        ("a 1 SVCB 1 . ohttp=x", 14),
        ("a 1 SVCB 1", 11),
        ("a 1 SVCB x .", 10),
        ("a 1 LOC 91 N 0 E 0", 9),
        ("a 1 LOC 90 1 N 0 E 0", 12),
        ("a 1 LOC 1 60 N 0 E 0", 11),
        ("a 1 LOC 1 2 60 N 0 E 0", 13),
        ("a 1 LOC 1 2 3.0001 N 0 E 0", 13),
        ("a 1 LOC 1 E 0 E 0", 11),
        ("a 1 LOC 1 N 0 E", 16),
        ("a 1 LOC 1 N 0 E -100001m", 17),
        ("a 1 LOC 1 N 0 E 0 1 1 1 1", 25),
        ("a 1 LOC 1 N 0 E 0 99999999m 1e3m", 29),
        ("a 1 TXT x=\"y\"", 9),
        ("a=\"b\" 1 TXT x", 1),
    ] {
        let error = read(&format!("{SOA}{data}")).expect_err(data);
        assert!(
            error.starts_with(&format!("line 2, column {place}: ")),
            "{data}: {error}"
        );
    }
}
