//! Changes of SLRU pages: statuses and commit times grouped by page, new pages, truncation.

use ardent_pg_format::PgMajor;
use ardent_pg_redo::{Delta, XactStatus};
use ardent_types::SlruKind;
use bytes::Bytes;
use smallvec::SmallVec;

use super::blocks::zero_page;
use super::error::Fault;
use super::main_data::MainData;
use super::{Ingest, Step, StepResult};
use crate::slru;
use crate::state::ReadState;

const ZERO_PAGE: u8 = 0x00;
const TRUNCATE: u8 = 0x10;

impl Ingest {
    pub(super) fn clog<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S> {
        let mut data = step.main_data();
        match step.op() {
            ZERO_PAGE => {
                let page = self.page_number(SlruKind::Xact, &mut data)?;
                step.push(slru::key(SlruKind::Xact, page), zero_page());
            }
            TRUNCATE => {
                let page = self.page_number(SlruKind::Xact, &mut data)?;
                let (oldest, database) = (data.u32()?, data.u32()?);
                let first = slru::segment_of(SlruKind::Xact, self.control.checkpoint.oldest_xid);
                drop_segments(step, SlruKind::Xact, first, page / slru::PAGES_PER_SEGMENT);
                self.control.set_oldest_xid(oldest, database);
            }
            _ => step.note_unknown(),
        }
        Ok(())
    }

    pub(super) fn commit_ts<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S> {
        let mut data = step.main_data();
        match step.op() {
            ZERO_PAGE => {
                let page = self.page_number(SlruKind::CommitTs, &mut data)?;
                step.push(slru::key(SlruKind::CommitTs, page), zero_page());
            }
            TRUNCATE => {
                let page = self.page_number(SlruKind::CommitTs, &mut data)?;
                let oldest = data.u32()?;
                let first = slru::segment_of(SlruKind::CommitTs, self.control.checkpoint.oldest_commit_ts_xid);
                drop_segments(step, SlruKind::CommitTs, first, page / slru::PAGES_PER_SEGMENT);
                self.control.advance_oldest_commit_ts(oldest);
            }
            _ => step.note_unknown(),
        }
        Ok(())
    }

    /// Commit timestamps are switched on or off. Both ends mean what was there is not to be believed.
    pub(super) fn switch_commit_ts<S: ReadState>(&mut self, step: &mut Step<'_, S>, on: bool) -> StepResult<S> {
        let kind = SlruKind::CommitTs;
        if on {
            let next = self.control.next_xid();
            self.control.begin_commit_ts(next);
            let key = slru::key(kind, slru::page_of(kind, next));
            if step.state.get(key).map_err(Fault::State)?.is_none_or(|page| page.is_empty()) {
                step.push(key, zero_page());
            }
        } else if let Some((oldest, newest)) = self.control.end_commit_ts() {
            let past_newest = slru::segments(kind, slru::segment_of(kind, newest), u32::MAX).nth(1).unwrap_or(0);
            drop_segments(step, kind, slru::segment_of(kind, oldest), past_newest);
        }
        Ok(())
    }

    /// A page number: `int` before 17, `int64` since (checklist 50).
    pub(super) fn page_number<E>(&self, kind: SlruKind, data: &mut MainData<'_>) -> Result<u32, Fault<E>> {
        let page = if self.major >= PgMajor::V17 { data.u64()? } else { u64::from(data.u32()?) };
        let last = slru::page_of(kind, u32::MAX);
        u32::try_from(page)
            .ok()
            .filter(|page| *page <= last)
            .ok_or_else(|| Fault::Malformed(format!("{} has no page {page}", kind.directory())))
    }
}

/// Marks the pages from segment `first` up to, not including, segment `end` as gone.
pub(super) fn drop_segments<S>(step: &mut Step<'_, S>, kind: SlruKind, first: u32, end: u32) {
    for segment in slru::segments(kind, first, end) {
        for page in slru::pages(kind, segment) {
            step.push_image(slru::key(kind, page), Bytes::new());
        }
    }
}

/// Sets the status of a transaction and its subtransactions; one value per page (checklist 42).
pub(super) fn set_statuses<S>(step: &mut Step<'_, S>, status: XactStatus, xid: u32, subxacts: &[u32]) {
    for (page, xids) in by_page(SlruKind::Xact, xid, subxacts) {
        step.push_delta(slru::key(SlruKind::Xact, page), &Delta::Xact { status, xids });
    }
}

/// Notes when a transaction and its subtransactions committed; one value per page.
pub(super) fn set_commit_times<S>(step: &mut Step<'_, S>, timestamp: i64, origin: u16, xid: u32, subxacts: &[u32]) {
    for (page, xids) in by_page(SlruKind::CommitTs, xid, subxacts) {
        step.push_delta(slru::key(SlruKind::CommitTs, page), &Delta::CommitTs { timestamp, origin, xids });
    }
}

type Xids = SmallVec<[u32; 4]>;

fn by_page(kind: SlruKind, xid: u32, subxacts: &[u32]) -> SmallVec<[(u32, Xids); 1]> {
    let mut pages: SmallVec<[(u32, Xids); 1]> = SmallVec::new();
    for &xid in std::iter::once(&xid).chain(subxacts) {
        let page = slru::page_of(kind, xid);
        // Subtransactions ascend, so the page is nearly always the last one.
        match pages.iter_mut().rev().find(|(number, _)| *number == page) {
            Some((_, xids)) => xids.push(xid),
            None => pages.push((page, Xids::from_slice(&[xid]))),
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checklist_42_subtransactions_split_over_pages() {
        let pages = by_page(SlruKind::Xact, 32_766, &[32_767, 32_768, 32_769, 3]);
        let pages: Vec<_> = pages.into_iter().map(|(page, xids)| (page, xids.to_vec())).collect();
        assert_eq!(pages, [(0, vec![32_766, 32_767, 3]), (1, vec![32_768, 32_769])]);
    }
}
