//! One name and its records as a row of bytes, ready to be copied into replies.
//!
//! ```text
//!   name's length u8 | flags u8 | record sets u16 | children u32 | name | set*
//!   set:  type u16 | time to live u32 | records u16 | bytes u16 | (length u16 | data)*
//! ```
//! Numbers are big-endian. The row knows its own length, so rows stand one behind the other in a shard.

use crate::rr::{RrSet, Rtype};

const HEADER: usize = 8;
const SET_HEADER: usize = 10;
const HAS_SOA: u8 = 1;
const HAS_NS: u8 = 2;
const HAS_DNAME: u8 = 4;

/// A stored name. Copies of one node of one snapshot share their address, which is how zones are told apart.
#[derive(Clone, Copy)]
pub(crate) struct Node<'a>(&'a [u8]);

/// A stored record set.
#[derive(Clone, Copy)]
pub(crate) struct Set<'a> {
    pub(crate) rtype: Rtype,
    pub(crate) ttl_s: u32,
    pub(crate) records: u16,
    data: &'a [u8],
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|pair| u16::from_be_bytes(*pair))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|four| u32::from_be_bytes(*four))
}

/// Appends a node. `false`, and nothing is written: more sets than the row can count.
pub(crate) fn write(out: &mut Vec<u8>, name: &[u8], children: u32, sets: &[RrSet]) -> bool {
    let (Ok(length), Ok(count)) = (u8::try_from(name.len()), u16::try_from(sets.len())) else {
        return false;
    };
    let flag = |rtype, flag| {
        if sets.iter().any(|set| set.rtype() == rtype) {
            flag
        } else {
            0
        }
    };
    out.push(length);
    out.push(flag(Rtype::SOA, HAS_SOA) | flag(Rtype::NS, HAS_NS) | flag(Rtype::DNAME, HAS_DNAME));
    out.extend(count.to_be_bytes());
    out.extend(children.to_be_bytes());
    out.extend_from_slice(name);
    for set in sets {
        // RrSet's limit of 60000 bytes keeps all three numbers below 2^16.
        let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
        let bytes: usize = set.rdatas().iter().map(|rdata| rdata.len() + 2).sum();
        assert!(
            u16::try_from(bytes).is_ok(),
            "a record set is larger than its limit"
        );
        out.extend(set.rtype().0.to_be_bytes());
        out.extend(set.ttl_s().to_be_bytes());
        out.extend(length(set.rdatas().len()).to_be_bytes());
        out.extend(length(bytes).to_be_bytes());
        for rdata in set.rdatas() {
            out.extend(length(rdata.len()).to_be_bytes());
            out.extend_from_slice(rdata);
        }
    }
    true
}

/// Room that [`write`] needs at most.
pub(crate) fn size(name: &[u8], sets: &[RrSet]) -> usize {
    let set = |set: &RrSet| SET_HEADER + set.rdatas().iter().map(|rdata| rdata.len() + 2).sum::<usize>();
    HEADER + name.len() + sets.iter().map(set).sum::<usize>()
}

/// Sets the number of children of the node at the start of `row`.
pub(crate) fn set_children(row: &mut [u8], children: u32) {
    if let Some(field) = row.get_mut(4..HEADER) {
        field.copy_from_slice(&children.to_be_bytes());
    }
}

impl<'a> Node<'a> {
    /// The node whose row starts `row`.
    pub(crate) fn at(row: &'a [u8]) -> Self {
        Self(row)
    }

    pub(crate) fn name(self) -> &'a [u8] {
        let length = usize::from(self.0.first().copied().unwrap_or(0));
        self.0.get(HEADER..HEADER + length).unwrap_or(&[])
    }

    /// Names directly below this one.
    pub(crate) fn children(self) -> u32 {
        u32_at(self.0, 4).unwrap_or(0)
    }

    fn has(self, flag: u8) -> bool {
        self.0.get(1).is_some_and(|flags| flags & flag != 0)
    }

    /// Whether a zone starts here.
    pub(crate) fn is_apex(self) -> bool {
        self.has(HAS_SOA)
    }

    pub(crate) fn has_servers(self) -> bool {
        self.has(HAS_NS)
    }

    pub(crate) fn redirects(self) -> bool {
        self.has(HAS_DNAME)
    }

    pub(crate) fn is_vacant(self) -> bool {
        self.children() == 0 && u16_at(self.0, 2).unwrap_or(0) == 0
    }

    pub(crate) fn sets(self) -> Sets<'a> {
        let start = HEADER + self.name().len();
        Sets {
            left: u16_at(self.0, 2).unwrap_or(0),
            rest: self.0.get(start..).unwrap_or(&[]),
        }
    }

    pub(crate) fn set(self, rtype: Rtype) -> Option<Set<'a>> {
        self.sets().find(|set| set.rtype == rtype)
    }

    /// Bytes of the row.
    pub(crate) fn len(self) -> usize {
        let sets = self.sets().map(|set| SET_HEADER + set.data.len()).sum::<usize>();
        HEADER + self.name().len() + sets
    }

    /// Whether both are the same place of the same snapshot.
    pub(crate) fn is(self, other: Node<'_>) -> bool {
        std::ptr::eq(self.0.as_ptr(), other.0.as_ptr())
    }
}

/// The sets of a node.
pub(crate) struct Sets<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> Iterator for Sets<'a> {
    type Item = Set<'a>;

    fn next(&mut self) -> Option<Set<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (header, behind) = self.rest.split_at_checked(SET_HEADER)?;
        let bytes = usize::from(u16_at(header, 8)?);
        let (data, rest) = behind.split_at_checked(bytes)?;
        self.rest = rest;
        Some(Set {
            rtype: Rtype(u16_at(header, 0)?),
            ttl_s: u32_at(header, 2)?,
            records: u16_at(header, 6)?,
            data,
        })
    }
}

impl<'a> Set<'a> {
    /// The data of each record, sorted.
    pub(crate) fn rdatas(self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.data;
        std::iter::from_fn(move || {
            let length = usize::from(u16_at(rest, 0)?);
            let (rdata, behind) = rest.get(2..)?.split_at_checked(length)?;
            rest = behind;
            Some(rdata)
        })
    }

    /// Bytes that the set takes in a reply, roughly.
    pub(crate) fn weight(self) -> usize {
        self.data.len() + 10 * usize::from(self.records)
    }

    /// The set on its own.
    pub(crate) fn to_owned(self) -> Option<RrSet> {
        RrSet::new(self.rtype, self.ttl_s, self.rdatas().map(Into::into).collect()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_back() {
        let sets = [
            RrSet::new(Rtype::A, 60, vec![[192, 0, 2, 2].into(), [192, 0, 2, 1].into()]).unwrap(),
            RrSet::new(Rtype(65280), 5, vec![[].into()]).unwrap(),
            RrSet::new(Rtype::NS, 5, vec![b"\x01a\0".as_slice().into()]).unwrap(),
        ];
        let mut row = Vec::new();
        assert!(write(&mut row, b"\x01x\0", 7, &sets));
        assert_eq!(row.len(), size(b"\x01x\0", &sets));
        row.extend(b"what stands behind");
        set_children(&mut row, 9);
        let node = Node::at(&row);
        assert_eq!(
            (node.name(), node.children(), node.len()),
            (&b"\x01x\0"[..], 9, row.len() - 18)
        );
        assert!(node.has_servers() && !node.is_apex() && !node.redirects() && !node.is_vacant());
        let back: Vec<RrSet> = node.sets().filter_map(Set::to_owned).collect();
        assert_eq!(back, sets);
        assert!(node.set(Rtype::MX).is_none());
    }

    #[test]
    fn any_bytes_can_be_read() {
        for length in 0..64 {
            let row: Vec<u8> = (0..length).map(|n: u8| n.wrapping_mul(37)).collect();
            let node = Node::at(&row);
            let records: usize = node.sets().map(|set| set.rdatas().count()).sum();
            assert!(records <= row.len());
        }
    }
}
