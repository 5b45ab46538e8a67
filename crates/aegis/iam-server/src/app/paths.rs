//! How people name subjects and places: `user/ada`, `service-account/web/deployer`, `group/ops`, `workload/service/x`;
//! `root`, `organisation/default`, `project/web`.

use hearth_service::error::{ApiError, ErrorKind};
use iam_authn::WorkloadPath;
use iam_authz::{Node, Principal, PrincipalKind, Subject};
use iam_client::Snapshot;
use iam_client::wire::BindingView;

use super::invalid;
use super::signin::find_user;

/// The same text for a thing that does not exist and one that the caller may not see.
pub(crate) fn no_such(kind: &str, name: &str) -> ApiError {
    ApiError::new(
        ErrorKind::NotFound,
        format!("there is no {kind} `{name}` that you may see"),
    )
}

pub(crate) fn find_account<'a>(
    snapshot: &'a Snapshot,
    project: &str,
    name: &str,
) -> Option<(hearth_types::PrincipalId, &'a Principal)> {
    let project = snapshot.world().project_by_name(&project.parse().ok()?)?.0;
    let is_it = |principal: &Principal| {
        principal.kind == PrincipalKind::ServiceAccount
            && principal.project == Some(project)
            && principal.name.as_str() == name
    };
    snapshot
        .world()
        .principals()
        .find(|(_, principal)| is_it(principal))
}

pub(crate) fn parse_subject(snapshot: &Snapshot, path: &str) -> Result<Subject, ApiError> {
    let missing = || no_such("subject", path);
    match path.split_once('/') {
        Some(("user", name)) => find_user(snapshot, name)
            .map(|(id, _)| Subject::User(id))
            .ok_or_else(missing),
        Some(("group", name)) => {
            let found = snapshot
                .world()
                .groups()
                .find(|(_, group)| group.name.as_str() == name);
            found.map(|(id, _)| Subject::Group(id)).ok_or_else(missing)
        }
        Some(("service-account", rest)) => {
            let (project, name) = rest.split_once('/').ok_or_else(missing)?;
            find_account(snapshot, project, name)
                .map(|(id, _)| Subject::ServiceAccount(id))
                .ok_or_else(missing)
        }
        Some(("workload", workload)) => {
            let workload: WorkloadPath = workload
                .parse()
                .map_err(|error: iam_authn::WorkloadPathError| invalid(error.to_string()))?;
            Ok(Subject::Workload(workload.to_string()))
        }
        _ => Err(invalid(format!(
            "`{path}` is not a subject; write user/NAME, service-account/PROJECT/NAME, group/NAME or workload/PATH"
        ))),
    }
}

pub(crate) fn parse_place(snapshot: &Snapshot, path: &str) -> Result<Node, ApiError> {
    let world = snapshot.world();
    match path.split_once('/') {
        None if path == "root" => Ok(Node::Root),
        Some(("organisation", name)) => {
            let found = world
                .organisations()
                .find(|(_, organisation)| organisation.name.as_str() == name);
            found
                .map(|(id, _)| Node::Organisation(id))
                .ok_or_else(|| no_such("place", path))
        }
        Some(("project", name)) => {
            let found = name.parse().ok().and_then(|name| world.project_by_name(&name));
            found
                .map(|(id, _)| Node::Project(id))
                .ok_or_else(|| no_such("place", path))
        }
        _ => Err(invalid(format!(
            "`{path}` is not a place; write root, organisation/NAME or project/NAME"
        ))),
    }
}

pub(crate) fn subject_path(snapshot: &Snapshot, subject: &Subject) -> String {
    let world = snapshot.world();
    match subject {
        Subject::User(id) => world.principal(*id).map(|user| format!("user/{}", user.name)),
        Subject::ServiceAccount(id) => world.principal(*id).map(|account| {
            let project = account.project.and_then(|id| world.project(id));
            format!(
                "service-account/{}/{}",
                project.map_or("?", |project| project.name.as_str()),
                account.name
            )
        }),
        Subject::Group(id) => world.group(*id).map(|group| format!("group/{}", group.name)),
        Subject::Workload(path) => Some(format!("workload/{path}")),
    }
    // What was deleted is shown by its id.
    .unwrap_or_else(|| subject.to_string())
}

pub(crate) fn place_path(snapshot: &Snapshot, node: &Node) -> String {
    let world = snapshot.world();
    match node {
        Node::Root => Some("root".to_owned()),
        Node::Organisation(id) => world
            .organisation(*id)
            .map(|one| format!("organisation/{}", one.name)),
        Node::Project(id) => world.project(*id).map(|one| format!("project/{}", one.name)),
        Node::Folder(_) => None,
    }
    .unwrap_or_else(|| node.to_string())
}

pub(crate) fn binding_view(snapshot: &Snapshot, binding: &iam_authz::Binding) -> BindingView {
    BindingView {
        id: binding.id,
        subject: subject_path(snapshot, &binding.subject),
        role: binding.role,
        on: place_path(snapshot, &binding.node),
    }
}
