//! The command line of QEMU.

use std::path::Path;

use serde_json::json;

use crate::serial::CONSOLE_LOG;
use crate::{AcceleratorKind, HypervisorError, MachineSpec, NetBackend, NicSpec};

/// Root ports of the machine; what is not used at start is free for hot-plug.
const ROOT_PORTS: u32 = 8;
/// Translation cache under TCG in MiB. The default (a part of the memory) costs hundreds of MiB per guest.
const TCG_CACHE_MIB: u32 = 128;
/// x86-64-v2 by name: what today's distributions are built for, without what makes TCG slow.
const TCG_CPU: &str = "qemu64,+cx16,+lahf_lm,+popcnt,+sse3,+ssse3,+sse4.1,+sse4.2,+rdrand";

/// File names in a machine's folder.
pub(crate) const DISK: &str = "disk.qcow2";
pub(crate) const PID: &str = "qemu.pid";
pub(crate) const MONITOR: &str = "qmp.sock";
pub(crate) const CONSOLE: &str = "console.sock";

/// Arguments to start `spec` in `folder`. QEMU is started with `folder` as its working folder: the
/// sockets are named relatively, because the path of a Unix socket has at most 107 bytes.
pub(crate) fn arguments(
    spec: &MachineSpec,
    accelerator: AcceleratorKind,
    folder: &Path,
) -> Result<Vec<String>, HypervisorError> {
    let folder = folder
        .to_str()
        .ok_or_else(|| HypervisorError::Invalid(format!("folder `{}` is not UTF-8", folder.display())))?;
    let mut args: Vec<String> = Vec::with_capacity(96);
    let mut add = |words: &[&str]| args.extend(words.iter().map(|w| (*w).to_owned()));

    add(&[
        "-name",
        &format!("guest={},debug-threads=on", spec.name.replace(',', ",,")),
    ]);
    if spec.id.as_str().len() == 36 {
        add(&["-uuid", spec.id.as_str()]);
    }
    add(&["-nodefaults", "-no-user-config", "-display", "none"]);
    add(&["-pidfile", &format!("{folder}/{PID}")]);
    add(&[
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]);
    add(&["-machine", "q35,vmport=off", "-boot", "strict=on"]);
    match accelerator {
        AcceleratorKind::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
        AcceleratorKind::Tcg => add(&["-accel", &format!("tcg,tb-size={TCG_CACHE_MIB}"), "-cpu", TCG_CPU]),
    }
    add(&[
        "-smp",
        &spec.vcpus.to_string(),
        "-m",
        &format!("{}M", spec.memory_mib),
    ]);
    // A guest that switches off stays as a process until its owner has seen it: so a clean end and a
    // crash can be told apart even by an agent that was not there.
    add(&["-action", "shutdown=pause,reboot=reset"]);
    for port in 0..ROOT_PORTS {
        add(&[
            "-device",
            &format!(
                "pcie-root-port,id=rp{port},bus=pcie.0,chassis={},slot={port}",
                port + 1
            ),
        ]);
    }
    add(&[
        "-blockdev",
        &blockdev("root", &format!("{folder}/{DISK}"), "qcow2", false),
    ]);
    add(&["-device", "virtio-blk-pci,drive=root,bus=rp0,bootindex=0"]);
    if let Some(seed) = &spec.seed {
        let seed = seed
            .to_str()
            .ok_or_else(|| HypervisorError::Invalid(format!("path `{}` is not UTF-8", seed.display())))?;
        add(&[
            "-blockdev",
            &blockdev("seed", seed, "raw", true),
            "-device",
            "virtio-blk-pci,drive=seed,bus=rp1",
        ]);
    }
    if let Some(nic) = &spec.nic {
        add(&["-netdev", &netdev(nic)]);
        add(&[
            "-device",
            &format!("virtio-net-pci,netdev=net0,mac={},bus=rp2,romfile=", nic.mac),
        ]);
    }
    add(&[
        "-object",
        "rng-random,id=rng0,filename=/dev/urandom",
        "-device",
        "virtio-rng-pci,rng=rng0,bus=rp3",
    ]);
    // logappend opens the log for appending: it can be cut short from outside while it is written.
    add(&[
        "-chardev",
        &format!(
            "socket,id=console,path={CONSOLE},server=on,wait=off,logfile={},logappend=on",
            escape(&format!("{folder}/{CONSOLE_LOG}"))
        ),
        "-serial",
        "chardev:console",
    ]);
    add(&[
        "-chardev",
        &format!("socket,id=monitor,path={MONITOR},server=on,wait=off"),
    ]);
    add(&["-mon", "chardev=monitor,mode=control"]);
    Ok(args)
}

/// A comma separates QEMU's options; doubled it stands for itself.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// As JSON, so that no character of a path has a meaning.
fn blockdev(name: &str, path: &str, format: &str, read_only: bool) -> String {
    json!({
        "driver": format, "node-name": name, "read-only": read_only,
        "file": { "driver": "file", "filename": path },
    })
    .to_string()
}

fn netdev(nic: &NicSpec) -> String {
    match &nic.backend {
        NetBackend::Tap { ifname } => format!("tap,id=net0,ifname={ifname},script=no,downscript=no"),
        NetBackend::User { forwards, outbound } => {
            let restrict = if *outbound { "off" } else { "on" };
            let mut text = format!("user,id=net0,restrict={restrict}");
            for forward in forwards {
                text.push_str(&format!(",hostfwd=tcp:{}-:{}", forward.host, forward.guest_port));
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DiskSpec, Forward, ImageFormat, MachineId};

    #[test]
    fn a_comma_in_a_name_stays_in_the_name() {
        let spec = MachineSpec {
            id: MachineId::try_from("a".to_owned()).unwrap(),
            epoch: 1,
            generation: 1,
            name: "x,debug-threads=off".to_owned(),
            vcpus: 1,
            memory_mib: 64,
            disk: DiskSpec {
                image: "/i".into(),
                format: ImageFormat::Raw,
                size_bytes: 0,
            },
            seed: None,
            nic: Some(NicSpec {
                mac: "02:00:00:00:00:01".to_owned(),
                backend: NetBackend::User {
                    forwards: vec![Forward {
                        host: "127.77.0.5:22".parse().unwrap(),
                        guest_port: 22,
                    }],
                    outbound: false,
                },
            }),
            movable: false,
        };
        let args = arguments(&spec, AcceleratorKind::Tcg, Path::new("/v/a")).unwrap();
        assert!(args.contains(&"guest=x,,debug-threads=off,debug-threads=on".to_owned()));
        assert!(args.contains(&"user,id=net0,restrict=on,hostfwd=tcp:127.77.0.5:22-:22".to_owned()));
        assert!(args.iter().any(|a| a.contains("tb-size=128")));
        assert_eq!(args.iter().filter(|a| a.starts_with("pcie-root-port")).count(), 8);
    }
}
