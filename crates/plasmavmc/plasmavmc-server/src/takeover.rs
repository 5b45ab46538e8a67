//! The take-over: on the replica that holds the election, it looks at the nodes' guards, fences a node that is proved to
//! be out of the way, and starts its guests elsewhere, if that is their policy.
//!
//! The rule is `plasmavmc_core::fence`; here is its clock, and the store. Nothing is remembered from one term to the
//! next: whoever has not seen an absence himself knows nothing about it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chainfire_client::Leadership;
use hearth_service::tasks::chain;
use hearth_types::Name;
use plasmavmc_core::fence::{Look, Standing, TIMES, TakeOver, may_restart_elsewhere};
use plasmavmc_core::{Pick, Placement};

use crate::app::explain::placement_of;
use crate::app::vm::now_ms;
use crate::nodes::NodeBook;
use crate::store::records::VmRecord;
use crate::store::takeover::{GuardView, Move, candidate};
use crate::store::{Store, StoreError, Stored};

/// Well below the gap after which everything is counted anew.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often the guests of a node without a lease are looked through.
const GUESTS_EVERY: Duration = Duration::from_secs(2);
/// Nodes that are tried for one guest before the next look.
const ATTEMPTS: u32 = 8;

/// Looks as long as the term lasts.
pub(crate) async fn run(store: &Store, nodes: &NodeBook, leadership: &Leadership) {
    let mut watch = Watch {
        store,
        nodes,
        leadership,
        begin: Instant::now(),
        seen: BTreeMap::new(),
        looked: BTreeMap::new(),
    };
    loop {
        if let Err(error) = watch.look().await {
            tracing::warn!(error = %chain(&error), "cannot look at the nodes' guards");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

struct Watch<'a> {
    store: &'a Store,
    nodes: &'a NodeBook,
    leadership: &'a Leadership,
    begin: Instant,
    seen: BTreeMap<Name, TakeOver>,
    /// When a node's guests were last looked through.
    looked: BTreeMap<Name, Instant>,
}

impl Watch<'_> {
    fn clock_ms(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn look(&mut self) -> Result<(), StoreError> {
        let asked_ms = self.clock_ms();
        let guards = match self.store.guards().await {
            Ok(guards) => guards,
            Err(error) => {
                self.seen.values_mut().for_each(TakeOver::missed);
                return Err(error);
            }
        };
        let now_ms = self.clock_ms();
        let mut lost = Vec::new();
        for (node, guard) in guards {
            let look = Look {
                asked_ms,
                now_ms,
                // An agent that answers is not lost, whatever has become of its guard.
                lease: guard.lease || guard.session,
                record: guard.record,
            };
            let seen = self
                .seen
                .entry(node.clone())
                .or_insert_with(|| TakeOver::new(TIMES));
            match seen.look(&look) {
                standing @ (Standing::MayFence { .. } | Standing::Fenced { .. }) => {
                    lost.push((node, standing))
                }
                Standing::Held | Standing::Gone { .. } | Standing::Unguarded => {
                    self.looked.remove(&node);
                }
            }
        }
        for (node, standing) in lost {
            let due = self
                .looked
                .get(&node)
                .is_none_or(|at| at.elapsed() >= GUESTS_EVERY);
            if due {
                self.looked.insert(node.clone(), Instant::now());
                self.take_over(&node, standing).await?;
            }
        }
        Ok(())
    }

    async fn take_over(&mut self, node: &Name, standing: Standing) -> Result<(), StoreError> {
        let guests = self.store.movable_on(node).await?;
        if guests.is_empty() {
            return Ok(());
        }
        let leader = self.leadership.guard();
        if let Standing::MayFence { revision } = standing {
            if self.store.fence(node, revision, now_ms(), &leader).await? {
                tracing::warn!(%node, guests = guests.len(), "the node is lost and fenced: its guests are restarted elsewhere");
            }
            // The next look sees the fence, and goes on from it.
            self.looked.remove(node);
            return Ok(());
        }
        for guest in guests {
            let vm = &guest.record;
            match may_restart_elsewhere(&candidate(&vm.value), standing) {
                Ok(fence) => self.restart(vm, fence).await?,
                Err(why) => tracing::debug!(vm = %vm.value.id, %node, %why, "not restarted elsewhere"),
            }
        }
        Ok(())
    }

    /// Finds a node, and gives the guest to it.
    async fn restart(&self, vm: &Stored<VmRecord>, fence: i64) -> Result<(), StoreError> {
        let record = &vm.value;
        let wanted = wanted(record);
        self.nodes.refresh(self.store).await?;
        for _ in 0..ATTEMPTS {
            let (decision, to) = match self.nodes.decide(&wanted, Pick::Near, rand::random()) {
                Ok(found) => found,
                Err(none) => {
                    tracing::warn!(vm = %record.id, why = %none, "no other node takes the guest of a lost one");
                    return Ok(());
                }
            };
            let mut alloc = to.alloc.value.clone();
            if alloc
                .alloc
                .claim(record.id, record.resources, decision.room)
                .is_err()
            {
                continue;
            }
            let moved = Move {
                vm,
                fence,
                to: &to,
                alloc: &alloc,
                leader: &self.leadership.guard(),
            };
            if self.store.move_vm(&moved).await? {
                tracing::warn!(vm = %record.id, from = %record.placed.node, to = %to.name,
                    epoch = record.placed.epoch + 1, "restarted elsewhere");
                return Ok(());
            }
            self.nodes.refresh(self.store).await?;
        }
        Ok(())
    }
}

/// Its address stays, so it needs a node that has the same kind of network.
fn wanted(record: &VmRecord) -> Placement {
    Placement {
        network_mode: Some(record.placed.network_mode),
        ..placement_of(record)
    }
}

/// What stands in the way of a restart elsewhere, for people. None: it has no such policy.
pub(crate) fn explained(record: &VmRecord, guard: Option<&GuardView>) -> String {
    let standing = match guard {
        None => Standing::Unguarded,
        Some(guard) if guard.lease || guard.session => Standing::Held,
        Some(GuardView { record: None, .. }) => Standing::Unguarded,
        Some(GuardView {
            record: Some(seen), ..
        }) if seen.fenced => Standing::Fenced {
            revision: seen.revision,
        },
        Some(_) => Standing::Gone {
            left_ms: TIMES.margin_ms,
        },
    };
    match may_restart_elsewhere(&candidate(record), standing) {
        Ok(_) => "its node is fenced: it goes to the first node that takes it".to_owned(),
        Err(why) => format!("not now: {why}"),
    }
}
