//! What writer and reader of layer files agree on: header, trailer, errors.

use ardent_object_store::StoreError;
use ardent_types::{KEY_LEN, Lsn};

use super::LayerKind;
use crate::stored_key::{KeyRange, StoredKey};

/// Version of the file format. A file of another one is refused by name.
pub(crate) const FORMAT_VERSION: u16 = 1;
/// First bytes of a layer file.
const MAGIC: [u8; 4] = *b"ARLY";
/// Length of the header in bytes.
pub(crate) const HEADER_LEN: usize = 8;
/// Length of the trailer in bytes.
pub(crate) const TRAILER_LEN: usize = 112;

/// A layer file is not what was written.
#[derive(Debug, Clone, thiserror::Error)]
#[error("layer file {file} is corrupt at offset {offset}: {expected} (keys {keys})")]
pub(crate) struct LayerCorrupt {
    pub(crate) file: String,
    pub(crate) offset: u64,
    pub(crate) expected: String,
    pub(crate) keys: KeyRange,
}

/// A layer could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    #[error(transparent)]
    Corrupt(#[from] LayerCorrupt),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The file's first bytes.
pub(crate) fn encode_header(kind: LayerKind) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    header[6] = kind_number(kind);
    header
}

fn kind_number(kind: LayerKind) -> u8 {
    match kind {
        LayerKind::Delta => 0,
        LayerKind::Image => 1,
    }
}

/// Where a section lies in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

/// The file's last bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) kind: LayerKind,
    pub(crate) keys: KeyRange,
    pub(crate) after: Lsn,
    pub(crate) upto: Lsn,
    pub(crate) entries: u64,
    pub(crate) index: Section,
    pub(crate) filter: Section,
    pub(crate) boundaries: Section,
}

impl Trailer {
    pub(crate) fn encode(&self) -> [u8; TRAILER_LEN] {
        let mut out = Vec::with_capacity(TRAILER_LEN);
        out.extend_from_slice(self.keys.first.as_bytes());
        out.extend_from_slice(self.keys.last.as_bytes());
        for number in [self.after.get(), self.upto.get(), self.entries] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for section in [self.index, self.filter, self.boundaries] {
            out.extend_from_slice(&section.offset.to_le_bytes());
            out.extend_from_slice(&section.length.to_le_bytes());
        }
        out.push(kind_number(self.kind));
        out.push(0);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.try_into().expect("the fields add up to the trailer's length")
    }

    /// The trailer in `bytes`; what was expected where they differ.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Trailer, String> {
        let bytes: &[u8; TRAILER_LEN] =
            bytes.try_into().map_err(|_| format!("{TRAILER_LEN} bytes of trailer, found {}", bytes.len()))?;
        let key =
            |at: usize| StoredKey::from_bytes(bytes[at..at + KEY_LEN].try_into().expect("a key's length of bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let section = |at: usize| Section { offset: u64_at(at), length: u32_at(at + 8) };
        if bytes[104..108] != MAGIC {
            return Err("the magic number ARLY in the trailer".to_owned());
        }
        let version = u16::from_le_bytes([bytes[98], bytes[99]]);
        if version != FORMAT_VERSION {
            return Err(format!("layer format version {FORMAT_VERSION}, found {version}"));
        }
        if crc32fast::hash(&bytes[..100]) != u32_at(100) {
            return Err("the trailer's checksum".to_owned());
        }
        let kind = match bytes[96] {
            0 => LayerKind::Delta,
            1 => LayerKind::Image,
            other => return Err(format!("a known kind of layer, found {other}")),
        };
        Ok(Trailer {
            kind,
            keys: KeyRange { first: key(0), last: key(18) },
            after: Lsn::new(u64_at(36)),
            upto: Lsn::new(u64_at(44)),
            entries: u64_at(52),
            index: section(60),
            filter: section(72),
            boundaries: section(84),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trailer_round_trips_and_rejects_every_flipped_bit() {
        let trailer = Trailer {
            kind: LayerKind::Image,
            keys: KeyRange::ALL,
            after: Lsn::new(1),
            upto: Lsn::new(2),
            entries: 3,
            index: Section { offset: 4, length: 5 },
            filter: Section { offset: 6, length: 7 },
            boundaries: Section::default(),
        };
        let bytes = trailer.encode();
        assert_eq!(Trailer::decode(&bytes), Ok(trailer));
        assert!(Trailer::decode(&bytes[1..]).is_err());
        for bit in 0..(TRAILER_LEN - 4) * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Trailer::decode(&flipped).is_err(), "bit {bit}");
        }
    }
}
