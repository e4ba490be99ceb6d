//! A diff as lines of JSON, one for each change: sent while the diff is being made, and never held.
//!
//! The last line says how it ended: `{"type":"end",...}`, or `{"type":"error",...}`. Where there is neither, the rest is missing.

use std::io::{self, Write};

use ardent_api::control::ErrorInfo;
use ardent_types::Lsn;
use serde::Serialize;

use crate::change_set::{LargeObjectChange, RowChange, SequenceChange, TableState};
use crate::compare::Piece;

/// How the last line of a whole diff begins.
pub const END_LINE: &str = "{\"type\":\"end\"";
/// How the last line of a diff that failed begins.
pub const ERROR_LINE: &str = "{\"type\":\"error\"";

/// What the last line of a whole diff says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiffEnd {
    /// Version of the lines.
    pub schema_version: u32,
    /// The branch.
    pub branch: String,
    /// What it was compared with, if not with its branch point.
    pub against: Option<String>,
    /// From here,
    pub from_lsn: Lsn,
    /// to here.
    pub to_lsn: Lsn,
    /// See [`DiffReport`](crate::DiffReport).
    pub changed_blocks: u64,
    /// See [`DiffReport`](crate::DiffReport).
    pub pages_read_branch_point: u64,
    /// See [`DiffReport`](crate::DiffReport).
    pub pages_read_head: u64,
    /// See [`DiffReport`](crate::DiffReport).
    pub databases_not_compared: Vec<String>,
}

/// A line.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Statement {
        database: &'a str,
        action: ardent_schema_diff::Action,
        kind: &'a str,
        object: &'a str,
        part: &'a str,
        sql: &'a str,
    },
    NotCovered {
        database: &'a str,
        what: &'a str,
    },
    Table {
        database: &'a str,
        schema: &'a str,
        table: &'a str,
        state: TableState,
        renamed_from: &'a Option<(String, String)>,
        columns: &'a [String],
        key: &'a [String],
        columns_added: &'a [String],
        columns_dropped: &'a [String],
    },
    Row {
        database: &'a str,
        of: Of<'a>,
        row: RowChange,
    },
    Sequence {
        database: &'a str,
        sequence: &'a SequenceChange,
    },
    LargeObject {
        database: &'a str,
        large_object: &'a LargeObjectChange,
    },
    End {
        #[serde(flatten)]
        end: &'a DiffEnd,
    },
    Error {
        schema_version: u32,
        error: &'a ErrorInfo,
    },
}

/// The table of a row.
#[derive(Clone, Copy, Serialize)]
struct Of<'a> {
    schema: &'a str,
    table: &'a str,
}

fn put(out: &mut dyn Write, line: &Line<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    writeln!(out)
}

/// Writes the lines of a part of a database's diff.
pub fn write_lines(out: &mut dyn Write, database: &str, piece: &Piece) -> io::Result<()> {
    match piece {
        Piece::Schema(schema) => {
            for statement in &schema.statements {
                let ardent_schema_diff::Statement { action, kind, object, part, sql, .. } = statement;
                put(out, &Line::Statement { database, action: *action, kind, object, part, sql })?;
            }
            for what in &schema.not_covered {
                put(out, &Line::NotCovered { database, what })?;
            }
            Ok(())
        }
        Piece::Table(table) => {
            let (schema, name) = (&table.schema, &table.name);
            put(
                out,
                &Line::Table {
                    database,
                    schema,
                    table: name,
                    state: table.state,
                    renamed_from: &table.renamed_from,
                    columns: &table.columns,
                    key: &table.key,
                    columns_added: &table.columns_added,
                    columns_dropped: &table.columns_dropped,
                },
            )?;
            for row in table.rows.iter() {
                let row = row.map_err(io::Error::other)?;
                put(out, &Line::Row { database, of: Of { schema, table: name }, row })?;
            }
            Ok(())
        }
        // Not what changed.
        Piece::Labels(_) => Ok(()),
        Piece::Sequence(sequence) => put(out, &Line::Sequence { database, sequence }),
        Piece::LargeObject(object) => put(out, &Line::LargeObject { database, large_object: object }),
    }
}

/// Writes the last line of a whole diff.
pub fn write_end(out: &mut dyn Write, end: &DiffEnd) -> io::Result<()> {
    put(out, &Line::End { end })
}

/// Writes the last line of one that failed.
pub fn write_error(out: &mut dyn Write, schema_version: u32, error: &ErrorInfo) -> io::Result<()> {
    put(out, &Line::Error { schema_version, error })
}

#[cfg(test)]
mod tests {
    use ardent_api::control::ApiErrorCode;

    use super::*;
    use crate::change_set::TableChange;
    use crate::spool::Spool;

    fn lines(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Vec<String> {
        let mut out = Vec::new();
        write(&mut out).expect("memory can be written");
        String::from_utf8(out).expect("text").lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_change_is_a_line_and_the_last_one_says_how_it_ended() {
        let table = TableChange {
            schema: "public".into(),
            name: "t".into(),
            renamed_from: None,
            state: TableState::Kept,
            columns: vec!["id".into()],
            columns_added: vec![],
            columns_dropped: vec![],
            base_columns: vec![],
            generated: vec![],
            columns_left: vec![],
            unguarded: vec![],
            materialized_view: false,
            key: vec!["id".into()],
            rows: Spool::of([RowChange::Insert { new: vec![Some("1\n2".into())] }]).expect("short"),
            copies: Spool::default(),
        };
        let found = lines(|out| write_lines(out, "shop", &Piece::Table(table)));
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[1],
            r#"{"type":"row","database":"shop","of":{"schema":"public","table":"t"},"row":{"change":"insert","new":["1\n2"]}}"#
        );
        let end = DiffEnd {
            schema_version: 1,
            branch: "b".into(),
            against: None,
            from_lsn: Lsn::new(16),
            to_lsn: Lsn::new(32),
            changed_blocks: 1,
            pages_read_branch_point: 2,
            pages_read_head: 3,
            databases_not_compared: vec![],
        };
        assert!(lines(|out| write_end(out, &end))[0].starts_with(END_LINE));
        let error = ErrorInfo::new(ApiErrorCode::ComputeFailed, "gone");
        let found = lines(|out| write_error(out, 1, &error));
        assert!(found[0].starts_with(ERROR_LINE) && found[0].contains("compute_failed"), "{found:?}");
    }
}
