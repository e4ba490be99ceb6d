//! Warm folders: what suspended computes left for their next start, removed when it is of no use any more, and the oldest while all of
//! them together take too much.
//!
//! A compute's folder is warm for as long as the marker says that its agent wrote beside the data directory (`docs/formats/compute-dir.md`).
//! The marker goes first, then the data directory gets a name that no start looks for, and then it is removed: whatever interrupts
//! that, nobody takes half a directory for a warm one, and a later look removes the rest. The branch starts cold the next time.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use tracing::{info, warn};

use ardent_api::control::ErrorInfo;
use ardent_types::ComputeId;

use crate::branches::shutting_down;
use crate::compute::folder::gone;
use crate::compute::pool::ComputePool;
use crate::store::ComputeRow;

/// The names that the agent uses in a compute's folder.
const MARKER: &str = "warm.json";
const DATA: &str = "data";
const TRASH: &str = "trash.";
/// A longer marker is none.
const MARKER_LEN_MAX: u64 = 64 << 10;
/// Without a setting, warm folders may take one part in so many of what they and everybody else leave free.
const FREE_SHARE: u64 = 4;

/// What is known of all folders. A suspended compute's does not change, so each is looked at once after each of its runs.
#[derive(Default)]
pub(crate) struct WarmFolders {
    seen: Mutex<HashMap<ComputeId, Seen>>,
    bytes_max: OnceLock<u64>,
}

/// What a folder held after a run.
#[derive(Clone, Copy)]
struct Seen {
    incarnation: u64,
    /// Absent: nothing that could be removed.
    contents: Option<Contents>,
}

/// A data directory, or what is left of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Contents {
    /// Until when it can be started again, in seconds since the Unix epoch; absent: it cannot.
    until_s: Option<u64>,
    bytes: u64,
}

/// The agent's marker, as far as it is read here.
#[derive(Deserialize)]
struct Marker {
    boot_id: String,
    lease_until_s: u64,
}

impl ComputePool {
    /// Removes what suspended computes left and cannot start from any more, and, the oldest first, what is too much. `now` is since the
    /// Unix epoch. A folder that cannot be removed is left alone until the compute was started again, or control.
    pub(crate) async fn remove_warm_folders(&self, now: Duration) -> Result<(), ErrorInfo> {
        let context = self.context();
        let mut rows = context.store.computes()?;
        rows.retain(|row| !self.has_slot(row.branch) && is_at_rest(row));
        let rows: HashMap<ComputeId, ComputeRow> = rows.into_iter().map(|row| (row.id, row)).collect();
        let known = self.warm.seen.lock().clone();
        let is_new = |row: &&ComputeRow| known.get(&row.id).is_none_or(|seen| seen.incarnation != row.incarnation);
        let new: Vec<(ComputeId, u64)> = rows.values().filter(is_new).map(|row| (row.id, row.incarnation)).collect();
        let computes = context.pool.computes_dir.clone();
        let looking = tokio::task::spawn_blocking(move || {
            let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
            let boot_id = boot_id.as_deref().map(str::trim);
            let look = |(id, incarnation): (ComputeId, u64)| {
                (id, Seen { incarnation, contents: look(&computes.join(id.to_string()), boot_id) })
            };
            new.into_iter().map(look).collect::<Vec<_>>()
        });
        let looked = looking.await.map_err(|_| shutting_down())?;
        let folders: Vec<(ComputeId, Contents)> = {
            let mut seen = self.warm.seen.lock();
            seen.extend(looked);
            seen.retain(|id, _| rows.contains_key(id));
            seen.iter().filter_map(|(id, seen)| Some((*id, seen.contents?))).collect()
        };
        let total = folders.iter().map(|(_, contents)| contents.bytes).sum::<u64>();
        let bytes_max = *self.warm.bytes_max.get_or_init(|| self.warm_bytes_max(total));
        let doomed = doomed(&folders, bytes_max, now.as_secs());
        let mut left = total;
        for (id, contents) in doomed {
            let Some(row) = rows.get(&id) else { continue };
            if self.remove_warm_folder(row).await? {
                left = left.saturating_sub(contents.bytes);
            }
        }
        context.metrics.warm_folders(left);
        Ok(())
    }

    /// As it was set, or a part of the disk that would be free without them.
    fn warm_bytes_max(&self, total: u64) -> u64 {
        let pool = &self.context().pool;
        pool.warm_bytes_max.unwrap_or_else(|| {
            let free = nix::sys::statvfs::statvfs(&pool.computes_dir).map_or(u64::MAX, |stat| {
                #[allow(clippy::useless_conversion, reason = "the types differ between platforms")]
                u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size()))
            });
            free.saturating_add(total) / FREE_SHARE
        })
    }

    /// Removes what is in a suspended compute's folder, unless it was started since; whether that was done.
    async fn remove_warm_folder(&self, row: &ComputeRow) -> Result<bool, ErrorInfo> {
        let context = self.context();
        // Whoever holds it is about to change the branch: the next look is soon enough.
        let Some(closed) = self.try_close_gate(row.branch) else { return Ok(false) };
        let now = context.store.compute(row.branch)?;
        let is_same = now.is_some_and(|now| (now.id, now.incarnation) == (row.id, row.incarnation) && is_at_rest(&now));
        if self.has_slot(row.branch) || !is_same {
            return Ok(false);
        }
        // What it read need not be kept for it any more. Up to the end of what follows the agent's own lease sees to that.
        context.store.remove_lease(row.id)?;
        let folder = context.pool.computes_dir.join(row.id.to_string());
        let setting_aside = folder.clone();
        let set_aside = tokio::task::spawn_blocking(move || set_aside(&setting_aside)).await;
        // Nobody starts from what is removed now, so nobody has to wait for that.
        drop(closed);
        let removed = match set_aside.map_err(|_| shutting_down())? {
            Ok(()) => {
                let removing = folder.clone();
                tokio::task::spawn_blocking(move || empty_trash(&removing)).await.map_err(|_| shutting_down())?
            }
            Err(error) => Err(error),
        };
        let seen = Seen { incarnation: row.incarnation, contents: None };
        self.warm.seen.lock().insert(row.id, seen);
        match removed {
            Ok(()) => {
                context.metrics.warm_dropped();
                info!(branch = %row.branch, folder = %folder.display(), "what a suspended compute left is removed: its next start is cold");
                Ok(true)
            }
            Err(error) => {
                warn!(folder = %folder.display(), %error, "what a suspended compute left cannot be removed");
                Ok(false)
            }
        }
    }
}

/// Whether no process of it may be left.
fn is_at_rest(row: &ComputeRow) -> bool {
    row.agent.is_none() && row.postmaster.is_none()
}

/// Those that cannot be started from at this time, and of the others the oldest, until the rest is not too much.
fn doomed(folders: &[(ComputeId, Contents)], bytes_max: u64, now_s: u64) -> Vec<(ComputeId, Contents)> {
    let is_good = |contents: &Contents| contents.until_s.is_some_and(|until_s| until_s > now_s);
    let (mut good, mut doomed): (Vec<_>, Vec<_>) = folders.iter().copied().partition(|(_, contents)| is_good(contents));
    // All are good for the same time after their stop.
    good.sort_by_key(|(_, contents)| contents.until_s);
    let mut bytes: u64 = good.iter().map(|(_, contents)| contents.bytes).sum();
    for (id, contents) in good {
        if bytes <= bytes_max {
            break;
        }
        bytes -= contents.bytes;
        doomed.push((id, contents));
    }
    doomed
}

/// What is in a suspended compute's folder.
fn look(folder: &Path, boot_id: Option<&str>) -> Option<Contents> {
    let data = folder.join(DATA);
    let is_there = fs::symlink_metadata(&data).is_ok();
    let trash = trash(folder);
    if !is_there && trash.is_empty() {
        return None;
    }
    // Nothing was fsynced: after a restart of the host its directory is not used.
    let is_of_this_boot = |marker: &Marker| boot_id.is_none_or(|boot_id| boot_id == marker.boot_id);
    let marker = if is_there { read_marker(&folder.join(MARKER)).filter(is_of_this_boot) } else { None };
    let bytes: u64 = trash.iter().chain([&data]).map(|path| disk_bytes(path)).sum();
    Some(Contents { until_s: marker.map(|marker| marker.lease_until_s), bytes })
}

fn read_marker(path: &Path) -> Option<Marker> {
    // Without a sandbox, whoever ran there may have put anything in its place.
    let metadata = fs::symlink_metadata(path).ok()?;
    let is_plain = metadata.is_file() && metadata.len() <= MARKER_LEN_MAX;
    is_plain.then(|| serde_json::from_slice(&fs::read(path).ok()?).ok()).flatten()
}

/// Data directories that were being removed.
fn trash(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let is_trash = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(TRASH.as_bytes());
    entries.flatten().filter(is_trash).map(|entry| entry.path()).collect()
}

/// What `path` takes of the disk, with all that is in it. Most blocks of a compute's files are absent, and take nothing.
fn disk_bytes(path: &Path) -> u64 {
    let mut bytes = 0;
    let mut paths = vec![path.to_owned()];
    while let Some(path) = paths.pop() {
        // Of a link itself, not of where it leads.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        bytes += metadata.blocks() * 512;
        if metadata.is_dir()
            && let Ok(entries) = fs::read_dir(&path)
        {
            paths.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    bytes
}

/// Makes sure that nobody starts from the folder's data directory: from here on it is trash.
fn set_aside(folder: &Path) -> io::Result<()> {
    gone(fs::remove_file(folder.join(MARKER)))?;
    let names = (0_u32..).map(|number| folder.join(format!("{TRASH}{number}")));
    let mut free = names.filter(|path| fs::symlink_metadata(path).is_err());
    let target = free.next().expect("a folder holds fewer than 2^32 names");
    gone(fs::rename(folder.join(DATA), target))
}

/// Removes all trash. An agent that was started meanwhile may be doing the same.
fn empty_trash(folder: &Path) -> io::Result<()> {
    trash(folder).iter().try_for_each(|path| gone(fs::remove_dir_all(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: Option<&str> = Some("this boot");

    fn contents(until_s: Option<u64>, bytes: u64) -> (ComputeId, Contents) {
        (ComputeId::generate(), Contents { until_s, bytes })
    }

    fn write_marker(folder: &Path, boot_id: &str) {
        // With what only the agent reads.
        let marker = serde_json::json!({ "version": 2, "boot_id": boot_id, "term": 7, "lease_until_s": 1000 });
        fs::write(folder.join(MARKER), marker.to_string()).expect("written");
    }

    #[test]
    fn what_is_over_goes_and_then_the_oldest_until_there_is_room() {
        let (useless, over) = (contents(None, 100), contents(Some(500), 100));
        let (oldest, middle, newest) = (contents(Some(600), 10), contents(Some(700), 20), contents(Some(800), 30));
        let all = [newest, useless, oldest, over, middle];
        let check = |bytes_max: u64, expected: &[(ComputeId, Contents)]| {
            assert_eq!(doomed(&all, bytes_max, 500), expected, "{bytes_max}");
        };
        check(60, &[useless, over]);
        check(59, &[useless, over, oldest]);
        check(30, &[useless, over, oldest, middle]);
        check(0, &[useless, over, oldest, middle, newest]);
    }

    #[test]
    fn a_folder_is_warm_by_its_marker_of_this_boot() {
        let folder = tempfile::tempdir().expect("folder");
        let until = || look(folder.path(), BOOT).map(|contents| contents.until_s);
        assert_eq!(until(), None, "there is nothing");
        write_marker(folder.path(), "this boot");
        assert_eq!(until(), None, "nothing but a marker");
        fs::create_dir(folder.path().join(DATA)).expect("made");
        fs::write(folder.path().join("data/file"), vec![1; 1 << 20]).expect("written");
        assert_eq!(until(), Some(Some(1000)));
        let bytes = look(folder.path(), BOOT).expect("there").bytes;
        assert!((1 << 20..2 << 20).contains(&bytes), "{bytes}");
        write_marker(folder.path(), "another boot");
        assert_eq!(until(), Some(None));
        fs::write(folder.path().join(MARKER), "{").expect("written");
        assert_eq!(until(), Some(None));
        fs::remove_file(folder.path().join(MARKER)).expect("removed");
        assert_eq!(until(), Some(None));
    }

    #[test]
    fn a_removal_can_end_anywhere_and_is_finished_by_the_next() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        // One that an earlier removal left half of, and what outlives a data directory.
        fs::create_dir_all(path("trash.0/base")).expect("made");
        fs::create_dir_all(path("data/base")).expect("made");
        fs::write(path("data/base/1"), "x").expect("written");
        fs::write(path("auto.conf"), "work_mem = '7MB'").expect("written");
        write_marker(folder.path(), "this boot");
        set_aside(folder.path()).expect("set aside");
        assert!(!path(MARKER).exists() && !path(DATA).exists());
        assert!(path("trash.1/base/1").exists());
        assert_eq!(look(folder.path(), BOOT).expect("something is left").until_s, None);
        set_aside(folder.path()).expect("again is fine");
        empty_trash(folder.path()).expect("removed");
        assert_eq!(look(folder.path(), BOOT), None);
        let left = fs::read_dir(folder.path()).expect("readable").flatten().map(|entry| entry.file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["auto.conf"]);
        // A folder that is gone altogether.
        set_aside(&path("none")).expect("nothing to do");
        assert_eq!(look(&path("none"), BOOT), None);
    }
}
