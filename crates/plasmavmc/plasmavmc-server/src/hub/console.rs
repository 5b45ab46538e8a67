//! Consoles: a person's WebSocket on one side, a stream that the agent opens on the other.
//!
//! ```text
//! person ──GET console──> hub ──OpenConsole(id)──> agent
//!                          ^ <──ConsoleAttach(id)──┘         within ANSWER_TIMEOUT, by the same node
//!                          └── bytes both ways, at most QUEUE chunks waiting in each
//! ```

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use hearth_service::error::{ApiError, ErrorKind};
use hearth_service::tasks::Tasks;
use hearth_types::Name;
use plasmavmc_client::agent::{ConsoleChunk, OpenConsole, hub_message};
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

use super::{ANSWER_TIMEOUT, Forget, Hub, lock};
use crate::metrics::Metrics;
use crate::store::records::VmRecord;

/// Chunks waiting for an agent.
pub(super) const QUEUE: usize = 32;

/// A console that waits for its agent.
pub(super) struct Waiting {
    node: Name,
    peer: oneshot::Sender<ConsolePeer>,
}

/// The agent's end of a console.
pub(crate) struct ConsolePeer {
    id: String,
    /// What came with the chunk that named the console.
    first: Bytes,
    /// Why the agent could not open it.
    refused: Option<String>,
    from_agent: Streaming<ConsoleChunk>,
    to_agent: mpsc::Sender<Result<ConsoleChunk, Status>>,
}

impl Hub {
    /// Has a VM's agent open its console.
    pub(crate) async fn open_console(&self, vm: &VmRecord) -> Result<ConsolePeer, ApiError> {
        let node = &vm.placed.node;
        let id = uuid::Uuid::now_v7().to_string();
        let (peer, attached) = oneshot::channel();
        lock(&self.0.consoles).insert(
            id.clone(),
            Waiting {
                node: node.clone(),
                peer,
            },
        );
        let _forget = Forget {
            table: &self.0.consoles,
            id: id.clone(),
        };
        let open = OpenConsole {
            console_id: id,
            vm_id: vm.id.to_string(),
        };
        self.tell(node, hub_message::Kind::OpenConsole(open)).await?;
        let late = || {
            ApiError::new(
                ErrorKind::DeadlineExceeded,
                format!(
                    "node {node} did not open the console of VM `{}` within 10 seconds",
                    vm.name
                ),
            )
            .hint("try again; `hearth vm show` says whether it runs")
        };
        let peer = tokio::time::timeout(ANSWER_TIMEOUT, attached).await;
        let peer = peer.map_err(|_| late())?.map_err(|_| late())?;
        match peer.refused {
            None => Ok(peer),
            Some(why) => {
                let message = format!(
                    "node {node} could not open the console of VM `{}`: {why}",
                    vm.name
                );
                Err(ApiError::new(ErrorKind::FailedPrecondition, message).hint("is the VM running?"))
            }
        }
    }
}

/// Takes an agent's stream and hands it to whoever waits for it.
pub(super) async fn attach(
    hub: &Hub,
    node: &Name,
    mut from_agent: Streaming<ConsoleChunk>,
    to_agent: mpsc::Sender<Result<ConsoleChunk, Status>>,
) {
    let refuse = |status: Status| {
        // The queue is empty: nothing was sent yet.
        let _ = to_agent.try_send(Err(status));
    };
    let first = tokio::select! {
        first = tokio::time::timeout(ANSWER_TIMEOUT, from_agent.message()) => first,
        () = hub.0.tasks.stopping() => return,
    };
    let Ok(Ok(Some(chunk))) = first else {
        refuse(Status::deadline_exceeded(
            "the first chunk, which names the console, did not come",
        ));
        return;
    };
    let waiting = {
        let mut consoles = lock(&hub.0.consoles);
        let meant = consoles
            .get(&chunk.console_id)
            .is_some_and(|waiting| waiting.node == *node);
        if meant {
            consoles.remove(&chunk.console_id)
        } else {
            None
        }
    };
    let Some(waiting) = waiting else {
        refuse(Status::not_found("nobody waits for this console"));
        return;
    };
    let peer = ConsolePeer {
        id: chunk.console_id,
        first: chunk.data.into(),
        refused: Some(chunk.error).filter(|error| !error.is_empty()),
        from_agent,
        to_agent: to_agent.clone(),
    };
    if let Err(peer) = waiting.peer.send(peer) {
        drop(peer);
        refuse(Status::cancelled("whoever asked for the console has gone"));
    }
}

/// Why a console ended, as the person sees it.
enum End {
    Normal,
    Broken(String),
}

/// Carries bytes both ways until either side ends.
pub(crate) async fn carry(socket: WebSocket, peer: ConsolePeer, metrics: Metrics, tasks: Tasks) {
    metrics.consoles_open.inc();
    let ConsolePeer {
        id,
        first,
        mut from_agent,
        to_agent,
        ..
    } = peer;
    let (mut to_person, mut from_person) = socket.split();
    let up = async {
        while let Some(Ok(message)) = from_person.next().await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Text(text) => Bytes::from(text),
                Message::Close(_) => break,
                Message::Ping(_) | Message::Pong(_) => continue,
            };
            let chunk = ConsoleChunk {
                console_id: id.clone(),
                data: data.into(),
                error: String::new(),
            };
            if to_agent.send(Ok(chunk)).await.is_err() {
                return End::Broken("the agent closed the console".to_owned());
            }
        }
        End::Normal
    };
    let down = async {
        if !first.is_empty() && to_person.send(Message::Binary(first)).await.is_err() {
            return End::Normal;
        }
        loop {
            let chunk = match from_agent.message().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return End::Normal,
                Err(status) => return End::Broken(status.message().to_owned()),
            };
            if !chunk.error.is_empty() {
                return End::Broken(chunk.error);
            }
            if !chunk.data.is_empty() && to_person.send(Message::Binary(chunk.data.into())).await.is_err() {
                return End::Normal;
            }
        }
    };
    let end = tokio::select! {
        end = up => end,
        end = down => end,
        () = tasks.stopping() => End::Broken("the server is stopping; connect again".to_owned()),
    };
    metrics.consoles_open.dec();
    let (code, reason) = match end {
        End::Normal => (close_code::NORMAL, String::new()),
        End::Broken(why) => (close_code::ERROR, shorten(why)),
    };
    // The person may be gone already.
    let _ = to_person
        .send(Message::Close(Some(CloseFrame {
            code,
            reason: reason.into(),
        })))
        .await;
}

/// A close frame carries at most 123 bytes of reason (RFC 6455 section 5.5).
fn shorten(mut text: String) -> String {
    let mut end = text.len().min(120);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
