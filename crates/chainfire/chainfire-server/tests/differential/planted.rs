//! The fuzzer is proven by bugs planted in our member: each must be found.

use std::time::Duration;

use crate::Pair;

/// Requests within which every bug must be found.
const WITHIN: usize = 6000;
/// Seeds tried for each.
const SEED: u64 = 7;

#[tokio::test(flavor = "multi_thread")]
async fn planted_bugs_are_found() {
    for bug in chainfire_core::planted::ALL {
        let Some(mut pair) = Pair::start(Some(bug.name())).await else {
            println!("SKIPPED: etcd is not installed (apt install etcd-server)");
            return;
        };
        // A lost event is one that does not come for so long.
        pair.patience = Duration::from_secs(3);
        match pair.play(SEED, WITHIN).await {
            Ok(_) => panic!("{} was not found in {WITHIN} requests", bug.name()),
            Err(found) => println!("{}: {}", bug.name(), found.lines().next().unwrap_or_default()),
        }
    }
}
