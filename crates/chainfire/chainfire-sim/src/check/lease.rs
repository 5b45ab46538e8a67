//! Leases: none ends before its time, and none lives long after it.

use testkit::sim::{MS, World};

use super::Replay;
use crate::Chainfire;
use crate::leases::Lease;

/// A renewal whose answer was lost may have been made so long after its call, microseconds.
const RENEWAL_UNDER_WAY_US: u64 = 8_000 * MS;
/// How long after its time a lease may live when nothing fails: a look at the timers, a proposal, a slow start of a
/// leader's duty. Microseconds.
const LATE_US: u64 = 3_000 * MS;
/// How long after healing there may be no leader, microseconds.
const ELECTION_US: u64 = 8_000 * MS;

/// A second of a member's own clock, in microseconds of true time.
fn own_second(world: &World<'_, Chainfire>, node: u64) -> u64 {
    world.tick_us(node) * 10
}

/// The shortest and the longest second of a leader between two times.
fn seconds(world: &World<'_, Chainfire>, leader: u64, from: u64, to: u64) -> (u64, u64) {
    let leaders = &world.service.leases.leaders;
    // Whoever led at the beginning too: it became leader before.
    let first = leaders
        .iter()
        .filter(|(at, _)| *at <= from)
        .map(|(_, node)| *node)
        .next_back();
    let later = leaders
        .iter()
        .filter(|(at, _)| (from..=to).contains(at))
        .map(|(_, node)| *node);
    let own = [leader]
        .into_iter()
        .chain(first)
        .chain(later)
        .map(|node| own_second(world, node));
    own.fold((u64::MAX, 0), |(least, most), second| {
        (least.min(second), most.max(second))
    })
}

/// The end of one life of a lease, if it ended: time and the term of its expiry.
fn end_of(lease: &Lease, replay: &Replay) -> Option<(u64, Option<u64>)> {
    let mine = |(id, at, _): &&(i64, u64, Option<u64>)| *id == lease.id && *at >= lease.granted;
    replay.ended.iter().find(mine).map(|(_, at, by)| (*at, *by))
}

/// Nothing expires before its time to live is over since the grant and since the last renewal that its owner heard of,
/// by the true clock and as fast as the clock of the leader runs that ended it.
pub(super) fn never_early(world: &World<'_, Chainfire>, replay: &Replay) -> Result<(), String> {
    for lease in &world.service.leases.all {
        let Some((at, Some(term))) = end_of(lease, replay) else {
            continue;
        };
        let Some(leader) = world.leader_of_term(term) else {
            continue;
        };
        let heard = lease
            .renewals
            .iter()
            .filter(|renewal| renewal.acknowledged.is_some());
        let last = heard
            .map(|renewal| renewal.called)
            .max()
            .unwrap_or(0)
            .max(lease.granted);
        // Every leader since then may have counted a part of it.
        let ttl_us = lease.ttl_s.cast_unsigned() * seconds(world, leader, last, at).0;
        // Clocks are read in whole milliseconds.
        if at + 2 * MS < last + ttl_us {
            let history: Vec<String> = replay.story(lease.id);
            return Err(format!(
                "lease {} of {} s was ended at {at} us in term {term} of node {leader}, though it was renewed at {last} us; the log: {}",
                lease.id,
                lease.ttl_s,
                history.join(", ")
            ));
        }
    }
    Ok(())
}

/// After healing, a lease that nobody renews is gone within its time to live and a bound.
pub(super) fn gone_in_time(world: &World<'_, Chainfire>, replay: &Replay) -> Result<(), String> {
    if let Some((id, _)) = replay.model.leases.iter().next() {
        return Err(format!("lease {id} never ended"));
    }
    for lease in &world.service.leases.all {
        let Some((at, Some(term))) = end_of(lease, replay) else {
            continue;
        };
        let Some(leader) = world.leader_of_term(term) else {
            continue;
        };
        // A renewal takes effect between its call and its answer.
        let renewals = lease.renewals.iter().map(|renewal| {
            renewal
                .acknowledged
                .unwrap_or(renewal.called + RENEWAL_UNDER_WAY_US)
        });
        let leases = &world.service.leases;
        let led = leases.leaders.iter().map(|(since, _)| *since);
        let began = led
            .chain(leases.duties.iter().copied())
            .filter(|since| *since <= at);
        let last = renewals
            .chain([lease.known, world.service.healed_at + ELECTION_US])
            .chain(began)
            .max()
            .unwrap_or(0);
        let latest = last + lease.ttl_s.cast_unsigned() * seconds(world, leader, 0, at).1 + LATE_US;
        if at > latest {
            return Err(format!(
                "lease {} of {} s ended at {at} us only, in term {term} of node {leader}; it should have been gone by \
                 {latest} us; known at {} us, healed at {} us, renewed {:?}, leaders {:?}; the log: {}",
                lease.id,
                lease.ttl_s,
                lease.known,
                world.service.healed_at,
                lease.renewals,
                leases.leaders,
                replay.story(lease.id).join(", ")
            ));
        }
    }
    Ok(())
}
