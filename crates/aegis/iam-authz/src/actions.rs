//! The table of every permission, and the built-in roles.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A built-in role. Each contains the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Lists and reads.
    Viewer,
    /// Viewer, and runs machines: life cycle, console, DNS records.
    Operator,
    /// Everything at and beneath the place where it is bound.
    Admin,
}

/// A text that names no built-in role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no role `{0}`; the roles are viewer, operator and admin")]
pub struct RoleError(String);

impl Role {
    /// Every role, weakest first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// The name that people write.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// One sentence for lists.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::Viewer => "lists and reads",
            Self::Operator => "viewer, and runs machines: life cycle, console, DNS records",
            Self::Admin => "everything at and beneath the place where it is bound",
        }
    }

    /// The permissions that the role gives.
    pub fn actions(self) -> impl Iterator<Item = &'static Action> {
        ACTIONS.iter().filter(move |action| action.least_role <= self)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| RoleError(text.to_owned()))
    }
}

/// One permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// `service.kind.verb`.
    pub name: &'static str,
    /// The weakest built-in role that has it.
    pub least_role: Role,
    /// Whether it changes anything: such a decision needs a fresher snapshot.
    pub mutates: bool,
    /// Whether every principal that is signed in has it, bound or not.
    pub everyone: bool,
}

const fn read(name: &'static str) -> Action {
    Action {
        name,
        least_role: Role::Viewer,
        mutates: false,
        everyone: false,
    }
}

const fn open(name: &'static str) -> Action {
    Action {
        name,
        least_role: Role::Viewer,
        mutates: false,
        everyone: true,
    }
}

const fn run(name: &'static str) -> Action {
    Action {
        name,
        least_role: Role::Operator,
        mutates: true,
        everyone: false,
    }
}

const fn rule(name: &'static str) -> Action {
    Action {
        name,
        least_role: Role::Admin,
        mutates: true,
        everyone: false,
    }
}

/// Every permission, sorted by name. Images and nodes live on the root; machines, records and service accounts in a
/// project; users and groups on the root. Whoever adds one also extends the picture in `tests/roles.rs`.
pub const ACTIONS: &[Action] = &[
    run("dns.record.create"),
    run("dns.record.delete"),
    read("dns.record.list"),
    read("dns.zone.get"),
    read("dns.zone.list"),
    Action {
        name: "iam.audit.read",
        least_role: Role::Admin,
        mutates: false,
        everyone: false,
    },
    rule("iam.binding.create"),
    rule("iam.binding.delete"),
    read("iam.binding.get"),
    read("iam.binding.list"),
    rule("iam.group.create"),
    rule("iam.group.delete"),
    read("iam.group.get"),
    read("iam.group.list"),
    rule("iam.group.update"),
    rule("iam.organisation.create"),
    rule("iam.organisation.delete"),
    read("iam.organisation.get"),
    read("iam.organisation.list"),
    rule("iam.organisation.update"),
    rule("iam.project.create"),
    rule("iam.project.delete"),
    read("iam.project.get"),
    read("iam.project.list"),
    rule("iam.project.update"),
    open("iam.role.list"),
    rule("iam.serviceaccount.create"),
    rule("iam.serviceaccount.delete"),
    read("iam.serviceaccount.get"),
    read("iam.serviceaccount.list"),
    rule("iam.serviceaccount.update"),
    rule("iam.user.create"),
    rule("iam.user.delete"),
    read("iam.user.get"),
    read("iam.user.list"),
    rule("iam.user.update"),
    run("vmc.group.create"),
    run("vmc.group.delete"),
    read("vmc.group.list"),
    rule("vmc.image.delete"),
    rule("vmc.image.import"),
    open("vmc.image.list"),
    read("vmc.node.list"),
    rule("vmc.node.update"),
    read("vmc.quota.get"),
    rule("vmc.quota.set"),
    run("vmc.vm.console"),
    run("vmc.vm.create"),
    run("vmc.vm.delete"),
    read("vmc.vm.get"),
    read("vmc.vm.list"),
    run("vmc.vm.start"),
    run("vmc.vm.stop"),
];

/// The permission of that name, if there is one.
#[must_use]
pub fn action(name: &str) -> Option<&'static Action> {
    ACTIONS
        .binary_search_by(|action| action.name.cmp(name))
        .ok()
        .and_then(|at| ACTIONS.get(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_every_entry_is_found() {
        assert!(
            ACTIONS.is_sorted_by(|a, b| a.name < b.name),
            "binary search needs the order"
        );
        for entry in ACTIONS {
            assert_eq!(action(entry.name), Some(entry));
            assert_eq!(
                entry.name.split('.').count(),
                3,
                "{} is not service.kind.verb",
                entry.name
            );
        }
        assert_eq!(action("vmc.vm.levitate"), None);
    }

    #[test]
    fn roles_contain_each_other() {
        for pair in Role::ALL.windows(2) {
            let (weak, strong) = (pair[0], pair[1]);
            assert!(weak.actions().all(|a| strong.actions().any(|b| a.name == b.name)));
            assert!(weak.actions().count() < strong.actions().count());
        }
        assert_eq!(Role::Admin.actions().count(), ACTIONS.len());
        assert!(
            "owner"
                .parse::<Role>()
                .unwrap_err()
                .to_string()
                .contains("viewer, operator and admin")
        );
    }
}
