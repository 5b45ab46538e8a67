//! The creation of a VM: validation, placement, one transaction.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use hearth_service::error::{ApiError, ErrorKind};
use hearth_types::{Name, VmId};
use iam_client::OpContext;
use plasmavmc_client::types::{Vm, VmCreate};
use plasmavmc_core::{
    Cluster, Decision, Desired, InvalidRequest, NetworkMode, Pick, Placement, RawRequest, VmRequest, validate,
};
use sha2::{Digest, Sha256};

use super::vm::{DEFAULT_STOP_TIMEOUT_S, invalid, now_ms};
use super::{App, Scope, wire};
use crate::store::node::NodeSnapshot;
use crate::store::records::{ClaimRecord, ImageRecord, ImageUse, Placed, VERSION, VmRecord};
use crate::store::vm::{Created, Creation, VmView};
use crate::store::{MAX_CONTENTION, Stored};

const MAX_IDEMPOTENCY_KEY: usize = 128;
/// Addresses tried blindly before the list of those taken is read.
const BLIND_ADDRESSES: u32 = 4;

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
    idempotency_key: Option<&str>,
) -> Result<Vm, ApiError> {
    let scope = app.in_project(ctx, "vmc.vm.create", project)?;
    let key = idempotency_key.map(check_idempotency_key).transpose()?;
    let request_sha256 = sha256_of(request)?;
    if let Some(key) = &key
        && let Some(claim) = scope.store.idempotency(scope.project.id, key).await?
    {
        return replay(app, &scope, &claim, &request_sha256).await;
    }
    let image = usable_image(&scope, &request.image).await?;
    let valid = validate(&raw_request(request, &image.value), &app.config().limits())
        .map_err(|error| refused(&error))?;
    let placing = async {
        let turn = app.placing().acquire().await;
        let _turn = turn.map_err(|error| ApiError::internal("placing a VM", error))?;
        place_and_write(app, &scope, request, &valid, image, key, &request_sha256).await
    };
    in_time(ctx, placing).await
}

async fn place_and_write(
    app: &App,
    scope: &Scope<'_>,
    request: &VmCreate,
    valid: &VmRequest,
    mut image: Stored<ImageRecord>,
    key: Option<String>,
    request_sha256: &str,
) -> Result<Vm, ApiError> {
    let id = VmId::from_uuid(uuid::Uuid::now_v7());
    let mut taken = BTreeSet::new();
    for attempt in 0..MAX_CONTENTION {
        let nodes = scope.store.nodes().await?;
        let decision = decide(app, &nodes, valid)?;
        let Some(node) = nodes.iter().find(|node| node.name.as_str() == decision.node) else {
            continue;
        };
        if attempt == BLIND_ADDRESSES {
            taken = scope.store.taken_addresses().await?;
        }
        let address = choose_address(app, decision.network_mode, &taken)?;
        let placed = Placed {
            node: node.name.clone(),
            epoch: 1,
            network_mode: decision.network_mode,
            address,
        };
        let vm = new_record(scope, id, request, valid, &image.value, placed, key.clone());
        let mut alloc = node.alloc.value.clone();
        if alloc.alloc.claim(id, valid.resources, decision.room).is_err() {
            continue;
        }
        let creation = Creation {
            vm: &vm,
            image: &image,
            node,
            alloc: &alloc,
            request_sha256,
        };
        match scope.store.create_vm(&creation).await? {
            Created::Done => {
                app.metrics().vms_created.inc();
                tracing::info!(vm = %id, name = %vm.name, node = %node.name, %address, "VM placed");
                let stored = Stored {
                    value: vm,
                    revision: 0,
                };
                return Ok(wire::vm(&VmView::unseen(stored), &app.config().domain));
            }
            Created::NameTaken(holder) => return Err(name_taken(&valid.name, &scope.project.name, holder)),
            Created::Replay(claim) => return replay(app, scope, &claim, request_sha256).await,
            Created::AddressTaken => drop(taken.insert(address)),
            Created::Changed => image = usable_image(scope, &request.image).await?,
        }
        app.metrics().placements_retried.inc();
    }
    Err(ApiError::new(ErrorKind::Unavailable, "too many VMs are being placed at once").hint("try again"))
}

fn decide(app: &App, nodes: &[NodeSnapshot], valid: &VmRequest) -> Result<Decision, ApiError> {
    let mut cluster = Cluster::new(app.config().policy());
    nodes
        .iter()
        .map(NodeSnapshot::view)
        .for_each(|node| cluster.upsert(node));
    let decision = cluster.decide(&Placement::from(valid), Pick::Near, rand::random());
    decision.map_err(|none| {
        app.metrics().placements_refused.inc();
        ApiError::new(ErrorKind::ResourceExhausted, none.to_string())
            .hint("ask for less, delete what is not needed, or add a node; `hearth node list` shows the room")
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

/// The same key and the same request: the same VM.
async fn replay(
    app: &App,
    scope: &Scope<'_>,
    claim: &ClaimRecord,
    request_sha256: &str,
) -> Result<Vm, ApiError> {
    if claim.request_sha256.as_deref() != Some(request_sha256) {
        let message = "this idempotency key was used for another request";
        return Err(ApiError::new(ErrorKind::Conflict, message).hint("use a new key for a new request"));
    }
    match scope.store.vm(scope.project.id, claim.vm).await? {
        Some(view) => Ok(wire::vm(&view, &app.config().domain)),
        None => Err(ApiError::new(
            ErrorKind::Conflict,
            "the VM of this idempotency key has just been deleted",
        )
        .hint("use a new key to create another one")),
    }
}

async fn usable_image(scope: &Scope<'_>, name: &str) -> Result<Stored<ImageRecord>, ApiError> {
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

fn check_idempotency_key(key: &str) -> Result<String, ApiError> {
    let fits = (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len())
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if fits {
        Ok(key.to_owned())
    } else {
        Err(invalid("the Idempotency-Key header is not usable")
            .hint("use 1 to 128 of a-z, A-Z, 0-9, - and _"))
    }
}

fn sha256_of(request: &VmCreate) -> Result<String, ApiError> {
    let bytes =
        serde_json::to_vec(request).map_err(|error| ApiError::internal("reading the request", error))?;
    Ok(hex::encode(Sha256::digest(bytes)))
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
        architecture: None,
        features: Vec::new(),
        one_cell: false,
        groups: Vec::new(),
    }
}

fn new_record(
    scope: &Scope<'_>,
    id: VmId,
    request: &VmCreate,
    valid: &VmRequest,
    image: &ImageRecord,
    placed: Placed,
    idempotency_key: Option<String>,
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
        placed,
        created_at_ms: now_ms(),
        idempotency_key,
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
