//! Transactions. As in etcd, the conditions of nested transactions too are judged on the state *before* the first
//! write, then everything on the chosen path is checked, and only then is anything changed.

use crate::{
    Compare, CompareOp, CompareTarget, Op, OpError, OpReply, Range, Store, Txn, TxnOutcome, Version, check,
    planted::{self, Bug},
    storage::RevisionStore,
    store::{Failure, Writer},
};

/// Which branch of a transaction runs, and of those nested in it, in order of appearance.
struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

fn branch<'a>(txn: &'a Txn, path: &Path) -> &'a [Op] {
    if path.succeeded {
        &txn.success
    } else {
        &txn.failure
    }
}

fn choose<S: RevisionStore>(store: &Store<S>, txn: &Txn) -> Result<Path, Failure<S::Error>> {
    let mut path = Path {
        succeeded: true,
        nested: Vec::new(),
    };
    for compare in &txn.compare {
        if !holds(store, compare)? {
            path.succeeded = false;
            break;
        }
    }
    let mut nested = Vec::new();
    for op in branch(txn, &path) {
        if let Op::Txn(txn) = op {
            nested.push(choose(store, txn)?);
        }
    }
    path.nested = nested;
    Ok(path)
}

fn holds<S: RevisionStore>(store: &Store<S>, compare: &Compare) -> Result<bool, Failure<S::Error>> {
    let mut any = false;
    for (_, version) in store.index().range(&compare.keys) {
        any = true;
        if !version_holds(store, compare, version)? {
            return Ok(false);
        }
    }
    // A value cannot be compared with a missing key's; the numbers of a missing key are 0.
    let missing = Version {
        at: crate::Point { main: 0, sub: 0 },
        create_revision: 0,
        version: 0,
        lease: 0,
    };
    match (&compare.target, any) {
        (_, true) => Ok(true),
        (CompareTarget::Value(_), false) => Ok(planted::is(Bug::MissingValueHolds)),
        (_, false) => version_holds(store, compare, missing),
    }
}

fn version_holds<S: RevisionStore>(
    store: &Store<S>,
    compare: &Compare,
    version: Version,
) -> Result<bool, Failure<S::Error>> {
    let ordering = match &compare.target {
        CompareTarget::Version(value) => version.version.cmp(value),
        CompareTarget::Create(value) => version.create_revision.cmp(value),
        CompareTarget::Mod(value) => version.at.main.cmp(value),
        CompareTarget::Lease(value) => version.lease.cmp(value),
        CompareTarget::Value(value) => {
            let event = store.storage().get(version.at).map_err(Failure::Storage)?;
            event
                .ok_or(Failure::Refused(OpError::Corrupt))?
                .kv
                .value
                .cmp(value)
        }
    };
    Ok(match compare.op {
        CompareOp::Equal => ordering.is_eq(),
        CompareOp::NotEqual => ordering.is_ne(),
        CompareOp::Greater => ordering.is_gt(),
        CompareOp::Less => ordering.is_lt(),
    })
}

/// Calls `check` for every operation on the chosen path.
fn on_path<'a>(
    txn: &'a Txn,
    path: &Path,
    check: &mut impl FnMut(&'a Op) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let mut nested = path.nested.iter();
    for op in branch(txn, path) {
        check(op)?;
        if let (Op::Txn(txn), Some(path)) = (op, nested.next_if_txn(op)) {
            on_path(txn, path, check)?;
        }
    }
    Ok(())
}

/// Takes the next path only where the operation is a transaction.
trait NextIfTxn<'p> {
    fn next_if_txn(&mut self, op: &Op) -> Option<&'p Path>;
}

impl<'p> NextIfTxn<'p> for std::slice::Iter<'p, Path> {
    fn next_if_txn(&mut self, op: &Op) -> Option<&'p Path> {
        if matches!(op, Op::Txn(_)) {
            self.next()
        } else {
            None
        }
    }
}

fn check_range<S: RevisionStore>(store: &Store<S>, range: &Range) -> Result<(), OpError> {
    if range.revision == 0 {
        Ok(())
    } else if range.revision > store.revision() {
        Err(OpError::FutureRevision)
    } else if range.revision < store.compacted() {
        Err(OpError::Compacted)
    } else {
        Ok(())
    }
}

/// Answers a transaction that only reads.
pub(crate) fn read<S: RevisionStore>(store: &Store<S>, txn: &Txn) -> Result<TxnOutcome, Failure<S::Error>> {
    let path = choose(store, txn)?;
    on_path(txn, &path, &mut |op| match op {
        Op::Range(range) => check_range(store, range),
        _ => Ok(()),
    })?;
    let mut outcome = read_ops(store, txn, &path)?;
    outcome.revision = store.revision();
    Ok(outcome)
}

fn read_ops<S: RevisionStore>(
    store: &Store<S>,
    txn: &Txn,
    path: &Path,
) -> Result<TxnOutcome, Failure<S::Error>> {
    let mut outcome = TxnOutcome {
        succeeded: path.succeeded,
        ..TxnOutcome::default()
    };
    let mut nested = path.nested.iter();
    for op in branch(txn, path) {
        outcome.replies.push(match (op, nested.next_if_txn(op)) {
            (Op::Range(range), _) => OpReply::Range(store.range(range)?),
            (Op::Txn(txn), Some(path)) => OpReply::Txn(read_ops(store, txn, path)?),
            _ => unreachable!("a reading transaction has no other operation"),
        });
    }
    Ok(outcome)
}

impl<S: RevisionStore> Writer<'_, S> {
    pub(crate) fn txn(&mut self, txn: &Txn) -> Result<TxnOutcome, Failure<S::Error>> {
        let path = choose(self.store, txn)?;
        on_path(txn, &path, &mut |op| match op {
            Op::Put(put) => {
                let needs_key = put.ignore_value || put.ignore_lease;
                if needs_key && self.store.index().get(&put.key).is_none() {
                    return Err(OpError::KeyNotFound);
                }
                check::storable(&put.key)?;
                self.check_lease(put.lease)
            }
            Op::Nothing => Err(OpError::KeyNotFound),
            _ => Ok(()),
        })?;
        on_path(txn, &path, &mut |op| match op {
            Op::Range(range) => check_range(self.store, range),
            _ => Ok(()),
        })?;
        let mut outcome = self.run(txn, &path)?;
        outcome.revision = self.now();
        Ok(outcome)
    }

    /// The revision that a range within a transaction sees.
    fn seen(&self) -> i64 {
        if planted::is(Bug::ReadsPast) {
            self.store.revision()
        } else {
            self.now()
        }
    }

    #[cfg(feature = "planted-bugs")]
    fn judges_late(&self) -> bool {
        self.store.planted() == Some(crate::faulty::PlantedBug::LateCompares)
    }

    fn run(&mut self, txn: &Txn, path: &Path) -> Result<TxnOutcome, Failure<S::Error>> {
        let mut outcome = TxnOutcome {
            succeeded: path.succeeded,
            ..TxnOutcome::default()
        };
        let mut nested = path.nested.iter();
        for op in branch(txn, path) {
            let reply = match (op, nested.next_if_txn(op)) {
                (Op::Range(range), _) => OpReply::Range(self.store.range_at(range, self.seen())?),
                (Op::Put(put), _) => OpReply::Put(self.put(put)?),
                (Op::Delete(delete), _) => OpReply::Delete(self.delete(delete)?),
                #[cfg(feature = "planted-bugs")]
                (Op::Txn(txn), _) if self.judges_late() => {
                    let path = choose(self.store, txn)?;
                    OpReply::Txn(self.run(txn, &path)?)
                }
                (Op::Txn(txn), Some(path)) => OpReply::Txn(self.run(txn, path)?),
                (Op::Txn(_), None) => unreachable!("every transaction on the path has a path"),
                // Checked before it was proposed; refused here too, whoever proposed it.
                (Op::Nothing, _) => return Err(OpError::KeyNotFound.into()),
            };
            outcome.replies.push(reply);
        }
        Ok(outcome)
    }
}
