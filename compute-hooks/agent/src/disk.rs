//! How much of the disk a compute has taken, in files of its folder and in files that its processes have open and no folder names.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ardent_api::compute::ComputeLimits;

use crate::error::ComputeError;
use crate::postmaster::{children_of, has_ended};

/// Between two looks at the disk; longer where a look takes long.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A look may take this part of the time.
const LOOK_SHARE: u32 = 20;
/// What sets the limit.
const HINT: &str = "ardent up --compute-disk sets the limit";
/// What to do where nobody set one, and there was little to take half of.
const HINT_FULL: &str = "make room on that disk and connect again; ardent up --compute-disk sets another limit";
/// With less than this free, a host's disk is full, or nearly so.
const FULL_BYTES: u64 = 1 << 30;

/// Where a compute's processes are found: below the first of them, and in its control groups, which also have those that have left
/// their parent.
#[derive(Clone, Debug)]
pub(crate) struct Processes {
    first: u32,
    groups: Vec<PathBuf>,
}

impl Processes {
    /// `groups`: files that list process ids.
    pub(crate) fn new(first: u32, groups: Vec<PathBuf>) -> Self {
        Processes { first, groups }
    }

    /// Those that run now.
    fn ids(&self) -> HashSet<u32> {
        let mut found = HashSet::from([self.first]);
        for group in &self.groups {
            let text = fs::read_to_string(group).unwrap_or_default();
            found.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        let mut parents: Vec<u32> = found.iter().copied().collect();
        while let Some(parent) = parents.pop() {
            // One that has ended meanwhile has no children.
            let children = children_of(parent).unwrap_or_default();
            parents.extend(children.into_iter().filter(|child| found.insert(*child)));
        }
        found
    }
}

/// Watches how much of the disk a compute has taken.
#[derive(Debug)]
pub(crate) struct DiskWatch {
    folder: PathBuf,
    processes: Processes,
    bytes_max: u64,
    /// What was free on the disk, where the limit follows from that.
    free_at_start: Option<u64>,
    pause: Duration,
    /// That not all could be counted is said once.
    warned: bool,
}

impl DiskWatch {
    /// Without a limit of its own, a compute may fill half of what is free when it starts.
    pub(crate) fn new(folder: &Path, processes: Processes, limits: &ComputeLimits) -> Self {
        let free = free_bytes(folder).unwrap_or(u64::MAX);
        let (bytes_max, free_at_start) = match limits.disk_bytes {
            Some(0) => (u64::MAX, None),
            Some(bytes) => (bytes, None),
            None => (walk(folder).map_or(0, |found| found.bytes).saturating_add(free / 2), Some(free)),
        };
        DiskWatch { folder: folder.to_owned(), processes, bytes_max, free_at_start, pause: LOOK_EVERY, warned: false }
    }

    /// Returns when too much is used, or what is used cannot be told. Cancel-safe.
    pub(crate) async fn full(&mut self) -> ComputeError {
        loop {
            tokio::time::sleep(self.pause).await;
            let (folder, processes) = (self.folder.clone(), self.processes.clone());
            let began = std::time::Instant::now();
            let Ok(found) = tokio::task::spawn_blocking(move || look(&folder, &processes)).await else { continue };
            self.pause = LOOK_EVERY.max(began.elapsed() * LOOK_SHARE);
            let found = match found {
                Ok(found) => found,
                Err(Closed { path }) => {
                    let what = format!(
                        "{} was made unreadable, so that what the compute takes of the local disk cannot be counted",
                        path.display()
                    );
                    return ComputeError::Limit { what, hint: HINT.to_owned() };
                }
            };
            if let Some(missed) = found.missed.filter(|_| !self.warned) {
                tracing::warn!(missed, "not all that the compute takes of the local disk is counted");
                self.warned = true;
            }
            if found.bytes > self.bytes_max {
                return self.too_much(found.bytes);
            }
        }
    }

    /// That the compute takes `bytes`. Where the limit is what was free, and that was little, the host's disk is to be looked at.
    fn too_much(&self, bytes: u64) -> ComputeError {
        let taken = format!("the compute filled {} MB of local disk", bytes >> 20);
        let limit = format!("may fill {} MB", self.bytes_max >> 20);
        let Some(at_start) = self.free_at_start else {
            return ComputeError::Limit { what: format!("{taken}, and {limit}"), hint: HINT.to_owned() };
        };
        let now = free_bytes(&self.folder).unwrap_or(at_start);
        if at_start.min(now) >= FULL_BYTES {
            let what = format!("{taken}, and {limit}: half of what was free when it started");
            return ComputeError::Limit { what, hint: HINT.to_owned() };
        }
        let what = format!(
            "this host's disk is full or nearly so: {} MB are free at {}, {} MB when the compute started; {taken}, and may fill half of what was free",
            now >> 20,
            self.folder.display(),
            at_start >> 20
        );
        ComputeError::Limit { what, hint: HINT_FULL.to_owned() }
    }
}

/// What is free on the disk of `folder`; `None`: it cannot be told.
fn free_bytes(folder: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(folder).ok()?;
    #[allow(clippy::useless_conversion, reason = "the types differ between platforms")]
    let bytes = u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size()));
    Some(bytes)
}

/// What a look found.
#[derive(Debug, Default)]
struct Found {
    bytes: u64,
    /// The disks that it lies on.
    devices: HashSet<u64>,
    /// What could not be counted, and why.
    missed: Option<String>,
}

impl Found {
    fn miss(&mut self, path: &Path, error: &io::Error) {
        self.missed.get_or_insert_with(|| format!("{}: {error}", path.display()));
    }
}

/// What only the compute can have closed to us: without root we are its user.
#[derive(Debug, PartialEq, Eq)]
struct Closed {
    path: PathBuf,
}

/// All that a compute takes.
fn look(folder: &Path, processes: &Processes) -> Result<Found, Closed> {
    let mut found = walk(folder)?;
    let mut seen = HashSet::new();
    for pid in processes.ids() {
        match unnamed_bytes(pid, &found.devices, &mut seen) {
            Ok(bytes) => found.bytes += bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound || has_ended(pid) => {}
            Err(error) => found.miss(Path::new(&format!("/proc/{pid}/fd")), &error),
        }
    }
    Ok(found)
}

/// Bytes on disk below `folder`. What vanishes meanwhile does not count.
fn walk(folder: &Path) -> Result<Found, Closed> {
    let mut found = Found::default();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if is_closed(&error) => return Err(Closed { path: folder }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    found.miss(&folder, &error);
                }
                continue;
            }
        };
        for entry in entries.flatten() {
            // Of the entry itself, not of what a link points to.
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if is_closed(&error) => return Err(Closed { path: folder }),
                Err(error) => {
                    if error.kind() != io::ErrorKind::NotFound {
                        found.miss(&entry.path(), &error);
                    }
                    continue;
                }
            };
            found.devices.insert(metadata.dev());
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                found.bytes += metadata.blocks() * 512;
            }
        }
    }
    Ok(found)
}

/// A mode that lets nobody in, or folders within folders until no path reaches them.
fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied || error.raw_os_error() == Some(libc::ENAMETOOLONG)
}

/// Bytes on these disks of files that the process has open and that have no name any more, or never had one. What is `seen`, by disk and
/// inode, does not count again.
fn unnamed_bytes(pid: u32, devices: &HashSet<u64>, seen: &mut HashSet<(u64, u64)>) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        // Of the open file, which this leads to whatever became of its name.
        let Ok(file) = fs::metadata(entry.path()) else { continue };
        let is_unnamed = file.is_file() && file.nlink() == 0 && devices.contains(&file.dev());
        if is_unnamed && seen.insert((file.dev(), file.ino())) {
            bytes += file.blocks() * 512;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    /// Open files are the whole process's, in which tests run side by side.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    /// What a file without a name holds in tests: more than all that other tests have open.
    const LEN: u64 = 16 << 20;

    /// This process and its children.
    fn own() -> Processes {
        Processes::new(std::process::id(), Vec::new())
    }

    /// An open file in `folder` that was removed, and nobody else's meanwhile.
    fn removed_file(folder: &Path) -> (MutexGuard<'static, ()>, File) {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let path = folder.join("removed");
        let mut file = File::create_new(&path).expect("made");
        file.write_all(&vec![1_u8; LEN as usize]).expect("written");
        // A file on the same disk that has a name.
        fs::write(folder.join("named"), "x").expect("written");
        fs::remove_file(path).expect("removed");
        (alone, file)
    }

    fn check(folder: &Path) {
        let bytes = look(folder, &own()).expect("readable").bytes;
        assert!((LEN..2 * LEN).contains(&bytes), "{bytes}");
        assert!(walk(folder).expect("readable").bytes < LEN, "it has no name");
    }

    #[tokio::test]
    async fn a_folder_past_its_limit_is_noticed_and_links_are_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("a")).expect("made");
        fs::write(folder.path().join("a/b"), vec![1; 1 << 20]).expect("written");
        std::os::unix::fs::symlink("/usr", folder.path().join("link")).expect("linked");
        let bytes = walk(folder.path()).expect("readable").bytes;
        assert!((1 << 20..2 << 20).contains(&bytes), "{bytes}");
        let limits = ComputeLimits { disk_bytes: Some(1 << 19), ..ComputeLimits::default() };
        let mut watch = DiskWatch::new(folder.path(), own(), &limits);
        watch.pause = Duration::ZERO;
        let error = watch.full().await;
        assert_eq!(error.code(), "limit");
        assert!(error.to_string().contains("--compute-disk"), "{error}");
        assert!(!error.to_string().contains("this host's disk"), "somebody set the limit: {error}");
    }

    #[tokio::test]
    async fn where_the_limit_is_what_was_free_it_is_the_hosts_disk_that_is_full() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("a"), vec![1; 2 << 20]).expect("written");
        let mut watch = DiskWatch::new(folder.path(), own(), &ComputeLimits::default());
        assert!(watch.free_at_start.is_some());
        // As on a disk that had nothing free.
        (watch.bytes_max, watch.free_at_start, watch.pause) = (1 << 20, Some(0), Duration::ZERO);
        let error = watch.full().await;
        assert_eq!(error.code(), "limit");
        let text = error.to_string();
        let at = folder.path().display().to_string();
        for part in ["host's disk is full", "0 MB when the compute started", "make room", at.as_str()] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
    }

    #[test]
    fn an_open_file_counts_without_its_name_and_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let (_alone, file) = removed_file(folder.path());
        let _again = file.try_clone().expect("cloned");
        check(folder.path());
    }

    #[test]
    fn an_open_file_of_a_child_counts_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let (_alone, file) = removed_file(folder.path());
        let mut child = std::process::Command::new("sleep").arg("1000").stdin(file).spawn().expect("sleep runs");
        check(folder.path());
        child.kill().expect("runs");
        child.wait().expect("reaped");
    }

    #[test]
    fn files_on_other_disks_do_not_count() {
        let folder = tempfile::tempdir().expect("a folder");
        let _removed = removed_file(folder.path());
        let bytes = unnamed_bytes(std::process::id(), &HashSet::new(), &mut HashSet::new());
        assert_eq!(bytes.expect("readable"), 0);
    }

    #[test]
    fn a_folder_that_is_closed_to_us_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let closed = folder.path().join("closed");
        fs::create_dir(&closed).expect("made");
        fs::write(closed.join("full"), vec![1; 1 << 20]).expect("written");
        for mode in [0o000, 0o400] {
            fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).expect("set");
            let found = walk(folder.path());
            if nix::unistd::geteuid().is_root() {
                assert!(found.expect("root reads everything").bytes >= 1 << 20);
            } else {
                assert_eq!(found.map(|found| found.bytes), Err(Closed { path: closed.clone() }), "{mode:o}");
            }
        }
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("set");
    }
}
