//! The header of a WAL page (`XLogPageHeaderData`, `XLogLongPageHeaderData`); byte table in `docs/formats/postgres-wal.md`.

use ardent_types::{Lsn, PgTli, SystemId, WalSegmentSize};

use crate::bytes_at::{put, u16_at, u32_at, u64_at};

/// `XLOG_BLCKSZ`
pub const WAL_PAGE_LEN: u64 = 8192;
/// Length of the header of a page that is not a segment's first.
pub const SHORT_HEADER_LEN: usize = 24;
/// Length of the header of a segment's first page.
pub const LONG_HEADER_LEN: usize = 40;

/// Flags of a page (`xlp_info`), without the one that says that the header is long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageFlags {
    /// The page begins with the rest of a record.
    pub first_is_contrecord: bool,
    /// Full-page images of records that start here are optional.
    pub backup_removable: bool,
    /// The record whose rest should follow was given up in a crash; a new record stands in its place.
    pub first_is_overwrite_contrecord: bool,
}

const CONTRECORD: u16 = 0x0001;
const LONG: u16 = 0x0002;
const BKP_REMOVABLE: u16 = 0x0004;
const OVERWRITE_CONTRECORD: u16 = 0x0008;
const ALL: u16 = 0x000F;

/// A page header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalPageHeader {
    /// `xlp_magic`
    pub magic: u16,
    /// Flags.
    pub flags: PageFlags,
    /// `xlp_tli`
    pub tli: PgTli,
    /// `xlp_pageaddr`: where the page starts.
    pub address: Lsn,
    /// `xlp_rem_len`: bytes of the record from before that are still to come.
    pub remaining_len: u32,
    /// What only a long header has.
    pub long: Option<WalPageLongFields>,
}

/// The additional fields of a long header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalPageLongFields {
    /// `xlp_sysid`
    pub system_id: SystemId,
    /// `xlp_seg_size`, in bytes.
    pub segment_size: u32,
    /// `xlp_xlog_blcksz`, in bytes.
    pub wal_page_len: u32,
}

/// Length of the header of the page that starts at `page`.
pub fn page_header_len(page: Lsn, segment_size: WalSegmentSize) -> usize {
    if page.segment_offset(segment_size) == 0 { LONG_HEADER_LEN } else { SHORT_HEADER_LEN }
}

impl WalPageHeader {
    /// Reads a header of `bytes`'s length (24 or 40). The error is the flags, if the header has unknown ones or its length is another.
    pub(crate) fn read(bytes: &[u8]) -> Result<WalPageHeader, u16> {
        let info = u16_at(bytes, 2);
        let is_long = bytes.len() == LONG_HEADER_LEN;
        if info & !ALL != 0 || (info & LONG != 0) != is_long {
            return Err(info);
        }
        let long = is_long.then(|| WalPageLongFields {
            system_id: SystemId::new(u64_at(bytes, 24)),
            segment_size: u32_at(bytes, 32),
            wal_page_len: u32_at(bytes, 36),
        });
        Ok(WalPageHeader {
            magic: u16_at(bytes, 0),
            flags: PageFlags {
                first_is_contrecord: info & CONTRECORD != 0,
                backup_removable: info & BKP_REMOVABLE != 0,
                first_is_overwrite_contrecord: info & OVERWRITE_CONTRECORD != 0,
            },
            tli: PgTli::new(u32_at(bytes, 4)),
            address: Lsn::new(u64_at(bytes, 8)),
            remaining_len: u32_at(bytes, 16),
            long,
        })
    }

    /// Reads a long header, such as a segment begins with; `None` if `bytes` are none.
    pub fn read_long(bytes: &[u8]) -> Option<WalPageHeader> {
        (bytes.len() == LONG_HEADER_LEN).then(|| Self::read(bytes).ok()).flatten()
    }

    /// Appends its bytes, 24 or 40.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut bytes = [0; LONG_HEADER_LEN];
        let mut info = 0;
        for (set, bit) in [
            (self.flags.first_is_contrecord, CONTRECORD),
            (self.flags.backup_removable, BKP_REMOVABLE),
            (self.flags.first_is_overwrite_contrecord, OVERWRITE_CONTRECORD),
            (self.long.is_some(), LONG),
        ] {
            info |= if set { bit } else { 0 };
        }
        put(&mut bytes, 0, &self.magic.to_le_bytes());
        put(&mut bytes, 2, &info.to_le_bytes());
        put(&mut bytes, 4, &self.tli.get().to_le_bytes());
        put(&mut bytes, 8, &self.address.get().to_le_bytes());
        put(&mut bytes, 16, &self.remaining_len.to_le_bytes());
        if let Some(long) = &self.long {
            put(&mut bytes, 24, &long.system_id.get().to_le_bytes());
            put(&mut bytes, 32, &long.segment_size.to_le_bytes());
            put(&mut bytes, 36, &long.wal_page_len.to_le_bytes());
        }
        out.extend_from_slice(&bytes[..if self.long.is_some() { LONG_HEADER_LEN } else { SHORT_HEADER_LEN }]);
    }
}
