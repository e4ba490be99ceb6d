//! The stream that a compute's data directory is made from.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use ardent_types::{BLCKSZ, BlockNumber, Lsn, PgTli, RelTag, SystemId, WalSegmentSize};

use super::codec::{put_rel, take_rel};
use crate::frame::{DecodeError, Fields, put_blob, put_json, take_json};

const ITEM_HEADER: u8 = 0;
const ITEM_CONTROL_FILE: u8 = 1;
const ITEM_DIRECTORY: u8 = 2;
const ITEM_FILE: u8 = 3;
const ITEM_RELATIONS: u8 = 4;
const ITEM_PAGE: u8 = 5;
const ITEM_END: u8 = 6;

/// A part of a base backup, in this order: header, control file, directories and files, relations, pages, end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupItem {
    /// Comes first.
    Header(BaseBackupHeader),
    /// `pg_control` as it was imported (8,192 bytes). The agent sets state, checkpoint and settings in it.
    ControlFile(Bytes),
    /// An empty folder to make.
    Directory(String),
    /// A file and its content: `PG_VERSION`, relation maps, SLRU segments, two-phase files, init forks (as MAIN too).
    File {
        /// Path below the data directory.
        path: String,
        /// Content, compressed with zstd.
        zstd: Bytes,
    },
    /// Relation forks and their sizes: to be made as sparse files and entered into the presence map.
    /// Many of these items may come; init forks and main forks of unlogged relations are not among them.
    Relations(Vec<(RelTag, BlockNumber)>),
    /// A page that every start reads, sent ahead.
    Page {
        /// Relation fork.
        rel: RelTag,
        /// Block.
        block: BlockNumber,
        /// [`BLCKSZ`] bytes.
        page: Bytes,
    },
    /// The backup is complete.
    End,
}

/// The facts a data directory is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseBackupHeader {
    /// The backup's LSN: a record end.
    pub lsn: Lsn,
    /// Start of the record that ends there ([`Lsn::INVALID`] if not known: nothing is ingested on this timeline yet).
    pub prev_lsn: Lsn,
    /// System identifier.
    pub system_id: SystemId,
    /// Postgres's timeline id.
    pub pg_tli: PgTli,
    /// WAL segment size in bytes.
    pub wal_segment_size: WalSegmentSize,
    /// Major version.
    pub pg_major: u32,
    /// The checkpoint fields as of `lsn`: Postgres's `CheckPoint` struct of this major, in hexadecimal.
    pub checkpoint_hex: String,
}

impl BackupItem {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        match self {
            BackupItem::Header(header) => {
                out.put_u8(ITEM_HEADER);
                put_json(out, header);
            }
            BackupItem::ControlFile(bytes) => {
                out.put_u8(ITEM_CONTROL_FILE);
                put_blob(out, bytes);
            }
            BackupItem::Directory(path) => {
                out.put_u8(ITEM_DIRECTORY);
                put_blob(out, path.as_bytes());
            }
            BackupItem::File { path, zstd } => {
                out.put_u8(ITEM_FILE);
                put_blob(out, path.as_bytes());
                put_blob(out, zstd);
            }
            BackupItem::Relations(relations) => {
                out.put_u8(ITEM_RELATIONS);
                out.put_u32_le(u32::try_from(relations.len()).expect("relations fit a frame"));
                for (rel, nblocks) in relations {
                    put_rel(out, rel);
                    out.put_u32_le(*nblocks);
                }
            }
            BackupItem::Page { rel, block, page } => {
                out.put_u8(ITEM_PAGE);
                put_rel(out, rel);
                out.put_u32_le(*block);
                put_blob(out, page);
            }
            BackupItem::End => out.put_u8(ITEM_END),
        }
    }

    pub(super) fn decode(fields: &mut Fields) -> Result<BackupItem, DecodeError> {
        Ok(match fields.u8()? {
            ITEM_HEADER => BackupItem::Header(take_json(fields, "base backup header")?),
            ITEM_CONTROL_FILE => BackupItem::ControlFile(fields.blob()?),
            ITEM_DIRECTORY => BackupItem::Directory(fields.string("path")?),
            ITEM_FILE => BackupItem::File { path: fields.string("path")?, zstd: fields.blob()? },
            ITEM_RELATIONS => {
                let count = fields.u32()? as usize;
                let mut relations = Vec::with_capacity(count.min(fields.remaining() / 17));
                for _ in 0..count {
                    relations.push((take_rel(fields)?, fields.u32()?));
                }
                BackupItem::Relations(relations)
            }
            ITEM_PAGE => {
                let (rel, block, page) = (take_rel(fields)?, fields.u32()?, fields.blob()?);
                if page.len() != BLCKSZ {
                    return Err(fields.bad("length of page"));
                }
                BackupItem::Page { rel, block, page }
            }
            ITEM_END => BackupItem::End,
            _ => return Err(fields.bad("base backup item")),
        })
    }
}
