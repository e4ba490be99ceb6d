//! Relation sizes that a connection has asked for, so that reading a page costs one hash lookup more and no second read.

use std::collections::HashMap;

use ardent_types::{BlockNumber, Lsn, RelTag};

use crate::limits;

/// Sizes at one LSN. A compute reads at the LSN that it started from all its life, and what a size was at an LSN never changes; another
/// LSN has other sizes, so asking there forgets these (checklist 61).
#[derive(Debug, Default)]
pub(crate) struct RelSizes {
    lsn: Lsn,
    known: HashMap<RelTag, Option<BlockNumber>>,
}

impl RelSizes {
    /// The size of `rel` at exactly `lsn`, if it is known. `Some(None)`: the fork does not exist there.
    pub fn get(&self, lsn: Lsn, rel: RelTag) -> Option<Option<BlockNumber>> {
        if self.lsn == lsn { self.known.get(&rel).copied() } else { None }
    }

    /// Remembers a size.
    pub fn put(&mut self, lsn: Lsn, rel: RelTag, size: Option<BlockNumber>) {
        if self.lsn != lsn || self.known.len() >= limits::SIZES_PER_CONNECTION_MAX {
            self.known.clear();
            self.lsn = lsn;
        }
        self.known.insert(rel, size);
    }
}

#[cfg(test)]
mod tests {
    use ardent_types::ForkNumber;

    use super::*;

    #[test]
    fn sizes_are_of_one_lsn_and_bounded() {
        let rel = |relnode| RelTag { spcnode: 1663, dbnode: 5, relnode, fork: ForkNumber::Main };
        let (old, new) = (Lsn::new(0x100), Lsn::new(0x200));
        let mut sizes = RelSizes::default();
        sizes.put(old, rel(1), Some(4));
        sizes.put(old, rel(2), None);
        assert_eq!(
            (sizes.get(old, rel(1)), sizes.get(old, rel(2)), sizes.get(old, rel(3))),
            (Some(Some(4)), Some(None), None)
        );
        assert_eq!(sizes.get(new, rel(1)), None);
        sizes.put(new, rel(1), Some(2));
        assert_eq!(
            (sizes.get(new, rel(1)), sizes.get(old, rel(1)), sizes.get(new, rel(2))),
            (Some(Some(2)), None, None)
        );
        for relnode in 0..limits::SIZES_PER_CONNECTION_MAX as u32 * 3 {
            sizes.put(new, rel(relnode), Some(relnode));
            assert_eq!(sizes.get(new, rel(relnode)), Some(Some(relnode)));
        }
        assert!(sizes.known.len() <= limits::SIZES_PER_CONNECTION_MAX);
    }
}
