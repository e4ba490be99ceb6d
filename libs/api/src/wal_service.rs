//! The WAL service: what writers, page servers and control ask of a safekeeper.
//!
//! Byte table: `docs/formats/wal-service.md`. A connection is bound by its [`Hello`] to one timeline, or to none
//! ([`TimelineId::NONE`]) for management of a whole safekeeper. A writer's messages ([`Vote`], [`Begin`], [`Append`]) are
//! answered when what they promise is durable; the replies to appends are cumulative, so one may answer many.
//! What the messages mean is in `docs/quorum.md`.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use ardent_types::{Lsn, PgTli, SystemId, TenantId, Term, TimelineId, WalSegmentSize};

use crate::frame::{DecodeError, Fields, Frame, put_blob, write_frame};

/// First field of every hello: `ARWS`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"ARWS");
/// Version of the protocol that this build speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// Most WAL bytes in one [`Append`], [`Response::Wal`] or [`WalChunk`].
pub const WAL_LEN_MAX: usize = 1 << 20;
/// Most entries in a term history that a message carries.
pub const HISTORY_LEN_MAX: usize = 1 << 20;

/// The first message of a connection.
#[derive(Clone, PartialEq, Eq)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the client.
    pub version: u16,
    /// Bit set of optional abilities; none are defined yet, so 0.
    pub capabilities: u32,
    /// The tenant the connection is bound to.
    pub tenant: TenantId,
    /// The timeline the connection is bound to, or [`TimelineId::NONE`].
    pub timeline: TimelineId,
    /// Service token, see [`crate::token`].
    pub token: String,
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello")
            .field("version", &self.version)
            .field("tenant", &self.tenant)
            .field("timeline", &self.timeline)
            .finish_non_exhaustive()
    }
}

/// One run of a writer: two writers that ask for the same term are told apart by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposerId(u128);

impl ProposerId {
    /// Nobody: the vote has not been given.
    pub const NONE: ProposerId = ProposerId(0);

    /// The id with this number.
    pub const fn new(raw: u128) -> Self {
        ProposerId(raw)
    }

    /// Its number.
    pub const fn get(self) -> u128 {
        self.0
    }
}

/// The end of a whole record, and where that record starts (the `xl_prev` of the record that follows).
///
/// `end` is aligned to 8 and never moved past a page header; after a segment switch it is the end of the segment.
/// `start` is [`Lsn::INVALID`] where the record is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct RecordEnd {
    /// First byte after the record.
    pub end: Lsn,
    /// First byte of the record.
    pub start: Lsn,
}

/// A term and the position from which on its writer wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TermStart {
    /// Term.
    pub term: Term,
    /// Its writer's first byte.
    pub lsn: Lsn,
}

/// A writer asks to be the only one from `term` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Repeated by the reply, so that a late reply to an earlier question is known for one.
    pub attempt: u32,
    /// Term asked for.
    pub term: Term,
    /// Who asks.
    pub proposer: ProposerId,
}

/// Answer to a [`Vote`], sent after the vote is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteReply {
    /// The vote's.
    pub attempt: u32,
    /// The highest term promised.
    pub term: Term,
    /// Whether the writer that asked holds that term here.
    pub granted: bool,
    /// The terms in this safekeeper's log, ascending, up to `flush_lsn`.
    pub history: Vec<TermStart>,
    /// End of the durable log (first byte not durable). May lie in the middle of a record.
    pub flush_lsn: Lsn,
    /// Up to where this safekeeper knows the log to be committed.
    pub commit: RecordEnd,
    /// Where the timeline begins.
    pub start: RecordEnd,
    /// The oldest byte that is still kept here.
    pub oldest_lsn: Lsn,
    /// Major version.
    pub pg_major: u32,
    /// WAL segment size in bytes.
    pub wal_segment_size: WalSegmentSize,
}

/// An elected writer tells what the log is; the safekeeper cuts off what diverges from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Repeated by the reply.
    pub attempt: u32,
    /// The writer's term, the last one in `history`.
    pub term: Term,
    /// The terms of the writer's log.
    pub history: Vec<TermStart>,
    /// Up to here the safekeeper's log and the writer's are the same; what lies beyond is cut off.
    pub common_lsn: Lsn,
}

/// Answer to a [`Begin`], sent after the history is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeginReply {
    /// The begin's.
    pub attempt: u32,
    /// The highest term promised. Above the writer's: it is fenced.
    pub term: Term,
    /// End of the durable log.
    pub flush_lsn: Lsn,
}

/// WAL of a writer's term. Without data it only carries the commit position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// The writer's term.
    pub term: Term,
    /// Position of the first byte of `data`.
    pub start: Lsn,
    /// Up to where a quorum has the log.
    pub commit: RecordEnd,
    /// No safekeeper of this timeline needs WAL below this from another one.
    pub peers_lsn: Lsn,
    /// At most [`WAL_LEN_MAX`] bytes, cut anywhere.
    pub data: Bytes,
}

/// Answer to [`Append`]s, sent after the WAL is durable. Cumulative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendReply {
    /// The highest term promised. Above the writer's: it is fenced.
    pub term: Term,
    /// End of the durable log.
    pub flush_lsn: Lsn,
}

/// WAL that is committed, for readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalChunk {
    /// Position of the first byte.
    pub start: Lsn,
    /// The commit position when the chunk was sent; a record end.
    pub commit_lsn: Lsn,
    /// At most [`WAL_LEN_MAX`] bytes, cut anywhere. Empty: only the commit position is told.
    pub bytes: Bytes,
}

/// A client's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Bind the connection.
    Hello(Hello),
    /// Ask for a term. Needs write rights, as all of a writer's messages.
    Vote(Vote),
    /// Start writing in a term.
    Begin(Begin),
    /// Write. Answered when durable; not answered when it has no data.
    Append(Append),
    /// Durable WAL in `[from, to)`, committed or not, for a writer. Answered by one [`Response::Wal`], which may be shorter
    /// than asked for and is empty when nothing at `from` is durable.
    ReadWal {
        /// Repeated by the reply.
        id: u64,
        /// The writer's term. Where another is promised, the log may be about to change: the answer is
        /// [`ErrorCode::OutOfOrder`].
        term: Term,
        /// First byte.
        from: Lsn,
        /// First byte not wanted.
        to: Lsn,
    },
    /// Committed WAL from here on, as it comes: [`Response::Chunk`]s without end.
    Follow {
        /// First byte; at most the commit position.
        from: Lsn,
    },
    /// What a follower has made durable on its side: WAL below it may be trimmed. Not answered.
    Position {
        /// First byte still needed.
        durable_lsn: Lsn,
    },
    /// Anything that is not on a hot path.
    Manage {
        /// Repeated by the reply.
        id: u64,
        /// What to do.
        request: ManageRequest,
    },
}

/// A safekeeper's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// The hello was accepted.
    HelloOk {
        /// Version that the connection speaks from here on.
        version: u16,
        /// The abilities that both sides have.
        capabilities: u32,
    },
    /// Answer to [`Request::Vote`].
    Vote(VoteReply),
    /// Answer to [`Request::Begin`].
    Begin(BeginReply),
    /// Answer to [`Request::Append`].
    Append(AppendReply),
    /// Answer to [`Request::ReadWal`].
    Wal {
        /// Request's id.
        id: u64,
        /// Position of the first byte.
        start: Lsn,
        /// The bytes.
        bytes: Bytes,
    },
    /// Committed WAL.
    Chunk(WalChunk),
    /// Answer to [`Request::Manage`].
    Manage {
        /// Request's id.
        id: u64,
        /// Answer.
        reply: ManageReply,
    },
    /// A request failed. After a failure of a writer's message or of [`Request::Follow`] the connection is closed.
    Error {
        /// Request's id, 0 where there is none.
        id: u64,
        /// Kind of failure.
        code: ErrorCode,
        /// What failed, why, and what to do.
        message: String,
    },
}

/// What kind of failure a request met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum ErrorCode {
    /// The hello or the rights were refused. The connection is closed.
    Refused = 1,
    /// The timeline does not exist here.
    TimelineNotFound = 2,
    /// The position is below what is kept, or past the end.
    LsnOutOfRange = 3,
    /// A writer's message that does not follow from those before it: begin again with a vote.
    OutOfOrder = 4,
    /// The disk is full or failing; what was acknowledged is safe. Try again.
    Unavailable = 5,
    /// The timeline's files are damaged; other timelines work.
    Corrupt = 6,
    /// The request is malformed.
    Invalid = 7,
    /// The thing to be created exists with other properties.
    Conflict = 8,
    /// Our own bug.
    Internal = 9,
}

impl ErrorCode {
    const ALL: [ErrorCode; 9] = [
        ErrorCode::Refused,
        ErrorCode::TimelineNotFound,
        ErrorCode::LsnOutOfRange,
        ErrorCode::OutOfOrder,
        ErrorCode::Unavailable,
        ErrorCode::Corrupt,
        ErrorCode::Invalid,
        ErrorCode::Conflict,
        ErrorCode::Internal,
    ];

    /// The code with this number.
    pub fn from_raw(raw: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u16 == raw)
    }

    /// Whether the same request may succeed a little later.
    pub fn is_retryable(self) -> bool {
        matches!(self, ErrorCode::Unavailable | ErrorCode::OutOfOrder)
    }
}

/// What a safekeeper must know to keep a timeline's WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSpec {
    /// Tenant.
    pub tenant: TenantId,
    /// Timeline.
    pub timeline: TimelineId,
    /// Major version.
    pub pg_major: u32,
    /// System identifier.
    pub system_id: SystemId,
    /// Postgres's timeline id, as in the names of segment files.
    pub pg_tli: PgTli,
    /// WAL segment size in bytes.
    pub wal_segment_size: WalSegmentSize,
    /// The first byte of WAL that the timeline's writers write: a record boundary.
    pub start_lsn: Lsn,
    /// Start of the record that ends at `start_lsn`; [`Lsn::INVALID`] if not known.
    pub prev_lsn: Lsn,
    /// The timeline that this one branches off and where. If this safekeeper has its WAL, the first segment begins with it.
    pub ancestor: Option<Ancestor>,
}

/// Where a timeline branches off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// The ancestor.
    pub timeline: TimelineId,
    /// The branch point.
    pub lsn: Lsn,
}

/// A management request. Creating and deleting need management rights, the others read rights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum ManageRequest {
    /// Makes a timeline. Idempotent: the same specification again is [`ManageReply::Done`].
    CreateTimeline {
        /// Its properties.
        spec: TimelineSpec,
    },
    /// Forgets a timeline and its WAL. Idempotent.
    DeleteTimeline {
        /// Which.
        timeline: TimelineId,
    },
    /// Facts about one timeline.
    TimelineStatus {
        /// Which.
        timeline: TimelineId,
    },
    /// The ids of all timelines of the connection's tenant.
    ListTimelines,
}

/// Answer to a [`ManageRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum ManageReply {
    /// Done, nothing to say.
    Done,
    /// One timeline.
    Timeline(TimelineStatus),
    /// All timelines.
    Timelines {
        /// In no order.
        timelines: Vec<TimelineId>,
    },
}

/// Facts about a timeline at one safekeeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineStatus {
    /// Its properties.
    pub spec: TimelineSpec,
    /// The highest term promised.
    pub term: Term,
    /// End of the durable log.
    pub flush_lsn: Lsn,
    /// Up to where the log is known to be committed; a record end.
    pub commit_lsn: Lsn,
    /// The oldest byte that is kept.
    pub oldest_lsn: Lsn,
    /// What followers have made durable.
    pub durable_lsn: Lsn,
}

const HELLO: u8 = 0x01;
const VOTE: u8 = 0x02;
const BEGIN: u8 = 0x03;
const APPEND: u8 = 0x04;
const READ_WAL: u8 = 0x05;
const FOLLOW: u8 = 0x06;
const POSITION: u8 = 0x07;
const MANAGE: u8 = 0x08;
const REPLY: u8 = 0x80;
const ERROR: u8 = 0xFF;

/// Bytes of an [`Append`]'s payload before its data.
const APPEND_FIELDS_LEN: usize = 40;

fn take_lsn(fields: &mut Fields) -> Result<Lsn, DecodeError> {
    Ok(Lsn::new(fields.u64()?))
}

fn take_term(fields: &mut Fields) -> Result<Term, DecodeError> {
    Ok(Term::new(fields.u64()?))
}

fn put_record_end(out: &mut BytesMut, at: &RecordEnd) {
    out.put_u64_le(at.end.get());
    out.put_u64_le(at.start.get());
}

fn take_record_end(fields: &mut Fields) -> Result<RecordEnd, DecodeError> {
    Ok(RecordEnd { end: take_lsn(fields)?, start: take_lsn(fields)? })
}

fn put_history(out: &mut BytesMut, history: &[TermStart]) {
    out.put_u32_le(u32::try_from(history.len()).expect("a history fits a frame"));
    for entry in history {
        out.put_u64_le(entry.term.get());
        out.put_u64_le(entry.lsn.get());
    }
}

fn take_history(fields: &mut Fields) -> Result<Vec<TermStart>, DecodeError> {
    let count = fields.u32()? as usize;
    if count > HISTORY_LEN_MAX || count > fields.remaining() / 16 {
        return Err(fields.bad("length of history"));
    }
    let mut history = Vec::with_capacity(count);
    for _ in 0..count {
        history.push(TermStart { term: take_term(fields)?, lsn: take_lsn(fields)? });
    }
    if !history.is_sorted_by(|a, b| a.term < b.term && a.lsn <= b.lsn) {
        return Err(fields.bad("order of history"));
    }
    Ok(history)
}

fn take_wal(fields: &mut Fields) -> Result<Bytes, DecodeError> {
    let data = fields.remainder();
    if data.len() > WAL_LEN_MAX { Err(fields.bad("length of WAL")) } else { Ok(data) }
}

fn take_json<T: serde::de::DeserializeOwned>(fields: &mut Fields, field: &'static str) -> Result<T, DecodeError> {
    let text = fields.blob()?;
    serde_json::from_slice(&text).map_err(|_| fields.bad(field))
}

fn put_json(out: &mut BytesMut, value: &impl Serialize) {
    put_blob(out, &serde_json::to_vec(value).expect("messages are plain data"));
}

impl Append {
    /// Appends everything of the frame but the data itself, which the caller sends right after: the hot path's way to
    /// avoid a copy.
    pub fn encode_head(&self, out: &mut BytesMut) {
        let length = 1 + APPEND_FIELDS_LEN + self.data.len();
        assert!(self.data.len() <= WAL_LEN_MAX, "append of {} bytes", self.data.len());
        out.put_u32_le(length as u32);
        out.put_u8(APPEND);
        self.put_fields(out);
    }

    fn put_fields(&self, out: &mut BytesMut) {
        out.put_u64_le(self.term.get());
        out.put_u64_le(self.start.get());
        put_record_end(out, &self.commit);
        out.put_u64_le(self.peers_lsn.get());
    }
}

impl Request {
    /// Appends the request's frame to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Request::Hello(hello) => write_frame(out, HELLO, |out| {
                out.put_u32_le(MAGIC);
                out.put_u16_le(hello.version);
                out.put_u32_le(hello.capabilities);
                out.put_slice(hello.tenant.as_bytes());
                out.put_slice(hello.timeline.as_bytes());
                put_blob(out, hello.token.as_bytes());
            }),
            Request::Vote(vote) => write_frame(out, VOTE, |out| {
                out.put_u32_le(vote.attempt);
                out.put_u64_le(vote.term.get());
                out.put_u128_le(vote.proposer.get());
            }),
            Request::Begin(begin) => write_frame(out, BEGIN, |out| {
                out.put_u32_le(begin.attempt);
                out.put_u64_le(begin.term.get());
                out.put_u64_le(begin.common_lsn.get());
                put_history(out, &begin.history);
            }),
            Request::Append(append) => {
                append.encode_head(out);
                out.put_slice(&append.data);
            }
            Request::ReadWal { id, term, from, to } => write_frame(out, READ_WAL, |out| {
                out.put_u64_le(*id);
                out.put_u64_le(term.get());
                out.put_u64_le(from.get());
                out.put_u64_le(to.get());
            }),
            Request::Follow { from } => write_frame(out, FOLLOW, |out| out.put_u64_le(from.get())),
            Request::Position { durable_lsn } => {
                write_frame(out, POSITION, |out| out.put_u64_le(durable_lsn.get()));
            }
            Request::Manage { id, request } => write_frame(out, MANAGE, |out| {
                out.put_u64_le(*id);
                put_json(out, request);
            }),
        }
    }

    /// The request in `frame`.
    pub fn decode(frame: Frame) -> Result<Request, DecodeError> {
        let kind = frame.kind;
        let mut fields = Fields::of(frame);
        let request = match kind {
            HELLO => {
                if fields.u32()? != MAGIC {
                    return Err(fields.bad("magic"));
                }
                Request::Hello(Hello {
                    version: fields.u16()?,
                    capabilities: fields.u32()?,
                    tenant: TenantId::from_bytes(fields.array()?),
                    timeline: TimelineId::from_bytes(fields.array()?),
                    token: fields.string("token")?,
                })
            }
            VOTE => Request::Vote(Vote {
                attempt: fields.u32()?,
                term: take_term(&mut fields)?,
                proposer: ProposerId(u128::from_le_bytes(fields.array()?)),
            }),
            BEGIN => Request::Begin(Begin {
                attempt: fields.u32()?,
                term: take_term(&mut fields)?,
                common_lsn: take_lsn(&mut fields)?,
                history: take_history(&mut fields)?,
            }),
            APPEND => Request::Append(Append {
                term: take_term(&mut fields)?,
                start: take_lsn(&mut fields)?,
                commit: take_record_end(&mut fields)?,
                peers_lsn: take_lsn(&mut fields)?,
                data: take_wal(&mut fields)?,
            }),
            READ_WAL => Request::ReadWal {
                id: fields.u64()?,
                term: take_term(&mut fields)?,
                from: take_lsn(&mut fields)?,
                to: take_lsn(&mut fields)?,
            },
            FOLLOW => Request::Follow { from: take_lsn(&mut fields)? },
            POSITION => Request::Position { durable_lsn: take_lsn(&mut fields)? },
            MANAGE => Request::Manage { id: fields.u64()?, request: take_json(&mut fields, "management request")? },
            unknown => return Err(DecodeError::UnknownKind(unknown)),
        };
        fields.finish()?;
        Ok(request)
    }
}

impl Response {
    /// Appends the response's frame to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Response::HelloOk { version, capabilities } => write_frame(out, REPLY | HELLO, |out| {
                out.put_u16_le(*version);
                out.put_u32_le(*capabilities);
            }),
            Response::Vote(reply) => write_frame(out, REPLY | VOTE, |out| {
                out.put_u32_le(reply.attempt);
                out.put_u64_le(reply.term.get());
                out.put_u8(u8::from(reply.granted));
                out.put_u64_le(reply.flush_lsn.get());
                put_record_end(out, &reply.commit);
                put_record_end(out, &reply.start);
                out.put_u64_le(reply.oldest_lsn.get());
                out.put_u32_le(reply.pg_major);
                out.put_u32_le(reply.wal_segment_size.into());
                put_history(out, &reply.history);
            }),
            Response::Begin(reply) => write_frame(out, REPLY | BEGIN, |out| {
                out.put_u32_le(reply.attempt);
                out.put_u64_le(reply.term.get());
                out.put_u64_le(reply.flush_lsn.get());
            }),
            Response::Append(reply) => write_frame(out, REPLY | APPEND, |out| {
                out.put_u64_le(reply.term.get());
                out.put_u64_le(reply.flush_lsn.get());
            }),
            Response::Wal { id, start, bytes } => write_frame(out, REPLY | READ_WAL, |out| {
                out.put_u64_le(*id);
                out.put_u64_le(start.get());
                out.put_slice(bytes);
            }),
            Response::Chunk(chunk) => write_frame(out, REPLY | FOLLOW, |out| {
                out.put_u64_le(chunk.start.get());
                out.put_u64_le(chunk.commit_lsn.get());
                out.put_slice(&chunk.bytes);
            }),
            Response::Manage { id, reply } => write_frame(out, REPLY | MANAGE, |out| {
                out.put_u64_le(*id);
                put_json(out, reply);
            }),
            Response::Error { id, code, message } => write_frame(out, ERROR, |out| {
                out.put_u64_le(*id);
                out.put_u16_le(*code as u16);
                put_blob(out, message.as_bytes());
            }),
        }
    }

    /// The response in `frame`.
    pub fn decode(frame: Frame) -> Result<Response, DecodeError> {
        let kind = frame.kind;
        let mut fields = Fields::of(frame);
        if kind == ERROR {
            let (id, raw) = (fields.u64()?, fields.u16()?);
            let code = ErrorCode::from_raw(raw).ok_or_else(|| fields.bad("error code"))?;
            let message = fields.string("message")?;
            fields.finish()?;
            return Ok(Response::Error { id, code, message });
        }
        let response = match kind ^ REPLY {
            HELLO => Response::HelloOk { version: fields.u16()?, capabilities: fields.u32()? },
            VOTE => Response::Vote(VoteReply {
                attempt: fields.u32()?,
                term: take_term(&mut fields)?,
                granted: match fields.u8()? {
                    0 => false,
                    1 => true,
                    _ => return Err(fields.bad("granted")),
                },
                flush_lsn: take_lsn(&mut fields)?,
                commit: take_record_end(&mut fields)?,
                start: take_record_end(&mut fields)?,
                oldest_lsn: take_lsn(&mut fields)?,
                pg_major: fields.u32()?,
                wal_segment_size: {
                    let bytes = fields.u32()?;
                    WalSegmentSize::new(bytes).map_err(|_| fields.bad("segment size"))?
                },
                history: take_history(&mut fields)?,
            }),
            BEGIN => Response::Begin(BeginReply {
                attempt: fields.u32()?,
                term: take_term(&mut fields)?,
                flush_lsn: take_lsn(&mut fields)?,
            }),
            APPEND => {
                Response::Append(AppendReply { term: take_term(&mut fields)?, flush_lsn: take_lsn(&mut fields)? })
            }
            READ_WAL => {
                Response::Wal { id: fields.u64()?, start: take_lsn(&mut fields)?, bytes: take_wal(&mut fields)? }
            }
            FOLLOW => Response::Chunk(WalChunk {
                start: take_lsn(&mut fields)?,
                commit_lsn: take_lsn(&mut fields)?,
                bytes: take_wal(&mut fields)?,
            }),
            MANAGE => Response::Manage { id: fields.u64()?, reply: take_json(&mut fields, "management reply")? },
            _ => return Err(DecodeError::UnknownKind(kind)),
        };
        fields.finish()?;
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> TimelineSpec {
        TimelineSpec {
            tenant: TenantId::from_bytes([1; 16]),
            timeline: TimelineId::from_bytes([2; 16]),
            pg_major: 15,
            system_id: SystemId::new(7_000_000_000_000_000_001),
            pg_tli: PgTli::new(1),
            wal_segment_size: WalSegmentSize::DEFAULT,
            start_lsn: Lsn::new(0x0200_0028),
            prev_lsn: Lsn::INVALID,
            ancestor: Some(Ancestor { timeline: TimelineId::from_bytes([3; 16]), lsn: Lsn::new(0x0200_0028) }),
        }
    }

    fn history() -> Vec<TermStart> {
        let entry = |term, lsn| TermStart { term: Term::new(term), lsn: Lsn::new(lsn) };
        vec![entry(1, 0x0200_0028), entry(4, 0x0200_1000)]
    }

    fn at(end: u64, start: u64) -> RecordEnd {
        RecordEnd { end: Lsn::new(end), start: Lsn::new(start) }
    }

    fn requests() -> Vec<Request> {
        let term = Term::new(4);
        vec![
            Request::Hello(Hello {
                version: 1,
                capabilities: 0,
                tenant: spec().tenant,
                timeline: spec().timeline,
                token: "t".to_owned(),
            }),
            Request::Vote(Vote { attempt: 9, term, proposer: ProposerId::new(0xABCD) }),
            Request::Begin(Begin { attempt: 9, term, history: history(), common_lsn: Lsn::new(0x0200_0100) }),
            Request::Append(Append {
                term,
                start: Lsn::new(0x0200_1000),
                commit: at(0x0200_1000, 0x0200_0F00),
                peers_lsn: Lsn::new(1),
                data: Bytes::from_static(b"wal"),
            }),
            Request::ReadWal { id: 3, term, from: Lsn::new(5), to: Lsn::new(9) },
            Request::Follow { from: Lsn::new(5) },
            Request::Position { durable_lsn: Lsn::new(6) },
            Request::Manage { id: 1, request: ManageRequest::CreateTimeline { spec: spec() } },
            Request::Manage { id: 2, request: ManageRequest::ListTimelines },
        ]
    }

    fn responses() -> Vec<Response> {
        let (term, flush_lsn) = (Term::new(4), Lsn::new(0x0200_1003));
        vec![
            Response::HelloOk { version: 1, capabilities: 0 },
            Response::Vote(VoteReply {
                attempt: 9,
                term,
                granted: true,
                history: history(),
                flush_lsn,
                commit: at(0x0200_1000, 0x0200_0F00),
                start: at(0x0200_0028, 0),
                oldest_lsn: Lsn::new(0x0200_0000),
                pg_major: 15,
                wal_segment_size: WalSegmentSize::DEFAULT,
            }),
            Response::Begin(BeginReply { attempt: 9, term, flush_lsn }),
            Response::Append(AppendReply { term, flush_lsn }),
            Response::Wal { id: 3, start: Lsn::new(5), bytes: Bytes::from_static(b"wal") },
            Response::Chunk(WalChunk {
                start: Lsn::new(5),
                commit_lsn: Lsn::new(8),
                bytes: Bytes::from_static(b"wal"),
            }),
            Response::Manage { id: 1, reply: ManageReply::Done },
            Response::Error { id: 0, code: ErrorCode::Corrupt, message: "m".to_owned() },
        ]
    }

    /// Round trip, and every shorter payload is an error or another message, never a panic.
    fn check<T: PartialEq + std::fmt::Debug>(
        message: &T,
        encode: impl Fn(&T, &mut BytesMut),
        decode: impl Fn(Frame) -> Result<T, DecodeError>,
    ) {
        let mut wire = BytesMut::new();
        encode(message, &mut wire);
        let frame = Frame::take(&mut wire).expect("a valid length").expect("a whole frame");
        assert!(wire.is_empty());
        assert_eq!(decode(frame.clone()).as_ref(), Ok(message));
        for length in 0..frame.payload.len() {
            let cut = Frame { kind: frame.kind, payload: frame.payload.slice(..length) };
            assert_ne!(decode(cut).as_ref(), Ok(message), "cut to {length} bytes");
        }
    }

    #[test]
    fn messages_round_trip_and_survive_truncation() {
        for request in requests() {
            check(&request, Request::encode, Request::decode);
        }
        for response in responses() {
            check(&response, Response::encode, Response::decode);
        }
    }

    #[test]
    fn golden_bytes() {
        let hex = |encode: &dyn Fn(&mut BytesMut)| {
            let mut wire = BytesMut::new();
            encode(&mut wire);
            wire.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert_eq!(
            hex(&|out| requests()[1].encode(out)),
            "1d000000020900000004000000000000\
             00cdab0000000000000000000000000000"
        );
        assert_eq!(
            hex(&|out| requests()[3].encode(out)),
            "2c00000004040000000000000000100002000000000010000200000000000f0002000000000100000000000000\
             77616c"
        );
        assert_eq!(hex(&|out| responses()[3].encode(out)), "110000008404000000000000000310000200000000");
    }

    #[test]
    fn histories_must_ascend() {
        let mut backwards = history();
        backwards.reverse();
        let mut wire = BytesMut::new();
        let begin = Begin { attempt: 0, term: Term::new(4), history: backwards, common_lsn: Lsn::new(0) };
        Request::Begin(begin).encode(&mut wire);
        let frame = Frame::take(&mut wire).expect("a valid length").expect("a whole frame");
        assert_eq!(Request::decode(frame), Err(DecodeError::BadField { kind: BEGIN, field: "order of history" }));
    }
}
