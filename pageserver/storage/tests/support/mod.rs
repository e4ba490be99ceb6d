//! What the engine's tests share: a folder with an engine on it, and a redo that is easy to predict.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::path::Path;
use std::sync::Arc;

use ardent_object_store::LocalFolder;
use ardent_object_store::fault::FailPoints;
use ardent_pg_format::PgMajor;
use ardent_pg_redo::{ReconstructError, Value};
use ardent_storage::{Engine, EngineConfig, RecordPosition, Redo, Timeline, TimelineFacts};
use ardent_types::{ForkNumber, Key, Lsn, PgTli, RelTag, SystemId, TenantId, TimelineId, WalSegmentSize};
use bytes::Bytes;

/// Images replace, records and deltas append their bytes. A value that needs a base and has none is an error.
#[derive(Debug)]
pub struct AppendRedo;

impl Redo for AppendRedo {
    fn rebuild(
        &self,
        _pg_major: PgMajor,
        key: &Key,
        base: Option<Bytes>,
        values: &mut dyn Iterator<Item = (Lsn, Value)>,
    ) -> Result<Bytes, ReconstructError> {
        let mut content = base.map(|base| base.to_vec());
        for (lsn, value) in values {
            match value {
                Value::Image(image) => content = Some(image.to_vec()),
                Value::Record { will_init: true, record } => content = Some(record.to_vec()),
                Value::Record { record: bytes, .. } | Value::Delta(bytes) => {
                    let content = content.as_mut().ok_or(ReconstructError::NoBase { key: *key, lsn })?;
                    content.extend_from_slice(&bytes);
                }
                Value::Unreadable(why) => {
                    let reason = String::from_utf8_lossy(&why).into_owned();
                    return Err(ReconstructError::Unreadable { key: *key, lsn, reason });
                }
            }
        }
        Ok(content.unwrap_or_default().into())
    }
}

pub const TENANT: TenantId = TenantId::from_bytes([7; 16]);

pub fn timeline_id(number: u8) -> TimelineId {
    TimelineId::from_bytes([number; 16])
}

pub fn lsn(number: u64) -> Lsn {
    Lsn::new(number)
}

pub fn at(end: u64) -> RecordPosition {
    RecordPosition { end: lsn(end), start: lsn(end - 8) }
}

pub const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Main };

pub fn block(number: u32) -> Key {
    Key::RelBlock(REL, number)
}

pub fn facts(start: u64) -> TimelineFacts {
    TimelineFacts {
        pg_major: PgMajor::V15,
        system_id: SystemId::new(42),
        pg_tli: PgTli::new(1),
        wal_segment_size: WalSegmentSize::DEFAULT,
        start_lsn: lsn(start),
    }
}

pub fn image(text: impl Into<String>) -> Value {
    Value::Image(Bytes::from(text.into()))
}

pub fn delta(text: impl Into<String>) -> Value {
    Value::Delta(Bytes::from(text.into()))
}

/// A configuration for tests that must be repeatable: small layers, no threads.
pub fn config(folder: &Path, faults: &Arc<FailPoints>) -> EngineConfig {
    let store = LocalFolder::open_with_faults(&folder.join("store"), faults.clone()).unwrap();
    EngineConfig {
        redo: Arc::new(AppendRedo),
        page_cache_bytes: 1 << 20,
        block_cache_bytes: 1 << 20,
        background: false,
        faults: faults.clone(),
        ..EngineConfig::new(folder.join("local"), Arc::new(store))
    }
}

pub fn open(folder: &Path) -> Arc<Engine> {
    Engine::open(config(folder, &Arc::new(FailPoints::new()))).unwrap()
}

/// A root with nothing in it, open for WAL.
pub fn empty_root(engine: &Engine, number: u8) -> Arc<Timeline> {
    let root = engine.create_root(TENANT, timeline_id(number), facts(0x100)).unwrap();
    root.finish_import().unwrap();
    root
}

/// Content as text.
pub fn text(timeline: &Timeline, key: Key, at: u64) -> Option<String> {
    let content = timeline.get(&key, lsn(at)).unwrap();
    content.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
}
