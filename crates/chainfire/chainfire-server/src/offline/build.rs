//! Makes the data folder of a member of a new cluster.

use std::{fs, path::PathBuf, sync::Arc};

use kv_engine::{Engine, ExportReader};
use raft_host::{DefaultFileSystem, LogConfig, Peer};

use super::{OfflineError, folder};
use crate::{
    Config,
    clock::Clock,
    incarnation,
    machine::{ENGINE, Machine, RING_BYTES},
    members::begin::{LOG_DIR, STATE_DIR},
    node::GROUP,
    tables::Tables,
};

/// The first entry that there can be in a new cluster's log (`raft-host` begins there); all states begin with it.
pub(super) const FIRST_ENTRY: u64 = 1;
/// Bytes of one piece when a state is copied.
const COPY_BYTES: usize = 256 << 10;

/// A folder under construction.
pub(super) struct Build<'a> {
    pub(super) config: &'a Config,
    pub(super) part: PathBuf,
    pub(super) tables: Tables,
}

impl<'a> Build<'a> {
    /// Begins one beside the member's data folder, with an empty state.
    pub(super) fn begin(config: &'a Config) -> Result<Build<'a>, OfflineError> {
        let member = &config.chainfire.member;
        let part = folder::begin(&config.service.data_dir)?;
        let state = part.join(STATE_DIR);
        fs::create_dir_all(&state).map_err(folder::failed("make the folder", &state))?;
        let engine = Engine::open(&state, &ENGINE).map_err(|error| OfflineError::engine(member, &error))?;
        let tables = Tables::open(engine).map_err(|error| OfflineError::engine(member, &error))?;
        Ok(Build { config, part, tables })
    }

    fn member(&self) -> &str {
        &self.config.chainfire.member
    }

    /// Copies the whole state of another engine.
    pub(super) fn copy_of(&self, other: &Tables) -> Result<(), OfflineError> {
        let failed = |error: &dyn std::fmt::Display| OfflineError::state(self.member(), error);
        let snapshot = other.engine.snapshot().map_err(|error| failed(&error))?;
        let mut export = snapshot.export(other.all());
        let mut reader = ExportReader::default();
        while let Some(piece) = export.next_chunk(COPY_BYTES).map_err(|error| failed(&error))? {
            for exported in reader.feed(&piece).map_err(|error| failed(&error))? {
                self.tables.fill(exported).map_err(|error| failed(&error))?;
            }
        }
        if reader.is_complete() {
            Ok(())
        } else {
            Err(failed(&"its copy has no end"))
        }
    }

    /// Opens what was put into it as a state machine.
    pub(super) fn machine(&self) -> Result<Machine, OfflineError> {
        let opened = Machine::open(self.tables.engine.clone(), Clock::start(), RING_BYTES);
        let (machine, _) = opened.map_err(|error| OfflineError::storage(self.member(), &error))?;
        Ok(machine)
    }

    /// Makes the state the beginning of a new cluster; returns its revision.
    pub(super) fn rebase(&self, bump: u32) -> Result<i64, OfflineError> {
        self.machine()?
            .rebase(FIRST_ENTRY, bump)
            .map_err(|error| OfflineError::state(self.member(), &error))
    }

    /// Begins the log and names the incarnation.
    pub(super) fn begin_log(&self, incarnation: &str, members: &[String]) -> Result<(), OfflineError> {
        let cluster = incarnation::applied_to(&self.config.chainfire, incarnation);
        let peers = cluster
            .members
            .iter()
            .filter(|member| members.contains(&member.name));
        let peers: Vec<Peer> = peers
            .map(|member| Peer {
                id: cluster.node_id(&member.name),
                address: member.peer.clone(),
            })
            .collect();
        let begun = raft_host::offline::begin(
            &self.part.join(LOG_DIR),
            &LogConfig::default(),
            Arc::new(DefaultFileSystem),
            GROUP,
            &peers,
        );
        begun.map_err(|error| OfflineError::log(self.member(), &error))?;
        Ok(folder::write(&self.part.join(incarnation::FILE), incarnation)?)
    }

    /// Closes and syncs it, and marks it complete.
    pub(super) fn complete(self, incarnation: &str) -> Result<(), OfflineError> {
        let persisted = self.tables.engine.persist();
        persisted.map_err(|error| OfflineError::engine(&self.config.chainfire.member, &error))?;
        drop(self.tables);
        Ok(folder::complete(&self.part, incarnation)?)
    }
}

/// All configurations must be of one cluster, each of another member.
pub(super) fn check(configs: &[Config]) -> Result<(), OfflineError> {
    let mut seen: Vec<&str> = Vec::new();
    for config in configs {
        config.chainfire.check()?;
        let name = config.chainfire.member.as_str();
        let alike = configs.first().is_none_or(|first| {
            first.chainfire.cluster == config.chainfire.cluster
                && first.chainfire.members == config.chainfire.members
        });
        if !alike || seen.contains(&name) {
            return Err(OfflineError::Mixed(name.to_owned()));
        }
        seen.push(name);
    }
    Ok(())
}
