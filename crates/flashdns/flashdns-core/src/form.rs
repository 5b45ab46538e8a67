//! What the data of each type looks like: one table for reading and for writing it.
//!
//! A type that is not in the table is written in RFC 3597's form only. In it is not what signing makes (RRSIG,
//! NSEC, NSEC3). LOC, and the parameters of SVCB and HTTPS, have files of their own.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{
    loc,
    name::{self, DnsName},
    rr::{RrSet, Rtype},
    svcb,
};

/// One word or quoted string.
#[derive(Clone, Debug)]
pub(crate) struct Token<'t> {
    /// As written, without the quotes.
    pub(crate) raw: &'t str,
    /// With its escapes replaced.
    pub(crate) bytes: Vec<u8>,
    /// Where it starts in the whole text.
    pub(crate) at: usize,
    /// A word with quotes behind its `=`, as only SVCB has them: `alpn="h2,h3"`.
    pub(crate) is_pair: bool,
}

/// How names in data are read.
#[derive(Clone, Copy)]
pub(crate) enum Names<'o> {
    /// They are whole, with or without a last dot, and become lower case.
    Absolute,
    /// Without a last dot they lie below this one; letters stay as they are.
    Below(&'o DnsName),
}

/// What is wrong with a text.
#[derive(Debug)]
pub(crate) struct Wrong {
    /// Which token; none: what is missing stands behind the last.
    pub(crate) token: Option<usize>,
    pub(crate) reason: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    U8,
    U16,
    U32,
    /// Seconds, also as `1h30m`.
    Period,
    V4,
    V6,
    /// A string of at most 255 bytes.
    Text,
    /// Letters and digits, at least one, with a length in front (RFC 8659, 4.1).
    Tag,
    /// One or more strings.
    Texts,
    /// One string without a length.
    Rest,
    /// Hexadecimal digits to the end, spaces allowed.
    Hex,
    /// Base64 to the end, spaces allowed.
    Base64,
    /// Parameters of SVCB to the end, perhaps none.
    Params,
}

use Field::{Base64, Hex, Name, Params, Period, Rest, Tag, Text, Texts, U8, U16, U32, V4, V6};

/// Fields of a type's data, and what to tell whoever got it wrong.
fn form(rtype: Rtype) -> Option<(&'static [Field], &'static str)> {
    const KEY: &[Field] = &[U16, U8, U8, Base64];
    const DIGEST: &[Field] = &[U16, U8, U8, Hex];
    Some(match rtype.0 {
        1 => (&[V4], "write one IPv4 address such as 192.0.2.1"),
        28 => (&[V6], "write one IPv6 address such as 2001:db8::1"),
        2 | 5 | 12 | 39 => (&[Name], "write one domain name"),
        6 => (
            &[Name, Name, U32, Period, Period, Period, Period],
            "write primary server, mailbox, serial, refresh, retry, expire and minimum",
        ),
        13 => (&[Text, Text], "write processor and system, each in double quotes"),
        15 | 18 | 36 => (
            &[U16, Name],
            "write a preference and a domain name, such as `10 mail.example.`",
        ),
        16 | 99 => (&[Texts], "write one or more strings in double quotes"),
        17 => (&[Name, Name], "write mailbox and the name of a text"),
        33 => (
            &[U16, U16, U16, Name],
            "write priority, weight, port and domain name, such as `0 5 443 web.example.`",
        ),
        35 => (
            &[U16, U16, Text, Text, Text, Name],
            "write order, preference, flags, service, expression and replacement",
        ),
        43 | 59 => (DIGEST, "write key tag, algorithm, digest type and digest"),
        44 => (&[U8, U8, Hex], "write algorithm, type and fingerprint"),
        48 | 60 => (KEY, "write flags, protocol, algorithm and key"),
        52 | 53 => (
            &[U8, U8, U8, Hex],
            "write usage, selector, matching type and data",
        ),
        61 => (&[Base64], "write the key in base64"),
        64 | 65 => (
            &[U16, Name, Params],
            "write priority, target and parameters, such as `1 . alpn=h2,h3`",
        ),
        256 => (
            &[U16, U16, Rest],
            "write priority, weight and a target in double quotes",
        ),
        257 => (
            &[U8, Tag, Rest],
            "write flags, tag and value, such as `0 issue \"ca.example\"`",
        ),
        _ => return None,
    })
}

const LOC: Rtype = Rtype(29);
const GENERIC: &str = "write `\\#`, the number of bytes, and two hexadecimal digits for each";

/// Reads a record's data into wire form.
pub(crate) fn parse(rtype: Rtype, tokens: &[Token<'_>], names: Names<'_>) -> Result<Vec<u8>, Wrong> {
    let whole = |reason: String| Wrong {
        token: Some(0),
        reason,
    };
    let wire = match (tokens, form(rtype)) {
        ([Token { raw: "\\#", .. }, length, hex @ ..], _) => {
            generic(length, hex).ok_or_else(|| whole(GENERIC.to_owned()))?
        }
        (tokens, _) if rtype == LOC => loc::parse(tokens).map_err(|at| Wrong {
            token: (at < tokens.len()).then_some(at),
            reason: match tokens.get(at) {
                Some(token) => format!("`{:.40}` does not fit here: {}", token.raw, loc::HINT),
                None => loc::HINT.to_owned(),
            },
        })?,
        (tokens, Some((fields, hint))) => typed(fields, hint, tokens, names)?,
        (_, None) => return Err(whole(GENERIC.to_owned())),
    };
    // Also proves that the data has its type's form when it came as hexadecimal digits.
    RrSet::new(rtype, 0, vec![wire.clone().into()]).map_err(|error| whole(error.to_string()))?;
    Ok(wire)
}

fn generic(length: &Token<'_>, hex: &[Token<'_>]) -> Option<Vec<u8>> {
    let wire = digits(hex)?;
    (length.raw.parse() == Ok(wire.len())).then_some(wire)
}

fn digits(tokens: &[Token<'_>]) -> Option<Vec<u8>> {
    let digits: Vec<u8> = tokens.iter().flat_map(|token| token.raw.bytes()).collect();
    let value = |digit: u8| {
        char::from(digit)
            .to_digit(16)
            .and_then(|value| u8::try_from(value).ok())
    };
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(value(*high)? << 4 | value(*low)?),
        _ => None,
    };
    digits.chunks(2).map(pair).collect()
}

fn typed(fields: &[Field], hint: &str, mut tokens: &[Token<'_>], names: Names<'_>) -> Result<Vec<u8>, Wrong> {
    let (mut wire, count) = (Vec::new(), tokens.len());
    for field in fields {
        let token = Some(count - tokens.len());
        if *field == Params {
            let params = svcb::parse(std::mem::take(&mut tokens)).map_err(|(at, reason)| Wrong {
                token: token.map(|token| token + at),
                reason,
            })?;
            wire.extend(params);
            break;
        }
        let Some((first, behind)) = tokens.split_first() else {
            return Err(Wrong {
                token: None,
                reason: hint.to_owned(),
            });
        };
        let used: &[Token<'_>] = match field {
            Texts | Hex | Base64 => std::mem::take(&mut tokens),
            _ => {
                tokens = behind;
                std::slice::from_ref(first)
            }
        };
        put(*field, first, used, names, &mut wire).map_err(|reason| Wrong {
            token,
            reason: reason.unwrap_or_else(|| format!("`{:.40}` does not fit here: {hint}", first.raw)),
        })?;
    }
    if tokens.is_empty() {
        return Ok(wire);
    }
    Err(Wrong {
        token: Some(count - tokens.len()),
        reason: format!("there is more than the type has: {hint}"),
    })
}

/// Writes one field. The error is a reason of its own, where there is one.
fn put(
    field: Field,
    first: &Token<'_>,
    used: &[Token<'_>],
    names: Names<'_>,
    wire: &mut Vec<u8>,
) -> Result<(), Option<String>> {
    fn number<T: std::str::FromStr>(token: &Token<'_>) -> Result<T, Option<String>> {
        // `+1` is a number to Rust only.
        let is_plain = token.raw.bytes().all(|digit| digit.is_ascii_digit());
        token.raw.parse().ok().filter(|_| is_plain).ok_or(None)
    }
    if used.iter().any(|token| token.is_pair) {
        return Err(Some("there is no space before an opening quote".to_owned()));
    }
    match field {
        Name => {
            let name = match names {
                Names::Absolute => first.raw.parse().map(|name: DnsName| name.wire().to_vec()),
                Names::Below(origin) if first.raw == "@" => Ok(origin.wire().to_vec()),
                Names::Below(origin) => name::read(first.raw, origin.wire()),
            };
            wire.extend(name.map_err(|error| Some(error.to_string()))?);
        }
        U8 => wire.push(number(first)?),
        U16 => wire.extend(number::<u16>(first)?.to_be_bytes()),
        U32 => wire.extend(number::<u32>(first)?.to_be_bytes()),
        Period => wire.extend(period(first.raw).ok_or(None)?.to_be_bytes()),
        V4 => wire.extend(first.raw.parse::<Ipv4Addr>().map_err(|_| None)?.octets()),
        V6 => wire.extend(first.raw.parse::<Ipv6Addr>().map_err(|_| None)?.octets()),
        Tag if first.raw.is_empty() || !first.raw.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            return Err(None);
        }
        Text | Tag | Texts => {
            for token in used {
                let long = || Some("a string has at most 255 bytes".to_owned());
                wire.push(u8::try_from(token.bytes.len()).map_err(|_| long())?);
                wire.extend(&token.bytes);
            }
        }
        Rest => wire.extend(&first.bytes),
        Hex => wire.extend(digits(used).ok_or(None)?),
        // Read in `typed`, as a whole.
        Params => {}
        Base64 => {
            let text: Vec<u8> = used.iter().flat_map(|token| token.raw.bytes()).collect();
            wire.extend(unbase64(&text).ok_or(None)?);
        }
    }
    Ok(())
}

/// Seconds: a number, or numbers with the units `w d h m s`, as in `1h30m`.
pub(crate) fn period(text: &str) -> Option<u32> {
    let (mut total, mut number) = (0_u32, None);
    for byte in text.bytes() {
        let unit = match byte.to_ascii_lowercase() {
            digit @ b'0'..=b'9' => {
                let before: u32 = number.unwrap_or(0);
                number = Some(before.checked_mul(10)?.checked_add(u32::from(digit - b'0'))?);
                continue;
            }
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            b'w' => 604_800,
            _ => return None,
        };
        total = total.checked_add(number.take()?.checked_mul(unit)?)?;
    }
    match number {
        Some(seconds) => total.checked_add(seconds),
        None => (!text.is_empty()).then_some(total),
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(crate) fn unbase64(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let groups = text.chunks(4).len();
    for (at, group) in text.chunks(4).enumerate() {
        let padding = group.iter().rev().take_while(|byte| **byte == b'=').count();
        if group.len() != 4 || padding > 2 || (padding > 0 && at + 1 < groups) {
            return None;
        }
        let mut value = 0_u32;
        for byte in group.iter().take(4 - padding) {
            let digit = ALPHABET.iter().position(|letter| letter == byte)?;
            value = value << 6 | u32::try_from(digit).ok()?;
        }
        let [_, whole @ ..] = (value << (6 * padding)).to_be_bytes();
        bytes.extend(whole.iter().take(3 - padding));
    }
    Some(bytes)
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let mut value = 0_u32;
        for at in 0..3 {
            value = value << 8 | u32::from(group.get(at).copied().unwrap_or(0));
        }
        for at in 0..4 {
            let digit = usize::try_from(value >> (18 - 6 * at) & 63).unwrap_or(0);
            let letter = ALPHABET.get(digit).copied().unwrap_or(b'=');
            text.push(if at <= group.len() { letter.into() } else { '=' });
        }
    }
    text
}

/// The presentation format of data; `None` where its type has no form, or the data is not of that form.
pub(crate) fn show(rtype: Rtype, rdata: &[u8]) -> Option<String> {
    if rtype == LOC {
        return loc::show(rdata);
    }
    let (fields, _) = form(rtype)?;
    let (mut shown, mut rest) = (Vec::new(), rdata);
    for field in fields {
        let used = match field {
            Name => name::wire_len(rest)?,
            U8 => 1,
            U16 => 2,
            U32 | Period | V4 => 4,
            V6 => 16,
            Text | Tag => 1 + usize::from(*rest.first()?),
            Texts | Rest | Hex | Base64 | Params => rest.len(),
        };
        let (mine, behind) = rest.split_at_checked(used)?;
        rest = behind;
        if *field == Params {
            shown.extend(svcb::show(mine)?);
            continue;
        }
        shown.push(show_field(*field, mine)?);
    }
    rest.is_empty().then(|| shown.join(" "))
}

fn show_field(field: Field, bytes: &[u8]) -> Option<String> {
    Some(match field {
        Name => name::show(bytes),
        U8 => bytes.first()?.to_string(),
        U16 => u16::from_be_bytes(bytes.try_into().ok()?).to_string(),
        U32 | Period => u32::from_be_bytes(bytes.try_into().ok()?).to_string(),
        V4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string(),
        V6 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string(),
        Tag => {
            let tag = bytes.get(1..)?;
            let is_tag = !tag.is_empty() && tag.iter().all(u8::is_ascii_alphanumeric);
            is_tag.then(|| String::from_utf8_lossy(tag).into_owned())?
        }
        Text => quoted(bytes.get(1..)?),
        Texts => show_strings(bytes)?,
        Rest => quoted(bytes),
        // Nothing cannot be written as a word.
        Hex | Base64 if bytes.is_empty() => return None,
        Params => return None,
        Hex => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        Base64 => base64(bytes),
    })
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

pub(crate) fn quoted(bytes: &[u8]) -> String {
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

    #[test]
    fn base64_of_all_lengths() {
        let bytes: Vec<u8> = (0..=255).collect();
        for length in 0..bytes.len() {
            let text = base64(&bytes[..length]);
            assert_eq!(unbase64(text.as_bytes()).unwrap(), bytes[..length]);
        }
        assert_eq!(base64(b"\xfb\xff"), "+/8=");
        for text in ["A", "AA", "A===", "AA==AAAA", "A=AA", "AA A", "===="] {
            assert_eq!(unbase64(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn periods() {
        for (text, seconds) in [
            ("0", Some(0)),
            ("3600", Some(3600)),
            ("1h30m", Some(5400)),
            ("1W2d", Some(777_600)),
            ("", None),
            ("h", None),
            ("1x", None),
            ("-1", None),
            ("4294967295", Some(u32::MAX)),
            ("4294967296", None),
            ("9999999999w", None),
        ] {
            assert_eq!(period(text), seconds, "{text}");
        }
    }
}
