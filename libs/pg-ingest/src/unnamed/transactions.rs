//! Which transactions have happened, as a server that starts at this LSN sees it.

use std::collections::{BTreeMap, BTreeSet};

use ardent_pg_redo::XACTS_PER_PAGE;
use ardent_types::{Key, SlruKind};
use bytes::Bytes;

use super::UnnamedError;
use crate::ingest::Prepared;
use crate::state::ReadState;

/// `BootstrapTransactionId` and `FrozenTransactionId`
const ALWAYS_HAPPENED: std::ops::RangeInclusive<u32> = 1..=2;
const COMMITTED: u8 = 1;

/// Transaction status, page by page as it is asked for.
pub(super) struct Transactions {
    /// With their subtransactions.
    prepared: BTreeSet<u32>,
    pages: BTreeMap<u32, Option<Bytes>>,
}

impl Transactions {
    pub fn load<S: ReadState>(state: &S) -> Result<Transactions, UnnamedError<S::Error>> {
        let all = Key::TwoPhase { xid: 0 }..=Key::TwoPhase { xid: u64::MAX };
        let mut prepared = BTreeSet::new();
        for (place, file) in state.scan(all).map_err(UnnamedError::State)? {
            let parsed = Prepared::parse(&file);
            let parsed = parsed.map_err(|_| UnnamedError::Damaged { place, what: "it ends too early" })?;
            prepared.insert(parsed.xid);
            prepared.extend(parsed.subxacts);
        }
        Ok(Transactions { prepared, pages: BTreeMap::new() })
    }

    /// Whether it has committed. What no status is kept for any more has: else it would have been vacuumed away before.
    pub fn committed<S: ReadState>(&mut self, xid: u32, state: &S) -> Result<bool, UnnamedError<S::Error>> {
        if xid <= *ALWAYS_HAPPENED.end() {
            return Ok(ALWAYS_HAPPENED.contains(&xid));
        }
        let number = xid / XACTS_PER_PAGE;
        let page = match self.pages.get(&number) {
            Some(page) => page,
            None => {
                let page = state.get(Key::SlruPage(SlruKind::Xact, u64::from(number))).map_err(UnnamedError::State)?;
                self.pages.entry(number).or_insert(page.filter(|page| !page.is_empty()))
            }
        };
        let Some(page) = page else { return Ok(true) };
        let index = (xid % XACTS_PER_PAGE) as usize;
        let byte = page.get(index / 4).copied().unwrap_or(0);
        Ok(byte >> (index % 4 * 2) & 0x03 == COMMITTED)
    }

    /// Whether it has committed or still may.
    pub fn may_commit<S: ReadState>(&mut self, xid: u32, state: &S) -> Result<bool, UnnamedError<S::Error>> {
        Ok(self.prepared.contains(&xid) || self.committed(xid, state)?)
    }
}
