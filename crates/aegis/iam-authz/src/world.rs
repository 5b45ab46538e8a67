//! The entity graph and the index of bindings.
//!
//! Records are shared by `Arc`, so that cloning a world for the next snapshot copies pointers only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use hearth_types::{BindingId, FolderId, Name, OrganisationId, PrincipalId, ProjectId};

use crate::{Binding, Group, Node, Organisation, Principal, PrincipalKind, Project, Subject};

/// Deepest nesting of groups: a member, its group, that group's group, and so on.
pub const MAX_GROUP_DEPTH: usize = 8;
/// Most groups that one principal may be in, directly and through others. A principal in more is denied everything.
pub const MAX_GROUPS_OF_ONE: usize = 256;
/// Deepest nesting of folders.
const MAX_FOLDER_DEPTH: usize = 16;

/// Why a change to the graph is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// The group would contain itself.
    #[error("group `{0}` would contain itself")]
    Cycle(Name),
    /// Nested more than [`MAX_GROUP_DEPTH`] deep, or a member would be in more than [`MAX_GROUPS_OF_ONE`].
    #[error(
        "group `{0}` would nest deeper than {MAX_GROUP_DEPTH} or put a member into more than {MAX_GROUPS_OF_ONE} groups"
    )]
    TooDeep(Name),
}

/// Principals, groups, the hierarchy and the bindings at one revision.
#[derive(Clone, Debug, Default)]
pub struct World {
    principals: HashMap<PrincipalId, Arc<Principal>>,
    groups: HashMap<PrincipalId, Arc<Group>>,
    groups_of: HashMap<Subject, BTreeSet<PrincipalId>>,
    organisations: BTreeMap<OrganisationId, Arc<Organisation>>,
    folders: HashMap<FolderId, Node>,
    projects: BTreeMap<ProjectId, Arc<Project>>,
    project_names: HashMap<Name, ProjectId>,
    bindings: BTreeMap<BindingId, Arc<Binding>>,
    index: HashMap<(Subject, Node), BTreeSet<BindingId>>,
}

impl World {
    /// A world without anything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a user or a service account.
    pub fn put_principal(&mut self, id: PrincipalId, principal: Principal) {
        self.principals.insert(id, Arc::new(principal));
    }

    /// Removes a user or a service account. Its bindings stay and bind nobody.
    pub fn remove_principal(&mut self, id: PrincipalId) {
        self.principals.remove(&id);
    }

    /// Adds or replaces a group with all its members.
    pub fn put_group(&mut self, id: PrincipalId, group: Group) {
        self.remove_group(id);
        for member in &group.members {
            self.groups_of.entry(member.clone()).or_default().insert(id);
        }
        self.groups.insert(id, Arc::new(group));
    }

    /// Removes a group.
    pub fn remove_group(&mut self, id: PrincipalId) {
        let Some(old) = self.groups.remove(&id) else {
            return;
        };
        for member in &old.members {
            if let Some(groups) = self.groups_of.get_mut(member) {
                groups.remove(&id);
                if groups.is_empty() {
                    self.groups_of.remove(member);
                }
            }
        }
    }

    /// Whether the group may be put: no cycle, no limit broken. For the writer; a reader takes what is stored.
    ///
    /// # Errors
    ///
    /// [`GraphError`] names the group and the limit.
    pub fn check_group(&self, id: PrincipalId, group: &Group) -> Result<(), GraphError> {
        let mut next = self.clone();
        next.put_group(id, group.clone());
        if next
            .above(&Subject::Group(id))
            .is_some_and(|above| above.contains(&id))
        {
            return Err(GraphError::Cycle(group.name.clone()));
        }
        // Adding a member lengthens the chains of everything below it too; the graph is small and writes are rare.
        if next.groups_of.keys().any(|member| next.above(member).is_none()) {
            return Err(GraphError::TooDeep(group.name.clone()));
        }
        Ok(())
    }

    /// The groups at any distance above; `None` when a limit is broken.
    fn above(&self, subject: &Subject) -> Option<BTreeSet<PrincipalId>> {
        let mut found = BTreeSet::new();
        let mut layer: BTreeSet<PrincipalId> = self.groups_of.get(subject).cloned().unwrap_or_default();
        for _ in 0..MAX_GROUP_DEPTH {
            let mut next = BTreeSet::new();
            for id in layer {
                if found.insert(id) {
                    next.extend(
                        self.groups_of
                            .get(&Subject::Group(id))
                            .into_iter()
                            .flatten()
                            .copied(),
                    );
                }
            }
            if found.len() > MAX_GROUPS_OF_ONE {
                return None;
            }
            if next.is_empty() {
                return Some(found);
            }
            layer = next;
        }
        layer.is_subset(&found).then_some(found)
    }

    /// The subject and every group above it; `None` when it does not exist or is in too many groups.
    #[must_use]
    pub fn subjects_of(&self, subject: &Subject) -> Option<Vec<Subject>> {
        let exists = match subject {
            Subject::User(id) => self
                .principals
                .get(id)
                .is_some_and(|p| p.kind == PrincipalKind::User),
            Subject::ServiceAccount(id) => self
                .principals
                .get(id)
                .is_some_and(|p| p.kind == PrincipalKind::ServiceAccount),
            Subject::Group(id) => self.groups.contains_key(id),
            Subject::Workload(_) => true,
        };
        if !exists {
            return None;
        }
        let above = self.above(subject)?;
        let mut all = Vec::with_capacity(above.len() + 1);
        all.push(subject.clone());
        all.extend(above.into_iter().map(Subject::Group));
        Some(all)
    }

    /// Adds or replaces an organisation.
    pub fn put_organisation(&mut self, id: OrganisationId, organisation: Organisation) {
        self.organisations.insert(id, Arc::new(organisation));
    }

    /// Removes an organisation.
    pub fn remove_organisation(&mut self, id: OrganisationId) {
        self.organisations.remove(&id);
    }

    /// Adds or moves a folder. `parent` is an organisation or a folder.
    pub fn put_folder(&mut self, id: FolderId, parent: Node) {
        self.folders.insert(id, parent);
    }

    /// Removes a folder.
    pub fn remove_folder(&mut self, id: FolderId) {
        self.folders.remove(&id);
    }

    /// Adds, renames or moves a project.
    pub fn put_project(&mut self, id: ProjectId, project: Project) {
        self.remove_project(id);
        self.project_names.insert(project.name.clone(), id);
        self.projects.insert(id, Arc::new(project));
    }

    /// Removes a project.
    pub fn remove_project(&mut self, id: ProjectId) {
        if let Some(old) = self.projects.remove(&id)
            && self.project_names.get(&old.name) == Some(&id)
        {
            self.project_names.remove(&old.name);
        }
    }

    /// Adds or replaces a binding.
    pub fn put_binding(&mut self, binding: Binding) {
        self.remove_binding(binding.id);
        self.index
            .entry((binding.subject.clone(), binding.node))
            .or_default()
            .insert(binding.id);
        self.bindings.insert(binding.id, Arc::new(binding));
    }

    /// Removes a binding.
    pub fn remove_binding(&mut self, id: BindingId) {
        let Some(old) = self.bindings.remove(&id) else {
            return;
        };
        let key = (old.subject.clone(), old.node);
        if let Some(ids) = self.index.get_mut(&key) {
            ids.remove(&id);
            if ids.is_empty() {
                self.index.remove(&key);
            }
        }
    }

    /// The place and everything above it, lowest first; `None` when the place does not exist.
    #[must_use]
    pub fn chain(&self, node: Node) -> Option<Vec<Node>> {
        let mut chain = vec![node];
        let mut at = node;
        for _ in 0..MAX_FOLDER_DEPTH + 3 {
            let next = match at {
                Node::Root => return Some(chain),
                Node::Organisation(id) => self.organisations.get(&id).map(|_| Node::Root)?,
                Node::Folder(id) => *self.folders.get(&id)?,
                Node::Project(id) => {
                    let project = self.projects.get(&id)?;
                    project
                        .folder
                        .map_or(Node::Organisation(project.organisation), Node::Folder)
                }
            };
            chain.push(next);
            at = next;
        }
        None
    }

    /// The bindings that can matter: for one of `subjects` on one of `nodes`.
    pub(crate) fn slice<'a>(
        &'a self,
        subjects: &'a [Subject],
        nodes: &'a [Node],
    ) -> impl Iterator<Item = &'a Arc<Binding>> + 'a {
        subjects
            .iter()
            .flat_map(move |subject| nodes.iter().map(move |node| (subject.clone(), *node)))
            .filter_map(|key| self.index.get(&key))
            .flatten()
            .filter_map(|id| self.bindings.get(id))
    }

    /// A user or a service account.
    #[must_use]
    pub fn principal(&self, id: PrincipalId) -> Option<&Principal> {
        self.principals.get(&id).map(Arc::as_ref)
    }

    /// Every user and service account, in no order.
    pub fn principals(&self) -> impl Iterator<Item = (PrincipalId, &Principal)> {
        self.principals
            .iter()
            .map(|(id, principal)| (*id, principal.as_ref()))
    }

    /// A group.
    #[must_use]
    pub fn group(&self, id: PrincipalId) -> Option<&Group> {
        self.groups.get(&id).map(Arc::as_ref)
    }

    /// Every group, in no order.
    pub fn groups(&self) -> impl Iterator<Item = (PrincipalId, &Group)> {
        self.groups.iter().map(|(id, group)| (*id, group.as_ref()))
    }

    /// An organisation.
    #[must_use]
    pub fn organisation(&self, id: OrganisationId) -> Option<&Organisation> {
        self.organisations.get(&id).map(Arc::as_ref)
    }

    /// Every organisation, oldest first.
    pub fn organisations(&self) -> impl Iterator<Item = (OrganisationId, &Organisation)> {
        self.organisations
            .iter()
            .map(|(id, organisation)| (*id, organisation.as_ref()))
    }

    /// A project.
    #[must_use]
    pub fn project(&self, id: ProjectId) -> Option<&Project> {
        self.projects.get(&id).map(Arc::as_ref)
    }

    /// The project of that name.
    #[must_use]
    pub fn project_by_name(&self, name: &Name) -> Option<(ProjectId, &Project)> {
        let id = *self.project_names.get(name)?;
        Some((id, self.project(id)?))
    }

    /// Every project, oldest first.
    pub fn projects(&self) -> impl Iterator<Item = (ProjectId, &Project)> {
        self.projects.iter().map(|(id, project)| (*id, project.as_ref()))
    }

    /// A binding.
    #[must_use]
    pub fn binding(&self, id: BindingId) -> Option<&Binding> {
        self.bindings.get(&id).map(Arc::as_ref)
    }

    /// Every binding, oldest first.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.bindings.values().map(Arc::as_ref)
    }

    #[cfg(test)]
    pub(crate) fn folders(&self) -> impl Iterator<Item = (FolderId, Node)> + '_ {
        self.folders.iter().map(|(id, parent)| (*id, *parent))
    }

    #[cfg(test)]
    pub(crate) fn direct_groups(&self, subject: &Subject) -> BTreeSet<PrincipalId> {
        self.groups_of.get(subject).cloned().unwrap_or_default()
    }
}
