//! Presentation format of record types and data (RFC 1035 section 5, RFC 3597).
//!
//! Data comes in through an API from whoever may edit a zone, so this parser is small, has no directives,
//! comments or brackets, and is fuzzed against an independent one. (The `domain` crate's zone-file parser
//! indexes out of bounds on `TXT ( a`, which in a process that aborts on panic is a remote kill; it serves
//! the tests as a second opinion instead.) What the data of each type looks like stands in `form`; a type
//! without a form is written in RFC 3597's `\# LENGTH HEX`, which every type also accepts.

use crate::{
    form::{self, Names, Token},
    limits::MAX_RDATA_TEXT,
    rr::Rtype,
};

/// Types with a mnemonic, by number.
const MNEMONICS: &[(u16, &str)] = &[
    (1, "A"),
    (2, "NS"),
    (5, "CNAME"),
    (6, "SOA"),
    (12, "PTR"),
    (13, "HINFO"),
    (15, "MX"),
    (16, "TXT"),
    (17, "RP"),
    (18, "AFSDB"),
    (28, "AAAA"),
    (29, "LOC"),
    (33, "SRV"),
    (35, "NAPTR"),
    (36, "KX"),
    (39, "DNAME"),
    (43, "DS"),
    (44, "SSHFP"),
    (46, "RRSIG"),
    (47, "NSEC"),
    (48, "DNSKEY"),
    (50, "NSEC3"),
    (51, "NSEC3PARAM"),
    (52, "TLSA"),
    (53, "SMIMEA"),
    (59, "CDS"),
    (60, "CDNSKEY"),
    (61, "OPENPGPKEY"),
    (62, "CSYNC"),
    (63, "ZONEMD"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (99, "SPF"),
    (255, "ANY"),
    (256, "URI"),
    (257, "CAA"),
];

/// Why a text is not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Neither a known type nor `TYPEnnn`.
    #[error("`{0}` is not a record type; write one such as `A` or `TXT`, or `TYPE` and its number")]
    Type(String),
    /// Longer than [`MAX_RDATA_TEXT`] bytes.
    #[error("the data is longer than {MAX_RDATA_TEXT} bytes")]
    Long,
    /// Not this type's data.
    #[error("`{data}` is not the data of a record of type `{rtype}`: {reason}")]
    Data {
        /// The type.
        rtype: String,
        /// The data as it was given, shortened.
        data: String,
        /// What is wrong, and what the type's data looks like.
        reason: String,
    },
}

/// Reads a type such as `A`, `aaaa` or `TYPE65280`.
///
/// # Errors
/// [`TextError::Type`].
pub fn parse_type(text: &str) -> Result<Rtype, TextError> {
    let upper = text.to_ascii_uppercase();
    let known = MNEMONICS
        .iter()
        .find(|(_, name)| *name == upper)
        .map(|&(number, _)| number);
    let number = || upper.strip_prefix("TYPE")?.parse().ok();
    known
        .or_else(number)
        .map(Rtype)
        .ok_or_else(|| TextError::Type(text.chars().take(32).collect()))
}

/// The type's mnemonic, or `TYPE` and its number.
#[must_use]
pub fn show_type(rtype: Rtype) -> String {
    let known = MNEMONICS.iter().find(|(number, _)| *number == rtype.0);
    known.map_or_else(|| format!("TYPE{}", rtype.0), |(_, name)| (*name).to_owned())
}

/// Reads one record's data into wire form. Names in it are absolute with or without their last dot.
///
/// # Errors
/// [`TextError`].
pub fn parse_rdata(rtype: Rtype, data: &str) -> Result<Box<[u8]>, TextError> {
    if data.len() > MAX_RDATA_TEXT {
        return Err(TextError::Long);
    }
    let bad = |reason: String| TextError::Data {
        rtype: show_type(rtype),
        data: data.chars().take(80).collect(),
        reason,
    };
    let tokens = tokens(data).map_err(|reason| bad(reason.to_owned()))?;
    let wire = form::parse(rtype, &tokens, Names::Absolute).map_err(|wrong| bad(wrong.reason))?;
    Ok(wire.into())
}

fn tokens(data: &str) -> Result<Vec<Token<'_>>, &'static str> {
    let mut tokens = Vec::new();
    let mut rest = data.trim_start_matches([' ', '\t']);
    while !rest.is_empty() {
        let (body, quoted) = match rest.strip_prefix('"') {
            Some(body) => (body, true),
            None => (rest, false),
        };
        let (bytes, used, is_pair) = token(body, quoted)?;
        let (raw, behind) = body
            .split_at_checked(used)
            .ok_or("it is cut inside a character")?;
        tokens.push(Token {
            raw,
            bytes,
            at: 0,
            is_pair,
        });
        rest = if quoted {
            behind.strip_prefix('"').ok_or("a quote is not closed")?
        } else {
            behind
        };
        if !rest.is_empty() && !rest.starts_with([' ', '\t']) {
            return Err("there is no space behind a closing quote");
        }
        rest = rest.trim_start_matches([' ', '\t']);
    }
    Ok(tokens)
}

/// One token's bytes, the length of what it was written as, and whether it is a pair (see [`Token`]).
fn token(body: &str, quoted: bool) -> Result<(Vec<u8>, usize, bool), &'static str> {
    let text = body.as_bytes();
    let (mut bytes, mut at) = (Vec::new(), 0);
    let before = |at: usize| at.checked_sub(1).and_then(|before| text.get(before)).copied();
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' if quoted => return Ok((bytes, at, false)),
            b' ' | b'\t' if !quoted => return Ok((bytes, at, false)),
            b'"' if before(at) == Some(b'=') => {
                let (value, used, _) = token(body.get(at + 1..).unwrap_or(""), true)?;
                bytes.extend(value);
                return Ok((bytes, at + used + 2, true));
            }
            0..=31 | 127 if byte != b'\t' => return Err("it must be one line without control characters"),
            b'(' | b')' | b';' | b'"' if !quoted => {
                return Err("`(`, `)`, `;` and `\"` stand in quotes or behind `\\`");
            }
            b'\\' => {
                let (value, used) = escape(text.get(at + 1..).unwrap_or(&[]))
                    .ok_or("`\\` must be followed by a character or three digits up to 255")?;
                bytes.push(value);
                at += 1 + used;
            }
            other => {
                bytes.push(other);
                at += 1;
            }
        }
    }
    if quoted {
        Err("a quote is not closed")
    } else {
        Ok((bytes, at, false))
    }
}

/// What stands behind a backslash: the byte it means, and how long it is written.
pub(crate) fn escape(text: &[u8]) -> Option<(u8, usize)> {
    match text {
        [a, b, c, ..] if [a, b, c].iter().all(|digit| digit.is_ascii_digit()) => {
            let digit = |byte: &u8| u16::from(byte - b'0');
            let value = u8::try_from(digit(a) * 100 + digit(b) * 10 + digit(c)).ok()?;
            Some((value, 3))
        }
        [first, ..] if first.is_ascii_graphic() && !first.is_ascii_digit() => Some((*first, 1)),
        _ => None,
    }
}

/// The presentation format of one record's data; `\# LENGTH HEX` where its type has no form here.
#[must_use]
pub fn show_rdata(rtype: Rtype, rdata: &[u8]) -> String {
    form::show(rtype, rdata).unwrap_or_else(|| {
        let hex: String = rdata.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("\\# {} {hex}", rdata.len()).trim_end().to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(rtype: &str, data: &str) -> String {
        let rtype = parse_type(rtype).unwrap();
        let wire = parse_rdata(rtype, data).unwrap();
        let shown = show_rdata(rtype, &wire);
        assert_eq!(
            parse_rdata(rtype, &shown).unwrap(),
            wire,
            "`{shown}` reads back as another value"
        );
        shown
    }

    #[test]
    fn data_round_trips() {
        for (rtype, data, shown) in [
            ("A", "192.0.2.1", "192.0.2.1"),
            ("aaaa", "2001:DB8::1", "2001:db8::1"),
            ("CNAME", "Web.example", "web.example."),
            ("MX", "10  mail.example.", "10 mail.example."),
            ("SRV", "1 2 443 web.example.", "1 2 443 web.example."),
            ("TXT", "\"a b\" c \\\"\\009", "\"a b\" \"c\" \"\\\"\\009\""),
            ("TXT", "\"\"", "\"\""),
            ("TXT", "é", "\"\\195\\169\""),
            (
                "CAA",
                "0 issue \"ca.example; x=1\"",
                "0 issue \"ca.example; x=1\"",
            ),
            ("LOC", "\\# 3 0102ff", "\\# 3 0102ff"),
            ("SSHFP", "\\# 3 0102ff", "1 2 ff"),
            ("TYPE65280", "\\# 4 01 02 FF00", "\\# 4 0102ff00"),
            ("TYPE65280", "\\# 0", "\\# 0"),
            ("A", "\\# 4 c0000201", "192.0.2.1"),
            ("DNAME", "b.example", "b.example."),
            ("SOA", "a. b. 1 1h 3 4 1d", "a. b. 1 3600 3 4 86400"),
            ("DS", "60485 5 1 2BB1 83AF", "60485 5 1 2bb183af"),
            ("SSHFP", "2 1 123456789abcdef6", "2 1 123456789abcdef6"),
            ("TLSA", "0 0 1 d2abde240d7c", "0 0 1 d2abde240d7c"),
            ("DNSKEY", "256 3 5 AQPS KmyN", "256 3 5 AQPSKmyN"),
            ("CDNSKEY", "0 3 0 AA==", "0 3 0 AA=="),
            ("OPENPGPKEY", "AAEC", "AAEC"),
            ("HINFO", "\"a b\" c", "\"a b\" \"c\""),
            (
                "NAPTR",
                "100 50 \"s\" \"z3950\" \"\" _z._tcp.g.",
                "100 50 \"s\" \"z3950\" \"\" _z._tcp.g.",
            ),
            ("RP", "l.example. .", "l.example. ."),
            ("URI", "10 1 \"ftp://f.example/\"", "10 1 \"ftp://f.example/\""),
        ] {
            assert_eq!(round_trip(rtype, data), shown);
        }
    }

    #[test]
    fn refuses_what_is_not_data() {
        assert_eq!(parse_rdata(Rtype::TXT, &"a".repeat(20_000)), Err(TextError::Long));
        for (rtype, data) in [
            ("A", ""),
            ("A", "192.0.2.1 192.0.2.2"),
            ("A", "192.0.2"),
            ("A", "192.0.2.1\n$INCLUDE /etc/shadow"),
            ("A", "\\# 3 c00002"),
            ("A", "\\# 4 c000020"),
            ("A", "\\# 4 +1000201"),
            ("A", "\\#"),
            ("TXT", "\"open"),
            ("TXT", "( a"),
            ("TXT", "a ; comment"),
            ("TXT", "a\\"),
            ("TXT", "a\\999"),
            ("TXT", "\"a\"b"),
            ("TXT", "a\u{0}"),
            ("MX", "70000 mail."),
            ("MX", "mail."),
            ("DNAME", "a. b."),
            ("CNAME", "a..b"),
            ("CAA", "256 issue a"),
            ("CAA", "0 is-sue a"),
            ("ANY", "a"),
            ("SOA", "a. b. 1 2 3 4"),
            ("DS", "1 8 2 0g"),
            ("DNSKEY", "257 3 13 A==="),
            ("TYPE65280", "abc"),
        ] {
            let error = parse_rdata(parse_type(rtype).unwrap(), data).unwrap_err();
            assert!(matches!(error, TextError::Data { .. }), "{rtype} {data}");
        }
        for text in ["NOPE", "", "TYPE", "TYPE65536", "TYPE-1"] {
            assert!(matches!(parse_type(text), Err(TextError::Type(_))), "{text}");
        }
    }
}
