//! Asks a process whether it can do its work.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
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
            return matches!(
                tokio::time::timeout(LIMIT, connect(Path::new(path))).await,
                Ok(Ok(()))
            );
        }
        match self.http.get(target).send().await {
            Ok(answer) => answer.status().is_success(),
            Err(_) => false,
        }
    }
}

/// A socket's path has at most 107 bytes; through its folder's handle any folder will do.
async fn connect(path: &Path) -> std::io::Result<()> {
    let folder = File::open(path.parent().unwrap_or(Path::new("/")))?;
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    tokio::net::UnixStream::connect(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())).await?;
    Ok(())
}
