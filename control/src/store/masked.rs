//! Masked templates: branches that no compute runs on and no name reaches, with how they were made.
//!
//! A template's row is a branch's, in state `creating` from its first step until its timeline is whole: found half made at start, it is
//! undone as any other branch. Its timeline is a root, whatever it was made from.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::digest::{SHA256, digest};
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use serde::{Deserialize, Serialize};

use ardent_masking::MaskReport;
use ardent_types::{BranchId, Lsn};

use super::branch::{self, BranchRow, InsertBranch};
use super::{Store, StoreError, parsed_option};

/// What a template's row is named before its name: no user can give such a name, as a DNS label has no dot.
const PREFIX: &str = "masked.";

/// The name of the template whose row has this name, if it is one's.
pub fn template_name_of(row_name: &str) -> Option<&str> {
    row_name.strip_prefix(PREFIX)
}

/// Longest report in a manifest, packed, which holds all else of a description besides; some ten thousand columns.
const PACKED_LEN_MAX: usize = 192 << 10;
/// Longest report that is unpacked: packed, nothing that was a report becomes so long.
const REPORT_LEN_MAX: usize = 256 << 20;
const PACK_LEVEL: i32 = 9;
/// What stands before the digest of rules in their place, once they are not known themselves. Rules begin with a brace.
const DIGEST: &str = "sha256:";

/// How a template was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskedRow {
    /// The rules, as they were given; or, if the database was lost since, their digest.
    pub rules: String,
    /// Of which state of its parent, once known.
    pub source_lsn: Option<Lsn>,
    /// What was done, as JSON, once it was.
    pub report: Option<String>,
}

/// The same in the timeline's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskedDescription {
    /// SHA-256 of the rules, hexadecimal.
    pub rules_sha256: String,
    /// Of which state of its parent.
    pub source_lsn: Option<Lsn>,
    /// What was done: JSON, packed by Zstandard, in base64. `None`: it was not done yet, or is too long to be kept so.
    pub report: Option<String>,
}

impl MaskedRow {
    /// Whether it was made by these rules.
    pub fn is_by(&self, rules: &str) -> bool {
        self.rules == rules || self.rules == rules_digest(rules)
    }

    /// What its manifest is to say.
    pub fn description(&self) -> std::io::Result<MaskedDescription> {
        let digest = match self.rules.strip_prefix(DIGEST) {
            Some(digest) => digest.to_owned(),
            None => rules_digest(&self.rules)[DIGEST.len()..].to_owned(),
        };
        let packed = self.report.as_ref().map(|report| pack(report)).transpose()?;
        let report = packed.filter(|packed| packed.len() <= PACKED_LEN_MAX);
        Ok(MaskedDescription { rules_sha256: digest, source_lsn: self.source_lsn, report })
    }
}

impl MaskedDescription {
    /// What it says. A report that cannot be read is none.
    pub fn row(&self) -> MaskedRow {
        MaskedRow {
            rules: format!("{DIGEST}{}", self.rules_sha256),
            source_lsn: self.source_lsn,
            report: self.report.as_deref().and_then(unpack),
        }
    }
}

fn rules_digest(rules: &str) -> String {
    format!("{DIGEST}{}", hex::encode(digest(&SHA256, rules.as_bytes())))
}

fn pack(report: &str) -> std::io::Result<String> {
    zstd::bulk::compress(report.as_bytes(), PACK_LEVEL).map(|packed| BASE64.encode(packed))
}

fn unpack(packed: &str) -> Option<String> {
    let packed = BASE64.decode(packed).ok()?;
    let mut report = String::new();
    let unpacked = zstd::stream::read::Decoder::new(&packed[..]).ok()?;
    std::io::Read::read_to_string(&mut std::io::Read::take(unpacked, REPORT_LEN_MAX as u64), &mut report).ok()?;
    // What is no report says nothing of what was done.
    serde_json::from_str::<MaskReport>(&report).ok().map(|_| report)
}

/// How the template on `branch` was made, read within a transaction or outside of one.
pub(super) fn by_branch(connection: &Connection, branch: BranchId) -> rusqlite::Result<Option<MaskedRow>> {
    connection
        .prepare_cached("SELECT rules, source_lsn, report FROM masked_templates WHERE branch_id = ?1")?
        .query_row(params![branch.to_string()], |row| {
            Ok(MaskedRow {
                rules: row.get("rules")?,
                source_lsn: parsed_option(row, "source_lsn")?,
                report: row.get("report")?,
            })
        })
        .optional()
}

/// Whether a branch holds other data than masked, of a connector that gives out masked data only.
pub(super) fn is_withheld(connection: &Connection, branch: BranchId) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "WITH RECURSIVE line (name, parent_id) AS (
                SELECT name, parent_id FROM branches WHERE id = ?1
                UNION ALL SELECT b.name, b.parent_id FROM branches b JOIN line l ON b.id = l.parent_id)
             SELECT EXISTS (SELECT 1 FROM branches b JOIN connectors c ON c.name = b.connector WHERE b.id = ?1 AND c.masked_only)
                AND NOT EXISTS (SELECT 1 FROM line WHERE substr(name, 1, length(?2)) = ?2)",
        )?
        .query_row(params![branch.to_string(), PREFIX], |row| row.get(0))
}

/// Adds how a template was made.
pub(super) fn insert(transaction: &Transaction<'_>, branch: BranchId, made: &MaskedRow) -> rusqlite::Result<()> {
    transaction
        .execute(
            "INSERT INTO masked_templates (branch_id, rules, source_lsn, report) VALUES (?1, ?2, ?3, ?4)",
            params![branch.to_string(), made.rules, made.source_lsn.map(|lsn| lsn.to_string()), made.report],
        )
        .map(|_| ())
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
            insert(transaction, row.id, &MaskedRow { rules: rules.to_owned(), source_lsn: None, report: None })?;
            Ok(InsertBranch::Inserted { ancestor: row.timeline })
        })
    }

    /// Keeps what was done to make a template, which its description says from then on.
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

    /// Whether a branch holds other data than masked, of a connector that gives out masked data only.
    pub fn is_withheld(&self, id: BranchId) -> Result<bool, StoreError> {
        self.read(|connection| is_withheld(connection, id))
    }

    /// Lets a connector give out masked data only, or all again. When this returns no branch can be made any more that is not masked.
    pub fn set_masked_only(&self, connector: &str, masked_only: bool) -> Result<(), StoreError> {
        self.write(|transaction| {
            transaction
                .execute("UPDATE connectors SET masked_only = ?2 WHERE name = ?1", params![connector, masked_only])
                .map(|_| ())
        })
    }

    /// The names of a connector's branches that are not masked, in order.
    pub fn unmasked_branches(&self, connector: &str) -> Result<Vec<String>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "WITH RECURSIVE masked (id) AS (
                    SELECT id FROM branches WHERE substr(name, 1, length(?2)) = ?2
                    UNION SELECT b.id FROM branches b JOIN masked m ON b.parent_id = m.id)
                 SELECT name FROM branches WHERE connector = ?1 AND parent_id IS NOT NULL AND NOT hidden AND deleted_us IS NULL
                    AND state <> 'deleting' AND id NOT IN (SELECT id FROM masked) ORDER BY name",
            )?;
            statement.query_map(params![connector, PREFIX], |row| row.get(0))?.collect()
        })
    }

    /// How a template was made; `None` if the database was lost since, and its manifest did not say.
    pub fn masked(&self, id: BranchId) -> Result<Option<MaskedRow>, StoreError> {
        self.read(|connection| by_branch(connection, id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(report: Option<String>) -> MaskedRow {
        MaskedRow { rules: "{}".to_owned(), source_lsn: Some(Lsn::new(0x123_4568)), report }
    }

    fn report(columns: usize) -> String {
        let column = |index: usize| ardent_masking::ColumnReport {
            database: "shop".to_owned(),
            schema: "public".to_owned(),
            table: format!("table_{}", index / 12),
            column: format!("column_{}_{:x}", index % 12, index.wrapping_mul(0x9E37_79B9) % 4096),
            data_type: ["integer", "text", "timestamp with time zone"][index % 3].to_owned(),
            action: ["keep", "hash", "null", "permute"][index % 4].to_owned(),
            rule: ["column", "type"][index % 2].to_owned(),
            rows: Some((index * index % 1_000_003) as u64),
            values: Some((index * index % 1_000_003) as u64),
            unchanged: Some(0),
        };
        let report = MaskReport { columns: (0..columns).map(column).collect(), ..MaskReport::default() };
        serde_json::to_string(&report).expect("plain data")
    }

    #[test]
    fn what_is_known_of_a_template_survives_as_its_description() {
        for row in [made(None), made(Some(report(0))), made(Some(report(10_000)))] {
            let description = row.description().expect("it can be packed");
            assert_eq!(description.report.is_some(), row.report.is_some());
            let again = description.row();
            assert_eq!((again.source_lsn, &again.report), (row.source_lsn, &row.report));
            assert!(again.is_by("{}") && !again.is_by("{ }") && row.is_by("{}"));
            assert_eq!(again.description().expect("it can be packed"), description);
        }
    }

    #[test]
    fn what_is_too_long_or_damaged_is_not_known() {
        let long = made(Some(report(60_000))).description().expect("it can be packed");
        assert_eq!(long.report, None);
        let good = made(Some(report(3))).description().expect("it can be packed");
        let other = pack("[]").expect("it can be packed");
        for damaged in ["", "?", "AAAA", &good.report.as_ref().expect("it is there")[4..], &other] {
            let description = MaskedDescription { report: Some(damaged.to_owned()), ..good.clone() };
            assert_eq!(description.row().report, None, "{damaged}");
        }
    }
}
