//! The whole of role x place x action as a picture. `UPDATE_EXPECT=1 cargo test -p iam-authz` redraws it; read the
//! difference before committing it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::fmt::Write as _;

use expect_test::expect_file;
use hearth_types::{BindingId, OrganisationId, PrincipalId, ProjectId};
use iam_authz::{
    ACTIONS, AuthenticatedBy, Binding, Context, Node, Organisation, Principal, PrincipalKind, Project,
    Question, ResourceRef, Role, Subject, World, decide,
};
use uuid::Uuid;

const ORGANISATION: OrganisationId = OrganisationId::from_uuid(Uuid::from_u128(1));
const PROJECT: ProjectId = ProjectId::from_uuid(Uuid::from_u128(2));
const OTHER: ProjectId = ProjectId::from_uuid(Uuid::from_u128(3));

/// Name, what is bound to it, whether it is disabled.
type Column = (String, Option<(Role, Node)>, bool);

/// One user per role and place, one bound in another project, one without anything, one disabled.
fn world() -> (World, Vec<(String, Subject)>) {
    let mut world = World::new();
    world.put_organisation(
        ORGANISATION,
        Organisation {
            name: "org".parse().unwrap(),
        },
    );
    for (id, name) in [(PROJECT, "here"), (OTHER, "there")] {
        let name = name.parse().unwrap();
        world.put_project(
            id,
            Project {
                name,
                organisation: ORGANISATION,
                folder: None,
            },
        );
    }
    let mut columns: Vec<Column> = Vec::new();
    let places = [
        ("root", Node::Root),
        ("org", Node::Organisation(ORGANISATION)),
        ("proj", Node::Project(PROJECT)),
    ];
    for (place, node) in places {
        for role in Role::ALL {
            columns.push((format!("{place}-{role}"), Some((role, node)), false));
        }
    }
    columns.push((
        "other-admin".to_owned(),
        Some((Role::Admin, Node::Project(OTHER))),
        false,
    ));
    columns.push(("unbound".to_owned(), None, false));
    columns.push((
        "disabled-root-admin".to_owned(),
        Some((Role::Admin, Node::Root)),
        true,
    ));
    let mut people = Vec::new();
    for (n, (name, grant, disabled)) in (100_u128..).zip(columns) {
        let id = PrincipalId::from_uuid(Uuid::from_u128(n));
        let subject = Subject::User(id);
        let principal = Principal {
            kind: PrincipalKind::User,
            name: name.parse().unwrap(),
            disabled,
            epoch: 0,
            project: None,
        };
        world.put_principal(id, principal);
        if let Some((role, node)) = grant {
            let id = BindingId::from_uuid(Uuid::from_u128(n));
            world.put_binding(Binding {
                id,
                subject: subject.clone(),
                role,
                node,
            });
        }
        people.push((name, subject));
    }
    (world, people)
}

#[test]
fn role_by_place_by_action() {
    let (world, people) = world();
    let child = ResourceRef::Child {
        project: PROJECT,
        kind: "vm",
        id: "x".to_owned(),
    };
    let targets = [
        ("on the root", ResourceRef::Root),
        ("on the organisation", ResourceRef::Organisation(ORGANISATION)),
        ("on the project", ResourceRef::Project(PROJECT)),
        ("on a resource of the project", child),
    ];
    let mut picture = String::new();
    for (title, resource) in targets {
        writeln!(picture, "{title}").unwrap();
        for (column, (name, _)) in people.iter().enumerate() {
            writeln!(picture, "{:26}{}{name}", "", "| ".repeat(column)).unwrap();
        }
        for action in ACTIONS {
            let marks: Vec<&str> = people
                .iter()
                .map(|(_, subject)| {
                    let context = Context {
                        authenticated_by: AuthenticatedBy::Token,
                    };
                    let question = Question {
                        subject,
                        action: action.name,
                        resource: &resource,
                        context,
                    };
                    if decide(&world, &question).allowed {
                        "x"
                    } else {
                        "."
                    }
                })
                .collect();
            writeln!(picture, "{:26}{}", action.name, marks.join(" ")).unwrap();
        }
        picture.push('\n');
    }
    expect_file!["roles.txt"].assert_eq(&picture);
}

#[test]
fn the_root_shell_is_known_by_certificate_only() {
    let (world, _) = world();
    let ask = |path: &str, authenticated_by| {
        let subject = Subject::Workload(path.to_owned());
        let context = Context { authenticated_by };
        let resource = ResourceRef::Project(PROJECT);
        decide(
            &world,
            &Question {
                subject: &subject,
                action: "vmc.vm.delete",
                resource: &resource,
                context,
            },
        )
        .allowed
    };
    assert!(ask("operator/root", AuthenticatedBy::Certificate));
    assert!(!ask("operator/root", AuthenticatedBy::Token));
    assert!(!ask("operator/toor", AuthenticatedBy::Certificate));
    assert!(!ask("service/plasmavmc", AuthenticatedBy::Certificate));
}
