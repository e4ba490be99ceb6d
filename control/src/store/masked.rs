//! Masked templates: branches that no compute runs on and no name reaches, with how they were made.
//!
//! A template's row is a branch's, in state `creating` from its first step until its timeline is whole: found half made at start, it is
//! undone as any other branch. Its timeline is a root, whatever it was made from.

use rusqlite::{OptionalExtension as _, params};

use ardent_types::{BranchId, Lsn};

use super::branch::{self, BranchRow, InsertBranch};
use super::{Store, StoreError, parsed_option};

/// What a template's row is named before its name: no user can give such a name, as a DNS label has no dot.
const PREFIX: &str = "masked.";

/// The name of the template whose row has this name, if it is one's.
pub fn template_name_of(row_name: &str) -> Option<&str> {
    row_name.strip_prefix(PREFIX)
}

/// How a template was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskedRow {
    /// The rules, as they were given.
    pub rules: String,
    /// Of which state of its parent, once known.
    pub source_lsn: Option<Lsn>,
    /// What was done, as JSON, once it was.
    pub report: Option<String>,
}

impl BranchRow {
    /// The name of the row of the template with this name.
    pub fn template_row_name(name: &str) -> String {
        format!("{PREFIX}{name}")
    }

    /// The name of the template that it is, if it is one.
    pub fn template_name(&self) -> Option<&str> {
        template_name_of(&self.name)
    }
}

impl Store {
    /// Adds a template that is being made, with its timeline. Gives [`InsertBranch::Exists`] if the name is taken; its ancestor says
    /// nothing.
    pub fn insert_template(&self, row: &BranchRow, rules: &str) -> Result<InsertBranch, StoreError> {
        self.write(|transaction| {
            if let Some(existing) = branch::by_name(transaction, &row.name)? {
                return Ok(InsertBranch::Exists(Box::new(existing)));
            }
            let has_parent: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM branches WHERE id = ?1 AND state = 'ready' AND deleted_us IS NULL)",
                params![row.parent.map(|id| id.to_string())],
                |row| row.get(0),
            )?;
            if !has_parent {
                return Ok(InsertBranch::ParentGone);
            }
            transaction.execute(
                "INSERT INTO timelines (id, tenant_id) VALUES (?1, ?2)",
                params![row.timeline.to_string(), row.tenant.to_string()],
            )?;
            branch::insert(transaction, row)?;
            transaction.execute(
                "INSERT INTO masked_templates (branch_id, rules) VALUES (?1, ?2)",
                params![row.id.to_string(), rules],
            )?;
            Ok(InsertBranch::Inserted { ancestor: row.timeline })
        })
    }

    /// Keeps what was done to make a template.
    pub fn put_mask_report(&self, id: BranchId, source_lsn: Lsn, report: &str) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .execute(
                    "UPDATE masked_templates SET source_lsn = ?2, report = ?3 WHERE branch_id = ?1",
                    params![id.to_string(), source_lsn.to_string(), report],
                )
                .map(|_| ())
        })
    }

    /// How a template was made; `None` if the database was lost since.
    pub fn masked(&self, id: BranchId) -> Result<Option<MaskedRow>, StoreError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT rules, source_lsn, report FROM masked_templates WHERE branch_id = ?1")?
                .query_row(params![id.to_string()], |row| {
                    Ok(MaskedRow {
                        rules: row.get("rules")?,
                        source_lsn: parsed_option(row, "source_lsn")?,
                        report: row.get("report")?,
                    })
                })
                .optional()
        })
    }
}
