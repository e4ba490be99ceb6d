//! The file: a header and compressed JSON (`docs/formats/change-set.md`).

use ardent_diff::ChangeSet;
use ardent_types::Lsn;
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"ARDNTCHG";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 36;
/// Longest content, in bytes, that is unpacked.
const CONTENT_LEN_MAX: u64 = 8 << 30;
const COMPRESSION_LEVEL: i32 = 3;

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeSetFile {
    /// The branch it was taken from.
    pub branch: String,
    /// From here,
    pub from_lsn: Lsn,
    /// to here.
    pub to_lsn: Lsn,
    /// The changes, by database.
    pub databases: Vec<ChangeSet>,
}

/// Bytes are no change set.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Another kind of file.
    #[error("it is no change set")]
    Magic,
    /// A later version's.
    #[error("it has version {0}, and this program knows version 1: use the program that wrote it, or a newer one")]
    Version(u32),
    /// Cut off or damaged.
    #[error("it is damaged: {what} at byte {offset}")]
    Damaged {
        /// Where.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// What it says makes no sense.
    #[error("its content cannot be understood")]
    Content(#[from] serde_json::Error),
    /// It cannot be packed.
    #[error("it cannot be packed")]
    Packing(#[from] std::io::Error),
}

/// The bytes of a file.
pub fn write(content: &ChangeSetFile) -> Result<Vec<u8>, FileError> {
    let json = serde_json::to_vec(content)?;
    let packed = zstd::bulk::compress(&json, COMPRESSION_LEVEL)?;
    let mut bytes = Vec::with_capacity(HEADER_LEN + packed.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&packed).to_le_bytes());
    bytes.extend_from_slice(&(packed.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&(json.len() as u64).to_le_bytes());
    let header = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&header.to_le_bytes());
    bytes.extend_from_slice(&packed);
    Ok(bytes)
}

/// Reads what [`write`] wrote.
pub fn read(bytes: &[u8]) -> Result<ChangeSetFile, FileError> {
    let damaged = |offset: usize, what| FileError::Damaged { offset: offset as u64, what };
    if !bytes.starts_with(MAGIC) {
        return Err(FileError::Magic);
    }
    let Some((header, packed)) = bytes.split_at_checked(HEADER_LEN) else {
        return Err(damaged(bytes.len(), "the header is cut off"));
    };
    let u32_at = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    let u64_at = |at: usize| header[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    if u32_at(8) != VERSION {
        return Err(FileError::Version(u32_at(8)));
    }
    if u32_at(32) != crc32c::crc32c(&header[..32]) {
        return Err(damaged(0, "the header's checksum is wrong"));
    }
    if u64_at(16) != packed.len() as u64 {
        return Err(damaged(HEADER_LEN + packed.len(), "the length is another than the header's"));
    }
    if u32_at(12) != crc32c::crc32c(packed) {
        return Err(damaged(HEADER_LEN, "the content's checksum is wrong"));
    }
    let length = u64_at(24);
    let capacity = usize::try_from(length).ok().filter(|_| length <= CONTENT_LEN_MAX);
    let capacity = capacity.ok_or_else(|| damaged(24, "the content is too long"))?;
    let json =
        zstd::bulk::decompress(packed, capacity).map_err(|_| damaged(HEADER_LEN, "the content cannot be unpacked"))?;
    Ok(serde_json::from_slice(&json)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ChangeSetFile {
        let set = ChangeSet { database: "shop".into(), ..ChangeSet::default() };
        ChangeSetFile { branch: "b".into(), from_lsn: Lsn::new(16), to_lsn: Lsn::new(32), databases: vec![set] }
    }

    #[test]
    fn what_is_written_is_read_and_damage_is_found() {
        let bytes = write(&sample()).unwrap();
        assert_eq!(read(&bytes).unwrap(), sample());
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "cut at {end}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_header_is_where_the_table_says() {
        let bytes = write(&sample()).unwrap();
        assert_eq!(&bytes[..12], b"ARDNTCHG\x01\0\0\0");
        assert_eq!(u64::from_le_bytes(*bytes[16..].first_chunk().unwrap()), (bytes.len() - 36) as u64);
    }
}
