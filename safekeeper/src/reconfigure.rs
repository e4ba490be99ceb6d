//! Changes which safekeepers there are, while none of them runs.
//!
//! 1. As many of the old ones as make a majority are needed: the one with the highest position has all that was committed.
//! 2. All who have the timeline promise a term above all that any of them had promised, those that leave as well: a writer from before
//!    finds nobody who listens.
//! 3. Then each of the new ones that has less gets the log of the highest position, in one step, so that any majority of the new ones, and
//!    any one of them, has all that was committed.
//!
//! Until all of that is done the old ones are the members, as they were: what is interrupted is begun again, and starting them instead
//! is right as well. The caller writes down who the members are, last. See `docs/quorum.md`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ardent_object_store::fault::FailPoints;
use ardent_types::TimelineId;

use crate::holders::{CopiedTimeline, Holders, OfflineError, timelines_of};
use crate::service::prepare_data_dir;

/// Gives each of the folders `new` all timelines that `wanted` says yes to, as the safekeepers in the folders `old` have them: those that are there
/// of `members`. None of them may run; their locks are held meanwhile. `done` is called after each timeline that was copied. A folder of
/// `new` that is not one of `old` must hold no timeline of another time. Gives the number of timelines. Blocks.
pub fn reconfigure(
    old: &[PathBuf],
    members: usize,
    new: &[PathBuf],
    wanted: impl Fn(TimelineId) -> bool,
    done: impl FnMut(&CopiedTimeline),
) -> Result<usize, OfflineError> {
    reconfigure_with_faults(old, members, new, wanted, done, &Arc::default())
}

/// The same with fail points.
pub fn reconfigure_with_faults(
    old: &[PathBuf],
    members: usize,
    new: &[PathBuf],
    wanted: impl Fn(TimelineId) -> bool,
    mut done: impl FnMut(&CopiedTimeline),
    faults: &Arc<FailPoints>,
) -> Result<usize, OfflineError> {
    let needed = members / 2 + 1;
    if old.len() < needed {
        return Err(OfflineError::NoMajority { given: old.len(), members, needed });
    }
    let folders: BTreeSet<&Path> = old.iter().chain(new).map(PathBuf::as_path).collect();
    let _locks: Vec<_> = folders.into_iter().map(prepare_data_dir).collect::<Result<_, _>>()?;
    let mut count = 0;
    for ((tenant, timeline), holders) in timelines_of(old)? {
        if !wanted(timeline) {
            continue;
        }
        let holders = Holders::load(&holders, tenant, timeline, faults)?;
        holders.raise()?;
        let lacking: Vec<&Path> = new.iter().map(PathBuf::as_path).filter(|folder| !holders.has_all(folder)).collect();
        if !lacking.is_empty() {
            done(&holders.copy_to(&lacking)?);
        }
        count += 1;
    }
    Ok(count)
}
