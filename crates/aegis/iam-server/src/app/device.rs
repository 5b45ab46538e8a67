//! The device flow (RFC 8628).
//!
//! ```text
//!  begin ──> Pending ──approve──> Approved ──poll──> session, record gone
//!               │ ────deny──────> Denied ────poll──> access_denied, record gone
//!               └── ten minutes ──> expired_token
//! ```

use std::time::{Duration, Instant};

use hearth_service::error::{ApiError, ErrorKind};
use hearth_service::server::RequestId;
use iam_authn::device::{LIFETIME_S, POLL_INTERVAL_S, normalise, user_code};
use iam_authn::{Secret, SecretKind};
use iam_authz::Subject;
use iam_client::CLI_CLIENT;
use iam_client::wire::{DeviceAuthorization, TokenResponse};
use uuid::Uuid;

use super::{Acting, Aegis, Origin, now_ms, random};
use crate::store::records::{DeviceRecord, DeviceState, UserCodeRecord, VERSION, device_key, user_code_key};
use crate::store::{Commit, StoreError, Stored};

/// Under this name, wrong user codes are counted for an address.
const LIMITED: &str = "(user-code)";

/// What the person says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Let the device in.
    Approve,
    /// Do not.
    Deny,
}

/// Why a poll gives no tokens.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Nobody has decided yet.
    #[error("the person has not approved yet")]
    Pending,
    /// Polled too fast.
    #[error("polled too fast")]
    SlowDown,
    /// The person refused.
    #[error("the person refused")]
    Denied,
    /// The code is unknown, used, or too old.
    #[error("the device code has expired; begin again")]
    Expired,
    /// The client is not known.
    #[error("there is no public client of this name; use `hearth-cli`")]
    Client,
    /// Something else.
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl From<StoreError> for DeviceError {
    fn from(error: StoreError) -> Self {
        Self::Api(error.into())
    }
}

impl Aegis {
    /// Begins: codes for a device and its person.
    ///
    /// # Errors
    /// [`DeviceError::Client`], when the address begins too many, or when the store does not answer.
    pub async fn device_begin(
        &self,
        client_id: &str,
        origin: Origin,
    ) -> Result<DeviceAuthorization, DeviceError> {
        if client_id != CLI_CLIENT {
            return Err(DeviceError::Client);
        }
        let now = Instant::now();
        super::signin::refuse_when_limited(self.inner.begun.wait_address(origin.address, now))?;
        self.inner.begun.count(origin.address, now);
        let handle = Uuid::now_v7().to_string();
        let secret = Secret::new(SecretKind::DeviceCode, &handle, &random()?);
        let code = user_code(&random()?);
        let record = DeviceRecord {
            v: VERSION,
            code: secret.hash(),
            user_code: code.clone(),
            client_id: client_id.to_owned(),
            end_ms: now_ms() + LIFETIME_S * 1000,
            state: DeviceState::Pending,
        };
        let lookup = user_code_key(&code);
        // The guard on the user code makes a collision a conflict instead of a mix-up.
        let commit = Commit::default()
            .guard(&lookup, 0)
            .put(
                &lookup,
                &UserCodeRecord {
                    v: VERSION,
                    device: handle.clone(),
                },
            )
            .put(device_key(&handle), &record);
        self.store().commit(commit).await?;
        let verification_uri = format!("{}/device", self.settings().public_url);
        Ok(DeviceAuthorization {
            device_code: secret.reveal(),
            verification_uri_complete: format!("{verification_uri}?user_code={code}"),
            user_code: code,
            verification_uri,
            expires_in: LIFETIME_S,
            interval: POLL_INTERVAL_S,
        })
    }

    /// One poll of the device.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn device_poll(
        &self,
        device_code: &str,
        client_id: &str,
        request_id: &RequestId,
    ) -> Result<TokenResponse, DeviceError> {
        let given = Secret::parse(SecretKind::DeviceCode, device_code).map_err(|_| DeviceError::Expired)?;
        let stored = self
            .store()
            .get(&device_key(given.handle()))
            .await?
            .ok_or(DeviceError::Expired)?;
        let record: DeviceRecord = stored.read()?;
        let fits = record.code.matches(&given.hash()) && record.client_id == client_id;
        if !fits || now_ms() >= record.end_ms {
            return Err(DeviceError::Expired);
        }
        let interval = Duration::from_secs(POLL_INTERVAL_S);
        // A little slack: the network may deliver two polls closer together than they were sent.
        if self
            .inner
            .polls
            .too_fast(given.handle(), interval.mul_f32(0.8), Instant::now())
        {
            return Err(DeviceError::SlowDown);
        }
        let gone = Commit::default()
            .guard(&stored.key, stored.mod_revision)
            .delete(&stored.key)
            .delete(user_code_key(&record.user_code));
        match record.state {
            DeviceState::Pending => Err(DeviceError::Pending),
            DeviceState::Denied => {
                self.store().commit(gone).await?;
                Err(DeviceError::Denied)
            }
            DeviceState::Approved { principal, epoch } => {
                let snapshot = self.inner.authorizer.snapshot();
                let name = snapshot
                    .world()
                    .principal(principal)
                    .map_or("", |user| user.name.as_str());
                let by = Acting::principal(&Subject::User(principal), name, request_id);
                Ok(self
                    .open_session(principal, epoch, client_id, gone, &by, "by device")
                    .await?)
            }
        }
    }

    /// The person's decision, with their name and password.
    ///
    /// # Errors
    /// 401 for a wrong name or password, 404 for an unknown or old code.
    pub async fn device_decide(
        &self,
        typed_code: &str,
        username: &str,
        password: &str,
        decision: Decision,
        origin: Origin,
    ) -> Result<(), ApiError> {
        super::signin::refuse_when_limited(self.inner.failures.wait(
            origin.address,
            LIMITED,
            Instant::now(),
        ))?;
        let Some((stored, record)) = self.find_device(typed_code).await? else {
            self.inner
                .failures
                .failed(origin.address, LIMITED, Instant::now());
            return Err(
                ApiError::new(ErrorKind::NotFound, "there is no such code, or it has expired")
                    .hint("run `hearth login` again for a new one"),
            );
        };
        let (principal, user) = self.verify_password(username, password, origin).await?;
        let state = match decision {
            Decision::Approve => DeviceState::Approved {
                principal,
                epoch: user.epoch,
            },
            Decision::Deny => DeviceState::Denied,
        };
        let decided = DeviceRecord { state, ..record };
        let commit = Commit::default()
            .guard(&stored.key, stored.mod_revision)
            .put(&stored.key, &decided);
        self.store().commit(commit).await?;
        tracing::info!(user = user.name.as_str(), ?decision, "a device was decided on");
        Ok(())
    }

    async fn find_device(&self, typed_code: &str) -> Result<Option<(Stored, DeviceRecord)>, StoreError> {
        let Some(code) = normalise(typed_code) else {
            return Ok(None);
        };
        let Some(lookup) = self.store().get(&user_code_key(&code)).await? else {
            return Ok(None);
        };
        let handle = lookup.read::<UserCodeRecord>()?.device;
        let Some(stored) = self.store().get(&device_key(&handle)).await? else {
            return Ok(None);
        };
        let record: DeviceRecord = stored.read()?;
        let open = record.state == DeviceState::Pending && now_ms() < record.end_ms;
        Ok(open.then_some((stored, record)))
    }
}
