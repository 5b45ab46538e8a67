//! What a data folder holds, and whether the rest of its cluster lives.

use std::{path::PathBuf, sync::Arc};

use chainfire_client::{Client, ClientConfig};
use hearth_service::tls::{Identity, TlsError};
use kv_engine::Engine;
use raft_host::{DefaultFileSystem, Found, LogConfig};
use serde::Serialize;

use super::{
    OfflineError,
    folder::{self, Mark},
};
use crate::{
    Config, incarnation,
    machine::ENGINE,
    members::begin::{LOG_DIR, STATE_DIR},
    node::GROUP,
    tables::Tables,
};

/// Whether a folder can be recovered from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// State and log fit together.
    Sound,
    /// There is nothing in it.
    Empty,
    /// It cannot be used; `problem` says why.
    Damaged,
    /// The member's process has it open.
    Running,
}

/// What a data folder holds.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The member.
    pub member: String,
    /// Its data folder.
    pub data_dir: PathBuf,
    /// Whether it can be used.
    pub condition: Condition,
    /// Why it cannot.
    pub problem: Option<String>,
    /// The cluster's name, with its incarnation.
    pub cluster: String,
    /// Newest term it took part in.
    pub term: u64,
    /// Term of the last entry of its log.
    pub last_term: u64,
    /// The last entry of its log.
    pub last_index: u64,
    /// The last entry in its state; the rest is applied by a recovery.
    pub applied: u64,
    /// Revision of its state.
    pub revision: i64,
    /// Oldest readable revision.
    pub compacted: i64,
    /// Peer addresses of the members as it knows them.
    pub members: Vec<String>,
    /// An interrupted `recover` or `restore` waits beside it.
    pub interrupted: bool,
}

impl Inspection {
    /// What the more advanced of two has more of.
    pub(super) fn rank(&self) -> (u64, u64) {
        (self.last_term, self.last_index)
    }
}

/// Looks at the data folder of a member that does not run. What is wrong with it is in the result, not an error.
pub fn inspect(config: &Config) -> Inspection {
    let dir = &config.service.data_dir;
    let mut found = Inspection {
        member: config.chainfire.member.clone(),
        data_dir: dir.clone(),
        condition: Condition::Empty,
        problem: None,
        cluster: config.chainfire.cluster.clone(),
        term: 0,
        last_term: 0,
        last_index: 0,
        applied: 0,
        revision: 0,
        compacted: 0,
        members: Vec::new(),
        interrupted: !matches!(folder::mark(&folder::beside(dir)), Ok(Mark::None)),
    };
    match incarnation::read(dir) {
        Ok(life) => found.cluster = incarnation::full_name(&config.chainfire.cluster, &life),
        Err(error) => {
            found.condition = Condition::Damaged;
            found.problem = Some(format!(
                "the file `{}` cannot be used: {error}",
                incarnation::FILE
            ));
            return found;
        }
    }
    if !dir.join(LOG_DIR).is_dir() && !dir.join(STATE_DIR).is_dir() {
        return found;
    }
    match look(config, &mut found) {
        Ok(()) => found.condition = Condition::Sound,
        Err(error) => {
            found.condition = match error {
                OfflineError::Running { .. } => Condition::Running,
                _ => Condition::Damaged,
            };
            found.problem = Some(error.to_string());
        }
    }
    found
}

fn look(config: &Config, found: &mut Inspection) -> Result<(), OfflineError> {
    let member = &config.chainfire.member;
    let tables = open_state(config)?;
    let log = open_log(config)?;
    if let Some(meta) = tables
        .meta()
        .map_err(|error| OfflineError::storage(member, &error))?
    {
        found.applied = meta.applied;
        found.revision = meta.revision;
        found.compacted = meta.compacted;
    }
    found.term = log.term;
    found.last_term = log.last_term;
    found.last_index = log.last_index;
    found.members = log
        .membership
        .members
        .into_iter()
        .map(|member| member.address)
        .collect();
    // A state that was never written begins with the log.
    if found.applied + 1 < log.first_index && log.first_index > super::build::FIRST_ENTRY + 1
        || found.applied > log.last_index
    {
        return Err(OfflineError::State {
            member: member.clone(),
            what: format!(
                "it ends at entry {}, but the log has entries {} to {}",
                found.applied, log.first_index, log.last_index
            ),
        });
    }
    Ok(())
}

/// Opens an existing state, and thereby keeps the member's process from starting.
pub(super) fn open_state(config: &Config) -> Result<Tables, OfflineError> {
    let member = &config.chainfire.member;
    let path = config.service.data_dir.join(STATE_DIR);
    if !path.is_dir() {
        return Err(OfflineError::state(member, &"it is missing"));
    }
    let engine = Engine::open(&path, &ENGINE).map_err(|error| OfflineError::engine(member, &error))?;
    Tables::open(engine).map_err(|error| OfflineError::engine(member, &error))
}

fn open_log(config: &Config) -> Result<Found, OfflineError> {
    let member = &config.chainfire.member;
    let path = config.service.data_dir.join(LOG_DIR);
    let found = raft_host::offline::inspect(&path, &LogConfig::default(), Arc::new(DefaultFileSystem), GROUP);
    let found = found.map_err(|error| OfflineError::log(member, &error))?;
    found.ok_or_else(|| OfflineError::Log {
        member: member.clone(),
        what: "there is nothing in it".to_owned(),
    })
}

/// Names of the other configured members that answer and know a leader: when there are any, the cluster lives.
///
/// # Errors
/// When the member's certificate cannot be used.
pub async fn others_with_leader(config: &Config) -> Result<Vec<String>, TlsError> {
    let identity = Identity::load(&config.tls)?;
    let others = config.chainfire.members.iter();
    let others: Vec<_> = others
        .filter(|member| member.name != config.chainfire.member)
        .collect();
    let endpoints = others.iter().map(|member| member.client.clone());
    let Ok(client) = Client::connect(&ClientConfig::new(endpoints), Some(identity)) else {
        // Without others, or with addresses that are none, nobody can answer.
        return Ok(Vec::new());
    };
    let answers = client.status().await;
    let lives = answers
        .into_iter()
        .filter(|(_, answer)| answer.as_ref().is_ok_and(|status| status.leader != 0))
        .filter_map(|(endpoint, _)| others.iter().find(|member| member.client == endpoint))
        .map(|member| member.name.clone());
    Ok(lives.collect())
}
