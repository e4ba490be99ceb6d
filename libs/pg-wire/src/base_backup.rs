//! `BASE_BACKUP`: the files of a running server as tar archives, in the archive protocol of Postgres 15 and later.

use bytes::Bytes;

use ardent_types::{Lsn, PgTli};

use crate::connection::{Connection, QueryResult};
use crate::error::WireError;
use crate::handshake::unexpected;
use crate::message::Fields;

/// How soon the checkpoint at a backup's start is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointMode {
    /// As fast as the disks allow.
    Fast,
    /// Spread out as regular checkpoints are, so that the server hardly notices; takes minutes on a busy one.
    Spread,
}

/// How to take a backup.
#[derive(Clone, Debug)]
pub struct BaseBackupOptions {
    /// Shown in the server's `backup_label`.
    pub label: String,
    /// Checkpoint at the start.
    pub checkpoint: CheckpointMode,
    /// Most bytes per second, in KiB (32 to 1,048,576); no limit when `None`.
    pub max_rate_kib: Option<u32>,
}

/// A tablespace in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupTablespace {
    /// OID; `None` for the data directory itself.
    pub oid: Option<u32>,
    /// Its folder on the server.
    pub location: Option<String>,
    /// Estimated size.
    pub size_kib: u64,
}

/// What comes next in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupEvent {
    /// A tar archive begins: `base.tar`, or `OID.tar` of a tablespace.
    Archive {
        /// Its name.
        name: String,
    },
    /// Bytes of the current archive, cut anywhere.
    Data(Bytes),
    /// Bytes that the server has read so far.
    Progress(u64),
    /// The backup is complete, and consistent once WAL up to here is applied.
    End {
        /// End of the backup.
        end_lsn: Lsn,
        /// Postgres timeline of that.
        tli: PgTli,
    },
}

/// A running backup.
#[derive(Debug)]
pub struct BaseBackup {
    connection: Connection,
    start_lsn: Lsn,
    tli: PgTli,
    tablespaces: Vec<BackupTablespace>,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Archives,
    Ended,
}

impl Connection {
    /// Starts a base backup; returns once the checkpoint at its start is done, which can take minutes if it is spread.
    pub async fn base_backup(mut self, options: &BaseBackupOptions) -> Result<BaseBackup, WireError> {
        let checkpoint = match options.checkpoint {
            CheckpointMode::Fast => "fast",
            CheckpointMode::Spread => "spread",
        };
        let rate = options.max_rate_kib.map(|kib| format!(", MAX_RATE {kib}")).unwrap_or_default();
        // WAL comes through a slot, so neither WAL in the backup nor the wait for the archive is wanted. Checksums are verified where
        // the pages are imported.
        let command = format!(
            "BASE_BACKUP (LABEL '{}', PROGRESS true, CHECKPOINT '{checkpoint}', WAIT false, WAL false, VERIFY_CHECKSUMS false, \
             MANIFEST 'no', TABLESPACE_MAP true{rate})",
            options.label.replace('\'', "''"),
        );
        self.send_query(&command).await?;
        let (start_lsn, tli) = position(&self.read_result().await?)?;
        let tablespaces = tablespaces(&self.read_result().await?)?;
        match self.messages.expect().await?.tag {
            b'H' => Ok(BaseBackup { connection: self, start_lsn, tli, tablespaces, state: State::Archives }),
            tag => Err(unexpected(tag, "the start of a base backup")),
        }
    }
}

impl BaseBackup {
    /// Redo of the backup starts here.
    pub fn start_lsn(&self) -> Lsn {
        self.start_lsn
    }

    /// The server's Postgres timeline at the start.
    pub fn tli(&self) -> PgTli {
        self.tli
    }

    /// What it consists of.
    pub fn tablespaces(&self) -> &[BackupTablespace] {
        &self.tablespaces
    }

    /// Estimated size of everything.
    pub fn total_bytes(&self) -> u64 {
        self.tablespaces.iter().map(|tablespace| tablespace.size_kib.saturating_mul(1024)).sum()
    }

    /// What comes next. After [`BackupEvent::End`], [`WireError::Closed`].
    pub async fn next(&mut self) -> Result<BackupEvent, WireError> {
        if self.state == State::Ended {
            return Err(WireError::Closed);
        }
        loop {
            let message = self.connection.messages.expect().await?;
            match message.tag {
                b'd' => {
                    if let Some(event) = archive_event(message.body)? {
                        return Ok(event);
                    }
                }
                b'c' => return self.end().await,
                tag => return Err(unexpected(tag, "a base backup")),
            }
        }
    }

    async fn end(&mut self) -> Result<BackupEvent, WireError> {
        self.state = State::Ended;
        let (end_lsn, tli) = position(&self.connection.read_result().await?)?;
        self.connection.read_ready().await?;
        Ok(BackupEvent::End { end_lsn, tli })
    }
}

fn archive_event(body: Bytes) -> Result<Option<BackupEvent>, WireError> {
    let mut fields = Fields::new(body);
    Ok(match fields.u8()? {
        b'n' => Some(BackupEvent::Archive { name: fields.text()? }),
        b'd' => Some(BackupEvent::Data(fields.rest())),
        b'p' => Some(BackupEvent::Progress(fields.u64()?)),
        // A manifest, which was not asked for.
        b'm' => None,
        kind => return Err(unexpected(kind, "a base backup")),
    })
}

fn position(result: &QueryResult) -> Result<(Lsn, PgTli), WireError> {
    let lsn = crate::replication::parsed(result, "recptr")?;
    Ok((lsn, PgTli::new(crate::replication::parsed(result, "tli")?)))
}

fn tablespaces(result: &QueryResult) -> Result<Vec<BackupTablespace>, WireError> {
    let row = |row: &Vec<Option<String>>| {
        let [oid, location, size] = row.as_slice() else {
            return Err(WireError::protocol("a list of tablespaces with other columns"));
        };
        let size_kib = size.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0);
        let oid = oid.as_deref().map(str::parse).transpose();
        let oid = oid.map_err(|_| WireError::protocol("a tablespace whose OID is no number"))?;
        Ok(BackupTablespace { oid, location: location.clone(), size_kib })
    };
    result.rows.iter().map(row).collect()
}
