//! Writes versions, in order, into delta layers of about the normal size, never splitting a key.
//!
//! A file speaks for all keys between its first and its last. So that tables that grow do not lie above each other in files that share only what
//! every record touches (sizes, transaction states), files end before blocks begin, and a large one with its relation.

use std::sync::Arc;

use ardent_types::Lsn;

use crate::error::CommitError;
use crate::layer::{Effort, Layer, LayerKind, LayerWriter};
use crate::position::RecordPosition;
use crate::stored_key::StoredKey;
use crate::timeline::Timeline;
use crate::version::VersionKind;

/// A file that is at least this fraction of the normal size ends with its relation.
const LARGE_FRACTION: u64 = 16;

/// See the module's documentation.
pub(crate) struct DeltaWriter<'a> {
    timeline: &'a Timeline,
    after: Lsn,
    upto: Lsn,
    boundaries: Vec<RecordPosition>,
    current: Option<LayerWriter<'a>>,
    last_key: Option<StoredKey>,
    done: Vec<Arc<Layer>>,
}

impl<'a> DeltaWriter<'a> {
    /// For the versions of `inputs`, merged.
    pub(crate) fn of_layers(timeline: &'a Timeline, inputs: &[Arc<Layer>]) -> Result<Self, CommitError> {
        let mut boundaries = Vec::new();
        for layer in inputs {
            boundaries.append(&mut layer.boundaries()?);
        }
        boundaries.sort_unstable_by_key(|position| position.end);
        boundaries.dedup_by_key(|position| position.end);
        let after = inputs.iter().map(|layer| layer.desc.after).min().unwrap_or(Lsn::INVALID);
        let upto = inputs.iter().map(|layer| layer.desc.upto).max().unwrap_or(Lsn::INVALID);
        Ok(Self::new(timeline, after, upto, boundaries))
    }

    /// For versions in `(after, upto]` and the records in `boundaries`.
    pub(crate) fn new(timeline: &'a Timeline, after: Lsn, upto: Lsn, boundaries: Vec<RecordPosition>) -> Self {
        DeltaWriter { timeline, after, upto, boundaries, current: None, last_key: None, done: Vec::new() }
    }

    /// The key added last to the file that is being written.
    pub(crate) fn last_key(&self) -> Option<StoredKey> {
        self.last_key
    }

    fn local(source: std::io::Error) -> CommitError {
        CommitError::Local { path: "a new delta layer".to_owned(), source }
    }

    /// Adds a version that sorts after the ones before it in the same file.
    pub(crate) fn add(
        &mut self,
        key: &StoredKey,
        lsn: Lsn,
        kind: VersionKind,
        value: &[u8],
    ) -> Result<(), CommitError> {
        let shared = &self.timeline.shared;
        let normal = shared.config.layer_file_bytes;
        let (last, bytes) = (self.last_key, self.current.as_ref().map_or(0, LayerWriter::bytes));
        let is_apart = last.is_some_and(|last| {
            (!last.is_block() && key.is_block()) || (bytes >= normal / LARGE_FRACTION && !last.is_beside(key))
        });
        if last != Some(*key) && (is_apart || bytes >= normal) {
            self.end_file()?;
        }
        if self.current.is_none() {
            let path = shared.temp_path();
            let writer = LayerWriter::create(&path, LayerKind::Delta, Effort::Usual, &shared.config.faults)
                .map_err(Self::local)?;
            self.current = Some(writer);
        }
        self.last_key = Some(*key);
        self.current.as_mut().expect("made above").add(key, lsn, kind, value).map_err(Self::local)
    }

    /// Ends the file that is being written, if there is one.
    pub(crate) fn end_file(&mut self) -> Result<(), CommitError> {
        let Some(writer) = self.current.take() else { return Ok(()) };
        self.last_key = None;
        // All in the first file: a branch point is looked up in whichever has it.
        let boundaries = std::mem::take(&mut self.boundaries);
        let finished = writer.finish(None, Some(self.after), self.upto, &boundaries).map_err(Self::local)?;
        self.done.push(self.timeline.store_layer(finished, 1)?);
        Ok(())
    }

    /// The files, durable but not yet named by a manifest.
    pub(crate) fn finish(mut self) -> Result<Vec<Arc<Layer>>, CommitError> {
        self.end_file()?;
        Ok(std::mem::take(&mut self.done))
    }
}

impl Drop for DeltaWriter<'_> {
    fn drop(&mut self) {
        // Given up half way: no manifest can have come to name these.
        self.done.iter().for_each(|layer| layer.delete_when_unused());
    }
}
