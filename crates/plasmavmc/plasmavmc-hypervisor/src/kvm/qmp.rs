//! A thin client of QEMU's monitor protocol: greeting, capabilities, commands with ids, events.
//!
//! Unknown events and unknown members are ignored, so that it talks to old and new QEMUs alike.
//! It has one owner and no task of its own: events that arrive while an answer is awaited are kept
//! (at most [`MAX_EVENTS`], the oldest go first: every event only says "look again").

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::HypervisorError;

/// Events kept while nobody reads them.
const MAX_EVENTS: usize = 64;
/// Longest line accepted; answers of the commands used here are a few hundred bytes.
const MAX_LINE: usize = 1 << 20;

/// A connection to a monitor.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
    /// Bytes of a line that has not ended yet. Kept here so that a dropped read loses nothing.
    partial: Vec<u8>,
    events: VecDeque<String>,
    next_id: u64,
    closed: bool,
}

fn monitor(what: impl Into<String>) -> HypervisorError {
    HypervisorError::Monitor(what.into())
}

impl Qmp {
    /// Takes over a fresh connection: reads the greeting, leaves negotiation mode.
    pub(crate) async fn negotiate(stream: UnixStream, limit: Duration) -> Result<Self, HypervisorError> {
        let mut qmp = Self {
            stream: BufReader::new(stream),
            partial: Vec::new(),
            events: VecDeque::new(),
            next_id: 0,
            closed: false,
        };
        let greeting = timeout(limit, qmp.read_message())
            .await
            .map_err(|_| timed_out("the greeting", limit))??;
        if greeting.get("QMP").is_none() {
            return Err(monitor("this is not a QMP socket"));
        }
        qmp.execute("qmp_capabilities", json!({}), limit).await?;
        Ok(qmp)
    }

    /// Runs a command and returns its `return` member.
    pub(crate) async fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, HypervisorError> {
        if self.closed {
            return Err(monitor("the connection is closed"));
        }
        self.next_id += 1;
        let id = self.next_id;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id })
            .to_string()
            .into_bytes();
        line.push(b'\n');
        let exchange = async {
            if let Err(error) = self.stream.get_mut().write_all(&line).await {
                self.closed = true;
                return Err(monitor(format!("send {command}: {error}")));
            }
            loop {
                let message = self.read_message().await?;
                if message.get("event").is_some() {
                    self.keep(&message);
                } else if message.get("id").and_then(Value::as_u64) == Some(id) {
                    return answer(command, &message);
                }
                // Else an answer to a command whose deadline had passed: nobody waits for it.
            }
        };
        timeout(limit, exchange)
            .await
            .map_err(|_| timed_out("a monitor command", limit))?
    }

    /// Name of the next event. `None`: the connection is closed. Safe to drop and call again.
    pub(crate) async fn next_event(&mut self) -> Option<String> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if self.closed {
                return None;
            }
            match self.read_message().await {
                Ok(message) => self.keep(&message),
                Err(error) => {
                    tracing::debug!(%error, "monitor connection ended");
                    self.closed = true;
                }
            }
        }
    }

    /// Whether the other side has hung up.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    fn keep(&mut self, message: &Value) {
        if let Some(event) = message.get("event").and_then(Value::as_str) {
            if self.events.len() == MAX_EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(event.to_owned());
        }
    }

    async fn read_message(&mut self) -> Result<Value, HypervisorError> {
        loop {
            let read = self.stream.read_until(b'\n', &mut self.partial).await;
            match read {
                Ok(0) => {
                    self.closed = true;
                    return Err(monitor("the machine hung up"));
                }
                Ok(_) if self.partial.len() > MAX_LINE => {
                    self.closed = true;
                    return Err(monitor("a message is too long"));
                }
                Ok(_) => {}
                Err(error) => {
                    self.closed = true;
                    return Err(monitor(format!("read: {error}")));
                }
            }
            if self.partial.last() != Some(&b'\n') {
                continue;
            }
            let line = std::mem::take(&mut self.partial);
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return serde_json::from_slice(&line).map_err(|e| monitor(format!("unreadable message: {e}")));
        }
    }
}

fn answer(command: &'static str, message: &Value) -> Result<Value, HypervisorError> {
    if let Some(value) = message.get("return") {
        return Ok(value.clone());
    }
    let text = message
        .pointer("/error/desc")
        .and_then(Value::as_str)
        .unwrap_or("no reason given");
    Err(monitor(format!("{command}: {text}")))
}

fn timed_out(what: &'static str, limit: Duration) -> HypervisorError {
    HypervisorError::Timeout {
        what,
        limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    const LIMIT: Duration = Duration::from_secs(2);
    const GREETING: &[u8] = b"{\"QMP\":{\"version\":{},\"capabilities\":[]}}\r\n";

    /// A monitor that says `script` in answer to each line it gets.
    async fn with_script(script: Vec<&'static str>) -> Qmp {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = async move {
            let mut stream = BufReader::new(theirs);
            stream.get_mut().write_all(GREETING).await.unwrap();
            let mut replies = vec!["{\"return\":{},\"id\":1}\n"];
            replies.extend(script);
            for reply in replies {
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                stream.get_mut().write_all(reply.as_bytes()).await.unwrap();
            }
            stream
        };
        let mut set = tokio::task::JoinSet::new();
        set.spawn(async move {
            let mut stream = server.await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        });
        set.detach_all(); // ends with its socket
        Qmp::negotiate(ours, LIMIT).await.unwrap()
    }

    #[tokio::test]
    async fn events_between_command_and_answer_are_kept_in_order() {
        let mut qmp = with_script(vec![
            "{\"event\":\"RESET\",\"data\":{},\"timestamp\":{}}\n{\"event\":\"FROM_THE_FUTURE\"}\n\
             {\"return\":{\"late\":true},\"id\":999}\n{\"return\":{\"status\":\"running\"},\"id\":2}\n",
        ])
        .await;
        let status = qmp.execute("query-status", json!({}), LIMIT).await.unwrap();
        assert_eq!(status["status"], "running");
        assert_eq!(qmp.next_event().await.as_deref(), Some("RESET"));
        assert_eq!(qmp.next_event().await.as_deref(), Some("FROM_THE_FUTURE"));
    }

    #[tokio::test]
    async fn an_error_keeps_the_monitor_s_own_words() {
        let mut qmp = with_script(vec![
            "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no such device\"},\"id\":2}\n",
        ])
        .await;
        let error = qmp.execute("device_del", json!({}), LIMIT).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "monitor of the machine: device_del: no such device"
        );
    }

    #[tokio::test]
    async fn a_dropped_read_loses_nothing_and_a_hang_up_is_seen() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(GREETING).await.unwrap();
        theirs
            .write_all(b"{\"return\":{},\"id\":1}\n{\"event\":\"SHUT")
            .await
            .unwrap();
        let mut qmp = Qmp::negotiate(ours, LIMIT).await.unwrap();
        assert!(
            timeout(Duration::from_millis(50), qmp.next_event())
                .await
                .is_err()
        );
        theirs.write_all(b"DOWN\"}\n").await.unwrap();
        assert_eq!(qmp.next_event().await.as_deref(), Some("SHUTDOWN"));
        drop(theirs);
        assert_eq!(qmp.next_event().await, None);
        assert!(qmp.is_closed());
    }

    #[tokio::test]
    async fn silence_ends_at_the_deadline() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let error = Qmp::negotiate(ours, Duration::from_millis(50)).await.unwrap_err();
        assert!(
            matches!(error, HypervisorError::Timeout { limit_ms: 50, .. }),
            "{error}"
        );
    }
}
