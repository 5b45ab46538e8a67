//! `hearthd chainfire-tool`: work on Chainfire members that do not run. `hearth chainfire` runs it as a child, because
//! the command line links no server.
//!
//! Answers with one JSON value on standard output: the result, or `{"error": .., "kind": ..}` with a non-zero exit.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context, Result};
use chainfire_server::Config;
use chainfire_server::offline::{
    self, BackupError, DEFAULT_BUMP, OfflineError, RecoverOptions, RestoreOptions,
};
use clap::Subcommand;
use serde::Serialize;

#[derive(Subcommand)]
pub(crate) enum Tool {
    /// Checks a backup from end to end
    BackupStatus { file: PathBuf },
    /// Makes data folders of a new cluster from a backup
    Restore {
        file: PathBuf,
        /// Configuration file of a member (may be given more than once)
        #[arg(long, required = true)]
        config: Vec<PathBuf>,
        #[arg(long, default_value_t = DEFAULT_BUMP)]
        bump_revision: u32,
        #[arg(long)]
        token: Option<String>,
    },
    /// Shows what data folders hold
    Inspect {
        #[arg(long, required = true)]
        config: Vec<PathBuf>,
    },
    /// Makes a new cluster from what the most advanced data folder holds
    Recover {
        #[arg(long, required = true)]
        config: Vec<PathBuf>,
        #[arg(long, default_value_t = DEFAULT_BUMP)]
        bump_revision: u32,
        #[arg(long)]
        survivor: Option<String>,
        #[arg(long)]
        force: bool,
    },
}

#[derive(Serialize)]
struct Failed {
    error: String,
    kind: &'static str,
}

/// Kinds as the command line names them.
fn kind(error: &anyhow::Error) -> &'static str {
    match error.downcast_ref::<OfflineError>() {
        Some(OfflineError::Backup(error)) => backup_kind(error),
        Some(OfflineError::Folder(_)) | None => match error.downcast_ref::<BackupError>() {
            Some(error) => backup_kind(error),
            None => "internal",
        },
        Some(OfflineError::State { .. } | OfflineError::Log { .. }) => "data_loss",
        Some(OfflineError::Incarnation(_) | OfflineError::UnknownMember(_) | OfflineError::Mixed(_)) => {
            "invalid_argument"
        }
        Some(_) => "failed_precondition",
    }
}

fn backup_kind(error: &BackupError) -> &'static str {
    match error {
        BackupError::Read { .. } => "not_found",
        BackupError::NotOne { .. } | BackupError::Newer { .. } => "invalid_argument",
        BackupError::Damaged { .. } | BackupError::Content { .. } => "data_loss",
    }
}

pub(crate) fn run(tool: Tool) -> Result<bool> {
    let (text, well) = match answer(tool) {
        Ok(value) => (value, true),
        Err(error) => {
            let failed = Failed {
                kind: kind(&error),
                error: format!("{error:#}"),
            };
            (serde_json::to_string(&failed)?, false)
        }
    };
    println!("{text}");
    Ok(well)
}

fn answer(tool: Tool) -> Result<String> {
    Ok(match tool {
        Tool::BackupStatus { file } => serde_json::to_string(&offline::check_backup(&file)?)?,
        Tool::Restore {
            file,
            config,
            bump_revision,
            token,
        } => {
            let options = RestoreOptions {
                bump: bump_revision,
                token,
            };
            serde_json::to_string(&offline::restore(&file, &load(&config)?, &options)?)?
        }
        Tool::Inspect { config } => {
            let found: Vec<_> = load(&config)?.iter().map(offline::inspect).collect();
            serde_json::to_string(&found)?
        }
        Tool::Recover {
            config,
            bump_revision,
            survivor,
            force,
        } => {
            let configs = load(&config)?;
            if !force {
                refuse_when_others_live(&configs)?;
            }
            let options = RecoverOptions {
                bump: bump_revision,
                survivor,
                force,
                incarnation: format!("{:016x}", rand::random::<u64>()),
                stamp: format!("recovery-{}", utc(SystemTime::now())),
            };
            serde_json::to_string(&offline::recover(&configs, &options)?)?
        }
    })
}

fn load(paths: &[PathBuf]) -> Result<Vec<Config>> {
    paths
        .iter()
        .map(|path| Ok(hearth_service::config::load(path)?))
        .collect()
}

/// A cluster whose majority answers is not to be replaced by another one.
fn refuse_when_others_live(configs: &[Config]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for config in configs {
        let living = runtime
            .block_on(offline::others_with_leader(config))
            .with_context(|| {
                format!(
                    "cannot ask the other members of `{}` whether they live (--force does without asking)",
                    config.chainfire.member
                )
            })?;
        if let Some(one) = living.first() {
            anyhow::bail!(OfflineError::ClusterLives { member: one.clone() });
        }
    }
    Ok(())
}

/// `20260131T235959Z`, for names of folders.
fn utc(now: SystemTime) -> String {
    let seconds = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// The Gregorian date of a day since 1970. Counted in years that begin in March, so that the leap day is the last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (11_016, (2000, 2, 29)),
            (19_782, (2024, 2, 29)),
            (19_783, (2024, 3, 1)),
            (20_088, (2024, 12, 31)),
        ] {
            assert_eq!(civil(days), date, "{days}");
        }
    }
}
