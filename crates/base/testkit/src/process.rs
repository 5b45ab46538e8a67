//! Real processes for black-box tests: started, watched, paused, killed; gone when the test ends.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Pause between two looks at something.
const POLL: Duration = Duration::from_millis(20);
/// Lines of a log shown with an error.
const LOG_LINES: usize = 40;

/// What went wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started or signalled.
    #[error("process `{name}`: {source}")]
    Io {
        /// Its name.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// It ended although it should run.
    #[error("process `{name}` ended ({status}); the end of its log:\n{log}")]
    Ended {
        /// Its name.
        name: String,
        /// How.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// Something did not happen in time.
    #[error("process `{name}`: {what} did not happen within {within:?}; the end of its log:\n{log}")]
    TimedOut {
        /// Its name.
        name: String,
        /// What was waited for.
        what: String,
        /// How long.
        within: Duration,
        /// The end of its log.
        log: String,
    },
}

/// A running process, with its output in a file. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, its output and errors appended to the file `log`.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Process, ProcessError> {
        let start = || -> io::Result<Child> {
            let out = File::options().create(true).append(true).open(log)?;
            let err = out.try_clone()?;
            command.stdin(Stdio::null()).stdout(out).stderr(err).spawn()
        };
        let mut start = start;
        let child = start().map_err(|source| ProcessError::Io {
            name: name.to_owned(),
            source,
        })?;
        Ok(Process {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log)
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines
            .get(lines.len().saturating_sub(LOG_LINES)..)
            .unwrap_or(&[])
            .join("\n")
    }

    fn io(&self, source: io::Error) -> ProcessError {
        ProcessError::Io {
            name: self.name.clone(),
            source,
        }
    }

    fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(0));
        kill(pid, signal).map_err(|e| self.io(e.into()))
    }

    /// How it ended, when it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        self.child.try_wait().map_err(|e| ProcessError::Io {
            name: self.name.clone(),
            source: e,
        })
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Result<ExitStatus, ProcessError> {
        let io = |e| ProcessError::Io {
            name: self.name.clone(),
            source: e,
        };
        self.child.kill().map_err(io)?;
        self.child.wait().map_err(io)
    }

    /// SIGSTOP: it stands still.
    pub fn pause(&self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGSTOP)
    }

    /// SIGCONT: it goes on.
    pub fn resume(&self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGCONT)
    }

    /// SIGTERM, and waits for the end. An error leaves it running.
    pub fn terminate(&mut self, within: Duration) -> Result<ExitStatus, ProcessError> {
        self.signal(Signal::SIGTERM)?;
        let mut ended = None;
        self.wait_until("its end", within, |p| {
            ended = p.ended()?;
            Ok(ended.is_some())
        })?;
        ended.ok_or_else(|| self.timed_out("its end", within))
    }

    /// Waits until it listens on `address`. Fails at once when it ends.
    pub fn wait_for_port(&mut self, address: SocketAddr, within: Duration) -> Result<(), ProcessError> {
        self.wait_until(&format!("listening on {address}"), within, |p| {
            if TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
                return Ok(true);
            }
            match p.ended()? {
                None => Ok(false),
                Some(status) => Err(ProcessError::Ended {
                    name: p.name.clone(),
                    status,
                    log: p.log_tail(),
                }),
            }
        })
    }

    /// Waits until its log contains `text`.
    pub fn wait_for_log(&mut self, text: &str, within: Duration) -> Result<(), ProcessError> {
        self.wait_until(&format!("`{text}` in its log"), within, |p| {
            Ok(fs::read_to_string(&p.log).is_ok_and(|log| log.contains(text)))
        })
    }

    fn wait_until(
        &mut self,
        what: &str,
        within: Duration,
        mut done: impl FnMut(&mut Process) -> Result<bool, ProcessError>,
    ) -> Result<(), ProcessError> {
        let deadline = Instant::now() + within;
        while !done(self)? {
            if Instant::now() >= deadline {
                return Err(self.timed_out(what, within));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    fn timed_out(&self, what: &str, within: Duration) -> ProcessError {
        ProcessError::TimedOut {
            name: self.name.clone(),
            what: what.to_owned(),
            within,
            log: self.log_tail(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs a short command to its end; kills it after `within`. Returns its exit status and its output.
pub fn run_bounded(
    name: &str,
    mut command: Command,
    within: Duration,
) -> Result<(ExitStatus, String), ProcessError> {
    let folder = tempfile::tempdir().map_err(|source| ProcessError::Io {
        name: name.to_owned(),
        source,
    })?;
    let log = folder.path().join("output");
    command.stdin(Stdio::null());
    let mut process = Process::spawn(name, command, &log)?;
    let mut status = None;
    process.wait_until("its end", within, |p| {
        status = p.ended()?;
        Ok(status.is_some())
    })?;
    let output = fs::read(&log)
        .map(|b| String::from_utf8_lossy(&b).into_owned())
        .unwrap_or_default();
    match status {
        Some(status) => Ok((status, output)),
        None => Err(process.timed_out("its end", within)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn state(pid: u32) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.trim_start().chars().next()
    }

    #[test]
    fn a_process_is_paused_resumed_and_killed() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Process::spawn(
            "sleeper",
            shell("echo ready; exec sleep 60"),
            &folder.path().join("log"),
        )
        .unwrap();
        process.wait_for_log("ready", Duration::from_secs(10)).unwrap();
        let reaches = |wanted: &dyn Fn(char) -> bool| {
            let deadline = Instant::now() + Duration::from_secs(10);
            while !state(process.pid()).is_some_and(wanted) {
                assert!(Instant::now() < deadline, "state {:?}", state(process.pid()));
                std::thread::sleep(POLL);
            }
        };
        process.pause().unwrap();
        reaches(&|s| s == 'T');
        process.resume().unwrap();
        reaches(&|s| s != 'T');
        assert!(!process.kill().unwrap().success());
        assert!(process.ended().unwrap().is_some());
    }

    #[test]
    fn an_early_end_shows_its_log_and_a_wait_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let port = test_ports::free_port().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port.port()));
        let mut early = Process::spawn("early", shell("echo no such file; exit 3"), &log).unwrap();
        let error = early
            .wait_for_port(address, Duration::from_secs(10))
            .unwrap_err()
            .to_string();
        assert!(error.contains("no such file") && error.contains('3'), "{error}");
        let mut never = Process::spawn("never", shell("exec sleep 60"), &log).unwrap();
        let error = never
            .wait_for_port(address, Duration::from_millis(100))
            .unwrap_err();
        assert!(matches!(error, ProcessError::TimedOut { .. }), "{error}");
        never.terminate(Duration::from_secs(10)).unwrap();
    }

    #[test]
    fn dropping_a_process_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::spawn("dropped", shell("exec sleep 60"), &folder.path().join("log")).unwrap();
        let pid = process.pid();
        drop(process);
        assert_eq!(state(pid), None);
    }

    #[test]
    fn a_bounded_command_gives_its_output_or_is_killed() {
        let (status, output) =
            run_bounded("echo", shell("echo hello; exit 2"), Duration::from_secs(10)).unwrap();
        assert_eq!((status.code(), output.as_str()), (Some(2), "hello\n"));
        let begin = Instant::now();
        run_bounded("sleep", shell("exec sleep 60"), Duration::from_millis(100)).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
}
