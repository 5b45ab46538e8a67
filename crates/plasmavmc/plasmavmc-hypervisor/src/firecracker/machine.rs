//! One running Firecracker process.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::api::{Request, call};
use super::console::Follow;
use super::plan::LOG;
use super::{Settings, launch_machine};
use crate::folders::kill;
use crate::intent::{Ended, Intent};
use crate::process::ProcessIdentity;
use crate::serial::{self, ConsoleStream, tail};
use crate::{HypervisorError, Machine, MachineInfo, RunState};

/// Pause between looks at a process.
const LOOK: Duration = Duration::from_millis(200);
/// How long a process whose API is closed may take to be gone.
const DYING_LIMIT: Duration = Duration::from_secs(2);
/// What Firecracker's log says at last when the guest ended by itself.
const GOOD_END: &str = "Firecracker exiting successfully";
/// Its word for a machine that is being configured.
pub(super) const NOT_STARTED: &str = "Not started";
/// Its last words stand within so many bytes.
const LAST_WORDS: usize = 4096;
/// Its log is emptied when it takes more than this on the disk. (It is not opened for appending: it
/// keeps its apparent length, with a hole.)
const MAX_LOG: u64 = 1 << 20;

/// Firecracker ends with its guest; only its log says whether that was in order.
fn ended_in_order(folder: &Path) -> bool {
    let words = tail(&folder.join(LOG), LAST_WORDS).unwrap_or_default();
    String::from_utf8_lossy(&words).contains(GOOD_END)
}

/// The end of a machine that nobody saw end.
pub(super) fn refine(folder: &Path, intent: &Intent, ended: Ended) -> Ended {
    match ended {
        Ended::Crashed if intent.ended.is_none() && ended_in_order(folder) => Ended::PoweredOff,
        other => other,
    }
}

/// A machine of Firecracker. There is no connection to keep: every request is one of its own.
#[derive(Debug)]
pub(super) struct FirecrackerMachine {
    settings: Arc<Settings>,
    folder: PathBuf,
    intent: Intent,
    process: ProcessIdentity,
    info: MachineInfo,
    /// Filled when this owner has seen the end.
    ended: Option<Ended>,
}

impl FirecrackerMachine {
    /// The machine that the record describes; its process is alive.
    pub(super) fn of(
        settings: Arc<Settings>,
        folder: PathBuf,
        intent: Intent,
    ) -> Result<Self, HypervisorError> {
        let run = intent
            .run
            .clone()
            .ok_or_else(|| HypervisorError::Monitor("the record names no process".into()))?;
        let info = MachineInfo {
            id: intent.spec.id.clone(),
            epoch: intent.spec.epoch,
            generation: intent.spec.generation,
            pid: run.process.pid,
            started_at_unix_ms: run.started_at_unix_ms,
            accelerator: intent.accelerator.clone(),
        };
        Ok(Self {
            settings,
            folder,
            intent,
            process: run.process,
            info,
            ended: None,
        })
    }

    fn how_it_ended(&self) -> RunState {
        if ended_in_order(&self.folder) {
            RunState::PoweredOff
        } else {
            RunState::Gone
        }
    }

    pub(super) async fn query(&mut self) -> Result<RunState, HypervisorError> {
        if !self.process.is_alive() {
            return Ok(self.how_it_ended());
        }
        let answer = match call(&self.folder, &Request::get("/")).await {
            Ok(answer) => answer,
            Err(_) if self.process.wait_end(DYING_LIMIT).await => return Ok(self.how_it_ended()),
            Err(error) => return Err(error),
        };
        Ok(
            match answer.get("state").and_then(Value::as_str).unwrap_or("unknown") {
                "Running" => RunState::Running,
                "Paused" => RunState::Paused("paused".to_owned()),
                other => RunState::Paused(other.to_owned()),
            },
        )
    }

    async fn expect_guest(&mut self, act: &'static str) -> Result<(), HypervisorError> {
        let state = self.query().await?;
        state.expect_guest(&self.info.id, act)
    }

    async fn set_state(&mut self, state: &'static str, act: &'static str) -> Result<(), HypervisorError> {
        self.expect_guest(act).await?;
        let request = Request::patch("/vm", json!({"state": state}));
        call(&self.folder, &request).await.map(drop)
    }

    async fn press(&mut self) -> Result<(), HypervisorError> {
        self.expect_guest("be asked to switch off").await?;
        let request = Request::put("/actions", json!({"action_type": "SendCtrlAltDel"}));
        call(&self.folder, &request).await.map(drop)
    }

    /// Firecracker has no reset: the machine gets a new process over the same disk. An owner that dies
    /// in between leaves a machine that ended; the next one starts it again.
    async fn reset_machine(&mut self) -> Result<(), HypervisorError> {
        self.expect_guest("be reset").await?;
        kill(&self.process, &self.folder).await?;
        self.intent.run = None;
        self.intent.write(&self.folder)?;
        let fresh = launch_machine(&self.settings, &self.folder, &mut self.intent).await?;
        *self = fresh;
        Ok(())
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
        // Nothing is buffered in the process: with cache_type Writeback the disk is the host's page cache.
        kill(&self.process, &self.folder).await?;
        self.intent.run = None;
        self.intent.ended = Some(ended.clone());
        self.ended = Some(ended.clone());
        self.intent.write(&self.folder)?;
        Ok(ended)
    }
}

impl Machine for FirecrackerMachine {
    fn info(&self) -> &MachineInfo {
        &self.info
    }

    fn status(&mut self) -> BoxFuture<'_, Result<RunState, HypervisorError>> {
        Box::pin(self.query())
    }

    fn changed(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            // Firecracker sends no events. What happens without a request is the end of the process.
            while self.process.is_alive() {
                tokio::time::sleep(LOOK).await;
            }
            tokio::time::sleep(LOOK).await;
        })
    }

    fn press_power_button(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>> {
        Box::pin(self.press())
    }

    fn pause(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>> {
        Box::pin(self.set_state("Paused", "be paused"))
    }

    fn resume(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>> {
        Box::pin(self.set_state("Resumed", "go on"))
    }

    fn reset(&mut self) -> BoxFuture<'_, Result<(), HypervisorError>> {
        Box::pin(self.reset_machine())
    }

    fn end(&mut self) -> BoxFuture<'_, Result<Ended, HypervisorError>> {
        Box::pin(self.end_process())
    }

    fn console(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        Box::pin(async { Ok(Box::new(Follow::open(&self.folder)?) as Box<dyn ConsoleStream>) })
    }

    fn console_history(&self, max: usize) -> io::Result<Vec<u8>> {
        serial::history(&self.folder, max)
    }

    fn trim_logs(&self) -> io::Result<()> {
        let log = self.folder.join(LOG);
        if fs::metadata(&log).is_ok_and(|m| m.blocks() * 512 > MAX_LOG) {
            OpenOptions::new().write(true).open(&log)?.set_len(0)?;
        }
        serial::trim(&self.folder)
    }
}
