//! When to try again, and when to stop: a deadline, and pauses that grow and vary.

use std::time::Duration;

/// How long calls may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// A call with little to carry is given up after this long, with all its attempts.
    pub deadline: Duration,
    /// One attempt is given up after this long.
    pub attempt_timeout: Duration,
    /// Both grow by what carrying the body takes at this rate.
    pub bytes_per_s_min: u64,
    /// The first pause is up to this long, each further one up to twice as long.
    pub pause_first: Duration,
    /// No pause is longer.
    pub pause_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            deadline: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(10),
            bytes_per_s_min: 1 << 20,
            pause_first: Duration::from_millis(50),
            pause_max: Duration::from_secs(3),
        }
    }
}

impl RetryPolicy {
    /// The same with room for `bytes` of body.
    pub(crate) fn with_body(self, bytes: u64) -> RetryPolicy {
        let carrying = Duration::from_millis(bytes.saturating_mul(1000) / self.bytes_per_s_min.max(1));
        RetryPolicy { deadline: self.deadline + carrying, attempt_timeout: self.attempt_timeout + carrying, ..self }
    }

    /// The pause after the failure of attempt `number` (1: the first), `elapsed` after the call began. `None`: give up. `random` is
    /// from 0 to 1; the store may have named a pause, which is honoured if the deadline leaves room for it.
    pub(crate) fn pause(
        &self,
        number: u32,
        elapsed: Duration,
        random: f64,
        named: Option<Duration>,
    ) -> Option<Duration> {
        let doubled = self.pause_first.saturating_mul(1u32.checked_shl(number.saturating_sub(1)).unwrap_or(u32::MAX));
        // Half of it at least, so that those who failed together come back apart and yet not at once.
        let pause = doubled.min(self.pause_max).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
        let pause = pause.max(named.unwrap_or_default());
        (elapsed + pause < self.deadline).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_end_at_the_deadline() {
        let policy = RetryPolicy::default();
        let pauses: Vec<_> =
            (1..=9).map(|number| policy.pause(number, Duration::ZERO, 1.0, None).unwrap().as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3000, 3000, 3000]);
        assert_eq!(policy.pause(1, Duration::ZERO, 0.0, None), Some(Duration::from_millis(25)));
        assert_eq!(policy.pause(u32::MAX, Duration::ZERO, 1.0, None), Some(policy.pause_max));
        assert_eq!(policy.pause(1, policy.deadline, 0.0, None), None);
        let named = Some(Duration::from_secs(5));
        assert_eq!(policy.pause(1, Duration::ZERO, 0.0, named), named);
        assert_eq!(policy.pause(1, Duration::from_secs(26), 0.0, named), None);
    }

    #[test]
    fn a_body_gives_more_time() {
        let policy = RetryPolicy::default().with_body(10 << 20);
        assert_eq!(policy.deadline, Duration::from_secs(40));
        assert_eq!(policy.attempt_timeout, Duration::from_secs(20));
    }
}
