//! Control: who owns which timeline, branch and compute; their lifecycle; the HTTP API; the store.
//!
//! ```text
//!  CLI, programs ── HTTP /v1, bearer token ──┐
//!  proxy ── Unix socket /internal/v1 ────────┤
//!                                            ▼
//!     http ──► service, branches, connectors ──► store (SQLite: what is to be)
//!                        │            │
//!                        │            └──► ConnectorRuntime ── production
//!                        ├──► PageService, WalService ── timelines, leases
//!                        └──► ComputePool ──► `ardent agent` child processes
//! ```
//!
//! Invariants:
//! - CT-1: a row exists before anything is made for it, and goes after everything of it is gone, or is written down as a safekeeper's
//!   to do that was away (`wal_debts.rs`); so a crash leaves nothing that no row knows.
//! - CT-2: rows in state `creating` are undone at the next start, but for connectors in logical mode that have a root branch, which
//!   are continued (`logical.rs`); rows in state `deleting` are deleted.
//! - CT-3: a branch with children is never deleted (one transaction checks and marks).
//! - CT-4: at most one agent runs per branch: slots within a run, recorded process identities across runs. Were both to fail,
//!   the safekeepers' terms still fence the older writer.
//! - CT-5: passwords and URLs are stored sealed, tokens hashed; none is logged.
//! - CT-6: a branch moves to another timeline in one transaction, when storage has all of the new one and nothing of the old
//!   one's compute is left (`switch.rs`); what it left is kept, and deleted after all that hangs on it (`deletion.rs`).
//!
//! - CT-7: what a timeline is to users is in its manifest from the first one on, and what changes is told until the page server has
//!   it (`descriptions.rs`); a lost store is made anew from that (`recovery.rs`).
//! - CT-8: a masked template is a branch that only `masked.rs` finds; its timeline is a root that holds nothing but masked data, and no
//!   name reaches anything of it before it is whole.
//! - CT-9: before a timeline without a writer is read up to where it is committed, or something that hangs on it is, safekeepers that hold
//!   more than they say to be committed are made to commit it: what a crash left was acknowledged, or may have been (`log_completion.rs`).
//!
//! - CT-10: of a connector that gives out masked data only, nothing comes behind a URL that is not masked, but for what was behind that one
//!   before (`masked_only.rs`).
//!
//! Control does not know WAL or the Postgres protocol, and of pages only whether a row's version is there (`blame.rs`). It depends on
//! no other service's crate: the page server, safekeepers and connectors are traits in [`deps`]. Start reading at [`service`], then
//! [`branches`].

mod apply;
mod blame;
pub mod branches;
mod checkpoints;
mod collations;
pub mod compute;
pub mod connectors;
mod context;
mod data_dir;
pub mod deletion;
pub mod deps;
mod descriptions;
mod diff;
mod history;
mod http;
mod lineage;
mod log_completion;
mod logical;
mod masked;
mod masked_only;
mod members;
mod metrics;
mod parent;
pub mod pgurl;
mod point;
mod rebase;
pub mod recovery;
mod safekeepers;
pub mod scram;
pub mod secrets;
pub mod service;
mod slots;
mod source_move;
mod statement_log;
pub mod storage;
pub mod store;
pub mod switch;
mod wal_debts;
mod writers;

pub use compute::PoolConfig;
pub use data_dir::DataDir;
pub use members::check_safekeeper_count;
pub use pgurl::{PgUrl, PublicAddress};
pub use service::{Control, ControlConfig, Dependencies, RunningControl, StartError};
pub use statement_log::StatementLogs;
pub use storage::{PageServerAt, SafekeepersAt};
