//! The main job: three VMs on three nodes, from `hearth up` to nothing left.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use hearth_tests::guest::{self, Console, dig};
use hearth_tests::{Need, Platform, leaks, store};

const NAMES: [&str; 3] = ["one", "two", "three"];

#[test]
fn three_vms_from_up_to_nothing_left() -> Result<()> {
    let needs = [
        store::NEED,
        Need::Program("dig", "bind9-dnsutils"),
        Need::Program("ping", "iputils-ping"),
    ];
    Platform::scenario(&needs, |platform| {
        platform.up("--no-first-vm")?;
        let clean = leaks::Traces::of(platform)?;
        create(platform).context("create")?;
        for name in NAMES {
            login_name_and_network(platform, name).with_context(|| format!("guest `{name}`"))?;
        }
        stop_and_start(platform).context("stop and start")?;
        up_again(platform).context("`hearth up` on a running platform")?;
        down_and_up(platform).context("`hearth down` and `hearth up`")?;
        delete(platform, &clean).context("delete")
    })
}

fn create(platform: &Platform) -> Result<()> {
    // All three are asked for before any is waited for: they boot side by side.
    for name in NAMES {
        platform
            .hearth(&format!("vm create {name} --image tiny --cpus 1 --memory 128MiB"))
            .ok()?;
    }
    for name in NAMES {
        platform.settled(name, "running", 120)?;
    }
    let mut nodes = BTreeSet::new();
    for name in NAMES {
        let vm = platform.vm(name)?;
        nodes.insert(vm["node"].as_str().context("no node")?.to_owned());
        platform.guest(vm["id"].as_str().context("no id")?)?;
    }
    ensure!(nodes.len() == 3, "not on three nodes: {nodes:?}");
    let listed = platform.json("vm list")?;
    ensure!(listed.as_array().map(Vec::len) == Some(3), "{listed}");
    Ok(())
}

fn login_name_and_network(platform: &Platform, name: &str) -> Result<()> {
    let mut console = Console::open(platform.hearth(&format!("vm console {name}")))?;
    console.log_in(name)?;
    ensure!(console.run("echo $((6 * 7)) from $(hostname)")? == format!("42 from {name}"));
    let address = platform.address(name)?;
    names_resolve(name, address)?;
    // A sandbox is entered as root: the network must be the routed one.
    ensure!(
        address.to_string().starts_with("10.77."),
        "{address} is not routed"
    );
    guest::answers_ping(address, 20)?;
    guest::answers_echo(address, 20)
}

fn names_resolve(name: &str, address: IpAddr) -> Result<()> {
    let full = format!("{name}.default.hearth.internal.");
    let found = dig(&format!("{full} A"))?;
    ensure!(
        found == [address.to_string()],
        "{full} is {found:?}, not {address}"
    );
    let back = dig(&format!("-x {address}"))?;
    ensure!(back == [full.clone()], "{address} is {back:?}, not {full}");
    Ok(())
}

fn stop_and_start(platform: &Platform) -> Result<()> {
    let vm = platform.vm("one")?;
    let id = vm["id"].as_str().context("no id")?;
    let first = platform.guest(id)?;
    platform.hearth("vm stop one --wait").ok()?;
    ensure!(
        platform.vm("one")?["state"] == "stopped",
        "{}",
        platform.vm("one")?
    );
    ensure!(!hearth_tests::is_running(first), "QEMU of a stopped VM runs on");
    leaks::no_name("one")?;

    platform.hearth("vm start one --wait").ok()?;
    let mut console = Console::open(platform.hearth("vm console one"))?;
    console.log_in("one")?;
    // A graceful stop wrote the guest's disk out, and the disk was kept.
    let boots = console
        .run("for i in 1 2 3 4 5 6 7 8; do [ -e /data/boots ] && break; sleep 1; done; cat /data/boots")?;
    ensure!(boots == "2", "the guest counts {boots} boots of its disk");
    names_resolve("one", platform.address("one")?)
}

fn up_again(platform: &Platform) -> Result<()> {
    let before = platform.sandbox().processes();
    platform.up("--no-first-vm")?;
    let after = platform.sandbox().processes();
    ensure!(before == after, "processes changed from {before:?} to {after:?}");
    Ok(())
}

fn down_and_up(platform: &Platform) -> Result<()> {
    platform.hearth("vm stop two --wait").ok()?;
    let three = platform.vm("three")?;
    platform.hearth("down").ok()?;
    let left = platform.sandbox().processes();
    ensure!(left.is_empty(), "after `hearth down`: {left:?}");

    platform.up("--no-first-vm")?;
    platform.settled("one", "running", 120)?;
    platform.settled("three", "running", 120)?;
    ensure!(
        platform.vm("two")?["state"] == "stopped",
        "{}",
        platform.vm("two")?
    );
    let again = platform.vm("three")?;
    for field in ["id", "address", "node", "created_at"] {
        ensure!(again[field] == three[field], "{field} changed: {three} {again}");
    }
    let mut console = Console::open(platform.hearth("vm console three"))?;
    console.log_in("three")?;
    names_resolve("three", platform.address("three")?)
}

fn delete(platform: &Platform, clean: &leaks::Traces) -> Result<()> {
    let mut ids = vec![];
    for name in NAMES {
        ids.push(platform.vm(name)?["id"].as_str().context("no id")?.to_owned());
    }
    for name in NAMES {
        platform.hearth(&format!("vm delete {name} --wait")).ok()?;
        platform
            .hearth(&format!("vm show {name}"))
            .refused()?
            .says(&[name])?;
        leaks::no_name(name)?;
    }
    clean.are_all(platform, 20)?;
    leaks::no_file_names(platform, &ids)
}
