//! Standard streaming replication: `pg_receivewal` and its like read committed WAL from here.
//!
//! ```text
//!  startup (tenant, timeline) ──► password (a token) ──► IDENTIFY_SYSTEM, SHOW, READ_REPLICATION_SLOT, ...
//!                                                    └─► START_REPLICATION ──► WAL as it is committed
//! ```
//!
//! The timeline is named by the database `TENANT/TIMELINE`, or, for clients that cannot name one, by
//! `options=-c ardent.tenant=TENANT -c ardent.timeline=TIMELINE`. The password is a token that may read it; its user name is not
//! looked at. One slot is always there: `oldest`, which stands for the oldest WAL that is kept and holds nothing back.

mod command;
mod encryption;
mod wire;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use ardent_api::token::{Rights, Service};
use ardent_types::{Lsn, TenantId, TimelineId, WalSegmentSize};

use crate::connection::{Shared, send_all};
use crate::disk_worker::Key;
use crate::follow::{CommittedWal, oldest_readable};
use crate::timeline::TimelineView;
use command::Command;
pub(crate) use encryption::agree_on_tls;
pub(crate) use wire::WireError;
use wire::{BYTEA, INT4, Messages, Opening, TEXT};

/// The slot that is always there.
const OLDEST_SLOT: &str = "oldest";
/// A client must have given its password after this long.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(10);
/// A client is told the position at least this often.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Seconds from the Unix epoch to Postgres's, 2000-01-01.
const POSTGRES_EPOCH_S: u64 = 946_684_800;

/// Serves one connection until either side ends it.
pub(crate) async fn serve<R, W>(shared: Arc<Shared>, reader: R, mut writer: W) -> Result<(), WireError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut messages = Messages::new(reader);
    let started = tokio::time::timeout(STARTUP_TIMEOUT, start(&shared, &mut messages, &mut writer)).await;
    match started.map_err(|_| WireError::TimedOut)? {
        Ok(Some(key)) => Session { shared, key, messages, writer }.run().await,
        Ok(None) => Ok(()),
        Err(WireError::Refused(message)) => {
            let mut out = BytesMut::new();
            wire::put_error(&mut out, "FATAL", "28000", &message);
            send_all(&mut writer, &out).await?;
            Err(WireError::Refused(message))
        }
        Err(error) => Err(error),
    }
}

/// From the first byte to `ReadyForQuery`. `None`: the client went away.
async fn start<R, W>(shared: &Shared, messages: &mut Messages<R>, writer: &mut W) -> Result<Option<Key>, WireError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let parameters = loop {
        match messages.opening().await? {
            None => return Ok(None),
            Some(Opening::Encryption) => send_all(writer, b"N").await?,
            Some(Opening::Startup(parameters)) => break parameters,
        }
    };
    let mut out = BytesMut::new();
    wire::put_password_request(&mut out);
    send_all(writer, &out).await?;
    out.clear();
    let token = match messages.next().await? {
        None => return Ok(None),
        Some((b'p', password)) => wire::text(&password)?.to_owned(),
        Some(_) => return Err(WireError::Protocol("a password was expected")),
    };
    // Nothing about timelines is said before the token is known to be good.
    let claims = shared.verify(&token).map_err(WireError::Refused)?;
    let key = timeline_of(&parameters).map_err(WireError::Refused)?;
    let allowed = claims.allow(Service::Safekeeper, key.0, key.1, Rights::Read);
    allowed.map_err(|error| WireError::Refused(error.to_string()))?;
    let opened = shared.registry.open(key).await.map_err(|error| WireError::Refused(error.to_string()))?;
    wire::put_welcome(&mut out, &format!("{}.0", opened.spec.pg_major));
    send_all(writer, &out).await?;
    Ok(Some(key))
}

fn timeline_of(parameters: &HashMap<String, String>) -> Result<Key, String> {
    let from_database = parameters.get("database").and_then(|database| database.split_once('/'));
    let options = parameters.get("options").map_or("", String::as_str);
    let option = |name: &str| options.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let from_options = option("ardent.tenant").zip(option("ardent.timeline"));
    let (tenant, timeline) = from_database.or(from_options).ok_or(
        "no timeline is named: connect to the database TENANT/TIMELINE, or with options='-c ardent.tenant=TENANT \
         -c ardent.timeline=TIMELINE'",
    )?;
    let tenant: TenantId = tenant.parse().map_err(|error: ardent_types::ParseIdError| error.to_string())?;
    let timeline: TimelineId = timeline.parse().map_err(|error: ardent_types::ParseIdError| error.to_string())?;
    Ok((tenant, timeline))
}

/// A connection after its startup.
struct Session<R, W> {
    shared: Arc<Shared>,
    key: Key,
    messages: Messages<R>,
    writer: W,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Session<R, W> {
    async fn run(mut self) -> Result<(), WireError> {
        while let Some((kind, message)) = self.messages.next().await? {
            let mut out = BytesMut::new();
            match kind {
                b'X' => return Ok(()),
                b'Q' => {
                    if let Err(failure) = self.query(wire::text(&message)?, &mut out).await? {
                        wire::put_error(&mut out, "ERROR", failure.code, &failure.message);
                    }
                    wire::put_ready(&mut out);
                }
                _ => return Err(WireError::Protocol("only simple queries are understood")),
            }
            send_all(&mut self.writer, &out).await?;
        }
        Ok(())
    }

    async fn query(&mut self, text: &str, out: &mut BytesMut) -> Result<Result<(), Failure>, WireError> {
        let command = match command::parse(text) {
            Ok(command) => command,
            Err(message) => return Ok(Err(Failure { code: "42601", message })),
        };
        let view = match self.shared.registry.open(self.key).await {
            Ok(view) => view,
            Err(error) => return Ok(Err(Failure { code: "58030", message: error.to_string() })),
        };
        if let Command::StartReplication { slot, start, tli } = command {
            let wanted = tli.unwrap_or(view.spec.pg_tli);
            if let Err(failure) = check_start(&view, slot.as_deref(), wanted) {
                return Ok(Err(failure));
            }
            let opened = CommittedWal::open_segment(view, start).await;
            let opened = opened.map_err(|error| Failure { code: "58P01", message: error.to_string() });
            return match opened {
                Ok(wal) => self.stream(wal, out).await.map(Ok),
                Err(failure) => Ok(Err(failure)),
            };
        }
        let oldest = match &command {
            Command::ReadReplicationSlot(_) => oldest_readable(&view).await,
            _ => Ok(view.oldest_lsn()),
        };
        match oldest {
            Ok(oldest) => Ok(answer(&view, oldest, &command, out)),
            Err(error) => Ok(Err(Failure { code: "58030", message: error.to_string() })),
        }
    }

    /// Sends WAL until the client ends it; what is then left to send is in `out`.
    async fn stream(&mut self, mut wal: CommittedWal, out: &mut BytesMut) -> Result<(), WireError> {
        // `CopyBothResponse`: binary, no columns.
        wire::put(out, b'W', |out| {
            out.put_u8(0);
            out.put_u16(0);
        });
        put_keepalive(out, wal.commit_lsn());
        loop {
            send_all(&mut self.writer, out).await?;
            out.clear();
            tokio::select! {
                chunk = wal.next() => match chunk {
                    Ok(chunk) => put_wal(out, chunk.start, chunk.commit_lsn, &chunk.bytes),
                    Err(error) => {
                        wire::put_error(out, "ERROR", "58030", &error.to_string());
                        return Ok(());
                    }
                },
                message = self.messages.next() => match message? {
                    // `CopyDone`: the client has enough.
                    Some((b'c', _)) => {
                        wire::put(out, b'c', |_| {});
                        wire::put_complete(out, "START_STREAMING");
                        return Ok(());
                    }
                    Some((b'd', status)) if wants_reply(&status) => put_keepalive(out, wal.commit_lsn()),
                    Some((b'd', _)) => {}
                    Some((b'X', _)) | None => return Err(WireError::Protocol("it went away while streaming")),
                    Some(_) => return Err(WireError::Protocol("a message that has no place in streaming")),
                },
                () = tokio::time::sleep(KEEPALIVE_INTERVAL) => put_keepalive(out, wal.commit_lsn()),
            }
        }
    }
}

/// A command failed: an SQLSTATE and what to tell.
struct Failure {
    code: &'static str,
    message: String,
}

fn check_start(view: &TimelineView, slot: Option<&str>, tli: ardent_types::PgTli) -> Result<(), Failure> {
    if let Some(slot) = slot.filter(|slot| *slot != OLDEST_SLOT) {
        let message = format!("replication slot {slot:?} does not exist; there is one, {OLDEST_SLOT:?}");
        return Err(Failure { code: "42704", message });
    }
    if tli != view.spec.pg_tli {
        let message = format!("this timeline's WAL is of Postgres timeline {}, not {tli}", view.spec.pg_tli);
        return Err(Failure { code: "58P01", message });
    }
    Ok(())
}

/// `oldest`: the oldest WAL that can be read.
fn answer(view: &TimelineView, oldest: Lsn, command: &Command, out: &mut BytesMut) -> Result<(), Failure> {
    let spec = &view.spec;
    let tag = match command {
        Command::IdentifySystem => {
            wire::put_row(
                out,
                &[
                    ("systemid", TEXT, Some(spec.system_id.to_string())),
                    ("timeline", INT4, Some(spec.pg_tli.to_string())),
                    ("xlogpos", TEXT, Some(view.commit().borrow().to_string())),
                    ("dbname", TEXT, None),
                ],
            );
            "IDENTIFY_SYSTEM"
        }
        Command::Show(name) => {
            let value = match name.as_str() {
                "wal_segment_size" => segment_size_text(spec.wal_segment_size),
                "data_directory_mode" => "0700".to_owned(),
                _ => {
                    let message = format!("a safekeeper has no setting {name:?}");
                    return Err(Failure { code: "42704", message });
                }
            };
            wire::put_row(out, &[(name, TEXT, Some(value))]);
            "SHOW"
        }
        Command::TimelineHistory(tli) if *tli == spec.pg_tli => {
            // Where the source switched timelines before it was connected is not known here.
            let columns = [
                ("filename", TEXT, Some(format!("{:08X}.history", tli.get()))),
                ("content", BYTEA, Some(String::new())),
            ];
            wire::put_row(out, &columns);
            "TIMELINE_HISTORY"
        }
        Command::TimelineHistory(tli) => {
            return Err(Failure { code: "58P01", message: format!("there is no history of timeline {tli} here") });
        }
        Command::ReadReplicationSlot(name) => {
            let exists = name == OLDEST_SLOT;
            let oldest = oldest.segment_start(spec.wal_segment_size);
            wire::put_row(
                out,
                &[
                    ("slot_type", TEXT, exists.then(|| "physical".to_owned())),
                    ("restart_lsn", TEXT, exists.then(|| oldest.to_string())),
                    ("restart_tli", INT4, exists.then(|| spec.pg_tli.to_string())),
                ],
            );
            "READ_REPLICATION_SLOT"
        }
        Command::StartReplication { .. } => return Ok(()),
    };
    wire::put_complete(out, tag);
    Ok(())
}

/// As Postgres shows it: the largest unit that leaves no rest.
fn segment_size_text(size: WalSegmentSize) -> String {
    let mebibytes = size.bytes() >> 20;
    if mebibytes.is_multiple_of(1024) { format!("{}GB", mebibytes / 1024) } else { format!("{mebibytes}MB") }
}

/// Microseconds since 2000-01-01.
fn now_us() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since_2000 = since_epoch.saturating_sub(Duration::from_secs(POSTGRES_EPOCH_S));
    i64::try_from(since_2000.as_micros()).unwrap_or(i64::MAX)
}

/// `XLogData`.
fn put_wal(out: &mut BytesMut, start: Lsn, end: Lsn, bytes: &[u8]) {
    wire::put(out, b'd', |out| {
        out.put_u8(b'w');
        out.put_u64(start.get());
        out.put_u64(end.get());
        out.put_i64(now_us());
        out.put_slice(bytes);
    });
}

/// `Primary keepalive message`; no reply wanted.
fn put_keepalive(out: &mut BytesMut, end: Lsn) {
    wire::put(out, b'd', |out| {
        out.put_u8(b'k');
        out.put_u64(end.get());
        out.put_i64(now_us());
        out.put_u8(0);
    });
}

/// Whether a `Standby status update` wants an answer at once. What it says about positions is not used: trimming rests on
/// page servers alone.
fn wants_reply(status: &Bytes) -> bool {
    const STATUS_LEN: usize = 1 + 8 + 8 + 8 + 8 + 1;
    let mut status = status.clone();
    status.len() == STATUS_LEN && status.get_u8() == b'r' && status[STATUS_LEN - 2] == 1
}
