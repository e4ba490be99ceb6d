//! A record that changes more than fits in memory, such as the copy of a database: its values go to layer files as they come, and
//! become visible and durable together.
//!
//! ```text
//!  begin: all before is flushed ──► blocks ──► delta files that no manifest names ─┐
//!                                   others ──► memory ──finish──► delta file ──────┴─► one manifest ──► visible
//! ```
//!
//! The files lie between the record before and this one, so a read, an image or a merge at any other LSN is as it would be without
//! them. A crash before the manifest leaves files that the next owner removes, and WAL brings the record again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ardent_pg_redo::Value;
use ardent_types::{Key, Lsn};
use bytes::Bytes;

use crate::delta_writer::DeltaWriter;
use crate::error::{CommitError, PutError};
use crate::layer::{Layer, LayerDesc};
use crate::layer_map::LayerMap;
use crate::manifest::Manifest;
use crate::mem_layer::MemLayer;
use crate::position::RecordPosition;
use crate::stats::count;
use crate::stored_key::StoredKey;
use crate::timeline::Timeline;
use crate::version::VersionKind;

/// The record under way. Dropped unfinished, it leaves nothing.
pub struct LargeRecord<'a> {
    timeline: &'a Timeline,
    position: RecordPosition,
    before: Lsn,
    files: DeltaWriter<'a>,
    /// Keys other than blocks, of which there are few: sizes, folders.
    others: BTreeMap<StoredKey, (VersionKind, Bytes)>,
    values: u64,
}

impl std::fmt::Debug for LargeRecord<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LargeRecord")
            .field("position", &self.position)
            .field("values", &self.values)
            .finish_non_exhaustive()
    }
}

impl Timeline {
    /// Begins a record at `position`, the next after [`Timeline::last_record`]. Makes everything before it durable. Nothing else may be
    /// put until it is finished or dropped.
    pub fn begin_large_record(&self, position: RecordPosition) -> Result<LargeRecord<'_>, PutError> {
        self.touch();
        self.check_takes_wal()?;
        self.flush().map_err(|source| PutError::Stalled { timeline: self.id(), source })?;
        let before = self.progress.end();
        if position.end <= before {
            let rule = format!("the record ending at {} comes after the one ending at {before}", position.end);
            return Err(PutError::Disorder { timeline: self.id(), rule });
        }
        let files = DeltaWriter::new(self, before, position.end, vec![position]);
        Ok(LargeRecord { timeline: self, position, before, files, others: BTreeMap::new(), values: 0 })
    }
}

impl LargeRecord<'_> {
    /// Adds values, all at the record's LSN. Blocks come once each, and best in key order: wherever they don't, another file begins.
    pub fn add(&mut self, values: &[(Key, Lsn, Value)]) -> Result<(), PutError> {
        self.timeline.touch();
        for (key, lsn, value) in values {
            if *lsn != self.position.end {
                return Err(
                    self.broken(format!("{key} has a version at {lsn} in the record ending at {}", self.position.end))
                );
            }
            let stored = StoredKey::from(key);
            let (kind, bytes) = VersionKind::of(value);
            if !kind.ends_search() {
                return Err(self.broken(format!("{key} has a change that needs what was before, in a large record")));
            }
            if !stored.is_block() {
                self.others.insert(stored, (kind, bytes.clone()));
                continue;
            }
            match self.files.last_key() {
                Some(last) if last == stored => return Err(self.broken(format!("{key} has two versions at {lsn}"))),
                Some(last) if last > stored => self.files.end_file()?,
                _ => {}
            }
            self.files.add(&stored, *lsn, kind, bytes)?;
        }
        self.values += values.len() as u64;
        Ok(())
    }

    fn broken(&self, rule: String) -> PutError {
        PutError::Disorder { timeline: self.timeline.id(), rule }
    }

    /// Makes the record durable, then visible.
    pub fn finish(mut self) -> Result<(), PutError> {
        self.files.end_file()?;
        for (key, (kind, bytes)) in &self.others {
            self.files.add(key, self.position.end, *kind, bytes)?;
        }
        let LargeRecord { timeline, position, before, files, values, .. } = self;
        let layers = files.finish()?;
        for layer in &layers {
            if layer.is_missing().map_err(CommitError::from)? {
                let source = std::io::Error::new(std::io::ErrorKind::NotFound, "it was removed as a leftover");
                return Err(CommitError::Local { path: layer.desc.file.clone(), source }.into());
            }
        }
        let writer = timeline.writer.lock();
        let _flushing = timeline.flushing.lock();
        let set = timeline.layer_set();
        if writer.poisoned || timeline.progress.end() != before || !set.open.is_empty() || !set.frozen.is_empty() {
            let rule = format!("something was put while the record ending at {} was under way", position.end);
            return Err(PutError::Disorder { timeline: timeline.id(), rule });
        }
        timeline.name_large_record(position, &layers)?;
        count(&timeline.shared.stats.values_put, values);
        timeline.progress.advance(position);
        Ok(())
    }
}

impl Timeline {
    fn name_large_record(&self, position: RecordPosition, layers: &[Arc<Layer>]) -> Result<(), CommitError> {
        let descs: Vec<LayerDesc> = layers.iter().map(|layer| layer.desc.clone()).collect();
        let name = |manifest: &mut Manifest| {
            manifest.layers.extend(descs);
            manifest.last_record = position;
        };
        self.commit(name, |_| {
            self.change_layers(|set| {
                let all = set.files.layers().iter().chain(layers).cloned().collect();
                set.files = Arc::new(LayerMap::new(all));
                set.open = Arc::new(MemLayer::new(position.end, self.shared.memory.clone()));
            });
            *self.durable_record.write() = position;
            self.durable.store(position.end.get(), Ordering::Release);
        })
    }
}
