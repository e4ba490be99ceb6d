//! The simulated WAL: records that can be recognised, as Postgres's can, by a length and a checksum that depends on the place.

use ardent_api::wal_service::RecordEnd;
use ardent_types::Lsn;

use super::dice::Dice;

/// Where every simulated timeline begins.
pub(crate) const START: u64 = 1000;
const HEADER_LEN: usize = 5;

/// The timeline's beginning as a record end.
pub(crate) fn start() -> RecordEnd {
    RecordEnd { end: Lsn::new(START), start: Lsn::new(START - 8) }
}

/// Offset in a log's bytes.
pub(crate) fn offset(lsn: Lsn) -> usize {
    (lsn.get() - START) as usize
}

/// The position behind `length` bytes of log.
pub(crate) fn lsn_at(length: usize) -> Lsn {
    Lsn::new(START + length as u64)
}

fn checksum(at: usize, payload: &[u8]) -> u32 {
    let seed = 0x811C_9DC5_u32 ^ at as u32;
    payload.iter().fold(seed, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// A new record for offset `at`.
pub(crate) fn make(at: usize, dice: &mut Dice) -> Vec<u8> {
    let payload: Vec<u8> = (0..dice.between(1, 60)).map(|_| dice.next() as u8).collect();
    let mut record = vec![payload.len() as u8];
    record.extend_from_slice(&checksum(at, &payload).to_le_bytes());
    record.extend_from_slice(&payload);
    record
}

/// The length of the whole, valid record at `at`.
fn length_at(log: &[u8], at: usize) -> Option<usize> {
    let length = usize::from(*log.get(at)?);
    let payload = log.get(at + HEADER_LEN..at + HEADER_LEN + length)?;
    let stored = log.get(at + 1..at + HEADER_LEN)?;
    (length > 0 && stored == checksum(at, payload).to_le_bytes()).then_some(HEADER_LEN + length)
}

/// The last whole record in `log` after `from`; `from` if there is none.
pub(crate) fn last_in(log: &[u8], from: RecordEnd) -> RecordEnd {
    let mut last = from;
    while let Some(length) = length_at(log, offset(last.end)) {
        last = RecordEnd { start: last.end, end: last.end.advance(length as u64) };
    }
    last
}

/// Whether a record of `log` ends at `lsn`.
pub(crate) fn is_end(log: &[u8], lsn: Lsn) -> bool {
    log.len() >= offset(lsn) && last_in(&log[..offset(lsn)], start()).end == lsn
}
