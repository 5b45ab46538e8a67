//! Which change of the members is allowed: etcd's rules (its strict reconfiguration check, always on here), pure.
//!
//! A voter that does not run counts against the majority: a change that leaves fewer running voters than the next
//! majority needs would stop the cluster, and is refused.

use chainfire_core::OpError;
use raft_host::NodeId;

use super::urls;

/// Learners at one time.
const MAX_LEARNERS: usize = 1;
/// A learner may vote when it has this share of the leader's log, per cent.
const READY_PERCENT: u64 = 90;

/// A member as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) id: NodeId,
    pub(crate) address: String,
    pub(crate) learner: bool,
    /// It has published itself once.
    pub(crate) started: bool,
    /// It was heard of lately; the leader itself always.
    pub(crate) active: bool,
    /// The last entry that it is known to have.
    pub(crate) matched: u64,
}

/// All members as the leader sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) leader: NodeId,
    pub(crate) members: Vec<Seen>,
    /// The last entry of the leader's log.
    pub(crate) last: u64,
}

fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

impl View {
    fn get(&self, id: NodeId) -> Option<&Seen> {
        self.members.iter().find(|member| member.id == id)
    }

    fn voters(&self) -> impl Iterator<Item = &Seen> {
        self.members.iter().filter(|member| !member.learner)
    }

    fn active(&self) -> usize {
        self.voters().filter(|member| member.active).count()
    }

    fn started(&self) -> usize {
        self.voters().filter(|member| member.started).count()
    }

    /// May a member with this address be added?
    pub(crate) fn may_add(&self, address: &str, learner: bool) -> Result<(), OpError> {
        let (voters, started) = (self.voters().count(), self.started());
        let alone = voters == 1 && started == 1;
        if !learner && !alone && started < majority(voters + 1) {
            return Err(OpError::MemberNotEnoughStarted);
        }
        // The new one counts as not running yet.
        if voters > 1 && self.active() < majority(voters + 1) {
            return Err(OpError::Unhealthy);
        }
        if self
            .members
            .iter()
            .any(|member| urls::overlap(&member.address, address))
        {
            return Err(OpError::PeerUrlExists);
        }
        if learner && self.members.iter().filter(|member| member.learner).count() >= MAX_LEARNERS {
            return Err(OpError::TooManyLearners);
        }
        Ok(())
    }

    /// May this member be removed?
    pub(crate) fn may_remove(&self, id: NodeId) -> Result<(), OpError> {
        let member = self.get(id).ok_or(OpError::MemberNotFound)?;
        if member.learner {
            return Ok(());
        }
        let rest = || self.voters().filter(|voter| voter.id != id);
        if rest().filter(|voter| voter.started).count() < majority(rest().count()) {
            return Err(OpError::MemberNotEnoughStarted);
        }
        // One that does not run is no part of the majority that does.
        if id != self.leader && !member.active {
            return Ok(());
        }
        if self.active() - 1 < 1 + (self.voters().count() - 1) / 2 {
            return Err(OpError::Unhealthy);
        }
        Ok(())
    }

    /// May this member move to another address?
    pub(crate) fn may_update(&self, id: NodeId, address: &str) -> Result<(), OpError> {
        self.get(id).ok_or(OpError::MemberNotFound)?;
        let taken = |member: &&Seen| member.id != id && urls::overlap(&member.address, address);
        if self.members.iter().any(|member| taken(&member)) {
            return Err(OpError::PeerUrlExists);
        }
        Ok(())
    }

    /// May this learner vote?
    pub(crate) fn may_promote(&self, id: NodeId) -> Result<(), OpError> {
        let member = self.get(id).ok_or(OpError::MemberNotFound)?;
        if !member.learner {
            return Err(OpError::MemberNotLearner);
        }
        let ready = self.last.saturating_mul(READY_PERCENT) / 100;
        if !member.active || !member.started || member.matched < ready {
            return Err(OpError::LearnerNotReady);
        }
        if self.started() + 1 < majority(self.voters().count() + 1) {
            return Err(OpError::MemberNotEnoughStarted);
        }
        Ok(())
    }

    /// Who should lead when the leader goes: the running voter that has most of the log.
    pub(crate) fn successor(&self) -> Option<NodeId> {
        self.voters()
            .filter(|member| member.id != self.leader && member.active)
            .max_by_key(|member| (member.matched, member.id))
            .map(|member| member.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members by letters: `L` the leader, `v` a voter, `d` one that is down, `n` one that was never started,
    /// `l` a learner that has everything, `s` one that lags.
    fn view(picture: &str) -> View {
        let member = |(n, kind): (usize, char)| Seen {
            id: n as u64 + 1,
            address: format!("https://m{}:1", n + 1),
            learner: matches!(kind, 'l' | 's'),
            started: kind != 'n',
            active: !matches!(kind, 'd' | 'n'),
            matched: if matches!(kind, 's' | 'n') { 10 } else { 100 },
        };
        View {
            leader: 1,
            members: picture.chars().enumerate().map(member).collect(),
            last: 100,
        }
    }

    #[test]
    fn additions() {
        use OpError as E;
        let table = [
            ("L", false, Ok(())),
            ("L", true, Ok(())),
            ("Lvv", false, Ok(())),
            ("Lvd", false, Err(E::Unhealthy)),
            ("Lvd", true, Err(E::Unhealthy)),
            ("Ln", false, Err(E::MemberNotEnoughStarted)),
            ("Lvn", false, Err(E::MemberNotEnoughStarted)),
            ("Lvvvd", false, Ok(())),
            ("Lvvdd", false, Err(E::Unhealthy)),
            ("Lvvl", false, Ok(())),
            ("Lvvl", true, Err(E::TooManyLearners)),
        ];
        for (picture, learner, expected) in table {
            let found = view(picture).may_add("https://new:1", learner);
            assert_eq!(found, expected, "{picture} {learner}");
        }
        assert_eq!(view("Lvv").may_add("http://m2:1", false), Err(E::PeerUrlExists));
    }

    #[test]
    fn removals() {
        use OpError as E;
        let table = [
            ("L", 1, Err(E::MemberNotEnoughStarted)),
            ("L", 9, Err(E::MemberNotFound)),
            ("Lv", 2, Ok(())),
            ("Lv", 1, Ok(())),
            ("Ld", 2, Ok(())),
            ("Ln", 2, Ok(())),
            ("Ln", 1, Err(E::MemberNotEnoughStarted)),
            ("Lvv", 1, Ok(())),
            ("Lvd", 3, Ok(())),
            ("Lvd", 2, Err(E::Unhealthy)),
            ("Lvd", 1, Err(E::Unhealthy)),
            ("Lvs", 3, Ok(())),
        ];
        for (picture, id, expected) in table {
            assert_eq!(view(picture).may_remove(id), expected, "{picture} {id}");
        }
    }

    #[test]
    fn promotions_and_updates() {
        use OpError as E;
        let table = [
            ("Ll", 2, Ok(())),
            ("Ls", 2, Err(E::LearnerNotReady)),
            ("Lv", 2, Err(E::MemberNotLearner)),
            ("Lv", 3, Err(E::MemberNotFound)),
            ("Lnnl", 4, Err(E::MemberNotEnoughStarted)),
        ];
        for (picture, id, expected) in table {
            assert_eq!(view(picture).may_promote(id), expected, "{picture} {id}");
        }
        let three = view("Lvv");
        assert_eq!(three.may_update(2, "https://m2:1"), Ok(()));
        assert_eq!(three.may_update(2, "https://m3:1"), Err(E::PeerUrlExists));
        assert_eq!(three.may_update(7, "https://m7:1"), Err(E::MemberNotFound));
    }

    #[test]
    fn the_best_voter_succeeds() {
        assert_eq!(view("L").successor(), None);
        assert_eq!(view("Lds").successor(), None);
        assert_eq!(view("Ldvl").successor(), Some(3));
    }
}
