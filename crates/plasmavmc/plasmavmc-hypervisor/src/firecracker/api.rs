//! A thin client of Firecracker's API: HTTP/1.1 with JSON over a Unix socket, one connection a request.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::timeout;

use crate::HypervisorError;
use crate::folders::timed_out;
use crate::serial::connect;

const PROGRAM: &str = "firecracker";
/// Longest time for an answer. `InstanceStart` loads the kernel and is the slowest.
const LIMIT: Duration = Duration::from_secs(20);
/// Longest answer accepted; those of the requests used here are a few hundred bytes.
const MAX_ANSWER: usize = 1 << 20;
/// Its socket, in the machine's folder.
pub(super) const SOCKET: &str = "api.sock";

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `PUT` or `PATCH`.
    pub method: &'static str,
    /// Path, with its leading slash.
    pub path: &'static str,
    /// JSON body; none with `GET`.
    pub body: Option<Value>,
}

impl Request {
    pub(super) fn get(path: &'static str) -> Self {
        Self {
            method: "GET",
            path,
            body: None,
        }
    }

    pub(super) fn put(path: &'static str, body: Value) -> Self {
        Self {
            method: "PUT",
            path,
            body: Some(body),
        }
    }

    pub(super) fn patch(path: &'static str, body: Value) -> Self {
        Self {
            method: "PATCH",
            path,
            body: Some(body),
        }
    }

    fn name(&self) -> String {
        let action = self.body.as_ref().and_then(|b| b.get("action_type")?.as_str());
        match action {
            Some(action) => format!("{} {} {action}", self.method, self.path),
            None => format!("{} {}", self.method, self.path),
        }
    }
}

fn broken(error: impl std::fmt::Display) -> HypervisorError {
    HypervisorError::Monitor(format!("firecracker's API: {error}"))
}

/// Sends a request to the machine of a folder. The answer's JSON, `Null` when it has no body.
pub(super) async fn call(folder: &Path, request: &Request) -> Result<Value, HypervisorError> {
    timeout(LIMIT, exchange(folder, request))
        .await
        .map_err(|_| timed_out("an answer of firecracker's API", LIMIT))?
}

async fn exchange(folder: &Path, request: &Request) -> Result<Value, HypervisorError> {
    let stream = connect(folder, SOCKET)
        .await
        .map_err(HypervisorError::io("connect to", folder.join(SOCKET)))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let mut message = hyper::Request::builder()
        .method(request.method)
        .uri(request.path)
        .header("Host", "localhost")
        .header("Accept", "application/json");
    if request.body.is_some() {
        message = message.header("Content-Type", "application/json");
    }
    let body = request
        .body
        .as_ref()
        .map_or_else(Bytes::new, |b| b.to_string().into());
    let message = message.body(Full::new(body)).map_err(broken)?;
    let answered = async {
        let answer = sender.send_request(message).await.map_err(broken)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        Ok((status, body.map_err(broken)?.to_bytes()))
    };
    let (status, body) = match select(std::pin::pin!(answered), std::pin::pin!(connection)).await {
        Either::Left((answered, _)) => answered?,
        // It may have answered and hung up at once.
        Either::Right((_, answered)) => answered.await?,
    };
    read_answer(request, status, &body)
}

fn read_answer(request: &Request, status: hyper::StatusCode, body: &[u8]) -> Result<Value, HypervisorError> {
    let json = match body {
        [] => Value::Null,
        body => serde_json::from_slice(body).map_err(broken)?,
    };
    if status.is_success() {
        return Ok(json);
    }
    let message = json.get("fault_message").and_then(Value::as_str);
    Err(HypervisorError::Refused {
        program: PROGRAM,
        request: request.name(),
        message: message.map_or_else(|| format!("status {status}, without a reason"), str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_fault_is_told_in_firecracker_s_own_words() {
        let request = Request::put("/actions", json!({"action_type": "InstanceStart"}));
        let body = br#"{"fault_message":"Start microvm error: no kernel"}"#;
        let error = read_answer(&request, hyper::StatusCode::BAD_REQUEST, body).unwrap_err();
        assert_eq!(
            error.to_string(),
            "firecracker refused `PUT /actions InstanceStart`: Start microvm error: no kernel"
        );
        assert_eq!(
            read_answer(&request, hyper::StatusCode::NO_CONTENT, b"").unwrap(),
            Value::Null
        );
    }
}
