//! `cargo xtask mutants`: does the comparison with other name servers find planted bugs?
//!
//! Each bug is a change of one place of FlashDNS's answer code, made in a copy of its crate below
//! `target/mutants`; the differential test must fail there, and must pass without a bug. It needs NSD, Knot
//! or BIND, and takes a few seconds for each bug. It is not a part of `ci`: what it checks is the test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::ci::root;

const CRATE: &str = "crates/flashdns/flashdns-core";
/// What its tests are built from beside it.
const BESIDE: &[&str] = &["crates/base/test-ports"];
/// What a comparison that found something says.
const FOUND: &str = "unexplained differences";
const COMPARED: &str = "answers of";

/// A bug: what it does, the file below `src`, the text there, and what is put in its place.
type Bug = (&'static str, &'static str, &'static str, &'static str);

const BUGS: &[Bug] = &[
    (
        "the wildcard is looked for at the apex, not at the closest encloser",
        "answer.rs",
        "step.lower().get(step.walk.encloser..)?",
        "step.lower().get(step.apex..)?",
    ),
    (
        "an empty non-terminal does not exist",
        "answer.rs",
        "let node = step.walk.exact.or_else(|| self.wildcard(step));",
        "let node = step.walk.exact.filter(|node| node.sets().next().is_some());\n        \
         let node = node.or_else(|| self.wildcard(step));",
    ),
    (
        "DS at the cut is answered with a referral",
        "answer.rs",
        "&& !(asks_ds && start == 0)",
        "&& (start != 0 || !asks_ds || start == 0)",
    ),
    (
        "a negative answer has the SOA's own time to live",
        "answer.rs",
        "soa.ttl_s.min(minimum)",
        "soa.ttl_s.max(minimum)",
    ),
    (
        "a referral has no glue",
        "answer.rs",
        "if self.addresses(step, servers, Some(start)) {",
        "if start < MAX_NAME {",
    ),
    (
        "a name that became too long is not reported",
        "answer.rs",
        "rcode::YXDOMAIN",
        "rcode::NOERROR",
    ),
    (
        "a question for CNAME goes on behind a DNAME",
        "answer.rs",
        "self.question.rtype == Rtype::CNAME;",
        "self.question.rtype == Rtype::SOA;",
    ),
    (
        "the deepest cut counts, not the topmost",
        "tree.rs",
        "} else if walk.zone.is_some()\n                && walk.cut.is_none()",
        "} else if walk.zone.is_some()",
    ),
    (
        "a DNAME redirects its own name",
        "tree.rs",
        "if node.redirects() && start > 0 &&",
        "if node.redirects() &&",
    ),
];

/// Runs the comparison without a bug and with each.
pub(crate) fn run() -> Result<()> {
    let folder = root().join("target/mutants");
    let original = compare(&folder, None)?;
    ensure!(original.0, "the comparison fails without a bug:\n{}", original.1);
    ensure!(
        original.1.contains(COMPARED),
        "nothing was compared; install nsd, knot or bind9"
    );
    let mut missed = Vec::new();
    for bug in BUGS {
        let (passed, output) = compare(&folder, Some(bug))?;
        if passed {
            missed.push(bug.0);
        } else if !output.contains(FOUND) {
            bail!("`{}` does not build or fails otherwise:\n{output}", bug.0);
        }
        println!("{} {}", if passed { "MISSED" } else { "found " }, bug.0);
    }
    ensure!(missed.is_empty(), "{} planted bugs were not found", missed.len());
    println!("{} planted bugs, all found", BUGS.len());
    Ok(())
}

/// Builds the copy with a bug and runs the comparison: whether it passed, and what it said.
fn compare(folder: &Path, bug: Option<&Bug>) -> Result<(bool, String)> {
    prepare(folder, bug)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "test",
            "--offline",
            "-p",
            "flashdns-core",
            "--test",
            "differential",
            "--",
            "--nocapture",
        ])
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", root().join("target"))
        .env("SEED", "1")
        .env("FLASHDNS_ZONES", "400")
        .output()
        .context("starting cargo")?;
    let said = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

/// A workspace of the one crate.
fn prepare(folder: &Path, bug: Option<&Bug>) -> Result<()> {
    for path in BESIDE.iter().chain(&[CRATE]) {
        let to = folder.join(path);
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        copy(&root().join(path), &to)?;
    }
    let manifest = fs::read_to_string(root().join("Cargo.toml"))?;
    let members = "members = [\"crates/*/*\", \"bin/*\", \"tests\", \"xtask\"]";
    ensure!(
        manifest.contains(members),
        "the root manifest names its members otherwise"
    );
    let manifest = manifest.replace(members, &format!("members = [\"{CRATE}\"]"));
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock"))?;
    if let Some((name, file, before, after)) = bug {
        let path = folder.join(CRATE).join("src").join(file);
        let code = fs::read_to_string(&path)?;
        let places = code.matches(before).count();
        ensure!(
            places == 1,
            "`{name}` has {places} places in {file}; mend its entry"
        );
        fs::write(path, code.replace(before, after))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target: PathBuf = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
