//! The engine on folders, stores in memory and an S3 server. One program: each compiles anew what is generic.

#[path = "../support/mod.rs"]
mod support;

mod blocking;
mod checklist;
mod concurrency;
mod corruption;
mod cut;
mod debt;
mod engine;
mod faults;
mod fencing;
mod import;
mod inspect;
mod kept_state;
mod large_record;
mod outage;
mod scrub;
