//! Multixacts (`multixact.h`).

use ardent_pg_redo::{Delta, MULTIXACT_OFFSETS_PER_PAGE, MultiXactMember};
use ardent_types::{BLCKSZ, SlruKind};
use bytes::Bytes;
use smallvec::SmallVec;

use super::blocks::zero_page;
use super::slru_pages::drop_segments;
use super::{Ingest, Step, StepResult};
use crate::slru;
use crate::state::ReadState;

const ZERO_OFFSETS_PAGE: u8 = 0x00;
const ZERO_MEMBERS_PAGE: u8 = 0x10;
const CREATE: u8 = 0x20;
const TRUNCATE: u8 = 0x30;

/// `FirstMultiXactId`; 0 is invalid.
const FIRST_MULTIXACT: u32 = 1;
const MEMBER_LEN: usize = 8;

impl Ingest {
    pub(super) fn multixact<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S> {
        let mut data = step.main_data();
        match step.op() {
            ZERO_OFFSETS_PAGE => {
                let page = self.page_number(SlruKind::MultiXactOffsets, &mut data)?;
                self.new_offsets_page(step, page);
            }
            ZERO_MEMBERS_PAGE => {
                let page = self.page_number(SlruKind::MultiXactMembers, &mut data)?;
                step.push(slru::key(SlruKind::MultiXactMembers, page), zero_page());
            }
            CREATE => {
                let (multi, first_offset) = (data.u32()?, data.u32()?);
                let count = data.count(MEMBER_LEN)?;
                let mut members = SmallVec::<[MultiXactMember; 4]>::new();
                for index in 0..count {
                    let offset = first_offset.wrapping_add(index as u32);
                    let (xid, status) = (data.u32()?, data.u32()?);
                    members.push(MultiXactMember { offset, xid, status: status as u8 });
                }
                self.create_multixact(step, multi, first_offset, &members);
            }
            TRUNCATE => {
                let database = data.u32()?;
                let (first_multi, end_multi) = (data.u32()?, data.u32()?);
                let (first_member, end_member) = (data.u32()?, data.u32()?);
                // One multixact less, as Postgres does: the page of the new oldest need not exist yet.
                let last_gone = if end_multi == FIRST_MULTIXACT { u32::MAX } else { end_multi.wrapping_sub(1) };
                let segment = |multi| slru::segment_of(SlruKind::MultiXactOffsets, multi);
                drop_segments(step, SlruKind::MultiXactOffsets, segment(first_multi), segment(last_gone));
                let segment = |member| slru::segment_of(SlruKind::MultiXactMembers, member);
                drop_segments(step, SlruKind::MultiXactMembers, segment(first_member), segment(end_member));
                self.control.set_oldest_multi(end_multi, database);
            }
            _ => step.note_unknown(),
        }
        Ok(())
    }

    /// A page of zeros, but that its first entry stays if the multixact before it is there already. Only WAL of older minors has
    /// these records in that order: they know nothing of the next one's offset, which we have set with it.
    fn new_offsets_page<S>(&mut self, step: &mut Step<'_, S>, page: u32) {
        let kind = SlruKind::MultiXactOffsets;
        let checkpoint = &self.control.checkpoint;
        let next = checkpoint.next_multi;
        let first_of_page = page.wrapping_mul(MULTIXACT_OFFSETS_PER_PAGE).max(FIRST_MULTIXACT);
        // Page 0 has a multixact before it only if the ids have just wrapped; `next_multi` is 0 then.
        let follows = next.max(FIRST_MULTIXACT) == first_of_page && (page != 0 || next == 0);
        if !follows {
            return step.push(slru::key(kind, page), zero_page());
        }
        let mut content = vec![0; BLCKSZ];
        let at = (first_of_page % MULTIXACT_OFFSETS_PER_PAGE) as usize * 4;
        content[at..at + 4].copy_from_slice(&checkpoint.next_multi_offset.max(1).to_le_bytes());
        step.push_image(slru::key(kind, page), Bytes::from(content));
    }

    /// The offset of the multixact and, as recent minors do, of the next one; then the members, page by page (checklist 49).
    fn create_multixact<S>(
        &mut self,
        step: &mut Step<'_, S>,
        multi: u32,
        first_offset: u32,
        members: &[MultiXactMember],
    ) {
        let next = multi.wrapping_add(1).max(FIRST_MULTIXACT);
        // Offset 0 means "not set yet", so it is never given out.
        let next_offset = first_offset.wrapping_add(members.len() as u32).max(1);
        let kind = SlruKind::MultiXactOffsets;
        let mut write = |entries: SmallVec<[(u32, u32); 2]>| {
            let key = slru::key(kind, slru::page_of(kind, entries[0].0));
            step.push_delta(key, &Delta::MultiXactOffsets(entries));
        };
        let (own, following) = ((multi, first_offset), (next, next_offset));
        if slru::page_of(kind, multi) == slru::page_of(kind, next) {
            write(SmallVec::from_slice(&[own, following]));
        } else {
            write(SmallVec::from_slice(&[own]));
            write(SmallVec::from_slice(&[following]));
        }
        let kind = SlruKind::MultiXactMembers;
        let page = |member: &MultiXactMember| slru::page_of(kind, member.offset);
        for members in members.chunk_by(|a, b| page(a) == page(b)) {
            let delta = Delta::MultiXactMembers(SmallVec::from_slice(members));
            step.push_delta(slru::key(kind, page(&members[0])), &delta);
        }
        members.iter().for_each(|member| self.control.see_xid(member.xid));
        self.control.advance_next_multi(multi.wrapping_add(1), first_offset.wrapping_add(members.len() as u32));
    }
}
