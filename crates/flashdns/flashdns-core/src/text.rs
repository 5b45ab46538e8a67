//! Presentation format of record types and data (RFC 1035 section 5, RFC 3597).
//!
//! Data comes in through an API from whoever may edit a zone, so this parser is small, has no directives,
//! comments or brackets, and is fuzzed against an independent one. (The `domain` crate's zone-file parser
//! indexes out of bounds on `TXT ( a`, which in a process that aborts on panic is a remote kill; it serves
//! the tests as a second opinion instead.) Types without a form of their own here are written in RFC 3597's
//! `\# LENGTH HEX`, which every type also accepts.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{
    limits::MAX_RDATA_TEXT,
    name::DnsName,
    rr::{RrSet, Rtype},
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
    (28, "AAAA"),
    (29, "LOC"),
    (33, "SRV"),
    (35, "NAPTR"),
    (39, "DNAME"),
    (43, "DS"),
    (44, "SSHFP"),
    (52, "TLSA"),
    (59, "CDS"),
    (60, "CDNSKEY"),
    (61, "OPENPGPKEY"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (255, "ANY"),
    (257, "CAA"),
];

const CAA: Rtype = Rtype(257);

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
    let wire = match tokens.as_slice() {
        [Token { raw: "\\#", .. }, length, hex @ ..] => generic(length, hex),
        tokens => typed(rtype, tokens),
    };
    let wire = wire.map_err(bad)?;
    // Also proves that the data has its type's form when it came as hexadecimal digits.
    RrSet::new(rtype, 0, vec![wire.clone().into()]).map_err(|error| bad(error.to_string()))?;
    Ok(wire.into())
}

/// One word or quoted string.
struct Token<'t> {
    /// As written, without the quotes.
    raw: &'t str,
    /// With its escapes replaced.
    bytes: Vec<u8>,
}

fn tokens(data: &str) -> Result<Vec<Token<'_>>, &'static str> {
    let mut tokens = Vec::new();
    let mut rest = data.trim_start_matches([' ', '\t']);
    while !rest.is_empty() {
        let (body, quoted) = match rest.strip_prefix('"') {
            Some(body) => (body, true),
            None => (rest, false),
        };
        let (bytes, used) = token(body, quoted)?;
        let (raw, behind) = body
            .split_at_checked(used)
            .ok_or("it is cut inside a character")?;
        tokens.push(Token { raw, bytes });
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

/// One token's bytes and the length of what it was written as.
fn token(body: &str, quoted: bool) -> Result<(Vec<u8>, usize), &'static str> {
    let text = body.as_bytes();
    let (mut bytes, mut at) = (Vec::new(), 0);
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' if quoted => return Ok((bytes, at)),
            b' ' | b'\t' if !quoted => return Ok((bytes, at)),
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
        Ok((bytes, at))
    }
}

fn escape(text: &[u8]) -> Option<(u8, usize)> {
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

fn generic(length: &Token<'_>, hex: &[Token<'_>]) -> Result<Vec<u8>, String> {
    let digits: String = hex.iter().map(|token| token.raw).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let whole = digits.bytes().all(|digit| digit.is_ascii_hexdigit()) && digits.len().is_multiple_of(2);
    let wire: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(pair).collect();
    match (wire, length.raw.parse::<usize>()) {
        (Some(wire), Ok(length)) if whole && wire.len() == length => Ok(wire),
        _ => Err("write `\\#`, the number of bytes, and two hexadecimal digits for each".to_owned()),
    }
}

fn typed(rtype: Rtype, tokens: &[Token<'_>]) -> Result<Vec<u8>, String> {
    let name = |token: &Token<'_>| -> Result<Vec<u8>, String> {
        let name: DnsName = token.raw.parse().map_err(|error| format!("{error}"))?;
        Ok(name.wire().to_vec())
    };
    let number = |token: &Token<'_>| -> Result<[u8; 2], String> {
        let value: Result<u16, _> = token.raw.parse();
        value
            .map(u16::to_be_bytes)
            .map_err(|_| format!("`{}` is not a number up to 65535", token.raw))
    };
    match (rtype, tokens) {
        (Rtype::A, [address]) => address
            .raw
            .parse::<Ipv4Addr>()
            .map(|address| address.octets().to_vec())
            .map_err(|_| "write an IPv4 address such as 192.0.2.1".to_owned()),
        (Rtype::AAAA, [address]) => address
            .raw
            .parse::<Ipv6Addr>()
            .map(|address| address.octets().to_vec())
            .map_err(|_| "write an IPv6 address such as 2001:db8::1".to_owned()),
        (Rtype::NS | Rtype::CNAME | Rtype::PTR, [target]) => name(target),
        (Rtype::MX, [preference, target]) => Ok([number(preference)?.to_vec(), name(target)?].concat()),
        (Rtype::SRV, [priority, weight, port, target]) => {
            let numbers = [number(priority)?, number(weight)?, number(port)?].concat();
            Ok([numbers, name(target)?].concat())
        }
        (Rtype::TXT, strings @ [_, ..]) => {
            let mut wire = Vec::new();
            for string in strings {
                wire.push(u8::try_from(string.bytes.len()).map_err(|_| "a string has at most 255 bytes")?);
                wire.extend(&string.bytes);
            }
            Ok(wire)
        }
        (CAA, [flags, tag, value]) => caa(flags, tag, value),
        (rtype, _) => Err(form(rtype).to_owned()),
    }
}

/// RFC 8659, 4.1: flags, tag with its length, value to the end.
fn caa(flags: &Token<'_>, tag: &Token<'_>, value: &Token<'_>) -> Result<Vec<u8>, String> {
    let flags: u8 = flags.raw.parse().map_err(|_| form(CAA).to_owned())?;
    let is_tag = !tag.raw.is_empty() && tag.raw.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let length = u8::try_from(tag.raw.len())
        .ok()
        .filter(|_| is_tag)
        .ok_or_else(|| form(CAA).to_owned())?;
    Ok([&[flags, length], tag.raw.as_bytes(), &value.bytes].concat())
}

/// What a type's data looks like, for whoever got it wrong.
fn form(rtype: Rtype) -> &'static str {
    match rtype {
        Rtype::A => "write one IPv4 address",
        Rtype::AAAA => "write one IPv6 address",
        Rtype::NS | Rtype::CNAME | Rtype::PTR => "write one domain name",
        Rtype::MX => "write a preference and a domain name, such as `10 mail.example.`",
        Rtype::SRV => "write priority, weight, port and domain name, such as `0 5 443 web.example.`",
        Rtype::TXT => "write one or more strings in double quotes",
        CAA => "write flags, tag and value, such as `0 issue \"ca.example\"`",
        _ => "write this type as `\\#`, the number of bytes, and two hexadecimal digits for each",
    }
}

/// The presentation format of one record's data; `\# LENGTH HEX` where its type has no form here.
#[must_use]
pub fn show_rdata(rtype: Rtype, rdata: &[u8]) -> String {
    show_typed(rtype, rdata).unwrap_or_else(|| {
        let hex: String = rdata.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("\\# {} {hex}", rdata.len()).trim_end().to_owned()
    })
}

fn show_typed(rtype: Rtype, rdata: &[u8]) -> Option<String> {
    let name = |wire: &[u8]| DnsName::from_wire(wire).ok().map(|name| name.to_string());
    let (head, tail) = match rtype {
        Rtype::MX => rdata.split_at_checked(2)?,
        Rtype::SRV => rdata.split_at_checked(6)?,
        _ => (&rdata[..0], rdata),
    };
    let mut shown: String = head
        .chunks_exact(2)
        .map(|pair| format!("{} ", u16::from_be_bytes([pair[0], pair[1]])))
        .collect();
    shown += &match rtype {
        Rtype::A => Ipv4Addr::from(<[u8; 4]>::try_from(tail).ok()?).to_string(),
        Rtype::AAAA => Ipv6Addr::from(<[u8; 16]>::try_from(tail).ok()?).to_string(),
        Rtype::NS | Rtype::CNAME | Rtype::PTR | Rtype::MX | Rtype::SRV => name(tail)?,
        Rtype::SOA => show_soa(tail)?,
        Rtype::TXT => show_strings(tail)?,
        CAA => show_caa(tail)?,
        _ => return None,
    };
    Some(shown)
}

fn show_soa(rdata: &[u8]) -> Option<String> {
    let (primary, rest) = rdata.split_at_checked(crate::name::wire_len(rdata)?)?;
    let (mailbox, numbers) = rest.split_at_checked(crate::name::wire_len(rest)?)?;
    let [primary, mailbox] = [primary, mailbox].map(DnsName::from_wire);
    let mut shown = format!("{} {}", primary.ok()?, mailbox.ok()?);
    for number in numbers.as_chunks().0 {
        shown += &format!(" {}", u32::from_be_bytes(*number));
    }
    (numbers.len() == 20).then_some(shown)
}

fn show_strings(mut rdata: &[u8]) -> Option<String> {
    let mut shown = Vec::new();
    while let Some((&length, rest)) = rdata.split_first() {
        let (string, behind) = rest.split_at_checked(length.into())?;
        shown.push(quoted(string));
        rdata = behind;
    }
    (!shown.is_empty()).then(|| shown.join(" "))
}

fn show_caa(rdata: &[u8]) -> Option<String> {
    let (&[flags, length], rest) = rdata.split_first_chunk()?;
    let (tag, value) = rest.split_at_checked(length.into())?;
    let is_tag = !tag.is_empty() && tag.iter().all(u8::is_ascii_alphanumeric);
    let tag = is_tag.then(|| String::from_utf8_lossy(tag))?;
    Some(format!("{flags} {tag} {}", quoted(value)))
}

fn quoted(bytes: &[u8]) -> String {
    let mut shown = String::from('"');
    for &byte in bytes {
        match byte {
            b'"' | b'\\' => shown.extend(['\\', char::from(byte)]),
            32..=126 => shown.push(char::from(byte)),
            other => shown += &format!("\\{other:03}"),
        }
    }
    shown.push('"');
    shown
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
            ("SSHFP", "\\# 3 0102ff", "\\# 3 0102ff"),
            ("TYPE65280", "\\# 4 01 02 FF00", "\\# 4 0102ff00"),
            ("TYPE65280", "\\# 0", "\\# 0"),
            ("A", "\\# 4 c0000201", "192.0.2.1"),
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
            ("DNAME", "a."),
            ("CNAME", "a..b"),
            ("CAA", "256 issue a"),
            ("CAA", "0 is-sue a"),
            ("ANY", "a"),
            ("SOA", "a. b. 1 2 3 4 5"),
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
