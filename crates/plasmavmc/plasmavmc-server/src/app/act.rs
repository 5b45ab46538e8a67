//! What is done to a VM that runs: pause, resume, reset. Its node makes it so, as everything that is wanted of a VM.

use hearth_service::error::{ApiError, ErrorKind};
use iam_client::OpContext;
use plasmavmc_client::types::Vm;
use plasmavmc_core::{Desired, OperationKind, Phase};

use super::once::{Once, RequestKey};
use super::vm::{Request, find, runs};
use super::{App, Scope, wire};
use crate::store::power::Wanted;
use crate::store::vm::VmView;

/// What an agent says that it can do.
const PAUSE: &str = "pause";
const RESETS: &str = "resets";

/// Lets a guest's CPUs stand still, also when it is only just starting.
pub(crate) async fn pause(
    app: &App,
    ctx: &OpContext,
    project: &str,
    vm: &str,
    key: &RequestKey,
) -> Result<Vm, ApiError> {
    let scope = app.in_project(ctx, "vmc.vm.stop", project)?;
    let once = Once::new(scope.store, Some(scope.project.id), key, "pause_vm", &vm)?;
    let can = agent_can(&scope, vm, PAUSE).await?;
    let request = Request {
        app,
        ctx,
        scope: &scope,
        once: &once,
        kind: OperationKind::Pause,
        vm,
    };
    request
        .change(|view| {
            is_on(view, vm)?;
            let record = &view.record.value;
            if record.paused {
                return Ok(None);
            }
            can_or_refuse(can, view, "pause")?;
            Ok(Some(Wanted {
                paused: true,
                ..Wanted::now(record)
            }))
        })
        .await
}

/// Lets a paused guest go on.
pub(crate) async fn resume(
    app: &App,
    ctx: &OpContext,
    project: &str,
    vm: &str,
    key: &RequestKey,
) -> Result<Vm, ApiError> {
    let scope = app.in_project(ctx, "vmc.vm.start", project)?;
    let once = Once::new(scope.store, Some(scope.project.id), key, "resume_vm", &vm)?;
    let request = Request {
        app,
        ctx,
        scope: &scope,
        once: &once,
        kind: OperationKind::Resume,
        vm,
    };
    request
        .change(|view| {
            is_on(view, vm)?;
            let record = &view.record.value;
            Ok(record.paused.then(|| Wanted {
                paused: false,
                ..Wanted::now(record)
            }))
        })
        .await
}

/// Presses the reset button of a running VM. Its node does it once, whoever is killed meanwhile.
pub(crate) async fn reset(
    app: &App,
    ctx: &OpContext,
    project: &str,
    vm: &str,
    key: &RequestKey,
) -> Result<Vm, ApiError> {
    let scope = app.in_project(ctx, "vmc.vm.stop", project)?;
    let once = Once::new(scope.store, Some(scope.project.id), key, "reset_vm", &vm)?;
    if let Some(earlier) = once.earlier().await? {
        return Ok(earlier);
    }
    if !agent_can(&scope, vm, RESETS).await? {
        let view = find(&scope, vm).await?;
        runs(&view, vm)?;
        // An agent of before resets were counted: it is asked, and its answer waited for.
        app.hub().reset(&view.record.value, key.as_deref()).await?;
        let answer = wire::vm(&view, &app.config().domain);
        once.keep(&answer, Vec::new()).await?;
        return Ok(answer);
    }
    let request = Request {
        app,
        ctx,
        scope: &scope,
        once: &once,
        kind: OperationKind::Reset,
        vm,
    };
    request
        .change(|view| {
            is_on(view, vm)?;
            runs(view, vm)?;
            Ok(Some(Wanted {
                resets: 1,
                ..Wanted::now(&view.record.value)
            }))
        })
        .await
}

/// Refuses what is off, or has switched itself off.
fn is_on(view: &VmView, vm: &str) -> Result<(), ApiError> {
    let off = matches!(view.phase(), Phase::Stopped | Phase::Gone);
    if view.record.value.desired == Desired::Stopped || (view.record.value.desired == Desired::Running && off)
    {
        let message = format!("VM `{vm}` does not run");
        return Err(ApiError::new(ErrorKind::FailedPrecondition, message)
            .hint(format!("start it with `hearth vm start {vm} --wait`")));
    }
    Ok(())
}

/// Whether the agent of a VM's node can do something.
async fn agent_can(scope: &Scope<'_>, vm: &str, feature: &str) -> Result<bool, ApiError> {
    let view = match find(scope, vm).await {
        Ok(view) => view,
        // Whether it is there is decided where it is changed: it may have been, under this key.
        Err(error) if error.kind == ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let node = scope.store.node(&view.record.value.placed.node).await?;
    Ok(node.is_some_and(|node| node.info.value.features.contains(feature)))
}

fn can_or_refuse(can: bool, view: &VmView, act: &str) -> Result<(), ApiError> {
    if can {
        return Ok(());
    }
    let node = &view.record.value.placed.node;
    let message = format!("the agent of node {node} is too old to {act} a VM");
    Err(ApiError::new(ErrorKind::FailedPrecondition, message).hint("upgrade that agent; its guests run on"))
}
