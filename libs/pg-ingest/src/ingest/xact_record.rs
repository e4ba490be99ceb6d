//! The main data of commit, abort and prepare records (`xact.h`, `ParseCommitRecord`, `TwoPhaseFileHeader`).

use ardent_pg_format::PgMajor;
use ardent_types::{ForkNumber, RelTag};
use smallvec::SmallVec;

use super::main_data::{CutShort, MainData};

/// `XLOG_XACT_OPMASK`
pub(crate) const OP_MASK: u8 = 0x70;
const HAS_INFO: u8 = 0x80;

/// Parts that a record may have, in the order in which they follow each other (checklist 43).
mod xinfo {
    pub const DBINFO: u32 = 1 << 0;
    pub const SUBXACTS: u32 = 1 << 1;
    pub const RELATIONS: u32 = 1 << 2;
    pub const INVALIDATIONS: u32 = 1 << 3;
    pub const TWOPHASE: u32 = 1 << 4;
    pub const ORIGIN: u32 = 1 << 5;
    pub const GID: u32 = 1 << 7;
    pub const DROPPED_STATS: u32 = 1 << 8;
}

const RELATION_LEN: usize = 12;
const INVALIDATION_LEN: usize = 16;

/// What ingest needs of a commit or abort record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TransactionEnd {
    /// Microseconds since 2000-01-01.
    pub time: i64,
    pub subxacts: SmallVec<[u32; 8]>,
    /// Main forks of the relations that are gone from here on.
    pub dropped: SmallVec<[RelTag; 4]>,
    /// The prepared transaction that ends; the record's own transaction id is 0 then.
    pub prepared_xid: Option<u32>,
    pub origin: Option<OriginProgress>,
}

/// Where a replication origin stands after the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OriginProgress {
    pub remote_lsn: u64,
    pub timestamp: i64,
}

/// Kind of record: aborts carry no invalidations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Commit,
    Abort,
}

impl TransactionEnd {
    pub fn parse(major: PgMajor, end: End, info: u8, main_data: &[u8]) -> Result<TransactionEnd, CutShort> {
        let mut data = MainData(main_data);
        let time = data.i64()?;
        let mut parsed = TransactionEnd {
            time,
            subxacts: SmallVec::new(),
            dropped: SmallVec::new(),
            prepared_xid: None,
            origin: None,
        };
        if info & HAS_INFO == 0 {
            return Ok(parsed);
        }
        let parts = data.u32()?;
        let has = |part: u32| parts & part != 0;
        if has(xinfo::DBINFO) {
            data.take(8)?;
        }
        if has(xinfo::SUBXACTS) {
            let count = data.count(4)?;
            parsed.subxacts = data.u32s(count)?.collect();
        }
        if has(xinfo::RELATIONS) {
            let count = data.count(RELATION_LEN)?;
            for _ in 0..count {
                parsed.dropped.push(relation(&mut data)?);
            }
        }
        if has(xinfo::DROPPED_STATS) {
            let len = stats_item_len(major);
            let count = data.count(len)?;
            data.take(count * len)?;
        }
        if end == End::Commit && has(xinfo::INVALIDATIONS) {
            let count = data.count(INVALIDATION_LEN)?;
            data.take(count * INVALIDATION_LEN)?;
        }
        if has(xinfo::TWOPHASE) {
            parsed.prepared_xid = Some(data.u32()?);
        }
        if has(xinfo::GID) {
            data.c_string()?;
        }
        if has(xinfo::ORIGIN) {
            parsed.origin = Some(OriginProgress { remote_lsn: data.u64()?, timestamp: data.i64()? });
        }
        Ok(parsed)
    }
}

/// What ingest needs of a prepare record: the head of the two-phase state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub xid: u32,
    pub subxacts: SmallVec<[u32; 8]>,
    pub origin: Option<OriginProgress>,
}

impl Prepared {
    /// The head has the same layout in 15 to 18.
    pub fn parse(main_data: &[u8]) -> Result<Prepared, CutShort> {
        let mut data = MainData(main_data);
        data.take(8)?; // magic, total length
        let xid = data.u32()?;
        data.take(4)?; // database
        data.take(8)?; // time
        data.take(4)?; // owner
        let subxact_count = data.u32()? as usize;
        // Relations to drop at commit and abort, statistics to drop (15), invalidations, and one flag.
        data.take(4 * 2 + 4 * 2 + 4)?;
        data.take(1 + 1)?;
        let gid_len = usize::from(data.u16()?);
        let origin = OriginProgress { remote_lsn: data.u64()?, timestamp: data.i64()? };
        data.take(gid_len.next_multiple_of(8))?;
        let subxacts = data.u32s(subxact_count)?.collect();
        Ok(Prepared { xid, subxacts, origin: (origin.remote_lsn != 0).then_some(origin) })
    }
}

fn relation(data: &mut MainData<'_>) -> Result<RelTag, CutShort> {
    Ok(RelTag { spcnode: data.u32()?, dbnode: data.u32()?, relnode: data.u32()?, fork: ForkNumber::Main })
}

/// `sizeof(xl_xact_stats_item)`: 18 has 64-bit object ids.
fn stats_item_len(major: PgMajor) -> usize {
    if major >= PgMajor::V18 { 16 } else { 12 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rel(relnode: u32) -> RelTag {
        RelTag { spcnode: 1663, dbnode: 5, relnode, fork: ForkNumber::Main }
    }

    /// A record with every part, and its length after each of them.
    fn full(stats_len: usize) -> Vec<u8> {
        let mut data = 77i64.to_le_bytes().to_vec();
        let mut put = |words: &[u32]| words.iter().for_each(|word| data.extend(word.to_le_bytes()));
        put(&[0x1FF]);
        put(&[5, 1663]);
        put(&[2, 11, 12]);
        put(&[1, 1663, 5, 9]);
        put(&[1]);
        put(&vec![0; stats_len / 4]);
        put(&[1, 0, 0, 0, 0]);
        put(&[10]);
        data.extend(b"gid\0");
        data.extend(500u64.to_le_bytes());
        data.extend(88i64.to_le_bytes());
        data
    }

    #[test]
    fn checklist_43_parts_of_a_commit_come_in_order() {
        for (major, stats_len) in [(PgMajor::V15, 12), (PgMajor::V18, 16)] {
            let data = full(stats_len);
            let parsed = TransactionEnd::parse(major, End::Commit, 0x80, &data).expect("parses");
            assert_eq!(
                parsed,
                TransactionEnd {
                    time: 77,
                    subxacts: SmallVec::from_slice(&[11, 12]),
                    dropped: SmallVec::from_slice(&[rel(9)]),
                    prepared_xid: Some(10),
                    origin: Some(OriginProgress { remote_lsn: 500, timestamp: 88 }),
                }
            );
            for len in 0..data.len() {
                assert_eq!(TransactionEnd::parse(major, End::Commit, 0x80, &data[..len]), Err(CutShort), "{len}");
            }
            assert_eq!(TransactionEnd::parse(major, End::Commit, 0, &data[..8]).expect("parses").subxacts.len(), 0);
        }
    }

    #[test]
    fn a_count_that_lies_is_refused() {
        let mut data = 0i64.to_le_bytes().to_vec();
        data.extend(xinfo::SUBXACTS.to_le_bytes());
        data.extend(u32::MAX.to_le_bytes());
        assert_eq!(TransactionEnd::parse(PgMajor::V15, End::Abort, 0x80, &data), Err(CutShort));
    }
}
