//! The typed client's calls for nodes, quotas, groups and explanations.

use hearth_types::Name;

use crate::rest::{ClientError, PlasmaClient};
use crate::types::{
    Explanation, Group, GroupCreate, GroupList, Node, NodeUpdate, Quota, QuotaLimits, VmCreate,
};

impl PlasmaClient {
    /// One node.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_node(&self, node: &Name) -> Result<Node, ClientError> {
        let url = self.url(&format!("/v1/nodes/{node}"));
        self.call("reading a node", true, || self.http.get(&url)).await
    }

    /// Cordons a node, lifts that, or sets labels.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn update_node(&self, node: &Name, change: &NodeUpdate) -> Result<Node, ClientError> {
        let url = self.url(&format!("/v1/nodes/{node}"));
        self.change("changing a node", || self.http.patch(&url).json(change))
            .await
    }

    /// What a project may take and what it takes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_quota(&self, project: &Name) -> Result<Quota, ClientError> {
        let url = self.url(&format!("/v1/projects/{project}/quota"));
        self.call("reading a quota", true, || self.http.get(&url)).await
    }

    /// Sets what a project may take.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn set_quota(&self, project: &Name, limits: &QuotaLimits) -> Result<Quota, ClientError> {
        let url = self.url(&format!("/v1/projects/{project}/quota"));
        self.change("setting a quota", || self.http.put(&url).json(limits))
            .await
    }

    /// Creates a group.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_group(&self, project: &Name, group: &GroupCreate) -> Result<Group, ClientError> {
        let url = self.url(&format!("/v1/projects/{project}/groups"));
        self.change("creating a group", || self.http.post(&url).json(group))
            .await
    }

    /// All groups of a project, without their members.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_groups(&self, project: &Name) -> Result<GroupList, ClientError> {
        let url = self.url(&format!("/v1/projects/{project}/groups"));
        self.call("listing groups", true, || self.http.get(&url)).await
    }

    /// One group with its members.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_group(&self, project: &Name, group: &Name) -> Result<Group, ClientError> {
        let url = self.url(&format!("/v1/projects/{project}/groups/{group}"));
        self.call("reading a group", true, || self.http.get(&url)).await
    }

    /// Deletes a group without members.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete_group(&self, project: &Name, group: &Name) -> Result<(), ClientError> {
        let url = self.url(&format!("/v1/projects/{project}/groups/{group}"));
        self.remove(&url).await
    }

    /// Where a VM could be created now; nothing is created.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn explain_creation(
        &self,
        project: &Name,
        request: &VmCreate,
    ) -> Result<Explanation, ClientError> {
        let url = self.url(&format!("/v1/projects/{project}/explain"));
        self.call("explaining a placement", true, || {
            self.http.post(&url).json(request)
        })
        .await
    }

    /// What speaks for and against each node if a VM were placed now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn explain_vm(&self, project: &Name, vm: &Name) -> Result<Explanation, ClientError> {
        let url = self.url(&format!("/v1/projects/{project}/vms/{vm}/explain"));
        self.call("explaining a placement", true, || self.http.get(&url))
            .await
    }
}
