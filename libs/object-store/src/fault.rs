//! Named fail points: places where a test makes a write, a rename or an fsync fail, or the whole store die.
//!
//! A point that is not armed costs one relaxed load. Every point that is passed while recording is on is remembered, so that a
//! test can visit them all.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// What happens at an armed point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAction {
    /// This one operation fails.
    Fail,
    /// This operation and everything after it fails, as if the process had been killed here.
    Die,
    /// The process ends here and now, as by `kill -9`: nothing of it runs any more.
    Abort,
    /// The disk is full: this operation fails with `ENOSPC`.
    DiskFull,
}

#[derive(Debug, Default)]
struct State {
    armed: BTreeMap<String, (u64, FaultAction)>,
    passed: BTreeMap<String, u64>,
    dead: bool,
}

/// A set of fail points. One is shared by everything that should die together.
#[derive(Debug, Default)]
pub struct FailPoints {
    active: AtomicBool,
    state: Mutex<State>,
}

impl FailPoints {
    /// Nothing armed, nothing recorded.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts to count how often each point is passed.
    pub fn record(&self) {
        self.active.store(true, Ordering::SeqCst);
    }

    /// Makes the point `name` act when it is passed for the `nth` time from now (1: the next time).
    pub fn arm(&self, name: &str, nth: u64, action: FaultAction) {
        self.state.lock().armed.insert(name.to_owned(), (nth.max(1), action));
        self.active.store(true, Ordering::SeqCst);
    }

    /// Forgets everything: armed points, counts, death.
    pub fn reset(&self) {
        *self.state.lock() = State::default();
        self.active.store(false, Ordering::SeqCst);
    }

    /// How often each point was passed since recording began.
    pub fn passed(&self) -> BTreeMap<String, u64> {
        self.state.lock().passed.clone()
    }

    /// Whether a [`FaultAction::Die`] has struck.
    pub fn is_dead(&self) -> bool {
        self.state.lock().dead
    }

    /// Passes the point `name`.
    pub fn pass(&self, name: &str) -> io::Result<()> {
        if !self.active.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut state = self.state.lock();
        if state.dead {
            return Err(io::Error::other(format!("dead since an earlier fail point, at {name}")));
        }
        *state.passed.entry(name.to_owned()).or_default() += 1;
        let Some((remaining, action)) = state.armed.get_mut(name) else { return Ok(()) };
        *remaining -= 1;
        if *remaining > 0 {
            return Ok(());
        }
        let action = *action;
        state.armed.remove(name);
        match action {
            FaultAction::Fail => Err(io::Error::other(format!("fail point {name}"))),
            FaultAction::Abort => std::process::abort(),
            FaultAction::DiskFull => Err(io::Error::from(io::ErrorKind::StorageFull)),
            FaultAction::Die => {
                state.dead = true;
                Err(io::Error::other(format!("died at fail point {name}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_pass_acts_and_death_lasts() {
        let points = FailPoints::new();
        points.arm("a", 2, FaultAction::Fail);
        assert!(points.pass("a").is_ok());
        assert!(points.pass("a").is_err());
        assert!(points.pass("a").is_ok());
        points.arm("b", 1, FaultAction::Die);
        assert!(points.pass("b").is_err());
        assert!(points.pass("a").is_err());
        assert!(points.is_dead());
        points.reset();
        assert!(points.pass("a").is_ok());
    }
}
