//! Carries out what [`crate::plan`] says. Readers keep the files that they began with.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ardent_types::{Key, Lsn, RelTag, with_causes};
use bytes::Bytes;

use crate::delta_writer::DeltaWriter;
use crate::error::{CommitError, CorruptFile, ErrorKind, ReadError};
use crate::image_writer::ImageWriter;
use crate::layer::{CursorUse, Layer, LayerDesc, LayerKind};
use crate::layer_map::LayerMap;
use crate::merge::Merge;
use crate::plan::{Job, Policy, image_floor, plan};
use crate::read::CacheUse;
use crate::stats::count;
use crate::stored_key::{KeyRange, StoredKey};
use crate::timeline::Timeline;
use crate::version::{Version, VersionKind};

/// How long a compaction that failed is left alone while the files stay the same.
const RETRY_COMPACTION_AFTER: Duration = Duration::from_secs(30);

/// The last compaction was a failure.
pub(crate) struct FailedCompaction {
    /// How many files there were.
    files: usize,
    since: Instant,
    pub(crate) error: Arc<CommitError>,
}

impl Timeline {
    /// Does the next step of compaction. False if there is nothing to do.
    pub fn compact_step(&self) -> Result<bool, CommitError> {
        let _compacting = self.compacting.lock();
        let files = self.layer_set().files.clone();
        let done = match self.next_job(&files) {
            None => return Ok(false),
            Some(Job::Merge { inputs }) => {
                let inputs: Vec<_> = inputs.iter().map(|at| files.layers()[*at].clone()).collect();
                self.merge_deltas(&inputs)
            }
            Some(Job::Images { keys, lsn }) => self.make_images(keys, lsn),
        };
        done.map_err(|error| match error {
            CommitError::Corrupt(file) => self.why_corrupt(file),
            other => other,
        })?;
        count(&self.shared.stats.compactions, 1);
        Ok(true)
    }

    /// [`Timeline::compact_step`] for the engine's own thread, with what went wrong kept for who asks. One that failed, most likely on
    /// a damaged file, is left alone until there are other files or some time has passed.
    pub(crate) fn compact_step_again(&self) -> bool {
        let files = self.layer_set().files.layers().len();
        let is_left_alone =
            |failed: &FailedCompaction| failed.files == files && failed.since.elapsed() < RETRY_COMPACTION_AFTER;
        if !self.owned.load(Ordering::Acquire) || self.compaction_failed.lock().as_ref().is_some_and(is_left_alone) {
            return false;
        }
        match self.compact_step() {
            Ok(is_done) => {
                *self.compaction_failed.lock() = None;
                is_done
            }
            Err(error) => {
                count(&self.shared.stats.background_failures, 1);
                tracing::warn!(timeline = %self.id(), error = %with_causes(&error), "a compaction failed");
                // One whose timeline is another's now is no fault of its files.
                let failed = FailedCompaction { files, since: Instant::now(), error: Arc::new(error) };
                *self.compaction_failed.lock() = Some(failed).filter(|_| self.owned.load(Ordering::Acquire));
                self.wake_writers();
                false
            }
        }
    }

    /// Writers may wait for compaction.
    fn wake_writers(&self) {
        // Behind whoever has looked and does not wait yet.
        drop(self.flush_state.lock());
        self.flushed.notify_all();
    }

    /// Whether [`Timeline::compact_step`] would do something.
    pub fn has_compaction_to_do(&self) -> bool {
        self.next_job(&self.layer_set().files).is_some()
    }

    pub(crate) fn next_job(&self, files: &LayerMap) -> Option<Job> {
        let config = &self.shared.config;
        let policy = Policy {
            compact_at_l0_files: config.compact_at_l0_files,
            images_at_delta_files: config.images_at_delta_files,
            images_at_deltas_per_key: config.images_at_deltas_per_key,
            layer_file_bytes: config.layer_file_bytes,
        };
        // Nobody reads a retired timeline from where images would be of use, and what its branches read is collected as it is.
        if self.is_importing() || self.is_retired() {
            return None;
        }
        let descs: Vec<LayerDesc> = files.layers().iter().map(|layer| layer.desc.clone()).collect();
        plan(&descs, &policy, self.retained_from())
    }

    /// Does all of compaction that there is to do.
    pub fn compact(&self) -> Result<(), CommitError> {
        while self.compact_step()? {}
        Ok(())
    }

    /// Replaces delta files by ones with the same versions, cut by key. `inputs` come oldest first. Where a key has many deltas in a
    /// row, some of them become images of what they make, so that no read has to apply them all.
    pub(crate) fn merge_deltas(&self, inputs: &[Arc<Layer>]) -> Result<(), CommitError> {
        let mut outputs = DeltaWriter::of_layers(self, inputs)?;
        let mut merge = Merge::new(inputs, &KeyRange::ALL, CursorUse::Alone)?;
        let mut row = self.has_all_between(inputs).then(|| DeltaRow::new(self));
        while let Some((key, mut version)) = merge.next()? {
            if let Some(row) = &mut row {
                row.pass(&key, &mut version)?;
            }
            outputs.add(&key, version.lsn, version.kind, &version.bytes)?;
        }
        self.replace_layers(inputs, &outputs.finish()?)
    }

    /// Whether what follows a version of a key in `inputs` is what followed it in history: the inputs speak for the whole key space, one
    /// begins where the other ends, and no other file has versions from between.
    fn has_all_between(&self, inputs: &[Arc<Layer>]) -> bool {
        let is_chain = inputs.windows(2).all(|pair| pair[0].desc.upto == pair[1].desc.after);
        let (Some(first), Some(last)) = (inputs.first(), inputs.last()) else { return false };
        if !is_chain || inputs.iter().any(|layer| layer.desc.level != 0) {
            return false;
        }
        let is_between = |layer: &&Arc<Layer>| {
            let desc = &layer.desc;
            desc.kind == LayerKind::Delta && desc.after < last.desc.upto && desc.upto > first.desc.after
        };
        let is_input = |layer: &Arc<Layer>| inputs.iter().any(|input| input.desc.file == layer.desc.file);
        self.layer_set().files.layers().iter().filter(is_between).all(is_input)
    }

    /// Makes image layers that speak for `keys` as of `lsn`, beside what is there. Why no read at any LSN gets another answer for it (PS-3;
    /// `tests/it/import.rs`):
    ///
    /// - `lsn` is where a delta file ends ([`crate::plan`]), and all versions of a timeline lie above where it begins, as its first open layer
    ///   does. So a read at an import's own LSN, or below `lsn` anywhere, does not visit these images: it finds what it found before.
    /// - Files are written in the order of LSNs, and [`Timeline::put`] takes nothing below what is there: no version at or below `lsn` comes
    ///   after the images, and a key that they leave out has none. Nor does an import bring one: while it goes on nothing is compacted, and
    ///   one manifest names all of it.
    /// - Within a base backup, whose pages are newer than their LSN says, an image is what a read at `lsn` would make of them; redo goes by a
    ///   page's bytes alone, so that it makes the same of the image later. Where it makes nothing of them there is a hole.
    /// - A block past the end of its relation at `lsn` is left out: what comes back there begins with a version that needs none before it.
    pub(crate) fn make_images(&self, keys: KeyRange, lsn: Lsn) -> Result<(), CommitError> {
        let mut writer = ImageWriter::new(self, keys, lsn);
        let files = self.layer_set().files.clone();
        let descs: Vec<LayerDesc> = files.layers().iter().map(|layer| layer.desc.clone()).collect();
        // What lies below images that cover the whole range adds no key that they don't have.
        let floor = image_floor(&descs, &keys, lsn).unwrap_or(Lsn::INVALID);
        let concerned = |layer: &&Arc<Layer>| {
            let desc = &layer.desc;
            let is_within = match desc.kind {
                LayerKind::Delta => desc.after < lsn && desc.upto > floor,
                LayerKind::Image => desc.upto <= lsn && desc.upto >= floor,
            };
            is_within && desc.keys.overlaps(&keys)
        };
        let layers: Vec<_> = files.layers().iter().filter(concerned).cloned().collect();
        let mut merge = Merge::new(&layers, &keys, CursorUse::KeysAreRead)?;
        let mut sizes = RelationSizes { timeline: self, lsn, last: None };
        let mut current: Option<(StoredKey, Lsn)> = None;
        loop {
            let next = merge.next()?;
            let key = next.as_ref().map(|(key, _)| *key);
            if let Some((ended, newest)) = current.filter(|(current, _)| key != Some(*current)) {
                self.make_image(&mut writer, &mut sizes, &ended, newest, lsn)?;
                current = None;
            }
            let Some((key, version)) = next else { break };
            if version.lsn <= lsn {
                current = Some((key, version.lsn));
            }
        }
        let written = writer.finish()?;
        self.replace_layers(&[], &written)
    }

    fn make_image(
        &self,
        writer: &mut ImageWriter<'_>,
        sizes: &mut RelationSizes<'_>,
        stored: &StoredKey,
        newest: Lsn,
        lsn: Lsn,
    ) -> Result<(), CommitError> {
        let Some(key) = stored.decode() else { return Ok(()) };
        if let Key::RelBlock(rel, block) = key
            && sizes.lies_past_end(rel, block)?
        {
            return Ok(());
        }
        match self.content_with(&key, stored, lsn, CacheUse::LookOnly) {
            Ok(Some(content)) => writer.add(stored, content.version, VersionKind::Image, &content.bytes),
            Ok(None) => Err(CorruptFile {
                file: format!("{}layers", self.names.prefix()),
                offset: 0,
                expected: format!("a version of {key} at or below {lsn}, as one at {newest} was found"),
                keys: key.to_string(),
            }
            .into()),
            // Stays readable below, and keeps what it needs there.
            Err(ReadError::Rebuild { .. }) => writer.add(stored, newest, VersionKind::Hole, b""),
            Err(error) => Err(read_failed(error)),
        }
    }

    /// Names `new` layers and forgets `old` ones, in one manifest.
    pub(crate) fn replace_layers(&self, old: &[Arc<Layer>], new: &[Arc<Layer>]) -> Result<(), CommitError> {
        let is_old = |file: &str| old.iter().any(|layer| layer.desc.file == file);
        self.commit(
            |manifest| {
                manifest.layers.retain(|layer| !is_old(&layer.file));
                manifest.layers.extend(new.iter().map(|layer| layer.desc.clone()));
            },
            |_| {
                self.change_layers(|set| {
                    let kept = set.files.layers().iter().filter(|layer| !is_old(&layer.desc.file)).cloned();
                    set.files = Arc::new(LayerMap::new(kept.chain(new.iter().cloned()).collect()));
                });
            },
        )?;
        old.iter().for_each(|layer| layer.delete_when_unused());
        self.wake_writers();
        count(&self.shared.stats.layers_removed, old.len() as u64);
        Ok(())
    }
}

fn read_failed(error: ReadError) -> CommitError {
    match error {
        ReadError::Corrupt(error) => CommitError::Corrupt(error),
        ReadError::Store(error) => CommitError::Store(error),
        other => CommitError::Read { is_worth_a_retry: other.kind() == ErrorKind::Retry, source: Box::new(other) },
    }
}

/// Watches versions go by in order, and turns a delta into an image of what it makes when too many deltas of its key came in a
/// row.
struct DeltaRow<'a> {
    timeline: &'a Timeline,
    /// Below this, what lies under a delta may be gone already.
    retained_from: Lsn,
    in_a_row_max: usize,
    key: Option<StoredKey>,
    /// What the key held before `deltas`, if that is known without a read.
    base: Option<Bytes>,
    deltas: Vec<Version>,
}

impl<'a> DeltaRow<'a> {
    fn new(timeline: &'a Timeline) -> Self {
        let in_a_row_max = 2 * timeline.shared.config.images_at_deltas_per_key as usize;
        let retained_from = timeline.retained_from();
        DeltaRow { timeline, retained_from, in_a_row_max, key: None, base: None, deltas: Vec::new() }
    }

    fn pass(&mut self, stored: &StoredKey, version: &mut Version) -> Result<(), CommitError> {
        if self.key != Some(*stored) || version.kind.ends_search() {
            self.key = Some(*stored);
            self.deltas.clear();
            self.base = (version.kind == VersionKind::Image).then(|| version.bytes.clone());
        }
        if version.kind.ends_search() {
            return Ok(());
        }
        self.deltas.push(version.clone());
        if self.deltas.len() > self.in_a_row_max {
            if let Some(image) = self.image(stored, version.lsn)? {
                (version.kind, version.bytes) = (VersionKind::Image, image.clone());
                self.base = Some(image);
            }
            self.deltas.clear();
        }
        Ok(())
    }

    /// What the key holds at `lsn`, where the last delta came; `None` if that can't be made.
    fn image(&mut self, stored: &StoredKey, lsn: Lsn) -> Result<Option<Bytes>, CommitError> {
        let Some(key) = stored.decode() else { return Ok(None) };
        let made = match self.base.take().filter(|base| !base.is_empty()) {
            Some(base) => {
                let mut values = self.deltas.drain(..).map(|delta| (delta.lsn, delta.into_value()));
                let major = self.timeline.facts.pg_major;
                let made = self.timeline.shared.config.redo.rebuild(major, &key, Some(base), &mut values);
                made.map(Some).map_err(|source| ReadError::Rebuild { key, lsn, source: Box::new(source) })
            }
            None if lsn < self.retained_from => Ok(None),
            None => {
                let content = self.timeline.content_with(&key, stored, lsn, CacheUse::LookOnly);
                content.map(|content| content.map(|content| content.bytes))
            }
        };
        match made {
            Ok(image) => Ok(image),
            Err(ReadError::Rebuild { .. }) => Ok(None),
            Err(error) => Err(read_failed(error)),
        }
    }
}

/// Says which blocks a relation has lost: they are in no image, so that what was dropped gives its space back.
struct RelationSizes<'a> {
    timeline: &'a Timeline,
    lsn: Lsn,
    last: Option<(RelTag, Option<u32>)>,
}

impl RelationSizes<'_> {
    fn lies_past_end(&mut self, rel: RelTag, block: u32) -> Result<bool, CommitError> {
        if self.last.is_none_or(|(last, _)| last != rel) {
            let key = Key::RelSize(rel);
            let content = self.timeline.content_with(&key, &StoredKey::from(&key), self.lsn, CacheUse::LookOnly);
            let content = content.map_err(read_failed)?;
            // Where nobody ever said a size, nothing is past the end.
            let blocks = content.map(|content| match content.bytes[..] {
                [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
                _ => 0,
            });
            self.last = Some((rel, blocks));
        }
        Ok(self.last.and_then(|(_, blocks)| blocks).is_some_and(|blocks| block >= blocks))
    }
}
