//! What is wrong with a request on its face: checked before it is proposed, in etcd's order, so that the same wrong
//! request gets the same error.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::{DeleteRange, KeyRange, Op, OpError, Put, Range, Txn};

/// Most operations, or conditions, in one list of a transaction.
pub const MAX_TXN_OPS: usize = 128;
/// Deepest nesting of transactions. etcd bounds nothing but the message; the recursion here must end before the stack.
pub const MAX_TXN_DEPTH: usize = 64;

/// Longest key that storage holds, bytes, where each byte 0 counts twice.
pub const MAX_KEY_BYTES: usize = 65_000;

/// Checks a range.
pub fn range(range: &Range) -> Result<(), OpError> {
    non_empty(range.keys.start())
}

/// Checks a put.
pub fn put(put: &Put) -> Result<(), OpError> {
    non_empty(&put.key)?;
    storable(&put.key)?;
    if put.ignore_value && !put.value.is_empty() {
        return Err(OpError::ValueProvided);
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(OpError::LeaseProvided);
    }
    Ok(())
}

/// Checks a deletion.
pub fn delete(delete: &DeleteRange) -> Result<(), OpError> {
    non_empty(delete.keys.start())
}

/// Checks a transaction: sizes and keys first, then that no key is written twice.
pub fn txn(txn: &Txn) -> Result<(), OpError> {
    sizes(txn, MAX_TXN_OPS, 0)?;
    written(&txn.success)?;
    written(&txn.failure)?;
    Ok(())
}

fn non_empty(key: &Bytes) -> Result<(), OpError> {
    if key.is_empty() {
        Err(OpError::EmptyKey)
    } else {
        Ok(())
    }
}

/// Refuses a key that is too long to be stored. etcd bounds only the whole request.
pub(crate) fn storable(key: &Bytes) -> Result<(), OpError> {
    // Most keys are short: only long ones are looked through.
    let long = key.len() > MAX_KEY_BYTES / 2
        && key.len() + key.iter().filter(|byte| **byte == 0).count() > MAX_KEY_BYTES;
    if long {
        Err(OpError::RequestTooLarge)
    } else {
        Ok(())
    }
}

/// A nested transaction may use what its parent's longest list left over.
fn sizes(txn: &Txn, budget: usize, depth: usize) -> Result<(), OpError> {
    let used = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if used > budget || depth > MAX_TXN_DEPTH {
        return Err(OpError::TooManyOps);
    }
    for compare in &txn.compare {
        non_empty(compare.keys.start())?;
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            Op::Range(op) => range(op)?,
            Op::Put(op) => put(op)?,
            Op::Delete(op) => delete(op)?,
            Op::Txn(op) => sizes(op, budget - used, depth + 1)?,
            Op::Nothing => return Err(OpError::KeyNotFound),
        }
    }
    Ok(())
}

/// What one list of operations writes.
#[derive(Default)]
struct Written<'a> {
    puts: BTreeSet<&'a Bytes>,
    deletes: Vec<&'a KeyRange>,
}

impl Written<'_> {
    fn deletes(&self, key: &Bytes) -> bool {
        self.deletes.iter().any(|keys| keys.contains(key))
    }
}

/// Fails when a key is put twice, or put and deleted. Two deletions may overlap, and so may the two branches of one
/// nested transaction, of which only one runs.
fn written(ops: &[Op]) -> Result<Written<'_>, OpError> {
    let mut all = Written::default();
    for op in ops {
        if let Op::Delete(delete) = op {
            all.deletes.push(&delete.keys);
        }
    }
    for op in ops {
        let Op::Txn(nested) = op else { continue };
        let success = written(&nested.success)?;
        let failure = written(&nested.failure)?;
        for key in &success.puts {
            if all.puts.contains(key) || all.deletes(key) {
                return Err(OpError::DuplicateKey);
            }
        }
        all.puts.extend(&success.puts);
        for key in &failure.puts {
            if (all.puts.contains(key) && !success.puts.contains(key)) || all.deletes(key) {
                return Err(OpError::DuplicateKey);
            }
        }
        all.puts.extend(&failure.puts);
        all.deletes.extend(success.deletes);
        all.deletes.extend(failure.deletes);
    }
    for op in ops {
        let Op::Put(put) = op else { continue };
        if all.deletes(&put.key) || !all.puts.insert(&put.key) {
            return Err(OpError::DuplicateKey);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str) -> Op {
        Op::Put(Put {
            key: Bytes::from_static(key.as_bytes()),
            ..Put::default()
        })
    }

    fn delete(key: &'static str, end: &'static str) -> Op {
        let keys = KeyRange::new(
            Bytes::from_static(key.as_bytes()),
            Bytes::from_static(end.as_bytes()),
        );
        Op::Delete(DeleteRange { keys, prev_kv: false })
    }

    fn nested(success: Vec<Op>, failure: Vec<Op>) -> Op {
        Op::Txn(Txn {
            compare: vec![],
            success,
            failure,
        })
    }

    fn verdict(success: Vec<Op>) -> Result<(), OpError> {
        txn(&Txn {
            compare: vec![],
            success,
            failure: vec![],
        })
    }

    #[test]
    fn a_key_is_written_once() {
        let duplicate = Err(OpError::DuplicateKey);
        assert_eq!(verdict(vec![put("a"), put("b")]), Ok(()));
        assert_eq!(verdict(vec![put("a"), put("a")]), duplicate);
        assert_eq!(verdict(vec![put("b"), delete("a", "c")]), duplicate);
        assert_eq!(verdict(vec![put("c"), delete("a", "c")]), Ok(()));
        assert_eq!(verdict(vec![delete("a", "c"), delete("b", "")]), Ok(()));
        assert_eq!(verdict(vec![put("a"), nested(vec![put("a")], vec![])]), duplicate);
        assert_eq!(verdict(vec![nested(vec![put("a")], vec![put("a")])]), Ok(()));
        assert_eq!(
            verdict(vec![
                nested(vec![put("a")], vec![]),
                nested(vec![], vec![put("a")])
            ]),
            duplicate
        );
        assert_eq!(
            verdict(vec![delete("a", ""), nested(vec![], vec![put("a")])]),
            duplicate
        );
        assert_eq!(
            verdict(vec![put("a"), nested(vec![delete("a", "")], vec![])]),
            duplicate
        );
        assert_eq!(
            verdict(vec![
                nested(vec![delete("a", "")], vec![]),
                nested(vec![put("a")], vec![])
            ]),
            duplicate
        );
    }

    #[test]
    fn both_branches_are_checked_apart() {
        let apart = Txn {
            compare: vec![],
            success: vec![put("a")],
            failure: vec![put("a")],
        };
        assert_eq!(txn(&apart), Ok(()));
    }

    #[test]
    fn sizes_come_first_and_nested_transactions_share_the_budget() {
        let many = |n| (0..n).map(|_| put("same")).collect::<Vec<_>>();
        assert_eq!(verdict(many(MAX_TXN_OPS + 1)), Err(OpError::TooManyOps));
        assert_eq!(verdict(many(MAX_TXN_OPS)), Err(OpError::DuplicateKey));
        let child = |n: usize| nested((0..n).map(|_| delete("x", "")).collect(), vec![]);
        assert_eq!(verdict(vec![child(MAX_TXN_OPS - 1)]), Ok(()));
        assert_eq!(verdict(vec![child(MAX_TXN_OPS)]), Err(OpError::TooManyOps));
        assert_eq!(verdict(vec![put("")]), Err(OpError::EmptyKey));
    }
}
