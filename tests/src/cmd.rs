//! Runs one program under a time limit and keeps what it printed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Limit of a program for which none was given.
const LIMIT: Duration = Duration::from_secs(30);

/// A program to run.
#[derive(Debug)]
pub struct Cmd {
    command: Command,
    limit: Duration,
    stdin: Vec<u8>,
}

/// What a program that has ended left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub shown: String,
    /// Exit code; a program that a signal ended has none.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Cmd {
    /// The program `program` of `PATH`, or of a path.
    pub fn new(program: impl AsRef<OsStr>) -> Cmd {
        Cmd {
            command: Command::new(program),
            limit: LIMIT,
            stdin: vec![],
        }
    }

    /// Words separated by white space.
    #[must_use]
    pub fn words(mut self, words: &str) -> Cmd {
        self.command.args(words.split_whitespace());
        self
    }

    /// One argument as it is.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Cmd {
        self.command.arg(arg);
        self
    }

    /// One variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Cmd {
        self.command.env(name, value);
        self
    }

    /// The folder it runs in.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Cmd {
        self.command.current_dir(dir);
        self
    }

    /// Bytes for its standard input, which is empty otherwise.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Cmd {
        self.stdin = bytes.into();
        self
    }

    /// How long it may take, in seconds.
    #[must_use]
    pub fn limit_s(mut self, seconds: u64) -> Cmd {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// The command itself, for a program that runs on.
    #[must_use]
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Runs it to its end. Files take its output, not pipes: a daemon that it leaves behind may keep them open.
    ///
    /// # Errors
    /// When it cannot be started, or is still running at the limit (it is killed then).
    pub fn run(mut self) -> Result<Output> {
        let shown = self.shown();
        let (mut stdin, mut stdout, mut stderr) = (scratch()?, scratch()?, scratch()?);
        stdin.write_all(&self.stdin)?;
        stdin.rewind()?;
        let mut child = self
            .command
            .stdin(Stdio::from(stdin))
            .stdout(stdout.try_clone()?)
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot run `{shown}`"))?;
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if begin.elapsed() > self.limit {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let output = Output {
            shown,
            code: status.and_then(|s| s.code()),
            stdout: text_of(&mut stdout)?,
            stderr: text_of(&mut stderr)?,
        };
        if status.is_none() {
            bail!("no end after {:?}: {output}", self.limit);
        }
        Ok(output)
    }

    /// Runs it to its end and expects success.
    ///
    /// # Errors
    /// As [`Cmd::run`], and when its exit code is not 0.
    pub fn ok(self) -> Result<Output> {
        let output = self.run()?;
        ensure!(output.code == Some(0), "{output}");
        Ok(output)
    }

    /// Runs it to its end and expects a refusal: a code other than 0 and a message.
    ///
    /// # Errors
    /// As [`Cmd::run`], and when it succeeded or said nothing.
    pub fn refused(self) -> Result<Output> {
        let output = self.run()?;
        ensure!(
            matches!(output.code, Some(code) if code != 0),
            "should have failed: {output}"
        );
        ensure!(
            !output.stderr.trim().is_empty(),
            "failed without a word: {output}"
        );
        Ok(output)
    }

    fn shown(&self) -> String {
        let mut words = vec![self.command.get_program().to_string_lossy()];
        words.extend(self.command.get_args().map(OsStr::to_string_lossy));
        words.join(" ")
    }
}

impl Output {
    /// Standard output as JSON.
    ///
    /// # Errors
    /// When it is not.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("not JSON: {self}"))
    }

    /// Checks that each of `words` stands in what it printed (either way), in any case.
    ///
    /// # Errors
    /// Names the first that does not.
    pub fn says(&self, words: &[&str]) -> Result<&Output> {
        let all = format!("{}\n{}", self.stdout, self.stderr).to_lowercase();
        for word in words {
            ensure!(
                all.contains(&word.to_lowercase()),
                "does not say `{word}`: {self}"
            );
        }
        Ok(self)
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = self
            .code
            .map_or_else(|| "killed".to_owned(), |c| format!("code {c}"));
        write!(
            f,
            "`{}` ({code})\n--- stdout\n{}\n--- stderr\n{}",
            self.shown,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

fn scratch() -> Result<File> {
    tempfile::tempfile().context("cannot make a file for a program's output")
}

fn text_of(file: &mut File) -> Result<String> {
    let mut bytes = vec![];
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
