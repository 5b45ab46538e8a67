//! What the scheduler thinks of every node.

use super::Cluster;
use super::filter::{WhyNot, reasons};
use super::node::Placement;
use super::weigh::{Weight, weigh};

/// What speaks against a node, or how it weighs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It can take the VM.
    Fits(Weight),
    /// Every reason why not; never empty.
    Rejected(Vec<WhyNot>),
}

/// One node's verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeVerdict {
    /// Name.
    pub node: String,
    /// The verdict.
    pub verdict: Verdict,
}

impl Cluster {
    /// Every node with every reason why not, or its weight: the best first, then those that do not fit, by name.
    #[must_use]
    pub fn explain(&self, wanted: &Placement) -> Vec<NodeVerdict> {
        let mut verdicts: Vec<NodeVerdict> = self
            .slots
            .iter()
            .map(|slot| {
                let reasons = reasons(slot, wanted);
                let verdict = if reasons.is_empty() {
                    Verdict::Fits(weigh(slot, wanted, &self.policy))
                } else {
                    Verdict::Rejected(reasons)
                };
                NodeVerdict {
                    node: slot.node.name.clone(),
                    verdict,
                }
            })
            .collect();
        verdicts.sort_by(|a, b| a.rank().cmp(&b.rank()).then_with(|| a.node.cmp(&b.node)));
        verdicts
    }
}

impl NodeVerdict {
    const fn rank(&self) -> u64 {
        match &self.verdict {
            Verdict::Fits(weight) => weight.total(),
            Verdict::Rejected(_) => u64::MAX,
        }
    }
}
