//! A timeline in memory that records are appended to.

use ardent_pg_format::encode::RecordBuilder;
use ardent_pg_format::{CheckPoint, ClusterState, ControlFile, OwnedRecord, PgMajor};
use ardent_pg_ingest::{Batch, Ingest, IngestError, Progress, ReadState};
use ardent_pg_redo::{ReconstructError, Value};
use ardent_types::{BlockNumber, ForkNumber, Key, Lsn, PgTli, RelTag, SlruKind, SystemId, WalSegmentSize};
use bytes::Bytes;

use super::store::Store;

/// Where the timeline begins.
pub const START: Lsn = Lsn::new(0x100_0028);

pub struct Timeline {
    pub store: Store,
    pub ingest: Ingest,
    major: PgMajor,
    end: Lsn,
}

/// A main fork in the default tablespace.
pub fn rel(relnode: u32) -> RelTag {
    RelTag { spcnode: 1663, dbnode: 5, relnode, fork: ForkNumber::Main }
}

/// Little-endian words, one after the other.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub fn control_file() -> ControlFile {
    ControlFile {
        major: PgMajor::V15,
        system_id: SystemId::new(7),
        state: ClusterState::InProduction,
        time: 0,
        checkpoint_lsn: START,
        checkpoint: checkpoint(),
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

pub fn checkpoint() -> CheckPoint {
    CheckPoint {
        redo: START,
        tli: PgTli::new(1),
        previous_tli: PgTli::new(1),
        full_page_writes: true,
        next_xid: 1024,
        next_oid: 20_000,
        next_multi: 1,
        next_multi_offset: 0,
        oldest_xid: 700,
        oldest_xid_db: 1,
        oldest_multi: 1,
        oldest_multi_db: 1,
        ..CheckPoint::default()
    }
}

impl Timeline {
    pub fn new() -> Timeline {
        Timeline::of_major(PgMajor::V15)
    }

    pub fn of_major(major: PgMajor) -> Timeline {
        Timeline::with(checkpoint(), ControlFile { major, ..control_file() }, Lsn::INVALID)
    }

    /// Its major is that of the control file.
    pub fn with(checkpoint: CheckPoint, control_file: ControlFile, consistent_from: Lsn) -> Timeline {
        let major = control_file.major;
        let mut store = Store::of_major(major);
        let mut batch = Batch::default();
        let checkpoint = Bytes::copy_from_slice(&checkpoint.encode(major));
        batch.push(Key::Checkpoint, START, Value::Image(checkpoint));
        batch.push(Key::ControlFile, START, Value::Image(Bytes::from(control_file.encode())));
        store.apply(&mut batch);
        let ingest = Ingest::load(major, consistent_from, &store.newest()).expect("the keys are there");
        Timeline { store, ingest, major, end: START }
    }

    /// Ingests a record and gives its end.
    pub fn add(&mut self, record: &RecordBuilder) -> Lsn {
        self.try_add(record).expect("the record is ingested")
    }

    pub fn try_add(&mut self, record: &RecordBuilder) -> Result<Lsn, IngestError<ReconstructError>> {
        let record = self.next_record(record);
        let mut batch = Batch::default();
        while self.ingest.ingest(&record.get(), &self.store.newest(), &mut batch)? == Progress::FlushFirst {
            self.store.apply(&mut batch);
        }
        self.store.apply(&mut batch);
        Ok(self.end)
    }

    /// Decodes a record at the timeline's end.
    pub fn next_record(&mut self, record: &RecordBuilder) -> OwnedRecord {
        let raw = Bytes::from(record.encode(Lsn::INVALID));
        let start = self.end;
        self.end = start.advance(raw.len() as u64).align_up_8();
        OwnedRecord::parse(raw, start, self.end, self.major).expect("the record is well-formed")
    }

    /// Starts again from what is stored.
    pub fn restart(&mut self, consistent_from: Lsn) {
        self.ingest = Ingest::load(self.major, consistent_from, &self.store.newest()).expect("the keys are there");
    }

    pub fn get(&self, key: Key) -> Option<Bytes> {
        self.store.newest().get(key).expect("the key can be read")
    }

    pub fn size(&self, rel: RelTag) -> Option<BlockNumber> {
        let size = self.get(Key::RelSize(rel))?;
        Some(u32::from_le_bytes(size[..].try_into().expect("4 bytes")))
    }

    pub fn page(&self, rel: RelTag, block: BlockNumber) -> Bytes {
        self.get(Key::RelBlock(rel, block)).expect("the block has a version")
    }

    pub fn slru(&self, kind: SlruKind, page: u64) -> Option<Bytes> {
        self.get(Key::SlruPage(kind, page))
    }

    pub fn checkpoint(&self) -> CheckPoint {
        let bytes = self.get(Key::Checkpoint).expect("there is a checkpoint");
        CheckPoint::decode(&bytes, self.major).expect("it decodes")
    }
}
