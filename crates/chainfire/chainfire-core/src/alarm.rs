//! Alarms: conditions of single members that the whole cluster knows of, and what is refused while they last.

use std::collections::BTreeSet;

use crate::{Command, Op, OpError, Txn};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlarmKind {
    /// A member stores more than its quota.
    NoSpace,
    /// A member's state is not that of the others.
    Corrupt,
}

/// One alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Alarm {
    /// What is wrong.
    pub kind: AlarmKind,
    /// With which member; 0: nobody can tell.
    pub member: u64,
}

/// The alarms that are on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Alarms(BTreeSet<Alarm>);

impl Alarms {
    /// Puts alarms back from storage.
    pub(crate) fn restore(alarms: impl IntoIterator<Item = Alarm>) -> Alarms {
        Alarms(alarms.into_iter().collect())
    }

    /// Switches an alarm on; whether it was off.
    pub(crate) fn raise(&mut self, alarm: Alarm) -> bool {
        self.0.insert(alarm)
    }

    /// Switches an alarm off; whether it was on.
    pub(crate) fn clear(&mut self, alarm: Alarm) -> bool {
        self.0.remove(&alarm)
    }

    /// Whether this alarm is on.
    pub fn is_on(&self, alarm: Alarm) -> bool {
        self.0.contains(&alarm)
    }

    /// All that are on, in order.
    pub fn iter(&self) -> impl Iterator<Item = Alarm> {
        self.0.iter().copied()
    }

    /// Why a command is not applied while these alarms last.
    ///
    /// A state that is wrong on one known member stops that member, not the cluster; when nobody can tell which member
    /// is right, nothing more is built on it.
    pub(crate) fn refuse(&self, command: &Command) -> Option<OpError> {
        let unknown = Alarm {
            kind: AlarmKind::Corrupt,
            member: 0,
        };
        if self.is_on(unknown) && !matches!(command, Command::Alarm(_) | Command::LeaseExpire { .. }) {
            return Some(OpError::Corrupt);
        }
        let grows = match command {
            Command::Put(_) | Command::LeaseGrant { .. } => true,
            Command::Txn(txn) => puts(txn),
            _ => false,
        };
        let full = self.0.iter().any(|alarm| alarm.kind == AlarmKind::NoSpace);
        (grows && full).then_some(OpError::NoSpace)
    }
}

/// Whether some branch of a transaction puts something.
fn puts(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        Op::Put(_) => true,
        Op::Txn(txn) => puts(txn),
        Op::Range(_) | Op::Delete(_) | Op::Nothing => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeleteRange, KeyRange, Put};

    #[test]
    fn a_full_member_stops_what_grows_and_nothing_else() {
        let mut alarms = Alarms::default();
        let put = Command::Put(Put::default());
        let nested = Command::Txn(Txn {
            failure: vec![Op::Txn(Txn {
                success: vec![Op::Put(Put::default())],
                ..Txn::default()
            })],
            ..Txn::default()
        });
        let delete = Command::Delete(DeleteRange {
            keys: KeyRange::single(bytes::Bytes::from_static(b"k")),
            prev_kv: false,
        });
        let grant = Command::LeaseGrant { id: 1, ttl_s: 1 };
        assert_eq!(alarms.refuse(&put), None);
        let full = |member| Alarm {
            kind: AlarmKind::NoSpace,
            member,
        };
        assert!(alarms.raise(full(7)) && alarms.raise(full(8)) && !alarms.raise(full(8)));
        for command in [&put, &nested, &grant] {
            assert_eq!(alarms.refuse(command), Some(OpError::NoSpace));
        }
        for command in [
            &delete,
            &Command::Compact { revision: 1 },
            &Command::LeaseRevoke { id: 1 },
        ] {
            assert_eq!(alarms.refuse(command), None);
        }
        assert!(alarms.clear(full(7)) && !alarms.clear(full(7)));
        assert_eq!(
            alarms.refuse(&put),
            Some(OpError::NoSpace),
            "another member is full"
        );
        assert!(alarms.clear(full(8)));
        assert_eq!(alarms.refuse(&put), None);
    }

    #[test]
    fn only_a_corruption_that_nobody_can_place_stops_everything() {
        let mut alarms = Alarms::default();
        let corrupt = |member| Alarm {
            kind: AlarmKind::Corrupt,
            member,
        };
        let revoke = Command::LeaseRevoke { id: 1 };
        alarms.raise(corrupt(7));
        assert_eq!(alarms.refuse(&revoke), None);
        alarms.raise(corrupt(0));
        assert_eq!(alarms.refuse(&revoke), Some(OpError::Corrupt));
        assert_eq!(alarms.refuse(&Command::LeaseExpire { ids: vec![1] }), None);
    }
}
