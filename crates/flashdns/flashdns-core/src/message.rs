//! DNS messages: reading a query's fixed parts, writing a reply within a size.

use crate::{
    cookie::{CLIENT, SERVER, Sent},
    limits::{MAX_COMPRESSION_NAMES, MAX_QUERY_RECORDS, MAX_UDP_REPLY},
    name,
    node::Set,
    rr::{Rtype, compressible_names},
};

pub(crate) const HEADER: usize = 12;
/// An OPT record without options.
const OPT_LENGTH: usize = 11;
/// A cookie option with both cookies.
const COOKIE_OPTION: usize = 4 + CLIENT + SERVER;
const CLASS_IN: u16 = 1;

/// Response codes that are sent (RFC 6895, 2.3).
pub(crate) mod rcode {
    pub(crate) const NOERROR: u16 = 0;
    pub(crate) const FORMERR: u16 = 1;
    pub(crate) const NXDOMAIN: u16 = 3;
    pub(crate) const NOTIMP: u16 = 4;
    pub(crate) const REFUSED: u16 = 5;
    pub(crate) const YXDOMAIN: u16 = 6;
    pub(crate) const BADVERS: u16 = 16;
}

/// The header's second word.
#[derive(Clone, Copy)]
pub(crate) struct Flags(u16);

impl Flags {
    pub(crate) const AA: u16 = 0x0400;
    const TC: u16 = 0x0200;
    /// What a reply repeats of the query: opcode, RD and CD (RFC 4035, 3.1.6).
    const ECHOED: u16 = 0x7910;
    const QR: u16 = 0x8000;

    pub(crate) fn is_response(self) -> bool {
        self.0 & Self::QR != 0
    }

    pub(crate) fn opcode(self) -> u16 {
        (self.0 >> 11) & 0xf
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(pair.try_into().ok()?))
}

/// What a query says of EDNS (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns<'q> {
    pub(crate) udp_size: u16,
    pub(crate) version: u8,
    pub(crate) dnssec_ok: bool,
    pub(crate) cookie: Option<Sent<'q>>,
}

/// The question, still in the client's bytes.
#[derive(Clone, Copy)]
pub(crate) struct Question<'q> {
    /// Name in wire form as the client wrote it.
    pub(crate) name: &'q [u8],
    pub(crate) rtype: Rtype,
    pub(crate) class: u16,
    /// All bytes of the question section.
    raw: &'q [u8],
}

/// Reads id and flags; `None` for what is too short to be answered at all.
pub(crate) fn header(query: &[u8]) -> Option<([u8; 2], Flags)> {
    let header: &[u8; HEADER] = query.first_chunk()?;
    Some((
        [header[0], header[1]],
        Flags(u16::from_be_bytes([header[2], header[3]])),
    ))
}

/// Reads question and EDNS of a standard query. `Err(Some(question))`: malformed behind the question.
pub(crate) fn body(query: &[u8]) -> Result<(Question<'_>, Option<Edns<'_>>), Option<Question<'_>>> {
    let count = |at| u16_at(query, at).unwrap_or(0);
    let (questions, answers, authorities, additional) = (count(4), count(6), count(8), count(10));
    if questions != 1 {
        // RFC 9619: a query has exactly one question.
        return Err(None);
    }
    let (question, mut at) = question(query).ok_or(None)?;
    if answers != 0 || authorities != 0 || additional > MAX_QUERY_RECORDS {
        return Err(Some(question));
    }
    let mut edns = None;
    for _ in 0..additional {
        let (found, next) = additional_record(query, at).ok_or(Some(question))?;
        if found.is_some() && edns.is_some() {
            // RFC 6891, 6.1.1: more than one OPT is FORMERR.
            return Err(Some(question));
        }
        edns = edns.or(found);
        at = next;
    }
    if at == query.len() {
        Ok((question, edns))
    } else {
        Err(Some(question))
    }
}

/// The question section: one name without compression (nothing stands before it), type and class.
pub(crate) fn question(query: &[u8]) -> Option<(Question<'_>, usize)> {
    let rest = query.get(HEADER..)?;
    let length = name::wire_len(rest)?;
    let raw = rest.get(..length + 4)?;
    let question = Question {
        name: raw.get(..length)?,
        rtype: Rtype(u16_at(raw, length)?),
        class: u16_at(raw, length + 2)?,
        raw,
    };
    Some((question, HEADER + raw.len()))
}

/// Skips one additional record; its EDNS content when it is an OPT.
fn additional_record(query: &[u8], at: usize) -> Option<(Option<Edns<'_>>, usize)> {
    let is_root = *query.get(at)? == 0;
    let fixed = skip_name(query, at)?;
    let rtype = Rtype(u16_at(query, fixed)?);
    let udp_size = u16_at(query, fixed + 2)?;
    let &[_, version, flags, _] = query.get(fixed + 4..fixed + 8)?.first_chunk()?;
    let data = fixed + 10;
    let end = data + usize::from(u16_at(query, fixed + 8)?);
    let rdata = query.get(data..end)?;
    if rtype != Rtype::OPT {
        return Some((None, end));
    }
    // RFC 6891, 6.1.2: the owner is the root; options fill the data. All but a cookie are ignored.
    if !is_root {
        return None;
    }
    let cookie = cookie(rdata)?;
    Some((
        Some(Edns {
            udp_size,
            version,
            dnssec_ok: flags & 0x80 != 0,
            cookie,
        }),
        end,
    ))
}

/// The first cookie among the options; `None`: they do not fill the data, or the cookie is malformed.
fn cookie(mut rdata: &[u8]) -> Option<Option<Sent<'_>>> {
    const COOKIE: u16 = 10;
    let mut found = None;
    while !rdata.is_empty() {
        let length = usize::from(u16_at(rdata, 2)?);
        let data = rdata.get(4..4 + length)?;
        if u16_at(rdata, 0) == Some(COOKIE) && found.is_none() {
            found = Some(Sent::read(data)?);
        }
        rdata = rdata.get(4 + length..)?;
    }
    Some(found)
}

/// The position behind a name; a compression pointer ends it and is not followed.
fn skip_name(query: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *query.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return query.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Answer = 6,
    Authority = 8,
    Additional = 10,
}

/// A record set did not fit; nothing of it was written.
#[derive(Debug)]
pub(crate) struct Full;

/// Writes one reply. `'a` is how long the names it may compress against live: query and snapshot.
pub(crate) struct Writer<'o, 'a> {
    out: &'o mut Vec<u8>,
    /// Bytes that records may fill; the OPT record's are set aside.
    limit: usize,
    edns: Option<Edns<'a>>,
    /// The server's cookie, when the client sent one.
    cookie: Option<[u8; 16]>,
    /// Names written in full or in part, with the position of each.
    names: [(u16, &'a [u8]); MAX_COMPRESSION_NAMES],
    known: usize,
}

impl<'o, 'a> Writer<'o, 'a> {
    /// Starts a reply of at most `limit` bytes, which must hold header, question and OPT.
    pub(crate) fn new(
        out: &'o mut Vec<u8>,
        limit: usize,
        id: [u8; 2],
        flags: Flags,
        question: Option<Question<'a>>,
        edns: Option<Edns<'a>>,
    ) -> Self {
        out.clear();
        out.extend(id);
        out.extend((Flags::QR | (flags.0 & Flags::ECHOED)).to_be_bytes());
        out.extend([0; 8]);
        let limit = limit - if edns.is_some() { OPT_LENGTH } else { 0 };
        let mut writer = Self {
            out,
            limit,
            edns,
            cookie: None,
            names: [(0, &[]); MAX_COMPRESSION_NAMES],
            known: 0,
        };
        if let Some(question) = question {
            writer.remember(12, question.name);
            writer.out.extend_from_slice(question.raw);
            writer.count(4, 1);
        }
        writer
    }

    /// Sends a cookie along, whose room comes out of the limit.
    pub(crate) fn with_cookie(mut self, cookie: Option<[u8; 16]>) -> Self {
        if cookie.is_some() {
            self.limit = self.limit.saturating_sub(COOKIE_OPTION);
        }
        self.cookie = cookie;
        self
    }

    /// Whether it has no record yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.out.get(6..12).is_some_and(|counts| counts == [0; 6])
    }

    pub(crate) fn set(&mut self, flag: u16) {
        self.patch(2, |word| word | flag);
    }

    /// Replaces the low four bits of the response code; the rest travels in OPT.
    fn set_rcode(&mut self, rcode: u16) {
        self.patch(2, |word| (word & !0xf) | (rcode & 0xf));
    }

    fn patch(&mut self, at: usize, change: impl FnOnce(u16) -> u16) {
        if let Some(word) = self.out.get_mut(at..at + 2) {
            let old = u16::from_be_bytes([word[0], word[1]]);
            word.copy_from_slice(&change(old).to_be_bytes());
        }
    }

    fn count(&mut self, at: usize, records: u16) {
        self.patch(at, |word| word.wrapping_add(records));
    }

    /// Marks the reply as cut short.
    pub(crate) fn truncate(&mut self) {
        self.set(Flags::TC);
    }

    /// Writes a record set whole or not at all.
    pub(crate) fn put_set(&mut self, section: Section, owner: &'a [u8], set: Set<'a>) -> Result<(), Full> {
        let (start, known) = (self.out.len(), self.known);
        for (written, rdata) in set.rdatas().enumerate() {
            if self.put(section, owner, set.rtype, set.ttl_s, rdata).is_err() {
                self.out.truncate(start);
                self.known = known;
                self.patch(section as usize, |word| {
                    word.wrapping_sub(u16::try_from(written).unwrap_or(u16::MAX))
                });
                return Err(Full);
            }
        }
        Ok(())
    }

    /// Writes one record whole or not at all.
    pub(crate) fn put(
        &mut self,
        section: Section,
        owner: &'a [u8],
        rtype: Rtype,
        ttl_s: u32,
        rdata: &'a [u8],
    ) -> Result<(), Full> {
        let (start, known) = (self.out.len(), self.known);
        self.put_name(owner);
        self.out.extend(rtype.0.to_be_bytes());
        self.out.extend(CLASS_IN.to_be_bytes());
        self.out.extend(ttl_s.to_be_bytes());
        let length_at = self.out.len();
        self.out.extend([0; 2]);
        self.put_rdata(rtype, rdata);
        let length = u16::try_from(self.out.len() - length_at - 2);
        let (Ok(length), true) = (length, self.out.len() <= self.limit) else {
            self.out.truncate(start);
            self.known = known;
            return Err(Full);
        };
        self.patch(length_at, |_| length);
        self.count(section as usize, 1);
        Ok(())
    }

    fn put_rdata(&mut self, rtype: Rtype, rdata: &'a [u8]) {
        let mut rest = rdata;
        if let Some((before, names)) = compressible_names(rtype)
            && let Some((prefix, mut names_left)) = rdata.split_at_checked(before)
        {
            self.out.extend_from_slice(prefix);
            for _ in 0..names {
                let Some(length) = name::wire_len(names_left) else {
                    break;
                };
                let (name, behind) = names_left.split_at(length);
                self.put_name(name);
                names_left = behind;
            }
            rest = names_left;
        }
        self.out.extend_from_slice(rest);
    }

    /// Writes a name, its longest tail that is known as a pointer (RFC 1035, 4.1.4).
    fn put_name(&mut self, name: &'a [u8]) {
        let start = self.out.len();
        let mut tail = name;
        while tail.len() > 1 {
            if let Some(at) = self.position(tail) {
                self.out.extend((0xc000 | at).to_be_bytes());
                break;
            }
            let label = 1 + usize::from(tail.first().copied().unwrap_or(0));
            let Some((head, rest)) = tail.split_at_checked(label) else {
                break;
            };
            self.out.extend_from_slice(head);
            tail = rest;
        }
        if tail.len() <= 1 {
            self.out.push(0);
        }
        // Pointers have 14 bits.
        if let Ok(start) = u16::try_from(start)
            && start < 0x3f00
            && tail.len() < name.len()
        {
            self.remember(start, name);
        }
    }

    /// Makes later names point at this one, while there is room.
    fn remember(&mut self, at: u16, name: &'a [u8]) {
        if let Some(slot) = self.names.get_mut(self.known) {
            *slot = (at, name);
            self.known += 1;
        }
    }

    /// Where a tail stands in the reply already.
    fn position(&self, tail: &[u8]) -> Option<u16> {
        self.names.iter().take(self.known).find_map(|&(at, known)| {
            let skip = known.len().checked_sub(tail.len())?;
            let same = known.get(skip..)?.eq_ignore_ascii_case(tail) && starts_label(known, skip);
            let skip = u16::try_from(skip).ok()?;
            same.then(|| at + skip)
        })
    }

    /// Replaces the serial of the SOA record just written: SOA data ends in five numbers, serial first.
    pub(crate) fn set_last_serial(&mut self, serial: u32) {
        let at = self.out.len().saturating_sub(20);
        if let Some(field) = self.out.get_mut(at..at + 4) {
            field.copy_from_slice(&serial.to_be_bytes());
        }
    }

    /// Ends the reply: response code and OPT.
    pub(crate) fn finish(mut self, rcode: u16) {
        self.set_rcode(rcode);
        if let Some(edns) = self.edns {
            let [.., size_high, size_low] = MAX_UDP_REPLY.to_be_bytes();
            let extended = (rcode >> 4).to_be_bytes()[1];
            let flags = if edns.dnssec_ok { 0x80 } else { 0 };
            let cookie = self.cookie.zip(edns.cookie);
            let [length, option] = match cookie {
                // Both fit a byte: 28 and 24.
                Some(_) => [28, 24],
                None => [0, 0],
            };
            self.out
                .extend([0, 0, 41, size_high, size_low, extended, 0, flags, 0, 0, length]);
            if let Some((server, sent)) = cookie {
                self.out.extend([0, 10, 0, option]);
                self.out.extend_from_slice(sent.client);
                self.out.extend_from_slice(&server);
            }
            self.count(Section::Additional as usize, 1);
        }
    }
}

/// Whether a label of `name` starts at `at`: equal bytes in the middle of a label are not a tail.
pub(crate) fn starts_label(name: &[u8], at: usize) -> bool {
    let mut start = 0;
    while start < at {
        match name.get(start) {
            Some(&length) => start += 1 + usize::from(length),
            None => return false,
        }
    }
    start == at
}

/// Writes a reply without records: the question where it can be read, and a response code.
pub(crate) fn reply(query: &[u8], rcode: u16, out: &mut Vec<u8>) {
    out.clear();
    let Some((id, flags)) = header(query) else { return };
    let question = question(query).filter(|_| u16_at(query, 4) == Some(1));
    Writer::new(
        out,
        crate::limits::PLAIN_UDP_REPLY,
        id,
        flags,
        question.map(|(question, _)| question),
        None,
    )
    .finish(rcode);
}

/// Writes a reply that says nothing but that the client shall come over TCP.
pub(crate) fn truncated(query: &[u8], out: &mut Vec<u8>) {
    reply(query, rcode::NOERROR, out);
    if let Some(flags) = out.get_mut(2) {
        let [tc, _] = Flags::TC.to_be_bytes();
        *flags |= tc;
    }
}
