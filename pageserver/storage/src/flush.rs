//! Frozen layers become files, in order; only then does the durable position move (PS-1).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::CommitError;
use crate::layer::{Effort, FinishedLayer, Layer, LayerDesc, LayerKind, LayerWriter};
use crate::layer_map::{Frozen, LayerMap, Versions};
use crate::manifest::Manifest;
use crate::mem_layer::MemLayer;
use crate::stats::count;
use crate::timeline::Timeline;

impl Timeline {
    /// Makes everything ingested so far durable. When this returns, [`Timeline::disk_consistent_lsn`] is at or past what
    /// [`Timeline::last_record`] said when it was called.
    pub fn flush(&self) -> Result<(), Arc<CommitError>> {
        self.freeze_open(&mut self.writer.lock());
        self.flush_frozen()
    }

    /// Whether something was ingested that is not durable yet.
    pub(crate) fn has_unflushed(&self) -> bool {
        self.disk_consistent_lsn() < self.progress.end()
    }

    pub(crate) fn ask_for_flush(&self) {
        for queue in [&self.shared.spill_queue, &self.shared.flush_queue].into_iter().filter_map(|queue| queue.get()) {
            // A queue is closed only when the engine ends; whoever ends it flushes first.
            let _ = queue.send(self.this.clone());
        }
    }

    /// Stores the frozen layers, oldest first.
    pub(crate) fn flush_frozen(&self) -> Result<(), Arc<CommitError>> {
        let _flushing = self.flushing.lock();
        loop {
            let Some(frozen) = self.layer_set().frozen.first().cloned() else { return Ok(()) };
            if self.spills() && frozen.takes_memory() {
                // What is stored from here on is the file: memory is not held for as long as that takes.
                let spilled = self.spill_layer(&frozen);
                if spilled.is_err() {
                    self.note_flush(spilled)?;
                }
                continue;
            }
            let result = self.flush_one(&frozen);
            drop(frozen);
            self.note_flush(result)?;
            self.flushed.notify_all();
        }
    }

    /// Keeps why flushing does not get on, for those who wait for it.
    fn note_flush(&self, result: Result<(), CommitError>) -> Result<(), Arc<CommitError>> {
        let result = result.map_err(Arc::new);
        match &result {
            Ok(()) => self.shared.note_store(false),
            Err(error) if matches!(**error, CommitError::Store(_)) => self.shared.note_store(true),
            Err(_) => {}
        }
        if result.is_err() {
            count(&self.shared.stats.background_failures, 1);
        }
        self.flush_state.lock().last_error = result.as_ref().err().cloned();
        result
    }

    fn flush_one(&self, frozen: &Arc<Frozen>) -> Result<(), CommitError> {
        // A file whose commit failed is kept for the next attempt: a full disk must not get fuller with each.
        let mut kept = frozen.stored.lock();
        if kept.as_ref().map_or(Ok(false), |layer| layer.is_missing())? {
            // Removed as a leftover meanwhile.
            *kept = None;
        }
        if kept.is_none() {
            *kept = self.store_frozen(frozen)?;
        }
        let written = kept.clone();
        let name = |manifest: &mut Manifest| {
            manifest.layers.extend(written.as_ref().map(|layer| layer.desc.clone()));
            manifest.last_record = frozen.position;
        };
        self.commit(name, |_| {
            self.change_layers(|set| {
                let first = set.frozen.remove(0);
                assert_eq!(first.position, frozen.position, "layers are flushed in order");
                if let Some(layer) = &written {
                    let mut layers = set.files.layers().to_vec();
                    layers.push(layer.clone());
                    set.files = Arc::new(LayerMap::new(layers));
                }
            });
            *self.durable_record.write() = frozen.position;
            self.durable.store(frozen.position.end.get(), Ordering::Release);
        })?;
        count(&self.shared.stats.layers_flushed, u64::from(written.is_some()));
        Ok(())
    }

    /// Makes a frozen layer an object. One without versions leaves none.
    fn store_frozen(&self, frozen: &Frozen) -> Result<Option<Arc<Layer>>, CommitError> {
        let finished = match &frozen.versions {
            Versions::Memory(memory) if memory.is_empty() => return Ok(None),
            Versions::Memory(memory) => write_frozen(self, frozen, memory, self.shared.temp_path())?,
            Versions::File(spilled) => spilled.to_store(self.shared.temp_path(), &self.shared.config.faults)?,
        };
        self.store_layer(finished, 0).map(Some)
    }

    /// Makes a finished file an object, durable but not yet named by a manifest.
    pub(crate) fn store_layer(&self, finished: FinishedLayer, level: u8) -> Result<Arc<Layer>, CommitError> {
        let FinishedLayer { path, desc } = finished;
        let letter = if desc.kind == LayerKind::Delta { 'd' } else { 'i' };
        let file = self.shared.next_file_name(letter, level, desc.upto);
        let name = self.names.layer(&file).expect("our own file names are good");
        if let Err(error) = self.store_object(|store| store.put_file(&name, &path)) {
            // Gone if it was moved; else swept at the next start should this fail too.
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        count(&self.shared.stats.layer_bytes_written, desc.bytes);
        let desc = LayerDesc { file, level, ..desc };
        Ok(Layer::new(desc, name, self.shared.config.store.clone(), self.shared.blocks.clone()))
    }
}

/// Writes a frozen layer, whose versions are `memory`, to the local file `path`.
pub(crate) fn write_frozen(
    timeline: &Timeline,
    frozen: &Frozen,
    memory: &MemLayer,
    path: PathBuf,
) -> Result<FinishedLayer, CommitError> {
    let write = || {
        let mut writer = LayerWriter::create(&path, LayerKind::Delta, Effort::Little, &timeline.shared.config.faults)?;
        memory.for_each_sorted(|key, lsn, kind, value| writer.add(key, lsn, kind, value))?;
        writer.finish(None, Some(frozen.after), frozen.position.end, &memory.boundaries())
    };
    write().map_err(|source| CommitError::Local { path: path.display().to_string(), source })
}
