//! Tokens: sessions with their chain of refresh tokens, and service accounts.
//!
//! ```text
//!  sign-in ──> open ──refresh──> open (next token) ──refresh──> ...
//!                │                     │
//!                └── an old token is used again, revoked, disabled, too old ──> gone
//! ```

use std::time::{Duration, SystemTime};

use hearth_service::error::ApiError;
use hearth_service::server::RequestId;
use hearth_types::PrincipalId;
use iam_authn::token::{AccessClaims, sign};
use iam_authn::{Secret, SecretKind};
use iam_authz::{Principal, PrincipalKind, Subject};
use iam_client::wire::TokenResponse;
use iam_client::{DEFAULT_AUDIENCE, MAX_STALE_READ};
use uuid::Uuid;

use super::{Acting, Aegis, ms, now_ms, random};
use crate::store::records::{AccountSecretRecord, SessionRecord, VERSION, account_secrets, session_key};
use crate::store::{Commit, StoreError, Stored};

/// A session that is not used for this long ends.
const IDLE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A session ends after this in any case.
const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// Tries against others that use the same token at the same moment.
const MAX_TRIES: usize = 4;

/// Why there are no tokens.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The refresh token is unknown, was used before, or its session has ended.
    #[error("the session has ended; sign in again with `hearth login`")]
    Ended,
    /// Client id or secret are wrong.
    #[error("the client id or the secret is wrong")]
    Client,
    /// Something else.
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl From<StoreError> for SessionError {
    fn from(error: StoreError) -> Self {
        Self::Api(error.into())
    }
}

impl Aegis {
    /// A signed access token as of `at`. The caller has established who it is for.
    ///
    /// # Errors
    /// When the clock is before 1970 or the key is not usable.
    pub fn access_token_at(
        &self,
        principal: PrincipalId,
        epoch: u64,
        client_id: &str,
        at: SystemTime,
    ) -> Result<String, ApiError> {
        let settings = &self.inner.settings;
        let since = at.duration_since(SystemTime::UNIX_EPOCH);
        let iat = since
            .map_err(|error| ApiError::internal("reading the clock", error))?
            .as_secs();
        let claims = AccessClaims {
            iss: settings.public_url.clone(),
            sub: principal,
            aud: DEFAULT_AUDIENCE.to_owned(),
            exp: iat + settings.access_token_lifetime_s,
            iat,
            jti: Uuid::now_v7().to_string(),
            client_id: client_id.to_owned(),
            epoch,
        };
        sign(&claims, &self.inner.signing).map_err(|error| ApiError::internal("signing the token", error))
    }

    /// Opens a session in one transaction with `commit`, and its audit record.
    pub(super) async fn open_session(
        &self,
        principal: PrincipalId,
        epoch: u64,
        client_id: &str,
        commit: Commit,
        by: &Acting,
        how: &str,
    ) -> Result<TokenResponse, ApiError> {
        let handle = Uuid::now_v7().to_string();
        let secret = Secret::new(SecretKind::Refresh, &handle, &random()?);
        let now = now_ms();
        let record = SessionRecord {
            v: VERSION,
            principal,
            client_id: client_id.to_owned(),
            current: secret.hash(),
            epoch,
            idle_end_ms: now + ms(IDLE),
            end_ms: now + ms(LIFETIME),
        };
        let key = session_key(&handle);
        let commit = commit.guard(&key, 0).put(&key, &record).audit(
            by,
            "session.open",
            &format!("session/{handle}"),
            how,
        );
        self.store().commit(commit).await?;
        self.tokens(principal, epoch, client_id, Some(&secret))
    }

    fn tokens(
        &self,
        principal: PrincipalId,
        epoch: u64,
        client_id: &str,
        refresh: Option<&Secret>,
    ) -> Result<TokenResponse, ApiError> {
        Ok(TokenResponse {
            access_token: self.access_token_at(principal, epoch, client_id, SystemTime::now())?,
            token_type: "Bearer".to_owned(),
            expires_in: self.inner.settings.access_token_lifetime_s,
            refresh_token: refresh.map(Secret::reveal),
        })
    }

    /// The principal now, when it may have tokens of `epoch`. Fails when that cannot be known.
    fn current(&self, id: PrincipalId, epoch: u64) -> Result<Option<Principal>, ApiError> {
        let fresh = self
            .inner
            .authorizer
            .staleness()
            .is_some_and(|age| age <= MAX_STALE_READ);
        if !fresh {
            return Err(iam_client::Denied::Stale.into());
        }
        let snapshot = self.inner.authorizer.snapshot();
        let principal = snapshot.world().principal(id);
        Ok(principal
            .filter(|principal| !principal.disabled && principal.epoch == epoch)
            .cloned())
    }

    /// Exchanges a refresh token for the next pair. Of any number that try the same token, one gets it; that the others
    /// tried ends the session, since one of them is a thief.
    ///
    /// # Errors
    /// [`SessionError::Ended`].
    pub async fn refresh(&self, token: &str, request_id: &RequestId) -> Result<TokenResponse, SessionError> {
        let given = Secret::parse(SecretKind::Refresh, token).map_err(|_| SessionError::Ended)?;
        let key = session_key(given.handle());
        for _ in 0..MAX_TRIES {
            let stored = self.store().get(&key).await?.ok_or(SessionError::Ended)?;
            let record: SessionRecord = stored.read()?;
            let now = now_ms();
            if now >= record.idle_end_ms || now >= record.end_ms {
                return Err(SessionError::Ended);
            }
            if !record.current.matches(&given.hash()) {
                self.end_session(&stored, &record, "session.refresh-reuse", request_id)
                    .await?;
                return Err(SessionError::Ended);
            }
            if self.current(record.principal, record.epoch)?.is_none() {
                self.end_session(&stored, &record, "session.end-revoked", request_id)
                    .await?;
                return Err(SessionError::Ended);
            }
            let next = Secret::new(SecretKind::Refresh, given.handle(), &random()?);
            let renewed = SessionRecord {
                current: next.hash(),
                idle_end_ms: now + ms(IDLE),
                ..record.clone()
            };
            let commit = Commit::default()
                .guard(&key, stored.mod_revision)
                .put(&key, &renewed);
            match self.store().commit(commit).await {
                Ok(_) => {
                    return Ok(self.tokens(
                        record.principal,
                        record.epoch,
                        &record.client_id,
                        Some(&next),
                    )?);
                }
                // Somebody used the same token at the same moment: the next round sees what became of it.
                Err(StoreError::Conflict) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(SessionError::Ended)
    }

    async fn end_session(
        &self,
        stored: &Stored,
        record: &SessionRecord,
        act: &'static str,
        request_id: &RequestId,
    ) -> Result<(), SessionError> {
        let subject = Subject::User(record.principal);
        let by = Acting::principal(&subject, "", request_id);
        let target = stored.key.trim_start_matches(crate::store::records::SESSIONS);
        // Not guarded by the revision: whatever the session has become, it ends.
        let commit = Commit::default()
            .delete(&stored.key)
            .audit(&by, act, &format!("session/{target}"), "");
        self.store().commit(commit).await?;
        self.inner.metrics.session_ended(act);
        tracing::warn!(session = target, act, "a session was ended");
        Ok(())
    }

    /// Ends the session of a refresh token. An unknown token is no error (RFC 7009 section 2.2).
    ///
    /// # Errors
    /// Only when the store does not answer.
    pub async fn revoke(&self, token: &str, request_id: &RequestId) -> Result<(), SessionError> {
        let Ok(given) = Secret::parse(SecretKind::Refresh, token) else {
            return Ok(());
        };
        let Some(stored) = self.store().get(&session_key(given.handle())).await? else {
            return Ok(());
        };
        let record: SessionRecord = stored.read()?;
        if record.current.matches(&given.hash()) {
            self.end_session(&stored, &record, "session.revoke", request_id)
                .await?;
        }
        Ok(())
    }

    /// A service account's access token.
    ///
    /// # Errors
    /// [`SessionError::Client`].
    pub async fn client_credentials(
        &self,
        client_id: &str,
        secret: &str,
    ) -> Result<TokenResponse, SessionError> {
        let id: PrincipalId = client_id.parse().map_err(|_| SessionError::Client)?;
        let given = Secret::parse(SecretKind::ServiceAccount, secret).map_err(|_| SessionError::Client)?;
        let key = format!("{}{}", account_secrets(id), given.handle());
        let stored = self.store().get(&key).await?.ok_or(SessionError::Client)?;
        let record: AccountSecretRecord = stored.read()?;
        let snapshot = self.inner.authorizer.snapshot();
        let epoch = snapshot
            .world()
            .principal(id)
            .map(|account| account.epoch)
            .ok_or(SessionError::Client)?;
        let account = self.current(id, epoch)?.ok_or(SessionError::Client)?;
        if account.kind != PrincipalKind::ServiceAccount || !record.hash.matches(&given.hash()) {
            return Err(SessionError::Client);
        }
        Ok(self.tokens(id, epoch, client_id, None)?)
    }
}
