//! Why a VM goes where it goes, or nowhere.

use hearth_service::error::ApiError;
use hearth_types::{Name, VmId};
use iam_client::OpContext;
use plasmavmc_client::types::{Explanation, NodeExplanation, VmCreate, WeightShown};
use plasmavmc_core::{NodeVerdict, OverQuota, Placement, Verdict};

use super::create::{usable_image, validated, wishes};
use super::vm::find;
use super::{App, Scope};
use crate::store::records::VmRecord;
use crate::takeover;

/// What would become of a creation now. Nothing is changed.
pub(crate) async fn creation(
    app: &App,
    ctx: &OpContext,
    project: &str,
    request: &VmCreate,
) -> Result<Explanation, ApiError> {
    let scope = app.in_project(ctx, "vmc.vm.create", project)?;
    let image = usable_image(&scope, &request.image).await?;
    let valid = validated(app, request, &image.value)?;
    let basis = scope.store.basis(scope.project.id, &valid.groups).await?;
    let wanted = wishes(&scope, &valid, &image.value.sha256, &basis)?;
    let quota = basis.quota.value;
    let over = quota.limits.admit(quota.used, valid.resources).err();
    explain(app, &scope, &wanted, over.as_ref(), None).await
}

/// What would become of a VM if it were placed now, and what speaks for and against each node.
pub(crate) async fn vm(app: &App, ctx: &OpContext, project: &str, vm: &str) -> Result<Explanation, ApiError> {
    let scope = app.in_project(ctx, "vmc.vm.create", project)?;
    let record = find(&scope, vm).await?.record.value;
    let mut basis = scope.store.basis(scope.project.id, &record.groups).await?;
    for (_, group) in &mut basis.groups {
        if let Some(group) = group {
            group.value.members.remove(&record.id);
        }
    }
    let groups = basis
        .groups
        .iter()
        .filter_map(|(_, group)| Some(group.as_ref()?.value.seen()));
    let wanted = Placement {
        groups: groups.collect(),
        ..placement_of(&record)
    };
    let here = Some((&record.placed.node, record.id));
    let mut explanation = explain(app, &scope, &wanted, None, here).await?;
    let guards = scope.store.guards().await?;
    explanation.restart_elsewhere = Some(takeover::explained(&record, guards.get(&record.placed.node)));
    Ok(explanation)
}

pub(crate) fn placement_of(record: &VmRecord) -> Placement {
    let wishes = &record.wishes;
    Placement {
        resources: record.resources,
        one_cell: wishes.one_cell,
        node_selector: wishes.node_selector.clone(),
        network_mode: wishes.network_mode,
        hypervisor: record.hypervisor,
        architecture: wishes.architecture.clone(),
        features: wishes.features.clone(),
        image: Some(record.image.sha256.clone()),
        groups: Vec::new(),
    }
}

async fn explain(
    app: &App,
    scope: &Scope<'_>,
    wanted: &Placement,
    over: Option<&OverQuota>,
    here: Option<(&Name, VmId)>,
) -> Result<Explanation, ApiError> {
    app.nodes().refresh(scope.store).await?;
    let verdicts = app.nodes().explain(wanted, here);
    let fits = |verdict: &NodeVerdict| matches!(verdict.verdict, Verdict::Fits(_));
    Ok(Explanation {
        restart_elsewhere: None,
        placeable: over.is_none() && verdicts.iter().any(fits),
        quota: over.map(ToString::to_string),
        nodes: verdicts
            .iter()
            .map(|verdict| shown(verdict, here.map(|(node, _)| node)))
            .collect(),
    })
}

fn shown(verdict: &NodeVerdict, here: Option<&Name>) -> NodeExplanation {
    let (reasons, weight) = match &verdict.verdict {
        Verdict::Rejected(reasons) => (reasons.iter().map(ToString::to_string).collect(), None),
        Verdict::Fits(weight) => (Vec::new(), Some(weight)),
    };
    NodeExplanation {
        node: verdict.node.clone(),
        fits: weight.is_some(),
        current: here.is_some_and(|here| here.as_str() == verdict.node),
        reasons,
        weight: weight.map(|weight| WeightShown {
            total: weight.total(),
            room: weight.room,
            groups: weight.groups,
            image: weight.image,
        }),
    }
}
