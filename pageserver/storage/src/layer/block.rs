//! Blocks: checked, compressed runs of bytes; and groups, the blocks that hold versions.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::sync::Arc;

use ardent_types::{KEY_LEN, Lsn};
use bytes::Bytes;

use crate::clock_cache::ClockCache;
use crate::limits::GROUP_BYTES_MAX;
use crate::stored_key::StoredKey;
use crate::version::{Version, VersionKind};

/// Length of a block's frame before its bytes.
pub(crate) const FRAME_LEN: usize = 12;
/// Length of one entry of a group's table.
const ENTRY_LEN: usize = 32;
/// How hard to try to make blocks small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// For files that compaction soon writes anew: half as large again and more, at a third of the cost.
    Little,
    /// As small as is fast.
    Usual,
}

impl Effort {
    fn zstd_level(self) -> i32 {
        match self {
            Effort::Little => -4,
            Effort::Usual => 1,
        }
    }
}
/// Largest block that a reader unpacks: one value of the largest size allowed and its table.
const BLOCK_LEN_MAX: u32 = (1 << 30) + (1 << 20);

const CODEC_PLAIN: u32 = 0;
const CODEC_ZSTD: u32 = 1;

/// Packs blocks, reusing one compression context.
pub(crate) struct BlockPacker {
    compressor: zstd::bulk::Compressor<'static>,
    packed: Vec<u8>,
}

impl BlockPacker {
    pub(crate) fn new(effort: Effort) -> std::io::Result<Self> {
        Ok(BlockPacker { compressor: zstd::bulk::Compressor::new(effort.zstd_level())?, packed: Vec::new() })
    }

    /// `raw` as a block: CRC, codec, length, bytes.
    pub(crate) fn pack(&mut self, raw: &[u8]) -> std::io::Result<&[u8]> {
        self.packed.clear();
        self.packed.resize(FRAME_LEN + zstd::zstd_safe::compress_bound(raw.len()), 0);
        let length = self.compressor.compress_to_buffer(raw, &mut self.packed[FRAME_LEN..])?;
        let codec = if length < raw.len() {
            self.packed.truncate(FRAME_LEN + length);
            CODEC_ZSTD
        } else {
            self.packed.truncate(FRAME_LEN);
            self.packed.extend_from_slice(raw);
            CODEC_PLAIN
        };
        self.packed[4..8].copy_from_slice(&codec.to_le_bytes());
        self.packed[8..12].copy_from_slice(&(raw.len() as u32).to_le_bytes());
        let crc = crc32fast::hash(&self.packed[4..]);
        self.packed[..4].copy_from_slice(&crc.to_le_bytes());
        Ok(&self.packed)
    }
}

thread_local! {
    /// Making a context costs as much as unpacking a group.
    static DECOMPRESSOR: RefCell<zstd::bulk::Decompressor<'static>> =
        RefCell::new(zstd::bulk::Decompressor::new().expect("without a dictionary only memory is needed"));
}

/// Whether these are the bytes that [`BlockPacker::pack`] made; else what was expected.
pub(crate) fn check_block(block: &[u8]) -> Result<(), String> {
    let Some((crc, rest)) = block.split_first_chunk().filter(|_| block.len() >= FRAME_LEN) else {
        return Err(format!("a block of {FRAME_LEN} bytes or more, found {}", block.len()));
    };
    if crc32fast::hash(rest) == u32::from_le_bytes(*crc) { Ok(()) } else { Err("the block's checksum".to_owned()) }
}

/// The bytes that [`BlockPacker::pack`] was given; what was expected where the block is damaged.
pub(crate) fn unpack(block: &Bytes) -> Result<Bytes, String> {
    check_block(block)?;
    let u32_at = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().expect("4 bytes"));
    let raw_length = u32_at(8);
    if raw_length > BLOCK_LEN_MAX {
        return Err(format!("a block of at most {BLOCK_LEN_MAX} bytes, found {raw_length}"));
    }
    let raw = match u32_at(4) {
        // A copy: a slice would keep all that was read with the block in memory.
        CODEC_PLAIN => Bytes::copy_from_slice(&block[FRAME_LEN..]),
        CODEC_ZSTD => {
            let unpacked =
                DECOMPRESSOR.with_borrow_mut(|context| context.decompress(&block[FRAME_LEN..], raw_length as usize));
            Bytes::from(unpacked.map_err(|error| error.to_string())?)
        }
        other => return Err(format!("a known block codec, found {other}")),
    };
    if raw.len() == raw_length as usize { Ok(raw) } else { Err(format!("{raw_length} bytes, found {}", raw.len())) }
}

/// Builds the table and values of a group.
pub(crate) struct GroupBuilder {
    table: Vec<u8>,
    /// Room for the count and the table, then the values.
    bytes: Vec<u8>,
    count: u32,
}

/// Room before a group's values: whoever fills a group ends it once the table is longer than its values may be.
const TABLE_ROOM: usize = GROUP_BYTES_MAX + 4 + ENTRY_LEN;

impl Default for GroupBuilder {
    fn default() -> Self {
        GroupBuilder { table: Vec::new(), bytes: vec![0; TABLE_ROOM], count: 0 }
    }
}

impl GroupBuilder {
    #[inline]
    pub(crate) fn add(&mut self, key: &StoredKey, lsn: Lsn, kind: VersionKind, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        let mut entry = [0; ENTRY_LEN];
        entry[..KEY_LEN].copy_from_slice(key.as_bytes());
        entry[18..26].copy_from_slice(&lsn.get().to_le_bytes());
        entry[26..30].copy_from_slice(&(self.values_len() as u32).to_le_bytes());
        entry[30] = kind as u8;
        self.table.extend_from_slice(&entry);
        self.count += 1;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Versions in it.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn values_len(&self) -> usize {
        self.bytes.len() - TABLE_ROOM
    }

    pub(crate) fn table_len(&self) -> usize {
        self.table.len()
    }

    /// The group's bytes.
    pub(crate) fn finish(&mut self) -> &[u8] {
        let table_at = TABLE_ROOM.checked_sub(self.table.len()).expect("a group ends before its table is so long");
        let start = table_at.checked_sub(4).expect("a group ends before its table is so long");
        self.bytes[start..table_at].copy_from_slice(&self.count.to_le_bytes());
        self.bytes[table_at..TABLE_ROOM].copy_from_slice(&self.table);
        &self.bytes[start..]
    }

    /// Makes it empty.
    pub(crate) fn clear(&mut self) {
        self.table.clear();
        self.bytes.truncate(TABLE_ROOM);
        self.count = 0;
    }
}

/// A group, unpacked and checked: versions by key, then LSN.
#[derive(Debug)]
pub(crate) struct Group {
    raw: Bytes,
    count: usize,
}

impl Group {
    /// Checks everything that the accessors rely on.
    pub(crate) fn parse(raw: Bytes) -> Result<Group, String> {
        let count = raw.get(..4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("4 bytes")) as usize);
        let count = count.filter(|count| count.checked_mul(ENTRY_LEN).is_some_and(|table| table <= raw.len() - 4));
        let group = Group { count: count.ok_or("a group with a whole table")?, raw };
        let values = group.raw.len() - 4 - group.count * ENTRY_LEN;
        let mut end = 0;
        for at in 0..group.count {
            if group.value_end(at) < end || VersionKind::from_raw(group.entry(at)[30]).is_none() {
                return Err(format!("a good entry {at} in the group's table"));
            }
            end = group.value_end(at);
            if at > 0 && group.compare(at - 1, &group.key(at), group.lsn(at)) != Ordering::Less {
                return Err(format!("entry {at} of the group to sort after the one before"));
            }
        }
        if end == values { Ok(group) } else { Err(format!("{end} bytes of values, found {values}")) }
    }

    fn entry(&self, at: usize) -> &[u8] {
        &self.raw[4 + at * ENTRY_LEN..][..ENTRY_LEN]
    }

    fn value_end(&self, at: usize) -> usize {
        u32::from_le_bytes(self.entry(at)[26..30].try_into().expect("4 bytes")) as usize
    }

    fn compare(&self, at: usize, key: &StoredKey, lsn: Lsn) -> Ordering {
        self.entry(at)[..KEY_LEN].cmp(&key.as_bytes()[..]).then_with(|| self.lsn(at).cmp(&lsn))
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn key(&self, at: usize) -> StoredKey {
        StoredKey::from_bytes(self.entry(at)[..KEY_LEN].try_into().expect("a key's length of bytes"))
    }

    pub(crate) fn lsn(&self, at: usize) -> Lsn {
        Lsn::new(u64::from_le_bytes(self.entry(at)[18..26].try_into().expect("8 bytes")))
    }

    pub(crate) fn kind(&self, at: usize) -> VersionKind {
        VersionKind::from_raw(self.entry(at)[30]).expect("checked by parse")
    }

    /// The value's bytes, sharing the group's memory.
    pub(crate) fn value(&self, at: usize) -> Bytes {
        let values = 4 + self.count * ENTRY_LEN;
        let start = if at == 0 { 0 } else { self.value_end(at - 1) };
        self.raw.slice(values + start..values + self.value_end(at))
    }

    pub(crate) fn version(&self, at: usize) -> Version {
        Version { lsn: self.lsn(at), kind: self.kind(at), bytes: self.value(at) }
    }

    /// How many entries sort at or before `(key, lsn)`.
    pub(crate) fn count_through(&self, key: &StoredKey, lsn: Lsn) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = (low + high) / 2;
            if self.compare(middle, key, lsn) == Ordering::Greater { high = middle } else { low = middle + 1 }
        }
        low
    }

    /// Memory in bytes.
    pub(crate) fn weight(&self) -> usize {
        self.raw.len() + 64
    }
}

/// Unpacked groups by layer (its number in this process) and index in it.
pub(crate) type BlockCache = ClockCache<(u64, u32), Arc<Group>>;

#[cfg(test)]
mod tests {
    use super::*;
    use ardent_types::Key;

    fn group() -> Vec<u8> {
        let mut builder = GroupBuilder::default();
        for (lsn, kind, value) in
            [(5, VersionKind::Image, &b"abc"[..]), (9, VersionKind::Delta, b""), (10, VersionKind::Record, b"xy")]
        {
            builder.add(&StoredKey::from(&Key::Checkpoint), Lsn::new(lsn), kind, value);
        }
        builder.finish().to_vec()
    }

    #[test]
    fn groups_round_trip() {
        let group = Group::parse(group().into()).unwrap();
        let key = StoredKey::from(&Key::Checkpoint);
        assert_eq!(group.len(), 3);
        assert_eq!((group.value(0), group.value(1), group.value(2)), ("abc".into(), "".into(), "xy".into()));
        assert_eq!(group.count_through(&key, Lsn::new(4)), 0);
        assert_eq!(group.count_through(&key, Lsn::new(9)), 2);
        assert_eq!(group.count_through(&StoredKey::MAX, Lsn::new(0)), 3);
    }

    #[test]
    fn truncated_and_damaged_groups_are_errors() {
        let raw = group();
        for length in 0..raw.len() {
            assert!(Group::parse(Bytes::copy_from_slice(&raw[..length])).is_err(), "{length} bytes");
        }
        let mut swapped = raw.clone();
        let (first, second) = swapped[4..4 + 2 * ENTRY_LEN].split_at_mut(ENTRY_LEN);
        first.swap_with_slice(second);
        assert!(Group::parse(swapped.into()).is_err());
    }

    #[test]
    fn blocks_round_trip_and_reject_every_flipped_byte() {
        let mut packer = BlockPacker::new(Effort::Usual).unwrap();
        for raw in [vec![7; 5000], (0..200u8).collect(), Vec::new()] {
            let block = Bytes::copy_from_slice(packer.pack(&raw).unwrap());
            assert_eq!(unpack(&block).as_deref(), Ok(&raw[..]));
            for at in 0..block.len() {
                let mut flipped = block.to_vec();
                flipped[at] ^= 0x10;
                assert!(unpack(&flipped.into()).is_err());
                assert!(unpack(&block.slice(..at)).is_err());
            }
        }
    }
}
