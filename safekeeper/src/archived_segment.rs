//! A WAL segment as an object: a header that says what it is, then its bytes in blocks, each compressed by itself.
//! Bytes: `docs/formats/wal-archive.md`.

use ardent_api::wal_service::TimelineSpec;
use ardent_types::Lsn;

/// First bytes of an object.
const MAGIC: [u8; 4] = *b"ARWL";
/// Version of the format.
const VERSION: u16 = 1;
/// Bytes of a block before compression: what a reader holds in memory. A smaller segment is one block.
const BLOCK_BYTES: u64 = 4 << 20;
/// Bytes before the table of blocks.
const FIXED_LEN: usize = 44;
/// Bytes of a block in the table.
const ENTRY_LEN: usize = 8;
/// Length of the longest header, that of a segment of 1 GiB.
pub(crate) const HEADER_LEN_MAX: usize = FIXED_LEN + ENTRY_LEN * 256 + 4;
/// Of zstd: an archive must keep up with writers on the same processors.
const COMPRESSION_LEVEL: i32 = 1;

/// An object does not hold what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentFormatError {
    /// Too short, other first bytes, or another checksum.
    #[error("its header is damaged: {0}")]
    Header(&'static str),
    /// A later program wrote it.
    #[error("it has format version {0}, and this program reads {VERSION}: use the program that wrote it")]
    Version(u16),
    /// A part of it is missing, or it goes on behind its end.
    #[error("it has {found} bytes, and its header makes it {expected}")]
    Length {
        /// Bytes that there are.
        found: u64,
        /// Bytes that there should be.
        expected: u64,
    },
    /// It is a segment, but not the one that its name says.
    #[error("it is of another {0} than its name and timeline say")]
    Other(&'static str),
    /// A block.
    #[error("the block with the WAL from {from} on is damaged: {what}")]
    Block {
        /// Position of its first byte.
        from: Lsn,
        /// How it shows.
        what: &'static str,
    },
}

/// A block as the header has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockEntry {
    /// Compressed length.
    pub(crate) stored: u32,
    /// CRC-32C of the bytes before compression.
    pub(crate) crc: u32,
}

/// What an object says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pg_tli: u32,
    segment_bytes: u32,
    system_id: u64,
    /// Position of the first byte.
    pub(crate) start: Lsn,
    /// Where in the segment the timeline begins; 0 in all but its first.
    begins: u32,
    pub(crate) blocks: Vec<BlockEntry>,
}

impl SegmentHeader {
    /// The header of segment `number` of a timeline, with no blocks yet.
    pub(crate) fn new(spec: &TimelineSpec, number: u64) -> SegmentHeader {
        let size = spec.wal_segment_size;
        let start = Lsn::new(number.saturating_mul(size.bytes()));
        SegmentHeader {
            pg_tli: spec.pg_tli.get(),
            segment_bytes: size.bytes() as u32,
            system_id: spec.system_id.get(),
            start,
            begins: spec.start_lsn.saturating_sub(start).min(size.bytes()) as u32,
            blocks: Vec::new(),
        }
    }

    /// How many blocks a whole object has.
    pub(crate) fn block_count(&self) -> usize {
        u64::from(self.segment_bytes).div_ceil(self.block_bytes()) as usize
    }

    pub(crate) fn block_bytes(&self) -> u64 {
        BLOCK_BYTES.min(u64::from(self.segment_bytes))
    }

    /// Length of the header of a whole object, in bytes.
    pub(crate) fn len(&self) -> usize {
        FIXED_LEN + ENTRY_LEN * self.block_count() + 4
    }

    /// Length of the whole object, in bytes.
    pub(crate) fn object_len(&self) -> u64 {
        self.len() as u64 + self.blocks.iter().map(|block| u64::from(block.stored)).sum::<u64>()
    }

    /// Where in the object a block is.
    pub(crate) fn place_of(&self, block: usize) -> Option<std::ops::Range<u64>> {
        let before: u64 = self.blocks.get(..block)?.iter().map(|block| u64::from(block.stored)).sum();
        let from = self.len() as u64 + before;
        Some(from..from + u64::from(self.blocks.get(block)?.stored))
    }

    /// Whether two objects hold the same of the timeline. What is before its beginning may differ: it is the ancestor's WAL where that was
    /// there when the timeline was made.
    pub(crate) fn holds_the_same(&self, other: &SegmentHeader) -> bool {
        let (own, others) = (&self.blocks, &other.blocks);
        let identity = |header: &SegmentHeader| SegmentHeader { blocks: Vec::new(), ..header.clone() };
        // The block in which the timeline begins cannot be compared by its checksum, unless it begins with it.
        let first = u64::from(self.begins).div_ceil(self.block_bytes()) as usize;
        identity(self) == identity(other)
            && own.len() == others.len()
            && own.iter().zip(others).skip(first).all(|(own, other)| own.crc == other.crc)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend([0; 2]);
        out.extend(self.pg_tli.to_le_bytes());
        out.extend(self.segment_bytes.to_le_bytes());
        out.extend(self.system_id.to_le_bytes());
        out.extend(self.start.get().to_le_bytes());
        out.extend(self.begins.to_le_bytes());
        out.extend((self.block_bytes() as u32).to_le_bytes());
        out.extend((self.blocks.len() as u32).to_le_bytes());
        for block in &self.blocks {
            out.extend(block.stored.to_le_bytes());
            out.extend(block.crc.to_le_bytes());
        }
        out.extend(crc32c::crc32c(&out).to_le_bytes());
        out
    }

    /// Reads the header of what should be segment `number` of a timeline. `bytes` may go on behind it.
    pub(crate) fn decode(bytes: &[u8], spec: &TimelineSpec, number: u64) -> Result<SegmentHeader, SegmentFormatError> {
        let expected = SegmentHeader::new(spec, number);
        let (fixed, rest) = bytes.split_at_checked(FIXED_LEN).ok_or(SegmentFormatError::Header("it is too short"))?;
        let u32_at = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if fixed[..4] != MAGIC {
            return Err(SegmentFormatError::Header("it does not begin as one"));
        }
        let version = u16::from_le_bytes([fixed[4], fixed[5]]);
        if version != VERSION {
            return Err(SegmentFormatError::Version(version));
        }
        // Only what agrees with what is wanted is believed, so that no length of the object's own is.
        let table_len = ENTRY_LEN * expected.block_count();
        let (table, rest) = rest.split_at_checked(table_len).ok_or(SegmentFormatError::Header("it is too short"))?;
        let (crc, _) = rest.split_first_chunk::<4>().ok_or(SegmentFormatError::Header("it is too short"))?;
        if u32_at(36) as u64 == expected.block_bytes()
            && u32_at(40) as usize == expected.block_count()
            && crc32c::crc32c(&bytes[..FIXED_LEN + table_len]) != u32::from_le_bytes(*crc)
        {
            return Err(SegmentFormatError::Header("its checksum is another"));
        }
        let agrees = |what, agrees: bool| if agrees { Ok(()) } else { Err(SegmentFormatError::Other(what)) };
        agrees("segment size", u32_at(12) == expected.segment_bytes)?;
        agrees(
            "block size",
            u32_at(36) as u64 == expected.block_bytes() && u32_at(40) as usize == expected.block_count(),
        )?;
        agrees("Postgres timeline", u32_at(8) == expected.pg_tli)?;
        agrees("system", u64_at(16) == expected.system_id)?;
        agrees("segment", u64_at(24) == expected.start.get())?;
        agrees("beginning", u32_at(32) == expected.begins)?;
        let (entries, _) = table.as_chunks::<ENTRY_LEN>();
        let entry = |entry: &[u8; ENTRY_LEN]| BlockEntry {
            stored: u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]),
            crc: u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]),
        };
        Ok(SegmentHeader { blocks: entries.iter().map(entry).collect(), ..expected })
    }

    /// Position of a block's first byte.
    pub(crate) fn block_start(&self, block: usize) -> Lsn {
        self.start.advance(block as u64 * self.block_bytes())
    }

    /// Length of a block before compression.
    pub(crate) fn block_len(&self, block: usize) -> usize {
        let from = block as u64 * self.block_bytes();
        u64::from(self.segment_bytes).saturating_sub(from).min(self.block_bytes()) as usize
    }

    /// Checks and unpacks a block.
    pub(crate) fn unpack(&self, block: usize, stored: &[u8]) -> Result<Vec<u8>, SegmentFormatError> {
        let damaged = |what| SegmentFormatError::Block { from: self.block_start(block), what };
        let entry = self.blocks.get(block).ok_or(damaged("the table does not have it"))?;
        let length = self.block_len(block);
        let bytes = zstd::bulk::decompress(stored, length).map_err(|_| damaged("it cannot be decompressed"))?;
        if bytes.len() != length {
            return Err(damaged("it has another length"));
        }
        if crc32c::crc32c(&bytes) != entry.crc {
            return Err(damaged("its checksum is another"));
        }
        Ok(bytes)
    }
}

/// Compresses a block.
pub(crate) fn pack(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    zstd::bulk::compress(bytes, COMPRESSION_LEVEL)
}

#[cfg(test)]
mod tests {
    use ardent_types::{PgTli, SystemId, TenantId, TimelineId, WalSegmentSize};

    use super::*;

    fn spec(segment_bytes: u64, start: u64) -> TimelineSpec {
        TimelineSpec {
            tenant: TenantId::generate(),
            timeline: TimelineId::generate(),
            pg_major: 15,
            system_id: SystemId::new(7),
            pg_tli: PgTli::new(3),
            wal_segment_size: WalSegmentSize::new(segment_bytes as u32).expect("allowed"),
            start_lsn: Lsn::new(start),
            prev_lsn: Lsn::INVALID,
            ancestor: None,
        }
    }

    fn header(spec: &TimelineSpec, number: u64) -> SegmentHeader {
        let mut header = SegmentHeader::new(spec, number);
        header.blocks = (0..header.block_count()).map(|at| BlockEntry { stored: 9, crc: at as u32 }).collect();
        header
    }

    #[test]
    fn headers_of_all_segment_sizes_round_trip() {
        for shift in 20..=30 {
            let spec = spec(1 << shift, 5 << shift);
            let header = header(&spec, 5);
            let bytes = header.encode();
            assert!(bytes.len() == header.len() && bytes.len() <= HEADER_LEN_MAX);
            assert_eq!(SegmentHeader::decode(&bytes, &spec, 5), Ok(header));
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = header(&spec(16 << 20, 0x0500_0100), 5).encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = "4152574c0100000003000000000000010700000000000000\
                      0000000500000000000100000000400004000000\
                      0900000000000000090000000100000009000000020000000900000003000000\
                      938e2936";
        assert_eq!(hex, golden);
    }

    #[test]
    fn a_header_of_something_else_is_refused_by_name_and_a_damaged_one_never_believed() {
        let spec = spec(16 << 20, 0x0500_0100);
        let good = header(&spec, 5).encode();
        assert_eq!(SegmentHeader::decode(&good, &spec, 6), Err(SegmentFormatError::Other("segment")));
        let other = TimelineSpec { system_id: SystemId::new(8), ..spec };
        assert_eq!(SegmentHeader::decode(&good, &other, 5), Err(SegmentFormatError::Other("system")));
        let other = TimelineSpec { start_lsn: Lsn::new(0x0500_0200), ..spec };
        assert_eq!(SegmentHeader::decode(&good, &other, 5), Err(SegmentFormatError::Other("beginning")));
        for length in 0..good.len() {
            assert!(SegmentHeader::decode(&good[..length], &spec, 5).is_err(), "{length}");
        }
        // The two reserved bytes and the checksum are covered as well.
        for at in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(SegmentHeader::decode(&bad, &spec, 5).is_err(), "bit {at}");
        }
    }

    #[test]
    fn blocks_are_checked() {
        let spec = spec(1 << 20, 0);
        let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 7) as u8).collect();
        let packed = pack(&bytes).expect("compressed");
        let mut header = SegmentHeader::new(&spec, 2);
        header.blocks = vec![BlockEntry { stored: packed.len() as u32, crc: crc32c::crc32c(&bytes) }];
        assert_eq!(header.unpack(0, &packed).as_deref(), Ok(&bytes[..]));
        assert!(header.unpack(1, &packed).is_err());
        for at in (0..packed.len()).step_by(13) {
            let mut bad = packed.clone();
            bad[at] ^= 0x10;
            // A bit that changes nothing in what comes out does no harm.
            assert!(
                header.unpack(0, &bad).is_err() || header.unpack(0, &bad).as_deref() == Ok(&bytes[..]),
                "byte {at}"
            );
            assert!(header.unpack(0, &packed[..at]).is_err());
        }
        let long = pack(&[0; (1 << 20) + 1]).expect("compressed");
        assert!(header.unpack(0, &long).is_err(), "not more than a block's length is taken");
    }

    #[test]
    fn what_is_before_the_beginning_may_differ_and_nothing_else() {
        let spec = spec(16 << 20, (5 * (16 << 20)) + 100);
        let one = header(&spec, 5);
        assert!(one.holds_the_same(&one));
        let with_crc = |at: usize| {
            let mut other = one.clone();
            other.blocks[at].crc += 1;
            other
        };
        assert!(one.holds_the_same(&with_crc(0)), "it holds the ancestor's WAL or none");
        assert!((1..4).all(|at| !one.holds_the_same(&with_crc(at))));
        let next = header(&spec, 6);
        let mut other = next.clone();
        other.blocks[0].crc += 1;
        assert!(!next.holds_the_same(&other), "the next segment is the timeline's from its first byte");
        assert!(!one.holds_the_same(&next));
    }
}
