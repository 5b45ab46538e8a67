//! Replies in a form in which they can be compared: names without compression in lower case, sections as sets.

use std::{collections::BTreeSet, fmt};

/// A record: owner, type, time to live, data. Two records that mean the same are equal.
pub type Record = (Vec<u8>, u16, u32, Vec<u8>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub rcode: u16,
    pub aa: bool,
    pub tc: bool,
    pub answer: BTreeSet<Record>,
    pub authority: BTreeSet<Record>,
    pub additional: BTreeSet<Record>,
    /// Version, size and flags of its OPT.
    pub edns: Option<(u16, u32)>,
}

fn u16_at(message: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([message[at], message[at + 1]]))
}

/// The name at a place, and what stands behind it. Pointers must point backwards.
fn name(message: &[u8], mut at: usize) -> (Vec<u8>, usize) {
    let (mut name, mut behind, mut limit) = (Vec::new(), None, at + 1);
    loop {
        let length = usize::from(message[at]);
        match length {
            0 => {
                name.push(0);
                assert!(name.len() <= 255, "a name of {} bytes", name.len());
                return (name, behind.unwrap_or(at + 1));
            }
            1..=63 => {
                name.extend(message[at..=at + length].to_ascii_lowercase());
                at += 1 + length;
            }
            _ => {
                behind.get_or_insert(at + 2);
                at = u16_at(message, at) & 0x3fff;
                assert!(at < limit, "a pointer that does not point backwards");
                limit = at;
            }
        }
    }
}

fn data(message: &[u8], rtype: u16, at: usize, end: usize) -> Vec<u8> {
    // Bytes before the first name, and names.
    let (before, names) = match rtype {
        2 | 5 | 12 | 39 => (0, 1),
        6 => (0, 2),
        15 => (2, 1),
        33 => (6, 1),
        _ => (end - at, 0),
    };
    let mut data = message[at..at + before].to_vec();
    let mut at = at + before;
    for _ in 0..names {
        let (name, behind) = name(message, at);
        data.extend(name);
        at = behind;
    }
    data.extend(&message[at..end]);
    data
}

impl Reply {
    /// Reads a reply; panics where it is malformed, has a record twice or does not repeat the question.
    pub fn read(message: &[u8], query: &[u8]) -> Self {
        let flags = u16_at(message, 2);
        assert_eq!(flags & 0x8000, 0x8000, "not a reply");
        let (_, question) = name(query, 12);
        assert_eq!(
            message[12..question + 4],
            query[12..question + 4],
            "the question's bytes"
        );
        let mut at = question + 4;
        let mut reply = Self {
            rcode: u16::from(message[3] & 0xf),
            aa: flags & 0x0400 != 0,
            tc: flags & 0x0200 != 0,
            answer: BTreeSet::new(),
            authority: BTreeSet::new(),
            additional: BTreeSet::new(),
            edns: None,
        };
        for section in 0..3 {
            for _ in 0..u16_at(message, 6 + 2 * section) {
                let (owner, fixed) = name(message, at);
                let rtype = u16::from_be_bytes([message[fixed], message[fixed + 1]]);
                let class = u16::from_be_bytes([message[fixed + 2], message[fixed + 3]]);
                let ttl = u32::from_be_bytes(message[fixed + 4..fixed + 8].try_into().unwrap());
                let end = fixed + 10 + u16_at(message, fixed + 8);
                at = end;
                if rtype == 41 {
                    reply.edns = Some((class, ttl));
                    reply.rcode |= u16::try_from(ttl >> 24).unwrap() << 4;
                    continue;
                }
                let record = (owner, rtype, ttl, data(message, rtype, fixed + 10, end));
                let set = [&mut reply.answer, &mut reply.authority, &mut reply.additional];
                // NSD repeats records that a chain meets twice; the set is what counts.
                set.into_iter().nth(section).unwrap().insert(record);
            }
        }
        assert_eq!(at, message.len(), "bytes behind the last record");
        reply
    }

    /// Whether they agree in all but the additional section. What a cut reply holds is up to the server.
    pub fn agrees(&self, other: &Self) -> bool {
        (self.rcode, self.tc, self.edns.is_some()) == (other.rcode, other.tc, other.edns.is_some())
            && (self.tc
                || (self.aa == other.aa && self.answer == other.answer && self.authority == other.authority))
    }
}

impl Reply {
    /// In what two replies differ, in a word or two.
    pub fn differences(&self, other: &Self) -> String {
        let parts = [
            ("rcode", self.rcode != other.rcode),
            ("aa", self.aa != other.aa),
            ("tc", self.tc != other.tc),
            ("edns", self.edns.is_some() != other.edns.is_some()),
            ("answer", self.answer != other.answer),
            ("authority", self.authority != other.authority),
            ("additional", self.additional != other.additional),
        ];
        let differing: Vec<&str> = parts
            .iter()
            .filter(|(_, differs)| *differs)
            .map(|(part, _)| *part)
            .collect();
        format!(
            "{} (our rcode {}, aa {}, tc {})",
            differing.join(", "),
            self.rcode,
            self.aa,
            self.tc
        )
    }
}

pub fn show_name(wire: &[u8]) -> String {
    let (mut shown, mut at) = (String::new(), 0);
    while wire.get(at).is_some_and(|length| *length > 0) {
        let length = usize::from(wire[at]);
        shown += &String::from_utf8_lossy(&wire[at + 1..=at + length]);
        shown.push('.');
        at += 1 + length;
    }
    shown
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rcode, aa, tc, edns, ..
        } = self;
        writeln!(f, "rcode {rcode} aa {aa} tc {tc} edns {edns:?}")?;
        for (mark, section) in [
            ('=', &self.answer),
            ('@', &self.authority),
            ('+', &self.additional),
        ] {
            for (owner, rtype, ttl, data) in section {
                let data = match rtype {
                    2 | 5 | 39 => show_name(data),
                    15 => show_name(&data[2..]),
                    33 => show_name(&data[6..]),
                    _ => format!("{data:02x?}"),
                };
                writeln!(f, "{mark} {} {ttl} type {rtype} {:.70}", show_name(owner), data)?;
            }
        }
        Ok(())
    }
}
