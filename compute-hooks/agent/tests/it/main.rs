//! One agent with a real Postgres, on real files and sockets. One program: each compiles anew what is generic.

mod faults;
mod guardrails;
mod life;
mod machine_code;
mod rig;
mod sandbox;
mod statements;
