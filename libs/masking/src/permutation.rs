//! Whole numbers exchanged with each other: a keyed permutation of a range, as SQL.
//!
//! A generalized Feistel network (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): a number of a range of `N` is
//! parted by `a * b >= N` into two, of which each round adds a keyed hash of one to the other. What comes out beyond the range goes
//! through again until it is in it (cycle walking), which keeps it a permutation and ends because the permutation's cycles come back.

use std::fmt::Write as _;

/// Rounds each time; even, so that they begin with the same half.
const ROUNDS: u32 = 10;
/// Of one hash, 60 bits: halves have at most 33, so that what a remainder prefers is nothing to be seen.
const DIGITS: u32 = 15;

/// Numbers are exchanged within these, both ends included. All types of numbers are cut at the same places, so that a number
/// becomes the same one in each. Ids stay small, and are never 0, which some programs take for none. The last of `smallint` and
/// `integer` are apart, so that a sequence has numbers left behind the highest.
const CLASSES: [(i64, i64); 12] = [
    (i64::MIN, -(1 << 31) - 1),
    (-(1 << 31), -(1 << 15) - 1),
    (-(1 << 15), -1),
    (0, 0),
    (1, (1 << 14) - 1),
    (1 << 14, (1 << 15) - (1 << 12) - 1),
    ((1 << 15) - (1 << 12), (1 << 15) - 1),
    (1 << 15, (1 << 30) - 1),
    (1 << 30, (1 << 31) - (1 << 24) - 1),
    ((1 << 31) - (1 << 24), (1 << 31) - 1),
    (1 << 31, (1 << 53) - 1),
    (1 << 53, i64::MAX),
];

/// A range of numbers that are exchanged with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// The first.
    pub low: i64,
    /// The last.
    pub high: i64,
}

impl Range {
    /// The ranges of a type that goes from `min` to `max`.
    pub(crate) fn of_type(min: i64, max: i64) -> Vec<Range> {
        let cut = CLASSES.iter().map(|(low, high)| Range { low: *low.max(&min), high: *high.min(&max) });
        cut.filter(|range| range.low <= range.high).collect()
    }

    /// What a number is parted by: `a * b` is at least as many as there are, and no number below it is too large for a `bigint`.
    fn parts(self) -> (u64, u64) {
        let count = u128::from(self.high.abs_diff(self.low)) + 1;
        let b = {
            let root = count.isqrt();
            if root * root < count { root + 1 } else { root }
        };
        let (a, b) = (count.div_ceil(b), b);
        // So wide a range is nearly all of them.
        let (a, b) = if a * b > 1 << 63 { (1 << 31, 1 << 32) } else { (a, b) };
        (u64::try_from(a).expect("at most 2^32"), u64::try_from(b).expect("at most 2^32"))
    }
}

/// What becomes of the whole number `value`, an expression of any type of them, in the one of `ranges` that it is in; NULL if it is in
/// none. `key` is an expression of the secret, a `bytea`. No other use of the secret hashes by SHA-512.
pub(crate) fn permuted(value: &str, key: &str, ranges: &[Range]) -> String {
    let mut listed = String::new();
    for range in ranges {
        let (a, b) = range.parts();
        let comma = if listed.is_empty() { "" } else { ", " };
        // As texts: the least number is none with a minus sign before it.
        write!(listed, "{comma}('{}'::bigint, '{}'::bigint, {a}::bigint, {b}::bigint)", range.low, range.high)
            .expect("a text takes everything");
    }
    let of_round = format!(
        "{key} || int8send(low) || int8send(high) || int8send((i % {ROUNDS})::bigint << 40 | case i % 2 when 0 then r else l end)"
    );
    format!(
        "(with recursive w(i, l, r, low, high, a, b) as (
            select 0, ({value}::bigint - low) / b, ({value}::bigint - low) % b, low, high, a, b
                from (values {listed}) s(low, high, a, b) where {value}::bigint between low and high
            union all select i + 1, case i % 2 when 0 then (l + f) % a else l end, case i % 2 when 1 then (r + f) % b else r end, low, high, a, b
                from (select w.*, ('x' || left(encode(sha512({of_round}), 'hex'), {DIGITS}))::bit({bits})::bigint as f
                    from w where i = 0 or i % {ROUNDS} <> 0 or l * b + r > high - low offset 0) s)
            select low + (l * b + r) from w where i > 0 and i % {ROUNDS} = 0 and l * b + r <= high - low)",
        bits = 4 * DIGITS,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_leave_nothing_out_and_types_are_cut_at_them() {
        assert_eq!((CLASSES[0].0, CLASSES[CLASSES.len() - 1].1), (i64::MIN, i64::MAX));
        for pair in CLASSES.windows(2) {
            assert_eq!(pair[0].1 + 1, pair[1].0);
        }
        for (min, max) in [(i64::from(i16::MIN), i64::from(i16::MAX)), (i64::from(i32::MIN), i64::from(i32::MAX))] {
            let ranges = Range::of_type(min, max);
            assert!(ranges.iter().all(|range| CLASSES.contains(&(range.low, range.high))), "whole ones: {ranges:?}");
            assert_eq!((ranges[0].low, ranges[ranges.len() - 1].high), (min, max));
        }
        let ranges = Range::of_type(-99, 99);
        assert_eq!(
            ranges.iter().map(|range| (range.low, range.high)).collect::<Vec<_>>(),
            [(-99, -1), (0, 0), (1, 99)]
        );
    }

    #[test]
    fn parts_cover_a_range_and_fit() {
        let classes = CLASSES.iter().map(|(low, high)| Range { low: *low, high: *high });
        let odd = [(0, 0), (0, 1), (5, 7), (1, 100), (0, i64::MAX - 1), (i64::MIN, -2), (-(1 << 40), 1 << 40)];
        for range in classes.chain(odd.iter().map(|(low, high)| Range { low: *low, high: *high })) {
            let (a, b) = range.parts();
            let (covered, count) = (u128::from(a) * u128::from(b), u128::from(range.high.abs_diff(range.low)) + 1);
            assert!(covered >= count && covered <= 1 << 63, "{range:?}: {a} * {b}");
            // It is not gone through in vain for long.
            assert!(covered < 2 * count, "{range:?}: {a} * {b}");
        }
    }
}
