//! From Chainfire to the keeper: list, then watch, and list again when the watch cannot go on.

use std::time::Duration;

use chainfire_client::{
    Client, Compare, Error, Op, Txn, WatchEvent, WatchUpdate, wire::etcdserverpb::RangeRequest,
};
use hearth_service::tasks::{TaskError, Tasks, chain};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use crate::{
    keeper::Event,
    record::{SERIAL_KEY, SETTLE_KEY},
    state::{Change, Entry, Source},
};

/// Pause after the store could not be reached; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// A watch that says nothing for this long is asked for a sign of life; without one in the same time again the
/// source counts as lost. (A watcher resumes broken streams silently, so an outage shows in nothing else.)
const QUIET: Duration = Duration::from_secs(5);
/// Deletions that come together are marked together.
const MARK_DELAY: Duration = Duration::from_millis(50);

/// Feeds one source for as long as the process lives.
pub(crate) async fn run(
    source: Source,
    client: Client,
    events: mpsc::Sender<Event>,
    tasks: Tasks,
) -> Result<(), TaskError> {
    tokio::select! {
        () = tasks.stopping() => {}
        () = forever(source, &client, &events) => {}
    }
    Ok(())
}

async fn forever(source: Source, client: &Client, events: &mpsc::Sender<Event>) {
    let mut pause = FIRST_PAUSE;
    loop {
        match once(source, client, events, &mut pause).await {
            // The keeper has ended: so does the process.
            Ok(()) => return,
            Err(error) => {
                // Once per outage; answers go on from what is known.
                if pause == FIRST_PAUSE {
                    tracing::warn!(?source, error = %chain(&error), "cannot follow Chainfire");
                }
                if events.send(Event::Lost(source)).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Lists and watches until something breaks; `Ok` when nobody listens any more.
async fn once(
    source: Source,
    client: &Client,
    events: &mpsc::Sender<Event>,
    pause: &mut Duration,
) -> Result<(), Error> {
    loop {
        let cluster = cluster_id(client).await?;
        let listing = client.list(source.prefix()).await?;
        *pause = FIRST_PAUSE;
        tracing::info!(
            ?source,
            revision = listing.revision,
            entries = listing.kvs.len(),
            "listed"
        );
        let entry = |kv: chainfire_client::KeyValue| Entry {
            key: kv.key,
            value: kv.value,
            mod_revision: kv.mod_revision,
        };
        let revision = listing.revision;
        let entries = listing.kvs.into_iter().map(entry).collect();
        if events
            .send(Event::Listed {
                source,
                cluster,
                revision,
                entries,
            })
            .await
            .is_err()
        {
            return Ok(());
        }
        let mut watcher = client.watch(source.prefix(), revision + 1);
        let mut is_asked = false;
        loop {
            let Ok(update) = timeout(QUIET, watcher.next()).await else {
                if is_asked && events.send(Event::Lost(source)).await.is_err() {
                    return Ok(());
                }
                is_asked = true;
                watcher.request_progress();
                continue;
            };
            is_asked = false;
            let Some(event) = event(source, update?) else {
                break;
            };
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// What the keeper is told; `None`: list again.
fn event(source: Source, update: WatchUpdate) -> Option<Event> {
    match update {
        WatchUpdate::Events { revision, events } => {
            let changes = events.into_iter().map(change).collect();
            Some(Event::Changed {
                source,
                revision,
                changes,
            })
        }
        WatchUpdate::Progress { revision } => Some(Event::Changed {
            source,
            revision,
            changes: Vec::new(),
        }),
        WatchUpdate::Compacted { revision } => {
            tracing::info!(
                ?source,
                revision,
                "the watched revision was compacted; listing again"
            );
            None
        }
    }
}

fn change(event: WatchEvent) -> Change {
    match event {
        WatchEvent::Put { kv, .. } => Change::Put(Entry {
            key: kv.key,
            value: kv.value,
            mod_revision: kv.mod_revision,
        }),
        WatchEvent::Delete {
            key, mod_revision, ..
        } => Change::Delete { key, mod_revision },
    }
}

async fn cluster_id(client: &Client) -> Result<u64, Error> {
    let request = RangeRequest {
        key: SERIAL_KEY.into(),
        ..RangeRequest::default()
    };
    let reply = client.range(request).await?;
    Ok(reply.header.map_or(0, |header| header.cluster_id))
}

/// Writes the mark that `due` asks for, unless another server was faster.
pub(crate) async fn keep_mark(
    client: Client,
    mut due: watch::Receiver<i64>,
    tasks: Tasks,
) -> Result<(), TaskError> {
    loop {
        let changed = tokio::select! {
            () = tasks.stopping() => return Ok(()),
            changed = due.changed() => changed,
        };
        if changed.is_err() {
            return Ok(());
        }
        tokio::time::sleep(MARK_DELAY).await;
        let revision = *due.borrow_and_update();
        if let Err(error) = write_mark(&client, revision).await {
            // The next deletion or list makes it due again.
            tracing::warn!(error = %chain(&error), "the serial's mark could not be written");
        }
    }
}

/// Writes the settling entry whenever this server asks for it.
pub(crate) async fn settle(
    client: Client,
    mut asked: watch::Receiver<u64>,
    tasks: Tasks,
) -> Result<(), TaskError> {
    loop {
        let changed = tokio::select! {
            () = tasks.stopping() => return Ok(()),
            changed = asked.changed() => changed,
        };
        if changed.is_err() {
            return Ok(());
        }
        tokio::time::sleep(MARK_DELAY).await;
        asked.mark_unchanged();
        let mut pause = FIRST_PAUSE;
        while let Err(error) = client.put(SETTLE_KEY, "").await {
            tracing::warn!(error = %chain(&error), "the serial cannot be settled yet");
            tokio::select! {
                () = tasks.stopping() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}

async fn write_mark(client: &Client, revision: i64) -> Result<(), Error> {
    let found = client.get(SERIAL_KEY).await?;
    let stored = found
        .as_ref()
        .and_then(|kv| std::str::from_utf8(&kv.value).ok()?.parse().ok());
    if stored.is_some_and(|stored: i64| stored >= revision) {
        return Ok(());
    }
    let unchanged = Compare::mod_revision(SERIAL_KEY).equal(found.map_or(0, |kv| kv.mod_revision));
    let put = Op::put(SERIAL_KEY, revision.to_string());
    // Losing the race is fine: the winner's mark comes by the watch and tells whether ours is still due.
    client
        .txn(Txn::new().when([unchanged]).then([put]))
        .await
        .map(|_| ())
}
