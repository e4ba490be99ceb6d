//! The time by which things are deleted for their age: the host's clock, unless it has jumped.
//!
//! ```text
//!  wall clock ───────┐
//!                    ├─ Reading ──► TrustedClock (no I/O) ──► time, doubt
//!  time since boot ──┘                   ▲    │
//!                                        └────┴── a file, over restarts (KeptClock)
//! ```
//!
//! A clock that is once set a week ahead, by a wrong answer from NTP or as a virtual machine goes on from long ago, makes all of a week's
//! history look old, and what is given up for that does not come back when the clock is set right. So whoever deletes by age asks this one.
//!
//! Invariants:
//! - TC-1: from one look to any later one the time moves on by no more than the time that has passed, a thousandth of that, and a minute (an
//!   hour over a start of the host, of which nobody knows how long it was off), unless the wall clock has stayed where it is for as long
//!   as [`Doubt`] says.
//! - TC-2: it moves on to no time that the wall clock has not shown, and goes back only to a wall clock that was behind for that long.
//! - TC-3: a restart of the program changes neither: what was seen is kept in a file.
//!
//! It does not know what is deleted by it. Start reading in `clock.rs`.

mod clock;
mod kept;

pub use clock::{Doubt, Reading, TrustedClock};
pub use kept::{KeptClock, boot_id};
