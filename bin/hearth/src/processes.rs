//! Processes of this machine: by pid file, by port, by what they were started with.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

/// A process: its pid and start time (pids are used again).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) pid: u32,
    start: u64,
}

impl Known {
    fn now(pid: u32) -> Option<Known> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        Some(Known {
            pid,
            start: fields.nth(18)?.parse().ok()?,
        })
    }

    /// The living process that a pid file of the supervisor names.
    pub(crate) fn from_file(path: &Path) -> Option<Known> {
        let text = fs::read_to_string(path).ok()?;
        let (pid, start) = text.trim().split_once(' ')?;
        let known = Known {
            pid: pid.parse().ok()?,
            start: start.parse().ok()?,
        };
        known.is_alive().then_some(known)
    }

    pub(crate) fn is_alive(self) -> bool {
        Known::now(self.pid) == Some(self)
    }

    /// Seconds since it was started.
    pub(crate) fn age_s(self) -> Option<u64> {
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let up: f64 = uptime.split(' ').next()?.parse().ok()?;
        // The kernel counts in hundredths of a second for user space, whatever its own tick is.
        let started = std::time::Duration::from_millis(self.start.checked_mul(10)?).as_secs_f64();
        Some(
            std::time::Duration::try_from_secs_f64(up - started)
                .ok()?
                .as_secs(),
        )
    }

    /// Memory that it keeps in RAM, in bytes.
    pub(crate) fn resident_bytes(self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
    }

    pub(crate) fn signal(self, signal: nix::sys::signal::Signal) {
        if self.is_alive()
            && let Ok(pid) = i32::try_from(self.pid)
        {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
        }
    }
}

/// Whether somebody listens on this loopback port, and who, as far as we may see.
pub(crate) fn holder_of(port: u16) -> Option<String> {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => None,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Some(listener_name(port).unwrap_or_else(|| "a process of another user".to_owned()))
        }
        Err(error) => Some(format!("nobody, but the system refuses it: {error}")),
    }
}

/// Program and pid of the listener: from the socket's inode in /proc/net/tcp to an open file.
fn listener_name(port: u16) -> Option<String> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let text = fs::read_to_string(table).ok()?;
        text.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (_, at) = fields.get(1)?.rsplit_once(':')?;
            let listens = *fields.get(3)? == "0A" && u16::from_str_radix(at, 16).ok()? == port;
            listens.then(|| fields.get(9).map(|i| (*i).to_owned()))?
        })
    })?;
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(files) = fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        let holds = |f: fs::DirEntry| fs::read_link(f.path()).is_ok_and(|l| l.to_string_lossy() == wanted);
        if files.flatten().any(holds) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some(format!("`{}` (pid {pid})", name.trim()));
        }
    }
    None
}

/// Pids of processes whose command line names a file below `folder`: the guests of its agents.
pub(crate) fn that_use(folder: &Path) -> Vec<u32> {
    let needle = format!("{}/", folder.display());
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else {
        return vec![];
    };
    let pids = entries
        .flatten()
        .filter_map(|e| e.file_name().to_string_lossy().parse::<u32>().ok());
    pids.filter(|pid| *pid != own)
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                let line = String::from_utf8_lossy(&line).into_owned();
                line.starts_with("qemu")
                    || line.contains("/qemu-")
                    || line.contains("hearthd") && line.contains(&needle)
            }) && fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&needle))
        })
        .filter(|pid| Known::now(*pid).is_some())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_holder_of_a_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let holder = holder_of(port).unwrap();
        assert!(
            holder.contains(&format!("pid {}", std::process::id())),
            "{holder}"
        );
        drop(listener);
        assert_eq!(holder_of(port), None);
    }

    #[test]
    fn knows_itself() {
        let own = Known::now(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(own.age_s().unwrap() < 3600);
        assert!(own.resident_bytes().unwrap() > 1 << 20);
    }
}
