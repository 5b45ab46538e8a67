//! The very first start, and the first administrator.

use std::sync::Arc;

use std::time::Instant;

use hearth_service::error::{ApiError, ErrorKind};
use hearth_service::pki::{Authority, PkiError};
use hearth_service::server::RequestId;
use hearth_types::{BindingId, Name, OrganisationId, PrincipalId, ProjectId};
use iam_authn::token::{PublicKey, SigningKey};
use iam_authn::{SecretHash, password};
use iam_authz::{Node, PrincipalKind, Role, Subject};
use iam_client::Authorizer;
use iam_client::records::{
    BindingRecord, OrganisationRecord, POLICY_KEY, PolicyRecord, PrincipalRecord, ProjectRecord,
    SigningKeyRecord, VERSION as PUBLIC_VERSION, binding_key, organisation_key, principal_key, project_key,
    signing_key_key,
};
use iam_client::wire::{BootstrapRequest, UserView};
use rcgen::PublicKeyData as _;
use uuid::Uuid;

use super::mutate::{Plan, read_policy};
use super::signin::{Hashing, Origin};
use super::{Acting, Aegis, Inner, Revised, Settings, invalid, limiter, random};
use crate::seal::{SealError, Sealer};
use crate::store::records::{
    BOOTSTRAP_KEY, BootstrapRecord, PasswordRecord, ROOT_KEY, RootRecord, VERSION, password_key,
};
use crate::store::{Commit, Store, StoreError};

const CA_KEY: &str = "CA key";
const SIGNING_KEY: &str = "signing key";
/// Shortest bootstrap token: anything shorter was not made by `hearth cluster init`.
const MIN_TOKEN: usize = 16;

/// What the files of the configuration hold.
pub struct Secrets {
    /// Seals private keys.
    pub sealer: Arc<Sealer>,
    /// The authority's certificate, PEM.
    pub ca_cert: String,
    /// The authority's key, PEM; needed at the very first start only.
    pub ca_key: Option<String>,
    /// The bootstrap token; needed at the very first start only.
    pub bootstrap_token: Option<String>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets { .. }")
    }
}

/// Why Aegis cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The store.
    #[error("the store cannot be read or written")]
    Store(#[from] StoreError),
    /// Sealing.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The authority.
    #[error("the cluster's CA key does not fit its certificate, or cannot be read")]
    Authority(#[from] PkiError),
    /// The signing key.
    #[error("the key that signs tokens cannot be made or read")]
    SigningKey,
    /// A file is missing at the first start.
    #[error("this is the first start and the {0} cannot be read; `hearth cluster init` makes it")]
    Missing(&'static str),
    /// The token file has nothing usable in it.
    #[error("the bootstrap token is shorter than {MIN_TOKEN} characters; `hearth cluster init` makes one")]
    ShortToken,
}

impl Aegis {
    /// Opens the store; at the very first start it fills it. Replicas that start at the same time agree.
    ///
    /// # Errors
    /// [`SetupError`].
    pub async fn open(
        store: Store,
        authorizer: Authorizer,
        settings: Settings,
        secrets: &Secrets,
    ) -> Result<Self, SetupError> {
        let root = loop {
            if let Some(stored) = store.get(ROOT_KEY).await? {
                break stored.read::<RootRecord>()?;
            }
            match store.commit(first_commit(&store, secrets).await?).await {
                Ok(revision) => tracing::info!(
                    revision,
                    "the first start: keys, organisation and project are made"
                ),
                // Another replica did it, or our answer was lost: look again.
                Err(StoreError::Conflict | StoreError::Unknown(_)) => {}
                Err(other) => return Err(other.into()),
            }
        };
        let ca_key = secrets.sealer.open(CA_KEY, &root.ca_key)?;
        let ca_key = String::from_utf8(ca_key).map_err(|_| SealError::Open(CA_KEY))?;
        let authority = Authority::load(&secrets.ca_cert, &ca_key)?;
        let signing_key = secrets.sealer.open(SIGNING_KEY, &root.signing_key)?;
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                authorizer,
                settings,
                signing: SigningKey::from_pkcs8_der(&root.signing_kid, &signing_key),
                authority,
                hashing: Hashing::default(),
                failures: limiter::Limiter::default(),
                begun: limiter::Limiter::default(),
                metrics: super::Metrics::default(),
                polls: limiter::Polls::default(),
            }),
        })
    }
}

async fn first_commit(store: &Store, secrets: &Secrets) -> Result<Commit, SetupError> {
    let ca_key = secrets.ca_key.as_deref().ok_or(SetupError::Missing("CA key"))?;
    Authority::load(&secrets.ca_cert, ca_key)?;
    let token = secrets
        .bootstrap_token
        .as_deref()
        .map(str::trim)
        .ok_or(SetupError::Missing("bootstrap token"))?;
    if token.len() < MIN_TOKEN {
        return Err(SetupError::ShortToken);
    }
    let pair = rcgen::KeyPair::generate().map_err(|_| SetupError::SigningKey)?;
    let kid = Uuid::now_v7().to_string();
    let public = PublicKey::from_point(&kid, pair.der_bytes()).map_err(|_| SetupError::SigningKey)?;
    let root = RootRecord {
        v: VERSION,
        ca_key: secrets.sealer.seal(CA_KEY, ca_key.as_bytes())?,
        signing_kid: kid.clone(),
        signing_key: secrets.sealer.seal(SIGNING_KEY, &pair.serialize_der())?,
    };
    let name: Name = "default".parse().map_err(|_| SetupError::SigningKey)?;
    let (organisation, project) = (
        OrganisationId::from_uuid(Uuid::now_v7()),
        ProjectId::from_uuid(Uuid::now_v7()),
    );
    let (_, policy_at) = read_policy(store).await?;
    let by = Acting {
        actor: "workload/service/aegis".into(),
        name: "service/aegis".into(),
        request_id: String::new(),
    };
    let v = PUBLIC_VERSION;
    Ok(Commit::default()
        .guard(ROOT_KEY, 0)
        .guard(POLICY_KEY, policy_at)
        .put(ROOT_KEY, &root)
        .put(
            BOOTSTRAP_KEY,
            &BootstrapRecord {
                v: VERSION,
                token: SecretHash::of(token),
                used: false,
            },
        )
        .put(POLICY_KEY, &PolicyRecord { v, generation: 1 })
        .put(signing_key_key(&kid), &SigningKeyRecord { v, key: public })
        .put(
            organisation_key(organisation),
            &OrganisationRecord {
                v,
                name: name.clone(),
            },
        )
        .put(
            project_key(project),
            &ProjectRecord {
                v,
                name,
                organisation,
                folder: None,
            },
        )
        .audit(
            &by,
            "cluster.first-start",
            "root",
            "organisation default, project default",
        ))
}

impl Aegis {
    /// Makes the first administrator. Once in the cluster's life, whoever else tries at the same time.
    ///
    /// # Errors
    /// Forbidden with a wrong token, a failed precondition when it was done before.
    pub async fn bootstrap(
        &self,
        request: &BootstrapRequest,
        origin: Origin,
        request_id: &RequestId,
    ) -> Result<Revised<UserView>, ApiError> {
        const LIMITED: &str = "(bootstrap)";
        let wait = self.inner.failures.wait(origin.address, LIMITED, Instant::now());
        super::signin::refuse_when_limited(wait)?;
        let stored = self.store().get(BOOTSTRAP_KEY).await?;
        let (record, at) = match stored {
            Some(stored) => (stored.read::<BootstrapRecord>()?, stored.mod_revision),
            None => {
                return Err(ApiError::new(ErrorKind::Unavailable, "Aegis is still starting").hint("retry"));
            }
        };
        if !record.token.is_of(request.token.trim()) {
            self.inner
                .failures
                .failed(origin.address, LIMITED, Instant::now());
            return Err(ApiError::new(ErrorKind::PermissionDenied, "the bootstrap token is wrong")
                .hint("it lies in the file `bootstrap.token` of the data folder of the machine that was set up first"));
        }
        let done = || {
            ApiError::new(
                ErrorKind::FailedPrecondition,
                "the first administrator was made before",
            )
            .hint("sign in with `hearth login`; an administrator can make further users")
        };
        if record.used {
            return Err(done());
        }
        password::check(&request.password, request.username.as_str())
            .map_err(|error| invalid(error.to_string()))?;
        let hash = self.inner.hashing.hash(&request.password, random()?).await?;
        let id = PrincipalId::from_uuid(Uuid::now_v7());
        let binding = BindingId::from_uuid(Uuid::now_v7());
        let by = Acting::principal(&Subject::User(id), request.username.as_str(), request_id);
        let used = BootstrapRecord { used: true, ..record };
        let made = self
            .mutate_as(&by, |snapshot| {
                super::directory::refuse_taken_user(snapshot, &request.username)?;
                Ok(Plan {
                    value: UserView {
                        id,
                        name: request.username.clone(),
                        disabled: false,
                    },
                    commit: Commit::default()
                        .guard(BOOTSTRAP_KEY, at)
                        .put(BOOTSTRAP_KEY, &used)
                        .put(principal_key(id), &user_record(&request.username))
                        .put(
                            password_key(id),
                            &PasswordRecord {
                                v: VERSION,
                                hash: hash.clone(),
                            },
                        )
                        .put(
                            binding_key(binding),
                            &BindingRecord {
                                v: PUBLIC_VERSION,
                                subject: Subject::User(id),
                                role: Role::Admin,
                                node: Node::Root,
                            },
                        ),
                    action: "cluster.bootstrap",
                    target: format!("user/{id}"),
                    detail: format!("first administrator {}", request.username),
                })
            })
            .await;
        match made {
            // Every try ended in a conflict because the guard on the bootstrap record can hold no more.
            Err(error) if error.kind == ErrorKind::Conflict => Err(done()),
            other => other,
        }
    }
}

pub(super) fn user_record(name: &Name) -> PrincipalRecord {
    PrincipalRecord {
        v: PUBLIC_VERSION,
        kind: PrincipalKind::User,
        name: name.clone(),
        disabled: false,
        epoch: 1,
        project: None,
    }
}
