//! `hearth chainfire status`.

use anyhow::{Context, Result};
use chainfire_client::MemberStatus;
use futures::future::join_all;
use hearth_types::ErrorKind;
use serde::Serialize;

use super::{Access, LIMIT};
use crate::failure::fail;
use crate::output::{Format, Output, Row, note};

/// Name of the histogram of log syncs, as etcd's dashboards know it.
const FSYNC: &str = "etcd_disk_wal_fsync_duration_seconds";
/// The slowest of the last 128, microseconds.
const FSYNC_WORST: &str = "chainfire_fsync_worst_us";
/// Widest bar of the histogram.
const BAR: u64 = 40;

/// One member.
#[derive(Debug, Serialize)]
struct MemberRow {
    name: String,
    id: String,
    endpoint: String,
    role: String,
    raft_term: u64,
    revision: i64,
    raft_index: u64,
    /// Entries committed but not yet applied there.
    behind: u64,
    db_bytes: i64,
    db_in_use_bytes: i64,
    /// 0: none.
    quota_bytes: i64,
    fsync: Fsync,
    version: String,
    alarms: Vec<String>,
    errors: Vec<String>,
}

/// How long its log syncs take.
#[derive(Debug, Default, Serialize)]
struct Fsync {
    /// Upper ends of the histogram's classes that hold the quantiles, milliseconds.
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// Slowest of the last 128.
    worst_ms: Option<f64>,
    /// Upper end in milliseconds (none: no end) and how many took that long.
    classes: Vec<(Option<f64>, u64)>,
}

impl Row for MemberRow {
    const HEADER: &'static [&'static str] = &[
        "member",
        "id",
        "endpoint",
        "role",
        "term",
        "revision",
        "index",
        "behind",
        "size",
        "in use",
        "quota",
        "fsync p50/p99/max ms",
        "version",
        "trouble",
    ];

    fn cells(&self) -> Vec<String> {
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        let quota = match self.quota_bytes {
            0 => "-".to_owned(),
            bytes => mib(bytes),
        };
        let trouble: Vec<&str> = self
            .alarms
            .iter()
            .chain(&self.errors)
            .map(String::as_str)
            .collect();
        vec![
            self.name.clone(),
            self.id.clone(),
            self.endpoint.clone(),
            self.role.clone(),
            self.raft_term.to_string(),
            self.revision.to_string(),
            self.raft_index.to_string(),
            self.behind.to_string(),
            mib(self.db_bytes),
            mib(self.db_in_use_bytes),
            quota,
            format!(
                "{}/{}/{}",
                ms(self.fsync.p50_ms),
                ms(self.fsync.p99_ms),
                ms(self.fsync.worst_ms)
            ),
            self.version.clone(),
            trouble.join("; "),
        ]
    }
}

fn mib(bytes: i64) -> String {
    format!("{} MiB", (bytes + (1 << 19)) >> 20)
}

/// Asks every member; fails when one does not answer or there is no leader, so that scripts can wait on it.
pub(super) async fn run(access: &Access, out: Output) -> Result<()> {
    let client = access.all()?;
    let answers = client.status().await;
    let (members, alarms) = tokio::join!(client.member_list(), client.alarms());
    let (members, alarms) = (members.unwrap_or_default(), alarms.unwrap_or_default());
    let http = http(access)?;
    let syncs = join_all(answers.iter().map(|(endpoint, _)| fsync(&http, endpoint))).await;
    let (mut rows, mut silent) = (Vec::new(), Vec::new());
    for ((endpoint, answer), fsync) in answers.into_iter().zip(syncs) {
        match answer {
            Ok(status) => {
                let member = members.iter().find(|member| member.id == status.id);
                let id = status.id;
                let raised = alarms.iter().filter(|alarm| alarm.member_id == id);
                rows.push(row(
                    member.map_or(String::new(), |member| member.name.clone()),
                    status,
                    fsync.unwrap_or_default(),
                    raised.map(|alarm| alarm.kind.clone()).collect(),
                ));
            }
            Err(error) => silent.push((endpoint, error.to_string())),
        }
    }
    out.list(&rows)?;
    if out.format == Format::Table {
        rows.iter().for_each(histogram);
    }
    for (endpoint, error) in &silent {
        note(format!("{endpoint} does not answer: {error}"));
    }
    let leaderless = rows.iter().filter(|row| row.role == "no leader").count();
    if silent.is_empty() && leaderless == 0 {
        return Ok(());
    }
    Err(fail(
        ErrorKind::Unavailable,
        format!(
            "{} members do not answer, {leaderless} know no leader",
            silent.len()
        ),
        "a majority of the members is needed: start those that stopped; when most are lost for good, `hearth \
         chainfire recover` (docs/guides/chainfire.md)",
    ))
}

fn row(name: String, status: MemberStatus, fsync: Fsync, alarms: Vec<String>) -> MemberRow {
    let role = match status.leader {
        0 => "no leader",
        leader if leader == status.id => "leader",
        _ if status.is_learner => "learner",
        _ => "follower",
    };
    MemberRow {
        name,
        id: format!("{:x}", status.id),
        endpoint: status.endpoint,
        role: role.to_owned(),
        raft_term: status.raft_term,
        revision: status.revision,
        raft_index: status.raft_index,
        behind: status.raft_index.saturating_sub(status.raft_applied_index),
        db_bytes: status.db_size,
        db_in_use_bytes: status.db_size_in_use,
        quota_bytes: status.db_size_quota,
        fsync,
        version: status.version,
        alarms,
        errors: status.errors,
    }
}

fn histogram(row: &MemberRow) {
    let most = row
        .fsync
        .classes
        .iter()
        .map(|(_, count)| *count)
        .max()
        .unwrap_or(0);
    if most == 0 {
        return;
    }
    note(format!("\nlog syncs of {}:", row.name));
    for (end, count) in row.fsync.classes.iter().filter(|(_, count)| *count > 0) {
        let end = end.map_or_else(|| "     more".to_owned(), |ms| format!("{ms:>6.1} ms"));
        let bar = usize::try_from((count * BAR).div_ceil(most)).unwrap_or(0);
        note(format!("  up to {end}  {:<40}  {count}", "#".repeat(bar)));
    }
}

fn http(access: &Access) -> Result<reqwest::Client> {
    let mut config = rustls::ClientConfig::clone(&access.identity.client_config());
    config.alpn_protocols.clear();
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .no_proxy()
        .timeout(LIMIT)
        .build()
        .context("cannot set up the HTTP client")
}

async fn fsync(http: &reqwest::Client, endpoint: &str) -> Option<Fsync> {
    let url = format!("https://{endpoint}/metrics");
    let text = http.get(url).send().await.ok()?.text().await.ok()?;
    Some(parse(&text))
}

/// Reads the histogram out of Prometheus' text.
fn parse(text: &str) -> Fsync {
    let bucket = format!("{FSYNC}_bucket{{le=\"");
    let mut classes = Vec::new();
    let mut below = 0;
    let mut worst_ms = None;
    for line in text.lines() {
        if let Some(us) = line.strip_prefix(FSYNC_WORST) {
            worst_ms = us.trim().parse::<f64>().ok().map(|us| us / 1000.0);
        }
        let Some((end, count)) = line.strip_prefix(&bucket).and_then(|rest| rest.split_once("\"}")) else {
            continue;
        };
        let count = count.trim().parse::<u64>().unwrap_or(below);
        let end = end
            .parse::<f64>()
            .ok()
            .filter(|end| end.is_finite())
            .map(|s| s * 1000.0);
        classes.push((end, count.saturating_sub(below)));
        below = count;
    }
    let quantile = |share: u64| {
        let wanted = (below * share).div_ceil(100);
        let mut seen = 0;
        classes.iter().find_map(|(end, count)| {
            seen += count;
            (below > 0 && seen >= wanted).then_some(*end).flatten()
        })
    };
    Fsync {
        p50_ms: quantile(50),
        p99_ms: quantile(99),
        worst_ms,
        classes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_come_out_of_the_histogram() {
        let text = "chainfire_fsync_worst_us 9500\n\
             etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.001\"} 90\n\
             etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.002\"} 98\n\
             etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.004\"} 100\n\
             etcd_disk_wal_fsync_duration_seconds_bucket{le=\"+Inf\"} 100\n";
        let found = parse(text);
        assert_eq!(
            (found.p50_ms, found.p99_ms, found.worst_ms),
            (Some(1.0), Some(4.0), Some(9.5))
        );
        assert_eq!(
            found.classes,
            [(Some(1.0), 90), (Some(2.0), 8), (Some(4.0), 2), (None, 0)]
        );
        assert_eq!(parse("").p50_ms, None);
    }
}
