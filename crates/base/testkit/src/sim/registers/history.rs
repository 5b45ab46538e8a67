//! What clients saw, and whether one register each could have answered so.

use std::time::Duration;

use porcupine_rs::{CheckResult, Model, Operation};

/// Longest search for an order. Past it the verdict is "unknown", which is a failure.
const CHECK_TIME: Duration = Duration::from_secs(20);

/// One finished or abandoned operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Written.
    Put(u64),
    /// What was read.
    Get(Option<u64>),
    /// Expected, new, whether it was exchanged (`None`: nobody knows).
    Cas(u64, u64, Option<bool>),
}

#[derive(Clone, Debug)]
/// One operation of one client.
pub struct Record {
    /// Who.
    pub client: u32,
    /// Which register.
    pub key: u64,
    /// What.
    pub op: Op,
    /// When it began, on any clock.
    pub called: u64,
    /// `None`: never returned; it may take effect at any time after the call, or never.
    pub returned: Option<u64>,
}

/// A register that begins empty.
#[derive(Clone, Debug)]
pub(crate) struct Register;

impl Model for Register {
    type State = Option<u64>;
    type Op = Op;
    type Metadata = ();

    fn init() -> Option<u64> {
        None
    }

    fn step(state: &Option<u64>, op: &Op) -> (bool, Option<u64>) {
        match op {
            Op::Put(value) => (true, Some(*value)),
            Op::Get(seen) => (seen == state, *state),
            Op::Cas(old, new, outcome) => {
                let fits = *state == Some(*old);
                let possible = outcome.is_none_or(|exchanged| exchanged == fits);
                (possible, if fits { Some(*new) } else { *state })
            }
        }
    }
}

/// Checks every key for itself: registers are independent.
pub fn check(records: &[Record]) -> Result<(), String> {
    let mut keys: Vec<u64> = records.iter().map(|r| r.key).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let operations: Vec<Operation<Register>> = records
            .iter()
            .filter(|r| r.key == key)
            .map(|r| Operation {
                client_id: Some(r.client),
                call_time: i64::try_from(r.called).unwrap_or(i64::MAX),
                return_time: r
                    .returned
                    .map_or(i64::MAX, |t| i64::try_from(t).unwrap_or(i64::MAX)),
                op: r.op.clone(),
                metadata: None,
            })
            .collect();
        match porcupine_rs::check_operations_timeout(&operations, CHECK_TIME) {
            CheckResult::Ok => {}
            CheckResult::Illegal => return Err(format!("register {key} is not linearizable")),
            CheckResult::Unknown => {
                return Err(format!(
                    "register {key}: no verdict in {CHECK_TIME:?}, which counts as a failure"
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(client: u32, op: Op, called: u64, returned: Option<u64>) -> Record {
        Record {
            client,
            key: 1,
            op,
            called,
            returned,
        }
    }

    #[test]
    fn a_stale_read_is_refused_and_a_concurrent_one_is_not() {
        let stale = [
            record(1, Op::Put(1), 0, Some(1)),
            record(1, Op::Put(2), 2, Some(3)),
            record(2, Op::Get(Some(1)), 4, Some(5)),
        ];
        assert!(check(&stale).is_err());
        let concurrent = [
            record(1, Op::Put(1), 0, Some(1)),
            record(1, Op::Put(2), 2, Some(6)),
            record(2, Op::Get(Some(1)), 4, Some(5)),
        ];
        assert_eq!(check(&concurrent), Ok(()));
    }

    #[test]
    fn an_unknown_write_may_show_late_or_never_but_not_before_its_call() {
        let late = [
            record(1, Op::Put(1), 0, Some(1)),
            record(1, Op::Put(2), 2, None),
            record(2, Op::Get(Some(1)), 10, Some(11)),
            record(2, Op::Get(Some(2)), 20, Some(21)),
        ];
        assert_eq!(check(&late), Ok(()));
        assert_eq!(check(&late[..3]), Ok(()));
        let early = [
            record(2, Op::Get(Some(2)), 0, Some(1)),
            record(1, Op::Put(2), 2, None),
        ];
        assert!(check(&early).is_err());
        let back = [
            record(1, Op::Put(1), 0, Some(1)),
            record(1, Op::Put(2), 2, None),
            record(2, Op::Get(Some(2)), 10, Some(11)),
            record(2, Op::Get(Some(1)), 20, Some(21)),
        ];
        assert!(check(&back).is_err());
    }

    #[test]
    fn a_wrong_exchange_is_refused() {
        let wrong = [
            record(1, Op::Put(1), 0, Some(1)),
            record(1, Op::Cas(1, 2, Some(true)), 2, Some(3)),
            record(2, Op::Cas(1, 3, Some(true)), 4, Some(5)),
        ];
        assert!(check(&wrong).is_err());
    }
}
