//! Nodes.

use std::collections::BTreeMap;

use hearth_service::error::{ApiError, ErrorKind};
use hearth_types::{Labels, Name};
use iam_client::OpContext;
use plasmavmc_client::types::{Node, NodeList, NodeUpdate};

use super::once::{Once, RequestKey};
use super::vm::invalid;
use super::{App, wire};
use crate::store::node::NodeSnapshot;
use crate::store::{MAX_CONTENTION, Store, keys, unchanged};

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
    key: &RequestKey,
) -> Result<Node, ApiError> {
    let store = app.in_cluster(ctx, "vmc.node.update")?;
    let once = Once::new(store, None, key, "update_node", &(node, change))?;
    for _ in 0..MAX_CONTENTION {
        if let Some(earlier) = once.earlier().await? {
            return Ok(earlier);
        }
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
        let before = found.clone();
        found.info.value = wanted;
        let answer = wire::node(&found);
        let done = if found.info.value == before.info.value {
            let guard = unchanged(&keys::node_info(&found.name), before.info.revision);
            once.keep(&answer, vec![guard]).await?
        } else {
            let along = once.along(&answer)?;
            store.change_node(&before, &found.info.value, along).await?
        };
        if done {
            tracing::info!(%node, schedulable = found.info.value.schedulable, "node changed");
            return Ok(answer);
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
