//! Who may do what: the same checks before a read and within the application of a write.

use crate::{
    Command, KeyRange, Leases, Op, OpError, Put, Txn,
    auth::{Auth, AuthCommand, ROOT, User},
};

/// On whose behalf something is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// The members themselves, or somebody whose rights are fixed outside of auth.
    System,
    /// A user, as known at a revision of auth. Without a name and at revision 0: nobody.
    User {
        /// The name.
        name: String,
        /// The revision.
        revision: u64,
    },
}

impl By {
    /// Nobody in particular: enough while auth is off.
    pub const NOBODY: By = By::User {
        name: String::new(),
        revision: 0,
    };
}

impl Auth {
    /// The user's name that rights are to be looked up for; `None` when everything is allowed.
    fn subject<'a>(&self, by: &'a By) -> Result<Option<&'a str>, OpError> {
        let By::User { name, revision } = by else {
            return Ok(None);
        };
        if !self.enabled {
            return Ok(None);
        }
        if *revision == 0 || name.is_empty() {
            return Err(OpError::UserEmpty);
        }
        if *revision < self.revision {
            return Err(OpError::AuthOldRevision);
        }
        Ok(Some(name))
    }

    /// Whether it may ask for what concerns nobody's keys.
    pub fn known(&self, by: &By) -> Result<(), OpError> {
        self.subject(by).map(|_| ())
    }

    /// Whether it may read every key of the range.
    pub fn may_read(&self, by: &By, keys: &KeyRange) -> Result<(), OpError> {
        let Some(name) = self.subject(by)? else {
            return Ok(());
        };
        allow(self.reads(name, keys))
    }

    /// Whether it may write every key of the range.
    pub fn may_write(&self, by: &By, keys: &KeyRange) -> Result<(), OpError> {
        let Some(name) = self.subject(by)? else {
            return Ok(());
        };
        allow(self.is_root(name) || self.rights(name).is_some_and(|rights| rights.write.covers(keys)))
    }

    /// Whether it may do what concerns everybody.
    pub fn may_administer(&self, by: &By) -> Result<(), OpError> {
        let Some(name) = self.subject(by)? else {
            return Ok(());
        };
        self.user(name).ok_or(OpError::UserNotFound)?;
        allow(self.is_root(name))
    }

    /// Whether it may see a user: itself, or as an administrator.
    pub fn may_see_user(&self, by: &By, name: &str) -> Result<(), OpError> {
        match by {
            By::User { name: own, .. } if own == name => self.known(by),
            _ => self.may_administer(by),
        }
    }

    /// Whether it may see a role: one that it has, or as an administrator.
    pub fn may_see_role(&self, by: &By, role: &str) -> Result<(), OpError> {
        match by {
            By::User { name, .. } if self.user(name).is_some_and(|user| user.has_role(role)) => {
                self.known(by)
            }
            _ => self.may_administer(by),
        }
    }

    /// Whether a user reads the range, at whatever revision it came in.
    pub fn reads(&self, name: &str, keys: &KeyRange) -> bool {
        self.is_root(name) || self.rights(name).is_some_and(|rights| rights.read.covers(keys))
    }

    fn is_root(&self, name: &str) -> bool {
        self.user(name).is_some_and(|user: &User| user.has_role(ROOT))
    }

    /// Whether it may write every key that hangs on a lease: to end the lease is to delete them.
    pub fn may_end_lease(&self, by: &By, leases: &Leases, id: i64) -> Result<(), OpError> {
        let Some(lease) = leases.get(id).filter(|_| self.enabled) else {
            return Ok(());
        };
        for key in &lease.keys {
            self.may_write(by, &KeyRange::single(key.clone()))?;
        }
        Ok(())
    }

    /// Whether it may read every key that hangs on any lease.
    pub fn may_see_leases(&self, by: &By, leases: &Leases) -> Result<(), OpError> {
        let Some(name) = self.subject(by)? else {
            return Ok(());
        };
        if self.is_root(name) {
            return Ok(());
        }
        let keys = leases.iter().flat_map(|(_, lease)| &lease.keys);
        for key in keys {
            allow(self.reads(name, &KeyRange::single(key.clone())))?;
        }
        Ok(())
    }

    /// Whether it may do everything that a transaction names, on both branches.
    pub fn may_txn(&self, by: &By, leases: &Leases, txn: &Txn) -> Result<(), OpError> {
        for compare in &txn.compare {
            self.may_read(by, &compare.keys)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                Op::Range(range) => self.may_read(by, &range.keys)?,
                Op::Put(put) => self.may_put(by, leases, put)?,
                Op::Delete(delete) => self.may_delete(by, &delete.keys, delete.prev_kv)?,
                Op::Txn(txn) => self.may_txn(by, leases, txn)?,
                Op::Nothing => {}
            }
        }
        Ok(())
    }

    fn may_put(&self, by: &By, leases: &Leases, put: &Put) -> Result<(), OpError> {
        let key = KeyRange::single(put.key.clone());
        self.may_write(by, &key)?;
        // Its other keys may not be its own: then it could not end the lease, and must not hang a key on it.
        self.may_end_lease(by, leases, put.lease)?;
        if put.prev_kv {
            self.may_read(by, &key)?;
        }
        Ok(())
    }

    fn may_delete(&self, by: &By, keys: &KeyRange, prev_kv: bool) -> Result<(), OpError> {
        self.may_write(by, keys)?;
        if prev_kv {
            self.may_read(by, keys)?;
        }
        Ok(())
    }

    /// Whether a command may be applied.
    pub(crate) fn permit(&self, by: &By, leases: &Leases, command: &Command) -> Result<(), OpError> {
        match command {
            Command::Put(put) => self.may_put(by, leases, put),
            Command::Delete(delete) => self.may_delete(by, &delete.keys, delete.prev_kv),
            Command::Txn(txn) => self.may_txn(by, leases, txn),
            // etcd lets everybody compact; here it takes a user.
            Command::Compact { .. } | Command::LeaseGrant { .. } => self.known(by),
            Command::LeaseRevoke { id } => {
                self.known(by)?;
                self.may_end_lease(by, leases, *id)
            }
            Command::LeaseExpire { .. } | Command::LeaseCheckpoint { .. } | Command::Alarm(_) => {
                self.may_administer(by)
            }
            // Whoever asks for a token has none yet.
            Command::Auth(AuthCommand::Authenticate { .. }) => Ok(()),
            Command::Auth(_) => self.may_administer(by),
        }
    }
}

fn allow(allowed: bool) -> Result<(), OpError> {
    if allowed {
        Ok(())
    } else {
        Err(OpError::PermissionDenied)
    }
}
