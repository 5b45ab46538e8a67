//! Domain names in lower-case wire form.
//!
//! Wire form is a row of length-prefixed labels ending in the empty root label. Length bytes are at most
//! 63 and so never look like a letter: comparing and lower-casing whole names as ASCII bytes is right.

use std::{fmt, str::FromStr};

use crate::limits::{MAX_LABEL, MAX_NAME};

/// An absolute domain name, lower case, 1..=255 bytes in wire form.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DnsName(Box<[u8]>);

/// Why a text is not a domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Two dots in a row, or one at the start.
    #[error("a domain name must not have an empty label")]
    EmptyLabel,
    /// A label of more than 63 bytes.
    #[error("a label of a domain name has at most 63 bytes")]
    LongLabel,
    /// More than 255 bytes in wire form.
    #[error("a domain name has at most 253 characters")]
    LongName,
    /// A backslash that is followed by neither a character nor three digits up to 255.
    #[error("`\\` in a domain name must be followed by a character or three digits up to 255")]
    BadEscape,
    /// Bytes that are not a name in wire form.
    #[error("the bytes are not a domain name in wire form")]
    BadWire,
}

impl DnsName {
    /// The root, `.`.
    #[must_use]
    pub fn root() -> Self {
        Self(Box::new([0]))
    }

    /// Reads an uncompressed name that fills `wire` exactly; upper case becomes lower case.
    ///
    /// # Errors
    /// [`NameError::BadWire`].
    pub fn from_wire(wire: &[u8]) -> Result<Self, NameError> {
        if wire_len(wire) != Some(wire.len()) {
            return Err(NameError::BadWire);
        }
        Ok(Self(wire.to_ascii_lowercase().into()))
    }

    /// The wire form.
    #[must_use]
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// Puts one more label, given as text without dots, in front.
    ///
    /// # Errors
    /// [`NameError`] when the label or the whole name is too long or the label is empty.
    pub fn child(&self, label: &str) -> Result<Self, NameError> {
        let bytes = label.as_bytes();
        if bytes.is_empty() {
            return Err(NameError::EmptyLabel);
        }
        if bytes.len() > MAX_LABEL {
            return Err(NameError::LongLabel);
        }
        let mut wire = Vec::with_capacity(1 + bytes.len() + self.0.len());
        push_label(&mut wire, bytes);
        wire.extend_from_slice(&self.0);
        if wire.len() > MAX_NAME {
            return Err(NameError::LongName);
        }
        Ok(Self(wire.into()))
    }

    /// The name without its first label; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        parent(&self.0).map(|wire| Self(wire.into()))
    }

    /// Whether `self` is `ancestor` or lies below it.
    #[must_use]
    pub fn is_within(&self, ancestor: &Self) -> bool {
        let mut rest: &[u8] = &self.0;
        loop {
            if rest.len() == ancestor.0.len() {
                return rest == &*ancestor.0;
            }
            match parent(rest) {
                Some(next) => rest = next,
                None => return false,
            }
        }
    }

    /// The labels, first to last, without the root.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let length = usize::from(*rest.first()?);
            let label = rest.get(1..=length).filter(|label| !label.is_empty())?;
            rest = rest.get(1 + length..)?;
            Some(label)
        })
    }

    /// Whether the first label is `*` (RFC 4592).
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with(b"\x01*")
    }
}

/// Length of the uncompressed name at the start of `wire`, or `None` when there is no whole valid one.
#[must_use]
pub fn wire_len(wire: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let length = usize::from(*wire.get(at)?);
        at += 1;
        if length == 0 {
            return (at <= MAX_NAME).then_some(at);
        }
        if length > MAX_LABEL || at + length >= MAX_NAME {
            return None;
        }
        at += length;
    }
}

/// The wire name without its first label; `None` for the root (and for what is no name).
pub(crate) fn parent(wire: &[u8]) -> Option<&[u8]> {
    match wire.first() {
        None | Some(0) => None,
        Some(&length) => wire.get(1 + usize::from(length)..),
    }
}

fn push_label(wire: &mut Vec<u8>, label: &[u8]) {
    debug_assert!(label.len() <= MAX_LABEL);
    wire.push(u8::try_from(label.len()).unwrap_or(0));
    wire.extend(label.iter().map(u8::to_ascii_lowercase));
}

impl FromStr for DnsName {
    type Err = NameError;

    /// Reads presentation format (RFC 1035, 5.1: `\.` and `\032` are escapes). The last dot may be missing.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let mut wire = read(text, &[0])?;
        wire.make_ascii_lowercase();
        Ok(Self(wire.into()))
    }
}

/// Reads presentation format into wire form, letters as they are; a name without a last dot lies below
/// `origin`, itself in wire form.
pub(crate) fn read(text: &str, origin: &[u8]) -> Result<Vec<u8>, NameError> {
    if text == "." {
        return Ok(vec![0]);
    }
    let (mut wire, mut label) = (Vec::new(), Vec::new());
    let mut bytes = text.bytes();
    let mut finish = |label: &mut Vec<u8>| {
        match u8::try_from(label.len()) {
            Ok(0) => return Err(NameError::EmptyLabel),
            Ok(length) if label.len() <= MAX_LABEL => wire.push(length),
            _ => return Err(NameError::LongLabel),
        }
        wire.append(label);
        if wire.len() >= MAX_NAME {
            Err(NameError::LongName)
        } else {
            Ok(())
        }
    };
    let mut open = true;
    while let Some(byte) = bytes.next() {
        open = byte != b'.';
        match byte {
            b'.' => finish(&mut label)?,
            b'\\' => label.push(unescape(&mut bytes)?),
            other => label.push(other),
        }
    }
    if open {
        finish(&mut label)?;
    }
    wire.extend_from_slice(if open { origin } else { &[0] });
    if wire.len() > MAX_NAME {
        return Err(NameError::LongName);
    }
    Ok(wire)
}

/// Presentation format of a name in wire form, letters as they are.
pub(crate) fn show(wire: &[u8]) -> String {
    let mut shown = String::new();
    let mut rest = wire;
    while let Some((&length, behind)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let Some((label, next)) = behind.split_at_checked(length.into()) else {
            break;
        };
        for &byte in label {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'*' => shown.push(byte.into()),
                other => shown += &format!("\\{other:03}"),
            }
        }
        shown.push('.');
        rest = next;
    }
    if shown.is_empty() {
        shown.push('.');
    }
    shown
}

fn unescape(bytes: &mut std::str::Bytes<'_>) -> Result<u8, NameError> {
    let first = bytes.next().ok_or(NameError::BadEscape)?;
    if !first.is_ascii_digit() {
        return Ok(first);
    }
    let mut value = u16::from(first - b'0');
    for _ in 0..2 {
        let digit = bytes
            .next()
            .filter(u8::is_ascii_digit)
            .ok_or(NameError::BadEscape)?;
        value = value * 10 + u16::from(digit - b'0');
    }
    u8::try_from(value).map_err(|_| NameError::BadEscape)
}

impl fmt::Display for DnsName {
    /// Presentation format with the last dot; whatever is not a letter, digit, `-`, `_` or `*` is escaped,
    /// so that a name is also safe in a key or a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(&self.0))
    }
}

impl fmt::Debug for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_presentation_format() {
        for (text, shown) in [
            (".", "."),
            ("Web.Default.hearth.INTERNAL", "web.default.hearth.internal."),
            ("*.a.", "*.a."),
            ("a\\.b.c.", "a\\046b.c."),
            ("0\\/25.2.0.192.in-addr.arpa.", "0\\04725.2.0.192.in-addr.arpa."),
            ("\\000.x", "\\000.x."),
        ] {
            let name: DnsName = text.parse().unwrap();
            assert_eq!(name.to_string(), shown);
            assert_eq!(shown.parse::<DnsName>().unwrap(), name);
            assert_eq!(DnsName::from_wire(name.wire()).unwrap(), name);
        }
    }

    #[test]
    fn refuses_what_is_no_name() {
        let long = "a".repeat(64);
        let longest = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "a".repeat(61));
        assert_eq!(longest.parse::<DnsName>().unwrap().wire().len(), 255);
        assert_eq!(format!("{longest}a").parse::<DnsName>(), Err(NameError::LongName));
        assert_eq!(long.parse::<DnsName>(), Err(NameError::LongLabel));
        assert_eq!("".parse::<DnsName>(), Err(NameError::EmptyLabel));
        assert_eq!("a..b".parse::<DnsName>(), Err(NameError::EmptyLabel));
        assert_eq!(".a".parse::<DnsName>(), Err(NameError::EmptyLabel));
        assert_eq!("a\\".parse::<DnsName>(), Err(NameError::BadEscape));
        assert_eq!("\\256".parse::<DnsName>(), Err(NameError::BadEscape));
        assert_eq!("\\25".parse::<DnsName>(), Err(NameError::BadEscape));
        for wire in [
            &b""[..],
            b"\x01",
            b"\x01a",
            b"\x40a\0",
            b"\xc0\x0c",
            b"\0\0",
            b"\x01a\0\0",
        ] {
            assert_eq!(DnsName::from_wire(wire), Err(NameError::BadWire));
        }
    }

    #[test]
    fn ancestors() {
        let name: DnsName = "a.b.c".parse().unwrap();
        assert!(name.is_within(&name));
        assert!(name.is_within(&"c".parse().unwrap()));
        assert!(name.is_within(&DnsName::root()));
        assert!(!name.is_within(&"x.a.b.c".parse().unwrap()));
        assert!(!name.is_within(&"bb.c".parse().unwrap()));
        assert_eq!(name.parent().unwrap().to_string(), "b.c.");
        assert_eq!(DnsName::root().parent(), None);
        assert_eq!(name.child("Z").unwrap().to_string(), "z.a.b.c.");
    }
}
