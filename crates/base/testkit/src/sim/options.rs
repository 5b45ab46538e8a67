//! What one seed means.

use super::rng::SimRng;

/// Bugs that are planted below the service, in disks and hosts, to prove that the simulator finds bugs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostBug {
    /// The disk says that a sync worked, and does nothing.
    SkippedFsync,
    /// Term and vote are not stored: a restarted member votes twice.
    DoubleVote,
    /// All reads of a member use one read-index context (etcd's issue 20418).
    ReusedReadContext,
    /// A write is acknowledged before a majority has it.
    AckBeforeCommit,
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Faults all the time; then everything is healed, and all members must agree.
    Safety,
    /// Faults; then all is healed but one member, which stays cut off in one direction or stays down, and the
    /// others must make progress.
    Liveness,
}

/// Everything that a run depends on. Printed when it fails.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seed; all below follow from it unless set otherwise.
    pub seed: u64,
    /// Voters at the start.
    pub members: u64,
    /// A planted bug.
    pub plant: Option<HostBug>,
    /// How the run ends.
    pub mode: Mode,
    /// Simulated milliseconds with faults.
    pub chaos_ms: u64,
    /// Simulated milliseconds within which there must be progress after healing.
    pub heal_ms: u64,
    /// Simulated milliseconds that members have to become equal, and clients to end what they do.
    pub agree_ms: u64,
    /// Clients, each with one operation at a time.
    pub clients: u32,
    /// Messages lost, of 1000.
    pub lose: u64,
    /// Messages doubled, of 1000.
    pub double: u64,
    /// Messages that come late (up to three seconds), of 1000.
    pub late: u64,
    /// Longest usual delay of a message, microseconds.
    pub delay_us: u64,
    /// Milliseconds between faults, on average.
    pub fault_every_ms: u64,
}

impl Options {
    /// The options that `seed` stands for.
    pub fn of(seed: u64, members: u64) -> Options {
        let mut rng = SimRng::new(seed ^ 0x0071_0715);
        let calm = rng.chance(150);
        let rate = |rng: &mut SimRng, most: u64| if calm { 0 } else { rng.below(most + 1) };
        Options {
            seed,
            members,
            plant: None,
            mode: if rng.chance(250) {
                Mode::Liveness
            } else {
                Mode::Safety
            },
            chaos_ms: rng.between(12_000, 40_000),
            heal_ms: 15_000,
            agree_ms: 15_000,
            clients: u32::try_from(rng.between(3, 6)).unwrap_or(3),
            lose: rate(&mut rng, 80),
            double: rate(&mut rng, 60),
            late: rate(&mut rng, 25),
            delay_us: rng.between(300, 12_000),
            fault_every_ms: rng.between(300, 2_500),
        }
    }
}
