//! Bindings, explanations, the audit trail.

use hearth_service::error::{ApiError, ErrorKind};
use hearth_types::{BindingId, PageToken};
use iam_authz::{AuthenticatedBy, Node, PolicyRef, ResourceRef, Role, Subject, missing_for_grant};
use iam_client::records::{BindingRecord, VERSION as V, binding_key};
use iam_client::wire::{
    AuditView, BindingView, CheckAnswer, CheckRequest, NewBinding, Page, RoleView, WhoAmI,
};
use iam_client::{Denied, OpContext, Snapshot};
use uuid::Uuid;

use super::mutate::Plan;
use super::paths::{binding_view, no_such, parse_place, parse_subject, subject_path};
use super::{Aegis, Revised, invalid};
use crate::store::Commit;
use crate::store::records::{AUDIT, AuditRecord};

/// Refuses when the caller does not hold every permission of `role` on `node`: nobody grants what they do not hold.
pub(super) fn refuse_ungranted(
    context: &OpContext,
    snapshot: &Snapshot,
    role: Role,
    node: Node,
) -> Result<(), ApiError> {
    let by = iam_authz::Context {
        authenticated_by: context.actor().authenticated_by(),
    };
    match missing_for_grant(snapshot.world(), context.actor().subject(), role, node, by) {
        None => Ok(()),
        Some(action) => Err(ApiError::new(
            ErrorKind::PermissionDenied,
            format!("you cannot give the role `{role}` here, because you do not hold `{action}` yourself"),
        )),
    }
}

/// A denial for a place: an invisible one looks like one that does not exist.
fn place_denied(path: &str) -> impl Fn(Denied) -> ApiError + '_ {
    move |denied| match denied {
        Denied::Invisible => no_such("place", path),
        other => other.into(),
    }
}

impl Aegis {
    /// Who the caller is and what is bound to them.
    #[must_use]
    pub fn whoami(&self, context: &OpContext) -> WhoAmI {
        let snapshot = self.authorizer().snapshot();
        let subject = context.actor().subject();
        let subjects = snapshot.world().subjects_of(subject).unwrap_or_default();
        let held = snapshot
            .world()
            .bindings()
            .filter(|binding| subjects.contains(&binding.subject));
        let projects = self.authorizer().projects_visible_to(context.actor());
        WhoAmI {
            subject: subject_path(&snapshot, subject),
            id: subject.id(),
            bindings: held.map(|binding| binding_view(&snapshot, binding)).collect(),
            projects: projects.into_iter().map(|project| project.name.into()).collect(),
        }
    }

    /// The built-in roles.
    ///
    /// # Errors
    /// 401 and 503 only: everybody who is signed in may see them.
    pub fn roles(&self, context: &OpContext) -> Result<Vec<RoleView>, ApiError> {
        context.check("iam.role.list", &ResourceRef::Root)?;
        let view = |role: Role| RoleView {
            name: role.to_string(),
            description: role.description().to_owned(),
            actions: role.actions().map(|action| action.name.to_owned()).collect(),
        };
        Ok(Role::ALL.into_iter().map(view).collect())
    }

    /// The bindings on a place itself (not those above it).
    ///
    /// # Errors
    /// 403, 404.
    pub fn bindings(&self, context: &OpContext, on: &str) -> Result<Vec<BindingView>, ApiError> {
        let snapshot = self.authorizer().snapshot();
        let node = parse_place(&snapshot, on)?;
        context
            .check("iam.binding.list", &node.as_resource())
            .map_err(place_denied(on))?;
        let here = snapshot.world().bindings().filter(|binding| binding.node == node);
        Ok(here.map(|binding| binding_view(&snapshot, binding)).collect())
    }

    /// Grants a role.
    ///
    /// # Errors
    /// As every change; 403 when the caller does not hold the role's permissions itself.
    pub async fn create_binding(
        &self,
        context: &OpContext,
        new: &NewBinding,
    ) -> Result<Revised<BindingView>, ApiError> {
        let fresh = BindingId::from_uuid(Uuid::now_v7());
        self.mutate(context, |snapshot| {
            let node = parse_place(snapshot, &new.on)?;
            context
                .check("iam.binding.create", &node.as_resource())
                .map_err(place_denied(&new.on))?;
            let subject = parse_subject(snapshot, &new.subject)?;
            refuse_ungranted(context, snapshot, new.role, node)?;
            let is_same = |one: &&iam_authz::Binding| {
                one.subject == subject && one.role == new.role && one.node == node
            };
            if snapshot.world().bindings().find(is_same).is_some() {
                return Err(ApiError::new(ErrorKind::AlreadyExists, "this is granted already"));
            }
            let record = BindingRecord {
                v: V,
                subject: subject.clone(),
                role: new.role,
                node,
            };
            let binding = iam_authz::Binding {
                id: fresh,
                subject,
                role: new.role,
                node,
            };
            let view = binding_view(snapshot, &binding);
            Ok(Plan {
                commit: Commit::default().put(binding_key(fresh), &record),
                action: "iam.binding.create",
                target: node.to_string(),
                detail: format!("binding {fresh}: {} for {}", view.role, view.subject),
                value: view,
            })
        })
        .await
    }

    /// Takes a grant away.
    ///
    /// # Errors
    /// As every change; 412 for the last administrator of the cluster.
    pub async fn delete_binding(&self, context: &OpContext, id: &str) -> Result<Revised<()>, ApiError> {
        let missing = || no_such("binding", id);
        let parsed: BindingId = id.parse().map_err(|_| missing())?;
        self.mutate(context, |snapshot| {
            let binding = snapshot.world().binding(parsed).ok_or_else(missing)?;
            context
                .check("iam.binding.delete", &binding.node.as_resource())
                .map_err(|denied| match denied {
                    // Whoever may not list the bindings of the place learns nothing of this one.
                    Denied::Invisible => missing(),
                    Denied::Forbidden { .. }
                        if context
                            .check("iam.binding.list", &binding.node.as_resource())
                            .is_err() =>
                    {
                        missing()
                    }
                    other => other.into(),
                })?;
            if is_last_admin(snapshot, parsed) {
                return Err(ApiError::new(
                    ErrorKind::FailedPrecondition,
                    "this is the cluster's last administrator",
                )
                .hint("make another one first"));
            }
            Ok(Plan {
                value: (),
                commit: Commit::default().delete(binding_key(parsed)),
                action: "iam.binding.delete",
                target: binding.node.to_string(),
                detail: format!(
                    "binding {parsed}: {} for {}",
                    binding.role,
                    subject_path(snapshot, &binding.subject)
                ),
            })
        })
        .await
    }

    /// Decides and says why. About others, only for those who may see the bindings of the place.
    ///
    /// # Errors
    /// 403, 404.
    pub fn check(&self, context: &OpContext, request: &CheckRequest) -> Result<CheckAnswer, ApiError> {
        let snapshot = self.authorizer().snapshot();
        let action = iam_authz::action(&request.action).ok_or_else(|| {
            invalid(format!(
                "there is no permission `{}`; `hearth iam role list` shows them",
                request.action
            ))
        })?;
        let node = parse_place(&snapshot, &request.on)?;
        let resource = node.as_resource();
        let own = context.actor().subject();
        let (subject, by) = match request.subject.as_deref() {
            None => (own.clone(), context.actor().authenticated_by()),
            Some(path) => {
                context
                    .check("iam.binding.list", &resource)
                    .map_err(place_denied(&request.on))?;
                let subject = parse_subject(&snapshot, path)?;
                let by = match subject {
                    Subject::Workload(_) => AuthenticatedBy::Certificate,
                    Subject::User(_) | Subject::ServiceAccount(_) | Subject::Group(_) => {
                        AuthenticatedBy::Token
                    }
                };
                (subject, by)
            }
        };
        let by_context = iam_authz::Context {
            authenticated_by: context.actor().authenticated_by(),
        };
        if !iam_authz::visible(snapshot.world(), own, &resource, by_context) {
            return Err(no_such("place", &request.on));
        }
        let explanation = self.authorizer().explain(&subject, action.name, &resource, by);
        let because = explanation.decision.determining.iter().map(|by| match by {
            PolicyRef::Binding(id) => format!("binding/{id}"),
            PolicyRef::Platform(name) => format!("platform/{name}"),
        });
        Ok(CheckAnswer {
            allowed: explanation.decision.allowed,
            because: because.collect(),
            revision: explanation.revision,
        })
    }

    /// The audit trail, newest first.
    ///
    /// # Errors
    /// 403; 400 for a page token of somewhere else.
    pub async fn audit(
        &self,
        context: &OpContext,
        limit: usize,
        page: Option<&PageToken>,
    ) -> Result<Page<AuditView>, ApiError> {
        context.check("iam.audit.read", &ResourceRef::Root)?;
        let before = page.map(|page| format!("{AUDIT}{}", page.position()));
        let stored = self.store().list_back(AUDIT, before.as_deref(), limit).await?;
        let full = stored.len() == limit;
        let mut items = Vec::with_capacity(stored.len());
        for one in stored {
            let record: AuditRecord = one.read()?;
            items.push(AuditView {
                id: one.key.trim_start_matches(AUDIT).to_owned(),
                time_ms: record.time_ms,
                actor: record.actor,
                actor_name: record.actor_name,
                action: record.action,
                target: record.target,
                request_id: record.request_id,
                detail: record.detail,
            });
        }
        let last = items.last().filter(|_| full);
        let next_page = last
            .and_then(|last| PageToken::after(&last.id).ok())
            .map(|token| token.to_string());
        Ok(Page { items, next_page })
    }
}

/// Whether no user but through this binding is administrator of the root. Only users count: a group may be empty.
fn is_last_admin(snapshot: &Snapshot, id: BindingId) -> bool {
    let world = snapshot.world();
    let is_root_admin =
        |binding: &&iam_authz::Binding| binding.node == Node::Root && binding.role == Role::Admin;
    let is_somebody = |binding: &iam_authz::Binding| match &binding.subject {
        Subject::User(user) => world.principal(*user).is_some_and(|user| !user.disabled),
        Subject::ServiceAccount(_) | Subject::Group(_) | Subject::Workload(_) => false,
    };
    let mut admins = world
        .bindings()
        .filter(is_root_admin)
        .filter(|binding| is_somebody(binding));
    let is_one = world
        .binding(id)
        .is_some_and(|binding| is_root_admin(&binding) && is_somebody(binding));
    is_one && admins.all(|binding| binding.id == id)
}
