//! Organisations, projects, users, service accounts, groups.

use hearth_service::error::{ApiError, ErrorKind};
use hearth_types::{Name, OrganisationId, PrincipalId, ProjectId};
use iam_authn::{Secret, SecretKind, password};
use iam_authz::{Group, Node, Principal, PrincipalKind, ResourceRef, Subject, visible};
use iam_client::records::{
    GroupRecord, OrganisationRecord, PrincipalRecord, ProjectRecord, VERSION as V, binding_key, group_key,
    organisation_key, principal_key, project_key,
};
use iam_client::wire::{
    GroupMembers, GroupView, NewOrganisation, NewProject, NewSecret, NewServiceAccount, NewUser,
    OrganisationView, ProjectView, ServiceAccountView, UserChange, UserView,
};
use iam_client::{OpContext, ProjectRef, Snapshot};
use uuid::Uuid;

use super::mutate::Plan;
use super::paths::{find_account, no_such, parse_subject, subject_path};
use super::setup::user_record;
use super::signin::find_user;
use super::{Aegis, Revised, invalid, now_ms, random};
use crate::store::records::{AccountSecretRecord, PasswordRecord, VERSION, account_secrets, password_key};
use crate::store::{Commit, MAX_LISTED};

/// Most members of one group.
const MAX_MEMBERS: usize = 1000;
/// Most secrets of one service account, so that old ones are taken away.
const MAX_SECRETS: usize = 10;
/// Most bindings that go with their principal in one transaction (which takes at most 128 operations).
const MAX_BINDINGS_GONE: usize = 100;

fn taken(kind: &str, name: &Name) -> ApiError {
    ApiError::new(
        ErrorKind::AlreadyExists,
        format!("there is a {kind} `{name}` already"),
    )
}

pub(super) fn refuse_taken_user(snapshot: &Snapshot, name: &Name) -> Result<(), ApiError> {
    find_user(snapshot, name.as_str()).map_or(Ok(()), |_| Err(taken("user", name)))
}

pub(super) fn record_of(principal: &Principal) -> PrincipalRecord {
    let Principal {
        kind,
        name,
        disabled,
        epoch,
        project,
    } = principal.clone();
    PrincipalRecord {
        v: V,
        kind,
        name,
        disabled,
        epoch,
        project,
    }
}

/// Deletes the bindings of a principal along with it.
fn without_bindings(mut commit: Commit, snapshot: &Snapshot, subject: &Subject) -> Result<Commit, ApiError> {
    let bindings: Vec<_> = snapshot
        .world()
        .bindings()
        .filter(|one| &one.subject == subject)
        .collect();
    if bindings.len() > MAX_BINDINGS_GONE {
        return Err(
            ApiError::new(ErrorKind::FailedPrecondition, "it has more than 100 bindings")
                .hint("take some of its bindings away first"),
        );
    }
    for binding in bindings {
        commit = commit.delete(binding_key(binding.id));
    }
    Ok(commit)
}

impl Aegis {
    /// The organisations that the caller may see.
    #[must_use]
    pub fn organisations(&self, context: &OpContext) -> Vec<OrganisationView> {
        let snapshot = self.authorizer().snapshot();
        let may_see = |id: &OrganisationId| {
            let resource = ResourceRef::Organisation(*id);
            let by = iam_authz::Context {
                authenticated_by: context.actor().authenticated_by(),
            };
            visible(snapshot.world(), context.actor().subject(), &resource, by)
        };
        snapshot
            .world()
            .organisations()
            .filter(|(id, _)| may_see(id))
            .map(|(id, organisation)| OrganisationView {
                id,
                name: organisation.name.clone(),
            })
            .collect()
    }

    /// Adds an organisation.
    ///
    /// # Errors
    /// As every change: 403, 409, 503.
    pub async fn create_organisation(
        &self,
        context: &OpContext,
        new: &NewOrganisation,
    ) -> Result<Revised<OrganisationView>, ApiError> {
        let id = OrganisationId::from_uuid(Uuid::now_v7());
        self.mutate(context, |snapshot| {
            context.check("iam.organisation.create", &ResourceRef::Root)?;
            if snapshot
                .world()
                .organisations()
                .any(|(_, other)| other.name == new.name)
            {
                return Err(taken("organisation", &new.name));
            }
            let record = OrganisationRecord {
                v: V,
                name: new.name.clone(),
            };
            Ok(Plan {
                value: OrganisationView {
                    id,
                    name: new.name.clone(),
                },
                commit: Commit::default().put(organisation_key(id), &record),
                action: "iam.organisation.create",
                target: format!("organisation/{id}"),
                detail: new.name.to_string(),
            })
        })
        .await
    }

    fn project_view(snapshot: &Snapshot, project: &ProjectRef) -> ProjectView {
        let organisation = snapshot.world().organisation(project.organisation);
        ProjectView {
            id: project.id,
            name: project.name.clone(),
            organisation: organisation.map_or_else(String::new, |organisation| organisation.name.to_string()),
        }
    }

    /// The projects that the caller may see.
    #[must_use]
    pub fn projects(&self, context: &OpContext) -> Vec<ProjectView> {
        let snapshot = self.authorizer().snapshot();
        let visible = self.authorizer().projects_visible_to(context.actor());
        visible
            .iter()
            .map(|project| Self::project_view(&snapshot, project))
            .collect()
    }

    /// One project.
    ///
    /// # Errors
    /// 404.
    pub fn project(&self, context: &OpContext, name: &str) -> Result<ProjectView, ApiError> {
        let (project, _) = self.checked_project(context, "iam.project.get", name)?;
        Ok(Self::project_view(&self.authorizer().snapshot(), &project))
    }

    fn checked_project(
        &self,
        context: &OpContext,
        action: &'static str,
        name: &str,
    ) -> Result<(ProjectRef, iam_client::Allowed), ApiError> {
        // A text that is no name names no project.
        let name: Name = name.parse().map_err(|_| no_such("project", name))?;
        self.authorizer().check_project(context.actor(), action, &name)
    }

    /// Adds a project to an organisation.
    ///
    /// # Errors
    /// As every change.
    pub async fn create_project(
        &self,
        context: &OpContext,
        new: &NewProject,
    ) -> Result<Revised<ProjectView>, ApiError> {
        let id = ProjectId::from_uuid(Uuid::now_v7());
        self.mutate(context, |snapshot| {
            let wanted = new.organisation.as_ref().map_or("default", Name::as_str);
            let missing = || no_such("organisation", wanted);
            let mut organisations = snapshot.world().organisations();
            let (organisation, _) = organisations
                .find(|(_, organisation)| organisation.name.as_str() == wanted)
                .ok_or_else(missing)?;
            match context.check("iam.project.create", &ResourceRef::Organisation(organisation)) {
                Err(iam_client::Denied::Invisible) => return Err(missing()),
                other => other?,
            };
            if snapshot.world().project_by_name(&new.name).is_some() {
                return Err(taken("project", &new.name));
            }
            let record = ProjectRecord {
                v: V,
                name: new.name.clone(),
                organisation,
                folder: None,
            };
            Ok(Plan {
                value: ProjectView {
                    id,
                    name: new.name.clone(),
                    organisation: wanted.to_owned(),
                },
                commit: Commit::default().put(project_key(id), &record),
                action: "iam.project.create",
                target: format!("project/{id}"),
                detail: new.name.to_string(),
            })
        })
        .await
    }

    /// All users.
    ///
    /// # Errors
    /// 403.
    pub fn users(&self, context: &OpContext) -> Result<Vec<UserView>, ApiError> {
        context.check("iam.user.list", &ResourceRef::Root)?;
        let snapshot = self.authorizer().snapshot();
        let users = snapshot
            .world()
            .principals()
            .filter(|(_, principal)| principal.kind == PrincipalKind::User);
        Ok(users
            .map(|(id, user)| UserView {
                id,
                name: user.name.clone(),
                disabled: user.disabled,
            })
            .collect())
    }

    /// One user.
    ///
    /// # Errors
    /// 403, 404.
    pub fn user(&self, context: &OpContext, name: &str) -> Result<UserView, ApiError> {
        context.check("iam.user.get", &ResourceRef::Root)?;
        let snapshot = self.authorizer().snapshot();
        let (id, user) = find_user(&snapshot, name).ok_or_else(|| no_such("user", name))?;
        Ok(UserView {
            id,
            name: user.name.clone(),
            disabled: user.disabled,
        })
    }

    /// Adds a user.
    ///
    /// # Errors
    /// As every change; 400 for a weak password.
    pub async fn create_user(
        &self,
        context: &OpContext,
        new: &NewUser,
    ) -> Result<Revised<UserView>, ApiError> {
        // Before the costly hash; the change itself checks again at its own revision.
        context.check("iam.user.create", &ResourceRef::Root)?;
        password::check(&new.password, new.name.as_str()).map_err(|error| invalid(error.to_string()))?;
        let hash = self.inner.hashing.hash(&new.password, random()?).await?;
        let id = PrincipalId::from_uuid(Uuid::now_v7());
        self.mutate(context, |snapshot| {
            context.check("iam.user.create", &ResourceRef::Root)?;
            refuse_taken_user(snapshot, &new.name)?;
            Ok(Plan {
                value: UserView {
                    id,
                    name: new.name.clone(),
                    disabled: false,
                },
                commit: Commit::default()
                    .put(principal_key(id), &user_record(&new.name))
                    .put(
                        password_key(id),
                        &PasswordRecord {
                            v: VERSION,
                            hash: hash.clone(),
                        },
                    ),
                action: "iam.user.create",
                target: format!("user/{id}"),
                detail: new.name.to_string(),
            })
        })
        .await
    }

    /// Disables a user (every token of it is void at once) or enables it (it must sign in again).
    ///
    /// # Errors
    /// As every change; 412 for the last administrator.
    pub async fn change_user(
        &self,
        context: &OpContext,
        name: &str,
        change: &UserChange,
    ) -> Result<Revised<UserView>, ApiError> {
        self.mutate(context, |snapshot| {
            context.check("iam.user.update", &ResourceRef::Root)?;
            let (id, user) = find_user(snapshot, name).ok_or_else(|| no_such("user", name))?;
            if change.disabled && context.actor().subject() == &Subject::User(id) {
                // Whoever disables keeps the means to enable: this is what keeps one administrator at least.
                return Err(
                    ApiError::new(ErrorKind::FailedPrecondition, "you cannot disable yourself")
                        .hint("ask another administrator"),
                );
            }
            let mut record = record_of(user);
            record.disabled = change.disabled;
            record.epoch += 1;
            Ok(Plan {
                value: UserView {
                    id,
                    name: user.name.clone(),
                    disabled: change.disabled,
                },
                commit: Commit::default().put(principal_key(id), &record),
                action: "iam.user.update",
                target: format!("user/{id}"),
                detail: format!("disabled: {}", change.disabled),
            })
        })
        .await
    }

    /// The service accounts of a project.
    ///
    /// # Errors
    /// 403, 404.
    pub fn service_accounts(
        &self,
        context: &OpContext,
        project: &str,
    ) -> Result<Vec<ServiceAccountView>, ApiError> {
        let (project, _) = self.checked_project(context, "iam.serviceaccount.list", project)?;
        let snapshot = self.authorizer().snapshot();
        let accounts = snapshot
            .world()
            .principals()
            .filter(|(_, one)| one.project == Some(project.id));
        let view = |(id, account): (PrincipalId, &Principal)| ServiceAccountView {
            id,
            name: account.name.clone(),
            project: project.name.to_string(),
            disabled: account.disabled,
        };
        Ok(accounts.map(view).collect())
    }

    /// Adds a service account.
    ///
    /// # Errors
    /// As every change.
    pub async fn create_service_account(
        &self,
        context: &OpContext,
        project: &str,
        new: &NewServiceAccount,
    ) -> Result<Revised<ServiceAccountView>, ApiError> {
        let id = PrincipalId::from_uuid(Uuid::now_v7());
        self.mutate(context, |snapshot| {
            let (project, _) = self.checked_project(context, "iam.serviceaccount.create", project)?;
            if find_account(snapshot, project.name.as_str(), new.name.as_str()).is_some() {
                return Err(taken("service account", &new.name));
            }
            let record = PrincipalRecord {
                v: V,
                kind: PrincipalKind::ServiceAccount,
                name: new.name.clone(),
                disabled: false,
                epoch: 1,
                project: Some(project.id),
            };
            Ok(Plan {
                value: ServiceAccountView {
                    id,
                    name: new.name.clone(),
                    project: project.name.to_string(),
                    disabled: false,
                },
                commit: Commit::default().put(principal_key(id), &record),
                action: "iam.serviceaccount.create",
                target: format!("service-account/{id}"),
                detail: format!("{} in project {}", new.name, project.name),
            })
        })
        .await
    }

    /// Removes a service account with its secrets and bindings.
    ///
    /// # Errors
    /// As every change.
    pub async fn delete_service_account(
        &self,
        context: &OpContext,
        project: &str,
        name: &str,
    ) -> Result<Revised<()>, ApiError> {
        // Which secrets there are is read before; one that is made meanwhile belongs to nobody and opens nothing.
        let (found, _) = self.checked_project(context, "iam.serviceaccount.delete", project)?;
        let id = find_account(&self.authorizer().snapshot(), found.name.as_str(), name).map(|(id, _)| id);
        let id = id.ok_or_else(|| no_such("service account", name))?;
        let secrets = self.store().list(&account_secrets(id)).await?;
        self.mutate(context, |snapshot| {
            self.checked_project(context, "iam.serviceaccount.delete", project)?;
            let (now, _) =
                find_account(snapshot, project, name).ok_or_else(|| no_such("service account", name))?;
            if now != id {
                return Err(no_such("service account", name));
            }
            let mut commit = Commit::default().delete(principal_key(id));
            for secret in secrets.iter().take(MAX_SECRETS) {
                commit = commit.delete(&secret.key);
            }
            commit = without_bindings(commit, snapshot, &Subject::ServiceAccount(id))?;
            Ok(Plan {
                value: (),
                commit,
                action: "iam.serviceaccount.delete",
                target: format!("service-account/{id}"),
                detail: name.to_owned(),
            })
        })
        .await
    }

    /// Makes a secret of a service account. Whoever has it acts as the account, so its maker must hold everything that
    /// the account holds.
    ///
    /// # Errors
    /// As every change.
    pub async fn create_secret(
        &self,
        context: &OpContext,
        project: &str,
        account: &str,
    ) -> Result<Revised<NewSecret>, ApiError> {
        let handle = Uuid::now_v7().to_string();
        let secret = Secret::new(SecretKind::ServiceAccount, &handle, &random()?);
        let (found, _) = self.checked_project(context, "iam.serviceaccount.update", project)?;
        let id = find_account(&self.authorizer().snapshot(), found.name.as_str(), account).map(|(id, _)| id);
        let id = id.ok_or_else(|| no_such("service account", account))?;
        if self.store().list(&account_secrets(id)).await?.len() >= MAX_SECRETS {
            return Err(ApiError::new(
                ErrorKind::ResourceExhausted,
                "the service account has ten secrets",
            )
            .hint("delete the service account and make it again, or use a secret that it has"));
        }
        self.mutate(context, |snapshot| {
            self.checked_project(context, "iam.serviceaccount.update", project)?;
            let (id, _) = find_account(snapshot, project, account)
                .ok_or_else(|| no_such("service account", account))?;
            self.refuse_stronger(context, snapshot, &Subject::ServiceAccount(id))?;
            let record = AccountSecretRecord {
                v: VERSION,
                hash: secret.hash(),
                created_ms: now_ms(),
            };
            Ok(Plan {
                value: NewSecret {
                    id: handle.clone(),
                    client_id: id.to_string(),
                    client_secret: secret.reveal(),
                },
                commit: Commit::default().put(format!("{}{handle}", account_secrets(id)), &record),
                action: "iam.serviceaccount.update",
                target: format!("service-account/{id}"),
                detail: format!("secret {handle} made"),
            })
        })
        .await
    }

    /// All groups.
    ///
    /// # Errors
    /// 403.
    pub fn groups(&self, context: &OpContext) -> Result<Vec<GroupView>, ApiError> {
        context.check("iam.group.list", &ResourceRef::Root)?;
        let snapshot = self.authorizer().snapshot();
        let mut groups: Vec<_> = snapshot
            .world()
            .groups()
            .map(|(id, group)| GroupView {
                id,
                name: group.name.clone(),
                members: group
                    .members
                    .iter()
                    .map(|member| subject_path(&snapshot, member))
                    .collect(),
            })
            .take(MAX_LISTED)
            .collect();
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(groups)
    }

    /// Makes a group, or gives one its members. Whoever adds a member gives it what is bound to the group, and must
    /// hold all of that.
    ///
    /// # Errors
    /// As every change; 412 for cycles and groups nested too deep.
    pub async fn put_group(
        &self,
        context: &OpContext,
        name: &str,
        wanted: &GroupMembers,
    ) -> Result<Revised<GroupView>, ApiError> {
        let name: Name = name
            .parse()
            .map_err(|error: hearth_types::NameError| invalid(error.to_string()))?;
        if wanted.members.len() > MAX_MEMBERS {
            return Err(invalid(format!(
                "a group has at most {MAX_MEMBERS} members; nest groups"
            )));
        }
        let fresh = PrincipalId::from_uuid(Uuid::now_v7());
        self.mutate(context, |snapshot| {
            let existing = snapshot
                .world()
                .groups()
                .find(|(_, group)| group.name == name)
                .map(|(id, _)| id);
            let action = if existing.is_some() {
                "iam.group.update"
            } else {
                "iam.group.create"
            };
            context.check(action, &ResourceRef::Root)?;
            let id = existing.unwrap_or(fresh);
            let members = wanted
                .members
                .iter()
                .map(|path| parse_subject(snapshot, path))
                .collect::<Result<Vec<_>, _>>()?;
            if members
                .iter()
                .any(|member| matches!(member, Subject::Workload(_)))
            {
                return Err(invalid(
                    "workloads cannot be members of groups; bind roles to them",
                ));
            }
            let group = Group {
                name: name.clone(),
                members,
            };
            snapshot
                .world()
                .check_group(id, &group)
                .map_err(|error| ApiError::new(ErrorKind::FailedPrecondition, error.to_string()))?;
            if existing.is_some() {
                self.refuse_stronger(context, snapshot, &Subject::Group(id))?;
            }
            let Group { name, members } = group;
            Ok(Plan {
                value: GroupView {
                    id,
                    name: name.clone(),
                    members: wanted.members.clone(),
                },
                commit: Commit::default().put(group_key(id), &GroupRecord { v: V, name, members }),
                action,
                target: format!("group/{id}"),
                detail: wanted.members.join(" "),
            })
        })
        .await
    }

    /// Removes a group with its bindings.
    ///
    /// # Errors
    /// As every change.
    pub async fn delete_group(&self, context: &OpContext, name: &str) -> Result<Revised<()>, ApiError> {
        self.mutate(context, |snapshot| {
            context.check("iam.group.delete", &ResourceRef::Root)?;
            let mut groups = snapshot.world().groups();
            let (id, _) = groups
                .find(|(_, group)| group.name.as_str() == name)
                .ok_or_else(|| no_such("group", name))?;
            let commit = without_bindings(
                Commit::default().delete(group_key(id)),
                snapshot,
                &Subject::Group(id),
            )?;
            Ok(Plan {
                value: (),
                commit,
                action: "iam.group.delete",
                target: format!("group/{id}"),
                detail: name.to_owned(),
            })
        })
        .await
    }

    /// Refuses when `subject` holds anything, directly or through groups, that the caller does not.
    fn refuse_stronger(
        &self,
        context: &OpContext,
        snapshot: &Snapshot,
        subject: &Subject,
    ) -> Result<(), ApiError> {
        let subjects = snapshot.world().subjects_of(subject).unwrap_or_default();
        let held = snapshot
            .world()
            .bindings()
            .filter(|binding| subjects.contains(&binding.subject));
        held.map(|binding| (binding.role, binding.node))
            .try_for_each(|(role, node): (_, Node)| {
                super::policy::refuse_ungranted(context, snapshot, role, node)
            })
    }
}
