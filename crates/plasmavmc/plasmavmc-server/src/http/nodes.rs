//! `/v1/nodes`.

use axum::Json;
use axum::extract::State;
use hearth_service::error::ApiError;
use iam_client::OpContext;
use plasmavmc_client::types::{ErrorBody, NodeList};

use crate::app::{App, node};

/// Lists the nodes with their room.
#[utoipa::path(
    get, path = "/v1/nodes", operation_id = "list_nodes", tag = "nodes",
    responses((status = 200, body = NodeList), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list(ctx: OpContext, State(app): State<App>) -> Result<Json<NodeList>, ApiError> {
    node::list(&app, &ctx).await.map(Json)
}
