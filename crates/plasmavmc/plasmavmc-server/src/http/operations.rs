//! `/v1/projects/{project}/operations`.

use axum::Json;
use axum::extract::{Path, State};
use hearth_service::error::ApiError;
use iam_client::OpContext;
use plasmavmc_client::types::{ErrorBody, Operation, OperationList, PageQuery};

use super::extract::Params;
use crate::app::{App, operation};

/// Lists what was asked of a project's VMs and what became of it, oldest first, as far as it is remembered.
#[utoipa::path(
    get, path = "/v1/projects/{project}/operations", operation_id = "list_operations", tag = "operations",
    params(("project" = String, Path, description = "Name of the project"), PageQuery),
    responses((status = 200, body = OperationList), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list(
    ctx: OpContext,
    State(app): State<App>,
    Path(project): Path<String>,
    Params(page): Params<PageQuery>,
) -> Result<Json<OperationList>, ApiError> {
    operation::list(&app, &ctx, &project, &page).await.map(Json)
}

/// Shows an operation.
#[utoipa::path(
    get, path = "/v1/projects/{project}/operations/{operation}", operation_id = "get_operation", tag = "operations",
    params(("project" = String, Path, description = "Name of the project"), ("operation" = String, Path, description = "Identifier of the operation")),
    responses((status = 200, body = Operation), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn get(
    ctx: OpContext,
    State(app): State<App>,
    Path((project, id)): Path<(String, String)>,
) -> Result<Json<Operation>, ApiError> {
    operation::get(&app, &ctx, &project, &id).await.map(Json)
}
