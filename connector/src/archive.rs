//! Production's archived WAL, which a command of the operator's fetches: for what production itself has removed.

use std::io::{ErrorKind, SeekFrom};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::process::Command;

use ardent_pg_format::segment::wal_file_name;
use ardent_pg_format::wal::{LONG_HEADER_LEN, WalPageHeader};
use ardent_pg_wire::{Connection, SystemIdentity, TimelineHistory};
use ardent_types::{Lsn, PgTli, WalSegmentSize};
use ardent_wal_client::TimelineSpec;

use crate::config::ConnectorConfig;
use crate::error::ConnectorError;
use crate::follow::{Progress, STALL_CHECK, Writer};
use crate::position::drop_slot;
use crate::source_stream::{End, compared_from, held};

/// WAL goes to the safekeepers in pieces of this size.
const PIECE_BYTES: u64 = 128 << 10;
/// From this exit code on the command did not run, or was ended: that says nothing about the file. As for Postgres's `restore_command`.
const EXIT_CODE_FATAL: i32 = 126;
/// How much of what the command printed goes into an error.
const MESSAGE_BYTES_MAX: u64 = 500;
/// Longest time for one file.
const COMMAND_DEADLINE: Duration = Duration::from_secs(600);

/// A shell command that puts a file of an archive where it is told: `%f` is the file's name, `%p` the path to put it at, `%n` the
/// connector's name and `%%` a percent sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreCommand(String);

/// A command that cannot fetch a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreCommandError {
    /// It does not say what to fetch and where to put it.
    #[error("the command must contain %f, the file's name, and %p, the path to put it at")]
    Missing,
    /// A placeholder that does not exist.
    #[error("%{0} means nothing here: write %f, %p, %n, or %% for a percent sign")]
    Unknown(String),
}

impl std::str::FromStr for RestoreCommand {
    type Err = RestoreCommandError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let command = RestoreCommand(text.to_owned());
        let expanded = |file, path| command.expand(file, path, "");
        if expanded("a", "")? == expanded("b", "")? || expanded("", "a")? == expanded("", "b")? {
            return Err(RestoreCommandError::Missing);
        }
        Ok(command)
    }
}

impl RestoreCommand {
    fn expand(&self, file: &str, path: &str, connector: &str) -> Result<String, RestoreCommandError> {
        let mut out = String::with_capacity(self.0.len() + path.len());
        let mut rest = self.0.chars();
        while let Some(next) = rest.next() {
            if next != '%' {
                out.push(next);
                continue;
            }
            match rest.next() {
                Some('f') => out.push_str(file),
                Some('p') => out.push_str(path),
                Some('n') => out.push_str(connector),
                Some('%') => out.push('%'),
                other => return Err(RestoreCommandError::Unknown(other.map(String::from).unwrap_or_default())),
            }
        }
        Ok(out)
    }
}

/// The archive of one connector's production.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// What fetches a file.
    pub command: RestoreCommand,
    /// The connector's name.
    pub connector: String,
}

/// What the archive gave.
#[derive(Debug)]
enum Fetched {
    /// A whole segment.
    Segment(Segment),
    /// It does not have it; what the command printed.
    Missing(String),
}

/// A segment's file. It goes when this is dropped.
#[derive(Debug)]
struct Segment {
    file: File,
    name: String,
    _folder: TempDir,
}

impl Segment {
    /// So many bytes from `offset` on.
    async fn read(&mut self, offset: u64, length: usize) -> Result<Bytes, ConnectorError> {
        let read = async {
            self.file.seek(SeekFrom::Start(offset)).await?;
            let mut bytes = vec![0; length];
            self.file.read_exact(&mut bytes).await.map(|_| Bytes::from(bytes))
        };
        read.await.map_err(|error| ConnectorError::Archive {
            file: self.name.clone(),
            message: format!("it cannot be read: {error}"),
        })
    }
}

/// Whether the archive has what comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It has it. Production has flushed up to here, and so has nothing to do with what the archive has behind that.
    There { flushed: Lsn, history: TimelineHistory },
    /// Not this file; what the command printed.
    Missing { file: String, message: String },
}

impl Archive {
    /// Appends what the archive has from the end of the log on, and says how far it is. Before that the connector's slot is made anew, so
    /// that production keeps what it has from now on; it stays as it is if the archive has nothing.
    pub(crate) async fn catch_up(
        &self,
        config: &ConnectorConfig,
        writer: &Writer,
        mut received: impl FnMut(Lsn),
    ) -> Result<(), ConnectorError> {
        let end = End { committed: *writer.proposer.committed().borrow(), next: writer.proposer.next_lsn() };
        let (flushed, history) = match self.next(config, &writer.spec, end).await? {
            Next::There { flushed, history } => (flushed, history),
            Next::Missing { file, message } => return Err(ConnectorError::NotArchived { file, message }),
        };
        let (mut connection, _) = production(config, &writer.spec).await?;
        drop_slot(&mut connection, &config.slot_name()).await?;
        connection.create_physical_slot(&config.slot_name()).await?;
        // It may have no more WAL senders, and is told to stop sometimes.
        drop(connection);
        let size = writer.spec.wal_segment_size;
        let mut progress = Progress::new(writer);
        loop {
            let next = writer.proposer.next_lsn();
            if segment_end(next, size) > flushed {
                return Ok(());
            }
            match self.fetch(&writer.spec, history.tli_of_segment(next, size), next).await? {
                Fetched::Segment(segment) => append(writer, segment, next, &mut progress).await?,
                Fetched::Missing(_) => return Ok(()),
            }
            let up_to = writer.proposer.next_lsn();
            tracing::info!(%up_to, "WAL came from production's archive");
            received(up_to);
        }
    }

    /// Whether it has the segment that comes next, on the timeline that production's history says, and of the history that is here.
    pub(crate) async fn next(
        &self,
        config: &ConnectorConfig,
        spec: &TimelineSpec,
        end: End,
    ) -> Result<Next, ConnectorError> {
        let (mut connection, system) = production(config, spec).await?;
        let history = connection.timeline_history(system.tli).await?;
        drop(connection);
        let size = spec.wal_segment_size;
        let tli_of = |lsn| history.tli_of_segment(lsn, size);
        self.compare(config, spec, end.committed, tli_of).await?;
        let file = wal_file_name(tli_of(end.next), end.next.segment_number(size), size);
        if let Fetched::Missing(message) = self.fetch(spec, tli_of(end.next), end.next).await? {
            return Ok(Next::Missing { file, message });
        }
        // Asked after that was there: what production archives it has flushed before.
        let (_, system) = production(config, spec).await?;
        if segment_end(end.next, size) > system.flush_lsn {
            return Err(ConnectorError::ArchiveAhead { file, production: system.flush_lsn });
        }
        Ok(Next::There { flushed: system.flush_lsn, history })
    }

    /// Holds the end of the log against what the archive has there.
    async fn compare(
        &self,
        config: &ConnectorConfig,
        spec: &TimelineSpec,
        committed: Lsn,
        tli_of: impl Fn(Lsn) -> PgTli,
    ) -> Result<(), ConnectorError> {
        let size = spec.wal_segment_size;
        // Within one segment.
        let Some(from) = compared_from(spec, committed)
            .into_iter()
            .find(|from| from.segment_number(size) == Lsn::new(committed.get() - 1).segment_number(size))
        else {
            return Ok(());
        };
        let Fetched::Segment(mut segment) = self.fetch(spec, tli_of(from), from).await? else { return Ok(()) };
        let Some(ours) = held(config, from, committed).await? else { return Ok(()) };
        if segment.read(from.segment_offset(size), ours.len()).await? != ours {
            return Err(ConnectorError::OtherHistory { at: committed });
        }
        Ok(())
    }

    /// Fetches the segment of `lsn`, and looks whether it is that of this cluster.
    async fn fetch(&self, spec: &TimelineSpec, tli: PgTli, lsn: Lsn) -> Result<Fetched, ConnectorError> {
        let size = spec.wal_segment_size;
        let file = wal_file_name(tli, lsn.segment_number(size), size);
        let failed = |message: String| ConnectorError::Archive { file: file.clone(), message };
        let folder = tempfile::Builder::new().prefix("ardent-restore-").tempdir();
        let folder = folder.map_err(|error| failed(format!("no temporary folder can be made: {error}")))?;
        let path = folder.path().join(&file);
        let text = self.command.expand(&file, &path.to_string_lossy(), &self.connector);
        let text = text.map_err(|error| failed(error.to_string()))?;
        let messages = folder.path().join("messages");
        let stderr = std::fs::File::create(&messages);
        let stderr = stderr.map_err(|error| failed(format!("no temporary file can be made: {error}")))?;
        let mut command = Command::new("sh");
        ardent_open_files::as_before(command.as_std_mut());
        command.args(["-c", &text]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).kill_on_drop(true);
        let ended = tokio::time::timeout(COMMAND_DEADLINE, command.status()).await;
        let ended =
            ended.map_err(|_| failed(format!("the command did not end within {} s", COMMAND_DEADLINE.as_secs())))?;
        let status = ended.map_err(|error| failed(format!("the shell cannot be run: {error}")))?;
        let printed =
            beginning(&messages).await.map_err(|error| failed(format!("what it printed is lost: {error}")))?;
        match status.code() {
            Some(0) => {}
            Some(code) if code < EXIT_CODE_FATAL => return Ok(Fetched::Missing(printed)),
            _ => return Err(failed(format!("the command ended with {status}: {printed}"))),
        }
        let opened = match File::open(&path).await {
            Ok(file) => file.metadata().await.map(|facts| (file, facts.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Fetched::Missing("the command succeeded, and put no file there".to_owned()));
            }
            Err(error) => Err(error),
        };
        let (opened, length) = opened.map_err(|error| failed(format!("it cannot be opened: {error}")))?;
        if length != size.bytes() {
            return Err(failed(format!("it has {length} bytes where a segment has {}", size.bytes())));
        }
        let mut segment = Segment { file: opened, name: file.clone(), _folder: folder };
        let header = WalPageHeader::read_long(&segment.read(0, LONG_HEADER_LEN).await?);
        let header = header.ok_or_else(|| failed("it does not begin with a header of a WAL file".to_owned()))?;
        let start = lsn.segment_start(size);
        if header.address != start || header.tli != tli {
            let (address, found) = (header.address, header.tli);
            return Err(failed(format!("it begins at {address} on timeline {found}, not at {start} on {tli}")));
        }
        match header.long {
            Some(long) if long.system_id == spec.system_id => Ok(Fetched::Segment(segment)),
            long => {
                let found = long.map(|long| long.system_id.to_string()).unwrap_or_default();
                Err(failed(format!("it is of another cluster (system identifier {found}, not {})", spec.system_id)))
            }
        }
    }
}

/// Production, if it is the cluster that is followed still.
async fn production(
    config: &ConnectorConfig,
    spec: &TimelineSpec,
) -> Result<(Connection, SystemIdentity), ConnectorError> {
    let mut connection = config.replication().await?;
    let system = connection.identify_system().await?;
    if system.system_id != spec.system_id {
        return Err(ConnectorError::OtherCluster { expected: spec.system_id, found: system.system_id });
    }
    Ok((connection, system))
}

fn segment_end(lsn: Lsn, size: WalSegmentSize) -> Lsn {
    lsn.segment_start(size).advance(size.bytes())
}

/// Appends a segment from `from` on.
async fn append(
    writer: &Writer,
    mut segment: Segment,
    from: Lsn,
    progress: &mut Progress,
) -> Result<(), ConnectorError> {
    let size = writer.spec.wal_segment_size;
    let end = segment_end(from, size);
    let mut checks = tokio::time::interval(STALL_CHECK);
    let mut at = from;
    while at < end {
        let length = PIECE_BYTES.min(end.saturating_sub(at));
        let piece = segment.read(at.segment_offset(size), length as usize).await?;
        // It waits as long as the quorum is behind.
        let append = writer.proposer.append(at, piece);
        tokio::pin!(append);
        loop {
            tokio::select! {
                appended = &mut append => break appended?,
                _ = checks.tick() => progress.check(writer)?,
            }
        }
        at = at.advance(length);
    }
    Ok(())
}

/// What a file begins with, as text.
async fn beginning(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path).await?.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes).await?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_says_what_to_fetch_and_where_to_put_it() {
        let command: RestoreCommand = "cp \"/archive/%n/%f\" \"%p\" # 100 %%".parse().expect("complete");
        let expanded = command.expand("0001", "/tmp/x", "shop").expect("known placeholders");
        assert_eq!(expanded, "cp \"/archive/shop/0001\" \"/tmp/x\" # 100 %");
        let parse = |text: &str| text.parse::<RestoreCommand>().expect_err("incomplete").to_string();
        assert!(parse("cp /archive/%f /tmp").contains("%p"));
        assert!(parse("cp /archive/%%f %p").contains("%f"));
        assert!(parse("cp %f %p %r").contains("%r"));
        assert!(parse("cp %f %p %").contains("%%"));
    }
}
