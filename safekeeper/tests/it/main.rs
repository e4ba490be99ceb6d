//! A safekeeper and its clients, on real files and sockets. One program: each compiles anew what is generic.

#[path = "../support/mod.rs"]
mod support;

mod archive;
mod encrypted;
mod faults;
mod killed;
mod members;
mod one_safekeeper;
mod receive;
mod replication;
mod three_safekeepers;
