//! Members, leadership, alarms, history: what is asked of a running cluster.

use anyhow::Result;
use chainfire_client::{Client, Error, Member, StateHash};
use hearth_types::ErrorKind;
use serde::Serialize;

use super::Access;
use crate::failure::fail;
use crate::output::{Output, Row, note};

/// Attempts at comparing all states at one revision, while writes and compactions go on.
const HASH_ATTEMPTS: u32 = 5;

#[derive(Debug, Serialize)]
struct MemberRow {
    id: String,
    name: String,
    peer_urls: Vec<String>,
    client_urls: Vec<String>,
    learner: bool,
}

impl Row for MemberRow {
    const HEADER: &'static [&'static str] =
        &["id", "name", "peers reach it at", "clients reach it at", "vote"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.name.clone(),
            self.peer_urls.join(","),
            self.client_urls.join(","),
            if self.learner { "learner" } else { "voter" }.to_owned(),
        ]
    }
}

fn rows(members: Vec<Member>) -> Vec<MemberRow> {
    let row = |member: Member| MemberRow {
        id: format!("{:x}", member.id),
        name: member.name,
        peer_urls: member.peer_urls,
        client_urls: member.client_urls,
        learner: member.is_learner,
    };
    members.into_iter().map(row).collect()
}

pub(super) async fn list(access: &Access, out: Output) -> Result<()> {
    out.list(&rows(explained(access.all()?.member_list().await)?))
}

/// A member by its name or by its id as it is printed.
pub(super) async fn find(client: &Client, wanted: &str) -> Result<Member> {
    let members = explained(client.member_list().await)?;
    let id = u64::from_str_radix(wanted, 16).ok();
    let found = members
        .iter()
        .find(|member| member.name == wanted)
        .or_else(|| members.iter().find(|member| Some(member.id) == id));
    found.cloned().ok_or_else(|| {
        fail(
            ErrorKind::NotFound,
            format!("there is no member `{wanted}`"),
            "`hearth chainfire member list` shows names and ids",
        )
    })
}

/// Says what to do where the store's own words do not.
fn explained<T>(result: chainfire_client::Result<T>) -> Result<T> {
    result.map_err(|error| {
        let kind = error.kind();
        let hint = match &error {
            Error::NoLeader | Error::Unavailable { .. } | Error::Timeout => {
                "`hearth chainfire status` shows which members answer; most of them are needed"
            }
            Error::UnknownOutcome { .. } => {
                "look whether it was done (`hearth chainfire member list`) before repeating it"
            }
            Error::Etcd { message, .. } if message.contains("enough started members") => {
                "start the members that are down first: the change would leave the cluster without a majority"
            }
            Error::Etcd { message, .. } if message.contains("learner which is in sync") => {
                "the learner has not caught up yet: wait a little and repeat"
            }
            _ => "",
        };
        fail(kind, error.to_string(), hint)
    })
}

pub(super) async fn add(access: &Access, out: Output, peer_url: String, learner: bool) -> Result<()> {
    let (added, all) = explained(access.all()?.member_add(&[peer_url], learner).await)?;
    out.list(&rows(all))?;
    if let Some(added) = added {
        note(format!("added {:x}; start its process now", added.id));
        if learner {
            note("once it has caught up, give it a vote: `hearth chainfire member promote`");
        }
    }
    Ok(())
}

pub(super) async fn remove(access: &Access, member: &str) -> Result<()> {
    let client = access.all()?;
    let found = find(&client, member).await?;
    explained(client.member_remove(found.id).await)?;
    note(format!(
        "removed {:x}; its data folder is of no use any more",
        found.id
    ));
    Ok(())
}

pub(super) async fn promote(access: &Access, member: &str) -> Result<()> {
    let client = access.all()?;
    let found = find(&client, member).await?;
    explained(client.member_promote(found.id).await)?;
    note(format!("{:x} has a vote now", found.id));
    Ok(())
}

pub(super) async fn update(access: &Access, member: &str, peer_url: String) -> Result<()> {
    let client = access.all()?;
    let found = find(&client, member).await?;
    explained(
        client
            .member_update(found.id, std::slice::from_ref(&peer_url))
            .await,
    )?;
    note(format!("the others reach {:x} at {peer_url} now", found.id));
    Ok(())
}

/// The endpoint of the leader.
async fn leader(access: &Access) -> Result<Client> {
    for (endpoint, answer) in access.all()?.status().await {
        if answer.is_ok_and(|status| status.leader == status.id) {
            return access.one(&endpoint);
        }
    }
    Err(fail(
        ErrorKind::Unavailable,
        "no member says that it leads",
        "`hearth chainfire status` shows which members answer; most of them are needed",
    ))
}

pub(super) async fn move_leader(access: &Access, member: &str) -> Result<()> {
    let found = find(&access.all()?, member).await?;
    explained(leader(access).await?.move_leader(found.id).await)?;
    note(format!("{} ({:x}) leads now", found.name, found.id));
    Ok(())
}

#[derive(Debug, Serialize)]
struct AlarmRow {
    member_id: String,
    alarm: String,
}

impl Row for AlarmRow {
    const HEADER: &'static [&'static str] = &["member", "alarm"];

    fn cells(&self) -> Vec<String> {
        vec![self.member_id.clone(), self.alarm.clone()]
    }
}

pub(super) async fn alarms(access: &Access, out: Output) -> Result<()> {
    let alarms = explained(access.all()?.alarms().await)?;
    let row = |alarm: chainfire_client::Alarm| AlarmRow {
        member_id: format!("{:x}", alarm.member_id),
        alarm: alarm.kind,
    };
    out.list(&alarms.into_iter().map(row).collect::<Vec<_>>())
}

pub(super) async fn disarm(access: &Access) -> Result<()> {
    let client = access.all()?;
    let alarms = explained(client.alarms().await)?;
    for alarm in &alarms {
        explained(client.disarm(alarm).await)?;
    }
    let left = explained(client.alarms().await)?;
    if left.is_empty() {
        note(format!("{} alarms taken back, none is raised now", alarms.len()));
        return Ok(());
    }
    Err(fail(
        ErrorKind::FailedPrecondition,
        format!("{} alarms are still raised", left.len()),
        "their cause is still there: for NOSPACE, delete keys and `hearth chainfire compact`, or free the disk",
    ))
}

pub(super) async fn compact(access: &Access, revision: Option<i64>) -> Result<()> {
    let client = access.all()?;
    let revision = match revision {
        Some(revision) => revision,
        // Whichever key: the answer says the present revision.
        None => explained(client.get_at("compact", 0).await)?.revision,
    };
    explained(client.compact(revision).await)?;
    note(format!("history before revision {revision} is forgotten"));
    Ok(())
}

pub(super) async fn defragment(access: &Access) -> Result<()> {
    for endpoint in &access.endpoints {
        explained(access.one(endpoint)?.defragment().await)?;
    }
    note("there is nothing to do: Chainfire gives space back by itself, without a stop");
    Ok(())
}

#[derive(Debug, Serialize)]
struct HashRow {
    member_id: String,
    endpoint: String,
    hash: String,
    revision: i64,
    compacted: i64,
}

impl Row for HashRow {
    const HEADER: &'static [&'static str] = &["member", "endpoint", "hash", "revision", "compacted"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.member_id.clone(),
            self.endpoint.clone(),
            self.hash.clone(),
            self.revision.to_string(),
            revision_or_none(self.compacted),
        ]
    }
}

/// The revision up to which history is forgotten, if any is.
pub(super) fn revision_or_none(compacted: i64) -> String {
    match compacted {
        ..=0 => "nothing".to_owned(),
        revision => revision.to_string(),
    }
}

/// All members' hashes at the oldest of their newest revisions.
async fn hashes(access: &Access) -> Result<Vec<(String, StateHash)>> {
    let mut revision = i64::MAX;
    for endpoint in &access.endpoints {
        let hash = explained(access.patient(endpoint)?.state_hash(0).await)?;
        revision = revision.min(hash.hash_revision);
    }
    let mut found = Vec::new();
    for endpoint in &access.endpoints {
        found.push((
            endpoint.clone(),
            explained(access.patient(endpoint)?.state_hash(revision).await)?,
        ));
    }
    Ok(found)
}

pub(super) async fn hash(access: &Access, out: Output) -> Result<()> {
    let mut found = Vec::new();
    let mut comparable = false;
    for _ in 0..HASH_ATTEMPTS {
        found = hashes(access).await?;
        let compacted = found.first().map(|(_, hash)| hash.compact_revision);
        comparable = found
            .iter()
            .all(|(_, hash)| Some(hash.compact_revision) == compacted);
        if comparable {
            break;
        }
    }
    let row = |(endpoint, hash): &(String, StateHash)| HashRow {
        member_id: format!("{:x}", hash.member_id),
        endpoint: endpoint.clone(),
        hash: format!("{:08x}", hash.hash),
        revision: hash.hash_revision,
        compacted: hash.compact_revision,
    };
    out.list(&found.iter().map(row).collect::<Vec<_>>())?;
    if !comparable {
        return Err(fail(
            ErrorKind::Conflict,
            "the members were compacted at different revisions meanwhile, so their hashes cannot be compared",
            "repeat the command",
        ));
    }
    let first = found.first().map(|(_, hash)| hash.hash);
    if found.iter().all(|(_, hash)| Some(hash.hash) == first) {
        note("all members hold the same state");
        return Ok(());
    }
    Err(fail(
        ErrorKind::DataLoss,
        "the members' states differ",
        "take backups of all of them, then replace the one that differs from the others (docs/guides/chainfire.md)",
    ))
}
