//! `hearth status`: what runs, asked live from every process.

use std::time::Duration;

use anyhow::{Context, Result};
use chainfire_client::{Client, ClientConfig};
use futures::future::join_all;
use hearth_service::tls::Identity;
use hearth_types::ErrorKind;
use serde::Serialize;

use super::control;
use super::init::tls_files;
use super::layout::{Layout, Part};
use crate::failure::fail;
use crate::output::{Output, Row, bytes, note};
use crate::processes::Known;

/// Longest a process may take to answer.
const LIMIT: Duration = Duration::from_secs(3);

/// One process as it is now.
#[derive(Debug, Serialize)]
pub(crate) struct PartStatus {
    pub(crate) name: String,
    pub(crate) ready: bool,
    pub(crate) pid: Option<u32>,
    pub(crate) uptime_s: Option<u64>,
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) version: Option<String>,
    pub(crate) ports: Vec<u16>,
    /// Role in its quorum, or why it is not ready.
    pub(crate) detail: String,
}

impl Row for PartStatus {
    const HEADER: &'static [&'static str] = &[
        "service", "state", "pid", "up", "memory", "version", "ports", "detail",
    ];

    fn cells(&self) -> Vec<String> {
        let state = match (self.ready, self.pid) {
            (true, _) => "ready",
            (false, Some(_)) => "not ready",
            (false, None) => "down",
        };
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        vec![
            self.name.clone(),
            state.to_owned(),
            self.pid.map_or_else(|| "-".to_owned(), |p| p.to_string()),
            self.uptime_s.map_or_else(|| "-".to_owned(), duration),
            self.memory_bytes
                .map_or_else(|| "-".to_owned(), |b| bytes(b >> 20 << 20)),
            self.version.clone().unwrap_or_else(|| "-".to_owned()),
            ports.join(","),
            self.detail.clone(),
        ]
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// Asks the processes, as the operator of this machine.
pub(crate) struct Asker {
    http: reqwest::Client,
    chainfire: Client,
}

impl Asker {
    pub(crate) fn new(layout: &Layout) -> Result<Asker> {
        let identity = Identity::load(&tls_files(layout, "root"))?;
        let mut config = rustls::ClientConfig::clone(&identity.client_config());
        config.alpn_protocols.clear();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .no_proxy()
            .timeout(LIMIT)
            .build()
            .context("cannot set up the HTTP client")?;
        let chainfire = Client::connect(&ClientConfig::new(layout.chainfire_endpoints()), Some(identity))?;
        Ok(Asker { http, chainfire })
    }

    /// Ready, or why not.
    async fn readiness(&self, layout: &Layout, part: &Part) -> std::result::Result<(), String> {
        let Some(port) = part.ports.first() else {
            let there = control::answers(&layout.control_socket(&part.name)).await;
            return there
                .then_some(())
                .ok_or_else(|| "its control socket does not answer".to_owned());
        };
        let url = format!("https://127.0.0.1:{port}/readyz");
        match self.http.get(url).send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(answer.text().await.unwrap_or_default().trim().to_owned()),
            Err(error) if error.is_timeout() => Err("does not answer in time".to_owned()),
            Err(error) if error.is_connect() => Err("does not listen".to_owned()),
            Err(error) => Err(hearth_service::tasks::chain(&error)),
        }
    }

    async fn version(&self, part: &Part) -> Option<String> {
        let url = format!("https://127.0.0.1:{}/version", part.ports.first()?);
        let answer = self.http.get(url).send().await.ok()?;
        let value: serde_json::Value = answer.json().await.ok()?;
        Some(value.get("version")?.as_str()?.to_owned())
    }

    pub(crate) async fn part(&self, layout: &Layout, part: &Part) -> PartStatus {
        let known = Known::from_file(&layout.pid_file(&part.name));
        let (readiness, version) = tokio::join!(self.readiness(layout, part), self.version(part));
        PartStatus {
            name: part.name.clone(),
            ready: readiness.is_ok() && known.is_some(),
            pid: known.map(|k| k.pid),
            uptime_s: known.and_then(Known::age_s),
            memory_bytes: known.and_then(Known::resident_bytes),
            version,
            ports: part.ports.clone(),
            detail: match readiness {
                Ok(()) if part.role == "guard" => guard_line(layout, part).await,
                Ok(()) => String::new(),
                Err(why) => why,
            },
        }
    }

    /// All of them, in the order of starting.
    pub(crate) async fn all(&self, layout: &Layout) -> Vec<PartStatus> {
        let parts = layout.parts();
        let mut all = join_all(parts.iter().map(|part| self.part(layout, part))).await;
        let members = self.chainfire.status().await;
        let answering = members.iter().filter(|(_, answer)| answer.is_ok()).count();
        for (endpoint, answer) in members {
            let Ok(status) = answer else { continue };
            let role = match status.leader {
                0 => "no leader",
                leader if leader == status.id => "leader",
                _ => "follower",
            };
            let port = endpoint.rsplit_once(':').and_then(|(_, p)| p.parse::<u16>().ok());
            if let Some(row) = all
                .iter_mut()
                .find(|row| row.ports.first().copied() == port && row.ready)
            {
                row.detail = format!(
                    "{role}, term {}, revision {}, {answering} of {} members answer",
                    status.raft_term, status.revision, layout.choices.members
                );
            }
        }
        all
    }
}

async fn guard_line(layout: &Layout, part: &Part) -> String {
    match control::guard_status(&layout.control_socket(&part.name)).await {
        Ok(status) => status.standing.line(),
        Err(error) => format!("{error:#}"),
    }
}

/// Prints the table; fails when something is not ready, so that scripts can wait on it.
pub(crate) async fn run(data: &std::path::Path, out: Output) -> Result<()> {
    let layout = Layout::load(data)?;
    let all = Asker::new(&layout)?.all(&layout).await;
    out.list(&all)?;
    let supervisor = Known::from_file(&layout.pid_file("supervisor"));
    match supervisor {
        Some(known) => note(format!(
            "supervisor: pid {}; data {}; logs {}",
            known.pid,
            layout.data.display(),
            layout.data.join("log").display()
        )),
        None => note("the supervisor does not run: nothing restarts what dies (`hearth up` starts it)"),
    }
    let down: Vec<&str> = all.iter().filter(|p| !p.ready).map(|p| p.name.as_str()).collect();
    if down.is_empty() {
        return Ok(());
    }
    Err(fail(
        ErrorKind::Unavailable,
        format!(
            "{} of {} services are not ready: {}",
            down.len(),
            all.len(),
            down.join(", ")
        ),
        format!(
            "`hearth up` starts them; their logs are in {}",
            layout.data.join("log").display()
        ),
    ))
}
