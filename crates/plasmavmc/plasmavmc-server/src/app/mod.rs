//! What the server does, apart from how it is asked. The store is reached only through a check of rights.

pub(crate) mod act;
pub(crate) mod create;
pub(crate) mod explain;
pub(crate) mod group;
pub(crate) mod image;
pub(crate) mod node;
pub(crate) mod once;
pub(crate) mod operation;
pub(crate) mod quota;
pub(crate) mod vm;
mod wire;

use std::sync::Arc;

use axum::extract::FromRef;
use hearth_service::error::{ApiError, ErrorKind};
use hearth_service::tasks::Tasks;
use hearth_types::Name;
use iam_client::{Authorizer, OpContext, ProjectRef, ResourceRef};

use crate::config::PlasmaConfig;
use crate::hub::Hub;
use crate::images::ImageFiles;
use crate::metrics::Metrics;
use crate::nodes::NodeBook;
use crate::store::Store;
use crate::turns::Turns;

/// The server's parts. Clones share them.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

struct Inner {
    store: Store,
    authorizer: Authorizer,
    images: ImageFiles,
    hub: Hub,
    config: PlasmaConfig,
    metrics: Metrics,
    tasks: Tasks,
    nodes: NodeBook,
    turns: Turns,
}

/// A project that the caller may act in as asked, with the store.
pub(crate) struct Scope<'a> {
    pub(crate) store: &'a Store,
    pub(crate) project: ProjectRef,
}

impl FromRef<App> for Authorizer {
    fn from_ref(app: &App) -> Self {
        app.0.authorizer.clone()
    }
}

impl App {
    pub(crate) fn new(
        store: Store,
        authorizer: Authorizer,
        images: ImageFiles,
        hub: Hub,
        nodes: NodeBook,
        config: PlasmaConfig,
        tasks: Tasks,
    ) -> Self {
        let metrics = hub.metrics().clone();
        Self(Arc::new(Inner {
            store,
            authorizer,
            images,
            hub,
            config,
            metrics,
            tasks,
            nodes,
            turns: Turns::new(),
        }))
    }

    /// The store, for something in a project. A project that is not there and one that the caller may not see give
    /// the same answer.
    pub(crate) fn in_project(
        &self,
        ctx: &OpContext,
        action: &'static str,
        project: &str,
    ) -> Result<Scope<'_>, ApiError> {
        let name: Name = project.parse().map_err(|_| {
            ApiError::new(
                ErrorKind::NotFound,
                format!("there is no project `{project}` that you may see"),
            )
            .hint("`hearth project list` shows your projects")
        })?;
        let (project, _) = self.0.authorizer.check_project(ctx.actor(), action, &name)?;
        Ok(Scope {
            store: &self.0.store,
            project,
        })
    }

    /// The store, for something of the whole cluster.
    pub(crate) fn in_cluster(&self, ctx: &OpContext, action: &'static str) -> Result<&Store, ApiError> {
        ctx.check(action, &ResourceRef::Root)?;
        Ok(&self.0.store)
    }

    pub(crate) fn images(&self) -> &ImageFiles {
        &self.0.images
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.0.hub
    }

    pub(crate) fn config(&self) -> &PlasmaConfig {
        &self.0.config
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(crate) fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    pub(crate) fn turns(&self) -> &Turns {
        &self.0.turns
    }

    pub(crate) fn nodes(&self) -> &NodeBook {
        &self.0.nodes
    }

    pub(crate) fn authorizer(&self) -> &Authorizer {
        &self.0.authorizer
    }
}
