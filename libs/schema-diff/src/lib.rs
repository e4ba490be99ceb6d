//! Two catalogs in, ordered DDL out.
//!
//! ```text
//!  CatalogQueries ──(run by the caller, on each side)──► answers ──► Catalog ──┐
//!                                                                              ├─► matching ─► Planner ─► Plan
//!                                                        answers ──► Catalog ──┘    │             │
//!                                                                              by OID or     drop, rename, alter, create,
//!                                                                              by name       each ordered by pg_depend
//! ```
//!
//! A catalog is a set of objects with identities, definitions as Postgres's own `pg_get_*def` functions write them, and what
//! depends on what. Objects with the same identity are compared part by part; what differs is altered in place where Postgres
//! has a statement for that, and else dropped and made again with all that depends on it.
//!
//! Invariants:
//! - SD-1: running [`Plan::statements`] on the old side gives the new side's schema, but for what [`Plan::not_covered`] names.
//! - SD-2: nothing that differs is passed over in silence.
//! - SD-3: a table that is on both sides is never dropped and made again: its rows stay.
//! - SD-4: what rows must obey only when all are there comes in [`Section::AfterRows`]. So do a partition's place and what it needs, but for
//!   a new table's below one that a foreign key references: rows that come refer to its rows.
//! - SD-5: the statements of any parts ([`Statement::part`]) that have all that they need ([`Touched::needs`]) run without the rest.
//!
//! Sans-IO: it knows nothing of connections, and nothing of rows. Large objects are not in a catalog, as there may be millions: what is
//! said about one's owner and privileges is in `large_object`. Start reading at [`plan`].

mod alter;
mod catalog;
mod composite;
mod create;
mod drop;
mod kept_table;
mod labels;
mod large_object;
mod leaving;
mod losses;
mod matching;
mod name;
mod needs;
mod order;
mod phrase;
mod places;
mod plan;
mod privileges;
mod queries;
mod rename;

pub use ardent_types::sql::literal;
pub use catalog::{Catalog, CatalogError, CatalogQueries, Kind, Object, ObjectId, Privilege};
pub use kept_table::{KeptColumn, KeptTable};
pub use labels::reused_labels;
pub use large_object::{LARGE_OBJECT_OWNER, LargeObjectAccess, comment_on_large_object, large_object_privileges};
pub use losses::{Fate, LosingColumn, LosingTable, Losses};
pub use name::{identifier, qualified};
pub use plan::{Action, Identity, Plan, Section, Statement, Touched, plan};
pub use queries::{MISSING, MISSING_IN_PARTITIONS};
