//! Where things stand in the file. Byte table: `docs/formats/presence-map.md`.

use ardent_types::{Lsn, RelTag};

/// Version of the format that this build writes and reads.
pub const FORMAT_VERSION: u32 = 1;

pub(crate) const MAGIC: [u8; 8] = *b"ARDNTPMP";
/// The header's page: fixed fields, then the counters.
pub(crate) const HEADER_LEN: usize = 4096;
/// The fixed fields, checksum excluded.
pub(crate) const FIXED_LEN: usize = 64;
pub(crate) const COUNTERS_OFFSET: usize = 1024;
pub(crate) const SLOT_LEN: usize = 32;
/// Every entry's bits begin at a multiple of this, so that two relations never share a word.
pub(crate) const BITS_PER_WORD: u64 = 64;
/// Most slots a map may have: 128 million relation forks are beyond any cluster.
pub(crate) const SLOTS_MAX: u64 = 1 << 28;

/// The fixed fields of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// LSN at which absent blocks are read.
    pub base_lsn: Lsn,
    /// Slots of the hash table, a power of two.
    pub slot_count: u64,
    /// Slots in use.
    pub entry_count: u64,
    /// Length of the bitmap in 64-bit words.
    pub word_count: u64,
}

impl Header {
    pub fn bits_offset(&self) -> u64 {
        HEADER_LEN as u64 + self.slot_count * SLOT_LEN as u64
    }

    pub fn file_len(&self) -> u64 {
        self.bits_offset() + self.word_count * 8
    }

    pub fn encode(&self) -> [u8; FIXED_LEN + 4] {
        let mut out = [0; FIXED_LEN + 4];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        for (at, value) in [
            (16, self.base_lsn.get()),
            (24, self.slot_count),
            (32, self.entry_count),
            (40, self.word_count),
            (48, self.file_len()),
        ] {
            out[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32fast::hash(&out[..FIXED_LEN]);
        out[FIXED_LEN..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The fields, or the name of the one that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Header, &'static str> {
        let fixed: &[u8; FIXED_LEN + 4] = bytes.first_chunk().ok_or("length")?;
        let u32_at = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("8 bytes"));
        if fixed[..8] != MAGIC {
            return Err("magic number");
        }
        if u32_at(8) != FORMAT_VERSION {
            return Err("version");
        }
        if u32_at(FIXED_LEN) != crc32fast::hash(&fixed[..FIXED_LEN]) {
            return Err("header checksum");
        }
        let header = Header {
            base_lsn: Lsn::new(u64_at(16)),
            slot_count: u64_at(24),
            entry_count: u64_at(32),
            word_count: u64_at(40),
        };
        if !header.slot_count.is_power_of_two() || header.slot_count > SLOTS_MAX {
            return Err("number of slots");
        }
        // An empty slot must remain, or a look-up of an unknown relation would never end.
        if header.entry_count >= header.slot_count {
            return Err("number of entries");
        }
        if header.word_count > SLOTS_MAX * (u64::from(u32::MAX) / BITS_PER_WORD + 1) || u64_at(48) != header.file_len()
        {
            return Err("file length");
        }
        Ok(header)
    }
}

/// The slot at which the search for `rel` begins. Part of the format: builder and readers must agree.
pub(crate) fn home_slot(rel: &RelTag, slot_count: u64) -> u64 {
    let mut mixed = (u64::from(rel.relnode) << 32 | u64::from(rel.dbnode))
        ^ (u64::from(rel.spcnode) << 2 | rel.fork as u64).rotate_left(40);
    // The finalizer of splitmix64: every input bit reaches the low bits that are used.
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (mixed ^ (mixed >> 31)) & (slot_count - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_header() {
        let header = Header { base_lsn: Lsn::new(0x16_B374_D848), slot_count: 8, entry_count: 3, word_count: 5 };
        let bytes = header.encode();
        assert_eq!(&bytes[..12], b"ARDNTPMP\x01\0\0\0");
        assert_eq!(&bytes[16..24], b"\x48\xd8\x74\xb3\x16\0\0\0");
        assert_eq!(&bytes[48..56], &(4096_u64 + 8 * 32 + 5 * 8).to_le_bytes());
        assert_eq!(Header::decode(&bytes), Ok(header));
    }

    #[test]
    fn every_flipped_bit_of_the_header_is_refused() {
        let bytes = Header { base_lsn: Lsn::new(9), slot_count: 8, entry_count: 3, word_count: 5 }.encode();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad).is_err(), "bit {bit}");
        }
        assert!(Header::decode(&bytes[..20]).is_err());
    }
}
