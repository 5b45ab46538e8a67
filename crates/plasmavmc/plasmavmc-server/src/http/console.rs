//! `/v1/projects/{project}/vms/{vm}/console`.

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use hearth_service::error::{ApiError, ErrorKind};
use iam_client::OpContext;
use plasmavmc_client::types::ErrorBody;

use crate::app::{App, vm};
use crate::hub::carry;

/// Largest message of a person: a pasted text.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// Opens a running VM's serial console as a WebSocket: binary frames carry its bytes both ways.
#[utoipa::path(
    get, path = "/v1/projects/{project}/vms/{vm}/console", operation_id = "open_console", tag = "vms",
    params(("project" = String, Path, description = "Name of the project"), ("vm" = String, Path, description = "Name of the VM")),
    responses((status = 101, description = "The console as a WebSocket"), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody))
)]
pub(super) async fn open(
    ctx: OpContext,
    State(app): State<App>,
    Path((project, vm)): Path<(String, String)>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let scope = app.in_project(&ctx, "vmc.vm.console", &project)?;
    let view = vm::running(&scope, &vm).await?;
    let upgrade = upgrade.map_err(|_| {
        ApiError::new(
            ErrorKind::InvalidArgument,
            "a console is a WebSocket, and this request does not open one",
        )
        .hint(
            "use `hearth vm console`, or a WebSocket client that sends the token in its Authorization header",
        )
    })?;
    let peer = app.hub().open_console(&view.record.value).await?;
    let (metrics, tasks) = (app.metrics().clone(), app.tasks().clone());
    Ok(upgrade
        .max_message_size(MAX_MESSAGE_BYTES)
        .on_upgrade(move |socket| carry(socket, peer, metrics, tasks)))
}
