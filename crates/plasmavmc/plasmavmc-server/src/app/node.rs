//! Nodes.

use hearth_service::error::ApiError;
use iam_client::OpContext;
use plasmavmc_client::types::NodeList;

use super::{App, wire};

pub(crate) async fn list(app: &App, ctx: &OpContext) -> Result<NodeList, ApiError> {
    let store = app.in_cluster(ctx, "vmc.node.list")?;
    Ok(NodeList {
        items: store.nodes().await?.iter().map(wire::node).collect(),
    })
}
