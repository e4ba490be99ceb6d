//! Record by record: redo on our page, compare with the logged one.

use std::collections::HashMap;

use ardent_pg_format::{DecodedBlock, DecodedRecord, ImageError, PgMajor, restore_image, rmgr};
use ardent_pg_redo::{
    HintBits, RecordView, RedoError, StoreError, StoredRecord, Value, ValueDecodeError, redo_block, vm_changes,
    vm_map_block,
};
use ardent_types::{BLCKSZ, BlockNumber, ForkNumber, Lsn, RelTag};
use bytes::BytesMut;

use crate::end::database_copy;
use crate::mask::{Mask, settle_speculative_tuples};
use crate::report::{MISMATCHES_MAX, Mismatch, Report};
use crate::store::{PageBytes, PageStore, page_lsn};
use crate::vm_check::VmCheck;

/// `XLR_CHECK_CONSISTENCY`: the record carries images to compare with.
const CHECK_CONSISTENCY: u8 = 0x02;
const PD_ALL_VISIBLE: u8 = 0x04;
/// `XLOG_HASH_SQUEEZE_PAGE`, and its reference to the page that it frees.
const HASH_SQUEEZE_PAGE: u8 = 0x80;
const HASH_FREED_PAGE: u8 = 2;
/// `GistBuildLSN`, as pages have it.
const GIST_BUILD_LSN: [u8; 8] = [0, 0, 0, 0, 1, 0, 0, 0];

/// A record can't even be taken apart.
#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    /// An image is damaged.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Storage could not keep the record.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What storage would have kept does not decode.
    #[error("the stored form of the record that ends at {lsn} does not decode")]
    Stored {
        /// End of the record.
        lsn: Lsn,
        /// Why.
        #[source]
        source: ValueDecodeError,
    },
}

/// Changes what redo made before it is compared, so that a test can see the oracle catch it.
pub type Tamper = Box<dyn FnMut(&DecodedRecord, &DecodedBlock, &mut PageBytes)>;

/// The oracle. See the [crate](crate).
pub struct Oracle {
    major: PgMajor,
    hint_bits: HintBits,
    store: PageStore,
    vm: VmCheck,
    /// Pages that Postgres stamped with a hint's record that carries no image (checksums with `full_page_writes = off`); redo does not.
    hinted: HashMap<(RelTag, BlockNumber), Lsn>,
    report: Report,
    tamper: Option<Tamper>,
    mismatches_max: usize,
}

/// What redo of one block came to.
enum Redone {
    Page(Box<PageBytes>),
    Failed(RedoError),
    Unreadable,
}

impl Oracle {
    /// An oracle that has seen nothing yet.
    pub fn new(major: PgMajor, hint_bits: HintBits) -> Oracle {
        Oracle {
            major,
            hint_bits,
            store: PageStore::default(),
            vm: VmCheck::default(),
            hinted: HashMap::new(),
            report: Report::default(),
            tamper: None,
            mismatches_max: MISMATCHES_MAX,
        }
    }

    /// Lets a test change what redo makes, and keeps every mismatch.
    #[must_use]
    pub fn with_tamper(mut self, tamper: Tamper) -> Oracle {
        self.tamper = Some(tamper);
        self.mismatches_max = usize::MAX;
        self
    }

    /// Takes the next record.
    pub fn check(&mut self, record: &DecodedRecord) -> Result<(), OracleError> {
        self.report.records += 1;
        self.store.follow(record);
        if let Some((source, target)) = database_copy(record) {
            self.copy_database(source, target);
        }
        self.follow_hints(record);
        for (rel, heap_block, lsn) in self.vm.expired(record.end_lsn) {
            self.unexplained_bit(rel, heap_block, lsn);
        }
        let kind = rmgr::identify(record.header.rmid, record.header.info, self.major);
        let name = format!("{}/{}", rmgr::name(record.header.rmid), kind.unwrap_or("unknown"));
        if record.blocks.is_empty() {
            *self.report.without_blocks.entry(name).or_default() += 1;
            return Ok(());
        }
        self.report.entry(&name).records += 1;
        self.apply_vm_changes(record, &name);
        for block in record.blocks {
            self.check_block(record, block, &name)?;
        }
        Ok(())
    }

    /// What is true of a database's pages is true of their copies.
    fn copy_database(&mut self, source: (u32, u32), target: (u32, u32)) {
        let of_source = |rel: &RelTag| (rel.spcnode, rel.dbnode) == source;
        let copies = self.hinted.iter().filter(|((rel, _), _)| of_source(rel));
        let copies: Vec<_> = copies
            .map(|((rel, block), lsn)| ((RelTag { spcnode: target.0, dbnode: target.1, ..*rel }, *block), *lsn))
            .collect();
        self.hinted.extend(copies);
        self.vm.copy_database(source, target);
    }

    fn follow_hints(&mut self, record: &DecodedRecord) {
        if record.header.rmid == rmgr::XLOG && record.header.info & 0xF0 == rmgr::xlog::FPI_FOR_HINT {
            let stamped = record.blocks.iter().filter(|block| !block.has_applied_image());
            self.hinted.extend(stamped.map(|block| ((block.rel, block.blkno), record.end_lsn)));
        }
    }

    /// Ends the run: what is left unexplained becomes mismatches.
    pub fn finish(mut self) -> Report {
        let left: Vec<_> = self.vm.unexplained().collect();
        for (rel, heap_block, lsn) in left {
            self.unexplained_bit(rel, heap_block, lsn);
        }
        self.report.pages = self.store.len() as u64;
        self.report
    }

    fn unexplained_bit(&mut self, rel: RelTag, heap_block: BlockNumber, lsn: Lsn) {
        let what =
            format!("a bit of heap block {heap_block} that Postgres had cleared and no record cleared soon after");
        let (record, block) = ("Heap2/VISIBLE".to_owned(), vm_map_block(heap_block));
        self.mismatch(Mismatch { lsn, record, rel, block, what, offset: 0, ours: vec![], theirs: vec![] });
    }

    fn mismatch(&mut self, mismatch: Mismatch) {
        self.report.entry(&mismatch.record).mismatches += 1;
        if self.report.mismatches.len() < self.mismatches_max {
            self.report.mismatches.push(mismatch);
        }
    }

    fn apply_vm_changes(&mut self, record: &DecodedRecord, name: &str) {
        let view = RecordView::of_record(record, self.hint_bits);
        match vm_changes(self.major, &view) {
            Ok(pages) => {
                for page in &pages {
                    self.vm.cleared(page);
                    self.report.entry(name).derived_vm_changes += page.changes.len() as u64;
                    if let Some(bytes) = self.store.get_mut(page.rel, page.block) {
                        page.changes.iter().for_each(|change| change.apply(bytes));
                    }
                }
            }
            Err(error) => {
                let block = &record.blocks[0];
                self.failed(record, block, name, error.to_string());
            }
        }
    }

    fn failed(&mut self, record: &DecodedRecord, block: &DecodedBlock, name: &str, what: String) {
        self.mismatch(Mismatch {
            lsn: record.end_lsn,
            record: name.to_owned(),
            rel: block.rel,
            block: block.blkno,
            what,
            offset: 0,
            ours: vec![],
            theirs: vec![],
        });
    }

    fn check_block(&mut self, record: &DecodedRecord, block: &DecodedBlock, name: &str) -> Result<(), OracleError> {
        let value = Value::for_block(self.major, record, block, self.hint_bits, &mut BytesMut::new())?;
        if let Value::Image(bytes) = &value {
            self.report.entry(name).images_applied += 1;
            let page: &PageBytes = bytes[..].try_into().expect("images are pages");
            if block.rel.fork == ForkNumber::Vm {
                let has_hole = block.image.as_ref().is_some_and(|image| image.hole_length > 0);
                let note = if has_hole { VmCheck::content_lost } else { VmCheck::content_logged };
                note(&mut self.vm, block.rel, block.blkno);
            }
            self.store.put(block.rel, block.blkno, page);
            return Ok(());
        }
        let theirs = match &block.image {
            Some(image) if record.header.info & CHECK_CONSISTENCY != 0 && !image.apply => {
                Some(Box::new(restore_image(record, block)?))
            }
            _ => None,
        };
        let before = self.store.get_mut(block.rel, block.blkno).map(|page| Box::new(*page));
        if let (Some(before), Some(theirs)) = (&before, &theirs)
            && !block.will_init
            && !self.vm.is_lost(block.rel, block.blkno)
        {
            self.compare_lsn(record, block, name, before, theirs);
        }
        // A map page that is not there yet starts as zeros; if that doesn't do, its history lies before this WAL.
        let from_zeros = before.is_none() && block.rel.fork == ForkNumber::Vm;
        if before.is_none() && !block.will_init && !from_zeros {
            self.first_seen(record, block, name, theirs.as_deref());
            return Ok(());
        }
        let page = before.unwrap_or_else(|| Box::new([0; BLCKSZ]));
        let redone = self.redo(record, block, &value, page)?;
        match (redone, theirs) {
            (Redone::Unreadable, _) => {
                self.report.entry(name).unreadable += 1;
                if !self.report.unexpected_unreadable.iter().any(|known| known == name) {
                    self.report.unexpected_unreadable.push(name.to_owned());
                }
                self.store.remove(block.rel, block.blkno);
            }
            (Redone::Failed(error), theirs) => {
                self.failed(record, block, name, error.to_string());
                self.take_over(record, block, theirs.as_deref());
            }
            (Redone::Page(ours), Some(theirs)) if from_zeros && ours[24..] != theirs[24..] => {
                self.first_seen(record, block, name, Some(&theirs));
            }
            (Redone::Page(ours), Some(theirs)) => {
                if self.compare(record, block, name, &ours, &theirs) {
                    self.store.put(block.rel, block.blkno, &ours);
                } else {
                    // One mistake is reported once.
                    self.take_over(record, block, Some(&theirs));
                }
            }
            (Redone::Page(ours), None) => {
                self.report.entry(name).unchecked += 1;
                self.store.put(block.rel, block.blkno, &ours);
            }
        }
        Ok(())
    }

    /// Redo by way of what storage keeps.
    fn redo(
        &mut self,
        record: &DecodedRecord,
        block: &DecodedBlock,
        value: &Value,
        mut page: Box<PageBytes>,
    ) -> Result<Redone, OracleError> {
        let lsn = record.end_lsn;
        let stored = Value::decode(value.encode()).map_err(|source| OracleError::Stored { lsn, source })?;
        let Value::Record { record: bytes, .. } = &stored else { return Ok(Redone::Unreadable) };
        let stored = StoredRecord::decode(bytes, lsn, block.rel, block.blkno)
            .map_err(|source| OracleError::Stored { lsn, source })?;
        if let Err(error) = redo_block(self.major, &stored.view, stored.block_id, &mut page) {
            return Ok(Redone::Failed(error));
        }
        if let Some(tamper) = &mut self.tamper {
            tamper(record, block, &mut page);
        }
        Ok(Redone::Page(page))
    }

    fn first_seen(&mut self, record: &DecodedRecord, block: &DecodedBlock, name: &str, theirs: Option<&PageBytes>) {
        self.report.entry(name).first_seen += 1;
        self.take_over(record, block, theirs);
    }

    /// The logged page becomes ours. It was logged before it was stamped.
    fn take_over(&mut self, record: &DecodedRecord, block: &DecodedBlock, theirs: Option<&PageBytes>) {
        let Some(theirs) = theirs else { return self.store.remove(block.rel, block.blkno) };
        let mut page = Box::new(*theirs);
        let (high, low) = record.end_lsn.halves();
        page[0..4].copy_from_slice(&high.to_le_bytes());
        page[4..8].copy_from_slice(&low.to_le_bytes());
        self.store.put(block.rel, block.blkno, &page);
    }

    /// The logged page still has the LSN of the record before: ours must have had it too.
    fn compare_lsn(
        &mut self,
        record: &DecodedRecord,
        block: &DecodedBlock,
        name: &str,
        before: &PageBytes,
        theirs: &PageBytes,
    ) {
        self.report.entry(name).lsns_checked += 1;
        // A sorted GiST build writes its pages before it logs them. One that was read back from its file has the build's stamp.
        let built = record.header.rmid == rmgr::GIST && theirs[..8] == GIST_BUILD_LSN;
        // A hash index's overflow page that is freed is made anew before it is logged, though the record does not say that it
        // initialises it. With full-page writes the image is applied, and this is not seen.
        let squeezed = record.header.rmid == rmgr::HASH && record.header.info & 0xF0 == HASH_SQUEEZE_PAGE;
        let freed = squeezed && block.id == HASH_FREED_PAGE && theirs[..8] == [0; 8];
        let (last, stamp) = (page_lsn(before), page_lsn(theirs));
        let hinted = stamp > last && self.hinted.get(&(block.rel, block.blkno)) == Some(&stamp);
        if before[..8] != theirs[..8] && !built && !freed && !hinted {
            self.differs(record, block, name, "page LSN before the record", 0, before, theirs);
        }
    }

    /// Whether the pages agree; a difference is reported.
    fn compare(
        &mut self,
        record: &DecodedRecord,
        block: &DecodedBlock,
        name: &str,
        ours: &PageBytes,
        theirs: &PageBytes,
    ) -> bool {
        let rmid = record.header.rmid;
        let heap = rmid == rmgr::HEAP || rmid == rmgr::HEAP2;
        let mut settled = Box::new(*theirs);
        let entry = self.report.entry(name);
        entry.checked += 1;
        if heap {
            entry.masked_bytes += settle_speculative_tuples(&mut settled, block.blkno);
        }
        let theirs = &*settled;
        let difference = match (Mask::of(rmid, ours), Mask::of(rmid, theirs)) {
            (Ok(our_mask), Ok(their_mask)) => {
                entry.masked_bytes += their_mask.masked_bytes();
                their_mask.first_difference(&our_mask, ours, theirs).map(|at| ("page", at))
            }
            _ => Some(("page header", 8)),
        };
        let difference = difference.or_else(|| match block.rel.fork {
            ForkNumber::Main if heap && (ours[10] ^ theirs[10]) & PD_ALL_VISIBLE != 0 => Some(("PD_ALL_VISIBLE", 10)),
            ForkNumber::Vm => {
                let compared = self.vm.compare(block.rel, block.blkno, record.end_lsn, ours, theirs);
                compared.err().map(|difference| ("visibility-map bits", difference.at))
            }
            _ => None,
        });
        if let Some((what, at)) = difference {
            self.differs(record, block, name, what, at, ours, theirs);
        }
        difference.is_none()
    }

    #[allow(clippy::too_many_arguments, reason = "the report wants all of it")]
    fn differs(
        &mut self,
        record: &DecodedRecord,
        block: &DecodedBlock,
        name: &str,
        what: &str,
        offset: usize,
        ours: &PageBytes,
        theirs: &PageBytes,
    ) {
        let part = |page: &PageBytes| page[offset..(offset + 32).min(BLCKSZ)].to_vec();
        self.mismatch(Mismatch {
            lsn: record.end_lsn,
            record: name.to_owned(),
            rel: block.rel,
            block: block.blkno,
            what: what.to_owned(),
            offset,
            ours: part(ours),
            theirs: part(theirs),
        });
    }
}
