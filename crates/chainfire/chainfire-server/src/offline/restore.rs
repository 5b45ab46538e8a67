//! A new cluster from a backup.

use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    BackupInfo, OfflineError,
    backup::{check_backup, read_backup},
    build::{self, Build},
    folder::{self, Mark},
};
use crate::{Config, incarnation};

/// Longest token that an operator may give.
const MAX_TOKEN_BYTES: usize = 40;

/// How to restore.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// How far the revisions jump.
    pub bump: u32,
    /// Makes the new cluster differ from one that was restored from the same file before. The same on all members.
    pub token: Option<String>,
}

/// What was restored.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// What the backup held.
    pub backup: BackupInfo,
    /// The new cluster's incarnation.
    pub incarnation: String,
    /// The new cluster's id.
    pub cluster_id: u64,
    /// Where its revisions begin; everything before is compacted.
    pub revision: i64,
    /// The members whose folders were made.
    pub members: Vec<String>,
    /// The members that an earlier, equal command had restored; they are left as they are.
    pub already: Vec<String>,
    /// The members whose folders were not: repeat the same command with their configuration.
    pub missing: Vec<String>,
}

/// Makes a data folder for each of `configs` from the backup `file`. All members in their list form the new cluster;
/// folders that are not made now are made by the same call elsewhere, from the same file with the same options.
pub fn restore(file: &Path, configs: &[Config], options: &RestoreOptions) -> Result<Restored, OfflineError> {
    build::check(configs)?;
    let info = check_backup(file)?;
    let first = configs.first().map(|config| &config.chainfire);
    let all: Vec<String> = first
        .map(|first| first.members.iter().map(|member| member.name.clone()).collect())
        .unwrap_or_default();
    let incarnation = incarnation_of(&info, options, configs)?;
    for config in configs {
        let dir = &config.service.data_dir;
        match folder::mark(&folder::beside(dir))? {
            Mark::Complete(token) if token != incarnation => {
                return Err(OfflineError::Interrupted {
                    path: folder::beside(dir),
                });
            }
            _ => {}
        }
        if !is_ours(config, &incarnation) && !folder::is_empty(dir)? {
            return Err(OfflineError::NotEmpty {
                member: config.chainfire.member.clone(),
                path: dir.clone(),
            });
        }
    }
    let (mut members, mut already) = (Vec::new(), Vec::new());
    for config in configs {
        let member = config.chainfire.member.clone();
        if is_ours(config, &incarnation) {
            already.push(member);
            continue;
        }
        members.push(member);
        let part = folder::beside(&config.service.data_dir);
        if folder::mark(&part)? != Mark::Complete(incarnation.clone()) {
            build_one(file, config, &all, &incarnation, options.bump)?;
        }
    }
    for config in configs {
        folder::put_in_place(&config.service.data_dir, "restore")?;
    }
    let here = |name: &String| members.contains(name) || already.contains(name);
    Ok(Restored {
        cluster_id: first.map_or(0, |first| {
            incarnation::applied_to(first, &incarnation).cluster_id()
        }),
        missing: all.into_iter().filter(|name| !here(name)).collect(),
        revision: info.revision.saturating_add(i64::from(options.bump)),
        backup: info,
        incarnation,
        members,
        already,
    })
}

fn build_one(
    file: &Path,
    config: &Config,
    all: &[String],
    incarnation: &str,
    bump: u32,
) -> Result<(), OfflineError> {
    let build = Build::begin(config)?;
    read_backup(file, |exported| build.tables.fill(exported))?;
    build.rebase(bump)?;
    build.begin_log(incarnation, all)?;
    build.complete(incarnation)
}

/// Whether the member's folder was made by the same command before.
fn is_ours(config: &Config, incarnation: &str) -> bool {
    incarnation::read(&config.service.data_dir).is_ok_and(|found| found == incarnation)
}

/// Members restored with anything different (file, bump, list of members) get different ids and never talk: better no
/// cluster than one whose members disagree.
fn incarnation_of(
    info: &BackupInfo,
    options: &RestoreOptions,
    configs: &[Config],
) -> Result<String, OfflineError> {
    let mut digest = Sha256::new();
    digest.update(info.sha256.as_bytes());
    digest.update(options.bump.to_le_bytes());
    for member in configs
        .iter()
        .take(1)
        .flat_map(|config| &config.chainfire.members)
    {
        for part in [&member.name, &member.peer] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part.as_bytes());
        }
    }
    let hex: String = digest
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    match &options.token {
        None => Ok(hex),
        Some(token) if token.len() <= MAX_TOKEN_BYTES && incarnation::is_valid(token) => {
            Ok(format!("{token}-{hex}"))
        }
        Some(token) => Err(OfflineError::Incarnation(token.clone())),
    }
}
