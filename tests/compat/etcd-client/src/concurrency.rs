//! Locks and elections as the servers offer them.

use anyhow::{Context, Result, ensure};
use etcd_client::{Client, LockOptions, ProclaimOptions, ResignOptions};

use crate::key;

pub(crate) async fn lock(client: &mut Client) -> Result<()> {
    let name = key("lock");
    let held = client.lock(name.clone(), None).await?;
    let own = held.key().to_vec();
    ensure!(own.starts_with(format!("{name}/").as_bytes()), "{own:?}");
    let lease = client.lease_grant(30, None).await?.id();
    let mut other = client.clone();
    let wanted = name.clone();
    let waiting = tokio::spawn(async move {
        let options = LockOptions::new().with_lease(lease);
        other.lock(wanted, Some(options)).await
    });
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    ensure!(!waiting.is_finished(), "a lock was given to two");
    client.unlock(own).await?;
    let second = waiting.await??;
    client.unlock(second.key()).await?;
    client.lease_revoke(lease).await?;
    Ok(())
}

pub(crate) async fn election(client: &mut Client) -> Result<()> {
    let name = key("election");
    let lease = client.lease_grant(30, None).await?.id();
    let won = client.campaign(name.clone(), "123", lease).await?;
    let leader = won.leader().context("no leader")?.clone();
    ensure!(leader.name() == name.as_bytes() && leader.lease() == lease);
    let mut seen = client.observe(name.clone()).await?;
    let first = seen.message().await?.context("the stream ended")?;
    ensure!(first.kv().context("no pair")?.value() == b"123");
    let proclaim = ProclaimOptions::new().with_leader(leader.clone());
    client.proclaim("456", Some(proclaim)).await?;
    let next = seen.message().await?.context("the stream ended")?;
    ensure!(next.kv().context("no pair")?.value() == b"456");
    let now = client.leader(name.clone()).await?;
    let kv = now.kv().context("no pair")?;
    ensure!(kv.value() == b"456" && kv.key() == leader.key());
    client
        .resign(Some(ResignOptions::new().with_leader(leader)))
        .await?;
    let Err(error) = client.leader(name).await else {
        anyhow::bail!("who resigned still leads")
    };
    ensure!(error.to_string().contains("election: no leader"), "{error}");
    client.lease_revoke(lease).await?;
    Ok(())
}
