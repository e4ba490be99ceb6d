//! Goes over the versions of several layers at once, in order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use ardent_types::Lsn;

use crate::layer::{CursorUse, Layer, LayerCursor, LayerError};
use crate::stored_key::{KeyRange, StoredKey};
use crate::version::Version;

/// Versions by key, then LSN. Of two with the same key and LSN only that of the layer named last is given.
pub(crate) struct Merge {
    cursors: Vec<LayerCursor>,
    /// The next version of each cursor is in `heads`; the heap orders them. Later layers come first among equals.
    heads: Vec<Option<Version>>,
    heap: BinaryHeap<Reverse<(StoredKey, Lsn, Reverse<usize>)>>,
    last_key: StoredKey,
    given: Option<(StoredKey, Lsn)>,
}

impl Merge {
    /// The versions of the keys in `range` in `layers`, oldest layer first.
    pub(crate) fn new(layers: &[Arc<Layer>], range: &KeyRange, usage: CursorUse) -> Result<Self, LayerError> {
        let cursor = |layer: &Arc<Layer>| layer.cursor_with(range.first, usage);
        let cursors = layers.iter().map(cursor).collect::<Result<Vec<_>, _>>()?;
        let heads = cursors.iter().map(|_| None).collect();
        let mut merge = Merge { cursors, heads, heap: BinaryHeap::new(), last_key: range.last, given: None };
        for index in 0..merge.cursors.len() {
            merge.pull(index)?;
        }
        Ok(merge)
    }

    fn pull(&mut self, index: usize) -> Result<(), LayerError> {
        if let Some((key, version)) = self.cursors[index].next()?
            && key <= self.last_key
        {
            self.heap.push(Reverse((key, version.lsn, Reverse(index))));
            self.heads[index] = Some(version);
        }
        Ok(())
    }

    /// The next version and its key.
    pub(crate) fn next(&mut self) -> Result<Option<(StoredKey, Version)>, LayerError> {
        while let Some(Reverse((key, lsn, Reverse(index)))) = self.heap.pop() {
            let version = self.heads[index].take().expect("what is in the heap has a head");
            self.pull(index)?;
            if self.given != Some((key, lsn)) {
                self.given = Some((key, lsn));
                return Ok(Some((key, version)));
            }
        }
        Ok(None)
    }
}
