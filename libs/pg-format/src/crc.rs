//! The CRC-32C of a WAL record.
//!
//! Most records are so short that what surrounds the checksum instruction costs more than the instruction itself: whole words first, then
//! the last bytes in one step, without a loop over single bytes. Long ones, images above all, go to the `crc32c` crate, which runs several
//! streams side by side.

use crate::bytes_at::{u32_at, u64_at};
use crate::record::RECORD_HEADER_LEN;

/// The header's bytes that the CRC covers: all that stands before the CRC itself.
const COVERED_HEADER_LEN: usize = 20;
/// From this length on the crate's side-by-side streams are faster.
const LONG: usize = 1024;

/// The CRC of a record, which has at least a header: it covers everything behind the header, then the header up to the CRC itself.
#[inline]
pub(crate) fn record_crc(raw: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if raw.len() < LONG && is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the instructions.
        return unsafe { short_record_crc(raw) };
    }
    crc32c::crc32c_append(crc32c::crc32c(&raw[RECORD_HEADER_LEN..]), &raw[..COVERED_HEADER_LEN])
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn short_record_crc(raw: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u32, _mm_crc32_u64};

    let mut crc = u64::from(u32::MAX);
    let words = raw[RECORD_HEADER_LEN..].chunks_exact(8);
    let left = words.remainder().len() as u32;
    for word in words {
        crc = _mm_crc32_u64(crc, u64_at(word, 0));
    }
    // A CRC is linear, and leading zeros leave a state of zero as it is. So the last one to seven bytes go in as the upper end of a word
    // that is zero below, mixed with the state; what the state has more bytes than are left comes out as it went in. Shifts by 64 are
    // done in two steps.
    let last = u64_at(raw, raw.len() - 8) >> 1 >> (63 - 8 * left);
    crc = _mm_crc32_u64(0, (last ^ crc) << 1 << (63 - 8 * left)) ^ crc >> (8 * left);
    crc = _mm_crc32_u64(crc, u64_at(raw, 0));
    crc = _mm_crc32_u64(crc, u64_at(raw, 8));
    !_mm_crc32_u32(crc as u32, u32_at(raw, 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_records_have_the_crc_of_the_plain_definition() {
        let plain = |raw: &[u8]| {
            let mut crc = u32::MAX;
            for byte in raw[RECORD_HEADER_LEN..].iter().chain(&raw[..COVERED_HEADER_LEN]) {
                crc ^= u32::from(*byte);
                for _ in 0..8 {
                    crc = crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
                }
            }
            !crc
        };
        let mut state = 7u64;
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(2 * LONG)
        .collect();
        for length in (RECORD_HEADER_LEN..RECORD_HEADER_LEN + 70).chain(LONG - 9..LONG + 9).chain([2 * LONG - 3]) {
            for at in [0, 3] {
                let raw = &bytes[at..at + length];
                assert_eq!(record_crc(raw), plain(raw), "{length} bytes");
            }
        }
    }
}
