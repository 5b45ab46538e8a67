//! Liveness, readiness, metrics and version over HTTP.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use http::{StatusCode, header};
use prometheus_client::registry::Registry;

/// Whether the server can do its work now, and its metrics. Clones share the state.
#[derive(Clone, Debug)]
pub struct Health(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    service: String,
    /// `None` when ready, else why not.
    not_ready: Mutex<Option<String>>,
    registry: Mutex<Registry>,
}

impl Health {
    /// A server that is alive and not ready yet.
    #[must_use]
    pub fn new(service: &str) -> Self {
        Self(Arc::new(Shared {
            service: service.to_owned(),
            not_ready: Mutex::new(Some("starting".to_owned())),
            registry: Mutex::new(Registry::default()),
        }))
    }

    /// From now on the server can do its work.
    pub fn ready(&self) {
        *self.0.not_ready.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// From now on it cannot, for this reason.
    pub fn not_ready(&self, why: impl Into<String>) {
        *self.0.not_ready.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.into());
    }

    /// Why it is not ready, if it is not.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.0
            .not_ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Registers metrics.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.0.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The metrics in the OpenMetrics text format.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        let registry = self.0.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String cannot fail; a collector that does leaves a short answer behind.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}

/// `/livez` (the process answers), `/readyz` and `/health` (it can do its work; 503 with the reason otherwise),
/// `/metrics` (OpenMetrics text) and `/version` (JSON).
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/health", get(readyz))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .with_state(health)
}

/// `/metrics` alone, for a server whose other probes are its own.
pub fn metrics_router(health: Health) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(health)
}

async fn readyz(State(health): State<Health>) -> (StatusCode, String) {
    match health.reason() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

async fn metrics(State(health): State<Health>) -> ([(header::HeaderName, &'static str); 1], String) {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], health.metrics())
}

async fn version(State(health): State<Health>) -> axum::Json<serde_json::Value> {
    axum::Json(serde_json::json!({ "service": health.0.service, "version": crate::VERSION }))
}
