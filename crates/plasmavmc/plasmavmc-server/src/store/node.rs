//! Nodes in the store.

use std::collections::{BTreeMap, BTreeSet};

use chainfire_client::{KeyValue, Op, Txn};
use hearth_types::Name;
use plasmavmc_core::{Hypervisor, NodeView};

use super::records::{AllocRecord, NodeRecord, VERSION};
use super::requests::Along;
use super::vm::READ_BATCH;
use super::{Store, StoreError, Stored, decode, encode, keys, pairs, unchanged};

/// A node at one revision.
#[derive(Clone, Debug)]
pub(crate) struct NodeSnapshot {
    pub(crate) name: Name,
    pub(crate) alive: bool,
    pub(crate) info: Stored<NodeRecord>,
    pub(crate) alloc: Stored<AllocRecord>,
}

impl NodeSnapshot {
    /// As the scheduler sees it.
    pub(crate) fn view(&self) -> NodeView {
        NodeView {
            name: self.name.to_string(),
            alive: self.alive,
            schedulable: self.info.value.schedulable,
            capacity: self.info.value.capacity,
            claimed: self.alloc.value.alloc.total(),
            cells: self.info.value.cells.clone(),
            claimed_in_cells: self.alloc.value.alloc.in_cells(),
            labels: self.info.value.all_labels(),
            network_mode: self.info.value.network_mode,
            architecture: self.info.value.architecture.clone(),
            hypervisors: if self.info.value.hypervisors.is_empty() {
                BTreeSet::from([Hypervisor::Kvm])
            } else {
                self.info.value.hypervisors.clone()
            },
            features: BTreeSet::from([self.info.value.accelerator.clone()]),
            images: self.info.value.images.clone(),
        }
    }
}

impl Store {
    /// All nodes at one revision, by name.
    pub(crate) async fn nodes(&self) -> Result<Vec<NodeSnapshot>, StoreError> {
        let reads = [Op::list(keys::NODES), Op::list(keys::SESSIONS)];
        let outcome = self.txn("reading nodes", Txn::new().then(reads)).await?;
        let alive: BTreeSet<Name> = pairs(&outcome, 1)
            .iter()
            .filter_map(|kv| keys::last(&kv.key))
            .collect();
        let below = pairs(&outcome, 0);
        let mut nodes = Vec::new();
        for kv in below {
            let Some(name) = name_of(&kv.key, "/info") else {
                continue;
            };
            let alloc_key = keys::node_alloc(&name);
            let alloc = below
                .iter()
                .find(|kv| kv.key == alloc_key.as_bytes())
                .map(decode)
                .transpose()?;
            nodes.push(NodeSnapshot {
                alive: alive.contains(&name),
                info: decode(kv)?,
                alloc: alloc.unwrap_or(Stored {
                    value: no_claims(),
                    revision: 0,
                }),
                name,
            });
        }
        Ok(nodes)
    }

    /// The keys of all nodes and sessions with the revisions of their last change, at one revision.
    pub(crate) async fn node_revisions(&self) -> Result<(i64, BTreeMap<Vec<u8>, i64>), StoreError> {
        let reads = [Op::list_keys(keys::NODES), Op::list_keys(keys::SESSIONS)];
        let outcome = self
            .txn("reading the nodes' revisions", Txn::new().then(reads))
            .await?;
        let both = pairs(&outcome, 0).iter().chain(pairs(&outcome, 1));
        let revisions = both.map(|kv| (kv.key.to_vec(), kv.mod_revision)).collect();
        Ok((outcome.revision, revisions))
    }

    /// The pairs of those of the keys that exist.
    pub(crate) async fn read_keys(&self, keys: &[Vec<u8>]) -> Result<Vec<KeyValue>, StoreError> {
        let mut found = Vec::with_capacity(keys.len());
        for batch in keys.chunks(READ_BATCH) {
            let txn = Txn::new().then(batch.iter().map(Op::get));
            let outcome = self.txn("reading nodes", txn).await?;
            found.extend((0..batch.len()).filter_map(|index| outcome.get(index).cloned()));
        }
        Ok(found)
    }

    /// One node.
    pub(crate) async fn node(&self, name: &Name) -> Result<Option<NodeSnapshot>, StoreError> {
        let reads = [
            Op::get(keys::node_info(name)),
            Op::get(keys::node_alloc(name)),
            Op::get(keys::session(name)),
        ];
        let outcome = self.txn("reading a node", Txn::new().then(reads)).await?;
        let Some(info) = outcome.get(0) else {
            return Ok(None);
        };
        let alloc = outcome.get(1).map(decode).transpose()?;
        Ok(Some(NodeSnapshot {
            name: name.clone(),
            alive: outcome.get(2).is_some(),
            info: decode(info)?,
            alloc: alloc.unwrap_or(Stored {
                value: no_claims(),
                revision: 0,
            }),
        }))
    }

    /// Writes what people have set of a node, if it is as it was read; false when it is not.
    pub(crate) async fn change_node(
        &self,
        node: &NodeSnapshot,
        wanted: &NodeRecord,
        along: Along,
    ) -> Result<bool, StoreError> {
        let key = keys::node_info(&node.name);
        let txn = Txn::new()
            .when([unchanged(&key, node.info.revision)])
            .when(along.guards)
            .then([encode(&key, wanted)?])
            .then(along.writes);
        Ok(self.txn("changing a node", txn).await?.succeeded)
    }

    /// Keeps what an agent says about its node, if that is news. What people have set stays.
    pub(crate) async fn register_node(&self, name: &Name, says: &NodeRecord) -> Result<(), StoreError> {
        let key = keys::node_info(name);
        for _ in 0..super::MAX_CONTENTION {
            let known = self.get::<NodeRecord>(&key).await?;
            let mut wanted = says.clone();
            if let Some(known) = &known {
                wanted.schedulable = known.value.schedulable;
                wanted.own_labels = known.value.own_labels.clone();
            }
            if known.as_ref().is_some_and(|known| known.value == wanted) {
                return Ok(());
            }
            let revision = known.map_or(0, |known| known.revision);
            let txn = Txn::new()
                .when([unchanged(&key, revision)])
                .then([encode(&key, &wanted)?]);
            if self.txn("registering a node", txn).await?.succeeded {
                return Ok(());
            }
        }
        Err(StoreError::Contended {
            doing: "registering a node",
        })
    }
}

pub(crate) fn no_claims() -> AllocRecord {
    AllocRecord {
        version: VERSION,
        ..AllocRecord::default()
    }
}

/// `NAME` of `/plasmavmc/v1/nodes/NAME` + `suffix`.
pub(crate) fn name_of(key: &[u8], suffix: &str) -> Option<Name> {
    std::str::from_utf8(key)
        .ok()?
        .strip_prefix(keys::NODES)?
        .strip_suffix(suffix)?
        .parse()
        .ok()
}
