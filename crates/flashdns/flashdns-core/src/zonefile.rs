//! Zone files: RFC 1035 section 5 with `$TTL` (RFC 2308) and unknown types (RFC 3597).
//!
//! Whoever may edit a zone may send one, so nothing in it reaches outside: `$INCLUDE` and `$GENERATE` are
//! refused, not followed. The work is bounded by the length of the text. Errors name line and column.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::{
    catalog::Catalog,
    form::{self, Names, Token, Wrong},
    lexer::{Entry, Lexer},
    limits::MAX_ZONE_TEXT,
    name::{self, DnsName},
    rr::{RrSet, RrSetError, Rtype},
    text,
};

/// Why a text is not a zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct ZoneFileError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong there, and what to do.
    pub reason: String,
}

/// What is wrong, and at which byte of the text.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) at: usize,
    pub(crate) reason: String,
}

impl Fault {
    pub(crate) fn new(at: usize, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { at, reason }
    }

    fn locate(self, text: &str) -> ZoneFileError {
        let before = text.as_bytes().get(..self.at.min(text.len())).unwrap_or(&[]);
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let start = before
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        // Bytes that go on with a character are none of their own.
        let characters = before.iter().skip(start).filter(|byte| **byte & 0xc0 != 0x80);
        ZoneFileError {
            line,
            column: 1 + characters.count(),
            reason: self.reason,
        }
    }
}

/// A whole zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneFile {
    apex: DnsName,
    soa: RrSet,
    /// All names with records; the SOA is not among them.
    names: BTreeMap<DnsName, Vec<RrSet>>,
}

impl ZoneFile {
    /// Reads a zone. `origin` is its name, and what names without a last dot lie below until `$ORIGIN` says
    /// otherwise. The SOA must be there, and what must not stand together must not stand together.
    ///
    /// # Errors
    /// [`ZoneFileError`] for the first thing that is wrong.
    pub fn read(text: &str, origin: &DnsName) -> Result<Self, ZoneFileError> {
        Self::read_if(text, origin, &mut |_, _| Ok(()))
    }

    /// As [`ZoneFile::read`], with a rule of the caller's for each record: the reason why a type must not stand at a
    /// name becomes the error of that place.
    ///
    /// # Errors
    /// [`ZoneFileError`] for the first thing that is wrong.
    pub fn read_if(text: &str, origin: &DnsName, rule: Rule<'_>) -> Result<Self, ZoneFileError> {
        if text.len() > MAX_ZONE_TEXT {
            let reason = format!("a zone file has at most {MAX_ZONE_TEXT} bytes");
            return Err(Fault::new(0, reason).locate(text));
        }
        let mut reader = Reader {
            apex: origin,
            origin: origin.clone(),
            owner: None,
            default_ttl_s: None,
            last_ttl_s: None,
            sets: BTreeMap::new(),
            rule,
        };
        let read = reader.run(text).and_then(|()| reader.finish());
        read.map_err(|fault| fault.locate(text))
    }

    /// Makes a zone of record sets, as [`ZoneFile::write`] wants it.
    #[must_use]
    pub fn new(apex: DnsName, soa: RrSet, names: BTreeMap<DnsName, Vec<RrSet>>) -> Self {
        Self { apex, soa, names }
    }

    /// The zone's name.
    #[must_use]
    pub fn apex(&self) -> &DnsName {
        &self.apex
    }

    /// Its SOA record.
    #[must_use]
    pub fn soa(&self) -> &RrSet {
        &self.soa
    }

    /// Its other record sets by name.
    #[must_use]
    pub fn names(&self) -> &BTreeMap<DnsName, Vec<RrSet>> {
        &self.names
    }

    /// Puts the zone into a catalog.
    ///
    /// # Errors
    /// Never for a zone that was read: it has an SOA.
    pub fn add_to(self, catalog: &mut Catalog) -> Result<(), RrSetError> {
        let Self { apex, soa, mut names } = self;
        let fixed = names.remove(&apex).unwrap_or_default();
        catalog.add_zone_records(&apex, &soa, fixed)?;
        for (name, sets) in names {
            catalog.set_records(&name, sets);
        }
        Ok(())
    }

    /// The zone as a file: SOA first, names in order, one record a line, all names whole.
    #[must_use]
    pub fn write(&self) -> String {
        let mut text = format!("$ORIGIN {}\n", self.apex);
        let apex = self.names.get_key_value(&self.apex);
        let others = self.names.iter().filter(|(name, _)| **name != self.apex);
        write_set(&mut text, &self.apex, &self.soa);
        for (name, sets) in apex.into_iter().chain(others) {
            for set in sets {
                write_set(&mut text, name, set);
            }
        }
        text
    }
}

fn write_set(text: &mut String, name: &DnsName, set: &RrSet) {
    let rtype = text::show_type(set.rtype());
    for rdata in set.rdatas() {
        let data = text::show_rdata(set.rtype(), rdata);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} {} IN {rtype} {data}", set.ttl_s());
    }
}

/// A caller's rule about what may stand in a file.
pub type Rule<'r> = &'r mut dyn FnMut(&DnsName, Rtype) -> Result<(), String>;

/// The records of one type at one name so far.
struct Growing {
    ttl_s: u32,
    rdatas: Vec<Box<[u8]>>,
    /// Where the first one stands.
    at: usize,
}

struct Reader<'o> {
    apex: &'o DnsName,
    origin: DnsName,
    /// The name that a line without one continues.
    owner: Option<DnsName>,
    default_ttl_s: Option<u32>,
    last_ttl_s: Option<u32>,
    sets: BTreeMap<(DnsName, Rtype), Growing>,
    rule: Rule<'o>,
}

impl Reader<'_> {
    fn run(&mut self, text: &str) -> Result<(), Fault> {
        let mut lexer = Lexer::new(text);
        while let Some(entry) = lexer.entry()? {
            match entry.tokens.first() {
                Some(first) if first.raw.starts_with('$') && !entry.is_indented => {
                    self.directive(first, entry.tokens.get(1..).unwrap_or(&[]))?;
                }
                _ => self.record(&entry)?,
            }
        }
        Ok(())
    }

    fn directive(&mut self, first: &Token<'_>, arguments: &[Token<'_>]) -> Result<(), Fault> {
        let fault = |reason: &str| Fault::new(first.at, reason);
        match (first.raw.to_ascii_uppercase().as_str(), arguments) {
            ("$ORIGIN", [origin]) => {
                self.origin = self.name(origin)?;
                Ok(())
            }
            ("$TTL", [ttl]) => {
                let seconds = form::period(ttl.raw).filter(|seconds| *seconds <= i32::MAX.unsigned_abs());
                let reason = "write `$TTL` and seconds up to 2147483647, such as `$TTL 300` or `$TTL 1h`";
                self.default_ttl_s = Some(seconds.ok_or_else(|| Fault::new(ttl.at, reason))?);
                Ok(())
            }
            ("$ORIGIN", _) => Err(fault("write `$ORIGIN` and one domain name")),
            ("$TTL", _) => Err(fault("write `$TTL` and one number of seconds")),
            ("$INCLUDE", _) => Err(fault(
                "`$INCLUDE` is refused: no other file is read; put its records in its place",
            )),
            ("$GENERATE", _) => Err(fault("`$GENERATE` is refused; write the records out")),
            _ => Err(fault("this is no directive: there are `$ORIGIN` and `$TTL`")),
        }
    }

    /// Reads a name; `@` is the origin.
    fn name(&self, token: &Token<'_>) -> Result<DnsName, Fault> {
        if token.raw == "@" {
            return Ok(self.origin.clone());
        }
        if token.is_pair {
            return Err(Fault::new(token.at, "there is no space before an opening quote"));
        }
        let wire = name::read(token.raw, self.origin.wire());
        wire.and_then(|wire| DnsName::from_wire(&wire))
            .map_err(|error| Fault::new(token.at, format!("`{:.80}` is not a name: {error}", token.raw)))
    }

    fn record(&mut self, entry: &Entry<'_>) -> Result<(), Fault> {
        let mut tokens = entry.tokens.as_slice();
        if let Some((first, rest)) = tokens.split_first().filter(|_| !entry.is_indented) {
            let owner = self.name(first)?;
            if !owner.is_within(self.apex) {
                let reason = format!("`{owner}` does not lie in the zone `{}`", self.apex);
                return Err(Fault::new(first.at, reason));
            }
            self.owner = Some(owner);
            tokens = rest;
        }
        let Some(owner) = self.owner.clone() else {
            return Err(Fault::new(entry.at, "the first record must name its owner"));
        };
        let (ttl_s, tokens) = ttl_and_class(tokens)?;
        let Some((first, data)) = tokens.split_first() else {
            return Err(Fault::new(entry.end, "a type and its data are missing"));
        };
        let rtype = text::parse_type(first.raw).map_err(|error| Fault::new(first.at, error.to_string()))?;
        if !self.sets.contains_key(&(owner.clone(), rtype)) {
            (self.rule)(&owner, rtype).map_err(|reason| Fault::new(first.at, reason))?;
        }
        let rdata = form::parse(rtype, data, Names::Below(&self.origin)).map_err(|wrong| {
            let Wrong { token, reason } = wrong;
            let token = token.and_then(|token| data.get(token));
            Fault::new(token.map_or(entry.end, |token| token.at), reason)
        })?;
        let ttl_s = ttl_s.or(self.default_ttl_s).or(self.last_ttl_s);
        let ttl_s = match (ttl_s, rtype) {
            (Some(ttl_s), _) => ttl_s,
            // RFC 1035 had no other default; what follows has it too.
            (None, Rtype::SOA) => rdata
                .last_chunk()
                .map_or(0, |minimum| u32::from_be_bytes(*minimum)),
            (None, _) => {
                let reason = "there is no time to live: write it, or `$TTL` at the start of the file";
                return Err(Fault::new(first.at, reason));
            }
        };
        self.last_ttl_s = Some(ttl_s);
        let growing = self.sets.entry((owner, rtype)).or_insert(Growing {
            ttl_s,
            rdatas: Vec::new(),
            at: first.at,
        });
        // RFC 2181, 5.2: a set has one time to live; of several the lowest is safe.
        growing.ttl_s = growing.ttl_s.min(ttl_s);
        growing.rdatas.push(rdata.into());
        Ok(())
    }

    fn finish(&mut self) -> Result<ZoneFile, Fault> {
        let (mut soa, mut names) = (None, BTreeMap::<DnsName, Vec<RrSet>>::new());
        let mut places: BTreeMap<DnsName, usize> = BTreeMap::new();
        for ((owner, rtype), growing) in std::mem::take(&mut self.sets) {
            let Growing { ttl_s, rdatas, at } = growing;
            let set = RrSet::new(rtype, ttl_s, rdatas).map_err(|error| {
                let shown = text::show_type(rtype);
                Fault::new(
                    at,
                    format!("the {shown} records of `{owner}` cannot be used: {error}"),
                )
            })?;
            if rtype != Rtype::SOA {
                places.entry(owner.clone()).or_insert(at);
                names.entry(owner).or_default().push(set);
            } else if owner == *self.apex {
                soa = Some(set);
            } else {
                let reason = format!("the SOA stands at `{owner}`; the zone is `{}`", self.apex);
                return Err(Fault::new(at, reason));
            }
        }
        let soa = soa.ok_or_else(|| Fault::new(0, format!("`{}` has no SOA record", self.apex)))?;
        for (owner, sets) in &names {
            if let Some(reason) = conflict(self.apex, owner, sets, &names) {
                return Err(Fault::new(places.get(owner).copied().unwrap_or(0), reason));
            }
        }
        Ok(ZoneFile {
            apex: self.apex.clone(),
            soa,
            names,
        })
    }
}

/// Time to live and class, which stand before the type in either order and may both be missing.
fn ttl_and_class<'e, 't>(mut tokens: &'e [Token<'t>]) -> Result<(Option<u32>, &'e [Token<'t>]), Fault> {
    let (mut ttl_s, mut has_class) = (None, false);
    while let Some((first, rest)) = tokens.split_first() {
        let is_number = first.raw.starts_with(|first: char| first.is_ascii_digit());
        let upper = first.raw.get(..8).unwrap_or(first.raw).to_ascii_uppercase();
        match upper.as_str() {
            _ if is_number && ttl_s.is_none() => {
                let seconds = form::period(first.raw).filter(|seconds| *seconds <= i32::MAX.unsigned_abs());
                let reason = "a time to live is seconds up to 2147483647";
                ttl_s = Some(seconds.ok_or_else(|| Fault::new(first.at, reason))?);
            }
            "IN" | "CLASS1" if !has_class => has_class = true,
            "CH" | "HS" | "CS" => return Err(Fault::new(first.at, "only class IN is served")),
            _ => break,
        }
        tokens = rest;
    }
    Ok((ttl_s, tokens))
}

/// What must not stand at a name together with the rest of the zone.
fn conflict(
    apex: &DnsName,
    owner: &DnsName,
    sets: &[RrSet],
    names: &BTreeMap<DnsName, Vec<RrSet>>,
) -> Option<String> {
    let has = |sets: &[RrSet], rtype| sets.iter().any(|set| set.rtype() == rtype);
    if has(sets, Rtype::CNAME) && (sets.len() > 1 || owner == apex) {
        return Some(format!(
            "at `{owner}` a CNAME and other records would stand together (RFC 1034, 3.6.2)"
        ));
    }
    if has(sets, Rtype::DNAME) && has(sets, Rtype::NS) && owner != apex {
        return Some(format!(
            "at `{owner}` a DNAME and NS would stand together (RFC 6672, 2.3)"
        ));
    }
    let mut above = owner.parent();
    while let Some(name) = above.filter(|name| name.is_within(apex)) {
        if names.get(&name).is_some_and(|sets| has(sets, Rtype::DNAME)) {
            return Some(format!("`{owner}` lies below the DNAME `{name}` (RFC 6672, 2.4)"));
        }
        above = name.parent();
    }
    None
}
