//! Random zones and questions, the same from the same seed.

use std::{collections::BTreeMap, fmt::Write};

use crate::common::{Edns, query};

/// Small numbers from a seed (SplitMix64).
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A name below the zone, relative; sometimes with a wildcard label.
    fn name(&mut self, stars: bool) -> String {
        let mut labels = Vec::new();
        for _ in 0..=self.below(3) {
            labels.push(self.pick(&["a", "b", "c", "d", "www", "mail"]));
        }
        if stars && self.below(5) == 0 {
            labels.insert(0, "*");
        }
        labels.join(".")
    }
}

/// A zone file. Left out is what the judges refuse to load: a CNAME or DNAME beside data it does not bear, data
/// below a DNAME; and what the RFCs leave open: a wildcard that delegates or redirects.
pub fn zone_text(random: &mut Random, origin: &str) -> String {
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for _ in 0..random.below(25) + 3 {
        let owner = random.name(true);
        let target = match random.below(5) {
            0 => "host.elsewhere.test.".to_owned(),
            1 => format!("{}.{origin}", random.name(true)),
            _ => format!("{}.{origin}", random.name(false)),
        };
        let octet = random.below(250) + 1;
        let record = match random.below(16) {
            0..=2 => format!("A 192.0.2.{octet}"),
            3 => format!("AAAA 2001:db8::{octet:x}"),
            4 => format!("TXT \"text {octet}\""),
            5 => format!("MX {octet} {target}"),
            6 => format!("SRV 0 1 {octet} {target}"),
            7 => "TYPE65280 \\# 2 0a0b".to_owned(),
            8 | 9 => format!("CNAME {target}"),
            _ if owner.starts_with('*') => format!("A 192.0.2.{octet}"),
            10 => format!("DNAME {target}"),
            // A set that no datagram holds.
            11 if octet < 40 => (0..9).fold(String::new(), |mut all, n| {
                let owner = if n == 0 { "" } else { &owner };
                writeln!(all, "{owner} 300 IN TXT \"{n}{}\"", "x".repeat(200)).unwrap();
                all
            })[" 300 IN ".len()..]
                .trim_end()
                .to_owned(),
            _ => format!("NS {target}"),
        };
        let records = names.entry(owner.clone()).or_default();
        let alone = |record: &String| record.starts_with("CNAME");
        let is_cut = |record: &String| record.starts_with("NS") || record.starts_with("DS");
        let turns = |record: &String| record.starts_with("DNAME");
        let crowded = records.iter().any(alone)
            || (alone(&record) && !records.is_empty())
            || (turns(&record) && records.iter().any(|other| is_cut(other) || turns(other)))
            || (is_cut(&record) && records.iter().any(turns));
        if !crowded && !records.contains(&record) {
            let delegates = is_cut(&record) && random.below(3) == 0;
            records.push(record);
            if delegates {
                records.push(format!("DS {octet} 8 2 {}", "0a".repeat(32)));
            }
        }
    }
    // NSD loads no zone that has data below a DNAME (RFC 6672, 2.4).
    let turning: Vec<String> = names
        .iter()
        .filter(|(_, records)| records.iter().any(|record| record.starts_with("DNAME")))
        .map(|(owner, _)| format!(".{owner}"))
        .collect();
    names.retain(|owner, _| !turning.iter().any(|above| owner.ends_with(above.as_str())));
    let mut text = format!("$ORIGIN {origin}\n@ 600 IN SOA ns hostmaster 11 3600 600 86400 120\n");
    if random.below(25) == 0 {
        // A whole zone that lives elsewhere.
        text += "@ 600 IN NS ns.elsewhere.test.\n@ 600 IN DNAME other.elsewhere.test.\n";
        return text;
    }
    text += "@ 600 IN NS ns\n@ 600 IN MX 1 mail\nns 600 IN A 192.0.2.53\n";
    for (owner, records) in names {
        for record in records {
            writeln!(text, "{owner} 300 IN {record}").unwrap();
        }
    }
    text
}

const TYPES: [u16; 16] = [1, 1, 1, 1, 2, 5, 6, 15, 16, 28, 33, 39, 43, 255, 257, 65280];

/// A question: its name, type and packet with the given id.
pub fn question(random: &mut Random, zone: &str, id: usize) -> (String, u16, Vec<u8>) {
    let mut name = match random.below(40) {
        0..=2 => zone.to_owned(),
        // Long enough for a DNAME to overflow.
        3 => format!(
            "{}.{}.{zone}",
            ["n".repeat(60).as_str(); 4][..3].join("."),
            "m".repeat(45)
        ),
        4 => format!(
            "{}.{}.{zone}",
            ["n".repeat(60).as_str(); 4][..3].join("."),
            random.name(false)
        ),
        _ => format!("{}.{zone}", random.name(true)),
    };
    if random.below(4) == 0 {
        name.make_ascii_uppercase();
    }
    let rtype = random.pick(&TYPES);
    let edns = match random.below(6) {
        0 => None,
        1 => Some(512),
        2 => Some(4096),
        _ => Some(1232),
    };
    let mut packet = query(&name, rtype, edns.map(|size| Edns { size, version: 0 }));
    packet[..2].copy_from_slice(&u16::try_from(id).unwrap().to_be_bytes());
    (name, rtype, packet)
}
