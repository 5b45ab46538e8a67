//! The decision.

use crate::engine::{Caller, ENGINE};
use crate::{Context, Node, PolicyRef, ResourceRef, Role, Subject, World, action};

/// May `subject` do `action` to `resource`?
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Who asks.
    pub subject: &'a Subject,
    /// A name from [`crate::ACTIONS`].
    pub action: &'a str,
    /// To what.
    pub resource: &'a ResourceRef,
    /// How the caller came in.
    pub context: Context,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may.
    pub allowed: bool,
    /// What decided: when allowed, the permits; when denied, the forbids that fired, or nothing when nothing permits.
    pub determining: Vec<PolicyRef>,
}

impl Decision {
    const NOTHING_PERMITS: Self = Self {
        allowed: false,
        determining: Vec::new(),
    };
}

/// Decides. Unknown principals, resources and actions are denied.
#[must_use]
pub fn decide(world: &World, question: &Question<'_>) -> Decision {
    let Some(known) = action(question.action) else {
        return Decision::NOTHING_PERMITS;
    };
    let Some(subjects) = world.subjects_of(question.subject) else {
        return Decision::NOTHING_PERMITS;
    };
    let Some(chain) = world.chain(question.resource.node()) else {
        return Decision::NOTHING_PERMITS;
    };
    let disabled = match question.subject {
        Subject::User(id) | Subject::ServiceAccount(id) => world.principal(*id).is_none_or(|p| p.disabled),
        // A group is nobody who could ask.
        Subject::Group(_) => true,
        Subject::Workload(_) => false,
    };
    if matches!(question.subject, Subject::Group(_)) {
        return Decision::NOTHING_PERMITS;
    }
    let caller = Caller {
        subjects: &subjects,
        disabled,
    };
    let slice = world.slice(&subjects, &chain);
    ENGINE
        .ask(
            &caller,
            known.name,
            question.resource,
            &chain,
            &question.context,
            slice,
        )
        .map_or(Decision::NOTHING_PERMITS, |verdict| Decision {
            allowed: verdict.allowed,
            determining: verdict.determining,
        })
}

/// Whether the caller may know that the resource's place exists. Whoever may not gets the same answer as for a place
/// that does not exist.
#[must_use]
pub fn visible(world: &World, subject: &Subject, resource: &ResourceRef, context: Context) -> bool {
    let ask = |action, resource: &ResourceRef| {
        decide(
            world,
            &Question {
                subject,
                action,
                resource,
                context,
            },
        )
        .allowed
    };
    match resource {
        ResourceRef::Root => true,
        ResourceRef::Organisation(_) | ResourceRef::Folder(_) => {
            ask("iam.organisation.get", resource)
                || world.projects().any(|(id, _)| {
                    world
                        .chain(Node::Project(id))
                        .is_some_and(|chain| chain.contains(&resource.node()))
                        && ask("iam.project.get", &ResourceRef::Project(id))
                })
        }
        ResourceRef::Project(id) | ResourceRef::Child { project: id, .. } => {
            ask("iam.project.get", &ResourceRef::Project(*id))
        }
    }
}

/// The first permission of `role` that `granter` does not itself hold on `node`, or `None` when it holds them all:
/// nobody grants what they do not hold.
#[must_use]
pub fn missing_for_grant(
    world: &World,
    granter: &Subject,
    role: Role,
    node: Node,
    context: Context,
) -> Option<&'static str> {
    let resource = node.as_resource();
    role.actions().map(|action| action.name).find(|action| {
        !decide(
            world,
            &Question {
                subject: granter,
                action,
                resource: &resource,
                context,
            },
        )
        .allowed
    })
}
