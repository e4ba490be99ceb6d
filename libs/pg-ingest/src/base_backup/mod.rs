//! A data directory without its pages, made from keys at one LSN.
//!
//! ```text
//! header, control file ─► folders ─► PG_VERSIONs, relation maps, SLRU segments, two-phase files, init forks ─► sizes ─► first pages ─► end
//! ```

use ardent_api::page_service::{BackupItem, BaseBackupHeader};
use ardent_pg_format::{CheckPoint, ControlFile, PgMajor};
use ardent_types::{Key, Lsn};
use bytes::Bytes;

use crate::state::ReadState;

mod files;
mod first_pages;
mod folders;
mod relations;
mod slrus;

/// The point of a base backup, as the timeline knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupPoint {
    /// End of the last record that is in it.
    pub lsn: Lsn,
    /// Start of that record; [`Lsn::INVALID`] if not known.
    pub prev_lsn: Lsn,
}

/// No base backup can be made, or the receiver is gone. `R` is storage's error, `E` the receiver's.
#[derive(Debug, thiserror::Error)]
pub enum BackupError<R: std::error::Error + 'static, E: std::error::Error + 'static> {
    /// Storage could not be read.
    #[error("the state for a base backup can't be read")]
    State(#[source] R),
    /// A key without which no server starts is missing or damaged.
    #[error("{key} is missing or damaged: no base backup can be made at this LSN")]
    Damaged {
        /// The key.
        key: Key,
    },
    /// The receiver did not take an item.
    #[error("the base backup could not be handed over")]
    Receiver(#[source] E),
    /// Compression failed.
    #[error("{path} can't be compressed")]
    Compress {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// One base backup on its way out.
struct Backup<'a, S, F> {
    major: PgMajor,
    state: &'a S,
    emit: F,
    checkpoint: CheckPoint,
}

type BackupResult<S, E, T = ()> = Result<T, BackupError<<S as ReadState>::Error, E>>;

/// Gives `emit` all items of a base backup, in the order that [`BackupItem`] documents. `state` is the timeline at `point.lsn`. Folders
/// come with their parents before them. Memory: the list of relation sizes, and one file.
pub fn base_backup<S, E>(
    major: PgMajor,
    point: BackupPoint,
    state: &S,
    emit: impl FnMut(BackupItem) -> Result<(), E>,
) -> Result<(), BackupError<S::Error, E>>
where
    S: ReadState,
    E: std::error::Error + 'static,
{
    let read = |key: Key| {
        let content = state.get(key).map_err(BackupError::State)?;
        content.filter(|content| !content.is_empty()).ok_or(BackupError::Damaged { key })
    };
    let control_file = read(Key::ControlFile)?;
    let control = ControlFile::decode(&control_file).map_err(|_| BackupError::Damaged { key: Key::ControlFile })?;
    let checkpoint_bytes = read(Key::Checkpoint)?;
    let checkpoint =
        CheckPoint::decode(&checkpoint_bytes, major).map_err(|_| BackupError::Damaged { key: Key::Checkpoint })?;
    let header = BaseBackupHeader {
        lsn: point.lsn,
        prev_lsn: point.prev_lsn,
        system_id: control.system_id,
        pg_tli: checkpoint.tli,
        wal_segment_size: control.wal_segment_size,
        pg_major: major.number(),
        checkpoint_hex: hex::encode(&checkpoint_bytes),
    };
    let mut backup = Backup { major, state, emit, checkpoint };
    backup.item(BackupItem::Header(header))?;
    backup.item(BackupItem::ControlFile(control_file))?;
    let sizes = backup.relation_sizes()?;
    backup.folders(&sizes)?;
    backup.small_files()?;
    backup.slrus()?;
    backup.init_forks(&sizes)?;
    backup.relation_table(&sizes)?;
    backup.first_pages(&sizes)?;
    backup.item(BackupItem::End)
}

impl<S, F, E> Backup<'_, S, F>
where
    S: ReadState,
    E: std::error::Error + 'static,
    F: FnMut(BackupItem) -> Result<(), E>,
{
    fn item(&mut self, item: BackupItem) -> BackupResult<S, E> {
        (self.emit)(item).map_err(BackupError::Receiver)
    }

    /// A file, compressed. The level is the fastest: most of these bytes are zeros or nearly so.
    fn file(&mut self, path: String, content: &[u8]) -> BackupResult<S, E> {
        match zstd::bulk::compress(content, 1) {
            Ok(zstd) => self.item(BackupItem::File { path, zstd: Bytes::from(zstd) }),
            Err(source) => Err(BackupError::Compress { path, source }),
        }
    }

    fn get(&self, key: Key) -> BackupResult<S, E, Option<Bytes>> {
        let content = self.state.get(key).map_err(BackupError::State)?;
        Ok(content.filter(|content| !content.is_empty()))
    }

    /// The keys from `first` to `last` that have content.
    fn scan(&self, first: Key, last: Key) -> BackupResult<S, E, Vec<(Key, Bytes)>> {
        let mut found = self.state.scan(first..=last).map_err(BackupError::State)?;
        found.retain(|(_, content)| !content.is_empty());
        Ok(found)
    }
}
