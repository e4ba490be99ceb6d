//! Which layers of a timeline a read visits.
//!
//! ```text
//!  newest ──► open layer ──► frozen layers (memory or local files) ──► delta files above the newest image that covers the key ──► that image
//!                                                                                  └─ none: down to the ancestor
//! ```
//!
//! A map is immutable: whoever changes the set of layers installs another one, and readers keep theirs (and with it the
//! files) until they are done.

use std::collections::BTreeSet;
use std::sync::Arc;

use ardent_types::Lsn;
use parking_lot::Mutex;

use crate::debt::Debt;
use crate::layer::{Layer, LayerError, LayerKind};
use crate::mem_layer::MemLayer;
use crate::position::RecordPosition;
use crate::spill::Spilled;
use crate::stored_key::{KeyRange, StoredKey};
use crate::version::Gathered;

/// A layer that takes no more versions and waits to be stored.
#[derive(Clone)]
pub(crate) struct Frozen {
    pub(crate) versions: Versions,
    /// It has everything after this LSN.
    pub(crate) after: Lsn,
    /// The last record in it.
    pub(crate) position: RecordPosition,
    /// Its object, stored but not yet named by a manifest.
    pub(crate) stored: Arc<Mutex<Option<Arc<Layer>>>>,
}

/// Where a frozen layer's versions are.
#[derive(Clone)]
pub(crate) enum Versions {
    Memory(Arc<MemLayer>),
    File(Arc<Spilled>),
}

impl Frozen {
    /// Without versions it is in memory and takes none.
    pub(crate) fn takes_memory(&self) -> bool {
        matches!(&self.versions, Versions::Memory(memory) if !memory.is_empty())
    }

    /// Memory that its versions take, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        match &self.versions {
            Versions::Memory(memory) => memory.bytes(),
            Versions::File(_) => 0,
        }
    }

    /// The last record in it that ends at or below `lsn`.
    pub(crate) fn boundary_at(&self, lsn: Lsn) -> Result<Option<RecordPosition>, LayerError> {
        match &self.versions {
            Versions::Memory(memory) => Ok(memory.boundary_at(lsn)),
            Versions::File(_) if lsn <= self.after => Ok(None),
            Versions::File(spilled) => {
                Ok(spilled.layer.boundaries()?.into_iter().rev().find(|position| position.end <= lsn))
            }
        }
    }

    fn gather(&self, key: &StoredKey, after: Lsn, upto: Lsn, out: &mut Gathered) -> Result<ReadCost, LayerError> {
        match &self.versions {
            Versions::Memory(memory) => {
                memory.gather(key, after, upto, out);
                Ok(ReadCost::default())
            }
            Versions::File(spilled) => {
                if self.after < upto {
                    spilled.layer.gather(key, after, upto, out)?;
                }
                Ok(ReadCost { files: usize::from(self.after < upto), deltas: 0 })
            }
        }
    }

    fn keys(&self, range: &KeyRange, after: Lsn, upto: Lsn, limit: usize) -> Result<Vec<StoredKey>, LayerError> {
        match &self.versions {
            Versions::Memory(memory) => Ok(memory.keys(range, after, upto, limit)),
            Versions::File(spilled) => spilled.layer.keys(range, after, upto, limit),
        }
    }
}

/// All layers of a timeline at one moment.
#[derive(Clone)]
pub(crate) struct LayerSet {
    pub(crate) open: Arc<MemLayer>,
    /// Oldest first.
    pub(crate) frozen: Vec<Arc<Frozen>>,
    pub(crate) files: Arc<LayerMap>,
}

/// What a read costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCost {
    /// Layer files that speak for the key and LSN, whether they turn out to have the key or not.
    pub files: usize,
    /// Deltas that redo applies.
    pub deltas: usize,
}

impl LayerSet {
    /// Adds the versions of `key` in `(after, upto]` that a read needs from this timeline. An image from an image layer can be older
    /// than `after`; it is the newest version all the same.
    pub(crate) fn gather(
        &self,
        key: &StoredKey,
        after: Lsn,
        upto: Lsn,
        out: &mut Gathered,
    ) -> Result<ReadCost, LayerError> {
        self.open.gather(key, after, upto, out);
        let mut cost = ReadCost::default();
        let is_done = |reaches: Lsn, out: &Gathered| out.complete_from().is_some() || reaches <= after;
        if is_done(self.open.after, out) {
            return Ok(cost);
        }
        for frozen in self.frozen.iter().rev() {
            cost.files += frozen.gather(key, after, upto, out)?.files;
            if is_done(frozen.after, out) {
                return Ok(cost);
            }
        }
        let files = self.files.gather(key, after, upto, out)?;
        Ok(ReadCost { files: cost.files + files.files, ..files })
    }

    /// What reads at the head visit at worst. Frozen layers count as the files that they are about to be.
    pub(crate) fn debt(&self) -> Debt {
        Debt { level_0_files: self.files.debt.level_0_files + self.frozen.len(), ..self.files.debt }
    }

    /// The keys in `range` with a version in `(after, upto]`, ascending, at most `limit`.
    pub(crate) fn keys(
        &self,
        range: &KeyRange,
        after: Lsn,
        upto: Lsn,
        limit: usize,
    ) -> Result<Vec<StoredKey>, LayerError> {
        let mut keys = BTreeSet::new();
        let mut add = |found: Vec<StoredKey>| {
            keys.extend(found);
            while keys.len() > limit {
                keys.pop_last();
            }
        };
        add(self.open.keys(range, after, upto, limit));
        for frozen in &self.frozen {
            add(frozen.keys(range, after, upto, limit)?);
        }
        for layer in self.files.layers() {
            let desc = &layer.desc;
            // The versions in an image layer can be much older than the image.
            if desc.keys.overlaps(range) && desc.after < upto && desc.upto > after {
                add(layer.keys(range, after, upto, limit)?);
            }
        }
        Ok(keys.into_iter().collect())
    }
}

/// The layer files of a timeline, and for each part of the key space those that speak for it.
#[derive(Default)]
pub(crate) struct LayerMap {
    /// Newest first.
    layers: Vec<Arc<Layer>>,
    /// First keys of the parts, ascending; the first is [`StoredKey::MIN`].
    parts: Vec<StoredKey>,
    /// For each part, indexes into `layers`, ascending.
    cover: Vec<Vec<u32>>,
    debt: Debt,
}

impl LayerMap {
    pub(crate) fn new(mut layers: Vec<Arc<Layer>>) -> Self {
        layers.sort_by(|a, b| {
            let order = |layer: &Layer| (layer.desc.upto, layer.desc.kind == LayerKind::Image, layer.desc.after);
            order(b).cmp(&order(a)).then_with(|| a.desc.file.cmp(&b.desc.file))
        });
        let mut parts = BTreeSet::from([StoredKey::MIN]);
        for layer in &layers {
            parts.insert(layer.desc.keys.first);
            parts.extend(layer.desc.keys.last.successor());
        }
        let parts: Vec<_> = parts.into_iter().collect();
        let mut cover = vec![Vec::new(); parts.len()];
        for (index, layer) in layers.iter().enumerate() {
            let first = parts.partition_point(|part| *part < layer.desc.keys.first);
            let end = parts.partition_point(|part| *part <= layer.desc.keys.last);
            for part in &mut cover[first..end] {
                part.push(index as u32);
            }
        }
        let debt = debt(&layers, &cover);
        LayerMap { layers, parts, cover, debt }
    }

    /// What of the files compaction has yet to merge, or to make images of.
    pub(crate) fn debt(&self) -> &Debt {
        &self.debt
    }

    /// All, newest first.
    pub(crate) fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    /// The layers that speak for `key`, newest first.
    fn covering(&self, key: &StoredKey) -> impl Iterator<Item = &Arc<Layer>> + Clone {
        let part = self.parts.partition_point(|part| part <= key);
        let cover = part.checked_sub(1).map_or(&[][..], |part| &self.cover[part][..]);
        cover.iter().map(|index| &self.layers[*index as usize])
    }

    /// Loads what the newest images at or below `lsn` hold of `keys`. True if those leave nothing to be found below them.
    pub(crate) fn load_images(&self, keys: &KeyRange, lsn: Lsn) -> bool {
        let mut next = Some(keys.first);
        while let Some(first) = next.filter(|first| *first <= keys.last) {
            let is_image = |layer: &&Arc<Layer>| layer.desc.kind == LayerKind::Image && layer.desc.upto <= lsn;
            let Some(image) = self.covering(&first).find(is_image) else { return false };
            let last = image.desc.keys.last.min(keys.last);
            image.load(&KeyRange { first, last });
            if image.desc.holes > 0 {
                return false;
            }
            next = last.successor();
        }
        true
    }

    /// As [`LayerSet::gather`], from files alone.
    pub(crate) fn gather(
        &self,
        key: &StoredKey,
        after: Lsn,
        upto: Lsn,
        out: &mut Gathered,
    ) -> Result<ReadCost, LayerError> {
        let mut cost = ReadCost::default();
        let is_image = |layer: &&Arc<Layer>| layer.desc.kind == LayerKind::Image;
        let mut images =
            self.covering(key).filter(is_image).filter(|layer| layer.desc.upto <= upto && layer.desc.upto > after);
        loop {
            let image = images.next();
            let floor = image.map_or(after, |image| image.desc.upto);
            for delta in self.covering(key).filter(|layer| !is_image(layer)) {
                let floor = out.complete_from().map_or(floor, |lsn| lsn.max(floor));
                if delta.desc.upto <= floor {
                    break;
                }
                if delta.desc.after < upto {
                    cost.files += 1;
                    delta.gather(key, floor, upto, out)?;
                }
            }
            let Some(image) = image.filter(|_| out.complete_from().is_none()) else { return Ok(cost) };
            cost.files += 1;
            if image.gather(key, after, upto, out)? {
                return Ok(cost);
            }
            // A hole: what lies below the image is needed as if it weren't there.
        }
    }
}

fn debt(layers: &[Arc<Layer>], cover: &[Vec<u32>]) -> Debt {
    let mut debt = Debt::default();
    for layer in layers.iter().filter(|layer| layer.desc.level == 0) {
        debt.level_0_files += 1;
        debt.level_0_bytes += layer.desc.bytes;
    }
    for part in cover {
        let covering = || part.iter().map(|index| &layers[*index as usize].desc);
        let image = covering().find(|desc| desc.kind == LayerKind::Image);
        let floor = image.map_or(Lsn::INVALID, |image| image.upto);
        let deltas = covering().filter(|desc| desc.kind == LayerKind::Delta && desc.level > 0 && desc.upto > floor);
        let (depth, deltas_per_key) =
            deltas.fold((0, 0), |(files, deltas), desc| (files + 1, deltas + desc.versions_per_key()));
        debt.depth = debt.depth.max(depth);
        debt.deltas_per_key = debt.deltas_per_key.max(deltas_per_key);
    }
    debt
}
