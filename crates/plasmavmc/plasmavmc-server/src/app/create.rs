//! The creation of a VM: validation, placement, one transaction.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use hearth_service::error::{ApiError, ErrorKind};
use hearth_types::{Name, VmId};
use iam_client::OpContext;
use plasmavmc_client::types::{Vm, VmCreate};
use plasmavmc_core::{
    Decision, Desired, InvalidRequest, NetworkMode, OperationKind, Pick, Placement, RawRequest, VmRequest,
    validate,
};

use super::group::missing as missing_group;
use super::once::{Once, RequestKey, other_request, sha256_of};
use super::vm::{DEFAULT_STOP_TIMEOUT_S, invalid, now_ms};
use super::{App, Scope, operation, wire};
use crate::store::node::NodeSnapshot;
use crate::store::operation::beginning;
use crate::store::quota::Basis;
use crate::store::records::{ImageRecord, ImageUse, Placed, VERSION, VmRecord, Wishes};
use crate::store::vm::{Created, Creation, VmView};
use crate::store::{MAX_CONTENTION, Stored};

/// Addresses tried blindly before the list of those taken is read.
const BLIND_ADDRESSES: u32 = 4;
/// Most members of a group: its record is written with each of them.
const MAX_MEMBERS: usize = 1000;

/// The validation's text says what to do after its semicolon.
fn refused(error: &InvalidRequest) -> ApiError {
    let text = error.to_string();
    match text.split_once("; ") {
        Some((what, hint)) => invalid(what).hint(hint),
        None => invalid(text),
    }
}

/// Creates a VM: everything it needs is claimed in one transaction, then its node is told.
pub(crate) async fn create(
    app: &App,
    ctx: &OpContext,
    project: &str,
    request: &VmCreate,
    key: &RequestKey,
) -> Result<Vm, ApiError> {
    let scope = app.in_project(ctx, "vmc.vm.create", project)?;
    let once = Once::new(scope.store, Some(scope.project.id), key, "create_vm", request)?;
    if let Some(earlier) = once.earlier().await? {
        return Ok(earlier);
    }
    if let Some(earlier) = created_by_an_older_server(app, &scope, key, request).await? {
        return Ok(earlier);
    }
    let image = usable_image(&scope, &request.image).await?;
    let valid = validated(app, request, &image.value)?;
    let placing = async {
        let turn = app.turns().take(scope.project.id).await;
        let _turn = turn.map_err(|error| ApiError::internal("placing a VM", error))?;
        let mut placing = Placing {
            app,
            scope: &scope,
            request,
            valid: &valid,
            once: &once,
            ctx,
            id: VmId::from_uuid(uuid::Uuid::now_v7()),
            taken: BTreeSet::new(),
        };
        placing.run(image).await
    };
    let refused = match in_time(ctx, placing).await {
        Err(error) if error.kind == ErrorKind::ResourceExhausted => error,
        done => return done,
    };
    // The same request may have come before, over a connection that broke, and have taken the very last of the room
    // while this one waited.
    once.earlier().await?.ok_or(refused)
}

/// A creation on its way into the store.
struct Placing<'a> {
    app: &'a App,
    scope: &'a Scope<'a>,
    request: &'a VmCreate,
    valid: &'a VmRequest,
    once: &'a Once<'a>,
    ctx: &'a OpContext,
    id: VmId,
    /// Addresses that are known to be taken.
    taken: BTreeSet<Ipv4Addr>,
}

impl Placing<'_> {
    /// Decides and writes, again and again while others are faster.
    async fn run(&mut self, mut image: Stored<ImageRecord>) -> Result<Vm, ApiError> {
        let (app, scope) = (self.app, self.scope);
        for attempt in 0..MAX_CONTENTION {
            let basis = scope.store.basis(scope.project.id, &self.valid.groups).await?;
            let quota = &basis.quota.value;
            let used = quota.limits.admit(quota.used, self.valid.resources).map_err(|over| {
                app.metrics().placements_refused.inc();
                ApiError::new(ErrorKind::ResourceExhausted, over.to_string()).hint(
                    "ask for less, delete what is not needed, or have the quota raised; `hearth quota show` shows it",
                )
            })?;
            let wanted = wishes(scope, self.valid, &image.value.sha256, &basis)?;
            // Who has lost a race does not run for the same node again.
            let pick = if attempt == 0 { Pick::Near } else { Pick::Best };
            let (decision, node) = self.decide(&wanted, pick).await?;
            if attempt == BLIND_ADDRESSES {
                self.taken = scope.store.taken_addresses().await?;
            }
            let address = choose_address(app, decision.network_mode, &self.taken)?;
            let mut vm = self.record(&image.value, &node.name, decision.network_mode, address);
            let begun = operation::begin(self.ctx, OperationKind::Create, &mut vm, now_ms());
            let mut alloc = node.alloc.value.clone();
            if alloc
                .alloc
                .claim(self.id, self.valid.resources, decision.room)
                .is_err()
            {
                continue;
            }
            let view = VmView::unseen(Stored {
                value: vm,
                revision: 0,
            });
            let answer = wire::vm(&view, &app.config().domain);
            let vm = &view.record.value;
            let along = self.once.along(&answer)?.and(beginning(&begun)?);
            let creation = Creation {
                vm,
                image: &image,
                node: &node,
                alloc: &alloc,
                basis: &basis,
                used,
                request: self.once.at(),
                along: &along,
            };
            match scope.store.create_vm(&creation).await? {
                Created::Done(revision) => {
                    app.nodes().learn_claims(
                        &node.name,
                        Stored {
                            value: alloc,
                            revision,
                        },
                    );
                    app.metrics().vms_created.inc();
                    tracing::info!(vm = %self.id, name = %vm.name, node = %node.name, %address, "VM placed");
                    return Ok(answer);
                }
                Created::NameTaken(holder) => {
                    return Err(name_taken(&self.valid.name, &scope.project.name, holder));
                }
                Created::Replay => {
                    if let Some(earlier) = self.once.earlier().await? {
                        return Ok(earlier);
                    }
                }
                Created::AddressTaken => drop(self.taken.insert(address)),
                Created::Changed {
                    node,
                    absent,
                    revision,
                } => {
                    app.nodes().learn(&node);
                    absent
                        .iter()
                        .for_each(|key| app.nodes().learn_absent(key, revision));
                    image = usable_image(scope, &self.request.image).await?;
                }
            }
            app.metrics().placements_retried.inc();
        }
        Err(ApiError::new(ErrorKind::Unavailable, "too many VMs are being placed at once").hint("try again"))
    }

    /// Chooses a node. A refusal is decided on a picture that misses nothing.
    async fn decide(&self, wanted: &Placement, pick: Pick) -> Result<(Decision, NodeSnapshot), ApiError> {
        let nodes = self.app.nodes();
        if let Ok(found) = nodes.decide(wanted, pick, rand::random()) {
            return Ok(found);
        }
        nodes.refresh(self.scope.store).await?;
        nodes.decide(wanted, pick, rand::random()).map_err(|none| {
            self.app.metrics().placements_refused.inc();
            ApiError::new(ErrorKind::ResourceExhausted, none.to_string()).hint(
                "ask for less, delete what is not needed, or add a node; `hearth node list` shows the room, and \
                 `hearth vm create --explain` every node's reasons",
            )
        })
    }

    fn record(
        &self,
        image: &ImageRecord,
        node: &Name,
        network_mode: NetworkMode,
        address: Ipv4Addr,
    ) -> VmRecord {
        let placed = Placed {
            node: node.clone(),
            epoch: 1,
            network_mode,
            address,
        };
        new_record(self.scope, self.id, self.request, self.valid, image, placed)
    }
}

/// The request, checked.
pub(crate) fn validated(app: &App, request: &VmCreate, image: &ImageRecord) -> Result<VmRequest, ApiError> {
    validate(&raw_request(request, image), &app.config().limits()).map_err(|error| refused(&error))
}

/// What is asked of the scheduler.
pub(crate) fn wishes(
    scope: &Scope<'_>,
    valid: &VmRequest,
    image_sha256: &str,
    basis: &Basis,
) -> Result<Placement, ApiError> {
    let mut groups = Vec::with_capacity(basis.groups.len());
    for (name, group) in &basis.groups {
        match group {
            Some(group) if group.value.members.len() < MAX_MEMBERS => groups.push(group.value.seen()),
            Some(_) => {
                let message = format!("group `{name}` has {MAX_MEMBERS} VMs already");
                return Err(ApiError::new(ErrorKind::ResourceExhausted, message).hint("make another group"));
            }
            None => return Err(missing_group(name.as_str(), &scope.project.name)),
        }
    }
    Ok(Placement {
        image: Some(image_sha256.to_owned()),
        groups,
        ..Placement::from(valid)
    })
}

fn choose_address(app: &App, mode: NetworkMode, taken: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr, ApiError> {
    let network = match mode {
        NetworkMode::Routed => app.config().routed_network,
        NetworkMode::User => app.config().user_network,
    };
    network.choose(taken, rand::random()).ok_or_else(|| {
        ApiError::new(
            ErrorKind::ResourceExhausted,
            format!("every address of {network} is taken"),
        )
        .hint("delete VMs that are not needed, or configure a larger network")
    })
}

fn name_taken(name: &Name, project: &Name, holder: VmId) -> ApiError {
    let message = format!("project `{project}` has a VM named `{name}` already ({holder})");
    ApiError::new(ErrorKind::AlreadyExists, message).hint("choose another name, or delete that VM first")
}

/// The VM of this key and request, if a server of before there were records of all requests has made it. Such a key
/// lives as long as its VM.
async fn created_by_an_older_server(
    app: &App,
    scope: &Scope<'_>,
    key: &RequestKey,
    request: &VmCreate,
) -> Result<Option<Vm>, ApiError> {
    let Some(key) = key.as_deref() else {
        return Ok(None);
    };
    let Some(claim) = scope.store.idempotency(scope.project.id, key).await? else {
        return Ok(None);
    };
    if claim.request_sha256.as_deref() != Some(sha256_of(request)?.as_str()) {
        return Err(other_request("create_vm"));
    }
    let view = scope.store.vm(scope.project.id, claim.vm).await?;
    Ok(view.map(|view| wire::vm(&view, &app.config().domain)))
}

pub(crate) async fn usable_image(scope: &Scope<'_>, name: &str) -> Result<Stored<ImageRecord>, ApiError> {
    let missing = || {
        invalid(format!("there is no image `{name}`")).hint("`hearth image list` shows the images there are")
    };
    let parsed: Name = name.parse().map_err(|_| missing())?;
    let image = scope.store.image_by_name(&parsed).await?.ok_or_else(missing)?;
    if image.value.deleting {
        return Err(ApiError::new(
            ErrorKind::FailedPrecondition,
            format!("image `{name}` is being deleted"),
        )
        .hint("use another image"));
    }
    Ok(image)
}

fn raw_request(request: &VmCreate, image: &ImageRecord) -> RawRequest {
    RawRequest {
        name: request.name.clone(),
        vcpus: request.vcpus,
        memory_bytes: request.memory_bytes,
        disk_bytes: request.disk_bytes,
        image_disk_bytes: image.virtual_size_bytes,
        ssh_keys: request.ssh_keys.clone(),
        user_data: request.user_data.clone(),
        node_selector: request.node_selector.clone(),
        network_mode: request.network_mode.clone(),
        hypervisor: request.hypervisor.clone(),
        architecture: request.architecture.clone(),
        features: request.features.clone(),
        one_cell: request.one_numa_cell,
        groups: request.groups.clone(),
    }
}

fn new_record(
    scope: &Scope<'_>,
    id: VmId,
    request: &VmCreate,
    valid: &VmRequest,
    image: &ImageRecord,
    placed: Placed,
) -> VmRecord {
    VmRecord {
        version: VERSION,
        id,
        project_id: scope.project.id,
        project: scope.project.name.clone(),
        name: valid.name.clone(),
        image: ImageUse {
            id: image.id,
            name: image.name.clone(),
            sha256: image.sha256.clone(),
            size_bytes: image.size_bytes,
            format: image.format,
        },
        resources: valid.resources,
        labels: request.labels.clone(),
        ssh_keys: request.ssh_keys.clone(),
        user_data: request.user_data.clone(),
        hypervisor: valid.hypervisor,
        desired: if request.start {
            Desired::Running
        } else {
            Desired::Stopped
        },
        forced: false,
        stop_timeout_s: DEFAULT_STOP_TIMEOUT_S,
        generation: 1,
        paused: false,
        resets: 0,
        power_generation: 1,
        operation: None,
        placed,
        created_at_ms: now_ms(),
        idempotency_key: None,
        wishes: Wishes {
            node_selector: valid.node_selector.clone(),
            network_mode: valid.network_mode,
            architecture: valid.architecture.clone(),
            features: valid.features.clone(),
            one_cell: valid.one_cell,
        },
        groups: valid.groups.clone(),
        ha: request.ha,
    }
}

/// Ends work that its caller does not wait for any more. Nothing is half-made then: every change is one transaction.
async fn in_time<T>(ctx: &OpContext, work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    tokio::time::timeout_at(ctx.deadline().into(), work)
        .await
        .unwrap_or_else(|_| {
            let message = "the request took longer than it may; whether it took effect is not known";
            Err(ApiError::new(ErrorKind::DeadlineExceeded, message)
                .hint("look, then repeat it with the same idempotency key"))
        })
}
