//! Gives a safekeeper that lost its disk what the others have, while none of them runs.
//!
//! What the lost one had promised and acknowledged is not known any more. So:
//!
//! 1. As many others as make a majority are needed. Whatever was committed was on a majority, so at least one of these has it, and the
//!    one with the highest position has all of it.
//! 2. The others promise a term above all that any of them had promised. A writer from before, which may count on what the
//!    lost one had acknowledged, finds no majority any more.
//! 3. Only then the lost one gets the log of the highest position, with its history and that promise, and so do others that lack the
//!    timeline, as they were away when it was made: made empty later, they would listen to that writer. It is in its place,
//!    durable and whole, or not at all; what is interrupted is begun again.
//!
//! A timeline that the folder still has stays as it is. See `docs/quorum.md`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ardent_object_store::fault::FailPoints;
use ardent_types::TimelineId;

use crate::holders::{CopiedTimeline, Holders, OfflineError, dir_of, timelines_of};
use crate::service::prepare_data_dir;
use crate::wal_files::is_timeline_dir;

/// Makes in `lost`, the folder of one of `members` safekeepers, all timelines that it lacks and `wanted` says yes to, from the folders
/// of `others`. None of them may run; their locks are held meanwhile. `done` is called after each timeline. Blocks.
pub fn rebuild(
    lost: &Path,
    others: &[PathBuf],
    members: usize,
    wanted: impl Fn(TimelineId) -> bool,
    done: impl FnMut(&CopiedTimeline),
) -> Result<usize, OfflineError> {
    rebuild_with_faults(lost, others, members, wanted, done, &Arc::default())
}

/// The same with fail points.
pub fn rebuild_with_faults(
    lost: &Path,
    others: &[PathBuf],
    members: usize,
    wanted: impl Fn(TimelineId) -> bool,
    mut done: impl FnMut(&CopiedTimeline),
    faults: &Arc<FailPoints>,
) -> Result<usize, OfflineError> {
    let needed = members / 2 + 1;
    if others.len() < needed || members < 2 {
        return Err(OfflineError::TooFew { given: others.len(), others: members.saturating_sub(1), needed });
    }
    let folders: BTreeSet<&Path> = others.iter().map(PathBuf::as_path).chain([lost]).collect();
    let _locks: Vec<_> = folders.into_iter().map(prepare_data_dir).collect::<Result<_, _>>()?;
    let mut count = 0;
    for ((tenant, timeline), holders) in timelines_of(others)? {
        if is_timeline_dir(&dir_of(lost, tenant, timeline)) || !wanted(timeline) {
            continue;
        }
        // The lost one comes last: while it lacks the timeline, all of this is done again.
        let lacking: Vec<&Path> =
            others.iter().filter(|other| !holders.contains(other)).map(PathBuf::as_path).chain([lost]).collect();
        let holders = Holders::load(&holders, tenant, timeline, faults)?;
        holders.raise()?;
        done(&holders.copy_to(&lacking)?);
        count += 1;
    }
    Ok(count)
}
