//! The ingest checklist, as far as it is this crate's. One program: each compiles anew what is generic.

#[path = "../support/mod.rs"]
mod support;

mod relations;
mod transactions;
mod unnamed;
