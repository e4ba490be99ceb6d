//! End to end tests of Ardent: real processes, real Postgres, free ports.
//!
//! ```text
//!  test ── House ──► ardent up (own data directory, own configuration, own ports)
//!    │       └─────► ardent connector | branch | ...
//!    ├── TestPg: a production server
//!    └── psql, pgbench, pg_amcheck ──TLS──► proxy ──► a branch
//! ```
//!
//! Invariants: a missing program is a failure that says how to make it; what a [`House`] started is gone when it is dropped,
//! ended by process id.
//!
//! Knows nothing of Ardent's crates: only the program, its output and its files.

mod apart;
mod bank;
mod disk;
mod extensions;
mod house;
mod ledger;
mod managed;
mod mcp;
mod network;
mod processes;
mod production;
mod psql;
mod relay;
mod session;
mod side_by_side;

pub use apart::Apart;
pub use bank::Bank;
pub use disk::{SlowFsync, SmallDisk};
pub use extensions::Extension;
pub use house::{Background, Finished, House, free_port, is_chroot};
pub use ledger::{Acknowledged, Ledger};
pub use managed::{MANAGED_HBA, managed, managed_url};
pub use mcp::Mcp;
pub use network::{Lost, Network};
pub use processes::{Process, descendants, wait_until};
pub use production::{Load, production_options};
pub use psql::{in_database, pg_program, sql, table_sums, try_sql};
pub use relay::Relay;
pub use session::{Said, Session};
pub use side_by_side::side_by_side;
