//! VMs: reading, power, deletion.

use hearth_service::error::{ApiError, ErrorKind};
use hearth_types::{MAX_PAGE_SIZE, Name, PageToken};
use iam_client::OpContext;
use plasmavmc_client::types::{PageQuery, Vm, VmList, VmStop};
use plasmavmc_core::{Desired, OperationKind, Phase};

use super::once::{Once, RequestKey};
use super::{App, Scope, operation, wire};
use crate::store::operation::{beginning, replacing};
use crate::store::power::Wanted;
use crate::store::vm::VmView;
use crate::store::{MAX_CONTENTION, keys, unchanged};

pub(super) const DEFAULT_PAGE: u32 = 100;
pub(crate) const DEFAULT_STOP_TIMEOUT_S: u32 = 60;
const MAX_STOP_TIMEOUT_S: u32 = 3600;

pub(crate) fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::InvalidArgument, message)
}

fn no_vm(name: &str, project: &Name) -> ApiError {
    ApiError::new(
        ErrorKind::NotFound,
        format!("there is no VM `{name}` in project `{project}`"),
    )
    .hint("`hearth vm list` shows the project's VMs")
}

/// Milliseconds since 1970 by this server's clock.
pub(crate) fn now_ms() -> i64 {
    let nanos = time::OffsetDateTime::now_utc().unix_timestamp_nanos();
    i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX)
}

/// The VM, whoever's state it is in.
pub(crate) async fn find(scope: &Scope<'_>, vm: &str) -> Result<VmView, ApiError> {
    let missing = || no_vm(vm, &scope.project.name);
    let name: Name = vm.parse().map_err(|_| missing())?;
    scope
        .store
        .vm_by_name(scope.project.id, &name)
        .await?
        .ok_or_else(missing)
}

pub(crate) async fn get(app: &App, ctx: &OpContext, project: &str, vm: &str) -> Result<Vm, ApiError> {
    let scope = app.in_project(ctx, "vmc.vm.get", project)?;
    Ok(wire::vm(&find(&scope, vm).await?, &app.config().domain))
}

pub(crate) async fn list(
    app: &App,
    ctx: &OpContext,
    project: &str,
    page: &PageQuery,
) -> Result<VmList, ApiError> {
    let scope = app.in_project(ctx, "vmc.vm.list", project)?;
    let size = page.page_size.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE_SIZE).contains(&size) {
        return Err(invalid(format!("a page of {size} is not possible")).hint("ask for 1 to 1000 items"));
    }
    let after = page.page_token.as_ref().map(PageToken::position);
    let (views, next) = scope.store.vms_page(scope.project.id, after, size).await?;
    let next_page_token = next.and_then(|last| PageToken::after(&last.to_string()).ok());
    let items = views
        .iter()
        .map(|view| wire::vm(view, &app.config().domain))
        .collect();
    Ok(VmList {
        items,
        next_page_token,
    })
}

pub(crate) async fn start(
    app: &App,
    ctx: &OpContext,
    project: &str,
    vm: &str,
    key: &RequestKey,
) -> Result<Vm, ApiError> {
    let scope = app.in_project(ctx, "vmc.vm.start", project)?;
    let once = Once::new(scope.store, Some(scope.project.id), key, "start_vm", &vm)?;
    let request = Request {
        app,
        ctx,
        scope: &scope,
        once: &once,
        kind: OperationKind::Start,
        vm,
    };
    request
        .change(|view| {
            let record = &view.record.value;
            // A guest that has switched itself off is started again by asking once more.
            let off = matches!(view.phase(), Phase::Stopped | Phase::Failed);
            let wanted = Wanted::power(record, Desired::Running, false);
            Ok((record.desired != Desired::Running || record.paused || off).then_some(wanted))
        })
        .await
}

pub(crate) async fn stop(
    app: &App,
    ctx: &OpContext,
    project: &str,
    vm: &str,
    how: VmStop,
    key: &RequestKey,
) -> Result<Vm, ApiError> {
    let scope = app.in_project(ctx, "vmc.vm.stop", project)?;
    let once = Once::new(scope.store, Some(scope.project.id), key, "stop_vm", &(vm, how))?;
    let stop_timeout_s = how.timeout_s.unwrap_or(DEFAULT_STOP_TIMEOUT_S);
    if !(1..=MAX_STOP_TIMEOUT_S).contains(&stop_timeout_s) {
        return Err(invalid(format!("a stop cannot wait {stop_timeout_s} seconds"))
            .hint("give 1 to 3600 seconds, or force to cut the power at once"));
    }
    let request = Request {
        app,
        ctx,
        scope: &scope,
        once: &once,
        kind: OperationKind::Stop,
        vm,
    };
    request
        .change(|view| {
            let record = &view.record.value;
            let wanted = Wanted {
                stop_timeout_s,
                ..Wanted::power(record, Desired::Stopped, how.force)
            };
            let stops_already = record.desired == Desired::Stopped && (record.forced || !how.force);
            Ok((!stops_already).then_some(wanted))
        })
        .await
}

/// Asks for deletion. It is done when the node has reported that nothing is left.
pub(crate) async fn delete(
    app: &App,
    ctx: &OpContext,
    project: &str,
    vm: &str,
    key: &RequestKey,
) -> Result<Vm, ApiError> {
    let scope = app.in_project(ctx, "vmc.vm.delete", project)?;
    let once = Once::new(scope.store, Some(scope.project.id), key, "delete_vm", &vm)?;
    let request = Request {
        app,
        ctx,
        scope: &scope,
        once: &once,
        kind: OperationKind::Delete,
        vm,
    };
    request
        .change(|view| {
            let record = &view.record.value;
            let wanted = Wanted::power(record, Desired::Deleted, true);
            Ok((record.desired != Desired::Deleted).then_some(wanted))
        })
        .await
}

/// A request to one VM.
pub(super) struct Request<'a> {
    pub(super) app: &'a App,
    pub(super) ctx: &'a OpContext,
    pub(super) scope: &'a Scope<'a>,
    pub(super) once: &'a Once<'a>,
    pub(super) kind: OperationKind,
    pub(super) vm: &'a str,
}

impl Request<'_> {
    /// Changes what is wanted of the VM, if `decide` says that it has to be changed, and begins an operation. A VM that
    /// is being deleted stays so.
    pub(super) async fn change(
        &self,
        decide: impl Fn(&VmView) -> Result<Option<Wanted>, ApiError>,
    ) -> Result<Vm, ApiError> {
        for _ in 0..MAX_CONTENTION {
            if let Some(earlier) = self.once.earlier().await? {
                return Ok(earlier);
            }
            let before = find(self.scope, self.vm).await?;
            let done = match decide(&before)? {
                Some(wanted) => self.write(&before, wanted).await?,
                None => self.write_operation(&before).await?,
            };
            if let Some(answer) = done {
                return Ok(answer);
            }
        }
        Err(ApiError::new(
            ErrorKind::Unavailable,
            format!("VM `{}` is being changed by too many at once", self.vm),
        )
        .hint("try again"))
    }

    /// Writes what is wanted from now on; the operation that is open ends thereby. `None`: read again.
    async fn write(&self, before: &VmView, wanted: Wanted) -> Result<Option<Vm>, ApiError> {
        if before.record.value.desired == Desired::Deleted {
            return Err(ApiError::new(
                ErrorKind::FailedPrecondition,
                format!("VM `{}` is being deleted", self.vm),
            )
            .hint("create a new one when it is gone"));
        }
        let (store, now) = (self.scope.store, now_ms());
        let mut after = before.clone();
        after.record.value = wanted.of(&before.record.value);
        let begun = operation::begin(self.ctx, self.kind, &mut after.record.value, now);
        let answer = wire::vm(&after, &self.app.config().domain);
        let mut along = self.once.along(&answer)?.and(beginning(&begun)?);
        if let Some(open) = store.open_operation(&before.record.value).await? {
            let ended = open.value.clone().end(Some(operation::superseded(&begun)), now);
            along = along.and(replacing(&open, &ended)?);
        }
        let written = store.change_wanted(&before.record, &after.record.value, along);
        Ok(written.await?.then_some(answer))
    }

    /// The VM is wanted as it is asked for already. That is the business of its open operation, or else of one that
    /// begins where the VM is. `None`: read again.
    async fn write_operation(&self, before: &VmView) -> Result<Option<Vm>, ApiError> {
        let (store, now) = (self.scope.store, now_ms());
        let record = &before.record;
        let domain = &self.app.config().domain;
        if store.open_operation(&record.value).await?.is_some() {
            let answer = wire::vm(before, domain);
            let key = keys::vm(record.value.project_id, record.value.id);
            let guard = unchanged(&key, record.revision);
            return Ok(self.once.keep(&answer, vec![guard]).await?.then_some(answer));
        }
        let mut after = before.clone();
        let mut begun = operation::begin(self.ctx, self.kind, &mut after.record.value, now);
        let seen = before.observed.as_ref();
        if let Some(seen) = seen.filter(|seen| seen.value.epoch == record.value.placed.epoch) {
            begun = begun.after(&seen.value, now);
        }
        let answer = wire::vm(&after, domain);
        let mut along = self.once.along(&answer)?.and(beginning(&begun)?);
        // What it was judged by must still be so: nobody else would look at it soon.
        let observed = keys::observed(record.value.id);
        along
            .guards
            .push(unchanged(&observed, seen.map_or(0, |seen| seen.revision)));
        let written = store.note_operation(record, &after.record.value, along);
        Ok(written.await?.then_some(answer))
    }
}

/// The VM, if it runs on a node that answers.
pub(crate) async fn running(scope: &Scope<'_>, vm: &str) -> Result<VmView, ApiError> {
    let view = find(scope, vm).await?;
    runs(&view, vm)?;
    Ok(view)
}

/// Refuses what does not run on a node that answers.
pub(super) fn runs(view: &VmView, vm: &str) -> Result<(), ApiError> {
    let node = &view.record.value.placed.node;
    if !view.node_alive {
        return Err(ApiError::new(
            ErrorKind::Unavailable,
            format!("node {node} of VM `{vm}` does not answer"),
        )
        .hint("`hearth node list` shows the nodes; try again when it is back"));
    }
    if view.phase() != Phase::Running {
        return Err(
            ApiError::new(ErrorKind::FailedPrecondition, format!("VM `{vm}` does not run"))
                .hint(format!("start it with `hearth vm start {vm} --wait`")),
        );
    }
    Ok(())
}
