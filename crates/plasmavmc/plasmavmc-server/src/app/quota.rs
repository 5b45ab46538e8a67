//! Quotas: what a project may take, and what it takes.

use hearth_service::error::{ApiError, ErrorKind};
use hearth_types::Name;
use iam_client::OpContext;
use plasmavmc_client::types::{Quota as Shown, QuotaLimits};
use plasmavmc_core::Quota;

use super::App;
use super::once::{Once, RequestKey};
use crate::store::MAX_CONTENTION;
use crate::store::records::QuotaRecord;

pub(crate) async fn get(app: &App, ctx: &OpContext, project: &str) -> Result<Shown, ApiError> {
    let scope = app.in_project(ctx, "vmc.quota.get", project)?;
    let quota = scope.store.quota(scope.project.id).await?;
    Ok(shown(&scope.project.name, &quota))
}

/// Sets all limits: one that is left out is no limit. A project cannot set its own.
pub(crate) async fn set(
    app: &App,
    ctx: &OpContext,
    project: &str,
    limits: QuotaLimits,
    key: &RequestKey,
) -> Result<Shown, ApiError> {
    let store = app.in_cluster(ctx, "vmc.quota.set")?;
    let missing = || {
        ApiError::new(ErrorKind::NotFound, format!("there is no project `{project}`"))
            .hint("`hearth iam project list` shows the projects")
    };
    let name: Name = project.parse().map_err(|_| missing())?;
    let project = app.authorizer().project(&name).ok_or_else(missing)?;
    let once = Once::new(store, Some(project.id), key, "set_quota", &limits)?;
    let limits = Quota {
        vms: limits.vms,
        vcpus: limits.vcpus,
        memory_bytes: limits.memory_bytes,
        disk_bytes: limits.disk_bytes,
    };
    for _ in 0..MAX_CONTENTION {
        if let Some(earlier) = once.earlier().await? {
            return Ok(earlier);
        }
        let wanted = store.quota_with(project.id, limits).await?;
        let answer = shown(&project.name, &wanted.value);
        let along = once.along(&answer)?;
        if store.write_quota(project.id, &wanted, along).await? {
            tracing::info!(project = %project.name, ?limits, "quota set");
            return Ok(answer);
        }
    }
    let message = format!(
        "the quota of project `{}` is being changed by too many at once",
        project.name
    );
    Err(ApiError::new(ErrorKind::Unavailable, message).hint("try again"))
}

fn shown(project: &Name, quota: &QuotaRecord) -> Shown {
    Shown {
        project: project.clone(),
        limits: QuotaLimits {
            vms: quota.limits.vms,
            vcpus: quota.limits.vcpus,
            memory_bytes: quota.limits.memory_bytes,
            disk_bytes: quota.limits.disk_bytes,
        },
        vms_used: quota.used.vms,
        vcpus_used: quota.used.vcpus,
        memory_bytes_used: quota.used.memory_bytes,
        disk_bytes_used: quota.used.disk_bytes,
    }
}
