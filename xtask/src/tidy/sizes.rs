//! The largest files and functions, for a look; nothing fails on them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

const SHOWN: usize = 5;
/// The length to aim under; the count of longer functions is printed.
const LONG_FUNCTION: usize = 70;

pub(crate) fn print(files: &[PathBuf], root: &Path) -> Result<()> {
    let mut lengths = vec![];
    let mut functions = vec![];
    for path in files {
        let text = fs::read_to_string(path)?;
        let shown = path.strip_prefix(root).unwrap_or(path).display().to_string();
        functions.extend(
            function_lengths(&text)
                .into_iter()
                .map(|(n, l)| (l, format!("{shown}: {n}"))),
        );
        lengths.push((text.lines().count(), shown));
    }
    lengths.sort();
    functions.sort();
    let at = |percent: usize| lengths.get(lengths.len() * percent / 100).map_or(0, |(n, _)| *n);
    let long = functions.iter().filter(|(n, _)| *n > LONG_FUNCTION).count();
    println!(
        "files: {}, lines at the median {}, at the 90th percentile {}; functions: {}, over {LONG_FUNCTION} lines {long}",
        lengths.len(),
        at(50),
        at(90),
        functions.len()
    );
    for (lines, name) in lengths.iter().rev().take(SHOWN) {
        println!("  {lines:5} lines  {name}");
    }
    for (lines, name) in functions.iter().rev().take(SHOWN) {
        println!("  {lines:5} lines  {name}");
    }
    Ok(())
}

/// Name and length of every function, by rustfmt's layout (the closing brace stands at the
/// indentation of the line with `fn`).
pub(crate) fn function_lengths(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = vec![];
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let Some(name) = function_name(trimmed) else {
            continue;
        };
        let closing = format!("{}}}", " ".repeat(line.len() - trimmed.len()));
        let body = lines
            .iter()
            .skip(start)
            .position(|l| *l == closing || l.trim_end().ends_with(");"));
        if let Some(length) = lines.iter().skip(start).position(|l| *l == closing).or(body) {
            found.push((name, length + 1));
        }
    }
    found
}

fn function_name(line: &str) -> Option<String> {
    let (before, after) = line.split_once("fn ")?;
    let words = ["pub", "pub(crate)", "pub(super)", "async", "const", "unsafe"];
    if !before.split_whitespace().all(|w| words.contains(&w)) || !line.trim_end().ends_with(['{', '(']) {
        return None;
    }
    let name: String = after
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    (!name.is_empty()).then_some(name)
}
