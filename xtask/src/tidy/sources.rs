//! Sources: pure cores touch nothing of the machine, crates explain themselves, no orphaned to-dos.

use std::path::Path;

use super::Finding;

/// What a pure core's code may not name. Address types (`std::net::Ipv4Addr`) are plain data.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "ToSocketAddrs",
    "UnixStream",
    "SystemTime::now",
    "Instant::now",
    "now_utc()",
    "now_local()",
    "Utc::now",
    "Uuid::now_v7",
    "Uuid::new_v4",
    "rand::",
    "OsRng",
    "getrandom",
    "tokio::",
    "async fn",
];

/// Spelled apart so that this file does not find itself.
const UNDONE: &str = concat!("TO", "DO");

pub(crate) fn impure(shown: &str, text: &str) -> Vec<Finding> {
    let mut findings = vec![];
    for (number, line) in without_tests(text) {
        let code = line.split("//").next().unwrap_or("");
        for word in IMPURE {
            if code.contains(word) {
                findings.push(format!(
                    "{shown}:{number}: `{word}` in a pure core (invariant 2): make it an input of the step"
                ));
            }
        }
    }
    findings
}

/// Lines of `text` with their numbers, without blocks that stand under `#[cfg(test)]`.
fn without_tests(text: &str) -> Vec<(usize, &str)> {
    let mut kept = vec![];
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push((index + 1, line));
            continue;
        }
        // rustfmt's layout: the item ends with `;` on its line, or with a `}` at its indentation.
        let indent = line.len() - line.trim_start().len();
        let closing = format!("{}}}", " ".repeat(indent));
        for (_, inner) in lines.by_ref() {
            let attribute = inner.trim_start().starts_with("#[");
            if inner == closing || (!attribute && inner.trim_end().ends_with(';') && !inner.starts_with(' '))
            {
                break;
            }
        }
    }
    kept
}

pub(crate) fn is_test_file(path: &Path) -> bool {
    path.components().any(|part| {
        let part = part.as_os_str().to_string_lossy();
        part == "tests" || part == "tests.rs" || part.ends_with("_tests.rs")
    })
}

/// lib.rs opens with: what it is, what it does not know, entry points, invariants.
pub(crate) fn header(name: &str, lib: &str) -> Vec<Finding> {
    let text: String = lib
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .map(|line| line.trim_start_matches("//!").to_lowercase() + "\n")
        .collect();
    let mut missing = vec![];
    if text.lines().next().is_none_or(|line| line.trim().len() < 20) {
        missing.push("a first line that says what it is");
    }
    if !(text.contains("not know")
        || text.contains("knows nothing")
        || text.contains("nothing of")
        || text.contains("does not"))
    {
        missing.push("what it does not know");
    }
    if !text.contains("entry point") {
        missing.push("its entry points");
    }
    if !text.contains("invariant") {
        missing.push("its invariants");
    }
    if missing.is_empty() {
        return vec![];
    }
    vec![format!(
        "`{name}`: the header of lib.rs lacks {}",
        missing.join(", ")
    )]
}

/// A to-do belongs to an issue: the word is followed by `(#NUMBER)`.
pub(crate) fn unowned(shown: &str, text: &str) -> Vec<Finding> {
    let mut findings = vec![];
    for (index, line) in text.lines().enumerate() {
        let Some((_, rest)) = line.split_once(UNDONE) else {
            continue;
        };
        let owned = rest
            .strip_prefix("(#")
            .is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()));
        if !owned {
            findings.push(format!(
                "{shown}:{}: {UNDONE} without an issue number, as {UNDONE}(#12)",
                index + 1
            ));
        }
    }
    findings
}
