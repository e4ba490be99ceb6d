//! Deleted branches that can be had back.
//!
//! Such a branch keeps its row, timeline and passwords. Its name is free: the row has one that no user can give.

use rusqlite::{OptionalExtension as _, params};

use ardent_types::BranchId;

use super::branch::SELECT;
use super::{BranchRow, Store, StoreError};

/// What came of [`Store::soft_delete`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SoftDelete {
    /// It is deleted.
    Done,
    /// Branches were made from it: their names.
    Children(Vec<String>),
    /// It was not ready, or deleted already.
    NotReady,
}

/// What came of [`Store::undelete`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undelete {
    /// It is back.
    Done,
    /// Another branch has the name now.
    NameTaken,
    /// The branch that it was made from is deleted: the name that one had.
    ParentDeleted(String),
    /// It is being deleted for good.
    Gone,
    /// Its data is not masked, and its connector gives out masked data only.
    Withheld,
}

impl Store {
    /// Deletes a branch, so that it can be had back. Nothing of its compute may be left: it is forgotten.
    pub fn soft_delete(&self, id: BranchId, now_us: i64) -> Result<SoftDelete, StoreError> {
        self.write(|transaction| {
            let id = id.to_string();
            let mut statement = transaction
                .prepare("SELECT name FROM branches WHERE parent_id = ?1 AND deleted_us IS NULL ORDER BY name")?;
            let children: Vec<String> =
                statement.query_map(params![id], |row| row.get(0))?.collect::<Result<_, _>>()?;
            if !children.is_empty() {
                return Ok(SoftDelete::Children(children));
            }
            super::timeline::undo_switch(transaction, &id)?;
            // A label of DNS has no dot.
            let changed = transaction.execute(
                "UPDATE branches SET deleted_us = ?2, deleted_name = name, name = 'deleted.' || id, expires_us = NULL
                 WHERE id = ?1 AND state = 'ready' AND deleted_us IS NULL AND parent_id IS NOT NULL",
                params![id, now_us],
            )?;
            transaction.execute("DELETE FROM computes WHERE branch_id = ?1", params![id])?;
            Ok(if changed == 1 { SoftDelete::Done } else { SoftDelete::NotReady })
        })
    }

    /// Brings a deleted branch back under `name`.
    pub fn undelete(&self, id: BranchId, name: &str) -> Result<Undelete, StoreError> {
        self.write(|transaction| {
            if super::masked::is_withheld(transaction, id)? {
                return Ok(Undelete::Withheld);
            }
            let id = id.to_string();
            let taken: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM branches WHERE name = ?1) OR EXISTS (SELECT 1 FROM connectors WHERE name = ?1)",
                params![name],
                |row| row.get(0),
            )?;
            if taken {
                return Ok(Undelete::NameTaken);
            }
            let parent: Option<(String, Option<i64>, Option<String>)> = transaction
                .query_row(
                    "SELECT p.state, p.deleted_us, p.deleted_name FROM branches b JOIN branches p ON p.id = b.parent_id
                     JOIN connectors c ON c.name = b.connector
                     WHERE b.id = ?1 AND b.state = 'ready' AND b.deleted_us IS NOT NULL AND c.state = 'ready'",
                    params![id],
                    |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
                )
                .optional()?;
            match parent {
                Some((state, None, _)) if state == "ready" => {}
                Some((state, Some(_), Some(name))) if state == "ready" => return Ok(Undelete::ParentDeleted(name)),
                _ => return Ok(Undelete::Gone),
            }
            transaction.execute(
                "UPDATE branches SET deleted_us = NULL, deleted_name = NULL, name = ?2 WHERE id = ?1",
                params![id, name],
            )?;
            Ok(Undelete::Done)
        })
    }

    /// Marks a deleted branch for deletion for good. False: it is not deleted any more, or branches were made from it.
    pub fn begin_purge(&self, id: BranchId) -> Result<bool, StoreError> {
        self.write(|transaction| {
            let changed = transaction.execute(
                "UPDATE branches SET state = 'deleting' WHERE id = ?1 AND deleted_us IS NOT NULL
                 AND NOT EXISTS (SELECT 1 FROM branches child WHERE child.parent_id = branches.id)",
                params![id.to_string()],
            )?;
            Ok(changed == 1)
        })
    }

    /// The branch that had this name when it was deleted: the one that was deleted last.
    pub fn deleted_branch(&self, name: &str) -> Result<Option<BranchRow>, StoreError> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "{SELECT} WHERE b.deleted_name = ?1 AND b.state = 'ready' ORDER BY b.deleted_us DESC LIMIT 1"
                ))?
                .query_row(params![name], BranchRow::read)
                .optional()
        })
    }

    /// Deleted branches that were made from this one.
    pub fn deleted_children(&self, id: BranchId) -> Result<Vec<BranchRow>, StoreError> {
        self.read(|connection| {
            let sql = format!("{SELECT} WHERE b.parent_id = ?1 AND b.deleted_us IS NOT NULL");
            let mut statement = connection.prepare_cached(&sql)?;
            statement.query_map(params![id.to_string()], BranchRow::read)?.collect()
        })
    }

    /// Gives a branch another name. False: the name is taken.
    pub fn rename_branch(&self, id: BranchId, name: &str) -> Result<bool, StoreError> {
        self.write(|transaction| {
            let taken: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM branches WHERE name = ?1) OR EXISTS (SELECT 1 FROM connectors WHERE name = ?1)",
                params![name],
                |row| row.get(0),
            )?;
            if !taken {
                transaction.execute("UPDATE branches SET name = ?2 WHERE id = ?1", params![id.to_string(), name])?;
            }
            Ok(!taken)
        })
    }

    /// Sets how long a branch's history is kept; `None`: as the server says.
    pub fn set_retention(&self, id: BranchId, retention_s: Option<u64>) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .execute("UPDATE branches SET retention_s = ?2 WHERE id = ?1", params![id.to_string(), retention_s])
                .map(|_| ())
        })
    }
}
