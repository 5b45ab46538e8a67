//! Data to standard output (table, JSON or YAML), messages and progress to standard error.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
    /// For programs
    Yaml,
}

/// Where data goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) format: Format,
}

/// One row for people; the value itself is what programs get.
pub(crate) trait Row {
    const HEADER: &'static [&'static str];
    fn cells(&self) -> Vec<String>;
}

impl Output {
    /// A listing.
    pub(crate) fn list<T: Serialize + Row>(self, items: &[T]) -> Result<()> {
        match self.format {
            Format::Table => print(&table(T::HEADER, items.iter().map(Row::cells))),
            _ => self.value(items),
        }
    }

    /// One thing: for people, names and values below one another.
    pub(crate) fn one<T: Serialize + ?Sized>(self, item: &T, people: &[(&str, String)]) -> Result<()> {
        if self.format != Format::Table {
            return self.value(item);
        }
        let width = people.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for (name, value) in people.iter().filter(|(_, value)| !value.is_empty()) {
            text.push_str(&format!("{name:<width$}  {value}\n"));
        }
        print(text.trim_end())
    }

    /// A value for programs.
    fn value<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        match self.format {
            Format::Yaml => {
                let text = serde_saphyr::to_string(&value).context("cannot write YAML")?;
                print(text.trim_end())
            }
            _ => print(&serde_json::to_string_pretty(value)?),
        }
    }
}

/// A line of data. A reader that went away (`hearth vm list | head -1`) is not an error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// Aligned columns without lines: easy to read, easy to cut.
pub(crate) fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut all = vec![header.iter().map(|h| h.to_uppercase()).collect::<Vec<_>>()];
    all.extend(rows);
    let width = |column: usize| {
        all.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A message for people.
pub(crate) fn note(text: impl AsRef<str>) {
    eprintln!("{}", text.as_ref());
}

/// Shows what is being waited for: a spinner on a terminal, a line per change elsewhere.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    pub(crate) fn new() -> Progress {
        let plain = !std::io::stderr().is_terminal() || std::env::var_os("NO_COLOR").is_some();
        let bar = (!plain).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Progress {
            bar,
            last: String::new(),
        }
    }

    /// What happens now.
    pub(crate) fn show(&mut self, text: impl Into<String>) {
        let text = text.into();
        if text == self.last {
            return;
        }
        match &self.bar {
            Some(bar) => bar.set_message(text.clone()),
            None => note(&text),
        }
        self.last = text;
    }

    /// A line that stays.
    pub(crate) fn done(&self, text: impl AsRef<str>) {
        match &self.bar {
            Some(bar) => bar.println(text.as_ref()),
            None => note(text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `256 MiB`: bytes in the largest unit that they are a whole number of.
pub(crate) fn bytes(n: u64) -> String {
    for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if n >= 1 << shift && n.trailing_zeros() >= shift {
            return format!("{} {unit}", n >> shift);
        }
    }
    if n >= 10 << 20 {
        format!("{} MiB", n >> 20)
    } else {
        format!("{n} B")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_printed_in_whole_units() {
        assert_eq!(bytes(256 << 20), "256 MiB");
        assert_eq!(bytes(2 << 30), "2 GiB");
        assert_eq!(bytes(100), "100 B");
        assert_eq!(bytes((15 << 20) + 7), "15 MiB");
    }

    #[test]
    fn tables_have_no_trailing_blanks() {
        let text = table(
            &["name", "state"],
            [vec!["a".to_owned(), String::new()]].into_iter(),
        );
        assert!(text.lines().all(|l| l.trim_end() == l), "{text:?}");
        assert!(text.contains("NAME"));
    }
}
