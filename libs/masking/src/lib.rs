//! Rules that say what becomes of each column, and the SQL that makes it so.
//!
//! ```text
//!  rules (JSON) ──► Rules ─┐
//!                          ├─► plan: an action for every column, or a list of what no rule names ──► UPDATEs
//!  catalogs ──► Database ──┘                                                                           │
//!                                                                                                      ▼
//!  a database ◄── secrets of the cluster cleared, rows masked, views refreshed, statistics emptied, everything rewritten
//! ```
//!
//! Invariants:
//! - MK-1: a column that no rule names stops all of it, before anything is changed (`plan.rs`).
//! - MK-2: nothing is silently left as it was: what an action cannot do to a column's type, key or constraint is an error that names
//!   the column (`plan.rs`), and a relation whose file was not written anew is one that names the relation (`run.rs`).
//! - MK-3: what masks is a secret of one run. It is not in what was masked, and whoever has that cannot try values out.
//!
//! It works on a database that nobody else uses and that is thrown away if it fails: it commits in between. It knows nothing of
//! branches. The rules are described for users in `docs/masking.md`. Start reading at [`Rules`], then [`plan()`], then [`Masking`].

mod action;
mod api;
mod catalog;
mod expression;
mod name;
mod permutation;
mod plan;
mod report;
mod rules;
mod run;

pub use action::Action;
pub use api::{CheckMaskingRequest, CreateMaskedRequest, MaskEvent, MaskedInfo, MaskedList, MaskingCheck};
pub use catalog::{Column, Database, ForeignKey, Sequence, Table, read_database};
pub use name::{TableName, TableNameError};
pub use plan::{
    Plan, PlanError, PlannedColumn, PlannedSequence, PlannedTable, Problem, RangeCheck, Source, Unnamed, plan,
};
pub use report::{ColumnReport, MaskReport, RULES_LEN_MAX, SecretsReport};
pub use rules::{LargeObjects, Rules, RulesError};
pub use run::{Connect, MaskError, Masking, Progress};
