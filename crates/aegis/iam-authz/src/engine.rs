//! Cedar behind a seam: one question, the bindings of its slice, the entities of its slice.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use cedar_policy::{
    Authorizer, Context as CedarContext, Decision as CedarDecision, Entities, Entity, EntityId,
    EntityTypeName, EntityUid, Policy, PolicyId, PolicySet, Request, RestrictedExpression, SlotId, Template,
};
use hearth_types::BindingId;

use crate::{ACTIONS, Binding, Node, ResourceRef, Role, Subject};

/// The schema that the policies are validated against (a test does, strictly).
pub const SCHEMA: &str = include_str!("schema.cedarschema");

/// Policies that hold everywhere and are in every slice: name and Cedar text.
pub const PLATFORM_POLICIES: &[(&str, &str)] = &[
    (
        "disabled-principal",
        "forbid(principal, action, resource) when { principal has disabled && principal.disabled };",
    ),
    (
        "everyone-signed-in",
        "permit(principal, action in Iam::Action::\"everyone\", resource);",
    ),
    (
        // The root shell of the machine holds the cluster's keys anyway; a token can never claim to be it.
        "break-glass",
        "permit(principal == Iam::Workload::\"operator/root\", action, resource) \
         when { context.authenticated_by == \"certificate\" };",
    ),
];

/// How the caller proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthenticatedBy {
    /// An access token.
    Token,
    /// A client certificate.
    Certificate,
}

/// What a policy may look at besides the entities. A server fills it; nothing of a request body gets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// How the caller proved who it is.
    pub authenticated_by: AuthenticatedBy,
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyRef {
    /// A binding.
    Binding(BindingId),
    /// A platform policy, by its name.
    Platform(&'static str),
}

/// What Cedar said: allowed or not, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) allowed: bool,
    pub(crate) determining: Vec<PolicyRef>,
}

/// The caller as Cedar sees it.
pub(crate) struct Caller<'a> {
    /// The caller first, then every group above it.
    pub(crate) subjects: &'a [Subject],
    pub(crate) disabled: bool,
}

pub(crate) struct Engine {
    authorizer: Authorizer,
    base: PolicySet,
    types: HashMap<&'static str, EntityTypeName>,
    actions: HashMap<&'static str, Entity>,
}

pub(crate) static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    #[expect(
        clippy::expect_used,
        reason = "the texts are constants of this file; a test parses and validates them"
    )]
    Engine::new().expect("the built-in policies parse")
});

const TYPES: [&str; 9] = [
    "User",
    "ServiceAccount",
    "Group",
    "Workload",
    "Root",
    "Organisation",
    "Folder",
    "Project",
    "Resource",
];

pub(crate) fn template_text(role: Role) -> String {
    format!("permit(principal in ?principal, action in Iam::Action::\"role/{role}\", resource in ?resource);")
}

pub(crate) fn template_id(role: Role) -> PolicyId {
    PolicyId::new(format!("role/{role}"))
}

pub(crate) fn link_id(id: BindingId) -> PolicyId {
    PolicyId::new(format!("binding/{id}"))
}

type BuildError = Box<dyn std::error::Error>;

impl Engine {
    fn new() -> Result<Self, BuildError> {
        let mut types = HashMap::new();
        for name in TYPES {
            types.insert(name, EntityTypeName::from_str(&format!("Iam::{name}"))?);
        }
        let action_type = EntityTypeName::from_str("Iam::Action")?;
        let action_uid = |id: &str| EntityUid::from_type_name_and_id(action_type.clone(), EntityId::new(id));
        let actions = ACTIONS
            .iter()
            .map(|action| {
                let mut parents: HashSet<EntityUid> = Role::ALL
                    .into_iter()
                    .filter(|role| action.least_role <= *role)
                    .map(|role| action_uid(&format!("role/{role}")))
                    .collect();
                if action.everyone {
                    parents.insert(action_uid("everyone"));
                }
                (
                    action.name,
                    Entity::new_no_attrs(action_uid(action.name), parents),
                )
            })
            .collect();
        Ok(Self {
            authorizer: Authorizer::new(),
            base: base_policies()?,
            types,
            actions,
        })
    }

    fn uid(&self, kind: &'static str, id: &str) -> Option<EntityUid> {
        Some(EntityUid::from_type_name_and_id(
            self.types.get(kind)?.clone(),
            EntityId::new(id),
        ))
    }

    pub(crate) fn subject_uid(&self, subject: &Subject) -> Option<EntityUid> {
        match subject {
            Subject::User(id) => self.uid("User", &id.to_string()),
            Subject::ServiceAccount(id) => self.uid("ServiceAccount", &id.to_string()),
            Subject::Group(id) => self.uid("Group", &id.to_string()),
            Subject::Workload(path) => self.uid("Workload", path),
        }
    }

    pub(crate) fn node_uid(&self, node: &Node) -> Option<EntityUid> {
        match node {
            Node::Root => self.uid("Root", "root"),
            Node::Organisation(id) => self.uid("Organisation", &id.to_string()),
            Node::Folder(id) => self.uid("Folder", &id.to_string()),
            Node::Project(id) => self.uid("Project", &id.to_string()),
        }
    }

    pub(crate) fn resource_uid(&self, resource: &ResourceRef) -> Option<EntityUid> {
        match resource {
            ResourceRef::Child { kind, id, .. } => self.uid("Resource", &format!("{kind}/{id}")),
            other => self.node_uid(&other.node()),
        }
    }

    /// Asks Cedar. `None` is a defect (a malformed entity), and a denial to every caller.
    pub(crate) fn ask<'a>(
        &self,
        caller: &Caller<'_>,
        action: &str,
        resource: &ResourceRef,
        chain: &[Node],
        context: &Context,
        slice: impl Iterator<Item = &'a Arc<Binding>>,
    ) -> Option<Verdict> {
        let mut policies = self.base.clone();
        for binding in slice {
            self.link(&mut policies, binding)?;
        }
        let entities = self.entities(caller, action, resource, chain)?;
        self.evaluate(
            caller.subjects.first()?,
            action,
            resource,
            context,
            &policies,
            &entities,
        )
    }

    pub(crate) fn evaluate(
        &self,
        subject: &Subject,
        action: &str,
        resource: &ResourceRef,
        context: &Context,
        policies: &PolicySet,
        entities: &Entities,
    ) -> Option<Verdict> {
        let action = self.actions.get(action)?.uid();
        let authenticated_by = match context.authenticated_by {
            AuthenticatedBy::Token => "token",
            AuthenticatedBy::Certificate => "certificate",
        };
        let pairs = [(
            "authenticated_by".to_owned(),
            RestrictedExpression::new_string(authenticated_by.to_owned()),
        )];
        let context = CedarContext::from_pairs(pairs).ok()?;
        let principal = self.subject_uid(subject)?;
        let request = Request::new(principal, action, self.resource_uid(resource)?, context, None).ok()?;
        let response = self.authorizer.is_authorized(&request, policies, entities);
        // An erring permit is skipped by Cedar, which denies; an erring forbid is skipped too, which would allow.
        let erred = response.diagnostics().errors().next().is_some();
        let mut determining: Vec<PolicyRef> =
            response.diagnostics().reason().filter_map(policy_ref).collect();
        determining.sort();
        Some(Verdict {
            allowed: response.decision() == CedarDecision::Allow && !erred,
            determining,
        })
    }

    pub(crate) fn link(&self, policies: &mut PolicySet, binding: &Binding) -> Option<()> {
        let slots = HashMap::from([
            (SlotId::principal(), self.subject_uid(&binding.subject)?),
            (SlotId::resource(), self.node_uid(&binding.node)?),
        ]);
        policies
            .link(template_id(binding.role), link_id(binding.id), slots)
            .ok()
    }

    #[cfg(test)]
    pub(crate) fn base(&self) -> &PolicySet {
        &self.base
    }

    #[cfg(test)]
    pub(crate) fn action_entities(&self) -> impl Iterator<Item = &Entity> {
        self.actions.values()
    }

    pub(crate) fn principal_entity(
        &self,
        subject: &Subject,
        disabled: bool,
        parents: HashSet<EntityUid>,
    ) -> Option<Entity> {
        let attrs = match subject {
            Subject::User(_) | Subject::ServiceAccount(_) => {
                HashMap::from([("disabled".to_owned(), RestrictedExpression::new_bool(disabled))])
            }
            Subject::Group(_) | Subject::Workload(_) => HashMap::new(),
        };
        Entity::new(self.subject_uid(subject)?, attrs, parents).ok()
    }

    fn entities(
        &self,
        caller: &Caller<'_>,
        action: &str,
        resource: &ResourceRef,
        chain: &[Node],
    ) -> Option<Entities> {
        let (subject, groups) = caller.subjects.split_first()?;
        let groups = groups
            .iter()
            .map(|group| self.subject_uid(group))
            .collect::<Option<HashSet<_>>>()?;
        let principal = self.principal_entity(subject, caller.disabled, groups)?;
        let uid = self.resource_uid(resource)?;
        // All ancestors are given as parents, so that Cedar needs no entity in between to find them.
        let mut above = chain
            .iter()
            .map(|node| self.node_uid(node))
            .collect::<Option<HashSet<_>>>()?;
        above.remove(&uid);
        let target = Entity::new_no_attrs(uid, above);
        let action = self.actions.get(action)?.clone();
        Entities::from_entities([principal, target, action], None).ok()
    }
}

fn base_policies() -> Result<PolicySet, BuildError> {
    let mut base = PolicySet::new();
    for (name, text) in PLATFORM_POLICIES {
        base.add(Policy::parse(
            Some(PolicyId::new(format!("platform/{name}"))),
            text,
        )?)?;
    }
    for role in Role::ALL {
        base.add_template(Template::parse(Some(template_id(role)), template_text(role))?)?;
    }
    Ok(base)
}

fn policy_ref(id: &PolicyId) -> Option<PolicyRef> {
    let text: &str = id.as_ref();
    match text.split_once('/')? {
        ("binding", id) => id.parse().ok().map(PolicyRef::Binding),
        ("platform", name) => PLATFORM_POLICIES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(known, _)| PolicyRef::Platform(known)),
        _ => None,
    }
}
