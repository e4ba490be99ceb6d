//! Replication: slots, and the stream of WAL or of what a plugin makes of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use postgres_protocol::message::frontend;

use ardent_types::sql::quoted;
use ardent_types::{Lsn, PgTli, SystemId};

use crate::connection::{Connection, QueryResult};
use crate::error::WireError;
use crate::handshake::unexpected;
use crate::message::Fields;

/// What `IDENTIFY_SYSTEM` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// System identifier.
    pub system_id: SystemId,
    /// The server's Postgres timeline.
    pub tli: PgTli,
    /// Its flush position.
    pub flush_lsn: Lsn,
}

/// What `READ_REPLICATION_SLOT` says of a physical slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// WAL from here on is kept, if any is.
    pub restart_lsn: Option<Lsn>,
    /// On this Postgres timeline.
    pub restart_tli: Option<PgTli>,
}

/// A logical slot that was just made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogicalSlot {
    /// What commits from here on is decoded.
    pub consistent_lsn: Lsn,
    /// Shows what was committed before, to sessions that import it for as long as the connection that made the slot is left alone.
    pub snapshot: String,
}

/// How long a slot is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotLifetime {
    /// Until it is dropped.
    Permanent,
    /// As long as the connection.
    Temporary,
}

/// A message of a replication stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicationMessage {
    /// WAL.
    Wal {
        /// Where the data starts.
        start: Lsn,
        /// How far the server has flushed.
        server_flush_lsn: Lsn,
        /// The bytes; cut anywhere.
        data: Bytes,
    },
    /// Sign of life.
    Keepalive {
        /// How far the server has sent.
        server_sent_lsn: Lsn,
        /// Whether the server wants a status at once.
        reply_requested: bool,
    },
    /// The server ended the stream: it shuts down, or its Postgres timeline ended at a switch to another.
    End {
        /// The timeline that follows and where it starts, if that is why.
        next_timeline: Option<(PgTli, Lsn)>,
    },
}

/// What a standby reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StandbyStatus {
    /// First byte not yet written.
    pub write_lsn: Lsn,
    /// First byte not yet durable. Synchronous commits wait for this, and slots advance to it.
    pub flush_lsn: Lsn,
    /// First byte not yet applied.
    pub apply_lsn: Lsn,
    /// Ask the server for a keepalive.
    pub reply_requested: bool,
}

impl Connection {
    /// Identifies the server. Needs a replication connection.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, WireError> {
        let result = self.query("IDENTIFY_SYSTEM").await?;
        Ok(SystemIdentity {
            system_id: SystemId::new(parsed(&result, "systemid")?),
            tli: PgTli::new(parsed(&result, "timeline")?),
            flush_lsn: parsed(&result, "xlogpos")?,
        })
    }

    /// Makes a permanent physical slot that keeps WAL from now on.
    pub async fn create_physical_slot(&mut self, name: &str) -> Result<(), WireError> {
        let command = format!("CREATE_REPLICATION_SLOT {} PHYSICAL RESERVE_WAL", quoted(name));
        self.query(&command).await.map(drop)
    }

    /// Makes a slot for the plugin `pgoutput`, and a snapshot of where it begins. Needs a connection for logical replication. The
    /// snapshot is gone with the next command on this connection.
    pub async fn create_logical_slot(&mut self, name: &str, lifetime: SlotLifetime) -> Result<LogicalSlot, WireError> {
        let temporary = if lifetime == SlotLifetime::Temporary { "TEMPORARY " } else { "" };
        let name = quoted(name);
        // The form that servers before 15 know as well.
        let command = format!("CREATE_REPLICATION_SLOT {name} {temporary}LOGICAL pgoutput EXPORT_SNAPSHOT");
        let result = self.query(&command).await?;
        Ok(LogicalSlot {
            consistent_lsn: parsed(&result, "consistent_point")?,
            snapshot: parsed(&result, "snapshot_name")?,
        })
    }

    /// Streams what commits from `start` on, as the plugin `pgoutput` writes it in version 1 of its protocol, of the tables of a
    /// publication.
    pub async fn start_logical(
        mut self,
        slot: &str,
        start: Lsn,
        publication: &str,
    ) -> Result<ReplicationStream, WireError> {
        // A list of names within a string: quotes of both kinds are doubled.
        let publications = quoted(publication).replace('\'', "''");
        let slot = quoted(slot);
        let options = format!("proto_version '1', publication_names '{publications}'");
        self.send_query(&format!("START_REPLICATION SLOT {slot} LOGICAL {start} ({options})")).await?;
        match self.messages.expect().await?.tag {
            b'W' => Ok(ReplicationStream { connection: self, ended: false }),
            tag => Err(unexpected(tag, "the start of replication")),
        }
    }

    /// Drops a slot; an error if another connection uses it.
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), WireError> {
        self.query(&format!("DROP_REPLICATION_SLOT {}", quoted(name))).await.map(drop)
    }

    /// The state of a physical slot; `None` if there is no such slot.
    pub async fn read_slot(&mut self, name: &str) -> Result<Option<SlotState>, WireError> {
        let result = self.query(&format!("READ_REPLICATION_SLOT {}", quoted(name))).await?;
        if result.value("slot_type").is_none() {
            return Ok(None);
        }
        let restart_lsn = result.value("restart_lsn").map(|_| parsed(&result, "restart_lsn")).transpose()?;
        let restart_tli = result.value("restart_tli").map(|_| parsed(&result, "restart_tli")).transpose()?;
        Ok(Some(SlotState { restart_lsn, restart_tli: restart_tli.map(PgTli::new) }))
    }

    /// Starts streaming WAL from `start`, through a slot if one is named. The timeline, if given, must be one of the server's history.
    pub async fn start_replication(
        mut self,
        slot: Option<&str>,
        start: Lsn,
        tli: Option<PgTli>,
    ) -> Result<ReplicationStream, WireError> {
        let slot = slot.map(|name| format!("SLOT {} ", quoted(name))).unwrap_or_default();
        let timeline = tli.map(|tli| format!(" TIMELINE {tli}")).unwrap_or_default();
        self.send_query(&format!("START_REPLICATION {slot}PHYSICAL {start}{timeline}")).await?;
        let message = self.messages.expect().await?;
        match message.tag {
            b'W' => Ok(ReplicationStream { connection: self, ended: false }),
            // A timeline that ends exactly at the start: there is nothing to stream, only the next one to be told.
            b'T' => {
                Err(WireError::protocol(format!("nothing to stream at {start}: the server's timeline ended there")))
            }
            tag => Err(unexpected(tag, "the start of replication")),
        }
    }
}

/// A running stream of WAL.
#[derive(Debug)]
pub struct ReplicationStream {
    connection: Connection,
    ended: bool,
}

impl ReplicationStream {
    /// The next message. Cancel-safe. After [`ReplicationMessage::End`], [`WireError::Closed`].
    pub async fn recv(&mut self) -> Result<ReplicationMessage, WireError> {
        if self.ended {
            return Err(WireError::Closed);
        }
        let message = self.connection.messages.expect().await?;
        match message.tag {
            b'd' => parse_copy_data(message.body),
            b'c' => self.end().await,
            // A server that shuts down completes the command without ending the copy first.
            b'C' => {
                self.ended = true;
                Ok(ReplicationMessage::End { next_timeline: None })
            }
            tag => Err(unexpected(tag, "replication")),
        }
    }

    /// Reports what has been written, flushed and applied.
    pub async fn send_status(&mut self, status: StandbyStatus) -> Result<(), WireError> {
        let mut out = BytesMut::with_capacity(40);
        out.put_u8(b'd');
        out.put_u32(4 + 34);
        out.put_u8(b'r');
        for lsn in [status.write_lsn, status.flush_lsn, status.apply_lsn] {
            out.put_u64(lsn.get());
        }
        out.put_i64(postgres_time_us());
        out.put_u8(u8::from(status.reply_requested));
        self.connection.messages.write(&out).await
    }

    async fn end(&mut self) -> Result<ReplicationMessage, WireError> {
        self.ended = true;
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        self.connection.messages.write(&out).await?;
        let mut next_timeline = None;
        loop {
            let result = match self.connection.messages.read().await {
                Ok(message) if message.tag == b'T' => {
                    // Rows follow: read them with the description that has just come.
                    read_next_timeline(&mut self.connection).await
                }
                Ok(message) if message.tag == b'Z' => break,
                Ok(_) => continue,
                // A server that shuts down may just go away here.
                Err(WireError::Closed | WireError::Io(_)) => break,
                Err(error) => return Err(error),
            };
            next_timeline = Some(result?);
        }
        Ok(ReplicationMessage::End { next_timeline })
    }
}

/// The row that follows the end of a timeline: the next timeline and where it starts.
async fn read_next_timeline(connection: &mut Connection) -> Result<(PgTli, Lsn), WireError> {
    let rows = connection.read_result().await?.rows;
    let value = |index: usize| rows.first().and_then(|row| row.get(index)).and_then(Option::as_deref);
    let tli = value(0).and_then(|text| text.parse().ok());
    let lsn = value(1).and_then(|text| text.parse().ok());
    match (tli, lsn) {
        (Some(tli), Some(lsn)) => Ok((PgTli::new(tli), lsn)),
        _ => Err(WireError::protocol("an end of timeline that names no next one")),
    }
}

fn parse_copy_data(body: Bytes) -> Result<ReplicationMessage, WireError> {
    let mut fields = Fields::new(body);
    match fields.u8()? {
        b'w' => {
            let start = Lsn::new(fields.u64()?);
            let server_flush_lsn = Lsn::new(fields.u64()?);
            fields.u64()?;
            Ok(ReplicationMessage::Wal { start, server_flush_lsn, data: fields.rest() })
        }
        b'k' => {
            let server_sent_lsn = Lsn::new(fields.u64()?);
            fields.u64()?;
            Ok(ReplicationMessage::Keepalive { server_sent_lsn, reply_requested: fields.u8()? != 0 })
        }
        kind => Err(unexpected(kind, "replication")),
    }
}

/// Microseconds since Postgres's epoch, 2000-01-01.
fn postgres_time_us() -> i64 {
    const EPOCH: Duration = Duration::from_secs(946_684_800);
    let since = SystemTime::now().duration_since(UNIX_EPOCH + EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// The value of a column in the first row.
pub(crate) fn parsed<T: std::str::FromStr>(result: &QueryResult, column: &str) -> Result<T, WireError> {
    let value = result.value(column).and_then(|text| text.parse().ok());
    value.ok_or_else(|| WireError::protocol(format!("no usable {column} in the server's answer")))
}
