//! A root's first content: images in any order become image layers, in bounded memory.
//!
//! ```text
//!  images, any order ──► full groups of neighbours ──packed at once, by other threads──┐
//!                  └───► what is left over ────────────────────────────────────────────┴─► memory ──full──► sorted run (local file)
//!                                                                                            └──────┬───────────┘
//!                                     image layers over the whole key space ◄──merge, as they are───┘
//! ```
//!
//! A base backup's files come in any order, but each one's pages come in theirs. So nearly all content is packed once, as it comes, and
//! goes into its image layer as it is; only what lies between the keys of others, and the ends of relations, is packed anew.
//!
//! Nothing is durable before [`Timeline::finish_import`] returns: after a crash the import starts again from nothing.

mod merge;
mod packers;
mod piece;
mod run;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ardent_object_store::LocalFolder;
use ardent_object_store::fault::FailPoints;
use ardent_pg_redo::Value;
use ardent_types::Key;
use bytes::Bytes;

use self::merge::{Merge, Origin};
use self::packers::{FullGroup, Packers};
pub(crate) use self::piece::PACKED_IN_MEMORY;
use self::piece::{Loose, Piece, damaged_memory, in_order, loose};
pub(crate) use self::run::RUN;
use self::run::{Run, RunReader};
use crate::error::{CommitError, PutError};
use crate::image_writer::ImageWriter;
use crate::layer::{Group, GroupBuilder, Layer, LayerDesc};
use crate::layer_map::LayerMap;
use crate::limits::GROUP_BYTES_MAX;
use crate::manifest::Manifest;
use crate::mem_layer::MemoryGauge;
use crate::object_names::TimelineNames;
use crate::shared::Shared;
use crate::stored_key::{KeyRange, StoredKey};
use crate::timeline::Timeline;
use crate::version::VersionKind;

/// A group with less than this is packed anew with its neighbours: small ones are packed worse, and cost an entry of an index.
const PACKED_BYTES_MIN: usize = GROUP_BYTES_MAX / 2;
/// What all runs together may hold in memory of what comes next in them, unless there are very many.
const READ_AHEAD_BYTES: usize = 16 << 20;
/// Most that is read of a run at once.
const READ_AT_ONCE_MAX: usize = 1 << 20;

/// An import that goes on.
pub(crate) struct Import {
    folder: PathBuf,
    gathered: Option<Gathered>,
    /// All that was gathered since the last run, once no more is to come.
    sorted: Option<Arc<Vec<Piece>>>,
    runs: Vec<Run>,
    memory: Held,
    /// Something that came is lost: only a new beginning helps.
    is_broken: bool,
}

/// What came since the last run.
struct Gathered {
    packers: Packers,
    /// Neighbours, and the key of the first and the last.
    group: GroupBuilder,
    keys: Option<KeyRange>,
    loose: Vec<(u64, Piece)>,
    loose_bytes: usize,
    next_number: u64,
}

/// Memory that the engine counts.
struct Held {
    gauge: MemoryGauge,
    bytes: usize,
}

impl Held {
    fn set(&mut self, bytes: usize) {
        self.gauge.fetch_add(bytes, Ordering::Relaxed);
        self.gauge.fetch_sub(std::mem::replace(&mut self.bytes, bytes), Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Gathered {
    fn new() -> std::io::Result<Self> {
        let (packers, group) = (Packers::start()?, GroupBuilder::default());
        Ok(Gathered { packers, group, keys: None, loose: Vec::new(), loose_bytes: 0, next_number: 0 })
    }

    fn bytes(&self) -> usize {
        self.packers.bytes() + self.loose_bytes
    }

    fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn add(&mut self, timeline: &Timeline, key: StoredKey, kind: VersionKind, value: &[u8]) {
        if !key.is_block() {
            let loose = Loose { key, kind, bytes: Bytes::copy_from_slice(value) };
            return self.add_loose(loose);
        }
        let goes_on = self.keys.is_some_and(|keys| keys.last.successor() == Some(key))
            && self.group.values_len() + value.len() <= GROUP_BYTES_MAX
            && self.group.table_len() <= GROUP_BYTES_MAX;
        if !goes_on {
            self.end_group();
        }
        self.keys = Some(KeyRange { first: self.keys.map_or(key, |keys| keys.first), last: key });
        self.group.add(&key, timeline.facts.start_lsn, kind, value);
    }

    fn add_loose(&mut self, loose: Loose) {
        let number = self.next_number();
        let piece = Piece::Loose(loose);
        self.loose_bytes += piece.weight();
        self.loose.push((number, piece));
    }

    fn end_group(&mut self) {
        let Some(keys) = self.keys.take() else { return };
        if self.group.values_len() >= PACKED_BYTES_MIN {
            let content = std::mem::replace(&mut self.group, self.packers.empty_group());
            let number = self.next_number();
            return self.packers.pack(FullGroup { number, first: keys.first, content });
        }
        let group = Group::parse(Bytes::copy_from_slice(self.group.finish()));
        self.group.clear();
        loose(&group.expect("what was built is a group")).into_iter().for_each(|loose| self.add_loose(loose));
    }

    /// Everything, in order.
    fn finish(mut self) -> Result<Vec<Piece>, CommitError> {
        self.end_group();
        let packed = self.packers.finish();
        let mut pieces = packed.map_err(|source| CommitError::Local { path: "what is imported".to_owned(), source })?;
        pieces.append(&mut self.loose);
        in_order(pieces).map_err(damaged_memory)
    }
}

impl Import {
    pub(crate) fn new(shared: &Shared, names: TimelineNames) -> Self {
        let folder = shared.config.local_dir.join("importing").join(names.timeline.to_string());
        let memory = Held { gauge: shared.memory.clone(), bytes: 0 };
        Import { folder, gathered: None, sorted: None, runs: Vec::new(), memory, is_broken: false }
    }

    fn discard(&mut self, faults: &FailPoints) -> std::io::Result<()> {
        self.runs.clear();
        self.gathered = None;
        self.sorted = None;
        self.memory.set(0);
        self.is_broken = false;
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
        if import.sorted.is_some() || import.is_broken {
            return Err(self.not_importing());
        }
        let gathered = match &mut import.gathered {
            Some(gathered) => gathered,
            None => import.gathered.insert(Gathered::new().map_err(Self::no_threads)?),
        };
        values.for_each(|(key, kind, value)| gathered.add(self, key, kind, value));
        let bytes = gathered.bytes();
        import.memory.set(bytes);
        if bytes >= self.shared.config.open_layer_bytes_max {
            self.write_run(import)?;
        }
        Ok(())
    }

    fn no_threads(source: std::io::Error) -> CommitError {
        CommitError::Local { path: "what is imported".to_owned(), source }
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

    fn write_run(&self, import: &mut Import) -> Result<(), CommitError> {
        let Some(gathered) = import.gathered.take() else { return Ok(()) };
        let faults = &self.shared.config.faults;
        let write =
            |pieces: Vec<Piece>| Run::write(&import.folder, import.runs.len(), &pieces, self.facts.start_lsn, faults);
        let written = gathered.finish().and_then(write);
        import.memory.set(0);
        import.is_broken = written.is_err();
        import.runs.push(written?);
        Ok(())
    }

    /// Makes what was imported durable and readable at the start LSN, and opens the timeline for WAL. After an error it can be
    /// called again.
    pub fn finish_import(&self) -> Result<(), PutError> {
        self.check_owned()?;
        let mut slot = self.import.lock();
        let Some(import) = slot.as_mut() else { return Err(self.not_importing()) };
        if import.is_broken {
            return Err(self.not_importing());
        }
        if let Some(gathered) = import.gathered.take() {
            let sorted = gathered.finish();
            import.is_broken = sorted.is_err();
            import.sorted = Some(Arc::new(sorted?));
        }
        let written = self.write_images(import)?;
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

    fn write_images(&self, import: &Import) -> Result<Vec<Arc<Layer>>, CommitError> {
        let folder = Arc::new(LocalFolder::look_at(&import.folder));
        let step = (READ_AHEAD_BYTES / import.runs.len().max(1)).clamp(GROUP_BYTES_MAX, READ_AT_ONCE_MAX);
        let runs = import.runs.iter().map(|run| Origin::Run(RunReader::new(folder.clone(), run, step)));
        let memory = import.sorted.iter().map(|pieces| Origin::Memory(pieces.clone(), 0));
        let mut merge = Merge::new(runs.chain(memory).collect())?;
        let lsn = self.facts.start_lsn;
        let mut writer = ImageWriter::new(self, KeyRange::ALL, lsn);
        while let Some(piece) = merge.next()? {
            match piece {
                Piece::Loose(Loose { key, kind, bytes }) => writer.add(&key, lsn, kind, &bytes)?,
                Piece::Packed(packed) => writer.add_packed(&packed.first, packed.count, lsn, &packed.block)?,
            }
        }
        writer.finish()
    }
}
