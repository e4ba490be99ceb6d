//! Time without the pauses in which a rehearsal looks around: what is held meanwhile would not be held in production.

use std::time::{Duration, Instant};

/// Moments as time since the beginning, pauses left out. None may be asked for that lies before the last [`Clock::resume`].
#[derive(Debug)]
pub(crate) struct Clock {
    began: Instant,
    /// Pauses before the last resumption.
    left_out: Duration,
    /// Since then.
    pauses: Vec<(Instant, Instant)>,
    paused_from: Option<Instant>,
}

impl Clock {
    pub fn new(began: Instant) -> Clock {
        Clock { began, left_out: Duration::ZERO, pauses: Vec::new(), paused_from: None }
    }

    /// A pause that is over.
    pub fn pause(&mut self, from: Instant, to: Instant) {
        self.pauses.push((from, to));
    }

    /// A pause until [`Clock::resume`].
    pub fn pause_from(&mut self, from: Instant) {
        self.paused_from.get_or_insert(from);
    }

    pub fn resume(&mut self, now: Instant) {
        let open = self.paused_from.take().map(|from| (from, now));
        let over = self.pauses.drain(..).chain(open);
        self.left_out += over.map(|(from, to)| to.saturating_duration_since(from)).sum::<Duration>();
    }

    /// A moment as time since the beginning.
    pub fn at(&self, moment: Instant) -> Duration {
        let open = self.paused_from.map(|from| (from, moment.max(from)));
        let pauses = self.pauses.iter().copied().chain(open);
        let left_out: Duration = pauses.map(|(from, to)| to.min(moment).saturating_duration_since(from)).sum();
        moment.saturating_duration_since(self.began).saturating_sub(self.left_out + left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_left_out() {
        let began = Instant::now();
        let ms = |count| began + Duration::from_millis(count);
        let mut clock = Clock::new(began);
        clock.pause(ms(10), ms(15));
        clock.pause_from(ms(20));
        let at = |clock: &Clock, count| clock.at(ms(count)).as_millis();
        assert_eq!([5, 10, 12, 15, 20, 30].map(|count| at(&clock, count)), [5, 10, 10, 10, 15, 15]);
        clock.resume(ms(30));
        assert_eq!([30, 31].map(|count| at(&clock, count)), [15, 16]);
    }
}
