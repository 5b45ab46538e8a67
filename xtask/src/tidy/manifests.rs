//! Manifests: lints and versions come from the workspace, every foreign crate is explained.

use anyhow::{Context, Result};
use toml::Table;

use super::Finding;

/// A crate's own Cargo.toml.
pub(crate) fn check(name: &str, manifest: &str) -> Result<Vec<Finding>> {
    let table: Table = toml::from_str(manifest).with_context(|| format!("Cargo.toml of {name}"))?;
    let mut findings = vec![];
    let lints = table
        .get("lints")
        .and_then(|l| l.get("workspace"))
        .and_then(toml::Value::as_bool);
    if lints != Some(true) {
        findings.push(format!("`{name}`: Cargo.toml lacks `[lints] workspace = true`"));
    }
    for field in ["version", "edition", "license"] {
        let inherited = table
            .get("package")
            .and_then(|p| p.get(field))
            .and_then(|v| v.get("workspace"));
        if inherited.and_then(toml::Value::as_bool) != Some(true) {
            findings.push(format!("`{name}`: package.{field} is not the workspace's"));
        }
    }
    let mut sections = vec![&table];
    if let Some(targets) = table.get("target").and_then(toml::Value::as_table) {
        sections.extend(targets.values().filter_map(toml::Value::as_table));
    }
    for section in sections {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = section.get(kind).and_then(toml::Value::as_table) else {
                continue;
            };
            for (dependency, value) in dependencies {
                if value.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                    findings.push(format!(
                        "`{name}`: {kind}.{dependency} states its own version; versions stand in the root Cargo.toml"
                    ));
                }
            }
        }
    }
    Ok(findings)
}

/// Foreign crates of the root manifest without a line in docs/dependencies.md.
pub(crate) fn undocumented(workspace: &str, document: &str) -> Result<Vec<Finding>> {
    let table: Table = toml::from_str(workspace).context("root Cargo.toml")?;
    let dependencies = table
        .get("workspace")
        .and_then(|w| w.get("dependencies"))
        .and_then(toml::Value::as_table)
        .context("the root Cargo.toml has no [workspace.dependencies]")?;
    let mut findings = vec![];
    for (name, value) in dependencies {
        if value.get("git").is_some() {
            findings.push(format!(
                "dependency `{name}` comes from git: only registry releases are allowed"
            ));
        }
        let ours = value.get("path").is_some();
        if !ours
            && !document
                .lines()
                .any(|line| line.starts_with('|') && line.contains(&format!("`{name}`")))
        {
            findings.push(format!("dependency `{name}` has no line in docs/dependencies.md"));
        }
    }
    Ok(findings)
}
