//! Pages in memory.

use std::collections::{BTreeMap, HashMap};

use ardent_pg_format::DecodedRecord;
use ardent_pg_format::rmgr;
use ardent_pg_redo::{Delta, HEAP_BLOCKS_PER_PAGE, vm_map_block};
use ardent_types::{BLCKSZ, BlockNumber, ForkNumber, Key, Lsn, RelTag};

use crate::end::database_copy;

pub(crate) type PageBytes = [u8; BLCKSZ];

/// `pd_lsn`
pub(crate) fn page_lsn(page: &PageBytes) -> Lsn {
    let half = |at: usize| u64::from(u32::from_le_bytes(page[at..at + 4].try_into().expect("4 bytes")));
    Lsn::new(half(0) << 32 | half(4))
}

const SMGR_TRUNCATE: u8 = 0x20;
const TRUNCATE_HEAP: u32 = 0x1;
const TRUNCATE_VM: u32 = 0x2;

/// All pages that redo has made so far.
#[derive(Default)]
pub(crate) struct PageStore {
    forks: HashMap<RelTag, BTreeMap<BlockNumber, Box<PageBytes>>>,
}

impl PageStore {
    pub(crate) fn get_mut(&mut self, rel: RelTag, block: BlockNumber) -> Option<&mut PageBytes> {
        self.forks.get_mut(&rel)?.get_mut(&block).map(|page| &mut **page)
    }

    pub(crate) fn put(&mut self, rel: RelTag, block: BlockNumber, page: &PageBytes) {
        match self.get_mut(rel, block) {
            Some(old) => *old = *page,
            None => {
                self.forks.entry(rel).or_default().insert(block, Box::new(*page));
            }
        }
    }

    pub(crate) fn remove(&mut self, rel: RelTag, block: BlockNumber) {
        if let Some(fork) = self.forks.get_mut(&rel) {
            fork.remove(&block);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.forks.values().map(BTreeMap::len).sum()
    }

    /// What records without block references do to whole files: truncation, and the copy of a database's files.
    pub(crate) fn follow(&mut self, record: &DecodedRecord) {
        if let Some((source, target)) = database_copy(record) {
            self.copy_database(source, target);
        }
        let info = record.header.info & 0xF0;
        let main = record.main_data();
        let word = |index: usize| {
            let bytes = main.get(index * 4..index * 4 + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().expect("4 bytes")))
        };
        if (record.header.rmid, info) == (rmgr::STORAGE, SMGR_TRUNCATE)
            && let (Some(block), Some(spcnode), Some(dbnode), Some(relnode), Some(flags)) =
                (word(0), word(1), word(2), word(3), word(4))
        {
            self.truncate(RelTag { spcnode, dbnode, relnode, fork: ForkNumber::Main }, block, flags);
        }
    }

    fn truncate(&mut self, rel: RelTag, blocks: BlockNumber, flags: u32) {
        let mut cut = |fork: ForkNumber, from: BlockNumber| {
            if let Some(pages) = self.forks.get_mut(&rel.with_fork(fork)) {
                pages.split_off(&from);
            }
        };
        if flags & TRUNCATE_HEAP != 0 {
            cut(ForkNumber::Main, blocks);
        }
        if flags & TRUNCATE_VM == 0 {
            return;
        }
        cut(ForkNumber::Vm, blocks.div_ceil(HEAP_BLOCKS_PER_PAGE));
        let (vm, map_block) = (rel.with_fork(ForkNumber::Vm), vm_map_block(blocks));
        if !blocks.is_multiple_of(HEAP_BLOCKS_PER_PAGE)
            && let Some(page) = self.get_mut(vm, map_block)
        {
            Delta::VmTruncate { heap_blocks: blocks }
                .apply(&Key::RelBlock(vm, map_block), page)
                .expect("the delta is for this page");
        }
    }

    fn copy_database(&mut self, from: (u32, u32), to: (u32, u32)) {
        let copies: Vec<_> = self
            .forks
            .iter()
            .filter(|(rel, _)| (rel.spcnode, rel.dbnode) == from)
            .map(|(rel, pages)| (RelTag { spcnode: to.0, dbnode: to.1, ..*rel }, pages.clone()))
            .collect();
        self.forks.extend(copies);
    }
}
