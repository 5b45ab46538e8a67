//! Administration: how commands change users, roles and the switch, with etcd's checks in etcd's order.

use bytes::Bytes;

use crate::{
    OpError,
    auth::{Auth, Permission, ROOT, Role, User},
};

/// What is asked of auth, but for what changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "etcd's requests of the same names, field by field")]
pub enum AuthCommand {
    Enable,
    Disable,
    /// Gives out a token. Whoever proposes it has checked the password, at the revision told here.
    Authenticate {
        name: String,
        token: String,
        revision: u64,
    },
    UserAdd {
        name: String,
        password: Bytes,
        no_password: bool,
    },
    UserDelete {
        name: String,
    },
    UserChangePassword {
        name: String,
        password: Bytes,
    },
    UserGrantRole {
        user: String,
        role: String,
    },
    UserRevokeRole {
        user: String,
        role: String,
    },
    RoleAdd {
        name: String,
    },
    RoleDelete {
        name: String,
    },
    RoleGrantPermission {
        role: String,
        permission: Option<Permission>,
    },
    RoleRevokePermission {
        role: String,
        key: Bytes,
        range_end: Bytes,
    },
}

/// What a command changed: to be stored, or to be told to the keeper of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthChange {
    /// The switch or the revision.
    Settings,
    /// A user was made or changed.
    User(String),
    /// A user is gone.
    UserGone(String),
    /// A role was made or changed.
    Role(String),
    /// A role is gone.
    RoleGone(String),
    /// Auth was switched off: every token is void.
    Disabled,
    /// The token is valid from now on.
    Token {
        /// Whose.
        user: String,
        /// The user's [`User::since`].
        since: u64,
        /// The token, as it was proposed.
        token: String,
    },
}

type Changes = Result<Vec<AuthChange>, OpError>;

impl Auth {
    /// Applies a command; the right to it has been checked.
    pub(crate) fn apply(&mut self, command: &AuthCommand) -> Changes {
        use AuthCommand as C;
        let before = self.revision;
        let mut changes = match command {
            C::Enable => self.enable(),
            C::Disable => Ok(self.disable()),
            C::Authenticate {
                name,
                token,
                revision,
            } => self.authenticate(name, token, *revision),
            C::UserAdd {
                name,
                password,
                no_password,
            } => self.user_add(name, password, *no_password),
            C::UserDelete { name } => self.user_delete(name),
            C::UserChangePassword { name, password } => self.change_password(name, password),
            C::UserGrantRole { user, role } => self.grant_role(user, role),
            C::UserRevokeRole { user, role } => self.revoke_role(user, role),
            C::RoleAdd { name } => self.role_add(name),
            C::RoleDelete { name } => self.role_delete(name),
            C::RoleGrantPermission { role, permission } => self.grant_permission(role, permission.as_ref()),
            C::RoleRevokePermission { role, key, range_end } => self.revoke_permission(role, key, range_end),
        }?;
        if self.revision != before {
            changes.push(AuthChange::Settings);
        }
        Ok(changes)
    }

    fn enable(&mut self) -> Changes {
        if self.enabled {
            return Ok(Vec::new());
        }
        let root = self.user(ROOT).ok_or(OpError::RootUserNotExist)?;
        if !root.has_role(ROOT) {
            return Err(OpError::RootRoleNotExist);
        }
        self.enabled = true;
        Ok(vec![AuthChange::Settings])
    }

    fn disable(&mut self) -> Vec<AuthChange> {
        if !self.enabled {
            return Vec::new();
        }
        self.enabled = false;
        self.revision += 1;
        vec![AuthChange::Disabled]
    }

    fn authenticate(&self, name: &str, token: &str, revision: u64) -> Changes {
        if !self.enabled {
            return Err(OpError::AuthNotEnabled);
        }
        let user = self.user(name).filter(|user| !user.no_password);
        let user = user.ok_or(OpError::AuthFailed)?;
        // The password may be another one by now: whoever proposed this checks again.
        if revision != self.revision {
            return Err(OpError::AuthOldRevision);
        }
        Ok(vec![AuthChange::Token {
            user: user.name.clone(),
            since: user.since,
            token: token.to_owned(),
        }])
    }

    /// Stores a user under the next revision.
    fn commit_user(&mut self, user: User) -> Vec<AuthChange> {
        let name = user.name.clone();
        self.revision += 1;
        self.set_user(user);
        vec![AuthChange::User(name)]
    }

    fn commit_role(&mut self, role: Role) -> Vec<AuthChange> {
        let name = role.name.clone();
        self.revision += 1;
        self.set_role(role);
        vec![AuthChange::Role(name)]
    }

    fn user_add(&mut self, name: &str, password: &Bytes, no_password: bool) -> Changes {
        if name.is_empty() {
            return Err(OpError::UserEmpty);
        }
        if self.user(name).is_some() {
            return Err(OpError::UserAlreadyExists);
        }
        Ok(self.commit_user(User {
            name: name.to_owned(),
            password: if no_password {
                Bytes::new()
            } else {
                Bytes::copy_from_slice(password)
            },
            no_password,
            roles: Vec::new(),
            since: self.revision + 1,
        }))
    }

    fn user_delete(&mut self, name: &str) -> Changes {
        if self.enabled && name == ROOT {
            return Err(OpError::InvalidAuthMgmt);
        }
        self.user(name).ok_or(OpError::UserNotFound)?;
        self.remove_user(name);
        self.revision += 1;
        Ok(vec![AuthChange::UserGone(name.to_owned())])
    }

    fn change_password(&mut self, name: &str, password: &Bytes) -> Changes {
        let mut user = self.user(name).ok_or(OpError::UserNotFound)?.clone();
        if !user.no_password {
            user.password = Bytes::copy_from_slice(password);
        }
        user.since = self.revision + 1;
        Ok(self.commit_user(user))
    }

    fn grant_role(&mut self, name: &str, role: &str) -> Changes {
        let mut user = self.user(name).ok_or(OpError::UserNotFound)?.clone();
        if role != ROOT && self.role(role).is_none() {
            return Err(OpError::RoleNotFound);
        }
        // Granted already: nothing changes, not even the revision.
        let Err(place) = user.roles.binary_search_by(|held| held.as_str().cmp(role)) else {
            return Ok(Vec::new());
        };
        user.roles.insert(place, role.to_owned());
        Ok(self.commit_user(user))
    }

    fn revoke_role(&mut self, name: &str, role: &str) -> Changes {
        if self.enabled && name == ROOT && role == ROOT {
            return Err(OpError::InvalidAuthMgmt);
        }
        let mut user = self.user(name).ok_or(OpError::UserNotFound)?.clone();
        if !user.has_role(role) {
            return Err(OpError::RoleNotGranted);
        }
        user.roles.retain(|held| held != role);
        Ok(self.commit_user(user))
    }

    fn role_add(&mut self, name: &str) -> Changes {
        if name.is_empty() {
            return Err(OpError::RoleEmpty);
        }
        if self.role(name).is_some() {
            return Err(OpError::RoleAlreadyExists);
        }
        Ok(self.commit_role(Role {
            name: name.to_owned(),
            permissions: Vec::new(),
        }))
    }

    fn role_delete(&mut self, name: &str) -> Changes {
        if self.enabled && name == ROOT {
            return Err(OpError::InvalidAuthMgmt);
        }
        self.role(name).ok_or(OpError::RoleNotFound)?;
        self.roles.remove(name);
        self.revision += 1;
        let mut changes = vec![AuthChange::RoleGone(name.to_owned())];
        let holders: Vec<User> = self.users().filter(|user| user.has_role(name)).cloned().collect();
        for mut user in holders {
            user.roles.retain(|held| held != name);
            changes.push(AuthChange::User(user.name.clone()));
            self.set_user(user);
        }
        Ok(changes)
    }

    fn grant_permission(&mut self, role: &str, permission: Option<&Permission>) -> Changes {
        let permission = permission.ok_or(OpError::PermissionNotGiven)?;
        permission.check()?;
        let mut role = self.role(role).ok_or(OpError::RoleNotFound)?.clone();
        let same =
            |held: &&mut Permission| held.key == permission.key && held.range_end == permission.range_end;
        // etcd looks at the first permission of this key only, and so keeps an old one beside the new one when the
        // key has several: an access that was narrowed by granting again would stay as wide as before.
        match role.permissions.iter_mut().find(same) {
            Some(held) => held.access = permission.access,
            None => {
                let place = role
                    .permissions
                    .partition_point(|held| held.key <= permission.key);
                // Copies: the bytes of a request share the memory of the whole message.
                role.permissions.insert(
                    place,
                    Permission {
                        access: permission.access,
                        key: Bytes::copy_from_slice(&permission.key),
                        range_end: Bytes::copy_from_slice(&permission.range_end),
                    },
                );
            }
        }
        Ok(self.commit_role(role))
    }

    fn revoke_permission(&mut self, role: &str, key: &Bytes, range_end: &Bytes) -> Changes {
        let mut role = self.role(role).ok_or(OpError::RoleNotFound)?.clone();
        let held = role.permissions.len();
        role.permissions
            .retain(|permission| permission.key != key || permission.range_end != range_end);
        if role.permissions.len() == held {
            return Err(OpError::PermissionNotGranted);
        }
        Ok(self.commit_role(role))
    }
}
