//! A real Postgres server for tests.
//!
//! ```text
//!  TestPg::start(options) ── initdb ──► temp folder ── postgres ──► Unix socket (and TCP, if asked for)
//!                                                                      ▲                    │
//!                                RandomTables: a seed's statements ────┘                    └──► state, rows: what is in it, as text
//! ```
//!
//! Postgres refuses to run as root. When the tests run as root, every server program is run as the user `postgres`, and
//! the folder belongs to that user; otherwise they run as whoever runs the tests.
//!
//! Postgres 15, or the major that `ARDENT_TEST_MAJOR` names, unless [`TestPgOptions::major`] says otherwise.
//!
//! [`TestPg::shared`] is one server for all tests of a program that need no more than databases of their own.
//!
//! Invariants: a server that can't be started is a panic with its log, never a skipped test; dropping a [`TestPg`] ends
//! its own process (by the child's id) and removes its folder; the shared one is dropped at the process's end.
//!
//! Knows nothing of Ardent.

mod contents;
mod pgbench_run;
mod programs;
mod random_tables;
mod server;
mod shared;
pub mod side_by_side;

pub use tempfile::TempDir;

pub use contents::{Ask, differing_lines, rows, state};
pub use pgbench_run::{PgbenchRun, PgbenchRunOptions};
pub use programs::{
    bin_dir, bin_dir_of, clients_dir_of, other_majors, program, server_command, server_command_of, temp_dir, test_major,
};
pub use random_tables::RandomTables;
pub use server::{StopMode, TestPg, TestPgOptions};
