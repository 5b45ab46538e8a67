//! The parameters of SVCB and HTTPS records (RFC 9460): `alpn=h2,h3 port=8443 key667="text"`.
//!
//! A value that holds a list is read twice: once as a string of a zone file, once for the commas (RFC 9460,
//! appendix A.1). On the wire keys ascend and stand once; text may give them in any order.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::form::{Token, base64, quoted, unbase64};

/// Keys with a name, by number (RFC 9460, 14.3.2; RFC 9461; RFC 9540).
const KEYS: [&str; 9] = [
    "mandatory",
    "alpn",
    "no-default-alpn",
    "port",
    "ipv4hint",
    "ech",
    "ipv6hint",
    "dohpath",
    "ohttp",
];
const MANDATORY: u16 = 0;
const ALPN: u16 = 1;
const NO_DEFAULT_ALPN: u16 = 2;
const PORT: u16 = 3;
const V4_HINT: u16 = 4;
const ECH: u16 = 5;
const V6_HINT: u16 = 6;
const OHTTP: u16 = 8;
/// Reserved: never a key (RFC 9460, 14.3.2).
const INVALID_KEY: u16 = u16::MAX;

/// Reads the parameters. The error is the place of the word that does not fit, and why.
pub(crate) fn parse(tokens: &[Token<'_>]) -> Result<Vec<u8>, (usize, String)> {
    let mut params: Vec<(u16, Vec<u8>, usize)> = Vec::with_capacity(tokens.len());
    for (at, token) in tokens.iter().enumerate() {
        let wrong = |reason: &str| (at, format!("`{:.40}`: {reason}", token.raw));
        let split = token.bytes.iter().position(|byte| *byte == b'=');
        let (name, text) = match split {
            Some(split) => (
                token.bytes.get(..split).unwrap_or(&[]),
                token.bytes.get(split + 1..),
            ),
            None => (token.bytes.as_slice(), None),
        };
        let key = std::str::from_utf8(name)
            .ok()
            .and_then(key)
            .ok_or_else(|| wrong("this is no key; write one such as `alpn` or `key667`"))?;
        let value = value(key, text).ok_or_else(|| wrong(hint(key)))?;
        if value.len() > usize::from(u16::MAX) {
            return Err(wrong("a value has at most 65535 bytes"));
        }
        params.push((key, value, at));
    }
    params.sort_by_key(|(key, ..)| *key);
    if let Some([_, (key, _, at)]) = params.array_windows().find(|[a, b]| a.0 == b.0) {
        return Err((*at, format!("`{}` stands here twice", show_key(*key))));
    }
    let has = |wanted| params.iter().any(|(key, ..)| *key == wanted);
    for (key, value, at) in &params {
        let missing = |key: &u16| !has(*key);
        if *key == MANDATORY && keys_of(value).any(|key| missing(&key)) {
            return Err((*at, "a mandatory key is missing (RFC 9460, 8)".to_owned()));
        }
        if *key == NO_DEFAULT_ALPN && !has(ALPN) {
            return Err((
                *at,
                "`no-default-alpn` needs `alpn` beside it (RFC 9460, 7.1.1)".to_owned(),
            ));
        }
    }
    let mut wire = Vec::new();
    for (key, value, _) in params {
        wire.extend(key.to_be_bytes());
        wire.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
        wire.extend(value);
    }
    Ok(wire)
}

fn key(name: &str) -> Option<u16> {
    let named = KEYS.iter().position(|known| *known == name);
    let named = named.and_then(|at| u16::try_from(at).ok());
    let number = || {
        let digits = name.strip_prefix("key")?;
        let is_plain =
            digits.bytes().all(|digit| digit.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
        digits.parse().ok().filter(|key| is_plain && *key != INVALID_KEY)
    };
    named.or_else(number)
}

fn show_key(key: u16) -> String {
    KEYS.get(usize::from(key))
        .map_or_else(|| format!("key{key}"), |name| (*name).to_owned())
}

fn hint(key: u16) -> &'static str {
    match key {
        MANDATORY => "write other keys with commas between them, each once, such as `mandatory=alpn,port`",
        ALPN => "write protocols with commas between them, such as `alpn=h2,h3`",
        NO_DEFAULT_ALPN | OHTTP => "this key has no value",
        PORT => "write a port, such as `port=8443`",
        V4_HINT => "write IPv4 addresses with commas between them",
        ECH => "write the configuration in base64",
        V6_HINT => "write IPv6 addresses with commas between them",
        _ => "write `key=value`",
    }
}

/// The value of a key in wire form.
fn value(key: u16, text: Option<&[u8]>) -> Option<Vec<u8>> {
    if matches!(key, NO_DEFAULT_ALPN | OHTTP) {
        return text.is_none_or(<[u8]>::is_empty).then(Vec::new);
    }
    let named = usize::from(key) < KEYS.len();
    let Some(text) = text else {
        // A key by number may stand alone: its value is empty.
        return (!named).then(Vec::new);
    };
    let plain = || std::str::from_utf8(text).ok();
    let mut wire = Vec::new();
    match key {
        MANDATORY => {
            let keys: Option<Vec<u16>> = plain()?.split(',').map(self::key).collect();
            let mut keys = keys?;
            let count = keys.len();
            keys.sort_unstable();
            keys.dedup();
            if keys.len() != count || keys.first() == Some(&MANDATORY) {
                return None;
            }
            wire.extend(keys.into_iter().flat_map(u16::to_be_bytes));
        }
        ALPN => {
            for item in items(text)? {
                wire.push(u8::try_from(item.len()).ok().filter(|length| *length > 0)?);
                wire.extend(item);
            }
        }
        PORT => {
            let digits = plain()?;
            let is_plain = digits.bytes().all(|digit| digit.is_ascii_digit());
            wire.extend(digits.parse::<u16>().ok().filter(|_| is_plain)?.to_be_bytes());
        }
        V4_HINT => {
            for item in plain()?.split(',') {
                wire.extend(item.parse::<Ipv4Addr>().ok()?.octets());
            }
        }
        V6_HINT => {
            for item in plain()?.split(',') {
                wire.extend(item.parse::<Ipv6Addr>().ok()?.octets());
            }
        }
        ECH => wire = unbase64(text).filter(|bytes| !bytes.is_empty())?,
        _ => wire = text.to_vec(),
    }
    Some(wire)
}

/// The items between commas; `\` keeps the character behind it from counting.
fn items(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut items = vec![Vec::new()];
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b',' => items.push(Vec::new()),
            b'\\' => items.last_mut()?.push(*bytes.next()?),
            other => items.last_mut()?.push(other),
        }
    }
    Some(items)
}

fn keys_of(value: &[u8]) -> impl Iterator<Item = u16> {
    value
        .chunks_exact(2)
        .filter_map(|pair| Some(u16::from_be_bytes(pair.try_into().ok()?)))
}

/// The text of the parameters; `None` when they have no text that reads back as the same.
pub(crate) fn show(mut wire: &[u8]) -> Option<Vec<String>> {
    let mut shown = Vec::new();
    let mut last: Option<u16> = None;
    while !wire.is_empty() {
        let (head, rest) = wire.split_first_chunk::<4>()?;
        let key = u16::from_be_bytes([head[0], head[1]]);
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let (value, behind) = rest.split_at_checked(length)?;
        if last.is_some_and(|last| last >= key) || key == INVALID_KEY {
            return None;
        }
        last = Some(key);
        shown.push(show_param(key, value)?);
        wire = behind;
    }
    Some(shown)
}

fn show_param(key: u16, value: &[u8]) -> Option<String> {
    let name = show_key(key);
    let text = match key {
        NO_DEFAULT_ALPN | OHTTP => return value.is_empty().then_some(name),
        MANDATORY => {
            let keys: Vec<u16> = keys_of(value).collect();
            let ascends = keys.array_windows().all(|[a, b]| a < b);
            let is_whole = !keys.is_empty() && keys.len() * 2 == value.len();
            if !ascends || !is_whole || keys.first() == Some(&MANDATORY) {
                return None;
            }
            keys.into_iter().map(show_key).collect::<Vec<_>>().join(",")
        }
        ALPN => {
            let mut joined = Vec::new();
            let mut rest = value;
            while let Some((&length, behind)) = rest.split_first() {
                let (item, behind) = behind.split_at_checked(length.into())?;
                if item.is_empty() {
                    return None;
                }
                if !joined.is_empty() {
                    joined.push(b',');
                }
                for &byte in item {
                    if matches!(byte, b',' | b'\\') {
                        joined.push(b'\\');
                    }
                    joined.push(byte);
                }
                rest = behind;
            }
            (!joined.is_empty()).then(|| quoted(&joined))?
        }
        PORT => u16::from_be_bytes(value.try_into().ok()?).to_string(),
        V4_HINT => addresses(value, |bytes: [u8; 4]| Ipv4Addr::from(bytes).to_string())?,
        V6_HINT => addresses(value, |bytes: [u8; 16]| Ipv6Addr::from(bytes).to_string())?,
        ECH if value.is_empty() => return None,
        ECH => base64(value),
        _ => quoted(value),
    };
    Some(format!("{name}={text}"))
}

fn addresses<const N: usize>(value: &[u8], show: impl Fn([u8; N]) -> String) -> Option<String> {
    if value.is_empty() || !value.len().is_multiple_of(N) {
        return None;
    }
    let shown: Option<Vec<String>> = value
        .chunks_exact(N)
        .map(|bytes| Some(show(bytes.try_into().ok()?)))
        .collect();
    Some(shown?.join(","))
}
