//! Passwords.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hearth_service::error::{ApiError, ErrorKind};
use hearth_service::server::RequestId;
use hearth_types::PrincipalId;
use iam_authn::password;
use iam_authz::{Principal, PrincipalKind, Subject};
use iam_client::wire::{PasswordChange, SessionRequest, TokenResponse};
use iam_client::{CLI_CLIENT, OpContext, Snapshot};
use tokio::sync::Semaphore;

use super::mutate::Plan;
use super::{Acting, Aegis, Revised, invalid, random};
use crate::store::Commit;
use crate::store::records::{PasswordRecord, VERSION, password_key};

/// Hashes at once: each takes 19 MiB and a core.
const CONCURRENT: usize = 2;
/// Hashes that may wait; further ones are refused at once.
const WAITING: usize = 64;

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The address of the connection.
    pub address: IpAddr,
}

/// Runs argon2 beside the event loop, a few at a time.
#[derive(Debug)]
pub(crate) struct Hashing {
    running: Semaphore,
    waiting: Semaphore,
}

impl Default for Hashing {
    fn default() -> Self {
        Self {
            running: Semaphore::new(CONCURRENT),
            waiting: Semaphore::new(CONCURRENT + WAITING),
        }
    }
}

impl Hashing {
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
        let busy = |_| {
            ApiError::new(ErrorKind::Unavailable, "too many sign-ins at the same time")
                .hint("retry in a moment")
        };
        let _place = self.waiting.try_acquire().map_err(busy)?;
        let _slot = self
            .running
            .acquire()
            .await
            .map_err(|error| ApiError::internal("hashing", error))?;
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| ApiError::internal("hashing", error))
    }

    pub(crate) async fn hash(
        &self,
        text: &str,
        salt: [u8; password::SALT_LENGTH],
    ) -> Result<String, ApiError> {
        let text = text.to_owned();
        self.run(move || password::hash(&text, &salt))
            .await?
            .map_err(|error| invalid(error.to_string()))
    }

    async fn verify(&self, text: &str, stored: Option<String>) -> Result<bool, ApiError> {
        let text = text.to_owned();
        self.run(move || password::verify(&text, stored.as_deref())).await
    }
}

/// 429 when the caller must wait.
pub(crate) fn refuse_when_limited(wait: Duration) -> Result<(), ApiError> {
    if wait.is_zero() {
        return Ok(());
    }
    let seconds = wait.as_secs().max(1);
    Err(ApiError::new(
        ErrorKind::ResourceExhausted,
        "too many failed tries from this address",
    )
    .hint(format!("wait {seconds} s and try again")))
}

/// The same answer whether the name or the password is wrong or the user is disabled.
fn wrong() -> ApiError {
    ApiError::new(ErrorKind::Unauthenticated, "the name or the password is wrong")
}

pub(super) fn find_user<'a>(snapshot: &'a Snapshot, name: &str) -> Option<(PrincipalId, &'a Principal)> {
    let is_it =
        |principal: &Principal| principal.kind == PrincipalKind::User && principal.name.as_str() == name;
    snapshot
        .world()
        .principals()
        .find(|(_, principal)| is_it(principal))
}

impl Aegis {
    /// Checks a name and a password, and returns whose they are. Takes as long for an unknown name.
    pub(super) async fn verify_password(
        &self,
        username: &str,
        password: &str,
        origin: Origin,
    ) -> Result<(PrincipalId, Principal), ApiError> {
        refuse_when_limited(self.inner.failures.wait(origin.address, username, Instant::now()))?;
        let snapshot = self.inner.authorizer.snapshot();
        let user = find_user(&snapshot, username);
        let stored = match user {
            // A read for unknown names too, so that the answer takes as long.
            None => {
                self.store()
                    .get(&password_key(PrincipalId::from_uuid(uuid::Uuid::nil())))
                    .await?
            }
            Some((id, _)) => self.store().get(&password_key(id)).await?,
        };
        let stored = stored
            .map(|stored| stored.read::<PasswordRecord>())
            .transpose()?
            .map(|record| record.hash);
        let fits = self.inner.hashing.verify(password, stored).await?;
        match user {
            Some((id, principal)) if fits && !principal.disabled => {
                self.inner.metrics.sign_in(true);
                Ok((id, principal.clone()))
            }
            _ => {
                self.inner
                    .failures
                    .failed(origin.address, username, Instant::now());
                self.inner.metrics.sign_in(false);
                tracing::info!(address = %origin.address, "a sign-in failed");
                Err(wrong())
            }
        }
    }

    /// Signs in with a password.
    ///
    /// # Errors
    /// 401, or 429 after too many failures from the same address.
    pub async fn sign_in(
        &self,
        request: &SessionRequest,
        origin: Origin,
        request_id: &RequestId,
    ) -> Result<TokenResponse, ApiError> {
        let (id, principal) = self
            .verify_password(&request.username, &request.password, origin)
            .await?;
        let by = Acting::principal(&Subject::User(id), principal.name.as_str(), request_id);
        self.open_session(
            id,
            principal.epoch,
            CLI_CLIENT,
            Commit::default(),
            &by,
            "by password",
        )
        .await
    }

    /// Changes the caller's own password; other sign-ins of the user end.
    ///
    /// # Errors
    /// 401 when the old password is wrong.
    pub async fn change_password(
        &self,
        context: &OpContext,
        change: &PasswordChange,
        origin: Origin,
    ) -> Result<Revised<()>, ApiError> {
        let Subject::User(id) = *context.actor().subject() else {
            return Err(ApiError::new(
                ErrorKind::FailedPrecondition,
                "only users have passwords",
            ));
        };
        let name = context.actor().name().to_owned();
        self.verify_password(&name, &change.old_password, origin).await?;
        password::check(&change.new_password, &name).map_err(|error| invalid(error.to_string()))?;
        let hash = self.inner.hashing.hash(&change.new_password, random()?).await?;
        self.mutate(context, |snapshot| {
            let principal = snapshot
                .world()
                .principal(id)
                .filter(|user| !user.disabled)
                .ok_or_else(wrong)?;
            let mut record = super::directory::record_of(principal);
            record.epoch += 1;
            Ok(Plan {
                value: (),
                commit: Commit::default()
                    .put(iam_client::records::principal_key(id), &record)
                    .put(
                        password_key(id),
                        &PasswordRecord {
                            v: VERSION,
                            hash: hash.clone(),
                        },
                    ),
                action: "user.change-own-password",
                target: format!("user/{id}"),
                detail: String::new(),
            })
        })
        .await
    }
}
