//! `cargo xtask tidy`: the house's invariants 1 to 3, manifests, headers, and a look at sizes.
//!
//! The checks are functions from text (metadata JSON, manifests, sources) to findings, so that the
//! tests can feed them fixtures that break one invariant each.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::ci::root;

mod layers;
mod manifests;
mod sizes;
mod sources;
#[cfg(test)]
mod tests;

/// One broken rule, as it is shown.
pub(crate) type Finding = String;

pub(crate) fn run() -> Result<ExitCode> {
    let root = root();
    let mut findings = vec![];
    let packages = layers::parse(&metadata(&root)?)?;
    findings.extend(layers::check(&packages));
    let workspace = fs::read_to_string(root.join("Cargo.toml"))?;
    let dependencies = fs::read_to_string(root.join("docs/dependencies.md")).unwrap_or_default();
    findings.extend(manifests::undocumented(&workspace, &dependencies)?);
    for package in &packages {
        let text = fs::read_to_string(&package.manifest)?;
        findings.extend(manifests::check(&package.name, &text)?);
        check_sources(package, &root, &mut findings)?;
    }
    sizes::print(&rust_files(&root)?, &root)?;
    for finding in &findings {
        println!("tidy: {finding}");
    }
    println!("tidy: {} crates, {} findings", packages.len(), findings.len());
    Ok(if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn check_sources(package: &layers::Package, root: &Path, findings: &mut Vec<Finding>) -> Result<()> {
    let folder = package.manifest.parent().context("a manifest lies in a folder")?;
    let lib = folder.join("src/lib.rs");
    if lib.exists() {
        findings.extend(sources::header(&package.name, &fs::read_to_string(&lib)?));
    }
    for path in rust_files(folder)? {
        let text = fs::read_to_string(&path)?;
        let shown = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        findings.extend(sources::unowned(&shown, &text));
        let in_src = path.starts_with(folder.join("src"));
        if layers::is_pure_core(&package.name) && in_src && !sources::is_test_file(&path) {
            findings.extend(sources::impure(&shown, &text));
        }
    }
    Ok(())
}

fn metadata(root: &Path) -> Result<String> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// All `.rs` files below `folder`, sorted; build output is left out.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![];
    let mut open = vec![folder.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    open.push(path);
                }
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
