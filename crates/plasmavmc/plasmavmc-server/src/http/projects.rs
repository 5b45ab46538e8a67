//! `/v1/projects/{project}/quota`, `groups` and `explain`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use hearth_service::error::ApiError;
use iam_client::OpContext;
use plasmavmc_client::types::{
    ErrorBody, Explanation, Group, GroupCreate, GroupList, Quota, QuotaLimits, VmCreate,
};

use super::extract::{Body, KeyHeader};
use crate::app::once::RequestKey;
use crate::app::{App, explain, group, quota};

/// Shows what a project may take and what it takes.
#[utoipa::path(
    get, path = "/v1/projects/{project}/quota", operation_id = "get_quota", tag = "quotas",
    params(("project" = String, Path, description = "Name of the project")),
    responses((status = 200, body = Quota), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn get_quota(
    ctx: OpContext,
    State(app): State<App>,
    Path(project): Path<String>,
) -> Result<Json<Quota>, ApiError> {
    quota::get(&app, &ctx, &project).await.map(Json)
}

/// Sets what a project may take. A limit that is left out is none. What is above a limit already stays.
#[utoipa::path(
    put, path = "/v1/projects/{project}/quota", operation_id = "set_quota", tag = "quotas",
    params(("project" = String, Path, description = "Name of the project"), KeyHeader),
    request_body = QuotaLimits,
    responses((status = 200, body = Quota), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn set_quota(
    ctx: OpContext,
    State(app): State<App>,
    Path(project): Path<String>,
    key: RequestKey,
    Body(limits): Body<QuotaLimits>,
) -> Result<Json<Quota>, ApiError> {
    quota::set(&app, &ctx, &project, limits, &key).await.map(Json)
}

/// Creates a group of VMs that are placed with regard to each other. The same request may be repeated.
#[utoipa::path(
    post, path = "/v1/projects/{project}/groups", operation_id = "create_group", tag = "groups",
    params(("project" = String, Path, description = "Name of the project"), KeyHeader),
    request_body = GroupCreate,
    responses((status = 200, body = Group), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn create_group(
    ctx: OpContext,
    State(app): State<App>,
    Path(project): Path<String>,
    key: RequestKey,
    Body(request): Body<GroupCreate>,
) -> Result<Json<Group>, ApiError> {
    group::create(&app, &ctx, &project, &request, &key)
        .await
        .map(Json)
}

/// Lists a project's groups, without their members.
#[utoipa::path(
    get, path = "/v1/projects/{project}/groups", operation_id = "list_groups", tag = "groups",
    params(("project" = String, Path, description = "Name of the project")),
    responses((status = 200, body = GroupList), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list_groups(
    ctx: OpContext,
    State(app): State<App>,
    Path(project): Path<String>,
) -> Result<Json<GroupList>, ApiError> {
    group::list(&app, &ctx, &project).await.map(Json)
}

/// Shows a group and where its VMs are.
#[utoipa::path(
    get, path = "/v1/projects/{project}/groups/{group}", operation_id = "get_group", tag = "groups",
    params(("project" = String, Path, description = "Name of the project"), ("group" = String, Path, description = "Name of the group")),
    responses((status = 200, body = Group), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn get_group(
    ctx: OpContext,
    State(app): State<App>,
    Path((project, group)): Path<(String, String)>,
) -> Result<Json<Group>, ApiError> {
    group::get(&app, &ctx, &project, &group).await.map(Json)
}

/// Deletes a group that no VM is in.
#[utoipa::path(
    delete, path = "/v1/projects/{project}/groups/{group}", operation_id = "delete_group", tag = "groups",
    params(("project" = String, Path, description = "Name of the project"), ("group" = String, Path, description = "Name of the group"), KeyHeader),
    responses((status = 204, description = "Deleted"), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn delete_group(
    ctx: OpContext,
    State(app): State<App>,
    Path((project, group)): Path<(String, String)>,
    key: RequestKey,
) -> Result<StatusCode, ApiError> {
    group::delete(&app, &ctx, &project, &group, &key)
        .await
        .map(|()| StatusCode::NO_CONTENT)
}

/// Says where a VM could be created now, and of every other node why not. Nothing is created.
#[utoipa::path(
    post, path = "/v1/projects/{project}/explain", operation_id = "explain_creation", tag = "vms",
    params(("project" = String, Path, description = "Name of the project")),
    request_body = VmCreate,
    responses((status = 200, body = Explanation), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn explain_creation(
    ctx: OpContext,
    State(app): State<App>,
    Path(project): Path<String>,
    Body(request): Body<VmCreate>,
) -> Result<Json<Explanation>, ApiError> {
    explain::creation(&app, &ctx, &project, &request).await.map(Json)
}

/// Says of every node what speaks for and against it if the VM were placed now.
#[utoipa::path(
    get, path = "/v1/projects/{project}/vms/{vm}/explain", operation_id = "explain_vm", tag = "vms",
    params(("project" = String, Path, description = "Name of the project"), ("vm" = String, Path, description = "Name of the VM")),
    responses((status = 200, body = Explanation), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn explain_vm(
    ctx: OpContext,
    State(app): State<App>,
    Path((project, vm)): Path<(String, String)>,
) -> Result<Json<Explanation>, ApiError> {
    explain::vm(&app, &ctx, &project, &vm).await.map(Json)
}
