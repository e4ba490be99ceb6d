//! Where the histories of two branches part, and what changed since on either.

use std::collections::BTreeMap;

use ardent_api::page_service::{BlockRange, ChangedRelation};
use ardent_types::{Lsn, RelTag, TimelineId};

/// A branch's history: its own timeline, then those it descends from, each with where it was left; the first has no such end.
pub(crate) type History = Vec<(TimelineId, Option<Lsn>)>;

/// The last point that two histories share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommonPoint {
    /// The timeline that both were on there.
    pub timeline: TimelineId,
    /// Where the first left it. Both do not stay on it.
    pub lsn: Lsn,
    /// Whether the first history goes on with this timeline there,
    pub first_stays: bool,
    /// and the second.
    pub second_stays: bool,
}

/// Where two histories part; `None` if they are one, or have nothing to do with each other.
pub(crate) fn common_point(first: &History, second: &History) -> Option<CommonPoint> {
    let shared = |&(timeline, end): &(TimelineId, Option<Lsn>)| {
        let other = second.iter().find(|(other, _)| *other == timeline)?;
        Some((timeline, end, other.1))
    };
    let (timeline, first_end, second_end) = first.iter().find_map(shared)?;
    let lsn = match (first_end, second_end) {
        (Some(first), Some(second)) => first.min(second),
        (Some(end), None) | (None, Some(end)) => end,
        (None, None) => return None,
    };
    let stays = |end: Option<Lsn>| end != Some(lsn);
    Some(CommonPoint { timeline, lsn, first_stays: stays(first_end), second_stays: stays(second_end) })
}

/// The timeline of a history that an LSN of it lies on.
pub(crate) fn timeline_at(history: &History, lsn: Lsn) -> Option<TimelineId> {
    // An end belongs to the timeline that is left: what comes after it is the other's.
    let starts = history.iter().skip(1).map(|(_, end)| end.unwrap_or(Lsn::INVALID)).chain([Lsn::INVALID]);
    history.iter().zip(starts).find(|(_, start)| lsn > *start).map(|((timeline, _), _)| *timeline)
}

/// Blocks in which two states may differ: those that changed on either since the point that they share.
pub(crate) fn changed_on_either(first: Vec<ChangedRelation>, second: Vec<ChangedRelation>) -> Vec<ChangedRelation> {
    let mut both: BTreeMap<RelTag, (Option<ChangedRelation>, Option<ChangedRelation>)> = BTreeMap::new();
    for relation in joined(first) {
        let rel = relation.rel;
        both.entry(rel).or_default().0 = Some(relation);
    }
    for relation in joined(second) {
        let rel = relation.rel;
        both.entry(rel).or_default().1 = Some(relation);
    }
    both.into_iter().map(|(rel, (first, second))| either(rel, first, second)).collect()
}

/// A relation with very many ranges comes in several parts.
fn joined(relations: Vec<ChangedRelation>) -> Vec<ChangedRelation> {
    let mut joined: Vec<ChangedRelation> = Vec::new();
    for relation in relations {
        match joined.last_mut().filter(|last| last.rel == relation.rel) {
            Some(last) => last.ranges.extend(relation.ranges),
            None => joined.push(relation),
        }
    }
    joined
}

fn either(rel: RelTag, first: Option<ChangedRelation>, second: Option<ChangedRelation>) -> ChangedRelation {
    // Where it has not changed, it is as long as it was.
    let size = |one: &Option<ChangedRelation>, other: &Option<ChangedRelation>| match (one, other) {
        (Some(one), _) => one.nblocks_to,
        (None, Some(other)) => other.nblocks_from,
        (None, None) => None,
    };
    let (first_size, second_size) = (size(&first, &second).unwrap_or(0), size(&second, &first).unwrap_or(0));
    let (short, long) = (first_size.min(second_size), first_size.max(second_size));
    let mut ranges: Vec<BlockRange> =
        [first, second].into_iter().flatten().flat_map(|relation| relation.ranges).collect();
    // What only the longer one has, be it that the other was cut.
    ranges.push(BlockRange { start: short, count: long - short });
    let ranges = union(ranges, long);
    ChangedRelation { rel, nblocks_from: Some(long), nblocks_to: Some(long), ranges }
}

/// Ranges without overlap, in order, below `end`.
fn union(mut ranges: Vec<BlockRange>, end: u32) -> Vec<BlockRange> {
    ranges.sort_unstable_by_key(|range| (range.start, range.count));
    let mut union: Vec<BlockRange> = Vec::new();
    for range in ranges {
        let stop = range.start.saturating_add(range.count).min(end);
        match union.last_mut().filter(|last| last.start + last.count >= range.start) {
            Some(last) => last.count = last.count.max(stop.saturating_sub(last.start)),
            None if stop > range.start => union.push(BlockRange { start: range.start, count: stop - range.start }),
            None => {}
        }
    }
    union
}

#[cfg(test)]
mod tests {
    use super::*;
    use ardent_types::ForkNumber;

    fn timeline(number: u8) -> TimelineId {
        format!("{:032x}", number).parse().expect("an id")
    }

    fn history(parts: &[(u8, u64)]) -> History {
        parts.iter().map(|&(number, end)| (timeline(number), (end > 0).then(|| Lsn::new(end)))).collect()
    }

    #[test]
    fn histories_part_where_the_first_leaves_the_shared_timeline() {
        let check = |first: &[(u8, u64)], second: &[(u8, u64)], expect: Option<(u8, u64, bool, bool)>| {
            let expect = expect.map(|(number, lsn, first_stays, second_stays)| CommonPoint {
                timeline: timeline(number),
                lsn: Lsn::new(lsn),
                first_stays,
                second_stays,
            });
            assert_eq!(common_point(&history(first), &history(second)), expect, "{first:?} and {second:?}");
        };
        let (root, early, late) = (&[(1, 0)], &[(2, 0), (1, 100)], &[(3, 0), (1, 200)]);
        check(early, late, Some((1, 100, false, true)));
        check(late, early, Some((1, 100, true, false)));
        check(early, root, Some((1, 100, false, true)));
        check(early, &[(4, 0), (1, 100)], Some((1, 100, false, false)));
        check(&[(5, 0), (2, 150), (1, 100)], early, Some((2, 150, false, true)));
        check(&[(5, 0), (2, 150), (1, 100)], late, Some((1, 100, false, true)));
        check(early, early, None);
        check(early, &[(9, 0)], None);
    }

    #[test]
    fn an_lsn_is_on_the_timeline_that_ends_with_it() {
        let chain = history(&[(5, 0), (2, 150), (1, 100)]);
        for (lsn, number) in [(151, 5), (150, 2), (101, 2), (100, 1), (1, 1)] {
            assert_eq!(timeline_at(&chain, Lsn::new(lsn)), Some(timeline(number)), "{lsn}");
        }
    }

    #[test]
    fn blocks_of_either_side_count_and_so_does_what_one_side_cut_off() {
        let rel = |relnode| RelTag { spcnode: 1663, dbnode: 5, relnode, fork: ForkNumber::Main };
        let range = |start, count| BlockRange { start, count };
        let changed = |relnode, from, to, ranges: &[BlockRange]| ChangedRelation {
            rel: rel(relnode),
            nblocks_from: from,
            nblocks_to: to,
            ranges: ranges.to_vec(),
        };
        let first = vec![
            changed(1, Some(10), Some(12), &[range(2, 1)]),
            changed(1, Some(10), Some(12), &[range(10, 2)]),
            changed(2, Some(10), Some(4), &[range(3, 1)]),
            changed(3, None, Some(2), &[range(0, 2)]),
        ];
        let second = vec![changed(1, Some(10), Some(10), &[range(1, 2), range(5, 1)]), changed(4, Some(3), None, &[])];
        let both = changed_on_either(first, second);
        let expect = [
            (1, 12, vec![range(1, 2), range(5, 1), range(10, 2)]),
            // Cut to 4 blocks on one side, 10 on the other.
            (2, 10, vec![range(3, 7)]),
            (3, 2, vec![range(0, 2)]),
            // Dropped on one side.
            (4, 3, vec![range(0, 3)]),
        ];
        let found: Vec<_> = both.into_iter().map(|r| (r.rel.relnode, r.nblocks_to.unwrap_or(0), r.ranges)).collect();
        assert_eq!(found, expect);
    }
}
