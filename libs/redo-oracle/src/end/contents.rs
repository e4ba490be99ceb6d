//! The newest content of every key, in memory.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use ardent_pg_format::PgMajor;
use ardent_pg_ingest::{Batch, ReadState};
use ardent_pg_redo::{ReconstructError, Value, reconstruct};
use ardent_types::{Key, Lsn, RelTag, with_causes};
use bytes::Bytes;

/// Values on top of a base that are kept before they are made into one image.
const CHAIN_MAX: usize = 16;

/// The values since the newest base, for every key.
pub(super) struct Contents {
    major: PgMajor,
    keys: BTreeMap<Key, Vec<(Lsn, Value)>>,
}

impl Contents {
    pub(super) fn new(major: PgMajor) -> Contents {
        Contents { major, keys: BTreeMap::new() }
    }

    /// Takes a batch over.
    pub(super) fn apply(&mut self, batch: &mut Batch) {
        for (key, lsn, value) in batch.values.drain(..) {
            if let (Key::RelSize(rel), Value::Image(size)) = (key, &value) {
                self.cut(rel, size, lsn);
            }
            let chain = self.keys.entry(key).or_default();
            assert!(chain.last().is_none_or(|(last, _)| *last < lsn), "{key}: two values at {lsn}, or out of order");
            if value.is_base() {
                chain.clear();
            }
            chain.push((lsn, value));
            if chain.len() > CHAIN_MAX {
                let content = reconstruct(self.major, &key, None, chain.drain(..));
                // What can't be rebuilt stays so until a new base, and is a difference if it is compared.
                let value =
                    content.map_or_else(|error| Value::Unreadable(Bytes::from(with_causes(&error))), Value::Image);
                chain.push((lsn, value));
            }
        }
        batch.clear();
    }

    /// Blocks that a truncation or drop takes away keep their old content in a real store, where nothing may find it again. Here
    /// that is told apart from any content that is right.
    fn cut(&mut self, rel: RelTag, size: &[u8], lsn: Lsn) {
        let blocks = size.try_into().map_or(0, u32::from_le_bytes);
        if blocks == u32::MAX {
            return;
        }
        for (_, chain) in self.keys.range_mut(Key::RelBlock(rel, blocks)..=Key::RelBlock(rel, u32::MAX)) {
            // Values of this very record are of what comes after the cut.
            if chain.last().is_some_and(|(last, _)| *last < lsn) {
                let (at, _) = chain.pop().expect("the chain is not empty");
                chain.clear();
                chain.push((at, Value::Unreadable(Bytes::from_static(b"it is from before a truncation"))));
            }
        }
    }

    fn content(&self, key: Key, chain: &[(Lsn, Value)]) -> Result<Option<Bytes>, ReconstructError> {
        let content = reconstruct(self.major, &key, None, chain.iter().cloned())?;
        Ok(Some(content).filter(|content| !content.is_empty()))
    }

    /// All blocks that a fork has values for.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}

impl ReadState for Contents {
    type Error = ReconstructError;

    fn get(&self, key: Key) -> Result<Option<Bytes>, ReconstructError> {
        self.keys.get(&key).map_or(Ok(None), |chain| self.content(key, chain))
    }

    fn scan(&self, range: RangeInclusive<Key>) -> Result<Vec<(Key, Bytes)>, ReconstructError> {
        let mut found = Vec::new();
        for (key, chain) in self.keys.range(range) {
            if let Some(content) = self.content(*key, chain)? {
                found.push((*key, content));
            }
        }
        Ok(found)
    }

    fn unreadable(error: &ReconstructError) -> Option<String> {
        Some(with_causes(error))
    }
}
