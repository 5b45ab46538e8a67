//! Record sets in wire form.

use std::fmt;

use crate::{limits::MAX_RRSET_BYTES, name};

/// A record type's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rtype(pub u16);

impl Rtype {
    /// IPv4 address.
    pub const A: Self = Self(1);
    /// Name server.
    pub const NS: Self = Self(2);
    /// Alias.
    pub const CNAME: Self = Self(5);
    /// Start of a zone of authority.
    pub const SOA: Self = Self(6);
    /// Name of an address.
    pub const PTR: Self = Self(12);
    /// Mail exchanger.
    pub const MX: Self = Self(15);
    /// Text.
    pub const TXT: Self = Self(16);
    /// IPv6 address.
    pub const AAAA: Self = Self(28);
    /// Service location.
    pub const SRV: Self = Self(33);
    /// Redirection of a subtree (RFC 6672).
    pub const DNAME: Self = Self(39);
    /// EDNS pseudo-record.
    pub const OPT: Self = Self(41);
    /// Delegation signer: the one type whose owner belongs to the parent's side of a zone cut.
    pub const DS: Self = Self(43);
    /// Incremental transfer.
    pub const IXFR: Self = Self(251);
    /// Full transfer.
    pub const AXFR: Self = Self(252);
    /// Any type.
    pub const ANY: Self = Self(255);

    /// Types 128..=255 but the ones above and type 0 ask for something other than records (RFC 6895, 3.1).
    #[must_use]
    pub fn is_meta(self) -> bool {
        matches!(self.0, 128..=255) || self == Self::OPT
    }
}

/// All records of one type at one name: they share one time to live (RFC 2181, 5.2).
#[derive(Clone, PartialEq, Eq)]
pub struct RrSet {
    rtype: Rtype,
    ttl_s: u32,
    rdatas: Vec<Box<[u8]>>,
}

/// Why records do not make a record set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RrSetError {
    /// No record at all.
    #[error("a record set has at least one record")]
    Empty,
    /// More than one CNAME, or DNAME, or SOA.
    #[error("there is at most one record of this type at a name")]
    Single,
    /// A type that only asks (ANY, AXFR) or that only makes sense in a message (OPT, TSIG).
    #[error("records of this type cannot be stored")]
    Type,
    /// Time to live above 2^31 - 1 seconds (RFC 2181, 8).
    #[error("a time to live is at most 2147483647 seconds")]
    Ttl,
    /// The data is not what the type demands.
    #[error("the data does not have the form that its type demands")]
    Data,
    /// More data than fits one reply.
    #[error("the records of one type at one name are together at most 60000 bytes")]
    Large,
}

impl RrSet {
    /// Makes a record set; equal records are kept once, order is canonical.
    ///
    /// # Errors
    /// [`RrSetError`].
    pub fn new(rtype: Rtype, ttl_s: u32, mut rdatas: Vec<Box<[u8]>>) -> Result<Self, RrSetError> {
        if rtype.is_meta() || rtype.0 == 0 {
            return Err(RrSetError::Type);
        }
        if ttl_s > i32::MAX.unsigned_abs() {
            return Err(RrSetError::Ttl);
        }
        rdatas.sort_unstable();
        rdatas.dedup();
        if rdatas.is_empty() {
            return Err(RrSetError::Empty);
        }
        if rdatas.len() > 1 && matches!(rtype, Rtype::CNAME | Rtype::DNAME | Rtype::SOA) {
            return Err(RrSetError::Single);
        }
        if !rdatas.iter().all(|rdata| well_formed(rtype, rdata)) {
            return Err(RrSetError::Data);
        }
        // A record costs 12 bytes beside its data: pointer, type, class, time to live, length.
        if rdatas.iter().map(|rdata| rdata.len() + 12).sum::<usize>() > MAX_RRSET_BYTES {
            return Err(RrSetError::Large);
        }
        Ok(Self { rtype, ttl_s, rdatas })
    }

    /// The type.
    #[must_use]
    pub fn rtype(&self) -> Rtype {
        self.rtype
    }

    /// Time to live in seconds, at most 2^31 - 1.
    #[must_use]
    pub fn ttl_s(&self) -> u32 {
        self.ttl_s
    }

    /// The data of each record, at least one, sorted, without duplicates.
    #[must_use]
    pub fn rdatas(&self) -> &[Box<[u8]>] {
        &self.rdatas
    }
}

impl fmt::Debug for RrSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}s x{}", self.rtype.0, self.ttl_s, self.rdatas.len())
    }
}

/// Where names stand in the data of the types whose names may be compressed (RFC 3597, 4): bytes before
/// the first name, and number of names.
pub(crate) fn compressible_names(rtype: Rtype) -> Option<(usize, usize)> {
    match rtype {
        Rtype::NS | Rtype::CNAME | Rtype::PTR => Some((0, 1)),
        Rtype::SOA => Some((0, 2)),
        Rtype::MX => Some((2, 1)),
        _ => None,
    }
}

/// The name in a record's data whose addresses belong in the additional section.
pub(crate) fn target(rtype: Rtype, rdata: &[u8]) -> Option<&[u8]> {
    match rtype {
        Rtype::NS => Some(rdata),
        Rtype::MX => rdata.get(2..),
        Rtype::SRV => rdata.get(6..),
        _ => None,
    }
}

/// Whether data has its type's form, for the types that the serving path looks into.
fn well_formed(rtype: Rtype, rdata: &[u8]) -> bool {
    let name_fills = |wire: &[u8]| name::wire_len(wire) == Some(wire.len());
    match rtype {
        Rtype::A => rdata.len() == 4,
        Rtype::AAAA => rdata.len() == 16,
        Rtype::NS | Rtype::CNAME | Rtype::DNAME | Rtype::PTR => name_fills(rdata),
        Rtype::MX => rdata.get(2..).is_some_and(name_fills),
        Rtype::SRV => rdata.get(6..).is_some_and(name_fills),
        Rtype::SOA => {
            let mname = name::wire_len(rdata).unwrap_or(rdata.len());
            let rname = rdata.get(mname..).and_then(name::wire_len);
            rname.is_some_and(|rname| mname + rname + 20 == rdata.len())
        }
        Rtype::TXT => strings_fill(rdata),
        _ => rdata.len() <= usize::from(u16::MAX),
    }
}

/// Whether `rdata` is one or more length-prefixed strings.
fn strings_fill(mut rdata: &[u8]) -> bool {
    if rdata.is_empty() {
        return false;
    }
    while let Some((&length, rest)) = rdata.split_first() {
        match rest.get(usize::from(length)..) {
            Some(next) => rdata = next,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(rtype: Rtype, rdatas: &[&[u8]]) -> Result<RrSet, RrSetError> {
        RrSet::new(rtype, 60, rdatas.iter().map(|rdata| (*rdata).into()).collect())
    }

    #[test]
    fn keeps_equal_records_once_in_order() {
        let kept = set(Rtype::A, &[&[2, 0, 0, 1], &[1, 0, 0, 1], &[2, 0, 0, 1]]).unwrap();
        assert_eq!(
            kept.rdatas(),
            [Box::from([1u8, 0, 0, 1]), Box::from([2u8, 0, 0, 1])]
        );
    }

    #[test]
    fn refuses_data_its_type_does_not_allow() {
        assert_eq!(set(Rtype::A, &[]), Err(RrSetError::Empty));
        assert_eq!(set(Rtype::A, &[&[1, 2, 3]]), Err(RrSetError::Data));
        assert_eq!(set(Rtype::AAAA, &[&[0; 15]]), Err(RrSetError::Data));
        assert_eq!(
            set(Rtype::CNAME, &[b"\x01a\0", b"\x01b\0"]),
            Err(RrSetError::Single)
        );
        assert_eq!(set(Rtype::CNAME, &[b"\x01a\0x"]), Err(RrSetError::Data));
        assert_eq!(set(Rtype::MX, &[b"\0"]), Err(RrSetError::Data));
        assert_eq!(set(Rtype::SRV, &[b"\0\0\0\0\0\0"]), Err(RrSetError::Data));
        assert_eq!(set(Rtype::TXT, &[b""]), Err(RrSetError::Data));
        assert_eq!(set(Rtype::TXT, &[b"\x05abc"]), Err(RrSetError::Data));
        assert_eq!(set(Rtype::SOA, &[b"\0\0"]), Err(RrSetError::Data));
        assert_eq!(set(Rtype::ANY, &[b""]), Err(RrSetError::Type));
        assert_eq!(set(Rtype::OPT, &[b""]), Err(RrSetError::Type));
        assert_eq!(set(Rtype::DNAME, &[b"\x01a"]), Err(RrSetError::Data));
        assert_eq!(set(Rtype(65280), &[&vec![0; 60_000]]), Err(RrSetError::Large));
        assert_eq!(
            RrSet::new(Rtype::A, 1 << 31, vec![[0; 4].into()]),
            Err(RrSetError::Ttl)
        );
        assert!(set(Rtype(65280), &[b""]).is_ok());
    }
}
