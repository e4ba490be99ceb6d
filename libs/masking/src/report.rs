//! What was done, for whoever has to answer for it.

use serde::{Deserialize, Serialize};

/// Longest rules that a server takes, in bytes.
pub const RULES_LEN_MAX: usize = 1 << 20;

/// What became of all of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskReport {
    /// Every column that holds values of its own, by database, schema, table and position.
    pub columns: Vec<ColumnReport>,
    /// What belongs to no column.
    pub secrets: SecretsReport,
    /// Relations whose files were written anew: every table, materialized view and TOAST table, those of the catalogs included. It was
    /// checked of each.
    pub relations_rewritten: u64,
}

/// What became of a column.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnReport {
    /// Database.
    pub database: String,
    /// Schema.
    pub schema: String,
    /// Table.
    pub table: String,
    /// Column.
    pub column: String,
    /// Its type.
    pub data_type: String,
    /// What was done.
    pub action: String,
    /// Which rule says so: `column`, `table` (its `*`) or `type`.
    pub rule: String,
    /// Rows of the table; null: it was only looked at, or the column is kept.
    pub rows: Option<u64>,
    /// Of these, how many had a value. Counted with the change itself.
    pub values: Option<u64>,
    /// Of these, how many have the same value still: each row was compared with what it was.
    pub unchanged: Option<u64>,
}

/// What became of what is secret and no user's column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretsReport {
    /// Roles whose password was removed.
    pub role_passwords: u64,
    /// Role and database settings of which the ones of no known kind, with a dot in the name, were removed.
    pub settings: u64,
    /// Subscriptions whose connection string was removed.
    pub subscriptions: u64,
    /// Foreign-data wrappers, foreign servers, user mappings and foreign tables whose options were removed.
    pub foreign_options: u64,
    /// Pages of large objects that were removed; null: the rules keep them.
    pub large_object_pages: Option<u64>,
    /// Prepared transactions that were rolled back.
    pub prepared_transactions: u64,
}
