//! The same generated zones and questions to NSD, to Knot, to BIND and to us.
//!
//! Response code, AA, TC, answer, authority and additional section are compared as sets with each server. A
//! difference fails the test unless [`known`] gives its reason. `SEED=n` repeats a run;
//! `FLASHDNS_ZONES=10000 FLASHDNS_QUESTIONS=200` is the full size.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "in tests a failure is a panic"
)]

#[path = "../common/mod.rs"]
mod common;
mod judge;
mod known;
mod reply;
mod zones;

use std::{collections::BTreeMap, fmt::Write};

use common::load;
use flashdns_core::{Catalog, DnsName, Outcome, Rtype, Transport, answer, zonefile::ZoneFile};
use judge::{Judge, Kind};
use reply::Reply;
use zones::{Random, question, zone_text};

/// Zones that a run of `./test` compares.
const ZONES: usize = 120;
const QUESTIONS: usize = 100;
/// Kinds of differences that are shown, each with its first example.
const MOST_SHOWN: usize = 20;

fn setting(name: &str) -> Option<usize> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

fn seed() -> u64 {
    let clock = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().subsec_nanos().into()
    };
    std::env::var("SEED").map_or_else(|_| clock(), |seed| seed.parse().unwrap())
}

#[test]
fn equal_to_nsd_knot_and_bind() {
    let seed = seed();
    println!("SEED={seed}");
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("knot")).unwrap();
    let mut random = Random(seed);
    let mut catalog = Catalog::new();
    let mut zones = Vec::new();
    let mut texts = Vec::new();
    for number in 0..setting("FLASHDNS_ZONES").unwrap_or(ZONES) {
        // Some zones lie deeper, so that an apex is not always one label.
        let origin = if number % 3 == 0 {
            format!("d.z{number}.")
        } else {
            format!("z{number}.")
        };
        let text = zone_text(&mut random, &origin);
        std::fs::write(folder.path().join(format!("{origin}zone")), &text).unwrap();
        // Our reader of zone files must agree with an independent one before what it read is served.
        let mut independent = Catalog::new();
        load(&mut independent, &origin, &text);
        let zone = ZoneFile::read(&text, &origin.parse().unwrap()).unwrap();
        let apex: DnsName = origin.parse().unwrap();
        for (name, sets) in zone.names() {
            let mut theirs = independent.served(name);
            theirs.retain(|set| set.rtype() != Rtype::SOA);
            theirs.sort_by_key(|set| set.rtype().0);
            assert_eq!(&theirs, sets, "{name}");
        }
        assert_eq!(independent.served(&apex).first(), Some(zone.soa()));
        zone.add_to(&mut catalog).unwrap();
        texts.push(text);
        zones.push(origin);
    }
    let snapshot = catalog.snapshot(11);
    let start = |kind| Judge::start(kind, folder.path(), &zones);
    let judges: Vec<Judge> = Kind::ALL.into_iter().filter_map(start).collect();
    if judges.is_empty() {
        return;
    }
    let questions = setting("FLASHDNS_QUESTIONS").unwrap_or(QUESTIONS);
    let mut compared = 0;
    let mut reasons: BTreeMap<(Kind, &str), usize> = BTreeMap::new();
    let mut kinds: BTreeMap<(u16, bool, bool), usize> = BTreeMap::new();
    let mut failures: Vec<String> = Vec::new();
    let mut unexplained: BTreeMap<(Kind, String), usize> = BTreeMap::new();
    for (zone, text) in zones.iter().zip(&texts) {
        let asked: Vec<_> = (0..questions).map(|id| question(&mut random, zone, id)).collect();
        let packets: Vec<Vec<u8>> = asked.iter().map(|(_, _, packet)| packet.clone()).collect();
        let theirs: Vec<Vec<Vec<u8>>> = judges.iter().map(|judge| judge.ask(&packets)).collect();
        for (at, (name, rtype, packet)) in asked.iter().enumerate() {
            let mut ours = Vec::new();
            assert_ne!(
                answer(&snapshot, packet, Transport::Udp, &mut ours),
                Outcome::Silence
            );
            let ours = Reply::read(&ours, packet);
            compared += 1;
            *kinds
                .entry((ours.rcode, ours.tc, ours.answer.is_empty()))
                .or_default() += 1;
            for (judge, theirs) in judges.iter().zip(&theirs) {
                let theirs = Reply::read(&theirs[at], packet);
                let same = ours.agrees(&theirs);
                if same && (ours.tc || ours.additional == theirs.additional) {
                    continue;
                }
                match known::reason(judge.kind, *rtype, text, &ours, &theirs) {
                    Some(reason) => *reasons.entry((judge.kind, reason)).or_default() += 1,
                    None => {
                        let count = unexplained
                            .entry((judge.kind, ours.differences(&theirs)))
                            .or_default();
                        *count += 1;
                        if *count > 1 {
                            continue;
                        }
                        let mut shown = String::new();
                        write!(
                            shown,
                            "SEED={seed} {name} type {rtype}\n--- we: {ours}--- {:?}: {theirs}",
                            judge.kind
                        )
                        .unwrap();
                        write!(shown, "--- zone:\n{text}").unwrap();
                        failures.push(shown);
                    }
                }
            }
        }
    }
    println!(
        "{compared} answers of {} zones compared with {} servers",
        zones.len(),
        judges.len()
    );
    println!("by response code, truncated, no answer: {kinds:?}");
    for ((kind, reason), count) in &reasons {
        println!("{count} times {kind:?} differs: {reason}");
    }
    failures.truncate(MOST_SHOWN);
    assert!(
        failures.is_empty(),
        "unexplained differences: {unexplained:#?}\n{}",
        failures.join("\n\n")
    );
}
