//! WAL positions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A byte position in WAL (Postgres's `XLogRecPtr`). Printed as Postgres prints it: `16/B374D848`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

/// WAL page size in bytes (Postgres's `XLOG_BLCKSZ`; the only value that distributions build).
const XLOG_BLCKSZ: u64 = 8192;
/// Size of a WAL page header that is not a segment's first (`SizeOfXLogShortPHD`).
const SHORT_PAGE_HEADER_LEN: u64 = 24;
/// Size of the header of a segment's first page (`SizeOfXLogLongPHD`).
const LONG_PAGE_HEADER_LEN: u64 = 40;

impl Lsn {
    /// Postgres's `InvalidXLogRecPtr`.
    pub const INVALID: Lsn = Lsn(0);
    /// Larger than any LSN that occurs.
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// The LSN at byte `position`.
    #[inline]
    pub const fn new(position: u64) -> Self {
        Lsn(position)
    }

    /// The byte position.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// False only for [`Lsn::INVALID`].
    #[inline]
    pub const fn is_valid(self) -> bool {
        self.0 != 0
    }

    /// `self + bytes`; `None` on overflow.
    #[inline]
    pub fn checked_add(self, bytes: u64) -> Option<Lsn> {
        self.0.checked_add(bytes).map(Lsn)
    }

    /// Bytes from `earlier` to `self`; `None` when `earlier` is later.
    #[inline]
    pub fn checked_sub(self, earlier: Lsn) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// Bytes from `earlier` to `self`, 0 when `earlier` is later. For lags that are shown, never for arithmetic that matters.
    #[inline]
    pub fn saturating_sub(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// `self + bytes`. Panics on overflow: an LSN that large is our own bug, since WAL positions are read as validated
    /// values and one record is at most 1 GiB.
    #[inline]
    #[must_use]
    pub fn advance(self, bytes: u64) -> Lsn {
        Lsn(self.0.checked_add(bytes).expect("an LSN never reaches 2^64"))
    }

    /// Rounded up to the next multiple of 8 (`MAXALIGN`), as record ends are. Saturates at the last multiple.
    #[inline]
    #[must_use]
    pub fn align_up_8(self) -> Lsn {
        Lsn(self.0.saturating_add(7) & !7)
    }

    /// Where the record that follows a record ending here starts: aligned, and past the page header if this is a page
    /// boundary (checklist 5).
    #[must_use]
    pub fn record_start(self, segment_size: WalSegmentSize) -> Lsn {
        let at = self.align_up_8();
        if !at.0.is_multiple_of(XLOG_BLCKSZ) {
            at
        } else if at.segment_offset(segment_size) == 0 {
            at.advance(LONG_PAGE_HEADER_LEN)
        } else {
            at.advance(SHORT_PAGE_HEADER_LEN)
        }
    }

    /// The record end that an insert position stands for: a server whose last record ends at a page boundary says that it
    /// will insert after the page's header, where no record can end. The inverse of [`Lsn::record_start`].
    #[must_use]
    pub fn record_end(self, segment_size: WalSegmentSize) -> Lsn {
        let header =
            if self.segment_offset(segment_size) < XLOG_BLCKSZ { LONG_PAGE_HEADER_LEN } else { SHORT_PAGE_HEADER_LEN };
        if self.page_offset() == header { Lsn(self.0 - header) } else { self }
    }

    /// Byte offset within its 8 KiB WAL page.
    #[inline]
    pub fn page_offset(self) -> u64 {
        self.0 % XLOG_BLCKSZ
    }

    /// The number of its segment, counted from 0.
    #[inline]
    pub fn segment_number(self, segment_size: WalSegmentSize) -> u64 {
        self.0 >> segment_size.0.trailing_zeros()
    }

    /// Byte offset within its segment.
    #[inline]
    pub fn segment_offset(self, segment_size: WalSegmentSize) -> u64 {
        self.0 & (segment_size.bytes() - 1)
    }

    /// The first LSN of its segment.
    #[inline]
    #[must_use]
    pub fn segment_start(self, segment_size: WalSegmentSize) -> Lsn {
        Lsn(self.0 - self.segment_offset(segment_size))
    }

    /// High and low halves, as on pages (`PageXLogRecPtr`).
    #[inline]
    pub fn halves(self) -> (u32, u32) {
        ((self.0 >> 32) as u32, self.0 as u32)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (high, low) = self.halves();
        write!(f, "{high:X}/{low:08X}")
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not `HIGH/LOW` in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an LSN: {0:?} (an LSN looks like 16/B374D848)")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (high, low) = text.split_once('/')?;
            let half = |digits: &str| {
                let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
                plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
            };
            Some(Lsn((u64::from(half(high)?) << 32) | u64::from(half(low)?)))
        };
        parse().ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A WAL segment size in bytes: a power of two from 1 MiB to 1 GiB (checklist 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct WalSegmentSize(u32);

/// Not a size that Postgres allows for WAL segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a WAL segment size: {0} bytes (a power of two from 1 MiB to 1 GiB is)")]
pub struct WalSegmentSizeError(u32);

impl WalSegmentSize {
    /// 16 MiB, what `initdb` makes unless told otherwise.
    pub const DEFAULT: WalSegmentSize = WalSegmentSize(16 << 20);

    /// Checks `bytes`.
    pub fn new(bytes: u32) -> Result<Self, WalSegmentSizeError> {
        let fits = (1 << 20..=1 << 30).contains(&bytes) && bytes.is_power_of_two();
        if fits { Ok(WalSegmentSize(bytes)) } else { Err(WalSegmentSizeError(bytes)) }
    }

    /// Size in bytes.
    #[inline]
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }
}

impl TryFrom<u32> for WalSegmentSize {
    type Error = WalSegmentSizeError;

    fn try_from(bytes: u32) -> Result<Self, Self::Error> {
        Self::new(bytes)
    }
}

impl From<WalSegmentSize> for u32 {
    fn from(size: WalSegmentSize) -> u32 {
        size.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_and_parse_round_trip() {
        for (text, value) in [("0/00000000", 0), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)] {
            assert_eq!(text.parse::<Lsn>(), Ok(Lsn::new(value)));
            assert_eq!(Lsn::new(value).to_string(), text);
        }
        for bad in ["", "/", "1", "1/", "/1", "g/1", "1/123456789", "+1/1", "1/2/3"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?} parsed");
        }
    }

    #[test]
    fn checklist_05_record_start_skips_page_headers() {
        let size = WalSegmentSize::DEFAULT;
        let check = |at: u64, expect: u64| assert_eq!(Lsn::new(at).record_start(size), Lsn::new(expect));
        check(0x0100_0000, 0x0100_0000 + 40);
        check(0x0100_2000, 0x0100_2000 + 24);
        check(0x0100_1FFB, 0x0100_2000 + 24);
        check(0x0100_2018, 0x0100_2018);
        check(0x0100_2019, 0x0100_2020);
    }

    #[test]
    fn an_insert_position_past_a_page_header_is_the_page_boundary() {
        let size = WalSegmentSize::DEFAULT;
        let check = |at: u64, expect: u64| assert_eq!(Lsn::new(at).record_end(size), Lsn::new(expect));
        check(0x0100_0028, 0x0100_0000);
        check(0x0100_2018, 0x0100_2000);
        // The rest of a record that began on the page before can end here.
        check(0x0100_2028, 0x0100_2028);
        check(0x0100_2020, 0x0100_2020);
    }

    #[test]
    fn checklist_11_segment_sizes() {
        assert!(WalSegmentSize::new(1 << 20).is_ok());
        assert!(WalSegmentSize::new(1 << 30).is_ok());
        for bad in [0, 1 << 19, 3 << 20, (1 << 30) + 1] {
            assert_eq!(WalSegmentSize::new(bad), Err(WalSegmentSizeError(bad)));
        }
    }
}
