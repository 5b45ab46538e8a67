//! From a lost majority back to a cluster, with everything that the most advanced survivor holds.
//!
//! Whatever was acknowledged was on a majority; what of it the survivor has is in its state or its log, committed as far
//! as it knows or not. So all of its log is applied. Entries that were never acknowledged may come to life with that:
//! their callers were told that the outcome is unknown.

use std::{fs, path::PathBuf, sync::Arc};

use raft_host::{DefaultFileSystem, GroupConfig, HostConfig};
use serde::Serialize;

use super::{
    OfflineError,
    build::{self, Build},
    folder::{self, Mark},
    inspect::{Condition, Inspection, inspect, open_state},
};
use crate::{
    Config, incarnation,
    members::{begin::LOG_DIR, identity::MemberFile},
    node::GROUP,
    tables::Tables,
};

/// The survivor's log, copied, within the folder under construction.
const OLD_LOG: &str = "old-log";

/// How to recover.
#[derive(Clone, Debug)]
pub struct RecoverOptions {
    /// How far the revisions jump.
    pub bump: u32,
    /// Take this member's data, not the most advanced one's.
    pub survivor: Option<String>,
    /// Also when a majority of the data folders is sound.
    pub force: bool,
    /// Name of the new life, never used before.
    pub incarnation: String,
    /// Goes into the names of the folders that the old data moves to.
    pub stamp: String,
}

/// What was recovered.
#[derive(Clone, Debug, Serialize)]
pub struct Recovered {
    /// Whose data it is.
    pub survivor: Option<String>,
    /// What each data folder held before; empty when an interrupted run was finished.
    pub found: Vec<Inspection>,
    /// Members of the new cluster.
    pub members: Vec<String>,
    /// Configured members that are not in it: wipe their data folders, then `member add` them.
    pub missing: Vec<String>,
    /// The new cluster's incarnation.
    pub incarnation: String,
    /// The new cluster's id.
    pub cluster_id: u64,
    /// Where its revisions begin; everything before is compacted.
    pub revision: i64,
    /// Entries that were in the survivor's log but not yet in its state.
    pub replayed: u64,
    /// Where the old data is.
    pub kept: Vec<PathBuf>,
    /// An interrupted run was finished.
    pub resumed: bool,
}

/// Makes a new cluster of the members whose configuration is given, from the data of the most advanced of them.
pub fn recover(configs: &[Config], options: &RecoverOptions) -> Result<Recovered, OfflineError> {
    build::check(configs)?;
    if let Some(incarnation) = interrupted(configs)? {
        return finish(configs, &incarnation, options, true);
    }
    for config in configs {
        folder::forget_mark(&config.service.data_dir)?;
    }
    let found: Vec<Inspection> = configs.iter().map(inspect).collect();
    let survivor = choose(configs, &found, options)?;
    // Held until the end: no process may start on a folder that is being exchanged.
    let old = open_state(survivor)?;
    let others: Vec<&Config> = configs
        .iter()
        .filter(|config| config.chainfire.member != survivor.chainfire.member)
        .collect();
    let _held = hold(&others)?;
    let names: Vec<String> = configs
        .iter()
        .map(|config| config.chainfire.member.clone())
        .collect();
    let first = Build::begin(survivor)?;
    first.copy_of(&old)?;
    let replayed = replay(survivor, &first)?;
    let revision = first.rebase(options.bump)?;
    first.begin_log(&options.incarnation, &names)?;
    let mut builds = Vec::new();
    for other in others {
        let build = Build::begin(other)?;
        build.copy_of(&first.tables)?;
        build.begin_log(&options.incarnation, &names)?;
        builds.push(build);
    }
    builds.push(first);
    for build in builds {
        build.complete(&options.incarnation)?;
    }
    let recovered = finish(configs, &options.incarnation, options, false)?;
    Ok(Recovered {
        survivor: Some(survivor.chainfire.member.clone()),
        found,
        revision,
        replayed,
        ..recovered
    })
}

/// The incarnation of a run that had everything built and was cut off while it put folders in place.
fn interrupted(configs: &[Config]) -> Result<Option<String>, OfflineError> {
    let mut token = None;
    for config in configs {
        if let Mark::Complete(found) = folder::mark(&folder::beside(&config.service.data_dir))? {
            token = Some(found);
        }
        if let Mark::Complete(found) = folder::mark(&config.service.data_dir)? {
            token = Some(found);
        }
    }
    let Some(token) = token else { return Ok(None) };
    for config in configs {
        let dir = &config.service.data_dir;
        let waits = folder::mark(&folder::beside(dir))? == Mark::Complete(token.clone());
        if !waits && !incarnation::read(dir).is_ok_and(|found| found == token) {
            return Ok(None);
        }
    }
    Ok(Some(token))
}

fn finish(
    configs: &[Config],
    incarnation: &str,
    options: &RecoverOptions,
    resumed: bool,
) -> Result<Recovered, OfflineError> {
    let mut kept = Vec::new();
    for config in configs {
        kept.extend(folder::put_in_place(&config.service.data_dir, &options.stamp)?);
    }
    let members: Vec<String> = configs
        .iter()
        .map(|config| config.chainfire.member.clone())
        .collect();
    let first = configs.first().map(|config| &config.chainfire);
    let listed = first.into_iter().flat_map(|first| &first.members);
    let listed = listed.map(|member| member.name.clone());
    let revision = match configs.first() {
        Some(config) if resumed => open_state(config)?
            .meta()
            .map_err(|error| OfflineError::storage(&config.chainfire.member, &error))?
            .map_or(0, |meta| meta.revision),
        _ => 0,
    };
    Ok(Recovered {
        survivor: None,
        found: Vec::new(),
        missing: listed.filter(|name| !members.contains(name)).collect(),
        members,
        incarnation: incarnation.to_owned(),
        cluster_id: first.map_or(0, |first| {
            incarnation::applied_to(first, incarnation).cluster_id()
        }),
        revision,
        replayed: 0,
        kept,
        resumed,
    })
}

fn choose<'a>(
    configs: &'a [Config],
    found: &[Inspection],
    options: &RecoverOptions,
) -> Result<&'a Config, OfflineError> {
    if let Some(running) = found.iter().find(|found| found.condition == Condition::Running) {
        return Err(OfflineError::Running {
            member: running.member.clone(),
        });
    }
    let sound = found.iter().filter(|found| found.condition == Condition::Sound);
    let members = configs.first().map_or(0, |config| config.chainfire.members.len());
    if sound.clone().count() > members / 2 && !options.force {
        return Err(OfflineError::MajorityLeft {
            sound: sound.count(),
            members,
        });
    }
    let best = match &options.survivor {
        Some(name) if !found.iter().any(|found| found.member == *name) => {
            return Err(OfflineError::UnknownMember(name.clone()));
        }
        Some(name) => sound.clone().find(|found| found.member == *name),
        None => sound.clone().max_by_key(|found| found.rank()),
    };
    best.and_then(|best| {
        configs
            .iter()
            .find(|config| config.chainfire.member == best.member)
    })
    .ok_or_else(|| OfflineError::NoSurvivor {
        found: found
            .iter()
            .map(|found| {
                let why = found
                    .problem
                    .clone()
                    .unwrap_or_else(|| format!("{:?}", found.condition));
                format!("  {}: {}: {why}", found.member, found.data_dir.display())
            })
            .collect::<Vec<_>>()
            .join("\n"),
    })
}

/// Opens the states of members that are about to be replaced, as far as they can be opened.
fn hold(others: &[&Config]) -> Result<Vec<Tables>, OfflineError> {
    let mut held = Vec::new();
    for other in others {
        match open_state(other) {
            Ok(tables) => held.push(tables),
            Err(error @ OfflineError::Running { .. }) => return Err(error),
            // Damaged or lost: that is why we are here.
            Err(_) => {}
        }
    }
    Ok(held)
}

/// Applies everything in the survivor's log to its copied state; returns how many entries that were.
fn replay(survivor: &Config, build: &Build<'_>) -> Result<u64, OfflineError> {
    let member = &survivor.chainfire.member;
    let dir = &survivor.service.data_dir;
    let copy = build.part.join(OLD_LOG);
    folder::copy(&dir.join(LOG_DIR), &copy)?;
    let life = incarnation::read(dir).map_err(|error| OfflineError::state(member, &error))?;
    let machine = build.machine()?;
    let before = raft_host::StateMachine::applied_index(&machine);
    let own = MemberFile::read(dir).map_err(|error| OfflineError::state(member, &error))?;
    let own = own.map_or_else(
        || incarnation::applied_to(&survivor.chainfire, &life).node_id(member),
        |own| own.id,
    );
    let host = HostConfig {
        node: own,
        log_dir: copy.clone(),
        ..HostConfig::default()
    };
    let group = GroupConfig {
        id: GROUP,
        initial: Vec::new(),
        machine: Box::new(machine),
    };
    let settled = raft_host::offline::settle(&host, Arc::new(DefaultFileSystem), group);
    let settled = settled.map_err(|error| OfflineError::Log {
        member: member.clone(),
        what: error.to_string(),
    })?;
    fs::remove_dir_all(&copy).map_err(folder::failed("remove", &copy))?;
    Ok(settled
        .last_index
        .saturating_sub(before.max(settled.first_index - 1)))
}
