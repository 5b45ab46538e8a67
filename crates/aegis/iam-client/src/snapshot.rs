//! The published records as a world and a set of keys, at one revision.

use std::str::FromStr;

use iam_authn::token::KeySet;
use iam_authz::{Binding, Group, Organisation, Principal, Project, World};
use serde::de::DeserializeOwned;

use crate::records::{
    BindingRecord, GroupRecord, OrganisationRecord, PUBLIC_PREFIX, PrincipalRecord, ProjectRecord,
    SigningKeyRecord,
};

/// Policy, principals and signing keys at one revision.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    world: World,
    keys: KeySet,
    revision: i64,
}

impl Snapshot {
    /// Nothing, at revision 0: nobody is known and nothing is allowed.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// The principals, the hierarchy, the bindings.
    #[must_use]
    pub const fn world(&self) -> &World {
        &self.world
    }

    /// The keys that tokens may be signed with.
    #[must_use]
    pub const fn keys(&self) -> &KeySet {
        &self.keys
    }

    /// The revision of the store that it shows; 0 before anything was read.
    #[must_use]
    pub const fn revision(&self) -> i64 {
        self.revision
    }

    /// Sets the revision after a batch of changes. It never goes back.
    pub fn set_revision(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
    }

    /// Applies one change: a value, or `None` for a deletion. Keys of other layouts are ignored; a record that cannot
    /// be read counts as deleted, so that it grants nothing, and is logged.
    pub fn apply(&mut self, key: &str, value: Option<&[u8]>) {
        let Some((kind, id)) = key
            .strip_prefix(PUBLIC_PREFIX)
            .and_then(|rest| rest.split_once('/'))
        else {
            return;
        };
        let known = match kind {
            "principals" => self.apply_principal(id, value),
            "groups" => self.apply_group(id, value),
            "organisations" => self.apply_organisation(id, value),
            "projects" => self.apply_project(id, value),
            "bindings" => self.apply_binding(id, value),
            "keys" => self.apply_key(id, value),
            _ => Some(()),
        };
        if known.is_none() {
            tracing::error!(
                key,
                "a record of Aegis cannot be read and grants nothing; is this server too old?"
            );
        }
    }

    fn apply_principal(&mut self, id: &str, value: Option<&[u8]>) -> Option<()> {
        let id = parse_id(id)?;
        self.world.remove_principal(id);
        let Some(value) = value else { return Some(()) };
        let PrincipalRecord {
            kind,
            name,
            disabled,
            epoch,
            project,
            ..
        } = read(value)?;
        self.world.put_principal(
            id,
            Principal {
                kind,
                name,
                disabled,
                epoch,
                project,
            },
        );
        Some(())
    }

    fn apply_group(&mut self, id: &str, value: Option<&[u8]>) -> Option<()> {
        let id = parse_id(id)?;
        self.world.remove_group(id);
        let Some(value) = value else { return Some(()) };
        let GroupRecord { name, members, .. } = read(value)?;
        self.world.put_group(id, Group { name, members });
        Some(())
    }

    fn apply_organisation(&mut self, id: &str, value: Option<&[u8]>) -> Option<()> {
        let id = parse_id(id)?;
        self.world.remove_organisation(id);
        let Some(value) = value else { return Some(()) };
        let OrganisationRecord { name, .. } = read(value)?;
        self.world.put_organisation(id, Organisation { name });
        Some(())
    }

    fn apply_project(&mut self, id: &str, value: Option<&[u8]>) -> Option<()> {
        let id = parse_id(id)?;
        self.world.remove_project(id);
        let Some(value) = value else { return Some(()) };
        let ProjectRecord {
            name,
            organisation,
            folder,
            ..
        } = read(value)?;
        self.world.put_project(
            id,
            Project {
                name,
                organisation,
                folder,
            },
        );
        Some(())
    }

    fn apply_binding(&mut self, id: &str, value: Option<&[u8]>) -> Option<()> {
        let id = parse_id(id)?;
        self.world.remove_binding(id);
        let Some(value) = value else { return Some(()) };
        let BindingRecord {
            subject, role, node, ..
        } = read(value)?;
        self.world.put_binding(Binding {
            id,
            subject,
            role,
            node,
        });
        Some(())
    }

    fn apply_key(&mut self, kid: &str, value: Option<&[u8]>) -> Option<()> {
        self.keys.remove(kid);
        let Some(value) = value else { return Some(()) };
        let record: SigningKeyRecord = read(value)?;
        if record.key.kid != kid {
            return None;
        }
        self.keys.insert(record.key).ok()
    }
}

fn parse_id<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn read<T: DeserializeOwned>(value: &[u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0199c2f2-7d3c-7a53-9b7e-2f6f0a4b1c2d";

    #[test]
    fn an_unreadable_record_takes_the_old_one_away() {
        let mut snapshot = Snapshot::empty();
        let key = format!("{PUBLIC_PREFIX}principals/{ID}");
        snapshot.apply(
            &key,
            Some(br#"{"v":1,"kind":"user","name":"ada","disabled":false,"epoch":1}"#),
        );
        assert!(snapshot.world().principal(ID.parse().unwrap()).is_some());
        snapshot.apply(&key, Some(b"{\"v\":2}"));
        assert!(snapshot.world().principal(ID.parse().unwrap()).is_none());
    }

    #[test]
    fn newer_fields_and_foreign_keys_do_no_harm() {
        let mut snapshot = Snapshot::empty();
        let key = format!("{PUBLIC_PREFIX}organisations/{ID}");
        snapshot.apply(&key, Some(br#"{"v":2,"name":"default","colour":"red"}"#));
        assert_eq!(snapshot.world().organisations().count(), 1);
        for key in [
            "/other/x",
            "/aegis/v1/public/policy",
            "/aegis/v1/public/moods/x",
            "/aegis/v1/public/groups/zzz",
        ] {
            snapshot.apply(key, Some(b"junk"));
        }
        snapshot.apply(&key, None);
        assert_eq!(snapshot.world().organisations().count(), 0);
    }
}
