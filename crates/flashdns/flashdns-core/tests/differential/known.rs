//! The differences that are known, each with its reason. A reason must not explain more than it says: what
//! it allows is checked against the zone.

use std::collections::BTreeSet;

use crate::{
    judge::Kind,
    reply::{Record, Reply, show_name},
};

const CNAME: u16 = 5;
const DNAME: u16 = 39;
const ANY: u16 = 255;
const SERVFAIL: u16 = 2;

/// Why a server may answer otherwise; `None`: it may not.
pub fn reason(kind: Kind, rtype: u16, zone: &str, ours: &Reply, theirs: &Reply) -> Option<&'static str> {
    let same = ours.agrees(theirs);
    let (we, they) = (&ours.additional, &theirs.additional);
    let as_empty = ours.answer.is_empty() == theirs.answer.is_empty();
    if rtype == ANY && ours.rcode == theirs.rcode && (theirs.tc || as_empty) {
        return Some("ANY is answered with one record set (RFC 8482, 4.1), each server by its own choice");
    }
    if kind != Kind::Nsd && ours.answer.iter().any(turns_into_itself) {
        return Some("a DNAME into its own subtree is followed once, as by NSD");
    }
    let answers = || ours.answer.iter().chain(&theirs.answer);
    if ours.answer != theirs.answer && answers().any(|dname| is_met_again(dname, answers())) {
        return Some(
            "a chain that comes back to a DNAME ends for each server at its own length, here after 16 names",
        );
    }
    if ours.tc && theirs.tc {
        return Some("the response code of a cut reply: the rest of the chain was not looked at");
    }
    match kind {
        Kind::Nsd if same && ours.aa && they.is_empty() => {
            Some("NSD with minimal-responses adds addresses to referrals only")
        }
        Kind::Nsd | Kind::Knot if same && we.is_subset(they) && are_made(they.difference(we), zone) => {
            Some("a wildcard below a zone cut makes no glue here and in BIND: that zone is not ours")
        }
        Kind::Bind if same && they.is_subset(we) && are_made(we.difference(they), zone) => {
            Some("BIND adds no address that a wildcard makes")
        }
        Kind::Bind if same && they.is_subset(we) && are_optional(we.difference(they), ours) => {
            Some("BIND with minimal-responses adds only the glue below the cut")
        }
        Kind::Knot
            if ours.tc
                && !theirs.tc
                && ours.rcode == theirs.rcode
                && theirs.authority.is_empty()
                && ours.answer.is_subset(&theirs.answer) =>
        {
            Some("Knot does not set TC when the SOA alone does not fit")
        }
        Kind::Bind
            if theirs.rcode == SERVFAIL && ours.rcode == 0 && (ours.tc || ours.answer == theirs.answer) =>
        {
            Some("BIND answers a loop of aliases with SERVFAIL")
        }
        Kind::Bind if rtype == ANY && ours.answer.iter().any(|(_, rtype, ..)| *rtype == DNAME) => {
            Some("BIND does not follow a DNAME for ANY")
        }
        Kind::Bind
            if theirs.tc
                && !ours.tc
                && ours.rcode == theirs.rcode
                && theirs.answer.is_subset(&ours.answer)
                && theirs.authority.is_subset(&ours.authority) =>
        {
            Some("BIND compresses less and so cuts sooner")
        }
        _ => None,
    }
}

/// Whether a record is a DNAME whose target lies at or below its owner.
fn turns_into_itself((owner, rtype, _, target): &Record) -> bool {
    *rtype == DNAME && target.ends_with(owner)
}

/// Whether a record is a DNAME that turned two names of the chain.
fn is_met_again<'r>((owner, rtype, ..): &Record, answers: impl Iterator<Item = &'r Record>) -> bool {
    let turned: BTreeSet<&Vec<u8>> = answers
        .filter(|(name, rtype, ..)| *rtype == CNAME && name.len() > owner.len() && name.ends_with(owner))
        .map(|(name, ..)| name)
        .collect();
    *rtype == DNAME && turned.len() > 1
}

/// Whether all records are addresses that a resolver can do without: their owners do not lie below the cut.
fn are_optional<'r>(mut records: impl Iterator<Item = &'r Record>, reply: &Reply) -> bool {
    let cuts: Vec<&Vec<u8>> = reply.authority.iter().map(|(owner, ..)| owner).collect();
    records.all(|(owner, ..)| reply.aa || !cuts.iter().any(|cut| owner.ends_with(cut)))
}

/// Whether no record's owner stands in the zone, so that only a wildcard can have made them.
fn are_made<'r>(mut records: impl Iterator<Item = &'r Record>, zone: &str) -> bool {
    let mut lines = zone.lines();
    let origin = lines
        .next()
        .and_then(|line| line.strip_prefix("$ORIGIN "))
        .unwrap();
    let owners: BTreeSet<String> = lines
        .filter_map(|line| line.split(' ').next())
        .map(|owner| format!("{owner}.{origin}"))
        .collect();
    records.all(|(owner, ..)| !owners.contains(&show_name(owner)))
}
