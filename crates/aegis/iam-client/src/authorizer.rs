//! The decision in process.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use chainfire_client::Client;
use hearth_service::error::{ApiError, ErrorKind};
use hearth_service::tasks::Tasks;
use hearth_service::tls::PeerIdentity;
use hearth_types::{Name, OrganisationId, ProjectId};
use iam_authn::WorkloadPath;
use iam_authn::token::{self, Expectation};
use iam_authz::{
    AuthenticatedBy, Context, Decision, PolicyRef, PrincipalKind, Question, ResourceRef, Subject, action,
    decide, visible,
};

use crate::{Actor, AuthnError, Snapshot};

/// The audience of access tokens unless configured otherwise: the whole cluster.
pub const DEFAULT_AUDIENCE: &str = "hearth";
/// How old the snapshot may be for a decision about a change.
pub const MAX_STALE_MUTATION: Duration = Duration::from_secs(5);
/// How old it may be for a decision about a read, and for knowing who asks.
pub const MAX_STALE_READ: Duration = Duration::from_secs(60);

/// What tokens and certificates must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizerConfig {
    /// Aegis's public URL, as `iss` says it.
    pub issuer: String,
    /// As `aud` says it.
    pub audience: String,
    /// The cluster's domain, as certificates say it.
    pub trust_domain: String,
}

impl AuthorizerConfig {
    /// With the default audience.
    #[must_use]
    pub fn new(issuer: &str, trust_domain: &str) -> Self {
        Self {
            issuer: issuer.to_owned(),
            audience: DEFAULT_AUDIENCE.to_owned(),
            trust_domain: trust_domain.to_owned(),
        }
    }
}

/// Why the authorizer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The issuer or the domain is empty.
    #[error("the authorizer needs the `{0}`; set it in the configuration")]
    Missing(&'static str),
}

/// How far the snapshot is known to reach.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reach {
    /// Revision of the last change applied.
    pub(crate) applied: i64,
    /// Revision of the store up to which nothing is known to be missing.
    pub(crate) verified: i64,
}

/// Knows who asks and what they may. Clones share the snapshot.
#[derive(Clone, Debug)]
pub struct Authorizer {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    config: AuthorizerConfig,
    snapshot: ArcSwap<Snapshot>,
    pub(crate) reach: tokio::sync::watch::Sender<Reach>,
    age: Mutex<Age>,
    /// Asks for a proof of freshness now.
    pub(crate) poke: tokio::sync::Notify,
    /// Asks for a reload: the watch misses something.
    pub(crate) reload: tokio::sync::Notify,
}

#[derive(Debug)]
enum Age {
    /// No snapshot yet.
    Never,
    /// Complete as of this instant.
    Since(Instant),
    /// For tests and for stores in memory.
    Fixed(Duration),
}

/// A project as other services name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectRef {
    /// Its id.
    pub id: ProjectId,
    /// Its name, a label of DNS names.
    pub name: Name,
    /// Who owns it.
    pub organisation: OrganisationId,
}

/// Proof that a check was passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    action: &'static str,
    revision: i64,
    by: Vec<PolicyRef>,
}

impl Allowed {
    /// What was allowed.
    #[must_use]
    pub const fn action(&self) -> &'static str {
        self.action
    }

    /// The revision of the policy that allowed it.
    #[must_use]
    pub const fn revision(&self) -> i64 {
        self.revision
    }

    /// The bindings and platform policies that allowed it.
    #[must_use]
    pub fn by(&self) -> &[PolicyRef] {
        &self.by
    }
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The caller may know the place but not do this.
    #[error("you may not do `{action}` here")]
    Forbidden {
        /// What was asked.
        action: String,
    },
    /// The caller may not know the place: the same answer as for one that does not exist.
    #[error("it does not exist, or you may not see it")]
    Invisible,
    /// The snapshot is too old to say.
    #[error("rights cannot be checked now (authz-stale): the policy snapshot is too old")]
    Stale,
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        match &denied {
            Denied::Forbidden { action: name } => {
                let role = action(name).map_or("admin", |action| action.least_role.as_str());
                Self::new(ErrorKind::PermissionDenied, denied.to_string())
                    .hint(format!("an administrator can grant you the role `{role}`"))
            }
            Denied::Invisible => Self::new(ErrorKind::NotFound, denied.to_string()),
            Denied::Stale => Self::new(ErrorKind::Unavailable, denied.to_string())
                .hint("retry in a moment; `hearth status` shows whether Chainfire answers"),
        }
    }
}

/// A decision with its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The decision.
    pub decision: Decision,
    /// The revision of the policy that decided.
    pub revision: i64,
    /// How old the snapshot may be.
    pub staleness: Duration,
}

impl Authorizer {
    /// Loads the snapshot and keeps it fresh until `tasks` stop. Waits a few seconds for the first load; when
    /// Chainfire does not answer by then, it goes on trying while every check says [`Denied::Stale`].
    ///
    /// # Errors
    /// [`StartError`] when the configuration is incomplete.
    pub async fn start(
        chainfire: Client,
        config: AuthorizerConfig,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        if config.issuer.is_empty() {
            return Err(StartError::Missing("issuer"));
        }
        if config.trust_domain.is_empty() {
            return Err(StartError::Missing("trust domain"));
        }
        let authorizer = Self::with(config, Snapshot::empty(), Age::Never);
        crate::watch::spawn(chainfire, authorizer.clone(), tasks);
        let mut reach = authorizer.inner.reach.subscribe();
        let loaded = reach.wait_for(|reach| reach.verified > 0);
        if tokio::time::timeout(crate::watch::FIRST_LOAD, loaded)
            .await
            .is_err()
        {
            tracing::warn!("the policy snapshot is not loaded yet; rights cannot be checked until it is");
        }
        Ok(authorizer)
    }

    /// Over a world in memory that is forever `staleness` old: for tests, and for Aegis on its store in memory.
    #[must_use]
    pub fn from_snapshot(config: AuthorizerConfig, snapshot: Snapshot, staleness: Duration) -> Self {
        Self::with(config, snapshot, Age::Fixed(staleness))
    }

    fn with(config: AuthorizerConfig, snapshot: Snapshot, age: Age) -> Self {
        let reach = Reach {
            applied: snapshot.revision(),
            verified: snapshot.revision(),
        };
        Self {
            inner: Arc::new(Inner {
                config,
                snapshot: ArcSwap::from_pointee(snapshot),
                reach: tokio::sync::watch::Sender::new(reach),
                age: Mutex::new(age),
                poke: tokio::sync::Notify::new(),
                reload: tokio::sync::Notify::new(),
            }),
        }
    }

    /// Applies changes that one transaction made at `revision`. For whoever feeds an authorizer made by
    /// [`Self::from_snapshot`]; one feeder at a time.
    pub fn apply<'a>(&self, revision: i64, changes: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>) {
        let mut next = Snapshot::clone(&self.inner.snapshot.load());
        for (key, value) in changes {
            next.apply(key, value);
        }
        next.set_revision(revision);
        self.replace(next);
    }

    /// Swaps the whole snapshot.
    pub(crate) fn replace(&self, snapshot: Snapshot) {
        let revision = snapshot.revision();
        self.inner.snapshot.store(Arc::new(snapshot));
        self.inner
            .reach
            .send_modify(|reach| reach.applied = reach.applied.max(revision));
    }

    /// Nothing was missing at `at`, when the store stood at `revision`.
    pub(crate) fn proven(&self, at: Instant, revision: i64) {
        let mut age = self.inner.age.lock().unwrap_or_else(PoisonError::into_inner);
        *age = match *age {
            Age::Since(earlier) => Age::Since(earlier.max(at)),
            Age::Never | Age::Fixed(_) => Age::Since(at),
        };
        drop(age);
        self.inner
            .reach
            .send_modify(|reach| reach.verified = reach.verified.max(revision));
    }

    /// How old the snapshot may be; `None` before there is one.
    #[must_use]
    pub fn staleness(&self) -> Option<Duration> {
        match *self.inner.age.lock().unwrap_or_else(PoisonError::into_inner) {
            Age::Never => None,
            Age::Since(at) => Some(at.elapsed()),
            Age::Fixed(age) => Some(age),
        }
    }

    fn is_fresh(&self, limit: Duration) -> bool {
        self.staleness().is_some_and(|age| age <= limit)
    }

    /// The snapshot at this moment.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.inner.snapshot.load_full()
    }

    /// The revision of the store that decisions are made at.
    #[must_use]
    pub fn revision(&self) -> i64 {
        let reach = *self.inner.reach.borrow();
        reach.applied.max(reach.verified)
    }

    /// Waits until decisions are made at `revision` or a later one, for example the `hearth-revision` of an answer of
    /// Aegis.
    ///
    /// # Errors
    /// [`Denied::Stale`] when that takes longer than `timeout`.
    pub async fn at_least(&self, revision: i64, timeout: Duration) -> Result<(), Denied> {
        let mut reach = self.inner.reach.subscribe();
        if reach.borrow().applied.max(reach.borrow().verified) >= revision {
            return Ok(());
        }
        self.inner.poke.notify_one();
        let reached = reach.wait_for(|reach| reach.applied.max(reach.verified) >= revision);
        match tokio::time::timeout(timeout, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Denied::Stale),
        }
    }

    /// Who holds this bearer token?
    ///
    /// # Errors
    /// [`AuthnError`].
    pub fn authenticate(&self, bearer: &str, now: SystemTime) -> Result<Actor, AuthnError> {
        if !self.is_fresh(MAX_STALE_READ) {
            return Err(AuthnError::Stale);
        }
        let now_s = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_err(|_| TokenTimes)?
            .as_secs();
        let snapshot = self.inner.snapshot.load();
        let config = &self.inner.config;
        let expect = Expectation {
            issuer: &config.issuer,
            audience: &config.audience,
        };
        let claims = token::verify(bearer, snapshot.keys(), expect, now_s)?;
        let principal = snapshot
            .world()
            .principal(claims.sub)
            .ok_or(AuthnError::Revoked)?;
        if principal.disabled || claims.epoch < principal.epoch {
            return Err(AuthnError::Revoked);
        }
        let subject = match principal.kind {
            PrincipalKind::User => Subject::User(claims.sub),
            PrincipalKind::ServiceAccount => Subject::ServiceAccount(claims.sub),
        };
        let name = principal.name.as_str().into();
        Ok(Actor {
            subject,
            name,
            authenticated_by: AuthenticatedBy::Token,
            workload: None,
        })
    }

    /// A principal as a caller, known by a credential of its own that a server keeps for it, such as a TSIG key. The
    /// server has checked the credential.
    ///
    /// # Errors
    /// [`AuthnError`]: it is gone or disabled, or the snapshot is too old to say.
    pub fn vouch(&self, subject: &Subject) -> Result<Actor, AuthnError> {
        if !self.is_fresh(MAX_STALE_READ) {
            return Err(AuthnError::Stale);
        }
        let snapshot = self.inner.snapshot.load();
        let (Subject::User(id) | Subject::ServiceAccount(id)) = subject else {
            return Err(AuthnError::Peer);
        };
        let principal = snapshot.world().principal(*id).ok_or(AuthnError::Revoked)?;
        if principal.disabled {
            return Err(AuthnError::Revoked);
        }
        Ok(Actor {
            subject: subject.clone(),
            name: principal.name.as_str().into(),
            authenticated_by: AuthenticatedBy::Token,
            workload: None,
        })
    }

    /// Which service, node or operator holds this certificate? The listener has verified it.
    ///
    /// # Errors
    /// [`AuthnError::Peer`] for any other identity.
    pub fn authenticate_peer(&self, peer: &PeerIdentity) -> Result<Actor, AuthnError> {
        if peer.trust_domain != self.inner.config.trust_domain {
            return Err(AuthnError::Peer);
        }
        let workload: WorkloadPath = peer.path.parse().map_err(|_| AuthnError::Peer)?;
        Ok(Actor {
            subject: Subject::Workload(workload.to_string()),
            name: workload.to_string().into(),
            authenticated_by: AuthenticatedBy::Certificate,
            workload: Some(workload),
        })
    }

    /// The project of that name, whoever asks.
    #[must_use]
    pub fn project(&self, name: &Name) -> Option<ProjectRef> {
        let snapshot = self.inner.snapshot.load();
        let (id, project) = snapshot.world().project_by_name(name)?;
        Some(ProjectRef {
            id,
            name: project.name.clone(),
            organisation: project.organisation,
        })
    }

    /// The project of that id, whoever asks.
    #[must_use]
    pub fn project_by_id(&self, id: ProjectId) -> Option<ProjectRef> {
        let snapshot = self.inner.snapshot.load();
        let project = snapshot.world().project(id)?;
        Some(ProjectRef {
            id,
            name: project.name.clone(),
            organisation: project.organisation,
        })
    }

    /// The projects that the actor may see, oldest first.
    #[must_use]
    pub fn projects_visible_to(&self, actor: &Actor) -> Vec<ProjectRef> {
        let snapshot = self.inner.snapshot.load();
        let world = snapshot.world();
        let may_see = |id| visible(world, &actor.subject, &ResourceRef::Project(id), actor.context());
        world
            .projects()
            .filter(|(id, _)| may_see(*id))
            .map(|(id, project)| ProjectRef {
                id,
                name: project.name.clone(),
                organisation: project.organisation,
            })
            .collect()
    }

    /// May the actor do `action` to `resource`?
    ///
    /// # Errors
    /// [`Denied`]: forbidden (403), invisible (404) or stale (503).
    pub fn check(
        &self,
        actor: &Actor,
        action: &'static str,
        resource: &ResourceRef,
    ) -> Result<Allowed, Denied> {
        let known = iam_authz::action(action);
        debug_assert!(
            known.is_some(),
            "`{action}` is not in iam-authz's table of actions"
        );
        let mutates = known.is_none_or(|known| known.mutates);
        if !self.is_fresh(if mutates {
            MAX_STALE_MUTATION
        } else {
            MAX_STALE_READ
        }) {
            return Err(Denied::Stale);
        }
        let snapshot = self.inner.snapshot.load();
        let world = snapshot.world();
        let context = actor.context();
        let decision = decide(
            world,
            &Question {
                subject: &actor.subject,
                action,
                resource,
                context,
            },
        );
        if decision.allowed {
            return Ok(Allowed {
                action,
                revision: snapshot.revision(),
                by: decision.determining,
            });
        }
        if visible(world, &actor.subject, resource, context) {
            Err(Denied::Forbidden {
                action: action.to_owned(),
            })
        } else {
            Err(Denied::Invisible)
        }
    }

    /// Finds the project by name and checks `action` on it, or on a resource of it. A project that is not there and
    /// one that the actor may not see give the same error.
    ///
    /// # Errors
    /// 404, 403 or 503.
    pub fn check_project(
        &self,
        actor: &Actor,
        action: &'static str,
        name: &Name,
    ) -> Result<(ProjectRef, Allowed), ApiError> {
        if self.staleness().is_none() {
            return Err(Denied::Stale.into());
        }
        let missing = || {
            ApiError::new(
                ErrorKind::NotFound,
                format!("there is no project `{name}` that you may see"),
            )
            .hint("`hearth project list` shows your projects")
        };
        let project = self.project(name).ok_or_else(missing)?;
        match self.check(actor, action, &ResourceRef::Project(project.id)) {
            Ok(allowed) => Ok((project, allowed)),
            Err(Denied::Invisible) => Err(missing()),
            Err(other) => Err(other.into()),
        }
    }

    /// Decides and says why, for any principal. Whoever offers this to callers checks first whether they may know.
    #[must_use]
    pub fn explain(
        &self,
        subject: &Subject,
        action: &str,
        resource: &ResourceRef,
        by: AuthenticatedBy,
    ) -> Explanation {
        let snapshot = self.inner.snapshot.load();
        let context = Context { authenticated_by: by };
        Explanation {
            decision: decide(
                snapshot.world(),
                &Question {
                    subject,
                    action,
                    resource,
                    context,
                },
            ),
            revision: snapshot.revision(),
            staleness: self.staleness().unwrap_or(Duration::MAX),
        }
    }

    /// The names of the actions that the actor may do to `resource`, for interfaces that hide what is not possible.
    #[must_use]
    pub fn allowed_actions(&self, actor: &Actor, resource: &ResourceRef) -> BTreeSet<&'static str> {
        let snapshot = self.inner.snapshot.load();
        let context = actor.context();
        let may = |action: &str| {
            let question = Question {
                subject: &actor.subject,
                action,
                resource,
                context,
            };
            decide(snapshot.world(), &question).allowed
        };
        iam_authz::ACTIONS
            .iter()
            .map(|action| action.name)
            .filter(|name| may(name))
            .collect()
    }
}

/// A clock before 1970.
struct TokenTimes;

impl From<TokenTimes> for AuthnError {
    fn from(_: TokenTimes) -> Self {
        Self::Token(token::TokenError::Times)
    }
}
