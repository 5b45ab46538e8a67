//! One running QEMU process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::command::{CONSOLE, MONITOR};
use super::qmp::Qmp;
use crate::folders::kill;
use crate::intent::{Ended, Intent};
use crate::process::ProcessIdentity;
use crate::serial::{self, CONSOLE_LOG, ConsoleStream, connect};
use crate::{HypervisorError, Machine, MachineInfo, RunState};

/// Longest time for an answer of the monitor. On a busy host QEMU's main loop can stand for seconds.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);
/// Time that QEMU gets to close its files after `quit`.
const QUIT_LIMIT: Duration = Duration::from_secs(5);
/// Longest time that firmware is given before a reset may hit it.
const FIRMWARE_LIMIT: Duration = Duration::from_secs(5);
const FIRMWARE_POLL: Duration = Duration::from_millis(50);
const CONNECT_TRIES: u32 = 100;
const CONNECT_PAUSE: Duration = Duration::from_millis(20);
/// How long a process whose monitor hung up may take to be gone.
const DYING_LIMIT: Duration = Duration::from_secs(2);
/// Pause between looks at a process whose monitor has hung up.
const GONE_POLL: Duration = Duration::from_millis(200);

/// A machine and the connection to its monitor.
#[derive(Debug)]
pub(super) struct KvmMachine {
    folder: PathBuf,
    intent: Intent,
    process: ProcessIdentity,
    info: MachineInfo,
    qmp: Qmp,
    /// While the firmware of a fresh machine runs: until when at the latest, and the console log's length then.
    firmware: Option<(Instant, u64)>,
    /// Filled when this owner has seen the guest switch itself off.
    ended: Option<Ended>,
}

impl KvmMachine {
    /// Connects to the machine that the record describes; its process is alive.
    pub(super) async fn connect(folder: PathBuf, intent: Intent) -> Result<Self, HypervisorError> {
        let run = intent
            .run
            .clone()
            .ok_or_else(|| HypervisorError::Monitor("the record names no process".into()))?;
        let qmp = open_monitor(&folder).await?;
        let age = SystemTime::now()
            .duration_since(UNIX_EPOCH + Duration::from_millis(run.started_at_unix_ms.unsigned_abs()))
            .unwrap_or_default();
        let info = MachineInfo {
            id: intent.spec.id.clone(),
            epoch: intent.spec.epoch,
            generation: intent.spec.generation,
            pid: run.process.pid,
            started_at_unix_ms: run.started_at_unix_ms,
            accelerator: intent.accelerator.clone(),
        };
        let mut machine = Self {
            folder,
            intent,
            process: run.process,
            info,
            qmp,
            firmware: None,
            ended: None,
        };
        machine.note_firmware(FIRMWARE_LIMIT.saturating_sub(age));
        Ok(machine)
    }

    fn log_length(&self) -> u64 {
        fs::metadata(self.folder.join(CONSOLE_LOG)).map_or(0, |m| m.len())
    }

    fn note_firmware(&mut self, limit: Duration) {
        self.firmware = (!limit.is_zero()).then(|| (Instant::now() + limit, self.log_length()));
    }

    /// SeaBIOS hangs for ever when it is reset while it sets itself up (seen with QEMU 7.2 under TCG:
    /// one reset in four within its first 120 ms). So a reset waits until the guest has written to its
    /// console, which no firmware does here, or until the firmware must be through.
    async fn firmware_is_through(&self) {
        if let Some((until, length)) = self.firmware {
            while Instant::now() < until && self.log_length() <= length {
                tokio::time::sleep(FIRMWARE_POLL).await;
            }
        }
    }

    async fn reset_machine(&mut self) -> Result<(), HypervisorError> {
        // One that was stopped for it executes nothing, and its firmware is through or has not begun.
        if !matches!(self.query().await?, RunState::Paused(_)) {
            self.firmware_is_through().await;
        }
        self.expect_guest("be reset").await?;
        self.command("system_reset").await?;
        self.note_firmware(FIRMWARE_LIMIT);
        Ok(())
    }

    async fn command(&mut self, name: &'static str) -> Result<Value, HypervisorError> {
        if self.qmp.is_closed() && self.process.is_alive() {
            self.qmp = open_monitor(&self.folder).await?;
        }
        self.qmp.execute(name, json!({}), COMMAND_LIMIT).await
    }

    async fn query(&mut self) -> Result<RunState, HypervisorError> {
        if !self.process.is_alive() {
            return Ok(RunState::Gone);
        }
        let answer = match self.command("query-status").await {
            Ok(answer) => answer,
            // A process that dies closes its sockets a moment before it is gone.
            Err(_) if self.qmp.is_closed() && self.process.wait_end(DYING_LIMIT).await => {
                return Ok(RunState::Gone);
            }
            Err(error) => return Err(error),
        };
        Ok(
            match answer.get("status").and_then(Value::as_str).unwrap_or("unknown") {
                "running" => RunState::Running,
                "shutdown" => RunState::PoweredOff,
                other => RunState::Paused(other.to_owned()),
            },
        )
    }

    /// A guest that is switched off or gone can do nothing but be ended.
    async fn expect_guest(&mut self, act: &'static str) -> Result<(), HypervisorError> {
        let state = self.query().await?;
        state.expect_guest(&self.info.id, act)
    }

    async fn end_process(&mut self) -> Result<Ended, HypervisorError> {
        if let Some(ended) = &self.ended {
            return Ok(ended.clone());
        }
        let ended = match self.query().await {
            Ok(RunState::Gone) => Ended::Crashed,
            Ok(RunState::PoweredOff) => Ended::PoweredOff,
            Ok(RunState::Running | RunState::Paused(_)) | Err(_) => Ended::Forced,
        };
        // `quit` closes the disk in order; a process that does not listen is killed.
        let quit = self.qmp.execute("quit", json!({}), QUIT_LIMIT).await;
        if quit.is_err() || !self.process.wait_end(QUIT_LIMIT).await {
            kill(&self.process, &self.folder).await?;
        }
        self.intent.run = None;
        self.intent.ended = Some(ended.clone());
        self.ended = Some(ended.clone());
        self.intent.write(&self.folder)?;
        Ok(ended)
    }
}

async fn open_monitor(folder: &Path) -> Result<Qmp, HypervisorError> {
    let mut tries = 0;
    let stream = loop {
        match connect(folder, MONITOR).await {
            Ok(stream) => break stream,
            // Between its making and its first listening the socket refuses.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && tries < CONNECT_TRIES => {
                tries += 1;
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            Err(error) => return Err(HypervisorError::io("connect to", folder.join(MONITOR))(error)),
        }
    };
    Qmp::negotiate(stream, COMMAND_LIMIT).await
}

impl Machine for KvmMachine {
    fn info(&self) -> &MachineInfo {
        &self.info
    }

    fn status(&mut self) -> BoxFuture<'_, Result<RunState, HypervisorError>> {
        Box::pin(self.query())
    }

    fn changed(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if self.qmp.next_event().await.is_none() {
                tokio::time::sleep(GONE_POLL).await;
            }
        })
    }

    fn press_power_button(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>> {
        Box::pin(async {
            self.expect_guest("be asked to switch off").await?;
            self.command("system_powerdown").await.map(drop)
        })
    }

    fn pause(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>> {
        Box::pin(async {
            self.expect_guest("be paused").await?;
            self.command("stop").await.map(drop)
        })
    }

    fn pause_for_reset(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>> {
        Box::pin(async {
            if self.query().await? == RunState::Running {
                self.firmware_is_through().await;
            }
            self.pause().await
        })
    }

    fn resume(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>> {
        Box::pin(async {
            self.expect_guest("go on").await?;
            self.command("cont").await?;
            if self.firmware.is_some() {
                // It may have been reset while it stood still: its firmware begins now.
                self.note_firmware(FIRMWARE_LIMIT);
            }
            Ok(())
        })
    }

    fn reset(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>> {
        Box::pin(self.reset_machine())
    }

    fn end(&mut self) -> BoxFuture<'_, Result<Ended, HypervisorError>> {
        Box::pin(self.end_process())
    }

    fn console(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        Box::pin(async {
            let stream = connect(&self.folder, CONSOLE).await?;
            Ok(Box::new(stream) as Box<dyn ConsoleStream>)
        })
    }

    fn console_history(&self, max: usize) -> io::Result<Vec<u8>> {
        serial::history(&self.folder, max)
    }

    fn trim_logs(&self) -> io::Result<()> {
        serial::trim(&self.folder)
    }
}
