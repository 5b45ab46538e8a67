//! The machine behind the API, and the imitated guest on its serial console.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::wire::{
    BootSource, Drive, HugePages, Logger, MachineConfig, Metrics, MmdsConfig, NetworkInterface, VmState,
};

const MAX_VCPUS: u8 = 32;
/// Longest command line that the kernel takes on x86-64.
const MAX_ARGS: usize = 2048;
const TICK: Duration = Duration::from_millis(50);
/// The guest hears Ctrl+Alt+Del and takes a moment to end.
const END_TICKS: u32 = 2;
/// A word on the kernel's command line that makes the guest ignore Ctrl+Alt+Del.
const DEAF: &str = "imitation.deaf";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    NotStarted,
    Running,
    Paused,
}

impl State {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::NotStarted => "Not started",
            Self::Running => "Running",
            Self::Paused => "Paused",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) id: String,
    pub(crate) state: State,
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: usize,
    boot: Option<BootSource>,
    drives: BTreeMap<String, bool>,
    nics: BTreeMap<String, Option<String>>,
    log: Option<File>,
    metrics: Option<String>,
    /// Ticks left after Ctrl+Alt+Del.
    ending: Option<u32>,
}

impl Machine {
    pub(crate) fn new(id: String) -> Self {
        Self {
            id,
            state: State::NotStarted,
            vcpus: 1,
            memory_mib: 128,
            boot: None,
            drives: BTreeMap::new(),
            nics: BTreeMap::new(),
            log: None,
            metrics: None,
            ending: None,
        }
    }

    /// To the log's file, else to standard output: there it is among the guest's words, as in the real one.
    pub(crate) fn log(&mut self, line: &str) {
        let line = format!("[{}] {line}\n", self.id);
        // A full disk loses log lines, nothing else.
        let _ = match &mut self.log {
            Some(file) => file.write_all(line.as_bytes()),
            None => std::io::stdout().write_all(line.as_bytes()),
        };
    }

    pub(crate) fn set_logger(&mut self, logger: Logger) -> Result<(), String> {
        const LEVELS: [&str; 7] = ["off", "trace", "debug", "info", "warn", "warning", "error"];
        if let Some(level) = logger.level
            && !LEVELS.contains(&level.to_lowercase().as_str())
        {
            return Err("Invalid LevelFilter".to_owned());
        }
        if let Some(path) = logger.log_path {
            // Not for appending and not emptied: the real one writes over what is there.
            let file = OpenOptions::new()
                .create(true)
                .read(true)
                .write(true)
                .truncate(false)
                .open(path);
            self.log = Some(file.map_err(|e| format!("Logger error: Failed to open target file: {e}"))?);
        }
        Ok(())
    }

    pub(crate) fn set_metrics(&mut self, metrics: Metrics) -> Result<(), String> {
        if self.metrics.is_some() {
            return Err(
                "Metrics error: Cannot initialize the metrics system: already initialized.".to_owned(),
            );
        }
        File::options()
            .create(true)
            .append(true)
            .open(&metrics.metrics_path)
            .map_err(|e| {
                format!("Metrics error: Cannot initialize the metrics system due to bad user input: {e}")
            })?;
        self.metrics = Some(metrics.metrics_path);
        Ok(())
    }

    pub(crate) fn flush_metrics(&mut self) -> Result<(), String> {
        let path = self
            .metrics
            .as_ref()
            .ok_or("Internal VMM error: metrics are not initialized")?;
        let written = File::options()
            .append(true)
            .open(path)
            .and_then(|mut f| f.write_all(b"{}\n"));
        written.map_err(|e| format!("Internal VMM error: {e}"))
    }

    pub(crate) fn set_size(&mut self, config: MachineConfig) -> Result<(), String> {
        let odd = config.smt && config.vcpu_count > 1 && config.vcpu_count % 2 == 1;
        if config.vcpu_count == 0 || config.vcpu_count > MAX_VCPUS || odd {
            return Err(format!(
                "Machine config error: The number of vCPUs must be greater than 0, less than {MAX_VCPUS} and must \
                 be 1 or an even number if SMT is enabled."
            ));
        }
        let pages = match config.huge_pages {
            Some(HugePages::TwoMib | HugePages::Transparent) => 2,
            Some(HugePages::None) | None => 1,
        };
        if config.mem_size_mib == 0 || !config.mem_size_mib.is_multiple_of(pages) {
            return Err(
                "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size."
                    .to_owned(),
            );
        }
        (self.vcpus, self.memory_mib) = (config.vcpu_count, config.mem_size_mib);
        Ok(())
    }

    pub(crate) fn set_boot(&mut self, source: BootSource) -> Result<(), String> {
        File::open(&source.kernel_image_path)
            .map_err(|e| format!("Boot source error: The kernel file cannot be opened: {e}"))?;
        if let Some(initrd) = &source.initrd_path {
            File::open(initrd).map_err(|e| {
                format!(
                    "Boot source error: The initrd file cannot be opened due to invalid path or invalid \
                     permissions. {e}"
                )
            })?;
        }
        if source
            .boot_args
            .as_ref()
            .is_some_and(|a| a.len() >= MAX_ARGS || !a.is_ascii())
        {
            return Err(
                "Boot source error: The kernel command line is invalid: too large or not ASCII".to_owned(),
            );
        }
        self.boot = Some(source);
        Ok(())
    }

    pub(crate) fn set_drive(&mut self, drive: Drive) -> Result<(), String> {
        let refuse = |why: &str| {
            Err(format!(
                "Drive config error: Unable to create the virtio block device: {why}"
            ))
        };
        let (Some(path), None) = (&drive.path_on_host, &drive.socket) else {
            return refuse("invalid combination of fields");
        };
        let Some(read_only) = drive.is_read_only else {
            return refuse("invalid combination of fields");
        };
        if let Err(error) = File::options().read(true).write(!read_only).open(path) {
            return refuse(&format!("Error manipulating the backing file: {error} {path}"));
        }
        let other_root = self
            .drives
            .iter()
            .any(|(id, root)| *root && *id != drive.drive_id);
        if drive.is_root_device && other_root {
            return Err("Drive config error: A root block device already exists!".to_owned());
        }
        self.drives.insert(drive.drive_id, drive.is_root_device);
        Ok(())
    }

    pub(crate) fn set_nic(&mut self, nic: NetworkInterface) -> Result<(), String> {
        let refuse = |why: String| Err(format!("Network config error: {why}"));
        if nic.host_dev_name.is_empty() || nic.host_dev_name.len() > 15 {
            return refuse("Could not create the network device: Invalid interface name".to_owned());
        }
        if nic.mtu.is_some_and(|mtu| mtu < 68) {
            return refuse("Could not create the network device: invalid MTU".to_owned());
        }
        if let Some(mac) = &nic.guest_mac {
            let pairs: Vec<&str> = mac.split(':').collect();
            let hex = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
            if pairs.len() != 6 || !pairs.iter().all(hex) {
                return Err(format!(
                    "An error occurred when deserializing the json body of a request: invalid MAC `{mac}`."
                ));
            }
            let taken = |(id, m): (&String, &Option<String>)| *id != nic.iface_id && m.as_ref() == Some(mac);
            if self.nics.iter().any(taken) {
                return refuse(format!("The MAC address is already in use: {mac}"));
            }
        }
        self.nics.insert(nic.iface_id, nic.guest_mac);
        Ok(())
    }

    pub(crate) fn set_mmds(&mut self, config: MmdsConfig) -> Result<(), String> {
        if config.network_interfaces.is_empty() {
            return Err("MMMDS config error: The list of network interface IDs that allow forwarding MMDS requests is \
                        empty."
                .to_owned());
        }
        if let Some(unknown) = config
            .network_interfaces
            .iter()
            .find(|n| !self.nics.contains_key(*n))
        {
            return Err(format!(
                "MMMDS config error: the interface `{unknown}` is not known"
            ));
        }
        if config.ipv4_address.is_some_and(|a| !a.is_link_local()) {
            return Err("MMMDS config error: The MMDS IPv4 address is not link local.".to_owned());
        }
        Ok(())
    }

    pub(crate) fn boot(&mut self) -> Result<(), String> {
        if self.boot.is_none() {
            return Err("Start microvm error: Cannot start microvm without kernel configuration.".to_owned());
        }
        self.state = State::Running;
        say("imitation: kernel is up\r\n");
        Ok(())
    }

    pub(crate) fn set_running(&mut self, wanted: VmState) {
        self.state = match wanted {
            VmState::Paused => State::Paused,
            VmState::Resumed => State::Running,
        };
    }

    pub(crate) fn ctrl_alt_del(&mut self) {
        let args = self
            .boot
            .as_ref()
            .and_then(|b| b.boot_args.as_deref())
            .unwrap_or_default();
        if !args.split(' ').any(|word| word == DEAF) {
            self.ending.get_or_insert(END_TICKS);
        }
    }

    /// One tick of a running guest; true when it has ended.
    fn tick(&mut self, number: u64) -> bool {
        if self.state != State::Running {
            return false;
        }
        say(&format!("tick {number}\r\n"));
        match &mut self.ending {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }
}

fn say(text: &str) {
    // Whoever closed the console does not hear it; the guest does not mind.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
}

/// The guest: ticks while it runs, echoes what is typed.
pub(crate) async fn guest(machine: Arc<Mutex<Machine>>) {
    std::thread::spawn(echo);
    let mut number = 0;
    loop {
        tokio::time::sleep(TICK).await;
        let mut machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
        if machine.state == State::Running {
            number += 1;
        }
        if machine.tick(number) {
            machine.log("Firecracker exiting successfully. exit_code=0");
            std::process::exit(0);
        }
    }
}

fn echo() {
    let mut buffer = [0; 256];
    while let Ok(count @ 1..) = std::io::stdin().read(&mut buffer) {
        let typed = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()).into_owned();
        say(&format!("heard: {typed}"));
    }
}
