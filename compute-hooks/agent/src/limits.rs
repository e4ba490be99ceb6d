//! What one compute may use of its host: processes, memory, disk.
//!
//! ```text
//!  cgroup (version 2, or 1) ── memory, processes      where the host lets us make one
//!  prlimit in the sandbox ──── processes              everywhere; counted per user id, so per compute where `up` is root
//!  DiskWatch ───────────────── data directory         the agent looks, and ends the compute past the limit
//!  sizes of tmpfs ──────────── /tmp, /dev/shm         in a sandbox
//! ```
//!
//! When memory runs out, a compute's processes are the first that the kernel ends: their `oom_score_adj` says so.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ardent_api::compute::ComputeLimits;

use crate::error::ComputeError;

/// Processes beyond those that Postgres's own settings call for: shells, compilers, what `COPY ... PROGRAM` runs.
const PROCESSES_BESIDE: u64 = 512;
/// Between two looks at the disk; longer where a look takes long.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The file of a control group that lists its processes, and takes new ones.
const MEMBERS: &str = "cgroup.procs";
/// A look may take this part of the time.
const LOOK_SHARE: u32 = 20;

/// Most processes of a compute whose Postgres has so many connections and workers.
pub(crate) fn processes_max(connections_and_workers: u64) -> u64 {
    connections_and_workers + PROCESSES_BESIDE
}

/// A control group of one compute. Removed when dropped, if it is empty by then.
#[derive(Debug)]
pub(crate) struct ControlGroup {
    folders: Vec<PathBuf>,
}

impl ControlGroup {
    /// Makes the group, with what this host allows of it; `None`: nothing.
    pub(crate) fn create(name: &str, limits: &ComputeLimits, processes_max: u64) -> Option<ControlGroup> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mut folders = Vec::new();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let path = path.trim_start_matches('/');
            let wanted: &[(&str, Option<u64>)] = match controllers {
                "" => &[("memory.max", limits.memory_bytes), ("pids.max", Some(processes_max))],
                "memory" => &[("memory.limit_in_bytes", limits.memory_bytes)],
                "pids" => &[("pids.max", Some(processes_max))],
                _ => continue,
            };
            // Where version 1 has the controllers, version 2 may be mounted beside them.
            let roots = match controllers {
                "" => vec!["/sys/fs/cgroup".into(), "/sys/fs/cgroup/unified".into()],
                controllers => vec![Path::new("/sys/fs/cgroup").join(controllers)],
            };
            folders.extend(roots.iter().find_map(|root| make_group(&root.join(path), name, wanted)));
        }
        (!folders.is_empty()).then_some(ControlGroup { folders })
    }

    /// The files to write a process's id to.
    pub(crate) fn members(&self) -> Vec<PathBuf> {
        self.folders.iter().map(|folder| folder.join(MEMBERS)).collect()
    }
}

/// Makes a group below `parent`, if that is a group and the host lets us limit something in it.
fn make_group(parent: &Path, name: &str, wanted: &[(&str, Option<u64>)]) -> Option<PathBuf> {
    // A folder above the controllers' is an ordinary one, in which everything can be made and nothing is limited.
    parent.join(MEMBERS).is_file().then_some(())?;
    // Only version 2 has this file. Fails where the group has processes of its own and is not the root, or was not delegated to us.
    let _ = write_existing(&parent.join("cgroup.subtree_control"), "+memory +pids");
    let folder = parent.join(name);
    if fs::create_dir(&folder).is_err() && !folder.is_dir() {
        return None;
    }
    let set = |(file, value): &(&str, Option<u64>)| {
        value.is_some_and(|value| write_existing(&folder.join(file), &value.to_string()).is_ok())
    };
    if wanted.iter().filter(|limit| set(limit)).count() > 0 {
        return Some(folder);
    }
    let _ = fs::remove_dir(&folder);
    None
}

/// Writes to a file that the kernel shows; makes none.
fn write_existing(path: &Path, text: &str) -> std::io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        for folder in &self.folders {
            // Not empty yet: it costs next to nothing, and the compute's next start uses it again.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Watches how much of the disk a compute has taken.
#[derive(Debug)]
pub(crate) struct DiskWatch {
    folder: PathBuf,
    bytes_max: u64,
    pause: Duration,
}

impl DiskWatch {
    /// Without a limit of its own, a compute may fill half of what is free when it starts.
    pub(crate) fn new(folder: &Path, limits: &ComputeLimits) -> Self {
        let free = nix::sys::statvfs::statvfs(folder).map_or(u64::MAX, |stat| {
            #[allow(clippy::useless_conversion, reason = "the types differ between platforms")]
            u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size()))
        });
        let bytes_max = limits.disk_bytes.unwrap_or_else(|| used(folder).saturating_add(free / 2));
        DiskWatch { folder: folder.to_owned(), bytes_max, pause: LOOK_EVERY }
    }

    /// Returns when too much is used. Cancel-safe.
    pub(crate) async fn full(&mut self) -> ComputeError {
        loop {
            tokio::time::sleep(self.pause).await;
            let folder = self.folder.clone();
            let began = std::time::Instant::now();
            let Ok(used) = tokio::task::spawn_blocking(move || used(&folder)).await else { continue };
            self.pause = LOOK_EVERY.max(began.elapsed() * LOOK_SHARE);
            if used > self.bytes_max {
                let what = format!(
                    "the compute filled {} MB of local disk, and may fill {} MB",
                    used >> 20,
                    self.bytes_max >> 20
                );
                return ComputeError::Limit { what, hint: "ardent up --compute-disk sets the limit".to_owned() };
            }
        }
    }
}

/// Bytes on disk below `folder`. What vanishes meanwhile does not count.
fn used(folder: &Path) -> u64 {
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            // Of the entry itself, not of what a link points to.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                bytes += metadata.blocks() * 512;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_made_in_a_folder_that_is_no_control_group() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(make_group(folder.path(), "ardent-x", &[("pids.max", Some(10))]), None);
        assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 0);
        // One that has none of the files that limit something.
        fs::write(folder.path().join(MEMBERS), "").expect("written");
        assert_eq!(make_group(folder.path(), "ardent-x", &[("pids.max", Some(10))]), None);
        assert!(!folder.path().join("ardent-x").exists());
    }

    #[tokio::test]
    async fn a_folder_past_its_limit_is_noticed_and_links_are_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("a")).expect("made");
        fs::write(folder.path().join("a/b"), vec![1; 1 << 20]).expect("written");
        std::os::unix::fs::symlink("/usr", folder.path().join("link")).expect("linked");
        let bytes = used(folder.path());
        assert!((1 << 20..2 << 20).contains(&bytes), "{bytes}");
        let limits = ComputeLimits { disk_bytes: Some(1 << 19), ..ComputeLimits::default() };
        let mut watch = DiskWatch::new(folder.path(), &limits);
        watch.pause = Duration::ZERO;
        let error = watch.full().await;
        assert_eq!(error.code(), "limit");
        assert!(error.to_string().contains("--compute-disk"), "{error}");
    }
}
