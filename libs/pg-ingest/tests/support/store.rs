//! All versions of all keys, in memory.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use ardent_pg_format::{DecodedRecord, PgMajor};
use ardent_pg_ingest::{Batch, Ingest, Progress, ReadState};
use ardent_pg_redo::{ReconstructError, Value, reconstruct};
use ardent_types::{Key, Lsn};
use bytes::Bytes;

/// Storage without files.
pub struct Store {
    major: PgMajor,
    versions: BTreeMap<Key, Vec<(Lsn, Value)>>,
}

/// The store as of one LSN.
pub struct At<'a> {
    store: &'a Store,
    lsn: Lsn,
}

impl Default for Store {
    fn default() -> Store {
        Store::of_major(PgMajor::V15)
    }
}

impl Store {
    /// An empty store for a major's pages.
    pub fn of_major(major: PgMajor) -> Store {
        Store { major, versions: BTreeMap::new() }
    }

    /// Takes a batch's values over.
    pub fn apply(&mut self, batch: &mut Batch) {
        for (key, lsn, value) in batch.values.drain(..) {
            let versions = self.versions.entry(key).or_default();
            if let Some((last, _)) = versions.last() {
                assert!(*last < lsn, "{key}: a version at {lsn} after one at {last}");
            }
            versions.push((lsn, value));
        }
        batch.clear();
    }

    /// The store as of `lsn`.
    pub fn at(&self, lsn: Lsn) -> At<'_> {
        At { store: self, lsn }
    }

    /// The newest state.
    pub fn newest(&self) -> At<'_> {
        self.at(Lsn::MAX)
    }

    /// Ingests one record. The batch is applied after each record, or when asked for.
    pub fn ingest(&mut self, ingest: &mut Ingest, record: &DecodedRecord<'_>) {
        let mut batch = Batch::default();
        loop {
            let progress = ingest.ingest(record, &self.newest(), &mut batch).expect("the record is ingested");
            self.apply(&mut batch);
            if progress == Progress::Done {
                assert_eq!(batch.last_record.map(|last| last.end), Some(record.end_lsn));
                return;
            }
        }
    }

    /// Every version of a key.
    pub fn versions(&self, key: Key) -> &[(Lsn, Value)] {
        self.versions.get(&key).map_or(&[], Vec::as_slice)
    }

    /// All keys that ever had a version, in order.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.versions.keys().copied()
    }
}

impl At<'_> {
    fn content(&self, key: Key, versions: &[(Lsn, Value)]) -> Result<Option<Bytes>, ReconstructError> {
        let end = versions.partition_point(|(lsn, _)| *lsn <= self.lsn);
        let visible = &versions[..end];
        if visible.is_empty() {
            return Ok(None);
        }
        let base = visible.iter().rposition(|(_, value)| value.is_base()).unwrap_or(0);
        let content = reconstruct(self.store.major, &key, None, visible[base..].iter().cloned())?;
        Ok(Some(content).filter(|content| !content.is_empty()))
    }
}

impl ReadState for At<'_> {
    type Error = ReconstructError;

    fn get(&self, key: Key) -> Result<Option<Bytes>, ReconstructError> {
        self.content(key, self.store.versions(key))
    }

    fn scan(&self, range: RangeInclusive<Key>) -> Result<Vec<(Key, Bytes)>, ReconstructError> {
        let mut found = Vec::new();
        for (key, versions) in self.store.versions.range(range) {
            if let Some(content) = self.content(*key, versions)? {
                found.push((*key, content));
            }
        }
        Ok(found)
    }

    fn unreadable(error: &ReconstructError) -> Option<String> {
        Some(error.to_string())
    }
}
