//! How far a logical import is, as it is kept over restarts.

use std::collections::{BTreeMap, BTreeSet};

use ardent_types::Lsn;
use serde::{Deserialize, Serialize};

use crate::logical::config::RootBranch;
use crate::logical::error::LogicalError;
use crate::logical::publication::Published;
use crate::logical::rewrites::Files;
use crate::logical::same_columns::SameColumns;

/// The steps, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogicalPhase {
    /// Slot, publication and the schema's first part are being made. Begun anew after an interruption.
    #[default]
    Schema,
    /// Tables are being copied. Those that are done stay so.
    Copy,
    /// Indexes, keys and triggers are being made.
    Index,
    /// Changes are being applied until all tables are of one moment.
    CatchUp,
    /// Foreign keys are being checked, materialized views filled.
    Constraints,
    /// Changes are being applied.
    Follow,
}

impl LogicalPhase {
    /// As statuses show it.
    pub fn word(self) -> &'static str {
        match self {
            LogicalPhase::Schema => "schema",
            LogicalPhase::Copy => "copy",
            LogicalPhase::Index => "index",
            LogicalPhase::CatchUp => "catch_up",
            LogicalPhase::Constraints => "constraints",
            LogicalPhase::Follow => "follow",
        }
    }
}

/// All that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogicalState {
    pub phase: LogicalPhase,
    /// By the OID that they have on the source.
    pub tables: BTreeMap<u32, TableState>,
    /// Tables that are published and not followed: they are being taken over, or that was interrupted. Their changes are passed over.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub passed_over: BTreeSet<u32>,
    /// Statements of the script that were run.
    pub script_done: usize,
    /// What could not be made on the root, each with why.
    pub left_out: Vec<String>,
    /// Production was told at most that all below is flushed, where the root's origin does not show it. Absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_lsn: Option<Lsn>,
    /// The publication as it is known to send all. Absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publication: Option<Published>,
    /// It was said that somebody has changed slot or publication.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_objected_to: bool,
    /// The files that tables are in on the source.
    #[serde(default, skip_serializing_if = "Files::is_empty")]
    pub files: Files,
    /// Tables that were written anew on the source, by what was not sent.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub rewritten: BTreeSet<u32>,
}

/// A table that is followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableState {
    pub schema: String,
    pub name: String,
    /// Its size on the source when the import began.
    pub bytes: u64,
    /// It was copied as it was there: what was committed later is applied to it. Absent: it is not copied yet.
    pub copied_at: Option<Lsn>,
    /// Its columns. Absent where it was kept by an earlier version: they are taken as they are found with its next change.
    #[serde(default, skip_serializing_if = "SameColumns::is_unknown")]
    pub columns: SameColumns,
}

impl TableState {
    /// Schema and name, for messages.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

impl LogicalState {
    /// What is kept of the connector of a root branch; nothing yet: where it begins.
    pub fn read(branch: &dyn RootBranch) -> Result<LogicalState, LogicalError> {
        match branch.saved().map_err(LogicalError::Branch)? {
            Some(text) => serde_json::from_str(&text).map_err(|error| LogicalError::State(error.to_string())),
            None => Ok(LogicalState::default()),
        }
    }

    /// Names of the tables that are followed, with their schemas, for messages.
    pub fn names(&self) -> BTreeMap<u32, String> {
        self.tables.iter().map(|(oid, table)| (*oid, table.full_name())).collect()
    }

    /// Whether a table of this name is followed.
    pub fn follows(&self, schema: &str, name: &str) -> bool {
        self.tables.values().any(|table| (table.schema.as_str(), table.name.as_str()) == (schema, name))
    }

    /// Whether that is the name of another table than this one.
    pub fn is_anothers(&self, oid: u32, schema: &str, name: &str) -> bool {
        let mut others = self.tables.iter().filter(|(other, _)| **other != oid);
        others.any(|(_, table)| (table.schema.as_str(), table.name.as_str()) == (schema, name))
    }

    /// Where all tables are of one moment.
    pub fn consistent_from(&self) -> Lsn {
        self.tables.values().filter_map(|table| table.copied_at).max().unwrap_or(Lsn::INVALID)
    }

    /// Bytes of the tables, and of those that are copied.
    pub fn bytes(&self) -> (u64, u64) {
        let all = self.tables.values().map(|table| table.bytes).sum();
        let done = self.tables.values().filter(|table| table.copied_at.is_some()).map(|table| table.bytes).sum();
        (done, all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logical::same_columns::{ColumnType, SeenFile};

    #[test]
    fn what_is_kept_is_read_again() {
        let columns = SameColumns {
            root_oid: 5,
            pairs: [(1, 1), (2, 3)].into(),
            highest: 3,
            file: Some(SeenFile { filenode: 7, highest: 3, types: [(3, ColumnType(1043, 14))].into() }),
        };
        let table = |copied_at: Option<Lsn>| {
            let columns = if copied_at.is_some() { columns.clone() } else { SameColumns::default() };
            TableState { schema: "s".into(), name: "t".into(), bytes: 7, copied_at, columns }
        };
        let state = LogicalState {
            phase: LogicalPhase::Copy,
            tables: [(1, table(Some(Lsn::new(0x10)))), (2, table(None))].into(),
            passed_over: [9].into(),
            script_done: 3,
            left_out: vec!["x".into()],
            confirmed_lsn: Some(Lsn::new(0x20)),
            is_objected_to: true,
            rewritten: [1].into(),
            ..LogicalState::default()
        };
        let text = serde_json::to_string(&state).expect("plain data");
        assert_eq!(serde_json::from_str::<LogicalState>(&text).expect("reads"), state);
        assert!(text.contains(r#""phase":"copy""#), "{text}");
        let older = text.replace(r#""passed_over":[9],"#, "");
        assert!(serde_json::from_str::<LogicalState>(&older).expect("reads").passed_over.is_empty());
        let older = r#"{"schema": "s", "name": "t", "bytes": 7, "copied_at": null}"#;
        assert_eq!(serde_json::from_str::<TableState>(older).expect("reads"), table(None));
        assert_eq!((state.consistent_from(), state.bytes()), (Lsn::new(0x10), (7, 14)));
    }
}
