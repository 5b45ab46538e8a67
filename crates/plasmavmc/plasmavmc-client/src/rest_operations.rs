//! The typed client's calls for operations.

use hearth_types::{Name, PageToken};

use crate::rest::{ClientError, PlasmaClient};
use crate::types::{Operation, OperationList, PageQuery};

/// Operations asked for at once.
const PAGE: u32 = 500;

impl PlasmaClient {
    /// One operation.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_operation(&self, project: &Name, id: &str) -> Result<Operation, ClientError> {
        // An id is a part of the address: what cannot be one is not sent.
        let id = id.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_");
        let url = self.url(&format!("/v1/projects/{project}/operations/{id}"));
        self.call("reading an operation", true, || self.http.get(&url))
            .await
    }

    /// One page of a project's operations, oldest first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_operations(
        &self,
        project: &Name,
        page: &PageQuery,
    ) -> Result<OperationList, ClientError> {
        let url = self.url(&format!("/v1/projects/{project}/operations"));
        self.call("listing operations", true, || self.http.get(&url).query(page))
            .await
    }

    /// All operations of a project that are remembered, at most `limit`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn all_operations(&self, project: &Name, limit: usize) -> Result<Vec<Operation>, ClientError> {
        let mut all = Vec::new();
        let mut page_token: Option<PageToken> = None;
        loop {
            let page = PageQuery {
                page_size: Some(PAGE),
                page_token,
            };
            let page = self.list_operations(project, &page).await?;
            all.extend(page.items);
            page_token = page.next_page_token;
            if page_token.is_none() || all.len() >= limit {
                all.truncate(limit);
                return Ok(all);
            }
        }
    }
}
