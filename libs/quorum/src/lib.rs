//! Consensus on a timeline's WAL: the proposer (one writer) and the acceptor (one safekeeper's part) as state machines
//! without I/O. `docs/quorum.md` states the protocol and argues why it is right.
//!
//! ```text
//!   WAL, ticks, replies                                    messages, "the disk has it"
//!          │                                                          │
//!          ▼          Vote, Begin, Append                             ▼
//!   Proposer::step ─────────────────────────────────────────► Acceptor::step
//!          │      ◄─────────────────────────────────────────          │
//!          ▼          their replies                                   ▼
//!   Send, Scan, Fetch, Elected, Progress, Closed      Persist, Truncate, Write, Committed, Reply
//! ```
//!
//! The shells (`ardent-wal-client`, `ardent-safekeeper`) and the simulation in this crate's tests feed inputs and carry
//! out effects, in order; an effect is carried out, durably where it says so, before the one behind it.
//!
//! Who the acceptors are is a [`Configuration`], which changes by generations: both machines carry it, [`CatchUp`] says when a change may
//! be settled. Until the first change the shells go by generation 0, in which acceptors are known by their order alone.
//!
//! Invariants are functions in [`invariant`], used by the simulation, by tests and as asserts.
//!
//! Not known here: sockets, clocks (time is an argument), files, what a WAL record is (record ends are told by the shell).
//!
//! Start reading with [`acceptor`], then [`proposer`], then [`configuration`] and [`catch_up`].

pub mod acceptor;
mod bug;
pub mod catch_up;
pub mod configuration;
pub mod history;
pub mod invariant;
mod log_buffer;
mod peer;
pub mod proposer;
pub mod proposer_message;
#[cfg(test)]
mod simulation;

pub use acceptor::{Acceptor, AcceptorEffect, AcceptorState, OutOfOrder, Reply, VoteAnswer};
pub use catch_up::{CatchUp, CatchUpVerdict, LogPosition, Promise, Standing};
pub use configuration::{ChangeRefused, Configuration, DiskId, MemberGeneration};
pub use history::TermHistory;
pub use proposer::{Proposer, ProposerLimits};
pub use proposer_message::{CloseReason, Elected, ProposerEffect, ProposerInput, Voter};
