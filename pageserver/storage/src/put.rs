//! Versions in: the open layer, freezing, back-pressure.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ardent_pg_redo::Value;
use ardent_types::{Key, Lsn};

use crate::debt::{DebtLimits, Pace, Wait};
use crate::error::PutError;
use crate::layer_map::{Frozen, LayerSet, Versions};
use crate::limits::{FROZEN_LAYERS_MAX, VALUE_BYTES_MAX};
use crate::mem_layer::{Disorder, MemLayer};
use crate::position::RecordPosition;
use crate::stats::count;
use crate::stored_key::StoredKey;
use crate::timeline::{FlushState, Timeline, Writer};
use crate::version::VersionKind;

/// How often a writer that is stopped looks whether somebody still brings debt down: not all that ends that is told to writers.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// With memory used up, an open layer of this part of its largest size is worth a file.
const SHARE_WORTH_A_FILE: usize = 8;
/// How long a writer waits for a flush before it says that it is stalled.
const STALL_AFTER: Duration = Duration::from_secs(10);

impl Timeline {
    /// Adds what records changed, and makes it visible as a whole: readers see nothing past the last record of the call before,
    /// then everything.
    ///
    /// The batch is in LSN order. `last_record` is the last record of the batch, and is given even if no record changed a key
    /// (checklist 7). What lies at or below the last record already there is left out: after a restart WAL comes again.
    /// Waits while too many layers wait to be written, and in proportion to what compaction has yet to do (`debt.rs`).
    pub fn put(&self, batch: Vec<(Key, Lsn, Value)>, last_record: RecordPosition) -> Result<(), PutError> {
        self.put_records(&batch, &[last_record])
    }

    /// The same with the position of every record of the batch, ascending, so that branches can be made at each.
    pub fn put_records(&self, batch: &[(Key, Lsn, Value)], positions: &[RecordPosition]) -> Result<(), PutError> {
        self.touch();
        self.check_takes_wal()?;
        self.wait_for_compaction(batch);
        self.wait_for_room()?;
        let mut writer = self.writer.lock();
        if writer.poisoned {
            return Err(PutError::Poisoned { timeline: self.id() });
        }
        let known = self.progress.end();
        let new = &positions[positions.partition_point(|position| position.end <= known)..];
        let Some(last) = new.last().copied() else { return Ok(()) };
        let batch = &batch[batch.partition_point(|(_, lsn, _)| *lsn <= known)..];
        self.check_order(batch, new, last)?;
        let open = self.layers.read().open.clone();
        let versions = batch.iter().map(|(key, lsn, value)| {
            let (kind, bytes) = VersionKind::of(value);
            (StoredKey::from(key), *lsn, kind, &bytes[..])
        });
        if let Err(disorder) = open.put(versions, new) {
            writer.poisoned = true;
            return Err(self.disorder(disorder));
        }
        count(&self.shared.stats.values_put, batch.len() as u64);
        writer.open_since.get_or_insert_with(Instant::now);
        self.progress.advance(last);
        let config = &self.shared.config;
        let all = self.shared.memory.load(Ordering::Relaxed);
        // Where many timelines share the memory, those with little in it let the others go first: small files are a burden too.
        let is_over = |share: usize, limit: usize| open.bytes() >= config.open_layer_bytes_max / share && all >= limit;
        let limit = config.memory_layers_bytes_max;
        if is_over(1, 0) || is_over(SHARE_WORTH_A_FILE, limit) || is_over(usize::MAX, limit.saturating_mul(2)) {
            self.freeze_open(&mut writer);
            self.ask_for_flush();
        }
        Ok(())
    }

    pub(crate) fn check_takes_wal(&self) -> Result<(), PutError> {
        self.check_owned()?;
        if self.is_importing() {
            return Err(PutError::WrongState { timeline: self.id(), state: "being imported; finish the import first" });
        }
        Ok(())
    }

    fn check_order(
        &self,
        batch: &[(Key, Lsn, Value)],
        positions: &[RecordPosition],
        last: RecordPosition,
    ) -> Result<(), PutError> {
        let broken = |rule: String| Err(PutError::Disorder { timeline: self.id(), rule });
        if let Some(pair) = positions.windows(2).find(|pair| pair[0].end >= pair[1].end) {
            return broken(format!(
                "the record ending at {} comes before the one ending at {}",
                pair[0].end, pair[1].end
            ));
        }
        if let Some(pair) = batch.windows(2).find(|pair| pair[0].1 > pair[1].1) {
            return broken(format!("{} at {} comes before {} at {}", pair[0].0, pair[0].1, pair[1].0, pair[1].1));
        }
        if let Some((key, lsn, _)) = batch.last().filter(|(_, lsn, _)| *lsn > last.end) {
            return broken(format!(
                "{key} has a version at {lsn}, past the batch's last record, which ends at {}",
                last.end
            ));
        }
        if let Some((key, lsn, value)) =
            batch.iter().find(|(_, _, value)| VersionKind::of(value).1.len() > VALUE_BYTES_MAX)
        {
            let length = VersionKind::of(value).1.len();
            return broken(format!("{key} has a version of {length} bytes at {lsn}; {VALUE_BYTES_MAX} are allowed"));
        }
        Ok(())
    }

    pub(crate) fn disorder(&self, disorder: Disorder) -> PutError {
        let rule = match disorder {
            Disorder::Backwards { key, lsn, newest } => {
                format!("{key} has a version at {newest}, {lsn} comes too late")
            }
            Disorder::Twice { key, lsn } => format!("{key} has two changes at {lsn}, which must be one"),
        };
        PutError::Disorder { timeline: self.id(), rule }
    }

    /// Whether writers are slowed down, or wait, until compaction has less to do.
    pub fn is_held_by_compaction(&self) -> bool {
        let config = &self.shared.config;
        config.background && DebtLimits::of(config).pace(&self.layer_set().debt(), 1) != Pace::Free
    }

    /// Back-pressure: what reads visit and apply is bounded because writers wait here (PS-9). No batch waits for what does not come: a damaged
    /// file may keep compaction from ever finishing; that is told by [`crate::Engine::problems`].
    fn wait_for_compaction(&self, batch: &[(Key, Lsn, Value)]) {
        let config = &self.shared.config;
        // The common case costs a look.
        if !self.is_held_by_compaction() {
            return;
        }
        let limits = DebtLimits::of(config);
        let bytes = batch.iter().map(|(_, _, value)| VersionKind::of(value).1.len()).sum();
        let began = Instant::now();
        let mut state = self.flush_state.lock();
        let mut is_late = false;
        while !is_late && self.owned.load(Ordering::Acquire) {
            let set = self.layer_set();
            let pace = limits.pace(&set.debt(), bytes);
            let is_worked_off = pace == Pace::Stopped && self.is_worked_off(&set, &state);
            // Compaction and flushes notify: debt may be less, or more, by then.
            match pace.wait(bytes, is_worked_off) {
                Wait::Not => break,
                Wait::For(delay) => is_late = self.flushed.wait_until(&mut state, began + delay).timed_out(),
                Wait::UntilLess => _ = self.flushed.wait_for(&mut state, LOOK_AGAIN),
            }
        }
        drop(state);
        count(&self.shared.stats.puts_slowed, 1);
        count(&self.shared.stats.puts_slowed_us, began.elapsed().as_micros() as u64);
    }

    /// Whether what there is will be less: the engine has a job for it, and the last one did not fail; or a flush will bring one about.
    fn is_worked_off(&self, set: &LayerSet, flush: &FlushState) -> bool {
        let is_flushed = !set.frozen.is_empty() && flush.last_error.is_none();
        self.shared.is_compacting()
            && self.compaction_failed.lock().is_none()
            && (is_flushed || self.next_job(&set.files).is_some())
    }

    /// Back-pressure: memory is bounded because writers wait here.
    fn wait_for_room(&self) -> Result<(), PutError> {
        let config = &self.shared.config;
        let stalled = |source| PutError::Stalled { timeline: self.id(), source };
        if !config.background {
            if !self.has_room() && self.spills() {
                self.spill_frozen().map_err(|error| stalled(Arc::new(error)))?;
            }
            return if self.has_room() { Ok(()) } else { self.flush_frozen().map_err(stalled) };
        }
        let deadline = Instant::now() + STALL_AFTER;
        let mut state = self.flush_state.lock();
        while !self.has_room() {
            if self.flushed.wait_until(&mut state, deadline).timed_out() && !self.has_room() {
                if let Some(source) = state.last_error.clone() {
                    return Err(stalled(source));
                }
                // Slow, or nobody is at it: lend a hand.
                drop(state);
                return self.flush_frozen().map_err(stalled);
            }
        }
        Ok(())
    }

    /// Whether another layer may be frozen: memory has room for it, and reads do not visit too many for it.
    fn has_room(&self) -> bool {
        let set = self.layer_set();
        let in_memory = set.frozen.iter().filter(|frozen| frozen.takes_memory() || !self.spills()).count();
        in_memory < FROZEN_LAYERS_MAX && set.frozen.len() < DebtLimits::of(&self.shared.config).files_max()
    }

    /// Ends the open layer, so that it can be written. What is in it stays readable.
    pub fn freeze(&self) {
        self.freeze_open(&mut self.writer.lock());
        self.ask_for_flush();
    }

    pub(crate) fn freeze_open(&self, writer: &mut Writer) {
        let position = self.progress.last();
        let _flush = self.flush_state.lock();
        self.change_layers(|set| {
            // Without versions there may still be records: the durable position moves with them (checklist 7).
            if position.end > set.open.after {
                let open = Arc::new(MemLayer::new(position.end, self.shared.memory.clone()));
                let layer = std::mem::replace(&mut set.open, open);
                let after = layer.after;
                set.frozen.push(Arc::new(Frozen {
                    versions: Versions::Memory(layer),
                    after,
                    position,
                    stored: Arc::default(),
                }));
            }
        });
        writer.open_since = None;
    }
}
