//! How far compaction is behind, and how long writers wait for it: pure functions.
//!
//! ```text
//!  debt     0 ........ soft limit ................................. hard limit
//!  writer   free       slowed: half the speed limit half way,       waits until compaction has done something
//!                      a quarter at three quarters, ...
//! ```
//!
//! Whenever a writer waits, [`crate::plan`] has a job that brings debt down; and as no writer gets past the hard limits while that job is
//! done, however long it takes, those limits bound what a read visits and applies. Where nobody brings debt down, as compaction fails,
//! writers go on slowly.

use std::time::Duration;

use crate::config::EngineConfig;

/// What reads at the head of a timeline visit and apply at worst, and compaction has yet to merge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Debt {
    /// Level-0 files, and frozen layers that are about to be.
    pub(crate) level_0_files: usize,
    /// Size of the level-0 files.
    pub(crate) level_0_bytes: u64,
    /// Compacted delta files above the newest image, where there are most of them.
    pub(crate) depth: usize,
    /// Deltas of a key in those files, as an average over the keys of each file, where there are most.
    pub(crate) deltas_per_key: u64,
}

impl Debt {
    /// Files that a read at the head visits at most.
    pub(crate) fn files_per_read(&self) -> usize {
        self.level_0_files + self.depth + 1
    }
}

/// From where on writers are slowed, and where they stop. Compaction defends half of the soft limits, or those themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DebtLimits {
    /// Level-0 files at which compaction begins.
    pub(crate) compact_at_l0_files: usize,
    /// Largest size of an open layer.
    pub(crate) open_layer_bytes_max: u64,
    /// See [`EngineConfig::images_at_delta_files`].
    pub(crate) images_at_delta_files: usize,
    /// See [`EngineConfig::images_at_deltas_per_key`].
    pub(crate) images_at_deltas_per_key: u64,
}

/// How fast a writer may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As fast as it can.
    Free,
    /// A batch waits this long.
    Slowed(Duration),
    /// Not before debt is less.
    Stopped,
}

/// Speed of a writer half way between the limits, in bytes of values a second.
const BYTES_PER_SECOND_HALF_WAY: f64 = (64 << 20) as f64;
/// How many times slower than that a writer gets before it stops.
const SLOWEST: f64 = 64.0;
/// The hard limits, in soft ones.
const HARD: u64 = 2;

impl DebtLimits {
    pub(crate) fn of(config: &EngineConfig) -> DebtLimits {
        DebtLimits {
            compact_at_l0_files: config.compact_at_l0_files.max(1),
            open_layer_bytes_max: config.open_layer_bytes_max as u64,
            images_at_delta_files: config.images_at_delta_files.max(1),
            images_at_deltas_per_key: config.images_at_deltas_per_key.max(1),
        }
    }

    /// Most level-0 files, with what is about to be some.
    pub(crate) fn files_max(&self) -> usize {
        2 * self.compact_at_l0_files * HARD as usize
    }

    /// Amounts of debt and their soft limits.
    fn shares(&self, debt: &Debt) -> [(u64, u64); 4] {
        let files = 2 * self.compact_at_l0_files as u64;
        // Few files are not merged, however large they are.
        let is_merged = debt.level_0_files >= self.compact_at_l0_files;
        [
            (debt.level_0_files as u64, files),
            (if is_merged { debt.level_0_bytes } else { 0 }, files * self.open_layer_bytes_max.max(1)),
            (debt.depth as u64, 2 * self.images_at_delta_files as u64),
            (debt.deltas_per_key, 2 * self.images_at_deltas_per_key),
        ]
    }

    /// How much of the way from the soft limit to the hard one debt has gone: 0 up to the soft one, 1 at the hard one.
    pub(crate) fn fraction(&self, debt: &Debt) -> f64 {
        let of_one = |(amount, soft): (u64, u64)| {
            let hard = soft.saturating_mul(HARD);
            amount.saturating_sub(soft) as f64 / (hard - soft) as f64
        };
        self.shares(debt).map(of_one).into_iter().fold(0.0, f64::max).min(1.0)
    }

    /// How long a batch of so many bytes waits.
    pub(crate) fn pace(&self, debt: &Debt, batch_bytes: usize) -> Pace {
        match self.fraction(debt) {
            fraction if fraction <= 0.0 => Pace::Free,
            fraction if fraction >= 1.0 => Pace::Stopped,
            fraction => Pace::Slowed(delay(fraction / (1.0 - fraction), batch_bytes)),
        }
    }
}

/// How long a batch waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all.
    Not,
    /// So long since it came, and then it goes, unless debt is less before.
    For(Duration),
    /// Until debt is less.
    UntilLess,
}

impl Pace {
    /// What it means for a batch of so many bytes. `is_worked_off`: somebody is bringing debt down, or is about to.
    pub(crate) fn wait(self, batch_bytes: usize, is_worked_off: bool) -> Wait {
        match self {
            Pace::Free => Wait::Not,
            Pace::Slowed(delay) => Wait::For(delay),
            Pace::Stopped if is_worked_off => Wait::UntilLess,
            Pace::Stopped => Wait::For(longest_delay(batch_bytes)),
        }
    }
}

fn delay(slowness: f64, batch_bytes: usize) -> Duration {
    Duration::from_secs_f64(slowness.min(SLOWEST) * batch_bytes as f64 / BYTES_PER_SECOND_HALF_WAY)
}

/// How long a batch waits where compaction has failed and may never bring debt down: reads get slower, but nothing is lost, and
/// whoever looks at health is told.
fn longest_delay(batch_bytes: usize) -> Duration {
    delay(SLOWEST, batch_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn any_limits(rng: &mut StdRng) -> DebtLimits {
        DebtLimits {
            compact_at_l0_files: rng.random_range(1..20),
            open_layer_bytes_max: rng.random_range(1..1 << 27),
            images_at_delta_files: rng.random_range(1..20),
            images_at_deltas_per_key: rng.random_range(1..200),
        }
    }

    fn any_debt(rng: &mut StdRng, limits: &DebtLimits) -> Debt {
        let files = limits.compact_at_l0_files;
        Debt {
            level_0_files: rng.random_range(0..6 * files),
            level_0_bytes: rng.random_range(0..6 * files as u64 * limits.open_layer_bytes_max),
            depth: rng.random_range(0..6 * limits.images_at_delta_files),
            deltas_per_key: rng.random_range(0..6 * limits.images_at_deltas_per_key),
        }
    }

    fn rank(pace: Pace) -> Duration {
        match pace {
            Pace::Free => Duration::ZERO,
            Pace::Slowed(delay) => delay,
            Pace::Stopped => Duration::MAX,
        }
    }

    #[test]
    fn nobody_waits_up_to_the_soft_limits_and_nobody_passes_the_hard_ones() {
        for seed in 0..20_000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let limits = any_limits(&mut rng);
            let debt = any_debt(&mut rng, &limits);
            let pace = limits.pace(&debt, rng.random_range(1 << 10..4 << 20));
            let shares = limits.shares(&debt);
            let is_free = shares.iter().all(|(amount, soft)| amount <= soft);
            let is_stopped = shares.iter().any(|(amount, soft)| *amount >= 2 * soft);
            assert_eq!(pace == Pace::Free, is_free, "seed {seed}: {debt:?} {limits:?}");
            assert_eq!(pace == Pace::Stopped, is_stopped, "seed {seed}: {debt:?} {limits:?}");
            if let Pace::Slowed(delay) = pace {
                assert!(!delay.is_zero() && delay <= longest_delay(4 << 20), "seed {seed}: {delay:?}");
            }
        }
    }

    #[test]
    fn at_the_hard_limits_nobody_goes_on_while_debt_is_worked_off() {
        let check = |pace: Pace, is_worked_off, expect| assert_eq!(pace.wait(64 << 20, is_worked_off), expect);
        let delay = Duration::from_secs(3);
        for is_worked_off in [false, true] {
            check(Pace::Free, is_worked_off, Wait::Not);
            check(Pace::Slowed(delay), is_worked_off, Wait::For(delay));
        }
        check(Pace::Stopped, true, Wait::UntilLess);
        check(Pace::Stopped, false, Wait::For(Duration::from_secs(64)));
    }

    #[test]
    fn whoever_has_more_debt_or_a_larger_batch_waits_no_less() {
        for seed in 0..20_000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let limits = any_limits(&mut rng);
            let less = any_debt(&mut rng, &limits);
            let more = Debt {
                level_0_files: less.level_0_files + rng.random_range(0..3),
                level_0_bytes: less.level_0_bytes + rng.random_range(0..1 << 26),
                depth: less.depth + rng.random_range(0..3),
                deltas_per_key: less.deltas_per_key + rng.random_range(0..30),
            };
            let bytes = rng.random_range(1..4 << 20);
            let larger = bytes + rng.random_range(0..1 << 20);
            let (few, many) = (rank(limits.pace(&less, bytes)), rank(limits.pace(&more, larger)));
            assert!(few <= many, "seed {seed}: {few:?} for {less:?}, {many:?} for {more:?}");
        }
    }

    #[test]
    fn the_wait_is_in_proportion_to_debt() {
        let limits = DebtLimits {
            compact_at_l0_files: 8,
            open_layer_bytes_max: 1 << 30,
            images_at_delta_files: 100,
            images_at_deltas_per_key: 100,
        };
        let check = |level_0_files, expect| {
            let debt = Debt { level_0_files, ..Debt::default() };
            assert_eq!(limits.pace(&debt, 64 << 20), expect, "{level_0_files} files");
        };
        check(16, Pace::Free);
        check(20, Pace::Slowed(Duration::from_secs_f64(1.0 / 3.0)));
        check(24, Pace::Slowed(Duration::from_secs(1)));
        check(28, Pace::Slowed(Duration::from_secs(3)));
        check(31, Pace::Slowed(Duration::from_secs(15)));
        check(32, Pace::Stopped);
    }

    #[test]
    fn few_large_files_are_no_debt_as_nobody_would_merge_them() {
        let limits = DebtLimits {
            compact_at_l0_files: 4,
            open_layer_bytes_max: 100,
            images_at_delta_files: 2,
            images_at_deltas_per_key: 2,
        };
        let debt = |level_0_files| Debt { level_0_files, level_0_bytes: 1 << 30, ..Debt::default() };
        assert_eq!(limits.pace(&debt(3), 1), Pace::Free);
        assert_eq!(limits.pace(&debt(4), 1), Pace::Stopped);
    }
}
