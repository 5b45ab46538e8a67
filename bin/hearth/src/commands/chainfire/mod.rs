//! Operating Chainfire: members, backups, and what to do when most of them are lost.

mod files;
mod members;
mod status;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use chainfire_client::{Client, ClientConfig};
use hearth_service::tls::Identity;
use hearth_types::ErrorKind;

use super::{Env, data_dir};
use crate::cli_chainfire::{Alarm, Chainfire, Command, Member};
use crate::cluster::init::tls_files;
use crate::cluster::layout::Layout;
use crate::failure::fail;

/// How long one member may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// How long reading the whole state may take.
const LONG: Duration = Duration::from_secs(600);

/// The cluster, as its operator reaches it.
pub(super) struct Access {
    pub(super) endpoints: Vec<String>,
    pub(super) identity: Identity,
}

impl Access {
    /// Through the operator's certificate in the data folder.
    fn new(data: &Path, endpoints: &[String]) -> Result<Access> {
        let layout = Layout::load(data)?;
        let identity = Identity::load(&tls_files(&layout, "root"))?;
        let endpoints = if endpoints.is_empty() {
            layout.chainfire_endpoints()
        } else {
            endpoints.to_vec()
        };
        Ok(Access { endpoints, identity })
    }

    /// All members, whichever answers.
    pub(super) fn all(&self) -> Result<Client> {
        self.client(self.endpoints.clone())
    }

    /// One member.
    pub(super) fn one(&self, endpoint: &str) -> Result<Client> {
        self.client(vec![endpoint.to_owned()])
    }

    /// One member, for what makes it read its whole state.
    pub(super) fn patient(&self, endpoint: &str) -> Result<Client> {
        Ok(self.one(endpoint)?.with_deadline(LONG))
    }

    fn client(&self, endpoints: Vec<String>) -> Result<Client> {
        let client = Client::connect(&ClientConfig::new(endpoints), Some(self.identity.clone()))?;
        Ok(client.with_deadline(LIMIT))
    }
}

pub(crate) async fn run(env: &Env, chainfire: Chainfire) -> Result<()> {
    let data = data_dir(&env.global);
    let access = || Access::new(&data, &chainfire.endpoint);
    let out = env.out;
    match chainfire.command {
        Command::Status => status::run(&access()?, out).await,
        Command::Member(Member::List) => members::list(&access()?, out).await,
        Command::Member(Member::Add { peer_url, learner }) => {
            members::add(&access()?, out, peer_url, learner).await
        }
        Command::Member(Member::Remove { member }) => members::remove(&access()?, &member).await,
        Command::Member(Member::Promote { member }) => members::promote(&access()?, &member).await,
        Command::Member(Member::Update { member, peer_url }) => {
            members::update(&access()?, &member, peer_url).await
        }
        Command::Backup { file, member } => files::backup(&access()?, &file, member.as_deref(), out).await,
        Command::BackupStatus { file } => files::backup_status(&file, out).await,
        Command::Restore(restore) => {
            let configs = configs(&data, &restore.config)?;
            files::restore(&restore, &configs, out).await
        }
        Command::Inspect { config } => files::inspect(&configs(&data, &config)?, out).await,
        Command::Recover(recover) => {
            let configs = configs(&data, &recover.config)?;
            files::recover(&recover, &configs, out).await
        }
        Command::MoveLeader { member } => members::move_leader(&access()?, &member).await,
        Command::Alarm(Alarm::List) => members::alarms(&access()?, out).await,
        Command::Alarm(Alarm::Disarm) => members::disarm(&access()?).await,
        Command::Compact { revision } => members::compact(&access()?, revision).await,
        Command::Defrag => members::defragment(&access()?).await,
        Command::Hash => members::hash(&access()?, out).await,
    }
}

/// The files named, else those of every member of this machine's cluster.
fn configs(data: &Path, named: &[PathBuf]) -> Result<Vec<PathBuf>> {
    if !named.is_empty() {
        return Ok(named.to_vec());
    }
    if !Layout::exists(data) {
        return Err(fail(
            ErrorKind::InvalidArgument,
            format!("there is no cluster in the data folder `{}`", data.display()),
            "name the member's configuration file with --config, or the folder with --data-dir",
        ));
    }
    let layout = Layout::load(data)?;
    let members = layout.parts().into_iter().filter(|part| part.role == "chainfire");
    Ok(members.map(|part| layout.conf(&part.name)).collect())
}
