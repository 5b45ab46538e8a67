//! DATA/conf/processes.toml: what runs on this machine, in which order.

use std::path::{Path, PathBuf};

use anyhow::Result;
use hearth_service::config::TlsConfig;
use serde::Deserialize;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// What readiness questions are asked with.
    pub(crate) tls: TlsConfig,
    pub(crate) process: Vec<Wanted>,
}

/// One process.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    /// Name of its log and pid files.
    pub(crate) name: String,
    /// What `hearthd` is called with.
    pub(crate) args: Vec<String>,
    /// Processes of a lower stage are started, and ready, before those of a higher one.
    pub(crate) stage: u32,
    /// `http(s)://ADDRESS/PATH` (answers 200) or `unix:PATH` (accepts a connection).
    pub(crate) ready: String,
    /// Another program than this one, for tests of the supervisor.
    #[serde(default)]
    pub(crate) program: Option<PathBuf>,
}

impl Plan {
    pub(crate) fn load(data_dir: &Path) -> Result<Plan> {
        Ok(hearth_service::config::load(
            &data_dir.join("conf/processes.toml"),
        )?)
    }
}
