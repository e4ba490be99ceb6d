//! The connector on real servers. One program: each compiles anew what is generic.

mod checklist;
mod real_postgres;
