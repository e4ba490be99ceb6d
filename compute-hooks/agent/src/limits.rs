//! What one compute may use of its host: processes, memory, processors, disk.
//!
//! ```text
//!  cgroup (version 2, or 1) ── memory, processes, processors  where the host lets us make one
//!  prlimit in the sandbox ──── processes                      everywhere; counted per user id, so per compute where `up` is root
//!  disk ────────────────────── files, named or not            the agent looks, and ends the compute past the limit
//!  sizes of tmpfs ──────────── /tmp, /dev/shm                 in a sandbox
//! ```
//!
//! When memory runs out, a compute's processes are the first that the kernel ends: their `oom_score_adj` says so.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ardent_api::compute::ComputeLimits;
use nix::sys::signal::Signal;

use crate::pid_fd::PidFd;
use crate::postmaster::parent_of;

/// Processes beyond those that Postgres's own settings call for: shells, compilers, what `COPY ... PROGRAM` runs.
const PROCESSES_BESIDE: u64 = 512;
/// Of the host's memory, what one compute may have without a limit of its own: one in so many.
const MEMORY_SHARE: u64 = 2;
/// What a compute counts for when processors are fought over, whether it has one process or hundreds: as much as any other group that
/// nobody gave a weight.
const CPU_WEIGHT: u32 = 100;
/// What a limit of processors is counted over.
const CPU_PERIOD_US: u64 = 100_000;
/// How often it is tried to remove a group that is not empty yet, and how long is waited between.
const REMOVALS_MAX: u32 = 20;
const REMOVAL_PAUSE: Duration = Duration::from_millis(10);
/// The file of a control group that lists its processes, and takes new ones.
const MEMBERS: &str = "cgroup.procs";

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
        let host = fs::read_to_string("/proc/meminfo").ok().and_then(|text| memory_of_host(&text));
        let mut folders = Vec::new();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let path = path.trim_start_matches('/');
            let wanted = wanted(controllers, limits, host, processes_max);
            // Where version 1 has the controllers, version 2 may be mounted beside them.
            let roots = match controllers {
                "" => vec!["/sys/fs/cgroup".into(), "/sys/fs/cgroup/unified".into()],
                controllers => vec![Path::new("/sys/fs/cgroup").join(controllers)],
            };
            folders.extend(roots.iter().find_map(|root| make_group(&root.join(path), name, &wanted)));
        }
        (!folders.is_empty()).then_some(ControlGroup { folders })
    }

    /// Kills what an earlier compute has left in the group: a sandbox whose maker was killed before it was finished waits for ever, and
    /// belongs to nobody.
    pub(crate) fn end_orphans(&self) {
        let listed = |members: &Path| -> Vec<u32> {
            let text = fs::read_to_string(members).unwrap_or_default();
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
        };
        for members in self.members() {
            for pid in listed(&members) {
                let Ok(process) = PidFd::open(pid) else { continue };
                // What is seen now is of the process that was opened, or that is gone.
                let is_orphan = listed(&members).contains(&pid) && parent_of(pid) == Some(1);
                if is_orphan && process.signal(Signal::SIGKILL).is_ok() {
                    tracing::warn!(pid, "a process that an earlier compute has left was ended");
                }
            }
        }
    }

    /// Its folders, a line each.
    pub(crate) fn listing(&self) -> String {
        self.folders.iter().map(|folder| format!("{}\n", folder.display())).collect()
    }

    /// The files to write a process's id to.
    pub(crate) fn members(&self) -> Vec<PathBuf> {
        self.folders.iter().map(|folder| folder.join(MEMBERS)).collect()
    }
}

/// A file of a control group, and what is to be written to it.
type Setting = (&'static str, String);

/// What is set in a group of these controllers, as `/proc/self/cgroup` lists them: none is named for version 2, which has all in one.
/// `host`: its memory in bytes, if that is known.
fn wanted(controllers: &str, limits: &ComputeLimits, host: Option<u64>, processes_max: u64) -> Vec<Setting> {
    let memory = match limits.memory_bytes {
        Some(0) => None,
        Some(bytes) => Some(bytes),
        None => host.map(|bytes| bytes / MEMORY_SHARE),
    };
    let memory = |file| memory.map(|bytes| (file, bytes.to_string()));
    let processes = ("pids.max", processes_max.to_string());
    let quota_us = limits.cpus_milli.filter(|milli| *milli > 0).map(|milli| milli.saturating_mul(CPU_PERIOD_US) / 1000);
    match controllers {
        "" => {
            let cpu_max = quota_us.map(|quota_us| ("cpu.max", format!("{quota_us} {CPU_PERIOD_US}")));
            let weight = ("cpu.weight", CPU_WEIGHT.to_string());
            memory("memory.max").into_iter().chain([processes, weight]).chain(cpu_max).collect()
        }
        "memory" => memory("memory.limit_in_bytes").into_iter().collect(),
        "pids" => vec![processes],
        // No share of its own here: the server's processes may be beside the group, each of them with as much as all of it.
        "cpu" | "cpu,cpuacct" => {
            quota_us.map(|quota_us| ("cpu.cfs_quota_us", quota_us.to_string())).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// The host's memory in bytes, from the text of `/proc/meminfo`.
fn memory_of_host(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Makes a group below `parent`, if that is a group and the host lets us limit something in it.
fn make_group(parent: &Path, name: &str, wanted: &[Setting]) -> Option<PathBuf> {
    // A folder above the controllers' is an ordinary one, in which everything can be made and nothing is limited.
    (!wanted.is_empty() && parent.join(MEMBERS).is_file()).then_some(())?;
    // Only version 2 has this file. Fails where the group has processes of its own and is not the root, or was not delegated to us. One
    // by one, as a controller that the host lacks would cost the others too.
    for controller in ["+cpu", "+memory", "+pids"] {
        let _ = write_existing(&parent.join("cgroup.subtree_control"), controller);
    }
    let folder = parent.join(name);
    if fs::create_dir(&folder).is_err() && !folder.is_dir() {
        return None;
    }
    if wanted.iter().filter(|(file, value)| write_existing(&folder.join(file), value).is_ok()).count() > 0 {
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
            // Its last processes are on their way out. One that stays costs next to nothing, and the compute's next start uses it again.
            for _ in 0..REMOVALS_MAX {
                match fs::remove_dir(folder) {
                    Err(error) if error.kind() == ErrorKind::ResourceBusy => std::thread::sleep(REMOVAL_PAUSE),
                    _ => break,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_made_in_a_folder_that_is_no_control_group() {
        let folder = tempfile::tempdir().expect("a folder");
        let wanted = [("pids.max", "10".to_owned())];
        assert_eq!(make_group(folder.path(), "ardent-x", &wanted), None);
        assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 0);
        // One that has none of the files that limit something.
        fs::write(folder.path().join(MEMBERS), "").expect("written");
        assert_eq!(make_group(folder.path(), "ardent-x", &wanted), None);
        assert!(!folder.path().join("ardent-x").exists());
    }

    #[test]
    fn each_limit_is_written_to_its_file() {
        let limits = |memory_bytes, cpus_milli| ComputeLimits { memory_bytes, disk_bytes: None, cpus_milli };
        let check = |controllers: &str, limits: ComputeLimits, expected: &[(&str, &str)]| {
            let wanted = wanted(controllers, &limits, Some(8 << 30), 600);
            let wanted: Vec<(&str, &str)> = wanted.iter().map(|(file, value)| (*file, value.as_str())).collect();
            assert_eq!(wanted, expected, "{controllers:?} {limits:?}");
        };
        let usual = [("memory.max", "4294967296"), ("pids.max", "600"), ("cpu.weight", "100")];
        check("", limits(None, None), &usual);
        check("", limits(Some(0), Some(0)), &usual[1..]);
        let set = [("memory.max", "1000"), ("pids.max", "600"), ("cpu.weight", "100"), ("cpu.max", "150000 100000")];
        check("", limits(Some(1000), Some(1500)), &set);
        check("memory", limits(None, None), &[("memory.limit_in_bytes", "4294967296")]);
        check("memory", limits(Some(0), None), &[]);
        check("pids", limits(None, None), &[("pids.max", "600")]);
        check("cpu,cpuacct", limits(None, Some(500)), &[("cpu.cfs_quota_us", "50000")]);
        check("cpu", limits(None, None), &[]);
        check("freezer", limits(Some(1000), Some(500)), &[]);
        // A host whose memory is not known.
        assert!(wanted("memory", &limits(None, None), None, 600).is_empty());
    }

    #[test]
    fn a_group_gets_what_its_host_has_files_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let group = folder.path().join("ardent-x");
        fs::create_dir(&group).expect("made");
        for file in
            [folder.path().join(MEMBERS), group.join("pids.max"), group.join("cpu.weight"), group.join("cpu.max")]
        {
            fs::write(file, "").expect("written");
        }
        let limits = ComputeLimits { memory_bytes: Some(1000), disk_bytes: None, cpus_milli: Some(2000) };
        let wanted = wanted("", &limits, None, 600);
        assert_eq!(make_group(folder.path(), "ardent-x", &wanted).as_ref(), Some(&group));
        let read = |file| fs::read_to_string(group.join(file)).expect("there");
        assert_eq!((read("pids.max"), read("cpu.weight")), ("600".to_owned(), "100".to_owned()));
        assert_eq!(read("cpu.max"), "200000 100000");
        assert!(!group.join("memory.max").exists(), "the kernel makes these files, not we");
    }

    #[test]
    fn the_hosts_memory_is_what_the_kernel_says() {
        assert_eq!(memory_of_host("MemTotal:       2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        assert_eq!((memory_of_host(""), memory_of_host("MemTotal: much kB")), (None, None));
        let own = fs::read_to_string("/proc/meminfo").expect("readable");
        assert!(memory_of_host(&own).is_some_and(|bytes| bytes > 1 << 20));
    }
}
