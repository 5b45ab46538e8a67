//! The state: users, roles, and the ranges that follow from them.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use crate::{KeyRange, OpError, auth::RangeSet};

/// Name of the role that may do everything, and of the user that must have it before auth can be switched on.
pub const ROOT: &str = "root";

/// What a permission is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Access {
    Read,
    Write,
    ReadWrite,
}

/// A range of keys and what may be done with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    /// What for.
    pub access: Access,
    /// First key.
    pub key: Bytes,
    /// As in a range request: empty for one key, `\0` for everything from `key` on.
    pub range_end: Bytes,
}

impl Permission {
    /// Everything: what the root role stands for.
    pub fn everything() -> Permission {
        Permission {
            access: Access::ReadWrite,
            key: Bytes::new(),
            range_end: Bytes::from_static(b"\0"),
        }
    }

    pub(crate) fn check(&self) -> Result<(), OpError> {
        let keys = self.keys();
        if self.key.is_empty() || keys.is_empty() {
            return Err(OpError::InvalidAuthMgmt);
        }
        Ok(())
    }

    fn keys(&self) -> KeyRange {
        KeyRange::new(self.key.clone(), self.range_end.clone())
    }
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// Hash of the password; empty: no password fits.
    pub password: Bytes,
    /// Comes in by certificate only.
    pub no_password: bool,
    /// Names of its roles, in order.
    pub roles: Vec<String>,
    /// Revision that made the user or last changed the password: tokens and watches from before are not this user's.
    pub since: u64,
}

impl User {
    /// Whether it has a role.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|name| name == role)
    }
}

/// A role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// The name.
    pub name: String,
    /// By key; those of one key in the order of their granting.
    pub permissions: Vec<Permission>,
}

/// What the roles of a user come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rights {
    pub(crate) read: RangeSet,
    pub(crate) write: RangeSet,
}

/// All of auth. Clones share users and roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    pub(crate) enabled: bool,
    pub(crate) revision: u64,
    pub(crate) users: BTreeMap<String, Arc<User>>,
    pub(crate) roles: BTreeMap<String, Arc<Role>>,
    /// By user; follows from the two above.
    rights: BTreeMap<String, Arc<Rights>>,
}

impl Default for Auth {
    fn default() -> Auth {
        Auth {
            enabled: false,
            revision: 1,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            rights: BTreeMap::new(),
        }
    }
}

impl Auth {
    /// From what was stored.
    pub fn restore(
        enabled: bool,
        revision: u64,
        users: impl IntoIterator<Item = User>,
        roles: impl IntoIterator<Item = Role>,
    ) -> Auth {
        let mut auth = Auth {
            enabled,
            revision,
            ..Auth::default()
        };
        auth.roles = roles
            .into_iter()
            .map(|role| (role.name.clone(), Arc::new(role)))
            .collect();
        for user in users {
            auth.set_user(user);
        }
        auth
    }

    /// Whether users and their rights count.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Grows with each change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A user.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name).map(Arc::as_ref)
    }

    /// A role.
    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name).map(Arc::as_ref)
    }

    /// All users by name.
    pub fn users(&self) -> impl Iterator<Item = &User> {
        self.users.values().map(Arc::as_ref)
    }

    /// All roles by name.
    pub fn roles(&self) -> impl Iterator<Item = &Role> {
        self.roles.values().map(Arc::as_ref)
    }

    pub(crate) fn rights(&self, user: &str) -> Option<&Rights> {
        self.rights.get(user).map(Arc::as_ref)
    }

    pub(crate) fn set_user(&mut self, user: User) {
        let name = user.name.clone();
        self.users.insert(name.clone(), Arc::new(user));
        self.refresh(&name);
    }

    pub(crate) fn remove_user(&mut self, name: &str) {
        self.users.remove(name);
        self.rights.remove(name);
    }

    pub(crate) fn set_role(&mut self, role: Role) {
        let name = role.name.clone();
        self.roles.insert(name.clone(), Arc::new(role));
        self.refresh_holders(&name);
    }

    /// Works out anew what the holders of a role may do.
    pub(crate) fn refresh_holders(&mut self, role: &str) {
        let holders: Vec<String> = self
            .users()
            .filter(|user| user.has_role(role))
            .map(|user| user.name.clone())
            .collect();
        for name in holders {
            self.refresh(&name);
        }
    }

    fn refresh(&mut self, name: &str) {
        let Some(user) = self.users.get(name) else { return };
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for role in user.roles.iter().filter_map(|role| self.roles.get(role)) {
            for permission in &role.permissions {
                if permission.access != Access::Write {
                    read.push(permission.keys());
                }
                if permission.access != Access::Read {
                    write.push(permission.keys());
                }
            }
        }
        let rights = Rights {
            read: RangeSet::union(&read),
            write: RangeSet::union(&write),
        };
        self.rights.insert(name.to_owned(), Arc::new(rights));
    }
}
