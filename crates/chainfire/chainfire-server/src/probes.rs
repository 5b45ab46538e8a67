//! etcd's probes over HTTP: `/health`, `/livez`, `/readyz` with their single checks, and `/version`.
//!
//! A probe tells nothing of what is stored, so anybody who reaches the port may ask.

use std::{collections::BTreeSet, time::Duration};

use axum::{
    Router,
    extract::{Path, RawQuery, State},
    response::{IntoResponse, Response},
    routing::get,
};
use chainfire_core::{AlarmKind, KeyRange, OpError, Range};
use http::{StatusCode, header};
use tokio::time::timeout;

use crate::{
    maintenance::ETCD_VERSION,
    node::{GROUP, Node},
};

/// How long a read may take before the member counts as unhealthy (etcd's request time-out).
const READ: Duration = Duration::from_secs(7);
/// The version that all members agree on, as etcd writes it.
const CLUSTER_VERSION: &str = "3.6.0";

/// One check of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    /// No member's state has been found to differ from the others'.
    DataCorruption,
    LinearizableRead,
    NonLearner,
    SerializableRead,
}

const LIVE: &[Check] = &[Check::SerializableRead];
const READY: &[Check] = &[
    Check::DataCorruption,
    Check::LinearizableRead,
    Check::NonLearner,
    Check::SerializableRead,
];

/// The probes of a member.
pub(crate) fn router(node: &Node) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/livez", get(|node, query| all(node, query, LIVE)))
        .route(
            "/livez/{check}",
            get(|node, path, query| one(node, path, query, LIVE)),
        )
        .route("/readyz", get(|node, query| all(node, query, READY)))
        .route(
            "/readyz/{check}",
            get(|node, path, query| one(node, path, query, READY)),
        )
        .route("/version", get(version))
        .with_state(node.clone())
}

/// The values of a name in a query; names without a value have an empty one.
fn values<'a>(query: Option<&'a str>, wanted: &str) -> BTreeSet<&'a str> {
    query
        .unwrap_or_default()
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(|(name, _)| *name == wanted)
        .map(|(_, value)| value)
        .collect()
}

async fn read(node: &Node, linearizable: bool) -> Result<(), String> {
    let read = async {
        if linearizable {
            node.read_barrier()
                .await
                .map_err(|error| error.text().to_owned())?;
        }
        let range = Range::of(KeyRange::single("health".into()));
        let read = node.read(&range).await;
        read.map(drop).map_err(|error| error.message().to_owned())
    };
    timeout(READ, read)
        .await
        .unwrap_or_else(|_| Err(OpError::Timeout.text().to_owned()))
}

impl Check {
    const fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
            Check::SerializableRead => "serializable_read",
        }
    }

    async fn run(self, node: &Node) -> Result<(), String> {
        match self {
            // The member concerned stops; the others tell of it until the alarm is disarmed.
            Check::DataCorruption => {
                let corrupt = node.alarms().iter().any(|alarm| alarm.kind == AlarmKind::Corrupt);
                if corrupt {
                    Err("alarm activated: CORRUPT".to_owned())
                } else {
                    Ok(())
                }
            }
            Check::LinearizableRead => read(node, true).await,
            Check::SerializableRead => read(node, false).await,
            Check::NonLearner => {
                let status = node.raft.status(GROUP).await.ok_or("the member stops")?;
                let own = status.membership.get(node.id);
                if own.is_some_and(|own| own.learner) {
                    Err("not supported for learner".to_owned())
                } else {
                    Ok(())
                }
            }
        }
    }
}

/// `/health` of etcd: alarms, leader, and a read. `serializable=true` leaves out what needs the other members,
/// `exclude=NOSPACE` that alarm.
async fn health(State(node): State<Node>, RawQuery(query): RawQuery) -> Response {
    let query = query.as_deref();
    let serializable = values(query, "serializable").contains("true");
    let excluded = values(query, "exclude");
    let alarms = node.alarms().into_iter().map(|alarm| match alarm.kind {
        AlarmKind::NoSpace => "NOSPACE",
        AlarmKind::Corrupt => "CORRUPT",
    });
    let alarm = alarms.into_iter().find(|name| !excluded.contains(name));
    let unhealthy = if let Some(name) = alarm {
        Some(format!("ALARM {name}"))
    } else if !serializable && node.leader_info().leader.is_none() {
        Some("RAFT NO LEADER".to_owned())
    } else {
        let read = read(&node, !serializable).await;
        read.err().map(|error| format!("RANGE ERROR:{error}"))
    };
    let reason = unhealthy.clone().unwrap_or_default();
    let healthy = unhealthy.is_none();
    let text = format!(
        "{{\"health\":\"{healthy}\",\"reason\":{}}}",
        serde_json::Value::from(reason)
    );
    if healthy {
        text_answer(StatusCode::OK, text)
    } else {
        text_answer(StatusCode::SERVICE_UNAVAILABLE, text + "\n")
    }
}

async fn all(State(node): State<Node>, RawQuery(query): RawQuery, checks: &'static [Check]) -> Response {
    let excluded = values(query.as_deref(), "exclude");
    let left = checks.iter().filter(|check| !excluded.contains(check.name()));
    report(&node, left.copied().collect(), query.as_deref()).await
}

async fn one(
    State(node): State<Node>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    checks: &'static [Check],
) -> Response {
    match checks.iter().find(|check| check.name() == name) {
        Some(check) => report(&node, vec![*check], query.as_deref()).await,
        None => text_answer(StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    }
}

async fn report(node: &Node, checks: Vec<Check>, query: Option<&str>) -> Response {
    let (mut lines, mut failed) = (String::new(), false);
    for check in checks {
        lines += &match check.run(node).await {
            Ok(()) => format!("[+]{} ok\n", check.name()),
            Err(why) => {
                failed = true;
                format!("[-]{} failed: {why}\n", check.name())
            }
        };
    }
    if failed {
        return text_answer(StatusCode::SERVICE_UNAVAILABLE, lines + "\n");
    }
    let verbose = query.is_some_and(|query| {
        query
            .split('&')
            .any(|pair| pair.split('=').next() == Some("verbose"))
    });
    let details = if verbose { lines } else { String::new() };
    text_answer(StatusCode::OK, details + "ok\n")
}

/// What clients of etcd look for, and who this is in truth.
async fn version() -> axum::Json<serde_json::Value> {
    axum::Json(serde_json::json!({
        "etcdserver": ETCD_VERSION,
        "etcdcluster": CLUSTER_VERSION,
        "storage": CLUSTER_VERSION,
        "service": "chainfire",
        "version": hearth_service::VERSION,
    }))
}

fn text_answer(status: StatusCode, text: String) -> Response {
    (
        status,
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        text,
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_etcds() {
        let query = Some("exclude=NOSPACE&exclude=x&serializable=true&verbose");
        assert_eq!(values(query, "exclude"), BTreeSet::from(["NOSPACE", "x"]));
        assert!(values(query, "serializable").contains("true"));
        assert!(values(query, "verbose").contains(""));
        assert!(values(None, "verbose").is_empty());
    }
}
