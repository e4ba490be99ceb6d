//! How far a timeline has come, and those who wait for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::Instant;

use ardent_types::Lsn;
use parking_lot::{Condvar, Mutex};

use crate::position::RecordPosition;

struct State {
    last: RecordPosition,
    wakers: Vec<(Lsn, Waker)>,
}

/// The last record that readers may see.
pub(crate) struct Progress {
    state: Mutex<State>,
    advanced: Condvar,
    end: AtomicU64,
}

impl Progress {
    pub(crate) fn new(last: RecordPosition) -> Self {
        Progress {
            end: AtomicU64::new(last.end.get()),
            state: Mutex::new(State { last, wakers: Vec::new() }),
            advanced: Condvar::new(),
        }
    }

    pub(crate) fn last(&self) -> RecordPosition {
        self.state.lock().last
    }

    /// End of the last record.
    pub(crate) fn end(&self) -> Lsn {
        Lsn::new(self.end.load(Ordering::Acquire))
    }

    /// Makes everything up to `last` visible.
    pub(crate) fn advance(&self, last: RecordPosition) {
        let mut state = self.state.lock();
        assert!(last.end >= state.last.end, "the last record never moves back");
        state.last = last;
        self.end.store(last.end.get(), Ordering::Release);
        let mut woken = Vec::new();
        state.wakers.retain(|(lsn, waker)| {
            let reached = *lsn <= last.end;
            if reached {
                woken.push(waker.clone());
            }
            !reached
        });
        drop(state);
        self.advanced.notify_all();
        woken.into_iter().for_each(Waker::wake);
    }

    /// Wakes everybody, for a look at something other than the position.
    pub(crate) fn wake_all(&self) {
        let wakers = std::mem::take(&mut self.state.lock().wakers);
        self.advanced.notify_all();
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// True once `lsn` is reached, false at `deadline`.
    pub(crate) fn wait_for(&self, lsn: Lsn, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while state.last.end < lsn {
            if self.advanced.wait_until(&mut state, deadline).timed_out() {
                return state.last.end >= lsn;
            }
        }
        true
    }

    /// Whether `lsn` is reached; if not, `waker` is woken when it is. A waker that waits for this LSN already isn't kept twice.
    pub(crate) fn poll(&self, lsn: Lsn, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        if state.last.end >= lsn {
            return true;
        }
        if !state.wakers.iter().any(|(waiting, other)| *waiting == lsn && other.will_wake(waker)) {
            state.wakers.push((lsn, waker.clone()));
        }
        false
    }
}
