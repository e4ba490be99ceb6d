//! From WAL bytes to storage, for one timeline.

use std::sync::Arc;

use ardent_pg_format::{DecodedRecord, WalDecoder, WalError};
use ardent_pg_ingest::{Batch, Ingest, IngestError, Progress};
use ardent_storage::{CommitError, LargeRecord, PutError, ReadError, RecordPosition, Timeline};
use ardent_types::Lsn;
use ardent_wal_client::WalChunk;

use crate::import::{IMPORT_ERROR, consistent_from};
use crate::limits;
use crate::state::TimelineAt;

/// WAL could not be taken in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IntakeError {
    #[error("its WAL cannot be decoded")]
    Decode(#[from] WalError),
    #[error("its WAL cannot be ingested")]
    Ingest(#[from] Box<IngestError<ReadError>>),
    #[error("its WAL cannot be stored")]
    Put(#[from] PutError),
    #[error("its state cannot be made durable")]
    Commit(#[from] CommitError),
    #[error("pages that WAL refers to were missing in the base backup: {0}")]
    Incomplete(String),
}

/// See the module's documentation.
pub(crate) struct Intake {
    timeline: Arc<Timeline>,
    decoder: WalDecoder,
    ingest: Ingest,
    batch: Batch,
    positions: Vec<RecordPosition>,
    consistent_from: Lsn,
    /// The import's missing pages have been looked at.
    is_checked: bool,
}

impl Intake {
    pub(crate) fn open(timeline: &Arc<Timeline>) -> Result<Intake, IntakeError> {
        let facts = timeline.facts();
        let last = timeline.last_record();
        let mut decoder =
            WalDecoder::new(last.end, facts.pg_major, facts.wal_segment_size).with_system_id(facts.system_id);
        if last.start.is_valid() {
            decoder = decoder.with_previous_record(last.start);
        }
        let consistent_from = consistent_from(timeline);
        let state = TimelineAt { timeline, lsn: last.end };
        let ingest = Ingest::load(facts.pg_major, consistent_from, &state).map_err(Box::new)?;
        let mut intake = Intake {
            timeline: Arc::clone(timeline),
            decoder,
            ingest,
            batch: Batch::default(),
            positions: Vec::new(),
            consistent_from,
            is_checked: !consistent_from.is_valid(),
        };
        intake.check_import()?;
        Ok(intake)
    }

    /// Everything in the chunk is visible when this returns.
    pub(crate) fn take(&mut self, chunk: WalChunk) -> Result<(), IntakeError> {
        self.decoder.feed_at(chunk.start, chunk.bytes)?;
        while let Some(record) = self.decoder.next()? {
            self.ingest(&record)?;
            if self.batch.size_bytes() >= limits::BATCH_BYTES {
                self.store()?;
            }
        }
        self.store()
    }

    fn ingest(&mut self, record: &DecodedRecord) -> Result<(), IntakeError> {
        let timeline = Arc::clone(&self.timeline);
        let position = RecordPosition { end: record.end_lsn, start: record.start_lsn };
        // A record that copies a database. Nothing of it may be seen before all of it, and it reads only the source.
        let mut large: Option<LargeRecord<'_>> = None;
        loop {
            let state = TimelineAt { timeline: &timeline, lsn: timeline.last_record().end };
            match self.ingest.ingest(record, &state, &mut self.batch).map_err(Box::new)? {
                Progress::Done => break,
                Progress::FlushFirst if self.positions.is_empty() => {
                    let large = match &mut large {
                        Some(large) => large,
                        None => large.insert(timeline.begin_large_record(position)?),
                    };
                    large.add(&self.batch.values)?;
                    self.batch.clear();
                }
                Progress::FlushFirst => self.store()?,
            }
        }
        match large {
            Some(mut large) => {
                large.add(&self.batch.values)?;
                large.finish()?;
                self.batch.clear();
            }
            None => self.positions.push(position),
        }
        Ok(())
    }

    fn store(&mut self) -> Result<(), IntakeError> {
        for unknown in &self.batch.unknown {
            tracing::warn!(
                timeline = %self.timeline.id(), lsn = %unknown.lsn, rmid = unknown.rmid, info = unknown.info,
                "a WAL record of an unknown kind touches no block; it was passed over"
            );
        }
        if !self.positions.is_empty() {
            self.timeline.put_records(&self.batch.values, &self.positions)?;
        }
        self.batch.clear();
        self.positions.clear();
        self.check_import()
    }

    /// Once, when WAL has reached the end of the base backup: pages that were missing must have been explained (checklist 62).
    fn check_import(&mut self) -> Result<(), IntakeError> {
        if self.is_checked || self.timeline.last_record().end < self.consistent_from {
            return Ok(());
        }
        let missing = self.ingest.unresolved();
        if !missing.is_empty() {
            let shown: Vec<_> = missing.iter().take(5).map(|(rel, block)| format!("{rel} block {block}")).collect();
            let text = format!("{} (and {} more); import again", shown.join(", "), missing.len() - shown.len());
            self.timeline.set_metadata(IMPORT_ERROR, serde_json::Value::String(text.clone()))?;
            return Err(IntakeError::Incomplete(text));
        }
        self.is_checked = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ardent_object_store::LocalFolder;
    use ardent_pg_format::encode::RecordBuilder;
    use ardent_pg_format::{CheckPoint, ClusterState, ControlFile, PgMajor, rmgr};
    use ardent_storage::{Engine, EngineConfig, TimelineFacts};
    use ardent_types::{ForkNumber, Key, PgTli, RelTag, SystemId, TenantId, TimelineId, WalSegmentSize};
    use bytes::Bytes;

    use super::*;

    const START: Lsn = Lsn::new(0x100_0028);
    const SOURCE: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16_384, fork: ForkNumber::Main };
    /// 72 MiB, more than two batches of a copy.
    const BLOCKS: u32 = 9216;
    /// What storage may hold of it.
    const HELD_BYTES_MAX: u64 = 1 << 20;

    fn page(block: u32) -> Bytes {
        let mut page = vec![0; 8192];
        page[24..28].copy_from_slice(&block.to_le_bytes());
        page.into()
    }

    fn control_file(checkpoint: CheckPoint) -> ControlFile {
        ControlFile {
            major: PgMajor::V15,
            system_id: SystemId::new(7),
            state: ClusterState::InProduction,
            time: 0,
            checkpoint_lsn: START,
            checkpoint,
            unlogged_lsn: Lsn::new(1000),
            min_recovery_point: Lsn::INVALID,
            min_recovery_point_tli: PgTli::new(0),
            backup_start: Lsn::INVALID,
            backup_end: Lsn::INVALID,
            backup_end_required: false,
            wal_level: 1,
            wal_log_hints: false,
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_xacts: 0,
            max_locks_per_xact: 64,
            track_commit_timestamp: false,
            relation_segment_blocks: 131_072,
            wal_segment_size: WalSegmentSize::DEFAULT,
            name_data_len: 64,
            index_max_keys: 32,
            toast_max_chunk_size: 1996,
            large_object_block_size: 2048,
            data_checksum_version: 0,
            default_char_signedness: true,
            mock_authentication_nonce: [1; 32],
        }
    }

    fn root(engine: &Arc<Engine>) -> Arc<Timeline> {
        let facts = TimelineFacts {
            pg_major: PgMajor::V15,
            system_id: SystemId::new(7),
            pg_tli: PgTli::new(1),
            wal_segment_size: WalSegmentSize::DEFAULT,
            start_lsn: START,
        };
        let root = engine.create_root(TenantId::generate(), TimelineId::generate(), facts).expect("made");
        let checkpoint = CheckPoint { redo: START, tli: PgTli::new(1), next_xid: 1024, ..CheckPoint::default() };
        let control = control_file(checkpoint);
        let small = [
            (Key::Checkpoint, Bytes::copy_from_slice(&checkpoint.encode(PgMajor::V15))),
            (Key::ControlFile, control.encode().into()),
            (Key::Database { spcnode: 1663, dbnode: 5 }, Bytes::from_static(&[1])),
            (Key::RelMap { spcnode: 1663, dbnode: 5 }, Bytes::from_static(b"map")),
            (Key::RelSize(SOURCE), Bytes::copy_from_slice(&BLOCKS.to_le_bytes())),
        ];
        root.import_images(&small).expect("imported");
        let pages: Vec<_> = (0..BLOCKS).map(|block| (Key::RelBlock(SOURCE, block), page(block))).collect();
        root.import_images(&pages).expect("imported");
        root.finish_import().expect("finished");
        root
    }
    /// `CREATE DATABASE ... STRATEGY file_copy`, and `ALTER DATABASE ... SET TABLESPACE`, which logs the same.
    #[test]
    fn the_copy_of_a_database_is_seen_whole_and_storage_does_not_hold_it() {
        let folder = tempfile::tempdir().expect("folder");
        let store = LocalFolder::open(&folder.path().join("store")).expect("opens");
        let engine = Engine::open(EngineConfig {
            background: false,
            open_layer_bytes_max: 1 << 30,
            ..EngineConfig::new(folder.path().join("local"), Arc::new(store))
        })
        .expect("opens");
        let root = root(&engine);
        let mut intake = Intake::open(&root).expect("opens");
        let mut end = START;
        let mut record = |builder: RecordBuilder| {
            let raw = Bytes::from(builder.encode(Lsn::INVALID));
            let start = end;
            end = start.advance(raw.len() as u64).align_up_8();
            DecodedRecord::parse(raw, start, end, PgMajor::V15).expect("well-formed")
        };
        let database = |info: u8, fields: &[u32]| {
            let data: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
            RecordBuilder::new(rmgr::DATABASE, info).main_data(data)
        };
        // What comes before the copy in the same batch must be there for it, what comes after not.
        let before = record(database(0x10, &[9, 1663]));
        let copy = record(database(0x00, &[6, 99, 5, 1663]));
        let after = record(database(0x10, &[10, 1663]));
        intake.ingest(&before).expect("ingested");
        intake.ingest(&copy).expect("ingested");
        let held = engine.stats().memory_layer_bytes;
        assert!(held < HELD_BYTES_MAX, "{held} bytes are held of what was copied");
        assert_eq!(root.last_record().end, copy.end_lsn);
        assert_eq!(root.disk_consistent_lsn(), copy.end_lsn, "a restart does not copy it again");
        intake.ingest(&after).expect("ingested");
        intake.store().expect("stored");
        assert_eq!(root.last_record().end, after.end_lsn);

        let copied = RelTag { spcnode: 99, dbnode: 6, ..SOURCE };
        for block in 0..BLOCKS {
            let key = Key::RelBlock(copied, block);
            assert_eq!(root.get(&key, before.end_lsn).expect("readable"), None, "nothing of it before");
            assert_eq!(root.get(&key, copy.end_lsn).expect("readable"), Some(page(block)));
        }
        for key in [Key::RelMap { spcnode: 99, dbnode: 6 }, Key::Database { spcnode: 99, dbnode: 6 }] {
            assert!(root.get(&key, copy.end_lsn).expect("readable").is_some());
            assert_eq!(root.get(&key, before.end_lsn).expect("readable"), None);
        }
    }
}
