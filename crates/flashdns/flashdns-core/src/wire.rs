//! Reading whole messages: all records, names decompressed. For what is not an ordinary question.

use crate::{
    limits::{MAX_NAME, MAX_POINTERS},
    message::HEADER,
    name::DnsName,
    rr::Rtype,
};

/// One record of a message.
#[derive(Debug)]
pub(crate) struct Record<'m> {
    pub(crate) owner: DnsName,
    pub(crate) rtype: Rtype,
    pub(crate) class: u16,
    pub(crate) ttl_s: u32,
    /// Its data as it stands in the message, names perhaps compressed.
    pub(crate) data: &'m [u8],
    /// Where the data starts in the message.
    pub(crate) data_at: usize,
    /// Where the record starts in the message.
    pub(crate) at: usize,
}

/// Reads a message from front to back. `None` anywhere: it is malformed.
pub(crate) struct Reader<'m> {
    message: &'m [u8],
    at: usize,
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*pair))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes(*four))
}

impl<'m> Reader<'m> {
    /// Behind the header.
    pub(crate) fn new(message: &'m [u8]) -> Self {
        Self { message, at: HEADER }
    }

    /// Where reading stands.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// A count of the header: 0 questions, 1 answers, 2 authorities, 3 additional.
    pub(crate) fn count(&self, section: usize) -> u16 {
        u16_at(self.message, 4 + 2 * section).unwrap_or(0)
    }

    /// A question: name, type, class.
    pub(crate) fn question(&mut self) -> Option<(DnsName, Rtype, u16)> {
        let (name, at) = name(self.message, self.at)?;
        let (rtype, class) = (u16_at(self.message, at)?, u16_at(self.message, at + 2)?);
        self.at = at + 4;
        Some((name, Rtype(rtype), class))
    }

    pub(crate) fn record(&mut self) -> Option<Record<'m>> {
        let at = self.at;
        let (owner, fixed) = name(self.message, at)?;
        let data_at = fixed + 10;
        let length = usize::from(u16_at(self.message, fixed + 8)?);
        let record = Record {
            owner,
            rtype: Rtype(u16_at(self.message, fixed)?),
            class: u16_at(self.message, fixed + 2)?,
            ttl_s: u32_at(self.message, fixed + 4)?,
            data: self.message.get(data_at..data_at + length)?,
            data_at,
            at,
        };
        self.at = data_at + length;
        Some(record)
    }
}

/// The name at a place, and the place behind it. Pointers must point backwards, and there are at most
/// [`MAX_POINTERS`] of them: the work is bounded whatever they say.
pub(crate) fn name(message: &[u8], start: usize) -> Option<(DnsName, usize)> {
    let (mut wire, mut at, mut end) = (Vec::with_capacity(64), start, None);
    let mut jumps = 0;
    loop {
        match *message.get(at)? {
            0 => {
                wire.push(0);
                let name = DnsName::from_wire(&wire).ok()?;
                return Some((name, end.unwrap_or(at + 1)));
            }
            length @ 1..=63 => {
                let label = message.get(at..=at + usize::from(length))?;
                wire.extend_from_slice(label);
                if wire.len() >= MAX_NAME {
                    return None;
                }
                at += label.len();
            }
            0xc0.. => {
                let target = usize::from(u16_at(message, at)? & 0x3fff);
                jumps += 1;
                if target >= at || jumps > MAX_POINTERS {
                    return None;
                }
                end = end.or(Some(at + 2));
                at = target;
            }
            _ => return None,
        }
    }
}

/// Names in the data of types that some sender may compress (RFC 3597, 4): bytes before, names, bytes behind.
const fn names_in(rtype: Rtype) -> Option<(usize, usize)> {
    match rtype.0 {
        // NS, CNAME, PTR, DNAME and the mail types of RFC 1035.
        2 | 3 | 4 | 5 | 7 | 8 | 9 | 12 | 39 => Some((0, 1)),
        // SOA, MINFO, RP.
        6 | 14 | 17 => Some((0, 2)),
        // MX, AFSDB, RT, KX.
        15 | 18 | 21 | 36 => Some((2, 1)),
        33 => Some((6, 1)),
        _ => None,
    }
}

/// A record's data with its names decompressed.
pub(crate) fn data(message: &[u8], record: &Record<'_>) -> Option<Vec<u8>> {
    let Some((before, names)) = names_in(record.rtype) else {
        return Some(record.data.to_vec());
    };
    let end = record.data_at + record.data.len();
    let mut data = record.data.get(..before)?.to_vec();
    let mut at = record.data_at + before;
    for _ in 0..names {
        let (name, behind) = name(message, at)?;
        data.extend_from_slice(name.wire());
        at = behind;
    }
    if at > end {
        return None;
    }
    data.extend_from_slice(message.get(at..end)?);
    Some(data)
}
