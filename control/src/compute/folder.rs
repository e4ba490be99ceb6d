//! Discarding a compute's folder.
//!
//! It gets another name first, in one step: whatever interrupts the removal, nobody starts from half a folder.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use ardent_api::control::{ApiErrorCode, ErrorInfo};
use ardent_types::ComputeId;
use tracing::warn;

use crate::compute::end_process;
use crate::compute::pool::ComputePool;
use crate::store::BranchRow;

/// Ending of the names of folders that nobody will use again.
const DISCARDED: &str = "discarded";

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
        let removed = tokio::task::spawn_blocking(move || remove(&computes, compute.id));
        let removed = removed.await.map_err(|_| crate::branches::shutting_down())?;
        removed.map_err(|error| {
            let message = format!("the folder of branch {} cannot be removed: {error}", branch.known_name());
            ErrorInfo::new(ApiErrorCode::Internal, message)
        })
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
    use super::*;

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
