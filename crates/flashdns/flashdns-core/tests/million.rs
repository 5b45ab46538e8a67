//! What a large zone costs. `NAMES=1000000` measures the aim (250 MiB; under a CPU-second when optimised);
//! without it a tenth is loaded, and only memory and shape are held to a limit: time is printed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in tests a failure is a panic"
)]

mod common;

use std::time::Instant;

use common::{ask, load};
use flashdns_core::{Catalog, DnsName, RrSet, Rtype};

/// 250 MiB for a million records.
const BYTES_PER_NAME: usize = 262;

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn memory_of_a_large_zone_and_of_its_edits() {
    let names: u32 = std::env::var("NAMES").map_or(100_000, |names| names.parse().unwrap());
    let mut catalog = Catalog::new();
    let serial = load(
        &mut catalog,
        "example.",
        "@ 60 SOA ns h 1 2 3 4 5\n@ 60 NS ns\nns 60 A 192.0.2.1\n",
    );
    let (before, start) = (resident(), Instant::now());
    for n in 0..names {
        // The label as it is and not through a parser: what loading costs is to be seen.
        let wire = [&b"\x0chost"[..], format!("{n:08}").as_bytes(), b"\x07example\0"].concat();
        let set = RrSet::new(Rtype::A, 300, vec![n.to_be_bytes().into()]).unwrap();
        catalog.set_records(&DnsName::from_wire(&wire).unwrap(), vec![set]);
    }
    let (loaded, grown) = (start.elapsed(), resident().saturating_sub(before));
    let published = catalog.snapshot(serial);
    let counted = published.bytes();
    println!("{names} names: {loaded:?}, {grown} bytes resident, {counted} bytes counted");
    let limit = BYTES_PER_NAME * usize::try_from(names).unwrap() / 2;
    assert!(counted < limit, "half of the aim is {limit}");
    assert!(grown < limit * 2, "the aim is {}", limit * 2);

    // Edits of a published snapshot: each copies one shard of 1024 and leaves what was published alone.
    let start = Instant::now();
    const EDITS: u32 = 1000;
    for n in 0..EDITS {
        let wire = [&b"\x0chost"[..], format!("{n:08}").as_bytes(), b"\x07example\0"].concat();
        let set = RrSet::new(Rtype::A, 300, vec![[10, 0, 0, 1].into()]).unwrap();
        catalog.set_records(&DnsName::from_wire(&wire).unwrap(), vec![set]);
        drop(catalog.snapshot(serial));
    }
    println!("{EDITS} edits: {:?}", start.elapsed());
    assert!(ask(&published, "host00000007.example", Rtype::A).contains("A 0.0.0.7"));
    let edited = catalog.snapshot(serial);
    assert!(ask(&edited, "host00000007.example", Rtype::A).contains("A 10.0.0.1"));
    assert!(
        edited.bytes() < counted + counted / 2,
        "edits leave {} bytes",
        edited.bytes()
    );
    for n in 0..names {
        let wire = [&b"\x0chost"[..], format!("{n:08}").as_bytes(), b"\x07example\0"].concat();
        catalog.set_records(&DnsName::from_wire(&wire).unwrap(), vec![]);
    }
    let rest = catalog.snapshot(serial);
    assert_eq!(rest.names(), 3);
    assert!(
        rest.bytes() < counted,
        "{} bytes are left of {counted}",
        rest.bytes()
    );
}
