//! A root made of what another timeline holds at one LSN: no ancestor, no version from before, nothing that was replaced or dropped.
//!
//! ```text
//!  source at L ──► small values, then the blocks of relations that exist, up to their ends ──► import of the new root ──► manifest
//! ```
//!
//! Whoever reads the new root can be given what is in it and nothing else, whatever is asked for: there is no timeline below that a
//! read could go on in. A crash in the middle leaves a timeline that is being imported, which nothing can be read from; the same call
//! again begins its import anew, and a deletion removes it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use ardent_types::{BLCKSZ, BlockNumber, ForkNumber, Key, Lsn, RelTag, TenantId, TimelineId};
use bytes::Bytes;

use crate::engine::Engine;
use crate::error::{CutError, ReadError, TimelineError};
use crate::manifest::{Manifest, TimelineFacts};
use crate::object_names::TimelineNames;
use crate::position::{BranchPoint, RecordPosition};
use crate::timeline::Timeline;

/// Blocks that are read at once.
const BLOCKS_AT_ONCE: BlockNumber = 256;
/// Small values that are read at once: an SLRU page is as large as a block.
const KEYS_AT_ONCE: usize = 512;

/// What [`Engine::cut_root`] is to make.
#[derive(Clone, Debug)]
pub struct CutRoot {
    /// Whose.
    pub tenant: TenantId,
    /// The new root.
    pub timeline: TimelineId,
    /// The timeline that it is made of.
    pub source: TimelineId,
    /// Of what it holds where: the last record of the source that ends at or below this.
    pub at: Lsn,
    /// Relations that are left out, by their main forks: all forks of these.
    pub without: BTreeSet<RelTag>,
    /// The new root's metadata from its first manifest on.
    pub metadata: BTreeMap<String, serde_json::Value>,
}

impl Engine {
    /// Makes a root that holds what `source` holds at `at`, and nothing else. Copies that, in bounded memory; it takes as long as
    /// reading all of it does. Idempotent: the same call again gives the same point, also after a crash in the middle.
    ///
    /// Fails where anything that is to be copied cannot be read.
    pub fn cut_root(&self, cut: CutRoot) -> Result<BranchPoint, CutError> {
        let CutRoot { tenant, timeline, source, at, without, metadata } = cut;
        if timeline == source {
            return Err(TimelineError::Conflict { timeline, what: "source" }.into());
        }
        let source = self.timeline(tenant, source)?;
        let (owner, point) = source.branch_point(Some(at))?;
        if owner != source.id() {
            // Its own history is meant: what an ancestor held below has not been through what the source did to it.
            return Err(TimelineError::Retired { lsn: at, retained_from: source.facts().start_lsn }.into());
        }
        let facts = TimelineFacts { start_lsn: point.lsn, ..*source.facts() };
        let names = TimelineNames { tenant, timeline };
        let slot = self.slot(names);
        // Held to the end: the same call again, after an answer that was lost, must not import into what this one imports into.
        let mut place = slot.lock();
        let root = match self.load_into(&mut place, names)? {
            Some(existing) if existing.ancestor().is_some() || *existing.facts() != facts => {
                return Err(TimelineError::Conflict { timeline, what: "origin" }.into());
            }
            Some(existing) => existing,
            None => {
                let last_record = RecordPosition { end: point.lsn, start: point.prev_lsn };
                let manifest = self.first_manifest(names, facts, None, last_record);
                self.create(&mut place, Manifest { importing: true, metadata, ..manifest })?
            }
        };
        if root.is_importing() {
            root.restart_import()?;
            copy(&source, point.lsn, &without, &root)?;
            root.finish_import()?;
        }
        Ok(point)
    }
}

/// Copies what exists at `lsn`, but for the relations in `without`.
fn copy(source: &Timeline, lsn: Lsn, without: &BTreeSet<RelTag>, root: &Timeline) -> Result<(), CutError> {
    let mut relations = Vec::new();
    let mut after = None;
    loop {
        let mut part = source.scan_part(small_values(), after, lsn, KEYS_AT_ONCE)?;
        part.entries.retain(|(key, _)| match key {
            Key::RelSize(rel) => !without.contains(&rel.with_fork(ForkNumber::Main)),
            _ => true,
        });
        for (key, value) in &part.entries {
            if let Key::RelSize(rel) = key {
                relations.push((*rel, decode_size(*rel, lsn, value)?));
            }
        }
        root.import_images(&part.entries)?;
        after = part.resume;
        if after.is_none() {
            break;
        }
    }
    for (rel, blocks) in relations {
        let mut first = 0;
        while first < blocks {
            let end = blocks.min(first.saturating_add(BLOCKS_AT_ONCE));
            let mut images: Vec<(Key, Bytes)> = Vec::with_capacity((end - first) as usize);
            source.get_pages(rel, first..end, lsn, |block, page| {
                // What was never written is absent in both.
                images.extend(page.map(|page| (Key::RelBlock(rel, block), page)));
                Ok::<(), ReadError>(())
            })?;
            root.import_images(&images)?;
            first = end;
        }
    }
    Ok(())
}

/// All keys but blocks of relations.
fn small_values() -> RangeInclusive<Key> {
    let first = RelTag { spcnode: 0, dbnode: 0, relnode: 0, fork: ForkNumber::Main };
    // The least key above all small ones; it is not there itself, as no relation has these numbers.
    Key::Checkpoint..=Key::RelBlock(first, 0)
}

fn decode_size(rel: RelTag, lsn: Lsn, value: &[u8]) -> Result<BlockNumber, CutError> {
    let size = value.first_chunk::<4>().filter(|_| value.len() == 4).map(|size| BlockNumber::from_le_bytes(*size));
    size.ok_or(CutError::Size { rel, lsn, length: value.len() })
}

const _: () = assert!(KEYS_AT_ONCE * BLCKSZ <= 8 << 20 && BLOCKS_AT_ONCE as usize * BLCKSZ <= 8 << 20);
