//! The registers, keys used with single-key operations only, once more: any order that fits real time and the answers
//! will do, whatever the log says. Unknown outcomes are searched. (porcupine-rs.)

use std::collections::BTreeMap;

use bytes::Bytes;
use chainfire_client::wire::etcdserverpb::{compare::TargetUnion, request_op::Request};
use chainfire_server::simulation::{Answer, Command};
use testkit::sim::registers::history::{self, Op};

use crate::clients::{Outcome, Record};
use crate::ops::Asked;

pub(super) fn check(records: &[Record]) -> Result<(), String> {
    let mut numbers: BTreeMap<Bytes, u64> = BTreeMap::new();
    let mut number = |of: &Bytes| {
        let next = numbers.len() as u64 + 1;
        *numbers.entry(of.clone()).or_insert(next)
    };
    let history: Vec<history::Record> = records
        .iter()
        .filter_map(|record| {
            let (key, op) = register(record, &mut number)?;
            Some(history::Record {
                client: record.client,
                key: number(&key),
                op,
                called: record.called,
                returned: (!matches!(record.outcome, Outcome::Unknown)).then_some(record.returned),
            })
        })
        .collect();
    history::check(&history)
}

/// The operation on a register, if it is one and may have happened.
fn register(record: &Record, number: &mut impl FnMut(&Bytes) -> u64) -> Option<(Bytes, Op)> {
    let unknown = matches!(record.outcome, Outcome::Unknown);
    match &record.asked {
        Asked::Write(Command::Put(put)) if put.key.starts_with(b"r/") => {
            let done = unknown || matches!(record.outcome, Outcome::Wrote(_));
            done.then(|| (put.key.clone(), Op::Put(number(&put.value))))
        }
        Asked::Range(range) if range.key.starts_with(b"r/") => {
            let Outcome::Range(reply) = &record.outcome else {
                return None;
            };
            let seen = reply.kvs.first().map(|kv| number(&kv.value));
            Some((range.key.clone(), Op::Get(seen)))
        }
        Asked::Write(Command::Txn(txn)) => {
            let compare = txn.compare.first()?;
            let (Some(TargetUnion::Value(old)), Some(Request::RequestPut(put))) =
                (&compare.target_union, &txn.success.first()?.request)
            else {
                return None;
            };
            if !put.key.starts_with(b"r/") {
                return None;
            }
            let exchanged = match &record.outcome {
                Outcome::Wrote(Answer::Txn(reply)) => Some(reply.succeeded),
                _ if unknown => None,
                _ => return None,
            };
            Some((
                put.key.clone(),
                Op::Cas(number(old), number(&put.value), exchanged),
            ))
        }
        _ => None,
    }
}
