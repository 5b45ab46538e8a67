//! Asks a process whether it can do its work.

use std::time::Duration;

use anyhow::{Context, Result};
use hearth_service::config::TlsConfig;
use hearth_service::tls::Identity;

const LIMIT: Duration = Duration::from_secs(2);

pub(crate) struct Probe {
    http: reqwest::Client,
}

impl Probe {
    pub(crate) fn new(tls: &TlsConfig) -> Result<Probe> {
        let identity = Identity::load(tls).context("readiness questions need a certificate")?;
        let mut config = rustls::ClientConfig::clone(&identity.client_config());
        config.alpn_protocols.clear();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .no_proxy()
            .timeout(LIMIT)
            .build()
            .context("cannot set up the HTTP client")?;
        Ok(Probe { http })
    }

    /// `target` as in the plan.
    pub(crate) async fn is_ready(&self, target: &str) -> bool {
        if let Some(path) = target.strip_prefix("unix:") {
            let connected = tokio::time::timeout(LIMIT, tokio::net::UnixStream::connect(path)).await;
            return matches!(connected, Ok(Ok(_)));
        }
        match self.http.get(target).send().await {
            Ok(answer) => answer.status().is_success(),
            Err(_) => false,
        }
    }
}
