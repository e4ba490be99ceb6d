//! Clocks that jump, forwards and back. Writers alone have one: an acceptor never looks at the time.

use super::world::{Event, FAULTS_END_US, World};

/// When clocks jump, they still do, and messages are still lost, for this long after all other faults: a writer that waits for its clock
/// must get over it.
const JUMPS_END_US: u64 = FAULTS_END_US + 1_500_000;
const FAR_US: u64 = 3_600_000_000;
const NEAR_US: u64 = 500_000;

/// What a cluster's clocks do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clocks {
    Steady,
    Jumping,
}

/// How often which way.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Jumps {
    pub(crate) forwards: usize,
    pub(crate) back: usize,
}

impl Jumps {
    pub(crate) fn add(&mut self, other: Jumps) {
        self.forwards += other.forwards;
        self.back += other.back;
    }

    pub(crate) fn is_all(&self) -> bool {
        self.forwards > 0 && self.back > 0
    }
}

impl World {
    pub(super) fn start_clocks(&mut self) {
        if self.clocks == Clocks::Jumping {
            self.schedule(0, Event::ClockJump);
        }
    }

    /// How far a new writer's clock is ahead.
    pub(super) fn clock_of_a_writer(&mut self) -> u64 {
        match self.clocks {
            Clocks::Steady => 0,
            Clocks::Jumping => self.dice.between(0, FAR_US),
        }
    }

    /// Whether the network may lose this. After the faults no read gets lost: a shell tells its writer of each that failed.
    pub(super) fn may_lose(&self, event: &Event) -> bool {
        let still_jump = self.clocks == Clocks::Jumping && self.now_us < JUMPS_END_US;
        self.faults() || still_jump && matches!(event, Event::ToNode { .. } | Event::ToProposer { .. })
    }

    /// The clock of one writer jumps.
    pub(super) fn clock_jump(&mut self) {
        if self.now_us >= JUMPS_END_US {
            return;
        }
        let pause = self.dice.between(5_000, 200_000);
        self.schedule(pause, Event::ClockJump);
        let by_us = if self.dice.chance(500) { self.dice.between(1, FAR_US) } else { self.dice.between(1, NEAR_US) };
        let forwards = self.dice.chance(500);
        let which = self.dice.next() as usize;
        let mut alive: Vec<_> = self.writers.iter_mut().filter(|writer| writer.alive).collect();
        if alive.is_empty() {
            return;
        }
        let at = which % alive.len();
        let ahead_us = &mut alive[at].clock_ahead_us;
        if forwards {
            *ahead_us += by_us;
            self.jumps.forwards += 1;
        } else {
            *ahead_us = ahead_us.saturating_sub(by_us);
            self.jumps.back += 1;
        }
    }
}
