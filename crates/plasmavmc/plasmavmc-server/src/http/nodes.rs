//! `/v1/nodes`.

use axum::Json;
use axum::extract::{Path, State};
use hearth_service::error::ApiError;
use iam_client::OpContext;
use plasmavmc_client::types::{ErrorBody, Node, NodeList, NodeUpdate};

use super::extract::{Body, KeyHeader};
use crate::app::once::RequestKey;
use crate::app::{App, node};

/// Lists the nodes with their room.
#[utoipa::path(
    get, path = "/v1/nodes", operation_id = "list_nodes", tag = "nodes",
    responses((status = 200, body = NodeList), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn list(ctx: OpContext, State(app): State<App>) -> Result<Json<NodeList>, ApiError> {
    node::list(&app, &ctx).await.map(Json)
}

/// Shows a node.
#[utoipa::path(
    get, path = "/v1/nodes/{node}", operation_id = "get_node", tag = "nodes",
    params(("node" = String, Path, description = "Name of the node")),
    responses((status = 200, body = Node), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn get(
    ctx: OpContext,
    State(app): State<App>,
    Path(node): Path<String>,
) -> Result<Json<Node>, ApiError> {
    node::get(&app, &ctx, &node).await.map(Json)
}

/// Cordons a node (it takes no new VMs; those that it has run on), lifts that, or sets labels.
#[utoipa::path(
    patch, path = "/v1/nodes/{node}", operation_id = "update_node", tag = "nodes",
    params(("node" = String, Path, description = "Name of the node"), KeyHeader),
    request_body = NodeUpdate,
    responses((status = 200, body = Node), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn update(
    ctx: OpContext,
    State(app): State<App>,
    Path(node): Path<String>,
    key: RequestKey,
    Body(change): Body<NodeUpdate>,
) -> Result<Json<Node>, ApiError> {
    node::update(&app, &ctx, &node, &change, &key).await.map(Json)
}
