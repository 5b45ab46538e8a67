//! Alarms, hashes, snapshots, leadership and membership.

use anyhow::{Context, Result, bail, ensure};
use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Client, MemberAddOptions};

pub(crate) async fn alarms(client: &mut Client) -> Result<()> {
    client
        .alarm(
            AlarmAction::Deactivate,
            AlarmType::None,
            Some(AlarmOptions::new()),
        )
        .await?;
    for kind in [AlarmType::None, AlarmType::Nospace, AlarmType::Corrupt] {
        let found = client.alarm(AlarmAction::Get, kind, None).await?;
        ensure!(found.alarms().is_empty(), "{} alarms", found.alarms().len());
    }
    Ok(())
}

pub(crate) async fn hashes(client: &mut Client) -> Result<()> {
    ensure!(client.status().await?.db_size() != 0);
    let all = client.hash().await?;
    ensure!(all.header().is_some() && all.hash() != 0);
    let keys = client.hash_kv(0).await?;
    ensure!(keys.header().is_some() && keys.hash() != 0);
    // The tour has compacted before.
    ensure!(keys.compact_version() > 0 && keys.hash_revision() >= keys.compact_version());
    let Err(error) = client.hash_kv(i64::MAX).await else {
        bail!("a future revision was hashed")
    };
    ensure!(
        error
            .to_string()
            .contains("required revision is a future revision"),
        "{error}"
    );
    client.defragment().await?;
    Ok(())
}

pub(crate) async fn snapshot(client: &mut Client) -> Result<()> {
    let mut stream = client.snapshot().await?;
    let (mut got, mut before) = (0, None);
    while let Some(piece) = stream.message().await? {
        ensure!(!piece.blob().is_empty(), "an empty piece");
        got += piece.blob().len() as u64;
        let left = piece.remaining_bytes();
        if let Some(before) = before.replace(left + got) {
            ensure!(
                before == left + got,
                "the whole was {before}, and is {}",
                left + got
            );
        }
        if left == 0 {
            return Ok(());
        }
    }
    bail!("the stream ended early, after {got} bytes")
}

/// To the next member, and that one says so. Only the leader itself takes the request.
pub(crate) async fn move_leader(endpoints: &[String]) -> Result<()> {
    let mut ids = Vec::new();
    let mut leading = None;
    for endpoint in endpoints {
        let mut client = Client::connect([endpoint], None).await?;
        let status = client.status().await?;
        let id = status.header().context("no header")?.member_id();
        if status.leader() == id {
            leading = Some(client);
        } else {
            ids.push((id, endpoint));
        }
    }
    let (next, endpoint) = *ids.first().context("one member only")?;
    leading.context("nobody leads")?.move_leader(next).await?;
    let mut follower = Client::connect([endpoint], None).await?;
    while follower.status().await?.leader() != next {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A learner that never starts. The crate reads the members without linearizability, so all is asked of one server.
pub(crate) async fn members(endpoints: &[String]) -> Result<()> {
    let client = &mut Client::connect(endpoints.get(..1).context("no endpoint")?, None).await?;
    let before = client.member_list().await?.members().len();
    let url = "https://127.0.0.1:9";
    let learner = MemberAddOptions::new().with_is_learner();
    let added = client.member_add([url], Some(learner)).await?;
    let id = added.member().context("no member")?.id();
    ensure!(added.member_list().len() == before + 1);
    let Err(early) = client.member_promote(id).await else {
        bail!("a member that never started was promoted")
    };
    ensure!(early.to_string().contains("in sync with leader"), "{early}");
    client
        .member_update(id, ["https://127.0.0.1:10".to_owned()])
        .await?;
    let list = client.member_list().await?;
    let found = list.members().iter().find(|member| member.id() == id);
    let found = found.context("the new member is not listed")?;
    ensure!(found.is_learner() && found.peer_urls() == ["https://127.0.0.1:10"]);
    client.member_remove(id).await?;
    ensure!(client.member_list().await?.members().len() == before);
    Ok(())
}
