//! The Rust `etcd-client` crate, unmodified, against the servers named on the command line.
//!
//! `etcd-client-tour HOST:PORT[,HOST:PORT...] [all]` goes through everything that the crate offers. It prints one line for
//! each step that passed and ends with a non-zero code at the first that did not. It uses keys under
//! `/compat/etcd-client/` only and removes them. With `all` it also changes members, and makes users and switches
//! authentication on and off: for servers that are the test's own. Their tokens must end after three seconds.

mod concurrency;
mod maintenance;
mod users;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, EventType, GetOptions, PutOptions, Txn, TxnOp, WatchOptions,
};

const PREFIX: &str = "/compat/etcd-client/";
const STEP: Duration = Duration::from_secs(40);

#[tokio::main]
async fn main() -> Result<()> {
    let endpoints: Vec<String> = std::env::args()
        .nth(1)
        .context("give the endpoints: HOST:PORT[,HOST:PORT...]")?
        .split(',')
        .map(str::to_owned)
        .collect();
    let mut client = Client::connect(&endpoints, None).await.context("connect")?;
    let all = Some(DeleteOptions::new().with_prefix());
    client
        .delete(PREFIX, all.clone())
        .await
        .context("clean up before")?;

    step("put and get", put_and_get(&mut client)).await?;
    step("prefix, limit, count, old revision", ranges(&mut client)).await?;
    step("transaction", transaction(&mut client)).await?;
    step("watch from a revision with prev_kv", watch(&mut client)).await?;
    step(
        "lease: grant, keep alive, time to live, revoke",
        lease(&mut client),
    )
    .await?;
    step("compaction", compaction(&mut client)).await?;
    step("member list and status", members(&mut client, endpoints.len())).await?;
    step("range in pieces", pieces(&mut client)).await?;
    step("lock", concurrency::lock(&mut client)).await?;
    step("election", concurrency::election(&mut client)).await?;
    step("alarms", maintenance::alarms(&mut client)).await?;
    step("hashes and defragmentation", maintenance::hashes(&mut client)).await?;
    step("snapshot", maintenance::snapshot(&mut client)).await?;
    if std::env::args().nth(2).as_deref() == Some("all") {
        step("move the leader", maintenance::move_leader(&endpoints)).await?;
        step(
            "add, update and remove a member",
            maintenance::members(&endpoints),
        )
        .await?;
        step("roles", users::roles(&mut client)).await?;
        step("users", users::users(&mut client)).await?;
        step("authentication", users::authentication(&mut client, &endpoints)).await?;
    }

    client.delete(PREFIX, all).await.context("clean up after")?;
    Ok(())
}

async fn step(name: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::time::timeout(STEP, work)
        .await
        .with_context(|| format!("{name}: no end after {STEP:?}"))?
        .context(name.to_owned())?;
    println!("ok {name}");
    Ok(())
}

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

async fn put_and_get(client: &mut Client) -> Result<()> {
    let put = client.put(key("a"), "1", None).await?;
    let revision = put.header().context("no header")?.revision();
    let previous = client
        .put(key("a"), "2", Some(PutOptions::new().with_prev_key()))
        .await?;
    ensure!(previous.prev_key().context("no previous value")?.value() == b"1");
    let got = client.get(key("a"), None).await?;
    let kv = got.kvs().first().context("the key is not there")?;
    ensure!(kv.value() == b"2" && kv.create_revision() == revision && kv.mod_revision() == revision + 1);
    ensure!(kv.version() == 2, "version is {}", kv.version());
    let gone = client
        .delete(key("a"), Some(DeleteOptions::new().with_prev_key()))
        .await?;
    ensure!(gone.deleted() == 1 && gone.prev_kvs().len() == 1);
    ensure!(client.get(key("a"), None).await?.kvs().is_empty());
    Ok(())
}

async fn ranges(client: &mut Client) -> Result<()> {
    let mut before = 0;
    for name in ["r/1", "r/2", "r/3"] {
        before = client
            .put(key(name), "old", None)
            .await?
            .header()
            .context("no header")?
            .revision();
    }
    client.put(key("r/2"), "new", None).await?;
    let page = client
        .get(key("r/"), Some(GetOptions::new().with_prefix().with_limit(2)))
        .await?;
    ensure!(page.kvs().len() == 2 && page.count() == 3 && page.more());
    let count = client
        .get(key("r/"), Some(GetOptions::new().with_prefix().with_count_only()))
        .await?;
    ensure!(count.count() == 3 && count.kvs().is_empty());
    let old = client
        .get(key("r/2"), Some(GetOptions::new().with_revision(before)))
        .await?;
    ensure!(old.kvs().first().context("no old value")?.value() == b"old");
    let future = client
        .get(key("r/2"), Some(GetOptions::new().with_revision(i64::MAX)))
        .await;
    let Err(error) = future else {
        bail!("a future revision was answered")
    };
    ensure!(
        error
            .to_string()
            .contains("required revision is a future revision"),
        "{error}"
    );
    Ok(())
}

async fn transaction(client: &mut Client) -> Result<()> {
    let create = || {
        Txn::new()
            .when([Compare::create_revision(key("t"), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key("t"), "mine", None)])
            .or_else([TxnOp::get(key("t"), None)])
    };
    ensure!(client.txn(create()).await?.succeeded(), "the first create lost");
    ensure!(!client.txn(create()).await?.succeeded(), "the second create won");
    let twice = Txn::new().and_then([TxnOp::put(key("t"), "a", None), TxnOp::put(key("t"), "b", None)]);
    let Err(error) = client.txn(twice).await else {
        bail!("a key was put twice in one transaction")
    };
    ensure!(
        error.to_string().contains("duplicate key given in txn request"),
        "{error}"
    );
    Ok(())
}

async fn watch(client: &mut Client) -> Result<()> {
    let first = client
        .put(key("w/a"), "1", None)
        .await?
        .header()
        .context("no header")?
        .revision();
    client.put(key("w/a"), "2", None).await?;
    client.delete(key("w/a"), None).await?;
    let options = WatchOptions::new()
        .with_prefix()
        .with_prev_key()
        .with_start_revision(first);
    let mut stream = client.watch(key("w/"), Some(options)).await?;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let message = stream.message().await?.context("the stream ended")?;
        for event in message.events() {
            let previous = event.prev_kv().map(|kv| kv.value().to_vec());
            seen.push((event.event_type(), previous));
        }
    }
    ensure!(
        seen == [
            (EventType::Put, None),
            (EventType::Put, Some(b"1".to_vec())),
            (EventType::Delete, Some(b"2".to_vec())),
        ],
        "{seen:?}"
    );
    Ok(())
}

async fn lease(client: &mut Client) -> Result<()> {
    let id = client.lease_grant(60, None).await?.id();
    client
        .put(key("l"), "x", Some(PutOptions::new().with_lease(id)))
        .await?;
    let (mut keeper, mut answers) = client.lease_keep_alive(id).await?;
    keeper.keep_alive().await?;
    ensure!(answers.message().await?.context("no answer")?.ttl() == 60);
    let left = client.lease_time_to_live(id, None).await?;
    ensure!((50..=60).contains(&left.ttl()), "{} s left", left.ttl());
    client.lease_revoke(id).await?;
    ensure!(
        client.get(key("l"), None).await?.kvs().is_empty(),
        "the key outlived its lease"
    );
    ensure!(client.lease_time_to_live(id, None).await?.ttl() == -1);
    Ok(())
}

async fn compaction(client: &mut Client) -> Result<()> {
    let old = client
        .put(key("c"), "1", None)
        .await?
        .header()
        .context("no header")?
        .revision();
    let new = client
        .put(key("c"), "2", None)
        .await?
        .header()
        .context("no header")?
        .revision();
    client.compact(new, None).await?;
    let Err(error) = client
        .get(key("c"), Some(GetOptions::new().with_revision(old)))
        .await
    else {
        bail!("a compacted revision was answered")
    };
    ensure!(
        error.to_string().contains("required revision has been compacted"),
        "{error}"
    );
    let options = WatchOptions::new().with_start_revision(old);
    let mut stream = client.watch(key("c"), Some(options)).await?;
    loop {
        let message = stream
            .message()
            .await?
            .context("the stream ended without telling of the compaction")?;
        ensure!(message.events().is_empty(), "an event from before the compaction");
        if message.canceled() {
            ensure!(
                message.compact_revision() >= new,
                "compacted at {}",
                message.compact_revision()
            );
            break;
        }
    }
    Ok(())
}

async fn members(client: &mut Client, expected: usize) -> Result<()> {
    let members = client.member_list().await?;
    ensure!(
        members.members().len() == expected,
        "{} members",
        members.members().len()
    );
    let status = client.status().await?;
    ensure!(status.leader() != 0, "no leader");
    ensure!(status.version().starts_with("3."), "version {}", status.version());
    Ok(())
}

async fn pieces(client: &mut Client) -> Result<()> {
    for n in 0..30 {
        client
            .put(key(&format!("p/{n:02}")), "x".repeat(100_000), None)
            .await?;
    }
    let options = GetOptions::new().with_prefix().with_limit(20);
    let mut stream = client.kv_client().get_stream(key("p/"), Some(options)).await?;
    let (mut got, mut answers, mut last) = (0, 0, None);
    while let Some(answer) = stream.message().await? {
        got += answer.kvs().len();
        answers += 1;
        last = Some((answer.count(), answer.more()));
    }
    ensure!(got == 20 && answers > 1, "{got} keys in {answers} answers");
    ensure!(last == Some((30, true)), "{last:?}");
    Ok(())
}
