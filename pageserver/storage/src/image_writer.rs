//! Writes the image layers of a key range: one file after the other, together speaking for the whole range.

use std::sync::Arc;

use ardent_types::Lsn;

use crate::error::CommitError;
use crate::layer::{Effort, Layer, LayerKind, LayerWriter};
use crate::stored_key::{KeyRange, StoredKey};
use crate::timeline::Timeline;
use crate::version::VersionKind;

/// See the module's documentation.
pub(crate) struct ImageWriter<'a> {
    timeline: &'a Timeline,
    range: KeyRange,
    lsn: Lsn,
    /// First key that the current file speaks for.
    first: StoredKey,
    current: Option<LayerWriter<'a>>,
    done: Vec<Arc<Layer>>,
}

impl<'a> ImageWriter<'a> {
    pub(crate) fn new(timeline: &'a Timeline, range: KeyRange, lsn: Lsn) -> Self {
        ImageWriter { timeline, range, lsn, first: range.first, current: None, done: Vec::new() }
    }

    fn local(source: std::io::Error) -> CommitError {
        CommitError::Local { path: "a new image layer".to_owned(), source }
    }

    /// Adds the content that `key` has since `version`. Keys ascend.
    pub(crate) fn add(
        &mut self,
        key: &StoredKey,
        version: Lsn,
        kind: VersionKind,
        content: &[u8],
    ) -> Result<(), CommitError> {
        self.file_for(key)?.add(key, version, kind, content).map_err(Self::local)
    }

    /// Adds what neighbours have since `version`: see [`LayerWriter::add_packed`].
    pub(crate) fn add_packed(
        &mut self,
        first: &StoredKey,
        count: u32,
        version: Lsn,
        block: &[u8],
    ) -> Result<(), CommitError> {
        self.file_for(first)?.add_packed(first, count, version, block).map_err(Self::local)
    }

    /// The file that takes `key`.
    fn file_for(&mut self, key: &StoredKey) -> Result<&mut LayerWriter<'a>, CommitError> {
        let full =
            self.current.as_ref().is_some_and(|writer| writer.bytes() >= self.timeline.shared.config.layer_file_bytes);
        if full {
            let last = key.predecessor().expect("a key that comes after another has a predecessor");
            self.end_file(last)?;
            self.first = *key;
        }
        if self.current.is_none() {
            self.current = Some(self.create().map_err(Self::local)?);
        }
        Ok(self.current.as_mut().expect("made above"))
    }

    fn create(&self) -> std::io::Result<LayerWriter<'a>> {
        let shared = &self.timeline.shared;
        LayerWriter::create(&shared.temp_path(), LayerKind::Image, Effort::Usual, &shared.config.faults)
    }

    fn end_file(&mut self, last: StoredKey) -> Result<(), CommitError> {
        let writer = match self.current.take() {
            Some(writer) => writer,
            None => self.create().map_err(Self::local)?,
        };
        let keys = KeyRange { first: self.first, last };
        let finished = writer.finish(Some(keys), None, self.lsn, &[]).map_err(Self::local)?;
        self.done.push(self.timeline.store_layer(finished, 1)?);
        Ok(())
    }

    /// The files, durable but not yet named by a manifest.
    pub(crate) fn finish(mut self) -> Result<Vec<Arc<Layer>>, CommitError> {
        let last = self.range.last;
        self.end_file(last)?;
        Ok(std::mem::take(&mut self.done))
    }
}

impl Drop for ImageWriter<'_> {
    fn drop(&mut self) {
        // Given up half way: no manifest can have come to name these.
        self.done.iter().for_each(|layer| layer.delete_when_unused());
    }
}
