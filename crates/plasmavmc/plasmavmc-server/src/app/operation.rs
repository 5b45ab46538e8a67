//! Operations: what became of a request to a VM.

use hearth_service::error::{ApiError, ErrorKind};
use hearth_types::{MAX_PAGE_SIZE, PageToken};
use iam_client::OpContext;
use plasmavmc_client::types::{Operation, OperationList, PageQuery};
use plasmavmc_core::{Goal, OperationKind, OperationState};
use uuid::Uuid;

use super::vm::{DEFAULT_PAGE, invalid};
use super::{App, wire};
use crate::store::keys;
use crate::store::operation::{OperationRecord, OperationRef, StepRecord};
use crate::store::records::{VERSION, VmRecord};

/// A new operation, as the last one of its VM: its goal is what is wanted of the VM now.
pub(crate) fn begin(ctx: &OpContext, kind: OperationKind, vm: &mut VmRecord, now_ms: i64) -> OperationRecord {
    let id = Uuid::now_v7();
    vm.operation = Some(OperationRef { id, kind });
    OperationRecord {
        version: VERSION,
        id,
        kind,
        project_id: vm.project_id,
        vm: vm.id,
        vm_name: vm.name.clone(),
        who: ctx.actor().name().to_owned(),
        goal: Goal {
            desired: vm.desired,
            paused: vm.paused,
            resets: vm.resets,
            generation: vm.generation,
        },
        state: OperationState::Pending,
        steps: vec![StepRecord {
            name: "accepted".to_owned(),
            at_ms: now_ms,
        }],
        error: None,
        created_at_ms: now_ms,
        ended_at_ms: None,
    }
}

/// Why an operation ends that another one follows.
pub(crate) fn superseded(by: &OperationRecord) -> String {
    format!(
        "`{}` was asked for meanwhile by {} (operation {})",
        by.kind.as_str(),
        by.who,
        by.id
    )
}

pub(crate) async fn get(
    app: &App,
    ctx: &OpContext,
    project: &str,
    operation: &str,
) -> Result<Operation, ApiError> {
    let scope = app.in_project(ctx, "vmc.vm.get", project)?;
    let missing = || {
        let message = format!(
            "there is no operation `{operation}` in project `{}`",
            scope.project.name
        );
        ApiError::new(ErrorKind::NotFound, message).hint("`hearth op list` shows those that are remembered")
    };
    let id: Uuid = operation.parse().map_err(|_| missing())?;
    let found = scope.store.operation(scope.project.id, id).await?;
    let found = found.ok_or_else(missing)?;
    Ok(wire::operation(&found.value, &scope.project.name))
}

pub(crate) async fn list(
    app: &App,
    ctx: &OpContext,
    project: &str,
    page: &PageQuery,
) -> Result<OperationList, ApiError> {
    let scope = app.in_project(ctx, "vmc.vm.list", project)?;
    let size = page.page_size.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE_SIZE).contains(&size) {
        return Err(invalid(format!("a page of {size} is not possible")).hint("ask for 1 to 1000 items"));
    }
    let after = page.page_token.as_ref().map(PageToken::position);
    let prefix = keys::operations_of(scope.project.id);
    let (found, next) = scope.store.operations_page(&prefix, after, size).await?;
    let project = &scope.project.name;
    Ok(OperationList {
        items: found
            .iter()
            .map(|one| wire::operation(&one.value, project))
            .collect(),
        next_page_token: next.and_then(|last| PageToken::after(&last.to_string()).ok()),
    })
}
