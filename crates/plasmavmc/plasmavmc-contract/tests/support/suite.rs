//! What every backend promises, as one run over one machine. Knows backends only by their trait.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use plasmavmc_hypervisor::{
    Adopted, ConsoleStream, Ended, Hypervisor, HypervisorError, Machine, MachineId, MachineSpec, RunState,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

/// A guest under TCG on a machine that builds other things at the same time.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);
const HISTORY: usize = 1 << 18;

/// Makes a specification one that must be refused; gets the most CPUs of the backend.
type Spoil = fn(&mut MachineSpec, u32);

/// A backend under test.
pub(crate) struct Subject {
    /// Makes the backend anew over the same host, as a new owner does.
    pub(crate) open: Box<dyn Fn() -> Arc<dyn Hypervisor>>,
    pub(crate) spec: MachineSpec,
    /// Where it keeps its files; none: it keeps nothing and has no processes.
    pub(crate) root: Option<PathBuf>,
    /// The console says this once per start of the guest.
    pub(crate) up: &'static str,
    /// And this when the guest hears its power button.
    pub(crate) ready: &'static str,
    /// What to type, and what comes back.
    pub(crate) typed: Option<(&'static str, &'static str)>,
    /// The console says this again and again while the guest runs.
    pub(crate) tick: Option<&'static str>,
    /// Lets the guests of the next start ignore the button, if they would hear it at once.
    pub(crate) deafen: Box<dyn Fn()>,
    /// Lets the process of a machine vanish.
    pub(crate) vanish: Box<dyn Fn(u32)>,
}

/// For subjects with real processes.
pub(crate) fn kill_process(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
}

/// Everything, in the order of a machine's life.
pub(crate) async fn run(subject: &Subject) {
    let started = Instant::now();
    let _sweep = subject.root.clone().map(crate::sweep::Sweep);
    refuses_bad_specifications(subject).await;
    starts_once_and_is_adopted(subject).await;
    pause_outlives_the_owner(subject).await;
    resets(subject).await;
    resets_of_a_guest_that_stands_still_are_one(subject).await;
    talks_on_its_console(subject).await;
    stops_in_grace_and_then_refuses_everything(subject).await;
    stops_by_force_after_grace(subject).await;
    a_vanished_process_is_a_crash(subject).await;
    if subject.root.is_some() {
        a_process_without_a_record_is_found(subject).await;
        a_stranger_with_the_same_pid_is_left_alone(subject).await;
        a_damaged_record_hides_nothing(subject).await;
    }
    deletes_what_runs_and_leaves_nothing(subject).await;
    println!("{} s", started.elapsed().as_secs());
}

async fn adopt(subject: &Subject) -> Box<dyn Machine> {
    match (subject.open)().adopt(&subject.spec.id).await.unwrap() {
        Adopted::Running(machine) => machine,
        other => panic!("not adopted: {other:?}"),
    }
}

async fn adopt_ended(subject: &Subject) -> (u64, u64, Ended) {
    match (subject.open)().adopt(&subject.spec.id).await.unwrap() {
        Adopted::Ended {
            epoch,
            generation,
            ended,
        } => (epoch, generation, ended),
        other => panic!("not ended: {other:?}"),
    }
}

fn history(machine: &dyn Machine) -> String {
    String::from_utf8_lossy(&machine.console_history(HISTORY).unwrap()).into_owned()
}

async fn wait_for(machine: &dyn Machine, words: &str, times: usize) {
    let started = Instant::now();
    while history(machine).matches(words).count() < times {
        let text = history(machine);
        assert!(
            started.elapsed() < BOOT_LIMIT,
            "no {times} `{words}` in time: {text}"
        );
        sleep(LOOK).await;
    }
}

/// How often the guest of this disk has come up: the console's log lives as long as the folder.
fn boots(subject: &Subject, machine: &dyn Machine) -> usize {
    history(machine).matches(subject.up).count()
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rfind(')').is_some_and(|at| !stat[at..].starts_with(") Z"))
}

async fn refuses_bad_specifications(subject: &Subject) {
    let backend = (subject.open)();
    let most = backend.capabilities().max_vcpus;
    let bad: [(&str, Spoil); 4] = [
        ("no CPU", |s, _| s.vcpus = 0),
        ("too many CPUs", |s, most| s.vcpus = most + 1),
        ("too little memory", |s, _| s.memory_mib = 1),
        ("a missing image", |s, _| {
            s.disk.image = PathBuf::from("/nowhere/image")
        }),
    ];
    for (what, change) in bad {
        let mut spec = subject.spec.clone();
        change(&mut spec, most);
        assert!(backend.start(&spec).await.is_err(), "{what} was accepted");
        assert!(
            !matches!(backend.adopt(&spec.id).await.unwrap(), Adopted::Running(_)),
            "{what}: something runs"
        );
    }
    backend.delete(&subject.spec.id).await.unwrap();
    nothing_is_left(subject).await;
}

async fn starts_once_and_is_adopted(subject: &Subject) {
    let backend = (subject.open)();
    assert!(matches!(
        backend.adopt(&subject.spec.id).await.unwrap(),
        Adopted::Absent
    ));
    let machine = backend.start(&subject.spec).await.unwrap();
    let pid = machine.info().pid;
    for backend in [&backend, &(subject.open)()] {
        assert!(matches!(
            backend.start(&subject.spec).await,
            Err(HypervisorError::AlreadyRunning(_))
        ));
    }
    wait_for(&*machine, subject.ready, 1).await;
    drop((machine, backend));
    for _ in 0..2 {
        let mut machine = adopt(subject).await;
        let info = machine.info().clone();
        assert_eq!(
            (info.id, info.pid, info.epoch, info.generation),
            (
                subject.spec.id.clone(),
                pid,
                subject.spec.epoch,
                subject.spec.generation
            )
        );
        assert_eq!(machine.status().await.unwrap(), RunState::Running);
    }
    let inventory = (subject.open)().inventory().unwrap();
    assert_eq!(inventory.machines, std::slice::from_ref(&subject.spec.id));
    assert_eq!(inventory.orphans, [""; 0]);
}

async fn pause_outlives_the_owner(subject: &Subject) {
    let paused = RunState::Paused("paused".to_owned());
    let mut machine = adopt(subject).await;
    for _ in 0..2 {
        machine.pause().await.unwrap();
        assert_eq!(machine.status().await.unwrap(), paused);
    }
    drop(machine);
    let mut machine = adopt(subject).await;
    assert_eq!(
        machine.status().await.unwrap(),
        paused,
        "another owner woke the guest"
    );
    if let Some(tick) = subject.tick {
        let before = history(&*machine).matches(tick).count();
        sleep(Duration::from_millis(500)).await;
        assert_eq!(
            history(&*machine).matches(tick).count(),
            before,
            "a paused guest ran"
        );
    }
    for _ in 0..2 {
        machine.resume().await.unwrap();
        assert_eq!(machine.status().await.unwrap(), RunState::Running);
    }
    if let Some(tick) = subject.tick {
        let before = history(&*machine).matches(tick).count();
        wait_for(&*machine, tick, before + 2).await;
    }
}

async fn resets(subject: &Subject) {
    let in_place = (subject.open)().capabilities().reset_in_place;
    let mut machine = adopt(subject).await;
    let (pid, before) = (machine.info().pid, boots(subject, &*machine));
    machine.reset().await.unwrap();
    assert_eq!(machine.status().await.unwrap(), RunState::Running);
    wait_for(&*machine, subject.up, before + 1).await;
    let now = machine.info().pid;
    assert_eq!(now == pid, in_place);
    assert!(
        in_place || !is_alive(pid),
        "the old process of a reset machine lives"
    );
    drop(machine);
    let machine = adopt(subject).await;
    assert_eq!(
        (machine.info().pid, machine.info().epoch),
        (now, subject.spec.epoch)
    );
}

/// The owner may die between a reset and its note of it, so it resets again: the guest must not tell.
async fn resets_of_a_guest_that_stands_still_are_one(subject: &Subject) {
    if !(subject.open)().capabilities().reset_in_place {
        return;
    }
    let mut machine = adopt(subject).await;
    let before = boots(subject, &*machine);
    // Later parts count both words alike.
    wait_for(&*machine, subject.ready, before).await;
    for _ in 0..2 {
        machine.pause_for_reset().await.unwrap();
        machine.reset().await.unwrap();
        drop(machine);
        machine = adopt(subject).await;
        let state = machine.status().await.unwrap();
        assert!(
            matches!(state, RunState::Paused(_)),
            "the reset woke the guest: {state:?}"
        );
    }
    machine.resume().await.unwrap();
    wait_for(&*machine, subject.up, before + 1).await;
    assert_eq!(machine.status().await.unwrap(), RunState::Running);
    assert_eq!(boots(subject, &*machine), before + 1);
}

async fn read_until(console: &mut Box<dyn ConsoleStream>, words: &str) {
    let mut seen = Vec::new();
    let reading = async {
        let mut buffer = [0; 1024];
        while !String::from_utf8_lossy(&seen).contains(words) {
            let count = console.read(&mut buffer).await.unwrap();
            assert!(count > 0, "the console closed before `{words}`");
            seen.extend_from_slice(&buffer[..count]);
        }
    };
    let in_time = timeout(BOOT_LIMIT, reading).await.is_ok();
    assert!(in_time, "no `{words}`: {}", String::from_utf8_lossy(&seen));
}

async fn talks_on_its_console(subject: &Subject) {
    let Some((typed, answer)) = subject.typed else {
        return;
    };
    // One owner after the other: the console can be opened again.
    for _ in 0..2 {
        let machine = adopt(subject).await;
        let mut console = machine.console().await.unwrap();
        console.write_all(typed.as_bytes()).await.unwrap();
        read_until(&mut console, answer).await;
        machine.trim_logs().unwrap();
    }
}

async fn stops_in_grace_and_then_refuses_everything(subject: &Subject) {
    let mut machine = adopt(subject).await;
    let pid = machine.info().pid;
    wait_for(&*machine, subject.ready, boots(subject, &*machine)).await;
    machine.pause().await.unwrap();
    assert_eq!(machine.stop(STOP_LIMIT).await.unwrap(), Ended::PoweredOff);
    assert_eq!(
        machine.end().await.unwrap(),
        Ended::PoweredOff,
        "ending again told otherwise"
    );
    assert!(!is_alive(pid));
    for refused in [
        machine.pause().await,
        machine.resume().await,
        machine.reset().await,
        machine.press_power_button().await,
    ] {
        assert!(
            matches!(refused, Err(HypervisorError::WrongState { .. })),
            "{refused:?}"
        );
    }
    let (epoch, generation) = (subject.spec.epoch, subject.spec.generation);
    for _ in 0..2 {
        assert_eq!(adopt_ended(subject).await, (epoch, generation, Ended::PoweredOff));
    }
}

async fn stops_by_force_after_grace(subject: &Subject) {
    (subject.deafen)();
    let mut spec = subject.spec.clone();
    (spec.epoch, spec.generation) = (spec.epoch + 1, spec.generation + 1);
    let mut machine = (subject.open)().start(&spec).await.unwrap();
    let pid = machine.info().pid;
    assert_eq!(machine.stop(Duration::ZERO).await.unwrap(), Ended::Forced);
    assert!(!is_alive(pid));
    assert_eq!(
        adopt_ended(subject).await,
        (spec.epoch, spec.generation, Ended::Forced)
    );
}

async fn a_vanished_process_is_a_crash(subject: &Subject) {
    let mut machine = (subject.open)().start(&subject.spec).await.unwrap();
    (subject.vanish)(machine.info().pid);
    let seen = async {
        while machine.status().await.unwrap() != RunState::Gone {
            machine.changed().await;
        }
    };
    assert!(timeout(STOP_LIMIT, seen).await.is_ok(), "the end was not seen");
    assert!(matches!(
        machine.resume().await,
        Err(HypervisorError::WrongState { .. })
    ));
    drop(machine);
    assert_eq!(adopt_ended(subject).await.2, Ended::Crashed);
}

fn record(subject: &Subject) -> PathBuf {
    let root = subject.root.as_ref().unwrap();
    root.join(subject.spec.id.as_str()).join("intent.json")
}

fn change_record(subject: &Subject, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(record(subject)).unwrap()).unwrap();
    change(&mut value);
    fs::write(record(subject), value.to_string()).unwrap();
}

/// As if the owner had died between the start of the process and the writing of its id.
async fn a_process_without_a_record_is_found(subject: &Subject) {
    let machine = (subject.open)().start(&subject.spec).await.unwrap();
    let pid = machine.info().pid;
    drop(machine);
    change_record(subject, |record| record["run"] = Value::Null);
    assert_eq!((subject.open)().inventory().unwrap().orphans, [""; 0]);
    let mut machine = adopt(subject).await;
    assert_eq!(machine.info().pid, pid);
    assert_eq!(machine.end().await.unwrap(), Ended::Forced);
    assert!(!is_alive(pid));
}

async fn a_stranger_with_the_same_pid_is_left_alone(subject: &Subject) {
    let mut machine = (subject.open)().start(&subject.spec).await.unwrap();
    let process =
        serde_json::from_slice::<Value>(&fs::read(record(subject)).unwrap()).unwrap()["run"].clone();
    machine.end().await.unwrap();
    drop(machine);
    let mut stranger = std::process::Command::new("sleep").arg("300").spawn().unwrap();
    for boot in [process["process"]["boot_id"].clone(), json!("an earlier boot")] {
        change_record(subject, |record| {
            record["ended"] = Value::Null;
            record["run"] = process.clone();
            record["run"]["process"]["pid"] = stranger.id().into();
            record["run"]["process"]["boot_id"] = boot;
        });
        assert_eq!(adopt_ended(subject).await.2, Ended::Crashed);
    }
    (subject.open)().delete(&subject.spec.id).await.unwrap();
    assert!(is_alive(stranger.id()), "a stranger was killed for its pid");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    nothing_is_left(subject).await;
}

async fn a_damaged_record_hides_nothing(subject: &Subject) {
    let backend = (subject.open)();
    let machine = backend.start(&subject.spec).await.unwrap();
    let pid = machine.info().pid;
    drop(machine);
    for damage in ["", "{\"format\":", "{\"format\": 999}"] {
        fs::write(record(subject), damage).unwrap();
        assert!(
            backend.adopt(&subject.spec.id).await.is_err(),
            "`{damage}` was believed"
        );
        assert!(
            backend.start(&subject.spec).await.is_err(),
            "started over `{damage}`"
        );
        assert!(is_alive(pid), "`{damage}` was taken for a reason to kill");
        let orphans = backend.inventory().unwrap().orphans;
        assert!(
            orphans.iter().any(|o| o.contains(&pid.to_string())),
            "not reported: {orphans:?}"
        );
    }
    backend.delete(&subject.spec.id).await.unwrap();
    assert!(!is_alive(pid));
    nothing_is_left(subject).await;
}

async fn deletes_what_runs_and_leaves_nothing(subject: &Subject) {
    let backend = (subject.open)();
    let machine = backend.start(&subject.spec).await.unwrap();
    let pid = machine.info().pid;
    drop(machine);
    for _ in 0..2 {
        backend.delete(&subject.spec.id).await.unwrap();
    }
    assert!(!is_alive(pid));
    let stranger = MachineId::try_from("never-heard-of".to_owned()).unwrap();
    backend.delete(&stranger).await.unwrap();
    nothing_is_left(subject).await;
}

/// No record, no file, no process that names the root or works in it or holds a file of it.
async fn nothing_is_left(subject: &Subject) {
    let backend = (subject.open)();
    assert!(matches!(
        backend.adopt(&subject.spec.id).await.unwrap(),
        Adopted::Absent
    ));
    let inventory = backend.inventory().unwrap();
    assert_eq!((inventory.machines.len(), inventory.orphans.len()), (0, 0));
    let Some(root) = &subject.root else { return };
    assert_eq!(fs::read_dir(root).unwrap().count(), 0);
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.parse::<u32>().is_ok() && name != own {
            assert!(!uses(&entry.path(), root), "process {name} still uses the folder");
        }
    }
}

fn uses(process: &Path, root: &Path) -> bool {
    let words = fs::read(process.join("cmdline")).unwrap_or_default();
    let mut links = vec![process.join("cwd")];
    links.extend(
        fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|f| f.path()),
    );
    String::from_utf8_lossy(&words).contains(&*root.to_string_lossy())
        || links
            .iter()
            .any(|l| fs::read_link(l).is_ok_and(|to| to.starts_with(root)))
}
