//! Sorted runs: what an import no longer has room for in memory, in local files that are read once, from beginning to end.
//!
//! A file is frames, one after the other. None outlives the process that wrote it, so the format has no version. Numbers are
//! little-endian.
//!
//! | bytes | content |
//! |---|---|
//! | 4 | CRC-32 of the other bytes of the frame but for the block |
//! | 1 | 0: neighbours without a gap, which may go into an image layer as they are; 1: any values |
//! | 18 | first key |
//! | 4 | number of values |
//! | 4 | length of the block |
//! | rest | the block, as in a layer file, with a checksum of its own |

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;

use ardent_object_store::fault::FailPoints;
use ardent_object_store::{ErrorKind, LocalFolder, ObjectName, ObjectStore as _};
use ardent_types::{KEY_LEN, Lsn};
use bytes::{Buf as _, Bytes};

use super::piece::{Loose, Packed, Piece, unpack_group};
use crate::error::{CommitError, CorruptFile};
use crate::layer::{BlockPacker, Effort, GroupBuilder, check_block};
use crate::limits::GROUP_BYTES_MAX;
use crate::stored_key::StoredKey;

const FRAME_LEN: usize = 4 + 1 + KEY_LEN + 4 + 4;
const NEIGHBOURS: u8 = 0;
const ANY: u8 = 1;
/// What a file's name begins with.
pub(crate) const RUN: &str = "run-";

/// A file of pieces in order.
pub(super) struct Run {
    name: ObjectName,
    bytes: u64,
}

struct RunWriter<'a> {
    out: BufWriter<File>,
    bytes: u64,
    faults: &'a FailPoints,
    packer: BlockPacker,
    /// Values that wait for more of them, and the first one's key.
    group: GroupBuilder,
    group_first: StoredKey,
}

impl RunWriter<'_> {
    fn frame(&mut self, what: u8, first: &StoredKey, count: u32, block: &[u8]) -> io::Result<()> {
        let length = u32::try_from(block.len()).map_err(|_| io::Error::other("a block of 4 GiB or more"))?;
        let mut frame = [0; FRAME_LEN];
        frame[4] = what;
        frame[5..5 + KEY_LEN].copy_from_slice(first.as_bytes());
        frame[5 + KEY_LEN..9 + KEY_LEN].copy_from_slice(&count.to_le_bytes());
        frame[9 + KEY_LEN..].copy_from_slice(&length.to_le_bytes());
        let crc = crc32fast::hash(&frame[4..]);
        frame[..4].copy_from_slice(&crc.to_le_bytes());
        self.faults.pass("import.write")?;
        self.out.write_all(&frame)?;
        self.out.write_all(block)?;
        self.bytes += (frame.len() + block.len()) as u64;
        Ok(())
    }

    fn end_group(&mut self) -> io::Result<()> {
        if self.group.is_empty() {
            return Ok(());
        }
        let (first, count) = (self.group_first, self.group.count());
        // Out of its place, so that the frame can be written while it is looked at.
        let block = self.packer.pack(self.group.finish())?.to_vec();
        self.group.clear();
        self.frame(ANY, &first, count, &block)
    }

    fn add(&mut self, loose: &Loose, lsn: Lsn) -> io::Result<()> {
        let full =
            self.group.values_len() + loose.bytes.len() > GROUP_BYTES_MAX || self.group.table_len() > GROUP_BYTES_MAX;
        if full {
            self.end_group()?;
        }
        if self.group.is_empty() {
            self.group_first = loose.key;
        }
        self.group.add(&loose.key, lsn, loose.kind, &loose.bytes);
        Ok(())
    }
}

impl Run {
    /// Writes the file that has this number in `folder`.
    pub(super) fn write(
        folder: &Path,
        number: usize,
        pieces: &[Piece],
        lsn: Lsn,
        faults: &FailPoints,
    ) -> Result<Run, CommitError> {
        let file = format!("{RUN}{number}");
        let path = folder.join(&file);
        let write = || -> io::Result<u64> {
            faults.pass("import.create")?;
            std::fs::create_dir_all(folder)?;
            let mut writer = RunWriter {
                out: BufWriter::with_capacity(256 << 10, File::create(&path)?),
                bytes: 0,
                faults,
                packer: BlockPacker::new(Effort::Little)?,
                group: GroupBuilder::default(),
                group_first: StoredKey::MIN,
            };
            for piece in pieces {
                match piece {
                    Piece::Loose(loose) => writer.add(loose, lsn)?,
                    Piece::Packed(packed) => {
                        writer.end_group()?;
                        writer.frame(NEIGHBOURS, &packed.first, packed.count, &packed.block)?;
                    }
                }
            }
            writer.end_group()?;
            writer.out.flush()?;
            Ok(writer.bytes)
        };
        let bytes = write().map_err(|source| CommitError::Local { path: path.display().to_string(), source })?;
        Ok(Run { name: ObjectName::new(&file).expect("a word and a number are a good name"), bytes })
    }
}

/// Reads a run.
pub(super) struct RunReader {
    folder: Arc<LocalFolder>,
    name: ObjectName,
    bytes: u64,
    /// Offset behind what is in `ahead`.
    offset: u64,
    ahead: Bytes,
    /// How much is read at once.
    step: usize,
}

impl RunReader {
    pub(super) fn new(folder: Arc<LocalFolder>, run: &Run, step: usize) -> RunReader {
        RunReader { folder, name: run.name.clone(), bytes: run.bytes, offset: 0, ahead: Bytes::new(), step }
    }

    pub(super) fn corrupt(&self, expected: impl Into<String>) -> CommitError {
        let offset = self.offset - self.ahead.len() as u64;
        let keys = "everything that is imported".to_owned();
        CommitError::Corrupt(CorruptFile { file: self.name.to_string(), offset, expected: expected.into(), keys })
    }

    /// Makes so many bytes be in `ahead`.
    fn look_ahead(&mut self, length: usize) -> Result<(), CommitError> {
        if self.ahead.len() >= length {
            return Ok(());
        }
        let from = self.offset - self.ahead.len() as u64;
        let upto = self.bytes.min(from + length.max(self.step) as u64);
        if upto < from + length as u64 {
            return Err(self.corrupt(format!("{length} more bytes of file")));
        }
        let read = self.folder.get_range(&self.name, from..upto).map_err(|error| match error.kind() {
            ErrorKind::NotFound => self.corrupt("the file, which is gone"),
            ErrorKind::OutOfRange => self.corrupt(format!("{} bytes of file", self.bytes)),
            _ => error.into(),
        });
        self.ahead = read?;
        self.offset = upto;
        Ok(())
    }

    /// The next pieces: a packed one, or some loose ones. Empty at the end.
    pub(super) fn next(&mut self) -> Result<Vec<Piece>, CommitError> {
        if self.ahead.is_empty() && self.offset == self.bytes {
            return Ok(Vec::new());
        }
        self.look_ahead(FRAME_LEN)?;
        let frame = self.ahead.slice(..FRAME_LEN);
        let u32_at = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().expect("4 bytes"));
        if crc32fast::hash(&frame[4..]) != u32_at(0) {
            return Err(self.corrupt("the frame's checksum"));
        }
        let first = StoredKey::from_bytes(frame[5..5 + KEY_LEN].try_into().expect("a key's length of bytes"));
        let (count, length) = (u32_at(5 + KEY_LEN), u32_at(9 + KEY_LEN) as usize);
        self.look_ahead(FRAME_LEN + length)?;
        let block = self.ahead.slice(FRAME_LEN..FRAME_LEN + length);
        let pieces = if frame[4] == NEIGHBOURS {
            // A copy: it may lie in memory for longer than what was read with it.
            check_block(&block)
                .map(|()| Packed::new(first, count, Bytes::copy_from_slice(&block)))
                .and_then(|packed| packed.ok_or_else(|| "a good number of keys".to_owned()))
                .map(|packed| vec![Piece::Packed(packed)])
        } else {
            unpack_group(&block).map(|values| values.into_iter().map(Piece::Loose).collect())
        };
        let pieces: Vec<Piece> = pieces.map_err(|expected| self.corrupt(expected))?;
        if pieces.is_empty() {
            return Err(self.corrupt("a frame with values"));
        }
        self.ahead.advance(FRAME_LEN + length);
        Ok(pieces)
    }
}
