//! `pg_filenode.map` (`relmapper.c`): which file a mapped catalog has.

/// `RELMAPPER_FILEMAGIC`
const MAGIC: u32 = 0x0059_2717;
/// Magic number and count stand before the mappings, a CRC behind the last place for one.
const HEAD_LEN: usize = 8;
const MAPPING_LEN: usize = 8;
/// 15 pads its file to 512 bytes; later ones have no padding.
const PADDED_LEN: usize = 512;
const LONGER_LEN: usize = 524;

/// Catalogs and their files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RelationMap(Vec<(u32, u32)>);

impl RelationMap {
    /// Checks the file's CRC as well.
    pub fn parse(file: &[u8]) -> Result<RelationMap, &'static str> {
        let word = |at: usize| {
            let bytes = file.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().expect("4 bytes")))
        };
        let crc_at = match file.len() {
            PADDED_LEN => PADDED_LEN - 8,
            LONGER_LEN => LONGER_LEN - 4,
            _ => return Err("it has not the length of a relation map"),
        };
        let (Some(magic), Some(count), Some(crc)) = (word(0), word(4), word(crc_at)) else {
            return Err("it is too short");
        };
        if magic != MAGIC {
            return Err("it is no relation map");
        }
        if crc32c::crc32c(&file[..crc_at]) != crc {
            return Err("its checksum is wrong");
        }
        let mappings = file[HEAD_LEN..crc_at].chunks_exact(MAPPING_LEN);
        if count as usize > mappings.len() {
            return Err("it has more entries than room");
        }
        let half = |mapping: &[u8], at: usize| u32::from_le_bytes(mapping[at..at + 4].try_into().expect("4 bytes"));
        Ok(RelationMap(mappings.take(count as usize).map(|mapping| (half(mapping, 0), half(mapping, 4))).collect()))
    }

    /// The file of a catalog.
    pub fn file_of(&self, catalog: u32) -> Option<u32> {
        self.0.iter().find(|(oid, _)| *oid == catalog).map(|(_, file)| *file)
    }

    /// All files.
    pub fn files(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|(_, file)| *file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(len: usize, crc_at: usize, count: u32) -> Vec<u8> {
        let mut file = vec![0; len];
        for (at, word) in [(0, MAGIC), (4, count), (8, 1259), (12, 20_000), (16, 1249), (20, 1249)] {
            file[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c::crc32c(&file[..crc_at]);
        file[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        file
    }

    #[test]
    fn maps_of_all_majors_are_read_and_damage_is_named() {
        for (len, crc_at) in [(512, 504), (524, 520)] {
            let whole = file(len, crc_at, 2);
            let map = RelationMap::parse(&whole).expect("it is whole");
            assert_eq!((map.file_of(1259), map.file_of(1249), map.file_of(1260)), (Some(20_000), Some(1249), None));
            assert_eq!(map.files().collect::<Vec<_>>(), [20_000, 1249]);
            assert_eq!(RelationMap::parse(&file(len, crc_at, 200)), Err("it has more entries than room"));
            for at in 0..crc_at {
                let mut spoilt = whole.clone();
                spoilt[at] ^= 0x10;
                assert!(RelationMap::parse(&spoilt).is_err(), "byte {at}");
            }
            for len in 0..len {
                assert!(RelationMap::parse(&whole[..len]).is_err(), "{len} bytes");
            }
        }
    }
}
