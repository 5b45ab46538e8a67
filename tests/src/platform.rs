//! A whole platform in a sandbox: `hearth up`, and what the tests ask it.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::sandbox::{QEMU, is_running};
use crate::{Cmd, Need, Sandbox, program, tiny_image, wait};

/// Lines of each log that a failed test shows.
const TAIL_LINES: usize = 15;

/// The programs, a data folder and a sign-in file of their own.
#[derive(Debug)]
pub struct Platform {
    sandbox: Sandbox,
    hearth: PathBuf,
    image: PathBuf,
    data: PathBuf,
}

impl Platform {
    /// Runs `scenario` on a platform of which nothing exists yet, and on failure shows the ends of its logs. Says
    /// `SKIPPED:` where this machine cannot.
    ///
    /// # Errors
    /// The scenario's own.
    pub fn scenario(needs: &[Need], scenario: impl FnOnce(&Platform) -> Result<()>) -> Result<()> {
        let Some(platform) = Platform::enter(needs)? else {
            return Ok(());
        };
        let outcome = scenario(&platform);
        if outcome.is_err() {
            platform.show_logs();
        }
        outcome
    }

    /// The sandbox and its folders, with nothing started.
    ///
    /// # Errors
    /// When the programs or the image are missing.
    pub fn enter(needs: &[Need]) -> Result<Option<Platform>> {
        let hearth = program("hearth")?;
        program("hearthd")?;
        let needs: Vec<Need> = [QEMU].iter().chain(needs).copied().collect();
        // The image first: fetching its packages needs the machine's network.
        let image = tiny_image()?;
        let Some(sandbox) = Sandbox::enter(&needs)? else {
            return Ok(None);
        };
        let data = sandbox.path().join("d");
        Ok(Some(Platform {
            sandbox,
            hearth,
            image,
            data,
        }))
    }

    /// The sandbox that it runs in.
    #[must_use]
    pub const fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The image file that `hearth up` registers as `tiny`.
    #[must_use]
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// `hearth up` with more words.
    ///
    /// # Errors
    /// When it fails.
    pub fn up(&self, words: &str) -> Result<()> {
        self.up_command(words).ok().map(drop)
    }

    /// The same, not yet run.
    #[must_use]
    pub fn up_command(&self, words: &str) -> Cmd {
        self.hearth("up --data-dir")
            .arg(&self.data)
            .words(words)
            .limit_s(120)
    }

    /// `hearth` with these words, signed in as whoever `hearth up` signed in.
    #[must_use]
    pub fn hearth(&self, words: &str) -> Cmd {
        self.hearth_as("root", words)
    }

    /// `hearth` with these words and a sign-in file of its own: another person at another desk.
    #[must_use]
    pub fn hearth_as(&self, who: &str, words: &str) -> Cmd {
        Cmd::new(&self.hearth)
            .env("HEARTH_CONFIG", self.sandbox.path().join(format!("{who}.toml")))
            .env("HEARTH_DATA_DIR", &self.data)
            .env("HEARTH_TINY_IMAGE", &self.image)
            .env("HOME", self.sandbox.path())
            .words(words)
            .limit_s(120)
    }

    /// `hearth -o json` with these words.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub fn json(&self, words: &str) -> Result<Value> {
        self.hearth("-o json").words(words).ok()?.json()
    }

    /// `hearth vm show`.
    ///
    /// # Errors
    /// When it fails.
    pub fn vm(&self, name: &str) -> Result<Value> {
        self.json(&format!("vm show {name}"))
    }

    /// Waits until a VM is in `state` and no change is outstanding.
    ///
    /// # Errors
    /// At the limit: what `hearth vm show` says.
    pub fn settled(&self, name: &str, state: &str, seconds: u64) -> Result<()> {
        wait::until_ok(&format!("`{name}` is {state}"), seconds, || {
            let vm = self.vm(name)?;
            let seen = vm["observed_generation"].as_u64() >= vm["generation"].as_u64();
            anyhow::ensure!(vm["state"] == state && seen, "it is {vm}");
            Ok(())
        })
    }

    /// The address of a VM.
    ///
    /// # Errors
    /// When it has none.
    pub fn address(&self, name: &str) -> Result<IpAddr> {
        let vm = self.vm(name)?;
        let text = vm["address"].as_str();
        let text = text.with_context(|| format!("`{name}` has no address: {vm}"))?;
        Ok(text.parse()?)
    }

    /// The process of a service (`chainfire-1`, `aegis`, `agent-node01`...), from its pid file.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, service: &str) -> Result<u32> {
        let file = self.data.join(format!("run/{service}.pid"));
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let pid = text.split_whitespace().next().context("an empty pid file")?;
        let pid: u32 = pid.parse()?;
        anyhow::ensure!(is_running(pid), "{service} (process {pid}) does not run");
        Ok(pid)
    }

    /// The QEMU processes: pid and command line.
    #[must_use]
    pub fn guests(&self) -> Vec<(u32, String)> {
        let mut all = self.sandbox.processes();
        all.retain(|(_, line)| {
            line.split_whitespace()
                .next()
                .is_some_and(|p| p.contains("qemu-system"))
        });
        all
    }

    /// The pid of one VM's QEMU.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn guest(&self, vm_id: &str) -> Result<u32> {
        let all = self.guests();
        let mut own = all.iter().filter(|(_, line)| line.contains(vm_id));
        match (own.next(), own.next()) {
            (Some((pid, _)), None) => Ok(*pid),
            _ => anyhow::bail!("not exactly one QEMU of VM {vm_id}: {all:?}"),
        }
    }

    /// Waits until every service says that it is ready (`hearth status` ends with code 0).
    ///
    /// # Errors
    /// At the limit: what `hearth status` says.
    pub fn is_healthy(&self, seconds: u64) -> Result<()> {
        wait::until_ok("every service is ready", seconds, || {
            self.hearth("status").ok().map(drop)
        })
    }

    /// Prints the end of every log.
    pub fn show_logs(&self) {
        println!("--- logs of {}", self.data.display());
        let Ok(entries) = fs::read_dir(self.data.join("log")) else {
            return;
        };
        for path in entries.filter_map(|e| Some(e.ok()?.path())) {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            println!("--- {}", path.display());
            for line in lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)) {
                println!("{line}");
            }
        }
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        // The quiet way first; the sandbox kills what is left.
        if !self.data.join("conf").exists() {
            return;
        }
        let _ = self.hearth("down --guest-timeout 5").limit_s(60).run();
    }
}
