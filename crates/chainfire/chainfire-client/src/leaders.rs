//! Whether the members have a leader, asked of each of them: how a store without quorum is told from a partition.

use std::io::ErrorKind;
use std::time::Duration;

use futures::future::join_all;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::{
    Client,
    conn::maintenance_stub,
    login::link,
    wire::etcdserverpb::{StatusRequest, StatusResponse},
};

/// Where a member without a leader says for how long it has had none.
const LEADERLESS: &str = "hearth-leaderless-ms";

/// What one member said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaderAnswer {
    /// Nothing in time.
    Nothing,
    /// Its machine refused the connection.
    Refused,
    /// It has one.
    Leader,
    /// It has had none for so long.
    NoLeader {
        /// By its own clock.
        for_ms: u64,
    },
}

impl Client {
    /// Asks every member whether it has a leader, all at once; in the order of the endpoints.
    pub async fn ask_leaders(&self, within: Duration) -> Vec<LeaderAnswer> {
        let end = Instant::now() + within;
        join_all(self.endpoints().iter().map(|(endpoint, channel)| async move {
            let mut stub = maintenance_stub(link(self.login(), channel.clone()));
            match timeout_at(end, stub.status(StatusRequest {})).await {
                Ok(Ok(reply)) => judge(&reply),
                _ => knock(endpoint, end).await,
            }
        }))
        .await
    }
}

fn judge(reply: &tonic::Response<StatusResponse>) -> LeaderAnswer {
    if reply.get_ref().leader != 0 {
        return LeaderAnswer::Leader;
    }
    let for_ms = reply
        .metadata()
        .get(LEADERLESS)
        .and_then(|v| v.to_str().ok()?.parse().ok());
    LeaderAnswer::NoLeader {
        for_ms: for_ms.unwrap_or(0),
    }
}

/// A question that got no answer does not say whether anybody was there.
async fn knock(endpoint: &str, end: Instant) -> LeaderAnswer {
    match timeout_at(end, TcpStream::connect(endpoint)).await {
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => LeaderAnswer::Refused,
        _ => LeaderAnswer::Nothing,
    }
}
