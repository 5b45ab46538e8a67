//! `hearth chainfire status`.

use anyhow::{Context, Result};
use chainfire_client::MemberStatus;
use futures::future::join_all;
use hearth_types::ErrorKind;
use serde::Serialize;

use super::{Access, LIMIT};
use crate::failure::fail;
use crate::output::{Format, Output, Row, note};

/// Prefix of the gauges of log syncs among a member's metrics.
const FSYNC: &str = "chainfire_fsync_";
/// Classes of the histogram of all log syncs, as etcd's dashboards know it.
const BUCKET: &str = "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"";
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

/// How long its last 128 log syncs took; nothing where its metrics could not be had.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Fsync {
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    worst_ms: Option<f64>,
    /// All log syncs since the start: upper end in milliseconds (none: no end) and how many took that long.
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
    let classes = &row.fsync.classes;
    let most = classes.iter().map(|(_, count)| *count).max().unwrap_or(0);
    if most == 0 {
        return;
    }
    note(format!("\nlog syncs of {} since its start:", row.name));
    for (end, count) in classes.iter().filter(|(_, count)| *count > 0) {
        let end = end.map_or_else(|| "     more".to_owned(), |ms| format!("{ms:>8.3} ms"));
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

/// Reads the gauges out of Prometheus' text.
fn parse(text: &str) -> Fsync {
    let gauge = |name: &str| {
        let line = text
            .lines()
            .filter_map(|line| line.strip_prefix(FSYNC))
            .find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().parse::<f64>().ok()? / 1000.0)
    };
    Fsync {
        p50_ms: gauge("p50_us "),
        p99_ms: gauge("p99_us "),
        worst_ms: gauge("worst_us "),
        classes: classes(text),
    }
}

/// The histogram, whose counts in the text include those of all smaller classes.
fn classes(text: &str) -> Vec<(Option<f64>, u64)> {
    let mut below = 0;
    text.lines()
        .filter_map(|line| line.strip_prefix(BUCKET)?.split_once("\"}"))
        .map(|(end, count)| {
            let count = count.trim().parse::<u64>().unwrap_or(below);
            let end = end.parse::<f64>().ok().filter(|end| end.is_finite());
            let own = count.saturating_sub(below);
            below = count;
            (end.map(|seconds| seconds * 1000.0), own)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_come_out_of_the_metrics() {
        let text = "# TYPE chainfire_fsync_p50_us gauge\n\
             chainfire_fsync_p50_us 1000\n\
             chainfire_fsync_p99_us 4250\n\
             chainfire_fsync_worst_us 9500\n\
             etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.001\"} 90\n\
             etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.002\"} 98\n\
             etcd_disk_wal_fsync_duration_seconds_bucket{le=\"+Inf\"} 100\n";
        let expected = Fsync {
            p50_ms: Some(1.0),
            p99_ms: Some(4.25),
            worst_ms: Some(9.5),
            classes: vec![(Some(1.0), 90), (Some(2.0), 8), (None, 2)],
        };
        assert_eq!(parse(text), expected);
        assert_eq!(parse(""), Fsync::default());
    }
}
