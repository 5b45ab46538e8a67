//! `/v1/projects/{project}/vms`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use hearth_service::error::ApiError;
use iam_client::OpContext;
use plasmavmc_client::types::{ErrorBody, PageQuery, Vm, VmCreate, VmList, VmStop};

use super::extract::{Body, KeyHeader, OptionalBody, Params};
use crate::app::once::RequestKey;
use crate::app::{App, act, create, vm};

/// Creates a VM. It is placed at once and made by its node afterwards.
#[utoipa::path(
    post, path = "/v1/projects/{project}/vms", operation_id = "create_vm", tag = "vms",
    params(
        ("project" = String, Path, description = "Name of the project"),
        KeyHeader
    ),
    request_body = VmCreate,
    responses((status = 202, description = "Placed", body = Vm), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn create(
    ctx: OpContext,
    State(app): State<App>,
    Path(project): Path<String>,
    key: RequestKey,
    Body(request): Body<VmCreate>,
) -> Result<(StatusCode, Json<Vm>), ApiError> {
    let vm = create::create(&app, &ctx, &project, &request, &key).await?;
    Ok((StatusCode::ACCEPTED, Json(vm)))
}

/// Lists a project's VMs.
#[utoipa::path(
    get, path = "/v1/projects/{project}/vms", operation_id = "list_vms", tag = "vms",
    params(("project" = String, Path, description = "Name of the project"), PageQuery),
    responses((status = 200, body = VmList), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list(
    ctx: OpContext,
    State(app): State<App>,
    Path(project): Path<String>,
    Params(page): Params<PageQuery>,
) -> Result<Json<VmList>, ApiError> {
    vm::list(&app, &ctx, &project, &page).await.map(Json)
}

/// Shows a VM.
#[utoipa::path(
    get, path = "/v1/projects/{project}/vms/{vm}", operation_id = "get_vm", tag = "vms",
    params(("project" = String, Path, description = "Name of the project"), ("vm" = String, Path, description = "Name of the VM")),
    responses((status = 200, body = Vm), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn get(
    ctx: OpContext,
    State(app): State<App>,
    Path((project, vm)): Path<(String, String)>,
) -> Result<Json<Vm>, ApiError> {
    vm::get(&app, &ctx, &project, &vm).await.map(Json)
}

/// Asks for a VM's deletion, its disk included. It is done when the VM is not found any more.
#[utoipa::path(
    delete, path = "/v1/projects/{project}/vms/{vm}", operation_id = "delete_vm", tag = "vms",
    params(("project" = String, Path, description = "Name of the project"), ("vm" = String, Path, description = "Name of the VM"), KeyHeader),
    responses((status = 202, description = "Being deleted", body = Vm), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn delete(
    ctx: OpContext,
    State(app): State<App>,
    Path((project, vm)): Path<(String, String)>,
    key: RequestKey,
) -> Result<(StatusCode, Json<Vm>), ApiError> {
    Ok((
        StatusCode::ACCEPTED,
        Json(vm::delete(&app, &ctx, &project, &vm, &key).await?),
    ))
}

/// Asks for a VM to run.
#[utoipa::path(
    post, path = "/v1/projects/{project}/vms/{vm}/start", operation_id = "start_vm", tag = "vms",
    params(("project" = String, Path, description = "Name of the project"), ("vm" = String, Path, description = "Name of the VM"), KeyHeader),
    responses((status = 202, description = "Being started", body = Vm), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn start(
    ctx: OpContext,
    State(app): State<App>,
    Path((project, vm)): Path<(String, String)>,
    key: RequestKey,
) -> Result<(StatusCode, Json<Vm>), ApiError> {
    Ok((
        StatusCode::ACCEPTED,
        Json(vm::start(&app, &ctx, &project, &vm, &key).await?),
    ))
}

/// Asks for a VM to be off: gracefully, and by force after a time.
#[utoipa::path(
    post, path = "/v1/projects/{project}/vms/{vm}/stop", operation_id = "stop_vm", tag = "vms",
    params(("project" = String, Path, description = "Name of the project"), ("vm" = String, Path, description = "Name of the VM"), KeyHeader),
    request_body = Option<VmStop>,
    responses((status = 202, description = "Being stopped", body = Vm), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn stop(
    ctx: OpContext,
    State(app): State<App>,
    Path((project, vm)): Path<(String, String)>,
    key: RequestKey,
    OptionalBody(how): OptionalBody<VmStop>,
) -> Result<(StatusCode, Json<Vm>), ApiError> {
    Ok((
        StatusCode::ACCEPTED,
        Json(vm::stop(&app, &ctx, &project, &vm, how, &key).await?),
    ))
}

/// Asks for a running VM's reset button to be pressed. Its node does it once.
#[utoipa::path(
    post, path = "/v1/projects/{project}/vms/{vm}/reset", operation_id = "reset_vm", tag = "vms",
    params(("project" = String, Path, description = "Name of the project"), ("vm" = String, Path, description = "Name of the VM"), KeyHeader),
    responses((status = 202, description = "Being reset", body = Vm), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn reset(
    ctx: OpContext,
    State(app): State<App>,
    Path((project, vm)): Path<(String, String)>,
    key: RequestKey,
) -> Result<(StatusCode, Json<Vm>), ApiError> {
    Ok((
        StatusCode::ACCEPTED,
        Json(act::reset(&app, &ctx, &project, &vm, &key).await?),
    ))
}

/// Asks for a running VM to stand still. Its memory and its address stay.
#[utoipa::path(
    post, path = "/v1/projects/{project}/vms/{vm}/pause", operation_id = "pause_vm", tag = "vms",
    params(("project" = String, Path, description = "Name of the project"), ("vm" = String, Path, description = "Name of the VM"), KeyHeader),
    responses((status = 202, description = "Being paused", body = Vm), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn pause(
    ctx: OpContext,
    State(app): State<App>,
    Path((project, vm)): Path<(String, String)>,
    key: RequestKey,
) -> Result<(StatusCode, Json<Vm>), ApiError> {
    Ok((
        StatusCode::ACCEPTED,
        Json(act::pause(&app, &ctx, &project, &vm, &key).await?),
    ))
}

/// Asks for a paused VM to go on.
#[utoipa::path(
    post, path = "/v1/projects/{project}/vms/{vm}/resume", operation_id = "resume_vm", tag = "vms",
    params(("project" = String, Path, description = "Name of the project"), ("vm" = String, Path, description = "Name of the VM"), KeyHeader),
    responses((status = 202, description = "Being resumed", body = Vm), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn resume(
    ctx: OpContext,
    State(app): State<App>,
    Path((project, vm)): Path<(String, String)>,
    key: RequestKey,
) -> Result<(StatusCode, Json<Vm>), ApiError> {
    Ok((
        StatusCode::ACCEPTED,
        Json(act::resume(&app, &ctx, &project, &vm, &key).await?),
    ))
}
