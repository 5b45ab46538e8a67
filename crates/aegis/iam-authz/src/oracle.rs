//! Cedar over everything, as the judge of Cedar over a slice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::HashSet;

use cedar_policy::{Entities, Entity, EntityUid, PolicySet, Schema, ValidationMode, Validator};
use hearth_types::{BindingId, FolderId, OrganisationId, PrincipalId, ProjectId};
use proptest::prelude::*;
use uuid::Uuid;

use crate::engine::ENGINE;
use crate::{
    ACTIONS, AuthenticatedBy, Binding, Context, Decision, Group, Node, Organisation, PolicyRef, Principal,
    PrincipalKind, Project, Question, ResourceRef, Role, SCHEMA, Subject, World, decide, visible,
};

fn everything(world: &World, child: Option<&ResourceRef>) -> (PolicySet, Entities) {
    let engine = &*ENGINE;
    let mut policies = engine.base().clone();
    for binding in world.bindings() {
        engine.link(&mut policies, binding).unwrap();
    }
    let uids = |nodes: &[Node]| -> HashSet<EntityUid> {
        nodes.iter().map(|node| engine.node_uid(node).unwrap()).collect()
    };
    let node =
        |at: Node, parents: &[Node]| Entity::new_no_attrs(engine.node_uid(&at).unwrap(), uids(parents));
    let mut entities: Vec<Entity> = engine.action_entities().cloned().collect();
    entities.push(node(Node::Root, &[]));
    entities.extend(
        world
            .organisations()
            .map(|(id, _)| node(Node::Organisation(id), &[Node::Root])),
    );
    entities.extend(
        world
            .folders()
            .map(|(id, parent)| node(Node::Folder(id), &[parent])),
    );
    entities.extend(world.projects().map(|(id, project)| {
        let parent = project
            .folder
            .map_or(Node::Organisation(project.organisation), Node::Folder);
        node(Node::Project(id), &[parent])
    }));
    if let Some(child) = child {
        entities.push(Entity::new_no_attrs(
            engine.resource_uid(child).unwrap(),
            uids(&[child.node()]),
        ));
    }
    let principal = |subject: Subject, disabled: bool| {
        let groups = world.direct_groups(&subject).into_iter().map(Subject::Group);
        let parents = groups.map(|group| engine.subject_uid(&group).unwrap()).collect();
        engine.principal_entity(&subject, disabled, parents).unwrap()
    };
    entities.extend(
        world
            .principals()
            .map(|(id, p)| principal(subject_of(p.kind, id), p.disabled)),
    );
    entities.extend(world.groups().map(|(id, _)| principal(Subject::Group(id), false)));
    entities.push(principal(Subject::Workload("operator/root".to_owned()), false));
    entities.push(principal(
        Subject::Workload("service/plasmavmc".to_owned()),
        false,
    ));
    (policies, Entities::from_entities(entities, None).unwrap())
}

fn decide_unsliced(world: &World, question: &Question<'_>) -> Decision {
    let child = matches!(question.resource, ResourceRef::Child { .. }).then_some(question.resource);
    let (policies, entities) = everything(world, child);
    let verdict = ENGINE
        .evaluate(
            question.subject,
            question.action,
            question.resource,
            &question.context,
            &policies,
            &entities,
        )
        .unwrap();
    Decision {
        allowed: verdict.allowed,
        determining: verdict.determining,
    }
}

const fn subject_of(kind: PrincipalKind, id: PrincipalId) -> Subject {
    match kind {
        PrincipalKind::User => Subject::User(id),
        PrincipalKind::ServiceAccount => Subject::ServiceAccount(id),
    }
}

const PRINCIPALS: u128 = 5;
const GROUPS: u128 = 5;
const ORGANISATIONS: u128 = 2;
const FOLDERS: u128 = 3;
const PROJECTS: u128 = 4;

const fn principal_id(n: u128) -> PrincipalId {
    PrincipalId::from_uuid(Uuid::from_u128(0x1000 + n))
}
const fn group_id(n: u128) -> PrincipalId {
    PrincipalId::from_uuid(Uuid::from_u128(0x2000 + n))
}
const fn organisation_id(n: u128) -> OrganisationId {
    OrganisationId::from_uuid(Uuid::from_u128(0x3000 + n))
}
const fn folder_id(n: u128) -> FolderId {
    FolderId::from_uuid(Uuid::from_u128(0x4000 + n))
}
const fn project_id(n: u128) -> ProjectId {
    ProjectId::from_uuid(Uuid::from_u128(0x5000 + n))
}

fn asking() -> impl Strategy<Value = Subject> {
    prop_oneof![
        8 => (0..PRINCIPALS).prop_map(principal_subject),
        1 => Just(Subject::Workload("operator/root".to_owned())),
        1 => Just(Subject::Workload("service/plasmavmc".to_owned())),
    ]
}

/// Even numbers are users, odd ones service accounts.
fn principal_subject(n: u128) -> Subject {
    if n.is_multiple_of(2) {
        Subject::User(principal_id(n))
    } else {
        Subject::ServiceAccount(principal_id(n))
    }
}

fn bound() -> impl Strategy<Value = Subject> {
    prop_oneof![3 => asking(), 4 => (0..GROUPS).prop_map(|n| Subject::Group(group_id(n)))]
}

fn place() -> impl Strategy<Value = Node> {
    prop_oneof![
        1 => Just(Node::Root),
        2 => (0..ORGANISATIONS).prop_map(|n| Node::Organisation(organisation_id(n))),
        2 => (0..FOLDERS).prop_map(|n| Node::Folder(folder_id(n))),
        4 => (0..PROJECTS).prop_map(|n| Node::Project(project_id(n))),
    ]
}

fn target() -> impl Strategy<Value = ResourceRef> {
    prop_oneof![
        place().prop_map(|node| node.as_resource()),
        (0..PROJECTS).prop_map(|n| ResourceRef::Child {
            project: project_id(n),
            kind: "vm",
            id: "web".to_owned()
        }),
    ]
}

prop_compose! {
    fn any_world()(
        disabled in proptest::collection::vec(proptest::bool::weighted(0.3), PRINCIPALS as usize),
        // A group's members are principals and groups of a higher number, so that there is no cycle.
        members in proptest::collection::vec(proptest::collection::btree_set(0..PRINCIPALS + GROUPS, 0..4), GROUPS as usize),
        project_places in proptest::collection::vec((0..ORGANISATIONS, proptest::option::of(0..FOLDERS)), PROJECTS as usize),
        bindings in proptest::collection::vec((bound(), 0..3_usize, place()), 0..14),
        removed in proptest::collection::vec(0..14_u128, 0..3),
    ) -> World {
        let mut world = World::new();
        for (n, disabled) in (0..PRINCIPALS).zip(disabled) {
            let kind = if n.is_multiple_of(2) { PrincipalKind::User } else { PrincipalKind::ServiceAccount };
            let name = format!("p{n}").parse().unwrap();
            world.put_principal(principal_id(n), Principal { kind, name, disabled, epoch: 0, project: None });
        }
        for (n, members) in (0..GROUPS).zip(members) {
            let members = members.into_iter().filter_map(|m| match m.checked_sub(PRINCIPALS) {
                None => Some(principal_subject(m)),
                Some(g) => (g > n).then(|| Subject::Group(group_id(g))),
            });
            let group = Group { name: format!("g{n}").parse().unwrap(), members: members.collect() };
            world.check_group(group_id(n), &group).unwrap();
            world.put_group(group_id(n), group);
        }
        for n in 0..ORGANISATIONS {
            world.put_organisation(organisation_id(n), Organisation { name: format!("o{n}").parse().unwrap() });
        }
        world.put_folder(folder_id(0), Node::Organisation(organisation_id(0)));
        world.put_folder(folder_id(1), Node::Folder(folder_id(0)));
        world.put_folder(folder_id(2), Node::Organisation(organisation_id(1)));
        for (n, (organisation, folder)) in (0..PROJECTS).zip(project_places) {
            world.put_project(project_id(n), Project {
                name: format!("p{n}").parse().unwrap(),
                organisation: organisation_id(organisation),
                folder: folder.map(folder_id),
            });
        }
        for (n, (subject, role, node)) in (0_u128..).zip(bindings) {
            let id = BindingId::from_uuid(Uuid::from_u128(n));
            world.put_binding(Binding { id, subject, role: Role::ALL[role], node });
        }
        for n in removed {
            world.remove_binding(BindingId::from_uuid(Uuid::from_u128(n)));
        }
        world
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_slice_decides_as_everything_does(
        world in any_world(),
        subject in asking(),
        action in 0..ACTIONS.len(),
        resource in target(),
        certificate in any::<bool>(),
    ) {
        let authenticated_by = if certificate { AuthenticatedBy::Certificate } else { AuthenticatedBy::Token };
        let question = Question {
            subject: &subject,
            action: ACTIONS[action].name,
            resource: &resource,
            context: Context { authenticated_by },
        };
        prop_assert_eq!(decide(&world, &question), decide_unsliced(&world, &question));
    }

    /// What allows must be seen: nobody gets 404 for a thing that they may use.
    #[test]
    fn what_is_allowed_by_a_binding_is_visible(world in any_world(), subject in asking(), action in 0..ACTIONS.len(), resource in target()) {
        let context = Context { authenticated_by: AuthenticatedBy::Token };
        let decision = decide(&world, &Question { subject: &subject, action: ACTIONS[action].name, resource: &resource, context });
        if decision.determining.iter().any(|by| matches!(by, PolicyRef::Binding(_))) && decision.allowed {
            prop_assert!(visible(&world, &subject, &resource, context));
        }
    }
}

/// The generator is worth nothing if the interesting cases never happen.
#[test]
fn worlds_have_firing_forbids_and_permits_of_every_kind() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut allowed, mut forbidden, mut nothing, mut through_group) = (0, 0, 0, 0);
    for _ in 0..400 {
        let world = any_world().new_tree(&mut runner).unwrap().current();
        let subject = asking().new_tree(&mut runner).unwrap().current();
        let resource = target().new_tree(&mut runner).unwrap().current();
        let context = Context {
            authenticated_by: AuthenticatedBy::Token,
        };
        let decision = decide(
            &world,
            &Question {
                subject: &subject,
                action: "vmc.vm.get",
                resource: &resource,
                context,
            },
        );
        let by_group = decision.determining.iter().any(|by| match by {
            PolicyRef::Binding(id) => matches!(world.binding(*id).unwrap().subject, Subject::Group(_)),
            PolicyRef::Platform(_) => false,
        });
        through_group += u32::from(by_group);
        match (decision.allowed, decision.determining.is_empty()) {
            (true, _) => allowed += 1,
            (false, false) => forbidden += 1,
            (false, true) => nothing += 1,
        }
    }
    assert!(
        allowed > 20 && forbidden > 20 && nothing > 20 && through_group > 10,
        "{allowed} {forbidden} {nothing} {through_group}"
    );
}

#[test]
fn policies_validate_strictly_against_the_schema() {
    let groups: String = Role::ALL
        .iter()
        .map(|role| format!("action \"role/{role}\";\n"))
        .collect();
    let actions: String = ACTIONS
        .iter()
        .map(|action| {
            let mut parents: Vec<String> =
                Role::ALL.iter().filter(|role| action.least_role <= **role).map(|role| format!("\"role/{role}\"")).collect();
            if action.everyone {
                parents.push("\"everyone\"".to_owned());
            }
            format!(
                "action \"{}\" in [{}] appliesTo {{ principal: [User, ServiceAccount, Workload], \
                 resource: [Root, Organisation, Folder, Project, Resource], context: {{ authenticated_by: String }} }};\n",
                action.name,
                parents.join(", ")
            )
        })
        .collect();
    let text = format!("{SCHEMA}\nnamespace Iam {{\naction \"everyone\";\n{groups}{actions}}}\n");
    // The namespace may be opened once only, so the two parts are joined.
    let text = text.replacen("}\n\nnamespace Iam {\n", "", 1);
    let (schema, _) = Schema::from_cedarschema_str(&text).unwrap();
    let result = Validator::new(schema).validate(ENGINE.base(), ValidationMode::Strict);
    let findings: Vec<String> = result.validation_errors().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "{findings:#?}");
}

#[test]
fn an_unknown_principal_resource_or_action_is_denied() {
    let mut world = World::new();
    let subject = Subject::User(principal_id(0));
    let name: hearth_types::Name = "ada".parse().unwrap();
    world.put_principal(
        principal_id(0),
        Principal {
            kind: PrincipalKind::User,
            name,
            disabled: false,
            epoch: 0,
            project: None,
        },
    );
    let node = Node::Root;
    world.put_binding(Binding {
        id: BindingId::from_uuid(Uuid::nil()),
        subject: subject.clone(),
        role: Role::Admin,
        node,
    });
    let context = Context {
        authenticated_by: AuthenticatedBy::Token,
    };
    let ask = |subject: &Subject, action: &str, resource: &ResourceRef| {
        decide(
            &world,
            &Question {
                subject,
                action,
                resource,
                context,
            },
        )
        .allowed
    };
    assert!(ask(&subject, "iam.user.create", &ResourceRef::Root));
    assert!(!ask(&subject, "iam.user.levitate", &ResourceRef::Root));
    assert!(!ask(&subject, "vmc.vm.get", &ResourceRef::Project(project_id(9))));
    // The same id as another kind of principal is another principal.
    assert!(!ask(
        &Subject::ServiceAccount(principal_id(0)),
        "iam.user.create",
        &ResourceRef::Root
    ));
    assert!(!ask(
        &Subject::User(principal_id(1)),
        "vmc.image.list",
        &ResourceRef::Root
    ));
    assert!(!ask(
        &Subject::Group(principal_id(0)),
        "vmc.image.list",
        &ResourceRef::Root
    ));
}

#[test]
fn cycles_and_deep_nests_of_groups_are_refused() {
    let mut world = World::new();
    let group = |n: u128, members: Vec<Subject>| Group {
        name: format!("g{n}").parse().unwrap(),
        members,
    };
    let member = |n: u128| vec![Subject::Group(group_id(n))];
    world.put_group(group_id(0), group(0, Vec::new()));
    assert!(
        world.check_group(group_id(0), &group(0, member(0))).is_err(),
        "a group in itself"
    );
    // A user in g0 in g1 ... : the user counts as no level of its own.
    world.put_group(group_id(0), group(0, vec![Subject::User(principal_id(0))]));
    for n in 1..crate::MAX_GROUP_DEPTH as u128 {
        world.check_group(group_id(n), &group(n, member(n - 1))).unwrap();
        world.put_group(group_id(n), group(n, member(n - 1)));
    }
    let last = crate::MAX_GROUP_DEPTH as u128;
    assert!(
        world
            .check_group(group_id(last), &group(last, member(last - 1)))
            .is_err(),
        "too deep"
    );
    let mut closing = group(0, member(3));
    closing.members.push(Subject::User(principal_id(0)));
    assert_eq!(
        world.check_group(group_id(0), &closing),
        Err(crate::GraphError::Cycle(closing.name.clone()))
    );
}
