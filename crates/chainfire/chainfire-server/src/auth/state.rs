//! What the services see of auth: the newest state, and the tokens that were given out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chainfire_core::{
    OpError,
    auth::{Auth, AuthChange, By},
};
use tokio::{sync::watch, time::timeout};

use super::{
    Caller, Credential,
    tokens::{TokenProvider, Tokens, token_index},
};
use crate::node::Node;

/// How long a token waits for the log entry that made it valid, on a member that lags.
const TOKEN_PATIENCE: Duration = Duration::from_secs(5);

/// The auth state of a member. The state machine writes it, before it shows anything that was applied after.
#[derive(Debug)]
pub(crate) struct AuthState {
    current: watch::Sender<Arc<Auth>>,
    /// The newest log entry whose changes of auth are all in `current` and `tokens`.
    applied: watch::Sender<u64>,
    pub(crate) tokens: Tokens,
}

impl AuthState {
    pub(crate) fn new(auth: Auth, applied: u64) -> AuthState {
        AuthState {
            current: watch::Sender::new(Arc::new(auth)),
            applied: watch::Sender::new(applied),
            tokens: Tokens::default(),
        }
    }

    /// The state of now.
    pub(crate) fn current(&self) -> Arc<Auth> {
        self.current.borrow().clone()
    }

    /// To be told of changes.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Auth>> {
        self.current.subscribe()
    }

    /// Takes over what the entry at `index` changed; the token that it gave out, if it did.
    pub(crate) fn take(&self, index: u64, changes: &[AuthChange]) -> Option<String> {
        let mut given = None;
        for change in changes {
            match change {
                AuthChange::Disabled => self.tokens.clear(),
                AuthChange::Token { user, since, token } => {
                    // The index tells a member that lags how long to wait before it knows the token.
                    let token = format!("{token}.{index}");
                    self.tokens
                        .give(token.clone(), user.clone(), *since, Instant::now());
                    given = Some(token);
                }
                _ => {}
            }
        }
        given
    }

    /// Shows the state after the entry at `index`.
    pub(crate) fn publish(&self, auth: &Auth, index: u64) {
        self.current.send_replace(Arc::new(auth.clone()));
        self.applied.send_replace(index);
    }

    /// Another state took the place of everything: tokens of the old one are void.
    pub(crate) fn replace(&self, auth: &Auth, index: u64) {
        self.tokens.clear();
        self.publish(auth, index);
    }

    /// Waits until the entry at `index` is applied; whether it is.
    async fn reached(&self, index: u64) -> bool {
        let mut applied = self.applied.subscribe();
        let waited = timeout(TOKEN_PATIENCE, applied.wait_for(|applied| *applied >= index)).await;
        matches!(waited, Ok(Ok(_)))
    }
}

impl Node {
    /// Judges who is asking, by the state of now.
    pub(crate) async fn caller(&self, credential: &Credential) -> Result<Caller, OpError> {
        let (by, since) = self.subject(credential).await?;
        let caller = Caller {
            rights: credential.rights.clone(),
            by,
            since,
            state: self.shared.auth.clone(),
        };
        caller.auth()?;
        Ok(caller)
    }

    async fn subject(&self, credential: &Credential) -> Result<(By, Option<u64>), OpError> {
        credential.rights.known()?;
        let state = &self.shared.auth;
        let Some(token) = &credential.token else {
            let auth = state.current();
            return Ok(match &credential.common_name {
                _ if credential.rights.is_house() => (By::System, None),
                Some(name) if auth.enabled() => {
                    let revision = auth.revision();
                    let name = name.clone();
                    (By::User { name, revision }, None)
                }
                _ => (By::NOBODY, None),
            });
        };
        // A token is newer than this member's state? Then that is what it waits for, auth switched on included.
        match (&self.tokens, token_index(token)) {
            (TokenProvider::Simple, Some(index)) if index > *state.applied.borrow() => {
                state.reached(index).await;
            }
            _ => {}
        }
        let mut auth = state.current();
        if !auth.enabled() {
            return Ok((By::NOBODY, None));
        }
        let (name, revision) = match &self.tokens {
            TokenProvider::Simple => {
                let held = state.tokens.find(token, Instant::now());
                let held = held.ok_or(OpError::InvalidAuthToken)?;
                let user = auth.user(&held.0).filter(|user| user.since == held.1);
                let user = user.ok_or(OpError::InvalidAuthToken)?;
                (user.name.clone(), auth.revision())
            }
            TokenProvider::Jwt(jwt) => {
                let claims = jwt.verify(token).ok_or(OpError::InvalidAuthToken)?;
                if claims.1 > auth.revision() {
                    self.read_barrier().await?;
                    auth = state.current();
                }
                // From a future that did not come: the cluster was restored from before it.
                if claims.1 > auth.revision() {
                    return Err(OpError::InvalidAuthToken);
                }
                claims
            }
        };
        let since = auth.user(&name).map(|user| user.since);
        Ok((By::User { name, revision }, since))
    }
}
