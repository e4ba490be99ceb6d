//! A root's first content: images in any order become image layers, in bounded memory.
//!
//! ```text
//!  images, any order ──► memory ──full──► sorted run (local file) ─┐
//!                                         sorted run               ├─merge──► image layers over the whole key space ──► manifest
//!                                         ...                     ─┘
//! ```
//!
//! Nothing is durable before [`Timeline::finish_import`] returns: after a crash the import starts again from nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ardent_object_store::fault::FailPoints;
use ardent_object_store::{LocalFolder, ObjectName, ObjectStore};
use ardent_pg_redo::Value;
use ardent_types::{Key, Lsn};
use bytes::Bytes;

use crate::error::{CommitError, PutError};
use crate::flush::write_sorted;
use crate::image_writer::ImageWriter;
use crate::layer::{Layer, LayerDesc};
use crate::layer_map::LayerMap;
use crate::manifest::Manifest;
use crate::mem_layer::MemLayer;
use crate::merge::Merge;
use crate::object_names::TimelineNames;
use crate::shared::Shared;
use crate::stored_key::{KeyRange, StoredKey};
use crate::timeline::Timeline;
use crate::version::VersionKind;

/// An import that goes on.
pub(crate) struct Import {
    folder: PathBuf,
    /// Opened with the first run.
    store: Option<Arc<dyn ObjectStore>>,
    memory: Option<MemLayer>,
    runs: Vec<Arc<Layer>>,
}

impl Import {
    pub(crate) fn new(shared: &Shared, names: TimelineNames) -> Self {
        let folder = shared.config.local_dir.join("importing").join(names.timeline.to_string());
        Import { folder, store: None, memory: None, runs: Vec::new() }
    }

    fn discard(&mut self, faults: &FailPoints) -> std::io::Result<()> {
        self.runs.clear();
        self.memory = None;
        self.store = None;
        match faults.pass("import.clear").and_then(|()| std::fs::remove_dir_all(&self.folder)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Timeline {
    /// Adds content as of the start LSN, in any order; a key given again replaces what it had.
    pub fn import_images(&self, images: &[(Key, Bytes)]) -> Result<(), PutError> {
        self.import(images.iter().map(|(key, image)| (StoredKey::from(key), VersionKind::Image, &image[..])))
    }

    /// The same for values of any kind: a page that arrived damaged is known as unreadable until WAL brings it whole.
    pub fn import_values(&self, values: &[(Key, Value)]) -> Result<(), PutError> {
        self.import(values.iter().map(|(key, value)| {
            let (kind, bytes) = VersionKind::of(value);
            (StoredKey::from(key), kind, &bytes[..])
        }))
    }

    fn import<'v>(&self, values: impl Iterator<Item = (StoredKey, VersionKind, &'v [u8])>) -> Result<(), PutError> {
        self.check_owned()?;
        let mut import = self.import.lock();
        let Some(import) = import.as_mut() else { return Err(self.not_importing()) };
        let lsn = self.facts.start_lsn;
        let after = Lsn::new(lsn.get().saturating_sub(1));
        let memory = import.memory.get_or_insert_with(|| MemLayer::new(after, self.shared.memory.clone()));
        let versions = values.map(|(key, kind, bytes)| (key, lsn, kind, bytes));
        // Values of one LSN replace each other; anything else would be an error of ours.
        memory.put(versions, &[]).map_err(|disorder| self.disorder(disorder))?;
        if memory.bytes() >= self.shared.config.open_layer_bytes_max {
            self.spill(import)?;
        }
        Ok(())
    }

    fn not_importing(&self) -> PutError {
        PutError::WrongState { timeline: self.id(), state: "not being imported" }
    }

    /// Forgets what was imported so far.
    pub(crate) fn restart_import(&self) -> Result<(), CommitError> {
        let mut import = self.import.lock();
        let Some(import) = import.as_mut() else { return Ok(()) };
        let path = import.folder.display().to_string();
        import.discard(&self.shared.config.faults).map_err(|source| CommitError::Local { path, source })
    }

    fn spill(&self, import: &mut Import) -> Result<(), CommitError> {
        let Some(memory) = import.memory.take() else { return Ok(()) };
        let upto = self.facts.start_lsn;
        let finished =
            write_sorted(self, &memory, self.shared.temp_path(), |writer| writer.finish(None, None, upto, &[]))?;
        drop(memory);
        let store = match &import.store {
            Some(store) => store.clone(),
            None => {
                let opened: Arc<dyn ObjectStore> =
                    Arc::new(LocalFolder::open_with_faults(&import.folder, self.shared.config.faults.clone())?);
                import.store.insert(opened).clone()
            }
        };
        let file = format!("run-{}", import.runs.len());
        let name = ObjectName::new(file.clone()).expect("a number makes a good name");
        store.put_file(&name, &finished.path)?;
        let desc = LayerDesc { file, ..finished.desc };
        import.runs.push(Layer::new(desc, name, store, self.shared.blocks.clone()));
        Ok(())
    }

    /// Makes what was imported durable and readable at the start LSN, and opens the timeline for WAL. After an error it can be
    /// called again.
    pub fn finish_import(&self) -> Result<(), PutError> {
        self.check_owned()?;
        let mut slot = self.import.lock();
        let Some(import) = slot.as_mut() else { return Err(self.not_importing()) };
        self.spill(import)?;
        let written = self.merge_runs(import)?;
        let layers: Vec<LayerDesc> = written.iter().map(|layer| layer.desc.clone()).collect();
        let name = |manifest: &mut Manifest| {
            manifest.layers = layers;
            manifest.importing = false;
        };
        self.commit(name, |_| {
            self.change_layers(|set| set.files = Arc::new(LayerMap::new(written.clone())));
            self.importing.store(false, Ordering::Release);
        })?;
        if let Err(error) = import.discard(&self.shared.config.faults) {
            tracing::warn!(%error, "the runs of a finished import stay until the next start");
        }
        *slot = None;
        self.progress.advance(self.durable_record());
        Ok(())
    }

    fn merge_runs(&self, import: &Import) -> Result<Vec<Arc<Layer>>, CommitError> {
        let mut writer = ImageWriter::new(self, KeyRange::ALL, self.facts.start_lsn);
        let mut merge = Merge::new(&import.runs, &KeyRange::ALL)?;
        while let Some((key, version)) = merge.next()? {
            writer.add(&key, version.lsn, version.kind, &version.bytes)?;
        }
        writer.finish()
    }
}
