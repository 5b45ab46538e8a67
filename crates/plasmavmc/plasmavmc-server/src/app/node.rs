//! Nodes.

use std::collections::BTreeMap;

use hearth_service::error::{ApiError, ErrorKind};
use hearth_types::{Labels, Name};
use iam_client::OpContext;
use plasmavmc_client::types::{Node, NodeList, NodeUpdate};

use super::vm::invalid;
use super::{App, wire};
use crate::store::node::NodeSnapshot;
use crate::store::{MAX_CONTENTION, Store};

pub(crate) async fn list(app: &App, ctx: &OpContext) -> Result<NodeList, ApiError> {
    let store = app.in_cluster(ctx, "vmc.node.list")?;
    Ok(NodeList {
        items: store.nodes().await?.iter().map(wire::node).collect(),
    })
}

pub(crate) async fn get(app: &App, ctx: &OpContext, node: &str) -> Result<Node, ApiError> {
    let store = app.in_cluster(ctx, "vmc.node.list")?;
    Ok(wire::node(&find(store, node).await?))
}

/// Cordons a node or lifts that, and sets labels over those that its agent says.
pub(crate) async fn update(
    app: &App,
    ctx: &OpContext,
    node: &str,
    change: &NodeUpdate,
) -> Result<Node, ApiError> {
    let store = app.in_cluster(ctx, "vmc.node.update")?;
    for _ in 0..MAX_CONTENTION {
        let mut found = find(store, node).await?;
        let mut wanted = found.info.value.clone();
        wanted.schedulable = change.schedulable.unwrap_or(wanted.schedulable);
        let mut labels: BTreeMap<String, String> = wanted.own_labels.clone().into();
        for (key, value) in &change.labels {
            match value {
                Some(value) => drop(labels.insert(key.clone(), value.clone())),
                None => drop(labels.remove(key)),
            }
        }
        wanted.own_labels = Labels::try_from(labels).map_err(|error| invalid(error.to_string()))?;
        if wanted == found.info.value || store.change_node(&found, &wanted).await? {
            tracing::info!(%node, schedulable = wanted.schedulable, "node changed");
            found.info.value = wanted;
            return Ok(wire::node(&found));
        }
    }
    let message = format!("node `{node}` is being changed by too many at once");
    Err(ApiError::new(ErrorKind::Unavailable, message).hint("try again"))
}

async fn find(store: &Store, node: &str) -> Result<NodeSnapshot, ApiError> {
    let missing = || {
        ApiError::new(ErrorKind::NotFound, format!("there is no node `{node}`"))
            .hint("`hearth node list` shows the nodes")
    };
    let name: Name = node.parse().map_err(|_| missing())?;
    store.node(&name).await?.ok_or_else(missing)
}
