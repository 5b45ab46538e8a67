//! The names of running VMs as PlasmaVMC publishes them in Chainfire.
//!
//! One key per running VM, `/plasmavmc/v1/names/PROJECT/NAME`, with a JSON value. It is written in the
//! transaction that accepts "running" and deleted in the one that accepts anything else, so whoever
//! watches [`PREFIX`] knows exactly the VMs that can answer.

use std::net::IpAddr;

use hearth_types::{Name, VmId};
use serde::{Deserialize, Serialize};

/// All published names lie below this key prefix.
pub const PREFIX: &str = "/plasmavmc/v1/names/";

/// Time to live that PlasmaVMC gives a VM's records, in seconds: short, since an address moves with a VM.
pub const DEFAULT_TTL_S: u32 = 30;

/// A running VM's name and addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedName {
    /// Name of the project that owns the VM: the second label of the DNS name.
    pub project: Name,
    /// Name of the VM: the first label of the DNS name.
    pub name: Name,
    /// The VM itself. A name that is given to another VM later has another id here.
    pub vm: VmId,
    /// Addresses the VM answers on; at least one.
    pub addresses: Vec<IpAddr>,
    /// Time to live for its records, in seconds.
    pub ttl_s: u32,
}

/// Why a key or value below [`PREFIX`] could not be read.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// The key is not `PREFIX` + project + `/` + name.
    #[error("key `{key}` is not `{PREFIX}PROJECT/NAME`")]
    Key {
        /// The key as it was found.
        key: String,
    },
    /// The value is not the JSON of a [`PublishedName`].
    #[error("value of `{key}` is not a published name")]
    Value {
        /// The key whose value it is.
        key: String,
        /// What JSON had to say.
        #[source]
        source: serde_json::Error,
    },
    /// Key and value name different VMs.
    #[error("key `{key}` holds the name `{name}.{project}` of another VM")]
    Mismatch {
        /// The key as it was found.
        key: String,
        /// VM name in the value.
        name: Name,
        /// Project name in the value.
        project: Name,
    },
}

impl PublishedName {
    /// The key under which this name is published.
    #[must_use]
    pub fn key(&self) -> String {
        key(&self.project, &self.name)
    }

    /// The value to store, JSON.
    ///
    /// # Errors
    /// Never in practice: every field has a JSON form.
    pub fn value(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

/// The key under which the VM `name` of `project` is published.
#[must_use]
pub fn key(project: &Name, name: &Name) -> String {
    format!("{PREFIX}{project}/{name}")
}

/// Project and VM name of a key below [`PREFIX`]; enough to handle a deletion, which has no value.
///
/// # Errors
/// [`NameError::Key`] when the key has another form.
pub fn parse_key(key: &[u8]) -> Result<(Name, Name), NameError> {
    let text = String::from_utf8_lossy(key);
    let malformed = || NameError::Key {
        key: text.to_string(),
    };
    let rest = text.strip_prefix(PREFIX).ok_or_else(malformed)?;
    let (project, name) = rest.split_once('/').ok_or_else(malformed)?;
    Ok((
        project.parse().map_err(|_| malformed())?,
        name.parse().map_err(|_| malformed())?,
    ))
}

/// Reads one published name back; the key must belong to the value.
///
/// # Errors
/// [`NameError`] when key or value is malformed or they do not belong together.
pub fn parse(key: &[u8], value: &[u8]) -> Result<PublishedName, NameError> {
    let (project, name) = parse_key(key)?;
    let text = || String::from_utf8_lossy(key).into_owned();
    let published: PublishedName =
        serde_json::from_slice(value).map_err(|source| NameError::Value { key: text(), source })?;
    if published.project != project || published.name != name {
        return Err(NameError::Mismatch {
            key: text(),
            name: published.name,
            project: published.project,
        });
    }
    Ok(published)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> PublishedName {
        PublishedName {
            project: "default".parse().unwrap(),
            name: "web".parse().unwrap(),
            vm: "0190d0c0-0000-7000-8000-000000000001".parse().unwrap(),
            addresses: vec!["10.77.0.5".parse().unwrap()],
            ttl_s: DEFAULT_TTL_S,
        }
    }

    #[test]
    fn round_trips_through_key_and_value() {
        let published = web();
        assert_eq!(published.key(), "/plasmavmc/v1/names/default/web");
        let back = parse(published.key().as_bytes(), &published.value().unwrap()).unwrap();
        assert_eq!(back, published);
    }

    #[test]
    fn refuses_what_is_not_a_published_name() {
        let value = web().value().unwrap();
        assert!(matches!(
            parse(b"/plasmavmc/v1/names/default", &value),
            Err(NameError::Key { .. })
        ));
        assert!(matches!(
            parse(b"/plasmavmc/v1/names/default/UP", &value),
            Err(NameError::Key { .. })
        ));
        assert!(matches!(
            parse(b"/plasmavmc/v1/names/a/b/c", &value),
            Err(NameError::Key { .. })
        ));
        assert!(matches!(
            parse(b"/plasmavmc/v1/names/default/web", b"{"),
            Err(NameError::Value { .. })
        ));
        assert!(matches!(
            parse(b"/plasmavmc/v1/names/default/db", &value),
            Err(NameError::Mismatch { .. })
        ));
    }
}
