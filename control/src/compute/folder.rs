//! Discarding a compute's folder.
//!
//! It gets another name first, in one step: whatever interrupts the removal, nobody starts from half a folder. With it go the control groups
//! that it lists, and what still runs in them: an agent that ends in order has removed them, one that was killed has not.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use ardent_api::control::{ApiErrorCode, ErrorInfo};
use ardent_types::{ComputeId, TimelineId};
use tracing::warn;

use crate::compute::pool::ComputePool;
use crate::compute::{ProcessIdentity, end_process};
use crate::store::BranchRow;

/// Ending of the names of folders that nobody will use again.
const DISCARDED: &str = "discarded";
/// In a compute's folder: its control groups' folders, a line each.
const GROUPS: &str = "groups";
/// Where all control groups are.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";
/// The file of a control group that lists its processes.
const MEMBERS: &str = "cgroup.procs";

impl ComputePool {
    /// Stops the branch's compute, and removes its folder. Its row stays. To be called with the branch's gate closed, or when
    /// its state lets no compute start.
    pub(crate) async fn discard(&self, branch: &BranchRow) -> Result<(), ErrorInfo> {
        self.suspend(branch.id).await?;
        let Some(compute) = self.context().store.compute(branch.id)? else { return Ok(()) };
        for process in [&compute.agent, &compute.postmaster].into_iter().flatten() {
            if !end_process(process, Duration::ZERO).await {
                let message = format!("process {} of branch {} cannot be ended", process.pid, branch.known_name());
                return Err(ErrorInfo::new(ApiErrorCode::Internal, message));
            }
        }
        let computes = self.context().pool.computes_dir.clone();
        remove_groups(&computes.join(compute.id.to_string()), branch.timeline, Path::new(CONTROL_GROUPS)).await;
        let removed = tokio::task::spawn_blocking(move || remove(&computes, compute.id));
        let removed = removed.await.map_err(|_| crate::branches::shutting_down())?;
        removed.map_err(|error| {
            let message = format!("the folder of branch {} cannot be removed: {error}", branch.known_name());
            ErrorInfo::new(ApiErrorCode::Internal, message)
        })
    }
}

/// Removes the control groups below `root` that the compute's folder lists, with what runs in them: a sandbox whose maker was killed before it
/// was finished waits for ever. A group that stays costs next to nothing, but starts on a host with thousands of them are slow.
async fn remove_groups(folder: &Path, timeline: TimelineId, root: &Path) {
    let listing = match fs::read_to_string(folder.join(GROUPS)) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            return warn!(folder = %folder.display(), %error, "which control groups a compute has left cannot be read");
        }
    };
    let name = format!("ardent-{timeline}");
    let is_its = |group: &&Path| group.starts_with(root) && group.file_name() == Some(name.as_ref());
    for group in listing.lines().map(Path::new).filter(is_its) {
        let members = fs::read_to_string(group.join(MEMBERS)).unwrap_or_default();
        for process in members.split_whitespace().filter_map(|pid| ProcessIdentity::of(pid.parse().ok()?)) {
            if !end_process(&process, Duration::ZERO).await {
                warn!(pid = process.pid, "a process that a compute has left cannot be ended");
            }
        }
        if let Err(error) = gone(fs::remove_dir(group)) {
            warn!(group = %group.display(), %error, "a control group that a compute has left stays");
        }
    }
}

fn remove(computes: &Path, compute: ComputeId) -> io::Result<()> {
    let discarded = computes.join(format!("{compute}.{DISCARDED}"));
    // One of an earlier attempt, or of an earlier compute of the branch, is in the way of a rename.
    gone(fs::remove_dir_all(&discarded))?;
    gone(fs::rename(computes.join(compute.to_string()), &discarded))?;
    gone(fs::remove_file(computes.join(format!("{compute}.spec"))))?;
    gone(fs::remove_dir_all(&discarded))
}

/// Removes what a crash left of discarded folders.
pub(crate) fn sweep_discarded(computes: &Path) {
    let entries = match fs::read_dir(computes) {
        Ok(entries) => entries,
        Err(error) => return warn!(folder = %computes.display(), %error, "cannot be looked through"),
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.extension().is_some_and(|extension| extension == DISCARDED)
            && let Err(error) = fs::remove_dir_all(&path)
        {
            warn!(folder = %path.display(), %error, "a discarded folder cannot be removed yet");
        }
    }
}

/// Gives up all computes' folders, as no row knows them any more. The next start removes them.
pub fn discard_all(computes: &Path) -> io::Result<()> {
    for entry in fs::read_dir(computes)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == DISCARDED) {
            continue;
        }
        if path.is_dir() {
            fs::rename(&path, path.with_extension(DISCARDED))?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// What was done already needs not be done.
pub(super) fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[tokio::test]
    async fn the_groups_that_are_listed_are_removed_and_nothing_else() {
        let (folder, root) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
        let timeline = TimelineId::generate();
        remove_groups(folder.path(), timeline, root.path()).await;
        let its = |place: &str| root.path().join(place).join(format!("ardent-{timeline}"));
        let (memory, pids, elsewhere) =
            (its("memory/of-us"), its("pids"), folder.path().join(format!("ardent-{timeline}")));
        let others = root.path().join("pids").join(format!("ardent-{}", TimelineId::generate()));
        for group in [&memory, &pids, &elsewhere, &others] {
            fs::create_dir_all(group).expect("made");
        }
        let gone = its("unified");
        let listed = [&gone, &memory, &elsewhere, &others, &pids].map(|group| format!("{}\n", group.display()));
        fs::write(folder.path().join(GROUPS), listed.concat()).expect("written");
        remove_groups(folder.path(), timeline, root.path()).await;
        assert_eq!([&memory, &pids, &elsewhere, &others].map(|group| group.exists()), [false, false, true, true]);
    }

    #[tokio::test]
    async fn what_runs_in_a_group_ends_with_it() {
        let (folder, root) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
        let timeline = TimelineId::generate();
        let group = root.path().join(format!("ardent-{timeline}"));
        fs::create_dir(&group).expect("made");
        let mut left = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().expect("it runs");
        fs::write(group.join(MEMBERS), format!("{}\n", left.id().expect("it runs"))).expect("written");
        fs::write(folder.path().join(GROUPS), format!("{}\n", group.display())).expect("written");
        let (ended, ()) = tokio::join!(left.wait(), remove_groups(folder.path(), timeline, root.path()));
        assert_eq!(ended.expect("a child").signal(), Some(9));
    }

    #[test]
    fn a_folder_is_gone_with_its_specification_and_leftovers_are_swept() {
        let folder = tempfile::tempdir().expect("folder");
        let compute = ComputeId::generate();
        let data = folder.path().join(compute.to_string());
        let spec = folder.path().join(format!("{compute}.spec"));
        let leftover = folder.path().join(format!("{compute}.{DISCARDED}"));
        for made in [data.join("data"), leftover.join("data")] {
            fs::create_dir_all(made).expect("made");
        }
        fs::write(&spec, "x").expect("written");
        remove(folder.path(), compute).expect("removed");
        assert!(!data.exists() && !spec.exists() && !leftover.exists());
        remove(folder.path(), compute).expect("again is fine");

        fs::create_dir_all(leftover.join("data")).expect("made");
        fs::create_dir_all(&data).expect("made");
        sweep_discarded(folder.path());
        assert!(data.exists() && !leftover.exists());

        fs::write(&spec, "x").expect("written");
        discard_all(folder.path()).expect("given up");
        assert!(!data.exists() && !spec.exists() && leftover.exists());
        sweep_discarded(folder.path());
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }
}
