//! Control on fakes of what it depends on. One program: each compiles anew what is generic.

mod api;
mod checkpoints;
mod lifecycle;
mod logical;
mod masked_only;
mod members;
mod random;
mod recovery;
mod time;
mod warm;
mod world;
