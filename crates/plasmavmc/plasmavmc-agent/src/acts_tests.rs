//! Pauses and resets of an imitated guest, with the agent cut off at every point.

use plasmavmc_client::agent::{Assignment, Power, VmState};

use crate::acts::Acts;
use crate::journal::{Entry, Journal};
use crate::vm_tests::{World, id, wanted};

/// Something else about the guest's CPUs, without a change of power.
fn act(generation: u64, paused: bool, resets: u64) -> Assignment {
    Assignment {
        generation,
        power_generation: 1,
        paused,
        resets,
        ..wanted(Power::On)
    }
}

#[tokio::test]
async fn a_pause_lasts_until_it_is_lifted_whoever_restarts() {
    let Some(mut world) = World::new().await else {
        return;
    };
    world.node.assign(act(1, true, 0)).unwrap();
    let paused = world.observed_with(VmState::Running, |o| o.paused).await;
    world.restart().await;
    let still = world.observed_with(VmState::Running, |o| o.paused).await;
    assert_eq!((still.pid, still.reason.as_str()), (paused.pid, ""));
    // The wish to go on comes while nobody listens.
    world.stop_agent().await;
    world.restart().await;
    world.node.assign(act(2, false, 0)).unwrap();
    let runs = world
        .observed_with(VmState::Running, |o| !o.paused && o.observed_generation == 2)
        .await;
    assert_eq!((runs.pid, world.host.starts()), (paused.pid, 1));
    // A graceful stop wakes a paused guest: it could not hear its button.
    world.node.assign(act(3, true, 0)).unwrap();
    world.observed_with(VmState::Running, |o| o.paused).await;
    let stop = Assignment {
        generation: 4,
        graceful_stop_timeout_s: 3600,
        ..wanted(Power::Off)
    };
    world.node.assign(stop).unwrap();
    world.observed(VmState::Stopped).await;
    world.stop_agent().await;
}

#[tokio::test]
async fn a_guest_that_somebody_else_has_stopped_is_not_woken() {
    let Some(mut world) = World::new().await else {
        return;
    };
    world.node.assign(act(1, false, 0)).unwrap();
    world.observed(VmState::Running).await;
    world.host.freeze(&id());
    let frozen = world
        .observed_with(VmState::Running, |o| !o.reason.is_empty())
        .await;
    assert_eq!(
        (frozen.paused, frozen.reason.as_str()),
        (false, "the guest stands still: paused")
    );
    world.restart().await;
    world
        .observed_with(VmState::Running, |o| o.reason == frozen.reason)
        .await;
    world.stop_agent().await;
}

#[tokio::test]
async fn a_reset_is_one_reset_wherever_the_agent_is_cut_off() {
    let begun = |number| Acts {
        resets: number - 1,
        begun: Some((number, 1)),
        held: true,
    };
    let done = |number| Acts {
        resets: number,
        begun: None,
        held: true,
    };
    let Some(mut world) = World::new().await else {
        return;
    };
    world.node.assign(act(1, false, 0)).unwrap();
    let first = world.observed(VmState::Running).await;
    // What stood in the journal, whether the guest stood still, whether it had been reset.
    let cuts = [
        (begun(1), false, false),
        (begun(2), true, false),
        (begun(3), true, true),
        (done(4), true, true),
    ];
    for (number, (acts, frozen, reset)) in (1..).zip(cuts) {
        world.stop_agent().await;
        let entry = Entry {
            highest_epoch: 5,
            assignment: Some(act(1 + number, false, number)),
            acts,
            ..Entry::default()
        };
        let (journal, _) = Journal::open(&world.dir.path().join("journal")).unwrap();
        journal.put(&id(), &entry).unwrap();
        if frozen {
            world.host.freeze(&id());
        }
        if reset {
            world.host.reset_frozen(&id());
        }
        world.restart().await;
        let seen = world
            .observed_with(VmState::Running, |o| o.resets == number && o.reason.is_empty())
            .await;
        assert_eq!((seen.pid, seen.paused), (first.pid, false));
        assert_eq!(u64::from(world.host.resets(&id())), number, "cut {number}");
        // Told again, it does nothing.
        world.node.assign(act(1 + number, false, number)).unwrap();
        world.restart().await;
        world
            .observed_with(VmState::Running, |o| o.resets == number)
            .await;
        assert_eq!(u64::from(world.host.resets(&id())), number, "told again {number}");
    }
    // A paused guest is reset and stays paused.
    world.node.assign(act(9, true, 5)).unwrap();
    world
        .observed_with(VmState::Running, |o| o.paused && o.resets == 5)
        .await;
    assert_eq!(world.host.resets(&id()), 4, "it notices when it goes on");
    world.node.assign(act(10, false, 5)).unwrap();
    world.observed_with(VmState::Running, |o| !o.paused).await;
    assert_eq!((world.host.resets(&id()), world.host.starts()), (5, 1));
    world.stop_agent().await;
}

#[tokio::test]
async fn where_a_reset_makes_a_new_process_the_process_tells_whether_it_was_done() {
    let Some(mut world) = World::new().await else {
        return;
    };
    world.host.replace_on_reset(true);
    world.node.assign(act(1, false, 0)).unwrap();
    let mut pid = world.observed(VmState::Running).await.pid;
    for (number, done) in [(1, false), (2, true)] {
        world.stop_agent().await;
        let entry = Entry {
            highest_epoch: 5,
            assignment: Some(act(1 + number, false, number)),
            acts: Acts {
                resets: number - 1,
                begun: Some((number, pid)),
                held: false,
            },
            ..Entry::default()
        };
        let (journal, _) = Journal::open(&world.dir.path().join("journal")).unwrap();
        journal.put(&id(), &entry).unwrap();
        if done {
            world.host.replace(&id());
        }
        world.restart().await;
        let seen = world
            .observed_with(VmState::Running, |o| o.resets == number)
            .await;
        assert_ne!(seen.pid, pid);
        assert_eq!(u64::from(world.host.resets(&id())), number, "done: {done}");
        pid = seen.pid;
    }
    world.stop_agent().await;
}

#[tokio::test]
async fn neither_a_pause_nor_a_reset_starts_a_guest_that_has_switched_itself_off() {
    let Some(world) = World::new().await else { return };
    world.node.assign(act(1, false, 0)).unwrap();
    world.observed(VmState::Running).await;
    world.host.power_off(&id());
    world.observed(VmState::Stopped).await;
    world.node.assign(act(2, true, 1)).unwrap();
    let off = world
        .observed_with(VmState::Stopped, |o| o.observed_generation == 2)
        .await;
    assert_eq!((off.resets, off.paused), (1, false), "a reset of nothing is void");
    assert_eq!(world.host.starts(), 1);
    let start = Assignment {
        power_generation: 3,
        ..act(3, false, 1)
    };
    world.node.assign(start).unwrap();
    world
        .observed_with(VmState::Running, |o| o.observed_generation == 3)
        .await;
    assert_eq!((world.host.starts(), world.host.resets(&id())), (2, 0));
    world.stop_agent().await;
}
