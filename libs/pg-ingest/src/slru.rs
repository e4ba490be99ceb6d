//! Where SLRU pages and segments lie: circles of pages, 32 to a segment file.

use std::ops::RangeInclusive;

use ardent_pg_redo::{COMMIT_TS_PER_PAGE, MULTIXACT_MEMBERS_PER_PAGE, MULTIXACT_OFFSETS_PER_PAGE, XACTS_PER_PAGE};
use ardent_types::{Key, SlruKind};

/// `SLRU_PAGES_PER_SEGMENT`
pub(crate) const PAGES_PER_SEGMENT: u32 = 32;

/// Entries per page.
pub(crate) fn items_per_page(kind: SlruKind) -> u32 {
    match kind {
        SlruKind::Xact => XACTS_PER_PAGE,
        SlruKind::MultiXactOffsets => MULTIXACT_OFFSETS_PER_PAGE,
        SlruKind::MultiXactMembers => MULTIXACT_MEMBERS_PER_PAGE,
        SlruKind::CommitTs => COMMIT_TS_PER_PAGE,
    }
}

/// The page of an entry.
pub(crate) fn page_of(kind: SlruKind, item: u32) -> u32 {
    item / items_per_page(kind)
}

/// The segment of an entry.
pub(crate) fn segment_of(kind: SlruKind, item: u32) -> u32 {
    page_of(kind, item) / PAGES_PER_SEGMENT
}

/// The pages of a segment, both ends included. The last segment of a kind is shorter than others.
pub(crate) fn pages(kind: SlruKind, segment: u32) -> RangeInclusive<u32> {
    let first = segment * PAGES_PER_SEGMENT;
    first..=(first + PAGES_PER_SEGMENT - 1).min(page_of(kind, u32::MAX))
}

/// The key of a page.
pub(crate) fn key(kind: SlruKind, page: u32) -> Key {
    Key::SlruPage(kind, u64::from(page))
}

/// The segments from `first` up to, not including, `end`, around the circle.
pub(crate) fn segments(kind: SlruKind, first: u32, end: u32) -> impl Iterator<Item = u32> {
    let last = segment_of(kind, u32::MAX);
    let next = move |segment: u32| if segment >= last { 0 } else { segment + 1 };
    std::iter::successors(Some(first.min(last)), move |segment| Some(next(*segment)))
        .take_while(move |segment| *segment != end)
        .take(last as usize + 1)
}

/// The segments from `first` to `last`, both included, around the circle.
pub(crate) fn segments_through(kind: SlruKind, first: u32, last: u32) -> impl Iterator<Item = u32> {
    segments(kind, first, last).chain([last])
}

/// The name of a segment's file.
pub(crate) fn segment_path(kind: SlruKind, segment: u32) -> String {
    format!("{}/{segment:04X}", kind.directory())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checklist_49_circles_end_with_a_short_segment() {
        assert_eq!(segment_of(SlruKind::Xact, u32::MAX), 0xFFF);
        assert_eq!(segment_of(SlruKind::MultiXactOffsets, u32::MAX), 0xFFFF);
        assert_eq!(segment_of(SlruKind::MultiXactMembers, u32::MAX), 0x14078);
        assert_eq!(pages(SlruKind::MultiXactMembers, 0x14078).count(), 2_625_286 - 0x14078 * 32);
        assert_eq!(segments(SlruKind::MultiXactMembers, 0x14077, 1).collect::<Vec<_>>(), [0x14077, 0x14078, 0]);
        assert_eq!(segments(SlruKind::Xact, 5, 5).count(), 0);
        assert_eq!(segments_through(SlruKind::Xact, 0xFFF, 0).collect::<Vec<_>>(), [0xFFF, 0]);
        assert_eq!(
            segments(SlruKind::Xact, 3, 0x2000).count(),
            0x1000,
            "an end that is no segment stops after one round"
        );
        assert_eq!(segment_path(SlruKind::MultiXactMembers, 0x14078), "pg_multixact/members/14078");
    }
}
