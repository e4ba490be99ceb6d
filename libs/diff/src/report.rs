//! The diff of a whole branch.

use ardent_types::Lsn;
use serde::{Deserialize, Serialize};

use crate::change_set::ChangeSet;

/// What changed on a branch, in all its databases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffReport {
    /// Version of this object.
    pub schema_version: u32,
    /// The branch.
    pub branch: String,
    /// What it was compared with, if not with its branch point: another branch, or an LSN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// The branch point, the other LSN, or the last point that both branches share.
    pub from_lsn: Lsn,
    /// The branch as of here.
    pub to_lsn: Lsn,
    /// Blocks that changed between the two, catalogs and indexes included.
    pub changed_blocks: u64,
    /// Pages that the page server sent to the compute at the branch point, its start included (to the other branch's compute: for
    /// the diff).
    pub pages_read_branch_point: u64,
    /// Pages that it sent to the branch's compute meanwhile: for the diff, for the start if it slept, and for other sessions.
    pub pages_read_head: u64,
    /// Databases with changes.
    pub databases: Vec<ChangeSet>,
    /// Databases that the branch point does not have under this name: made on the branch, or renamed there.
    pub databases_not_compared: Vec<String>,
}
