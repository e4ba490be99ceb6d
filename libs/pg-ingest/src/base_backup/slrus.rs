//! SLRU segments between the oldest and the next entry.

use ardent_api::page_service::BackupItem;
use ardent_types::{BLCKSZ, Key, SlruKind};

use super::{Backup, BackupResult};
use crate::slru;
use crate::state::ReadState;

/// Entries of one SLRU that a server may read.
#[derive(Clone, Copy, Debug)]
struct Live {
    kind: SlruKind,
    oldest: u32,
    next: u32,
    /// Whether Postgres reads the page of the next entry when it starts: always, but where that entry would be the page's first
    /// and the page is made when it is given out (`TrimCLOG`, `TrimMultiXact`).
    needs_next: bool,
}

impl<S, F, E> Backup<'_, S, F>
where
    S: ReadState,
    E: std::error::Error + 'static,
    F: FnMut(BackupItem) -> Result<(), E>,
{
    pub(super) fn slrus(&mut self) -> BackupResult<S, E> {
        let checkpoint = self.checkpoint;
        let next_xid = checkpoint.next_xid as u32;
        let live = |kind, oldest: u32, next: u32| Live {
            kind,
            oldest,
            next,
            needs_next: !next.is_multiple_of(slru::items_per_page(kind)),
        };
        self.segments(live(SlruKind::Xact, checkpoint.oldest_xid, next_xid))?;
        self.segments(Live {
            needs_next: true,
            ..live(SlruKind::MultiXactOffsets, checkpoint.oldest_multi, checkpoint.next_multi)
        })?;
        let oldest_member = self.oldest_member()?;
        self.segments(live(SlruKind::MultiXactMembers, oldest_member, checkpoint.next_multi_offset))?;
        if checkpoint.oldest_commit_ts_xid != 0 {
            let commit_ts = live(SlruKind::CommitTs, checkpoint.oldest_commit_ts_xid, next_xid);
            self.segments(Live { needs_next: false, ..commit_ts })?;
        }
        Ok(())
    }

    /// The first member of the oldest multixact. Where its offset was never written (a crash between two steps), all members from the
    /// start of the circle count.
    fn oldest_member(&self) -> BackupResult<S, E, u32> {
        let (oldest, next) = (self.checkpoint.oldest_multi, self.checkpoint.next_multi);
        if oldest == next {
            return Ok(self.checkpoint.next_multi_offset);
        }
        let kind = SlruKind::MultiXactOffsets;
        let page = self.get(slru::key(kind, slru::page_of(kind, oldest)))?;
        let at = (oldest % slru::items_per_page(kind)) as usize * 4;
        let entry = page.as_deref().and_then(|page| page.get(at..at + 4));
        Ok(entry.map_or(0, |entry| u32::from_le_bytes(entry.try_into().expect("4 bytes"))))
    }

    /// Files as long as their last page that exists, pages missing between as zeros.
    fn segments(&mut self, live: Live) -> BackupResult<S, E> {
        let kind = live.kind;
        let next_page = slru::page_of(kind, live.next);
        let (first, last) = (slru::segment_of(kind, live.oldest), slru::segment_of(kind, live.next));
        for segment in slru::segments_through(kind, first, last) {
            let pages = slru::pages(kind, segment);
            let mut content = Vec::new();
            for (key, page) in self.scan(slru::key(kind, *pages.start()), slru::key(kind, *pages.end()))? {
                let Key::SlruPage(_, number) = key else { continue };
                let at = (number - u64::from(*pages.start())) as usize * BLCKSZ;
                content.resize(at, 0);
                content.extend_from_slice(&page);
            }
            if live.needs_next && pages.contains(&next_page) {
                let len = (next_page - pages.start() + 1) as usize * BLCKSZ;
                content.resize(content.len().max(len), 0);
            }
            if !content.is_empty() {
                self.file(slru::segment_path(kind, segment), &content)?;
            }
        }
        Ok(())
    }
}
