//! Pages that WAL referred to in the window of a fuzzy import and that the backup did not hold (checklist 62). As in
//! Postgres's recovery each must turn out to have been truncated or dropped before the backup's end.

use std::collections::BTreeSet;

use ardent_types::{BlockNumber, ForkNumber, Key, RelTag};
use bytes::{BufMut, Bytes, BytesMut};

/// The pages, kept as a key of their own so that a restart in the window does not forget them.
#[derive(Debug, Default)]
pub(crate) struct MissingPages {
    pages: BTreeSet<(RelTag, BlockNumber)>,
    changed: bool,
}

const ENTRY_LEN: usize = 17;

impl MissingPages {
    /// Where they are stored.
    pub const KEY: Key = Key::AuxFile(2);

    pub fn decode(bytes: &[u8]) -> Option<MissingPages> {
        if !bytes.len().is_multiple_of(ENTRY_LEN) {
            return None;
        }
        let u32_at = |entry: &[u8], at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("4 bytes"));
        let pages = bytes.chunks_exact(ENTRY_LEN).map(|entry| {
            let fork = ForkNumber::from_raw(entry[16])?;
            let (spcnode, dbnode) = (u32_at(entry, 0), u32_at(entry, 4));
            Some((RelTag { spcnode, dbnode, relnode: u32_at(entry, 8), fork }, u32_at(entry, 12)))
        });
        Some(MissingPages { pages: pages.collect::<Option<_>>()?, changed: false })
    }

    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.pages.len() * ENTRY_LEN);
        for (rel, block) in &self.pages {
            out.put_u32_le(rel.spcnode);
            out.put_u32_le(rel.dbnode);
            out.put_u32_le(rel.relnode);
            out.put_u32_le(*block);
            out.put_u8(rel.fork as u8);
        }
        out.freeze()
    }

    pub fn note(&mut self, rel: RelTag, block: BlockNumber) {
        self.changed |= self.pages.insert((rel, block));
    }

    /// The fork was cut to `blocks`, or dropped (0).
    pub fn forget_from(&mut self, rel: RelTag, blocks: BlockNumber) {
        self.forget(|(tag, block)| *tag == rel && *block >= blocks);
    }

    pub fn forget_database(&mut self, spcnode: u32, dbnode: u32) {
        self.forget(|(rel, _)| rel.spcnode == spcnode && rel.dbnode == dbnode);
    }

    fn forget(&mut self, gone: impl Fn(&(RelTag, BlockNumber)) -> bool) {
        if self.pages.is_empty() {
            return;
        }
        let before = self.pages.len();
        self.pages.retain(|page| !gone(page));
        self.changed |= self.pages.len() != before;
    }

    /// The new content of [`Self::KEY`], if it changed since the last call.
    pub fn take_change(&mut self) -> Option<Bytes> {
        std::mem::take(&mut self.changed).then(|| self.encode())
    }

    pub fn pages(&self) -> impl Iterator<Item = (RelTag, BlockNumber)> + '_ {
        self.pages.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_pages_survive_a_restart_and_go_by_truncate_and_drop() {
        let rel = |relnode| RelTag { spcnode: 1663, dbnode: 5, relnode, fork: ForkNumber::Main };
        let mut missing = MissingPages::default();
        assert_eq!(missing.take_change(), None);
        missing.note(rel(1), 4);
        missing.note(rel(1), 9);
        missing.note(rel(2), 0);
        let stored = missing.take_change().expect("changed");
        let mut missing = MissingPages::decode(&stored).expect("decodes");
        missing.forget_from(rel(1), 5);
        assert_eq!(missing.pages().collect::<Vec<_>>(), [(rel(1), 4), (rel(2), 0)]);
        missing.forget_database(1663, 5);
        assert_eq!(missing.take_change(), Some(Bytes::new()));
        assert!(MissingPages::decode(&stored[1..]).is_none());
    }
}
