//! The part of a WAL record that storage keeps for one block: enough to redo that block, without the other blocks' data.
//! The key gives the relation and block; they aren't repeated. Byte table: `docs/formats/values.md`.

use ardent_pg_format::{DecodedBlock, DecodedRecord, ImageError, PgMajor, restore_image_into, rmgr};
use ardent_types::{BLCKSZ, BlockNumber, ForkNumber, Lsn, RelTag};
use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use crate::fault::RedoError;
use crate::value::{Value, ValueDecodeError};
use crate::view::{BlockView, HintBits, RecordView};
use crate::{has_redo, redo_after_image};

/// Length of a stored record before its block references.
const HEADER_LEN: usize = 10;
/// Most that a block reference takes: of another relation, and not the value's own block.
const BLOCK_LEN_MAX: usize = 18;

const HEADER_HINT_BITS: u8 = 0x01;

const BLOCK_WILL_INIT: u8 = 0x01;
const BLOCK_APPLIED_IMAGE: u8 = 0x02;
/// Tablespace, database and relfilenode are the key's.
const BLOCK_SAME_RELATION: u8 = 0x04;
/// The block that the value is for: the block number is the key's too.
const BLOCK_TARGET: u8 = 0x08;
const BLOCK_FLAGS: u8 = 0x0F;

const CUT_SHORT: ValueDecodeError = ValueDecodeError("a stored record is cut short");

/// A record's block can't be stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its image is damaged.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// What has to be done after the image is restored failed.
    #[error(transparent)]
    Redo(#[from] RedoError),
}

impl Value {
    /// What storage keeps of `record` for `target`, one of its blocks: the page of its image if that is to be applied, else the record
    /// without the other blocks' data, else, where the record type has no redo, a value that says so. The bytes of small values are put
    /// at the end of `buffer` and taken off it, so that many share one allocation.
    pub fn for_block(
        major: PgMajor,
        record: &DecodedRecord<'_>,
        target: &DecodedBlock,
        hint_bits: HintBits,
        buffer: &mut BytesMut,
    ) -> Result<Value, StoreError> {
        if target.has_applied_image() {
            let mut page = vec![0; BLCKSZ];
            let bytes: &mut [u8; BLCKSZ] = page[..].as_mut().try_into().expect("made with this length");
            restore_image_into(record, target, bytes)?;
            redo_after_image(major, &RecordView::of_record(record, hint_bits), target.id, bytes)?;
            return Ok(Value::Image(Bytes::from(page)));
        }
        let (rmid, info) = (record.header.rmid, record.header.info);
        if !has_redo(major, rmid, info) {
            let error = RedoError::Unsupported { rmid, rmgr: rmgr::name(rmid), info, lsn: record.end_lsn };
            return Ok(Value::Unreadable(Bytes::from(error.to_string())));
        }
        encode(record, target, hint_bits, buffer);
        Ok(Value::Record { will_init: target.will_init, record: buffer.split().freeze() })
    }
}

/// Appends the stored form of `record` for `target`.
fn encode(record: &DecodedRecord<'_>, target: &DecodedBlock, hint_bits: HintBits, out: &mut BytesMut) {
    let (data, main_data) = (record.block_data(target), record.main_data());
    out.reserve(HEADER_LEN + record.blocks.len() * BLOCK_LEN_MAX + data.len() + main_data.len());
    let mut header = [0; HEADER_LEN];
    header[0] = if hint_bits == HintBits::Logged { HEADER_HINT_BITS } else { 0 };
    header[1] = record.header.rmid;
    header[2] = record.header.info;
    header[3] = record.blocks.len() as u8;
    header[4..8].copy_from_slice(&record.header.xid.to_le_bytes());
    let data_len = u16::try_from(data.len()).expect("block data length is a u16 in WAL");
    header[8..10].copy_from_slice(&data_len.to_le_bytes());
    out.extend_from_slice(&header);
    for block in record.blocks {
        let same_relation = block.rel.with_fork(target.rel.fork) == target.rel;
        let is_target = block.id == target.id;
        let mut flags = 0;
        let mut put = |flag, set| flags |= if set { flag } else { 0 };
        put(BLOCK_WILL_INIT, block.will_init);
        put(BLOCK_APPLIED_IMAGE, block.has_applied_image());
        put(BLOCK_SAME_RELATION, same_relation);
        put(BLOCK_TARGET, is_target);
        out.extend_from_slice(&[block.id, flags | (block.rel.fork as u8) << 4]);
        if !same_relation {
            out.put_u32_le(block.rel.spcnode);
            out.put_u32_le(block.rel.dbnode);
            out.put_u32_le(block.rel.relnode);
        }
        if !is_target {
            out.put_u32_le(block.blkno);
        }
    }
    out.extend_from_slice(data);
    out.extend_from_slice(main_data);
}

/// A stored record, opened: the view, and which of its blocks the value is for.
#[derive(Clone, Debug)]
pub struct StoredRecord<'a> {
    /// What redo sees.
    pub view: RecordView<'a>,
    /// Id of the block that the value is for.
    pub block_id: u8,
}

impl<'a> StoredRecord<'a> {
    /// Opens the stored record of a block's key. `end_lsn` is the LSN that it is stored under.
    pub fn decode(bytes: &'a [u8], end_lsn: Lsn, rel: RelTag, blkno: BlockNumber) -> Result<Self, ValueDecodeError> {
        let (head, mut rest) = bytes.split_at_checked(HEADER_LEN).ok_or(CUT_SHORT)?;
        let mut take = |len: usize| {
            let (part, tail) = rest.split_at_checked(len).ok_or(CUT_SHORT)?;
            rest = tail;
            Ok::<&'a [u8], ValueDecodeError>(part)
        };
        let u32_of = |part: &[u8]| u32::from_le_bytes(part.try_into().expect("4 bytes were taken"));
        let mut blocks: SmallVec<[BlockView<'a>; 4]> = SmallVec::new();
        let mut target = None;
        for _ in 0..head[3] {
            let part = take(2)?;
            let (id, flags) = (part[0], part[1] & BLOCK_FLAGS);
            let fork = ForkNumber::from_raw(part[1] >> 4).ok_or(ValueDecodeError("an unknown fork"))?;
            let block_rel = if flags & BLOCK_SAME_RELATION != 0 {
                rel.with_fork(fork)
            } else {
                let part = take(12)?;
                let number = |at: usize| u32_of(&part[at..at + 4]);
                RelTag { spcnode: number(0), dbnode: number(4), relnode: number(8), fork }
            };
            let block_number = if flags & BLOCK_TARGET != 0 {
                target = Some(blocks.len());
                blkno
            } else {
                u32_of(take(4)?)
            };
            blocks.push(BlockView {
                id,
                rel: block_rel,
                blkno: block_number,
                will_init: flags & BLOCK_WILL_INIT != 0,
                has_applied_image: flags & BLOCK_APPLIED_IMAGE != 0,
                data: &[],
            });
        }
        let data = take(usize::from(u16::from_le_bytes([head[8], head[9]])))?;
        let block = &mut blocks[target.ok_or(ValueDecodeError("a stored record without its block"))?];
        block.data = data;
        let block_id = block.id;
        let hint_bits = if head[0] & HEADER_HINT_BITS != 0 { HintBits::Logged } else { HintBits::NotLogged };
        let view = RecordView {
            end_lsn,
            rmid: head[1],
            info: head[2],
            xid: u32_of(&head[4..8]),
            hint_bits,
            main_data: rest,
            blocks,
        };
        Ok(StoredRecord { view, block_id })
    }
}

#[cfg(test)]
mod tests {
    use ardent_pg_format::OwnedRecord;
    use ardent_pg_format::encode::RecordBuilder;

    use super::*;

    #[test]
    fn golden_bytes() {
        let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Main };
        let (map, other) = (rel.with_fork(ForkNumber::Vm), RelTag { relnode: 7, ..rel });
        let record = RecordBuilder::new(rmgr::HEAP, 0x20)
            .xid(900)
            .main_data([10, 11])
            .block(0, rel, 3, false, None, &[1, 2, 3])
            .block(1, rel, 9, false, None, &[])
            .block(2, map, 1, false, None, &[])
            .block(3, other, 8, true, None, &[4]);
        let raw = Bytes::from(record.encode(Lsn::INVALID));
        let (start, end) = (Lsn::new(0x100_0028), Lsn::new(0x100_0100));
        let record = OwnedRecord::parse(raw, start, end, PgMajor::V15).expect("the record is well-formed");
        let record = record.get();
        let value = Value::for_block(PgMajor::V15, &record, &record.blocks[0], HintBits::Logged, &mut BytesMut::new());
        let Value::Record { will_init: false, record: stored } = value.expect("it can be stored") else {
            panic!("not a record")
        };
        let hex: String = stored.iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = "010a2004840300000300\
                      000c\
                      010409000000\
                      022401000000\
                      03017f060000050000000700000008000000\
                      010203\
                      0a0b";
        assert_eq!(hex, golden);

        let opened = StoredRecord::decode(&stored, end, rel, 3).expect("it can be opened");
        let view = &opened.view;
        let blocks: Vec<_> =
            view.blocks.iter().map(|block| (block.id, block.rel, block.blkno, block.will_init, block.data)).collect();
        let expect: [(u8, RelTag, BlockNumber, bool, &[u8]); 4] = [
            (0, rel, 3, false, &[1, 2, 3]),
            (1, rel, 9, false, &[]),
            (2, map, 1, false, &[]),
            (3, other, 8, true, &[]),
        ];
        assert_eq!(blocks, expect);
        assert_eq!((opened.block_id, view.rmid, view.info, view.xid), (0, rmgr::HEAP, 0x20, 900));
        assert_eq!((view.end_lsn, view.hint_bits, view.main_data), (end, HintBits::Logged, &[10, 11][..]));
    }
}
