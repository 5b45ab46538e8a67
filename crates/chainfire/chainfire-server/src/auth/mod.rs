//! Who is asking, and whether they may.
//!
//! Two things are asked, and both must agree:
//! ```text
//!   how did it come in?   certificate, plain text, nothing  -> Rights (a fixed table, table.rs)
//!   which user is it?     token, common name, nobody        -> By     (replicated, chainfire_core::auth)
//! ```
//! The second counts once auth is switched on, and not for Hearth's own identities unless they send a token: then the
//! call has what both allow. A [`Caller`] is both together; what it may do is looked up in the auth state of the
//! moment of asking. A write is judged again by the state machine when it is applied, so before it is proposed only
//! the fixed table is asked: this member's users may be older than the log.

mod jwt;
mod password;
pub(crate) mod record;
mod service;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod tokens;

use std::sync::Arc;

use chainfire_core::{
    KeyRange, OpError, Txn,
    auth::{Auth, By},
};
use hearth_service::tls::CommonName;
use http::Extensions;
use tonic::{Request, metadata::MetadataMap};

pub(crate) use password::{COSTS, DEFAULT_COST, Hasher};
pub(crate) use service::AuthService;
pub(crate) use state::AuthState;
pub(crate) use table::Rights;
pub use tokens::TokenConfigProblem;
pub(crate) use tokens::{DEFAULT_TTL_S, TokenConfig, TokenProvider};

/// Metadata that carries a token; the second is what comes through an HTTP gateway.
const TOKEN_KEYS: [&str; 2] = ["token", "authorization"];
/// What may stand before the token there.
const BEARER: &str = "Bearer ";

/// What a request shows of its caller. To be judged by [`crate::node::Node::caller`], for a stream again and again.
#[derive(Debug, Clone)]
pub(crate) struct Credential {
    rights: Rights,
    token: Option<String>,
    common_name: Option<String>,
}

impl Credential {
    pub(crate) fn of<T>(request: &Request<T>) -> Credential {
        Credential::new(request.extensions(), request.metadata())
    }

    pub(crate) fn new(extensions: &Extensions, metadata: &MetadataMap) -> Credential {
        let token = TOKEN_KEYS.iter().find_map(|key| metadata.get(*key));
        Credential {
            rights: Rights::of(extensions),
            // A token that is no text is none that was given out; it must not count as absent.
            token: token.map(|token| {
                let token = token.to_str().unwrap_or_default();
                token.strip_prefix(BEARER).unwrap_or(token).to_owned()
            }),
            common_name: extensions.get::<CommonName>().map(|name| name.0.clone()),
        }
    }

    /// The fixed part: what can be refused before anything is waited for.
    pub(crate) fn rights(&self) -> &Rights {
        &self.rights
    }
}

/// The rights of a caller.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    rights: Rights,
    by: By,
    /// With a token: the user that it was given to is the one that came into being, or got its password, then.
    since: Option<u64>,
    state: Arc<AuthState>,
}

impl Caller {
    /// On whose behalf a command is proposed.
    pub(crate) fn by(&self) -> &By {
        &self.by
    }

    /// The auth state, when the fixed table has nothing against the way in.
    fn auth(&self) -> Result<Arc<Auth>, OpError> {
        let auth = self.state.current();
        if self.rights == Rights::Anonymous && !auth.enabled() {
            // While auth is off nobody can say who they are, and this way in is no right by itself.
            return Err(OpError::PermissionDenied);
        }
        self.rights.known()?;
        Ok(auth)
    }

    /// Whether it may read every key of the range.
    pub(crate) fn read(&self, keys: &KeyRange) -> Result<(), OpError> {
        let auth = self.auth()?;
        self.rights.read(keys)?;
        auth.may_read(&self.by, keys)
    }

    /// Whether it may do everything that a transaction names; for transactions that are not proposed.
    pub(crate) fn txn(&self, leases: &chainfire_core::Leases, txn: &Txn) -> Result<(), OpError> {
        let auth = self.auth()?;
        self.rights.txn(txn)?;
        auth.may_txn(&self.by, leases, txn)
    }

    /// Whether it may do what concerns everybody: move the leader, change members, take a snapshot.
    pub(crate) fn administer(&self) -> Result<(), OpError> {
        let auth = self.auth()?;
        self.rights.administer()?;
        auth.may_administer(&self.by)
    }

    /// Whether it may ask for what concerns nobody's keys: members, status, leases.
    pub(crate) fn known(&self) -> Result<(), OpError> {
        self.auth()?.known(&self.by)
    }

    /// Whether it may see a user's roles.
    pub(crate) fn see_user(&self, name: &str) -> Result<(), OpError> {
        let auth = self.auth()?;
        self.rights.administer()?;
        auth.may_see_user(&self.by, name)
    }

    /// Whether it may see a role's permissions.
    pub(crate) fn see_role(&self, role: &str) -> Result<(), OpError> {
        let auth = self.auth()?;
        self.rights.administer()?;
        auth.may_see_role(&self.by, role)
    }

    /// Whether it may renew a lease: whoever may write its keys.
    pub(crate) fn renew_lease(&self, leases: &chainfire_core::Leases, id: i64) -> Result<(), OpError> {
        let auth = self.auth()?;
        auth.known(&self.by)?;
        auth.may_end_lease(&self.by, leases, id)
    }

    /// Whether it may see which leases there are.
    pub(crate) fn see_leases(&self, leases: &chainfire_core::Leases) -> Result<(), OpError> {
        let auth = self.auth()?;
        auth.may_see_leases(&self.by, leases)
    }

    /// The fixed part of the right to propose a write of these keys.
    pub(crate) fn propose_write(&self, keys: &KeyRange) -> Result<(), OpError> {
        self.auth()?;
        self.rights.write(keys)
    }

    /// The fixed part of the right to propose a transaction.
    pub(crate) fn propose_txn(&self, txn: &Txn) -> Result<(), OpError> {
        self.auth()?;
        self.rights.txn(txn)
    }

    /// The fixed part of the right to propose what concerns everybody.
    pub(crate) fn propose_administration(&self) -> Result<(), OpError> {
        self.auth()?;
        self.rights.administer()
    }

    /// To be asked after a read: what was read may be newer than the rights that it was checked against.
    pub(crate) fn unchanged(&self) -> Result<(), OpError> {
        match &self.by {
            By::User { revision, .. } if *revision != 0 && *revision != self.state.current().revision() => {
                Err(OpError::AuthOldRevision)
            }
            _ => Ok(()),
        }
    }

    /// Whether a watcher of these keys that was let in may go on. The revision that it came in with does not matter:
    /// the user's rights of now do.
    pub(crate) fn still_reads(&self, keys: &KeyRange) -> Result<(), OpError> {
        let auth = self.auth()?;
        self.rights.read(keys)?;
        let By::User { name, revision } = &self.by else {
            return Ok(());
        };
        if !auth.enabled() {
            return Ok(());
        }
        if *revision == 0 {
            return Err(OpError::UserEmpty);
        }
        let user = auth.user(name).ok_or(OpError::PermissionDenied)?;
        if self.since.is_some_and(|since| since != user.since) {
            return Err(OpError::InvalidAuthToken);
        }
        if auth.reads(name, keys) {
            Ok(())
        } else {
            Err(OpError::PermissionDenied)
        }
    }
}
