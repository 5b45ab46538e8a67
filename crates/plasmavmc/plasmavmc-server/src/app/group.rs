//! Groups of VMs that are placed with regard to each other.

use hearth_service::error::{ApiError, ErrorKind};
use hearth_types::Name;
use iam_client::OpContext;
use plasmavmc_client::types::{Group, GroupCreate, GroupList, GroupMember, GroupRule as Wire};
use plasmavmc_core::GroupRule;

use super::once::{Once, RequestKey};
use super::vm::{invalid, now_ms};
use super::{App, Scope, wire};
use crate::store::records::{GroupRecord, VERSION};
use crate::store::{MAX_CONTENTION, Stored};

/// Most groups of a project.
const MAX_GROUPS: usize = 1000;

pub(crate) async fn create(
    app: &App,
    ctx: &OpContext,
    project: &str,
    request: &GroupCreate,
    key: &RequestKey,
) -> Result<Group, ApiError> {
    let scope = app.in_project(ctx, "vmc.group.create", project)?;
    let name: Name = request
        .name
        .parse()
        .map_err(|error: hearth_types::NameError| invalid(error.to_string()))?;
    let once = Once::new(scope.store, Some(scope.project.id), key, "create_group", request)?;
    if let Some(earlier) = once.earlier().await? {
        return Ok(earlier);
    }
    if scope.store.groups(scope.project.id).await?.len() >= MAX_GROUPS {
        let message = format!("project `{}` has {MAX_GROUPS} groups already", scope.project.name);
        return Err(
            ApiError::new(ErrorKind::ResourceExhausted, message).hint("delete those that are not needed")
        );
    }
    let record = GroupRecord {
        version: VERSION,
        name: name.clone(),
        rule: match request.rule {
            Wire::Apart => GroupRule::Apart,
            Wire::Together => GroupRule::Together,
        },
        strict: request.strict,
        members: Default::default(),
        created_at_ms: now_ms(),
    };
    let answer = wire::group(&record, Vec::new());
    let along = once.along(&answer)?;
    if scope.store.create_group(scope.project.id, &record, along).await? {
        return Ok(answer);
    }
    if let Some(earlier) = once.earlier().await? {
        return Ok(earlier);
    }
    // One that is there already as it is asked for is as good as a new one.
    let existing = find(&scope, name.as_str()).await?;
    if (existing.value.rule, existing.value.strict) == (record.rule, record.strict) {
        let answer = shown(&scope, existing.value).await?;
        return if once.keep(&answer, Vec::new()).await? {
            Ok(answer)
        } else {
            Ok(once.earlier().await?.unwrap_or(answer))
        };
    }
    let message = format!(
        "project `{}` has a group named `{name}` with another rule",
        scope.project.name
    );
    Err(ApiError::new(ErrorKind::AlreadyExists, message)
        .hint("choose another name, or delete that group first"))
}

pub(crate) async fn list(app: &App, ctx: &OpContext, project: &str) -> Result<GroupList, ApiError> {
    let scope = app.in_project(ctx, "vmc.group.list", project)?;
    let groups = scope.store.groups(scope.project.id).await?;
    let items = groups
        .iter()
        .map(|group| wire::group(group, Vec::new()))
        .collect();
    Ok(GroupList { items })
}

pub(crate) async fn get(app: &App, ctx: &OpContext, project: &str, group: &str) -> Result<Group, ApiError> {
    let scope = app.in_project(ctx, "vmc.group.list", project)?;
    let group = find(&scope, group).await?;
    shown(&scope, group.value).await
}

/// Deletes a group without members.
pub(crate) async fn delete(
    app: &App,
    ctx: &OpContext,
    project: &str,
    group: &str,
    key: &RequestKey,
) -> Result<(), ApiError> {
    let scope = app.in_project(ctx, "vmc.group.delete", project)?;
    let once = Once::new(scope.store, Some(scope.project.id), key, "delete_group", &group)?;
    for _ in 0..MAX_CONTENTION {
        if let Some(()) = once.earlier().await? {
            return Ok(());
        }
        let found = find(&scope, group).await?;
        if !found.value.members.is_empty() {
            let message = format!("group `{group}` has {} VMs", found.value.members.len());
            return Err(
                ApiError::new(ErrorKind::FailedPrecondition, message).hint(format!(
                    "delete them first; `hearth group show {group}` names them"
                )),
            );
        }
        let along = once.along(&())?;
        if scope.store.delete_group(scope.project.id, &found, along).await? {
            return Ok(());
        }
    }
    Err(ApiError::new(
        ErrorKind::Unavailable,
        format!("group `{group}` is being used by too many at once"),
    )
    .hint("try again"))
}

async fn find(scope: &Scope<'_>, group: &str) -> Result<Stored<GroupRecord>, ApiError> {
    let name: Name = group.parse().map_err(|_| missing(group, &scope.project.name))?;
    let found = scope.store.group(scope.project.id, &name).await?;
    found.ok_or_else(|| missing(group, &scope.project.name))
}

pub(crate) fn missing(group: &str, project: &Name) -> ApiError {
    ApiError::new(
        ErrorKind::NotFound,
        format!("there is no group `{group}` in project `{project}`"),
    )
    .hint("`hearth group list` shows the project's groups, `hearth group create` makes one")
}

/// With the members' names.
async fn shown(scope: &Scope<'_>, group: GroupRecord) -> Result<Group, ApiError> {
    let mut members = Vec::new();
    for (vm, node) in &group.members {
        // One that has just gone is no member any more.
        if let Some(view) = scope.store.vm(scope.project.id, *vm).await? {
            members.push(GroupMember {
                id: *vm,
                name: view.record.value.name.clone(),
                node: node.to_string(),
            });
        }
    }
    Ok(wire::group(&group, members))
}
