//! Backups, and members that do not run: the work is done by `hearthd chainfire-tool`, a child process.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hearth_types::ErrorKind;
use serde::{Deserialize, Serialize};

use super::{Access, members};
use crate::cli_chainfire::{Recover, Restore};
use crate::cluster::up::hearthd;
use crate::failure::fail;
use crate::output::{Output, Progress, Row, note};

/// What a backup holds, as the tool says it.
#[derive(Debug, Serialize, Deserialize)]
struct BackupInfo {
    cluster: String,
    cluster_id: u64,
    member: String,
    revision: i64,
    compacted: i64,
    raft_index: u64,
    raft_term: u64,
    members: Vec<String>,
    release: String,
    keys: u64,
    leases: u64,
    records: u64,
    created_s: u64,
    bytes: u64,
    sha256: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Restored {
    backup: BackupInfo,
    incarnation: String,
    cluster_id: u64,
    revision: i64,
    members: Vec<String>,
    already: Vec<String>,
    missing: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Inspection {
    member: String,
    data_dir: PathBuf,
    condition: String,
    problem: Option<String>,
    cluster: String,
    term: u64,
    last_term: u64,
    last_index: u64,
    applied: u64,
    revision: i64,
    compacted: i64,
    members: Vec<String>,
    interrupted: bool,
}

impl Row for Inspection {
    const HEADER: &'static [&'static str] = &[
        "member",
        "condition",
        "last term",
        "last index",
        "applied",
        "revision",
        "cluster",
        "folder",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.member.clone(),
            self.condition.clone(),
            known(self.last_term),
            known(self.last_index),
            known(self.applied),
            known(u64::try_from(self.revision).unwrap_or(0)),
            self.cluster.clone(),
            self.data_dir.display().to_string(),
        ]
    }
}

/// What cannot be read counts as 0.
fn known(number: u64) -> String {
    match number {
        0 => "-".to_owned(),
        number => number.to_string(),
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Recovered {
    survivor: Option<String>,
    found: Vec<Inspection>,
    members: Vec<String>,
    missing: Vec<String>,
    incarnation: String,
    cluster_id: u64,
    revision: i64,
    replayed: u64,
    kept: Vec<PathBuf>,
    resumed: bool,
}

#[derive(Deserialize)]
struct Failed {
    error: String,
    kind: String,
}

/// Runs the tool and reads its answer.
async fn tool<T: serde::de::DeserializeOwned>(arguments: Vec<std::ffi::OsString>) -> Result<T> {
    let program = hearthd()?;
    let output = tokio::process::Command::new(&program)
        .arg("chainfire-tool")
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::inherit())
        .output()
        .await
        .with_context(|| format!("cannot run `{}`", program.display()))?;
    if output.status.success() {
        return serde_json::from_slice(&output.stdout).with_context(|| {
            format!(
                "the answer of `{}` is not understood; are both of one release?",
                program.display()
            )
        });
    }
    let Ok(Failed { error, kind }) = serde_json::from_slice(&output.stdout) else {
        anyhow::bail!("`{}` ended with {}", program.display(), output.status);
    };
    let kind = match kind.as_str() {
        "invalid_argument" => ErrorKind::InvalidArgument,
        "not_found" => ErrorKind::NotFound,
        "failed_precondition" => ErrorKind::FailedPrecondition,
        "data_loss" => ErrorKind::DataLoss,
        _ => ErrorKind::Internal,
    };
    Err(fail(kind, error, ""))
}

fn with_configs(command: &str, configs: &[PathBuf]) -> Vec<std::ffi::OsString> {
    let mut arguments = vec![command.into()];
    for config in configs {
        arguments.push("--config".into());
        arguments.push(config.into());
    }
    arguments
}

async fn check(file: &Path) -> Result<BackupInfo> {
    tool(vec!["backup-status".into(), file.into()]).await
}

fn show(info: &BackupInfo, file: &Path, out: Output) -> Result<()> {
    out.one(
        info,
        &[
            ("file", file.display().to_string()),
            ("cluster", format!("{} ({:x})", info.cluster, info.cluster_id)),
            ("member", info.member.clone()),
            ("members then", info.members.join(", ")),
            ("revision", info.revision.to_string()),
            ("compacted", members::revision_or_none(info.compacted)),
            (
                "raft index, term",
                format!("{}, {}", info.raft_index, info.raft_term),
            ),
            ("keys", info.keys.to_string()),
            ("leases", info.leases.to_string()),
            ("stored records", info.records.to_string()),
            ("release", info.release.clone()),
            ("bytes", info.bytes.to_string()),
            ("sha256", info.sha256.clone()),
        ],
    )
}

pub(super) async fn backup_status(file: &Path, out: Output) -> Result<()> {
    show(&check(file).await?, file, out)
}

/// Downloads into FILE.part, syncs, verifies, renames.
pub(super) async fn backup(access: &Access, file: &Path, member: Option<&str>, out: Output) -> Result<()> {
    let endpoint = match member {
        None => None,
        Some(wanted) => Some(endpoint_of(access, wanted).await?),
    };
    let client = match &endpoint {
        None => access.all()?,
        Some(endpoint) => access.one(endpoint)?,
    };
    let part = file.with_added_extension("part");
    let written = download(&client, &part).await;
    let checked = match written {
        Ok(()) => check(&part).await,
        Err(error) => Err(error),
    };
    let info = match checked {
        Ok(info) => info,
        Err(error) => {
            // Half a backup is worse than none.
            let _ = std::fs::remove_file(&part);
            return Err(error.context(format!("no backup was written to `{}`", file.display())));
        }
    };
    std::fs::rename(&part, file).with_context(|| format!("cannot rename `{}`", part.display()))?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    std::fs::File::open(folder.unwrap_or(Path::new(".")))
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("cannot sync the folder of `{}`", file.display()))?;
    show(&info, file, out)
}

async fn download(client: &chainfire_client::Client, part: &Path) -> Result<()> {
    let cannot = || format!("cannot write `{}`", part.display());
    let mut pieces = client.snapshot().await?;
    let mut file = std::fs::File::create(part).with_context(cannot)?;
    let mut progress = Progress::new();
    let mut got = 0_u64;
    while let Some((piece, remaining)) = pieces.next().await? {
        file.write_all(&piece).with_context(cannot)?;
        got += piece.len() as u64;
        if got % (32 << 20) < piece.len() as u64 {
            progress.show(format!("{} of {} MiB", got >> 20, (got + remaining) >> 20));
        }
    }
    file.sync_all().with_context(cannot)
}

/// The endpoint among ours that is this member's.
async fn endpoint_of(access: &Access, wanted: &str) -> Result<String> {
    let client = access.all()?;
    let member = members::find(&client, wanted).await?;
    for (endpoint, answer) in client.status().await {
        if answer.is_ok_and(|status| status.id == member.id) {
            return Ok(endpoint);
        }
    }
    Err(fail(
        ErrorKind::Unavailable,
        format!("the member `{wanted}` does not answer"),
        "leave --member out to back up any member that does",
    ))
}

pub(super) async fn restore(restore: &Restore, configs: &[PathBuf], out: Output) -> Result<()> {
    let mut arguments = with_configs("restore", configs);
    arguments.push((&restore.file).into());
    if let Some(bump) = restore.bump_revision {
        arguments.extend(["--bump-revision".into(), bump.to_string().into()]);
    }
    if let Some(token) = &restore.token {
        arguments.extend(["--token".into(), token.into()]);
    }
    let restored: Restored = tool(arguments).await?;
    out.one(
        &restored,
        &[
            ("restored", restored.members.join(", ")),
            ("already there", restored.already.join(", ")),
            ("cluster id", format!("{:x}", restored.cluster_id)),
            ("from revision", restored.backup.revision.to_string()),
            ("goes on at", restored.revision.to_string()),
        ],
    )?;
    if restored.missing.is_empty() {
        note("start the members now");
    } else {
        note(format!(
            "repeat this with the same file and options for: {}; then start all members",
            restored.missing.join(", ")
        ));
    }
    Ok(())
}

pub(super) async fn inspect(configs: &[PathBuf], out: Output) -> Result<()> {
    let found: Vec<Inspection> = tool(with_configs("inspect", configs)).await?;
    out.list(&found)?;
    explain(&found);
    Ok(())
}

fn explain(found: &[Inspection]) {
    for one in found {
        if let Some(problem) = &one.problem {
            note(format!("{}: {problem}", one.member));
        }
        if one.interrupted {
            note(format!(
                "{}: an interrupted `recover` or `restore` waits beside its folder",
                one.member
            ));
        }
    }
    let best = found
        .iter()
        .filter(|one| one.condition == "sound")
        .max_by_key(|one| (one.last_term, one.last_index));
    if let Some(best) = best {
        note(format!("the most advanced is {}", best.member));
    }
}

pub(super) async fn recover(recover: &Recover, configs: &[PathBuf], out: Output) -> Result<()> {
    let found: Vec<Inspection> = tool(with_configs("inspect", configs)).await?;
    if recover.dry_run {
        out.list(&found)?;
        explain(&found);
        return Ok(());
    }
    // Said before anything is asked: the usual mistake, and easily mended.
    if let Some(running) = found.iter().find(|one| one.condition == "running") {
        let problem = running.problem.clone().unwrap_or_default();
        return Err(fail(ErrorKind::FailedPrecondition, problem, ""));
    }
    explain(&found);
    for one in &found {
        note(format!(
            "  {:<14} {:<8} last term {}, last index {}, applied {}, revision {}",
            one.member,
            one.condition,
            known(one.last_term),
            known(one.last_index),
            known(one.applied),
            known(u64::try_from(one.revision).unwrap_or(0)),
        ));
    }
    if !recover.yes && !confirmed()? {
        return Err(fail(ErrorKind::FailedPrecondition, "nothing was changed", ""));
    }
    let mut arguments = with_configs("recover", configs);
    if let Some(bump) = recover.bump_revision {
        arguments.extend(["--bump-revision".into(), bump.to_string().into()]);
    }
    if let Some(survivor) = &recover.survivor {
        arguments.extend(["--survivor".into(), survivor.into()]);
    }
    if recover.force {
        arguments.push("--force".into());
    }
    let recovered: Recovered = tool(arguments).await?;
    let kept: Vec<String> = recovered
        .kept
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    out.one(
        &recovered,
        &[
            ("data of", recovered.survivor.clone().unwrap_or_default()),
            ("entries replayed", recovered.replayed.to_string()),
            ("members", recovered.members.join(", ")),
            ("cluster id", format!("{:x}", recovered.cluster_id)),
            ("goes on at", format!("revision {}", recovered.revision)),
            ("old data in", kept.join(", ")),
        ],
    )?;
    if recovered.resumed {
        note("an interrupted recovery was completed; nothing new was built");
    }
    note("start the members now (on a machine of `hearth up`: `hearth up`)");
    if !recovered.missing.is_empty() {
        note(format!(
            "not in the new cluster: {}; wipe their data folders, then `hearth chainfire member add` each",
            recovered.missing.join(", ")
        ));
    }
    Ok(())
}

fn confirmed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(fail(
            ErrorKind::InvalidArgument,
            "this makes a new cluster and needs a yes",
            "give --yes, or run it on a terminal",
        ));
    }
    eprint!(
        "This makes a NEW cluster from the data above. Members that are not listed must never be started again with\n\
         their old data. Go on? [y/N] "
    );
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
