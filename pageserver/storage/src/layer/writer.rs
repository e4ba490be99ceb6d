//! Writes a layer file from sorted versions, with memory for one group and the index.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use ardent_object_store::fault::FailPoints;
use ardent_types::Lsn;

use super::block::{BlockPacker, Effort, GroupBuilder};
use super::file::{Section, Trailer, encode_header};
use super::{LayerDesc, LayerKind, filter};
use crate::limits::{DELTA_GROUP_BYTES_MAX, GROUP_BYTES_MAX};
use crate::position::{RecordPosition, encode_boundaries};
use crate::stored_key::{KeyRange, StoredKey};
use crate::version::VersionKind;

/// Writes one layer file. The file is removed if the writer is dropped unfinished.
pub(crate) struct LayerWriter<'a> {
    blocks: BlockFile<'a>,
    path: PathBuf,
    finished: bool,
    kind: LayerKind,
    group: GroupBuilder,
    index: Vec<u8>,
    group_first: Option<(StoredKey, Lsn)>,
    hashes: Vec<u64>,
    first: Option<StoredKey>,
    last: Option<(StoredKey, Lsn)>,
    oldest: Lsn,
    newest: Lsn,
    entries: u64,
    holes: u64,
}

/// The file, block by block.
struct BlockFile<'a> {
    out: BufWriter<File>,
    faults: &'a FailPoints,
    packer: BlockPacker,
    offset: u64,
}

impl BlockFile<'_> {
    fn write(&mut self, raw: &[u8]) -> io::Result<Section> {
        let block = self.packer.pack(raw)?;
        put(&mut self.out, &mut self.offset, self.faults, block)
    }

    fn write_packed(&mut self, block: &[u8]) -> io::Result<Section> {
        put(&mut self.out, &mut self.offset, self.faults, block)
    }
}

fn put(out: &mut impl Write, offset: &mut u64, faults: &FailPoints, block: &[u8]) -> io::Result<Section> {
    let length = u32::try_from(block.len()).map_err(|_| io::Error::other("a block of 4 GiB or more"))?;
    faults.pass("layer.write")?;
    out.write_all(block)?;
    let section = Section { offset: *offset, length };
    *offset += u64::from(length);
    Ok(section)
}

/// A complete file and what the manifest will say of it.
pub(crate) struct FinishedLayer {
    pub(crate) path: PathBuf,
    pub(crate) desc: LayerDesc,
}

impl<'a> LayerWriter<'a> {
    /// Starts the file at `path`.
    pub(crate) fn create(path: &Path, kind: LayerKind, effort: Effort, faults: &'a FailPoints) -> io::Result<Self> {
        faults.pass("layer.create")?;
        let mut out = BufWriter::with_capacity(256 << 10, File::create_new(path)?);
        let header = encode_header(kind);
        out.write_all(&header)?;
        let blocks = BlockFile { out, faults, packer: BlockPacker::new(effort)?, offset: header.len() as u64 };
        Ok(LayerWriter {
            blocks,
            path: path.to_owned(),
            finished: false,
            kind,
            group: GroupBuilder::default(),
            index: Vec::new(),
            group_first: None,
            hashes: Vec::new(),
            first: None,
            last: None,
            oldest: Lsn::MAX,
            newest: Lsn::INVALID,
            entries: 0,
            holes: 0,
        })
    }

    /// Adds a version that sorts after the ones before.
    pub(crate) fn add(&mut self, key: &StoredKey, lsn: Lsn, kind: VersionKind, value: &[u8]) -> io::Result<()> {
        assert!(self.last.is_none_or(|last| last < (*key, lsn)), "versions are written in order");
        let most = match self.kind {
            LayerKind::Image => GROUP_BYTES_MAX,
            LayerKind::Delta => DELTA_GROUP_BYTES_MAX,
        };
        let full = self.group.values_len() + value.len() > most || self.group.table_len() > most;
        if full && !self.group.is_empty() {
            self.end_group()?;
        }
        if self.last.is_none_or(|(last, _)| last != *key) {
            self.hashes.push(key.stable_hash());
        }
        self.group_first.get_or_insert((*key, lsn));
        self.first.get_or_insert(*key);
        self.last = Some((*key, lsn));
        self.oldest = self.oldest.min(lsn);
        self.newest = self.newest.max(lsn);
        self.entries += 1;
        self.holes += u64::from(kind == VersionKind::Hole);
        self.group.add(key, lsn, kind, value);
        Ok(())
    }

    /// Adds a group that is packed already: neighbours without a gap, each with a version of this LSN, none of them a hole.
    pub(crate) fn add_packed(&mut self, first: &StoredKey, count: u32, lsn: Lsn, block: &[u8]) -> io::Result<()> {
        assert!(self.last.is_none_or(|last| last < (*first, lsn)), "versions are written in order");
        if !self.group.is_empty() {
            self.end_group()?;
        }
        let mut last = *first;
        for at in 0..count {
            last = first.checked_add(at).expect("whoever packed it had all its keys");
            self.hashes.push(last.stable_hash());
        }
        let section = self.blocks.write_packed(block)?;
        self.note_group((*first, lsn), section);
        self.first.get_or_insert(*first);
        self.last = Some((last, lsn));
        self.oldest = self.oldest.min(lsn);
        self.newest = self.newest.max(lsn);
        self.entries += u64::from(count);
        Ok(())
    }

    /// Bytes written so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.blocks.offset
    }

    fn end_group(&mut self) -> io::Result<()> {
        let first = self.group_first.take().expect("a group that ends has a first entry");
        let section = self.blocks.write(self.group.finish())?;
        self.group.clear();
        self.note_group(first, section);
        Ok(())
    }

    fn note_group(&mut self, (key, lsn): (StoredKey, Lsn), section: Section) {
        self.index.extend_from_slice(key.as_bytes());
        self.index.extend_from_slice(&lsn.get().to_le_bytes());
        self.index.extend_from_slice(&section.offset.to_le_bytes());
        self.index.extend_from_slice(&section.length.to_le_bytes());
    }

    /// Completes the file; whoever makes it an object makes it durable. `keys` and `after` may say more than the versions do: that an
    /// image layer speaks for a range, that a delta layer holds all there is since an LSN. `upto` is the image's LSN, or the
    /// position that the versions reach.
    pub(crate) fn finish(
        mut self,
        keys: Option<KeyRange>,
        after: Option<Lsn>,
        upto: Lsn,
        boundaries: &[RecordPosition],
    ) -> io::Result<FinishedLayer> {
        if !self.group.is_empty() {
            self.end_group()?;
        }
        let keys = keys.unwrap_or(match (self.first, self.last) {
            (Some(first), Some((last, _))) => KeyRange { first, last },
            _ => KeyRange::ALL,
        });
        let oldest = if self.entries == 0 { upto } else { self.oldest };
        let after = after.unwrap_or(Lsn::new(oldest.get().saturating_sub(1)));
        assert!(self.entries == 0 || (after < self.oldest && self.newest <= upto), "versions lie in the layer's range");
        let index = std::mem::take(&mut self.index);
        let index = self.blocks.write(&index)?;
        let filter = filter::build(&self.hashes);
        let filter = self.blocks.write(&filter)?;
        let boundaries_section = if boundaries.is_empty() {
            Section::default()
        } else {
            let mut raw = Vec::new();
            encode_boundaries(boundaries, &mut raw);
            self.blocks.write(&raw)?
        };
        let (kind, entries) = (self.kind, self.entries);
        let trailer = Trailer { kind, keys, after, upto, entries, index, filter, boundaries: boundaries_section };
        let trailer = trailer.encode();
        self.blocks.out.write_all(&trailer)?;
        self.blocks.faults.pass("layer.finish")?;
        self.blocks.out.flush()?;
        self.finished = true;
        let desc = LayerDesc {
            file: String::new(),
            kind,
            level: 0,
            keys,
            after,
            upto,
            bytes: self.blocks.offset + trailer.len() as u64,
            entries,
            key_count: self.hashes.len() as u64,
            boundaries: !boundaries.is_empty(),
            holes: self.holes,
        };
        Ok(FinishedLayer { path: self.path.clone(), desc })
    }
}

impl Drop for LayerWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // Swept at the next start if this fails.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
