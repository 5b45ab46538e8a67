//! The metadata service of one guest. Who asks is known by the tap that the question came in by.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use std::sync::Arc;

use super::Guest;

type Shared = State<Arc<Guest>>;

/// Paths as EC2 has them; a path without a value is 404, as there.
pub(super) fn router(guest: Guest) -> Router {
    let names = "hostname\ninstance-id\nlocal-hostname\nlocal-ipv4\npublic-keys/";
    Router::new()
        .route("/", get(|| async { "latest\n" }))
        .route("/latest/", get(|| async { "meta-data\nuser-data\n" }))
        .route("/latest/meta-data/", get(move || async move { names }))
        .route("/latest/meta-data/hostname", get(hostname))
        .route("/latest/meta-data/local-hostname", get(hostname))
        .route(
            "/latest/meta-data/instance-id",
            get(|State(g): Shared| async move { g.id.to_string() }),
        )
        .route(
            "/latest/meta-data/local-ipv4",
            get(|State(g): Shared| async move { g.address.to_string() }),
        )
        .route("/latest/meta-data/public-keys/", get(key_list))
        .route("/latest/meta-data/public-keys/0/openssh-key", get(keys))
        .route("/latest/user-data", get(user_data))
        .with_state(Arc::new(guest))
}

async fn hostname(State(guest): Shared) -> String {
    guest.hostname.clone()
}

async fn key_list(State(guest): Shared) -> Result<&'static str, StatusCode> {
    if guest.ssh_keys.is_empty() {
        Err(StatusCode::NOT_FOUND)
    } else {
        Ok("0=hearth")
    }
}

/// All keys, one per line.
async fn keys(State(guest): Shared) -> Result<String, StatusCode> {
    if guest.ssh_keys.is_empty() {
        return Err(StatusCode::NOT_FOUND);
    }
    Ok(guest.ssh_keys.iter().map(|k| format!("{}\n", k.trim())).collect())
}

async fn user_data(State(guest): Shared) -> Result<String, StatusCode> {
    if guest.user_data.is_empty() {
        Err(StatusCode::NOT_FOUND)
    } else {
        Ok(guest.user_data.clone())
    }
}
