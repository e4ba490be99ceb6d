//! Makes a map with every block absent.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ardent_types::{BlockNumber, Lsn, RelTag};

use crate::layout::{BITS_PER_WORD, HEADER_LEN, Header, SLOT_LEN, SLOTS_MAX, home_slot};
use crate::map::{OpenError, PresenceMap};

/// Why a map could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The file could not be written.
    #[error("cannot write the presence map {}", path.display())]
    Write {
        /// The map's file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// More relation forks than the format holds.
    #[error("{0} relation forks are more than a presence map holds")]
    TooManyRelations(usize),
    /// The file was written but does not read back.
    #[error("the new presence map cannot be opened")]
    Open(#[from] OpenError),
}

/// Collects the relation forks of a base backup, then writes the map.
#[derive(Debug)]
pub struct PresenceMapBuilder {
    base_lsn: Lsn,
    sizes: BTreeMap<RelTag, BlockNumber>,
}

impl PresenceMapBuilder {
    /// A map for a compute whose base backup is at `base_lsn`.
    pub fn new(base_lsn: Lsn) -> Self {
        PresenceMapBuilder { base_lsn, sizes: BTreeMap::new() }
    }

    /// Adds a relation fork of `nblocks` blocks, all of them absent. A fork without blocks needs no entry and gets none;
    /// adding a fork again replaces its size.
    pub fn add(&mut self, rel: RelTag, nblocks: BlockNumber) {
        if nblocks > 0 {
            self.sizes.insert(rel, nblocks);
        } else {
            self.sizes.remove(&rel);
        }
    }

    /// Blocks added so far.
    pub fn block_count(&self) -> u64 {
        self.sizes.values().map(|nblocks| u64::from(*nblocks)).sum()
    }

    /// Writes the map to `path`, which must not exist, and opens it. The bitmap is a hole in the file: only the table
    /// costs space. The file is not fsynced: it belongs to a data directory that is thrown away after any crash.
    pub fn build(self, path: &Path) -> Result<PresenceMap, BuildError> {
        let write_error = |source| BuildError::Write { path: path.to_owned(), source };
        let (header, table) = self.layout()?;
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(write_error)?;
        write_file(&file, &header, &table).map_err(write_error)?;
        Ok(PresenceMap::open(path)?)
    }

    fn layout(&self) -> Result<(Header, Vec<u8>), BuildError> {
        let entry_count = self.sizes.len() as u64;
        // At most half full, so that look-ups of relations that have no entry end after a step or two.
        let slot_count = (entry_count * 2).next_power_of_two().max(8);
        if slot_count > SLOTS_MAX {
            return Err(BuildError::TooManyRelations(self.sizes.len()));
        }
        let mut table = vec![0; slot_count as usize * SLOT_LEN];
        let mut word_count = 0;
        for (rel, nblocks) in &self.sizes {
            let mut slot = home_slot(rel, slot_count) as usize;
            while table[slot * SLOT_LEN + 16..slot * SLOT_LEN + 20] != [0; 4] {
                slot = (slot + 1) % slot_count as usize;
            }
            let out = &mut table[slot * SLOT_LEN..(slot + 1) * SLOT_LEN];
            let fields = [rel.spcnode, rel.dbnode, rel.relnode, rel.fork as u32, *nblocks, *nblocks];
            for (field, out) in fields.iter().zip(out.chunks_exact_mut(4)) {
                out.copy_from_slice(&field.to_le_bytes());
            }
            out[24..].copy_from_slice(&(word_count * BITS_PER_WORD).to_le_bytes());
            word_count += u64::from(*nblocks).div_ceil(BITS_PER_WORD);
        }
        Ok((Header { base_lsn: self.base_lsn, slot_count, entry_count, word_count }, table))
    }
}

fn write_file(file: &File, header: &Header, table: &[u8]) -> io::Result<()> {
    file.set_len(header.file_len())?;
    file.write_all_at(table, HEADER_LEN as u64)?;
    file.write_all_at(&header.encode(), 0)
}
