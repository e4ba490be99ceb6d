//! The page server and its storage with pages and WAL that are made up. One program: each compiles anew what is generic.

mod amplification;
mod checklist;
mod large;
mod workload;
