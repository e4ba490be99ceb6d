//! From WAL records to values.

use ardent_pg_format::{DecodedRecord, PgMajor, rmgr};
use ardent_pg_redo::{Delta, HintBits, Value};
use ardent_types::{BlockNumber, Key, Lsn, RelTag};
use bytes::Bytes;

use crate::state::{Batch, LastRecord, ReadState, UnknownRecord};

mod blocks;
mod control;
mod database;
mod database_copy;
mod error;
mod main_data;
mod missing;
mod multixact;
mod origins;
mod relations;
mod sizes;
mod slru_pages;
mod standby;
mod transactions;
mod xact_record;
mod xid;

pub(crate) use blocks::{unreadable, zero_page};
pub(crate) use control::Control;
pub(crate) use database::{WITH_VERSION_FILE, WITHOUT_VERSION_FILE};
pub use error::IngestError;
pub(crate) use origins::Origins;
pub(crate) use sizes::{decode_size, encode_size};
pub(crate) use xact_record::Prepared;

use database_copy::DatabaseCopy;
use error::Fault;
use main_data::MainData;
use missing::MissingPages;
use sizes::Sizes;

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// It is wholly in the batch, whose `last_record` names it.
    Done,
    /// Give the batch to storage, so that reads see it, clear it, and call again with the same record. Happens only where a record
    /// copies or drops a whole database.
    FlushFirst,
}

/// Turns the records of one timeline, in order and without gaps, into values.
///
/// After an error the `Ingest` and the batch are to be thrown away: load a new one from storage's last batch.
#[derive(Debug)]
pub struct Ingest {
    major: PgMajor,
    consistent_from: Lsn,
    sizes: Sizes,
    control: Control,
    origins: Origins,
    missing: MissingPages,
    copy: Option<DatabaseCopy>,
    prepared: Vec<u32>,
    /// What [`transactions::LAST_END_KEY`] says.
    last_end_unix_us: i64,
    last_end: Lsn,
}

/// One record on its way through.
struct Step<'a, S> {
    record: &'a DecodedRecord<'a>,
    lsn: Lsn,
    state: &'a S,
    out: &'a mut Batch,
}

impl<'a, S> Step<'a, S> {
    fn push(&mut self, key: Key, value: Value) {
        self.out.push(key, self.lsn, value);
    }

    fn push_image(&mut self, key: Key, content: Bytes) {
        self.push(key, Value::Image(content));
    }

    fn push_delta(&mut self, key: Key, delta: &Delta) {
        let value = Value::delta(delta, &mut self.out.buffer);
        self.push(key, value);
    }

    fn main_data(&self) -> MainData<'a> {
        MainData(self.record.main_data())
    }

    /// The record type, for resource managers that use all four bits for it.
    fn op(&self) -> u8 {
        self.record.header.info & 0xF0
    }

    fn note_unknown(&mut self) {
        let header = &self.record.header;
        self.out.unknown.push(UnknownRecord { lsn: self.lsn, rmid: header.rmid, info: header.info });
    }
}

/// A fault of a record, or of the state that was read for it.
type StepResult<S, T = ()> = Result<T, Fault<<S as ReadState>::Error>>;

impl Ingest {
    /// Continues a timeline from what storage holds. `consistent_from`: the end of the base backup that the timeline began with
    /// ([`Lsn::INVALID`] if it did not begin with one); before it, references to pages that the backup did not hold are
    /// remembered instead of being marked as damage (checklist 62).
    pub fn load<S: ReadState>(
        major: PgMajor,
        consistent_from: Lsn,
        state: &S,
    ) -> Result<Ingest, IngestError<S::Error>> {
        let read = |key: Key| {
            let value = state.get(key).map_err(|source| IngestError::State { lsn: Lsn::INVALID, source })?;
            Ok::<_, IngestError<S::Error>>(value.filter(|bytes| !bytes.is_empty()))
        };
        let required = |key: Key| read(key)?.ok_or(IngestError::Damaged { key });
        let control = Control::decode(major, &required(Key::Checkpoint)?, &required(Key::ControlFile)?)
            .map_err(|key| IngestError::Damaged { key })?;
        let origins = match read(Origins::KEY)? {
            Some(bytes) => Origins::decode(&bytes).ok_or(IngestError::Damaged { key: Origins::KEY })?,
            None => Origins::default(),
        };
        let missing = match read(MissingPages::KEY)? {
            Some(bytes) => MissingPages::decode(&bytes).ok_or(IngestError::Damaged { key: MissingPages::KEY })?,
            None => MissingPages::default(),
        };
        let last_end_unix_us = match read(transactions::LAST_END_KEY)? {
            Some(bytes) => {
                let bytes =
                    bytes[..].try_into().map_err(|_| IngestError::Damaged { key: transactions::LAST_END_KEY })?;
                i64::from_le_bytes(bytes)
            }
            None => i64::MIN,
        };
        let all_prepared = Key::TwoPhase { xid: 0 }..=Key::TwoPhase { xid: u64::MAX };
        let prepared = state.scan(all_prepared).map_err(|source| IngestError::State { lsn: Lsn::INVALID, source })?;
        let prepared = prepared.into_iter().filter(|(_, content)| !content.is_empty());
        let prepared = prepared.filter_map(|(key, _)| match key {
            Key::TwoPhase { xid } => Some(xid as u32),
            _ => None,
        });
        Ok(Ingest {
            major,
            consistent_from,
            sizes: Sizes::default(),
            control,
            origins,
            missing,
            copy: None,
            prepared: prepared.collect(),
            last_end_unix_us,
            last_end: Lsn::INVALID,
        })
    }

    /// Adds what `record` changes to `out`. Records come in WAL order; the same record again only after
    /// [`Progress::FlushFirst`].
    pub fn ingest<S: ReadState>(
        &mut self,
        record: &DecodedRecord<'_>,
        state: &S,
        out: &mut Batch,
    ) -> Result<Progress, IngestError<S::Error>> {
        if out.values.is_empty() {
            self.sizes.trim();
        }
        let mut step = Step { record, lsn: record.end_lsn, state, out };
        let progress = self.step(&mut step).map_err(|fault| fault.of_record(record))?;
        if progress == Progress::Done {
            out.last_record = Some(LastRecord { start: record.start_lsn, end: record.end_lsn });
            self.last_end = record.end_lsn;
        }
        Ok(progress)
    }

    /// Pages that WAL referred to and the import did not hold, and that nothing explains so far. At the import's end LSN and
    /// later there must be none: otherwise the import has failed.
    pub fn unresolved(&self) -> Vec<(RelTag, BlockNumber)> {
        self.missing.pages().collect()
    }

    fn step<S: ReadState>(&mut self, step: &mut Step<'_, S>) -> StepResult<S, Progress> {
        if step.lsn <= self.last_end {
            return Err(Fault::OutOfOrder { last: self.last_end });
        }
        let header = &step.record.header;
        self.control.see_xid(header.xid);
        if let Some(xid) = step.record.toplevel_xid {
            self.control.see_xid(xid);
        }
        if !step.record.blocks.is_empty() {
            self.blocks(step)?;
        }
        match header.rmid {
            rmgr::HEAP | rmgr::HEAP2 => self.visibility_map(step)?,
            rmgr::XLOG => self.xlog(step)?,
            rmgr::TRANSACTION => self.transaction(step)?,
            rmgr::STORAGE => self.storage(step)?,
            rmgr::CLOG => self.clog(step)?,
            rmgr::DATABASE => match self.database(step)? {
                Progress::Done => {}
                Progress::FlushFirst => return Ok(Progress::FlushFirst),
            },
            rmgr::TABLESPACE => self.tablespace(step)?,
            rmgr::MULTIXACT => self.multixact(step)?,
            rmgr::RELMAP => self.relmap(step)?,
            rmgr::STANDBY => self.standby(step)?,
            rmgr::COMMIT_TS => self.commit_ts(step)?,
            rmgr::REPLICATION_ORIGIN => self.origin(step)?,
            // Custom and unknown resource managers: their blocks are marked as such (checklist 55).
            rmid if rmid > rmgr::LOGICAL_MESSAGE && step.record.blocks.is_empty() => step.note_unknown(),
            // All that the others do is to their blocks.
            _ => {}
        }
        self.write_changed_state(step);
        Ok(Progress::Done)
    }

    /// One value each for what many records change a little (checklist 48).
    fn write_changed_state<S>(&mut self, step: &mut Step<'_, S>) {
        if let Some(checkpoint) = self.control.take_checkpoint_change() {
            step.push_image(Key::Checkpoint, checkpoint);
        }
        if let Some(control_file) = self.control.take_file_change() {
            step.push_image(Key::ControlFile, control_file);
        }
        if let Some(origins) = self.origins.take_change() {
            step.push_image(Origins::KEY, origins);
        }
        if let Some(missing) = self.missing.take_change() {
            step.push_image(MissingPages::KEY, missing);
        }
    }

    fn in_fuzzy_window(&self, lsn: Lsn) -> bool {
        lsn <= self.consistent_from
    }

    fn hint_bits(&self) -> HintBits {
        self.control.hint_bits()
    }
}
