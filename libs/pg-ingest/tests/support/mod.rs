//! Shared by the tests of this crate: storage in memory, a data directory as an import, WAL files as records.

#![allow(dead_code, reason = "each test program uses a part")]

pub mod directory;
pub mod store;
pub mod timeline;
