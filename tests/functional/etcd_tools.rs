//! Foreign etcd tools against the three members: Debian's `etcdctl` and the Rust crate `etcd-client`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hearth_tests::store::{self, MEMBERS, etcdctl};
use hearth_tests::{Cmd, Platform, root, wait};
use serde_json::Value;

#[test]
fn etcdctl_and_etcd_client_work_unchanged() -> Result<()> {
    // Built before the sandbox is entered: cargo may need the network.
    let client = rust_client()?;
    Platform::scenario(&[store::NEED], |platform| {
        platform.up("--no-first-vm")?;
        put_get_delete()?;
        transaction()?;
        watch()?;
        lease()?;
        members()?;
        reserved_prefixes_are_refused()?;
        if let Some(client) = &client {
            let output = Cmd::new(client).arg(MEMBERS.join(",")).limit_s(90).ok()?;
            ensure!(output.stdout.lines().count() == 13, "{output}");
        }
        platform.is_healthy(30)
    })
}

fn put_get_delete() -> Result<()> {
    etcdctl().words("put /tour/a one").ok()?.says(&["OK"])?;
    let revision = revision_of("/tour/a")?;
    etcdctl().words("put /tour/a two").ok()?;
    etcdctl().words("put /tour/b three").ok()?;
    let got = etcdctl().words("get --prefix /tour/").ok()?;
    ensure!(got.stdout == "/tour/a\ntwo\n/tour/b\nthree\n", "{got}");
    let old = etcdctl()
        .words(&format!("get /tour/a --rev={revision} --print-value-only"))
        .ok()?;
    ensure!(old.stdout.trim() == "one", "{old}");
    for member in MEMBERS {
        let got = store::at(&[member])
            .words("get /tour/b --print-value-only")
            .ok()?;
        ensure!(got.stdout.trim() == "three", "{got}");
    }
    let limited = etcdctl()
        .words("get --prefix /tour/ --limit=1 --keys-only")
        .ok()?;
    ensure!(limited.stdout.trim() == "/tour/a", "{limited}");
    let deleted = etcdctl().words("del --prefix /tour/").ok()?;
    ensure!(deleted.stdout.trim() == "2", "{deleted}");
    ensure!(store::keys("/tour/")?.is_empty());
    etcdctl()
        .words("get /tour/a --rev=999999999")
        .refused()?
        .says(&["etcdserver: mvcc: required revision is a future revision"])?;
    Ok(())
}

fn revision_of(key: &str) -> Result<i64> {
    let got = etcdctl().words("get -w json").arg(key).ok()?.json()?;
    got["kvs"][0]["mod_revision"].as_i64().context("no mod_revision")
}

fn transaction() -> Result<()> {
    etcdctl().words("put /tour/t old").ok()?;
    let guarded = "value(\"/tour/t\") = \"old\"\n\nput /tour/t new\nget /tour/t\n\nget /tour/none\n\n";
    let first = etcdctl().words("txn").stdin(guarded).ok()?;
    ensure!(
        first.stdout.contains("SUCCESS") && first.stdout.contains("/tour/t\nnew"),
        "{first}"
    );
    let second = etcdctl().words("txn").stdin(guarded).ok()?;
    ensure!(second.stdout.contains("FAILURE"), "{second}");
    etcdctl().words("del /tour/t").ok().map(drop)
}

fn watch() -> Result<()> {
    etcdctl().words("put /tour/w 1").ok()?;
    let from = revision_of("/tour/w")?;
    let mut watch = Running::start(etcdctl().words(&format!("watch --prefix --rev={from} /tour/w")))?;
    // One change was before the watch began, two come after.
    etcdctl().words("put /tour/w 2").ok()?;
    etcdctl().words("del /tour/w").ok()?;
    let lines = watch.lines(8)?;
    ensure!(
        lines == ["PUT", "/tour/w", "1", "PUT", "/tour/w", "2", "DELETE", "/tour/w"],
        "{lines:?}"
    );
    Ok(())
}

fn lease() -> Result<()> {
    let id = grant(60)?;
    etcdctl().words(&format!("put /tour/l x --lease={id}")).ok()?;
    let kept = etcdctl().words(&format!("lease keep-alive --once {id}")).ok()?;
    kept.says(&["keepalived with TTL(60)"])?;
    etcdctl()
        .words(&format!("lease timetolive --keys {id}"))
        .ok()?
        .says(&["/tour/l", "granted with TTL(60s)"])?;
    etcdctl()
        .words(&format!("lease revoke {id}"))
        .ok()?
        .says(&["revoked"])?;
    ensure!(store::keys("/tour/l")?.is_empty(), "a revoked lease left its key");

    let short = grant(2)?;
    etcdctl().words(&format!("put /tour/l y --lease={short}")).ok()?;
    wait::until_ok("an unrenewed lease takes its key along", 15, || {
        ensure!(store::keys("/tour/l")?.is_empty(), "the key is still there");
        Ok(())
    })
}

fn grant(seconds: u32) -> Result<String> {
    let output = etcdctl().words(&format!("lease grant {seconds}")).ok()?;
    let id = output.stdout.split_whitespace().nth(1);
    Ok(id.with_context(|| format!("no lease id: {output}"))?.to_owned())
}

fn members() -> Result<()> {
    let list = etcdctl().words("member list -w json").ok()?.json()?;
    let members = list["members"].as_array().context("no members")?;
    ensure!(members.len() == 3, "{list}");
    let status = etcdctl().words("endpoint status -w json").ok()?.json()?;
    let all = status.as_array().context("no status")?;
    ensure!(all.len() == 3, "{status}");
    let field = |one: &Value, name: &str| one["Status"][name].as_u64();
    let leader = field(&all[0], "leader").context("no leader")?;
    for one in all {
        ensure!(field(one, "leader") == Some(leader), "two leaders: {status}");
        let version = one["Status"]["version"].as_str().unwrap_or_default();
        ensure!(version.starts_with("3."), "{status}");
    }
    etcdctl().words("endpoint health").ok().map(drop)
}

/// Plain text on loopback may read everything and write nothing that a service owns.
fn reserved_prefixes_are_refused() -> Result<()> {
    for key in ["/plasmavmc/v1/x", "/aegis/v1/x", "/flashdns/v1/x"] {
        let refused = etcdctl().words("put").arg(key).arg("x").refused()?;
        refused.says(&["permission denied"])?;
    }
    Ok(())
}

/// Builds `tests/compat/etcd-client`, which is a workspace of its own (its crate wants protoc).
fn rust_client() -> Result<Option<std::path::PathBuf>> {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("protoc").is_file()));
    let includes = Path::new("/usr/include/google/protobuf/empty.proto").is_file();
    if !(found && includes) {
        // The rest runs, but the test as a whole then counts as skipped.
        println!(
            "SKIPPED: the etcd-client crate needs protoc (apt-get install protobuf-compiler libprotobuf-dev)"
        );
        return Ok(None);
    }
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(3).context("no target folder")?.join("compat");
    Cmd::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .words("build --locked --quiet --manifest-path")
        .arg(root().join("tests/compat/etcd-client/Cargo.toml"))
        .env("CARGO_TARGET_DIR", &target)
        .limit_s(420)
        .ok()?;
    Ok(Some(target.join("debug/etcd-client-tour")))
}

/// A program that runs on, read line by line.
struct Running {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Running {
    fn start(command: Cmd) -> Result<Running> {
        let mut child = command.into_command().stdout(Stdio::piped()).spawn()?;
        let stdout = BufReader::new(child.stdout.take().context("no output")?);
        let (send, lines) = std::sync::mpsc::sync_channel(64);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Running { child, lines })
    }

    fn lines(&mut self, count: usize) -> Result<Vec<String>> {
        let mut all = vec![];
        while all.len() < count {
            let line = self.lines.recv_timeout(Duration::from_secs(10));
            all.push(line.with_context(|| format!("only {all:?}"))?);
        }
        Ok(all)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
