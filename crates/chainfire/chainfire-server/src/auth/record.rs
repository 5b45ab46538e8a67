//! Auth in the log and in the engine: keyspace `auth` holds one record for each user, each role, and the settings.

use bytes::Bytes;
use chainfire_client::wire::{authpb, etcdserverpb as pb};
use chainfire_core::{
    OpError,
    auth::{Access, Auth, AuthChange, AuthCommand, By, Permission, Role, User},
};
use prost::Message;

/// Who proposed a log entry. Absent: the members themselves, or somebody whom auth does not concern.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CallerRecord {
    /// Empty: nobody.
    #[prost(string, tag = "1")]
    pub(crate) user: String,
    #[prost(uint64, tag = "2")]
    pub(crate) auth_revision: u64,
}

impl CallerRecord {
    pub(crate) fn of(by: &By) -> Option<CallerRecord> {
        match by {
            By::System => None,
            By::User { name, revision } => Some(CallerRecord {
                user: name.clone(),
                auth_revision: *revision,
            }),
        }
    }

    pub(crate) fn by(record: Option<CallerRecord>) -> By {
        record.map_or(By::System, |record| By::User {
            name: record.user,
            revision: record.auth_revision,
        })
    }
}

/// A command of auth in the log.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct AuthRecord {
    #[prost(oneof = "AuthBody", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub(crate) body: Option<AuthBody>,
}

/// Passwords are hashed before they come here.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum AuthBody {
    #[prost(message, tag = "1")]
    Enable(pb::AuthEnableRequest),
    #[prost(message, tag = "2")]
    Disable(pb::AuthDisableRequest),
    #[prost(message, tag = "3")]
    Authenticate(AuthenticateRecord),
    #[prost(message, tag = "4")]
    UserAdd(PasswordRecord),
    #[prost(message, tag = "5")]
    UserDelete(pb::AuthUserDeleteRequest),
    #[prost(message, tag = "6")]
    UserChangePassword(PasswordRecord),
    #[prost(message, tag = "7")]
    UserGrantRole(pb::AuthUserGrantRoleRequest),
    #[prost(message, tag = "8")]
    UserRevokeRole(pb::AuthUserRevokeRoleRequest),
    #[prost(message, tag = "9")]
    RoleAdd(pb::AuthRoleAddRequest),
    #[prost(message, tag = "10")]
    RoleDelete(pb::AuthRoleDeleteRequest),
    #[prost(message, tag = "11")]
    RoleGrantPermission(pb::AuthRoleGrantPermissionRequest),
    #[prost(message, tag = "12")]
    RoleRevokePermission(pb::AuthRoleRevokePermissionRequest),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AuthenticateRecord {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// The random part of the token.
    #[prost(string, tag = "2")]
    pub(crate) token: String,
    /// Revision of auth at which the password was checked.
    #[prost(uint64, tag = "3")]
    pub(crate) revision: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PasswordRecord {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) hash: Bytes,
    #[prost(bool, tag = "3")]
    pub(crate) no_password: bool,
}

/// The command of a record.
pub(crate) fn command(record: AuthRecord) -> Result<AuthCommand, OpError> {
    Ok(match record.body.ok_or(OpError::InvalidAuthMgmt)? {
        AuthBody::Enable(_) => AuthCommand::Enable,
        AuthBody::Disable(_) => AuthCommand::Disable,
        AuthBody::Authenticate(message) => AuthCommand::Authenticate {
            name: message.name,
            token: message.token,
            revision: message.revision,
        },
        AuthBody::UserAdd(message) => AuthCommand::UserAdd {
            name: message.name,
            password: message.hash,
            no_password: message.no_password,
        },
        AuthBody::UserDelete(message) => AuthCommand::UserDelete { name: message.name },
        AuthBody::UserChangePassword(message) => AuthCommand::UserChangePassword {
            name: message.name,
            password: message.hash,
        },
        AuthBody::UserGrantRole(message) => AuthCommand::UserGrantRole {
            user: message.user,
            role: message.role,
        },
        AuthBody::UserRevokeRole(message) => AuthCommand::UserRevokeRole {
            user: message.name,
            role: message.role,
        },
        AuthBody::RoleAdd(message) => AuthCommand::RoleAdd { name: message.name },
        AuthBody::RoleDelete(message) => AuthCommand::RoleDelete { name: message.role },
        AuthBody::RoleGrantPermission(message) => AuthCommand::RoleGrantPermission {
            role: message.name,
            permission: message.perm.map(permission).transpose()?,
        },
        AuthBody::RoleRevokePermission(message) => AuthCommand::RoleRevokePermission {
            role: message.role,
            key: message.key,
            range_end: message.range_end,
        },
    })
}

/// A permission off the wire; the service checks it before it is proposed.
pub(crate) fn permission(message: authpb::Permission) -> Result<Permission, OpError> {
    let access = match authpb::permission::Type::try_from(message.perm_type) {
        Ok(authpb::permission::Type::Read) => Access::Read,
        Ok(authpb::permission::Type::Write) => Access::Write,
        Ok(authpb::permission::Type::Readwrite) => Access::ReadWrite,
        Err(_) => return Err(OpError::InvalidAuthMgmt),
    };
    Ok(Permission {
        access,
        key: message.key,
        range_end: message.range_end,
    })
}

pub(crate) fn permission_message(permission: &Permission) -> authpb::Permission {
    let kind = match permission.access {
        Access::Read => authpb::permission::Type::Read,
        Access::Write => authpb::permission::Type::Write,
        Access::ReadWrite => authpb::permission::Type::Readwrite,
    };
    authpb::Permission {
        perm_type: kind.into(),
        key: permission.key.clone(),
        range_end: permission.range_end.clone(),
    }
}

/// Under [`SETTINGS_KEY`].
#[derive(Clone, PartialEq, Message)]
struct SettingsRecord {
    #[prost(bool, tag = "1")]
    enabled: bool,
    #[prost(uint64, tag = "2")]
    revision: u64,
}

/// Under [`USER_PREFIX`] and the name.
#[derive(Clone, PartialEq, Message)]
struct UserRecord {
    #[prost(bytes = "bytes", tag = "1")]
    password: Bytes,
    #[prost(bool, tag = "2")]
    no_password: bool,
    #[prost(string, repeated, tag = "3")]
    roles: Vec<String>,
    #[prost(uint64, tag = "4")]
    since: u64,
}

/// Under [`ROLE_PREFIX`] and the name.
#[derive(Clone, PartialEq, Message)]
struct RoleRecord {
    #[prost(message, repeated, tag = "1")]
    permissions: Vec<authpb::Permission>,
}

const SETTINGS_KEY: &[u8] = b"s";
const USER_PREFIX: &[u8] = b"u/";
const ROLE_PREFIX: &[u8] = b"r/";

/// What a change of auth writes: the key, and the record or its end.
pub(crate) fn stored(auth: &Auth, change: &AuthChange) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    Some(match change {
        AuthChange::Settings => {
            let record = SettingsRecord {
                enabled: auth.enabled(),
                revision: auth.revision(),
            };
            (SETTINGS_KEY.to_vec(), Some(record.encode_to_vec()))
        }
        AuthChange::User(name) => {
            let record = auth.user(name).map(|user| UserRecord {
                password: user.password.clone(),
                no_password: user.no_password,
                roles: user.roles.clone(),
                since: user.since,
            });
            let key = [USER_PREFIX, name.as_bytes()].concat();
            (key, record.map(|record| record.encode_to_vec()))
        }
        AuthChange::UserGone(name) => ([USER_PREFIX, name.as_bytes()].concat(), None),
        AuthChange::Role(name) => {
            let record = auth.role(name).map(|role| RoleRecord {
                permissions: role.permissions.iter().map(permission_message).collect(),
            });
            let key = [ROLE_PREFIX, name.as_bytes()].concat();
            (key, record.map(|record| record.encode_to_vec()))
        }
        AuthChange::RoleGone(name) => ([ROLE_PREFIX, name.as_bytes()].concat(), None),
        AuthChange::Disabled | AuthChange::Token { .. } => return None,
    })
}

/// Auth from all records of the keyspace; `None` when one cannot be read.
pub(crate) fn restore(records: impl IntoIterator<Item = (Bytes, Bytes)>) -> Option<Auth> {
    let mut settings = SettingsRecord {
        enabled: false,
        revision: 1,
    };
    let (mut users, mut roles) = (Vec::new(), Vec::new());
    for (key, value) in records {
        let name = |prefix: &[u8]| String::from_utf8(key.strip_prefix(prefix)?.to_vec()).ok();
        if key == SETTINGS_KEY {
            settings = SettingsRecord::decode(value).ok()?;
        } else if let Some(name) = name(USER_PREFIX) {
            let record = UserRecord::decode(value).ok()?;
            users.push(User {
                name,
                password: record.password,
                no_password: record.no_password,
                roles: record.roles,
                since: record.since,
            });
        } else if let Some(name) = name(ROLE_PREFIX) {
            let record = RoleRecord::decode(value).ok()?;
            let permissions = record.permissions.into_iter().map(permission);
            roles.push(Role {
                name,
                permissions: permissions.collect::<Result<_, _>>().ok()?,
            });
        } else {
            return None;
        }
    }
    Some(Auth::restore(settings.enabled, settings.revision, users, roles))
}
