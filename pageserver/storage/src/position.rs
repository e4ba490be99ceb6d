//! Where WAL records begin and end.

use ardent_types::Lsn;
use serde::{Deserialize, Serialize};

/// A record's place in WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RecordPosition {
    /// One past its last byte, aligned to 8, never moved past a page header (checklist 1): the LSN of what it changed.
    pub end: Lsn,
    /// Its first byte: what the next record's `xl_prev` says. [`Lsn::INVALID`] where nobody knows it (before the first record of an
    /// import).
    pub start: Lsn,
}

/// Where a branch begins: the end of a record on the ancestor, and the start of that record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BranchPoint {
    /// Versions up to and with this LSN are the ancestor's.
    pub lsn: Lsn,
    /// Start of the record that ends there.
    pub prev_lsn: Lsn,
}

impl From<RecordPosition> for BranchPoint {
    fn from(position: RecordPosition) -> Self {
        BranchPoint { lsn: position.end, prev_lsn: position.start }
    }
}

/// Encodes ascending positions, each as two variable-length numbers: how far its end lies past the end before, and how long it
/// is. See `docs/formats/layers.md`, "boundaries".
pub(crate) fn encode_boundaries(positions: &[RecordPosition], out: &mut Vec<u8>) {
    put_varint(out, positions.len() as u64);
    let mut before = 0;
    for position in positions {
        put_varint(out, position.end.get() - before);
        put_varint(out, position.end.get().saturating_sub(position.start.get()));
        before = position.end.get();
    }
}

/// What [`encode_boundaries`] wrote; `None` for anything else.
pub(crate) fn decode_boundaries(mut bytes: &[u8]) -> Option<Vec<RecordPosition>> {
    let count = take_varint(&mut bytes)?;
    if count > bytes.len() as u64 {
        return None;
    }
    let mut positions = Vec::with_capacity(count as usize);
    let mut before = 0u64;
    for _ in 0..count {
        let end = before.checked_add(take_varint(&mut bytes)?)?;
        let start = end.checked_sub(take_varint(&mut bytes)?)?;
        positions.push(RecordPosition { end: Lsn::new(end), start: Lsn::new(start) });
        before = end;
    }
    bytes.is_empty().then_some(positions)
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7F);
        if shift == 63 && bits > 1 {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(end: u64, start: u64) -> RecordPosition {
        RecordPosition { end: Lsn::new(end), start: Lsn::new(start) }
    }

    #[test]
    fn boundaries_round_trip_and_reject_every_truncation() {
        let positions = [position(0x100_0028, 0), position(0x100_0060, 0x100_0028), position(u64::MAX, 0x100_0060)];
        let mut bytes = Vec::new();
        encode_boundaries(&positions, &mut bytes);
        assert_eq!(decode_boundaries(&bytes).as_deref(), Some(&positions[..]));
        for length in 0..bytes.len() {
            assert_eq!(decode_boundaries(&bytes[..length]), None);
        }
        assert_eq!(decode_boundaries(&[0xFF; 12]), None);
    }
}
