//! What the machine has, read from the kernel's files.

use std::path::Path;

use plasmavmc_client::agent::NumaCell;

/// Most NUMA cells that are told of.
const MAX_CELLS: u32 = 64;

/// The machine's memory in MiB; 0 when the kernel does not say.
pub(crate) fn memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kib_of(&text, "MemTotal:").map_or(0, |kib| kib >> 10)
}

/// Size of the file system under a folder.
pub(crate) fn disk_bytes(path: &Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |s| s.blocks().saturating_mul(s.fragment_size()))
}

/// The NUMA cells by number, in a folder such as `/sys/devices/system/node`. None when there is but one: it is the
/// machine itself.
pub(crate) fn cells(folder: &Path) -> Vec<NumaCell> {
    let cell = |number: u32| {
        let read = |file: &str| std::fs::read_to_string(folder.join(format!("node{number}/{file}"))).ok();
        Some(NumaCell {
            vcpus: cpus_in(&read("cpulist")?)?,
            memory_bytes: kib_of(&read("meminfo")?, "MemTotal:")? << 10,
        })
    };
    let cells: Vec<NumaCell> = (0..MAX_CELLS).map_while(cell).collect();
    if cells.len() < 2 { Vec::new() } else { cells }
}

/// Number of CPUs in a list such as `0-3,8`.
fn cpus_in(list: &str) -> Option<u32> {
    let parts = list.trim().split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            last.checked_sub(first)?.checked_add(1)
        })
        .sum()
}

/// The number before `kB` of the line that has this word.
fn kib_of(text: &str, word: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains(word))?;
    line.trim()
        .strip_suffix("kB")?
        .split_whitespace()
        .last()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_read_as_the_kernel_writes_them() {
        let folder = tempfile::tempdir().unwrap();
        assert!(cells(folder.path()).is_empty());
        for (number, cpus) in ["0-3,8\n", "4-7\n"].into_iter().enumerate() {
            let cell = folder.path().join(format!("node{number}"));
            std::fs::create_dir(&cell).unwrap();
            std::fs::write(cell.join("cpulist"), cpus).unwrap();
            let memory = format!("Node {number} MemTotal:       2048 kB\nNode {number} MemFree: 1 kB\n");
            std::fs::write(cell.join("meminfo"), memory).unwrap();
            let found = cells(folder.path());
            if number == 0 {
                assert!(found.is_empty(), "one cell is the machine itself");
            } else {
                let found: Vec<_> = found.iter().map(|c| (c.vcpus, c.memory_bytes)).collect();
                assert_eq!(found, [(5, 2 << 20), (4, 2 << 20)]);
            }
        }
        assert_eq!(cpus_in("3-1"), None);
        assert!(memory_mib() > 0);
    }
}
