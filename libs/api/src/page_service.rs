//! The page service: what computes, control and connectors ask of a page server.
//!
//! Byte table: `docs/formats/page-service.md`. A connection is bound by its [`Hello`] to one timeline, or to none
//! ([`TimelineId::NONE`]) for management of a whole page server. Requests on one connection are answered in order.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use ardent_types::{
    BLCKSZ, BlockNumber, ForkNumber, Lsn, PgTli, RelTag, SystemId, TenantId, TimelineId, WalSegmentSize,
};

use crate::addr::ServiceAddr;
use crate::frame::{DecodeError, Fields, Frame, put_blob, write_frame};

/// First field of every hello: `ARPS`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"ARPS");
/// Version of the protocol that this build speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// Most pages in one [`Request::GetPages`] and so in one [`Response::Pages`].
pub const PAGES_PER_REQUEST_MAX: u32 = 1024;

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

/// `count` blocks from `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockRange {
    /// First block.
    pub start: BlockNumber,
    /// How many; at least 1.
    pub count: u32,
}

/// A client's message after the hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Bind the connection.
    Hello(Hello),
    /// Pages of one relation fork as of `lsn`, which must be within the timeline's history; waits until it is ingested.
    GetPages {
        /// Repeated by the reply.
        id: u64,
        /// Version asked for.
        lsn: Lsn,
        /// Relation fork.
        rel: RelTag,
        /// Blocks, at most [`PAGES_PER_REQUEST_MAX`] together.
        ranges: Vec<BlockRange>,
    },
    /// A relation fork's size as of `lsn`.
    GetRelSize {
        /// Repeated by the reply.
        id: u64,
        /// Version asked for.
        lsn: Lsn,
        /// Relation fork.
        rel: RelTag,
    },
    /// Everything a data directory needs at `lsn` but the pages. Answered by [`Response::BackupItem`]s up to
    /// [`BackupItem::End`].
    GetBaseBackup {
        /// Repeated by the replies.
        id: u64,
        /// Version asked for.
        lsn: Lsn,
    },
    /// The blocks that changed in `(from, to]`. Answered by [`Response::Changed`] frames until one says it is the last.
    GetChanged {
        /// Repeated by the replies.
        id: u64,
        /// Open end.
        from: Lsn,
        /// Closed end.
        to: Lsn,
    },
    /// Waits until WAL up to `lsn` is ingested.
    WaitLsn {
        /// Repeated by the reply.
        id: u64,
        /// Position to wait for.
        lsn: Lsn,
        /// After this long the answer is [`ErrorCode::Timeout`].
        timeout_ms: u32,
    },
    /// Anything that is not on a hot path.
    Manage {
        /// Repeated by the reply.
        id: u64,
        /// What to do.
        request: ManageRequest,
    },
    /// A file of the base backup begins; only after [`ManageRequest::ImportBegin`] on the same connection.
    /// Import messages are not answered one by one: an error is sent as soon as there is one, otherwise
    /// [`ManageRequest::ImportFinish`] is answered when everything is durable.
    ImportFile {
        /// Path below the data directory, for tablespaces `pg_tblspc/OID/...`.
        path: String,
        /// Its length in bytes.
        length: u64,
    },
    /// The next bytes of the current file, at most 1 MiB.
    ImportData {
        /// Bytes.
        data: Bytes,
    },
}

/// A server's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// The hello was accepted.
    HelloOk {
        /// Version that the connection speaks from here on.
        version: u16,
        /// The abilities that both sides have.
        capabilities: u32,
    },
    /// The pages asked for, in the order of the ranges.
    Pages {
        /// Request's id.
        id: u64,
        /// A multiple of [`BLCKSZ`] bytes.
        pages: Bytes,
    },
    /// A relation fork's size.
    RelSize {
        /// Request's id.
        id: u64,
        /// Blocks; absent: it does not exist.
        nblocks: Option<BlockNumber>,
    },
    /// A part of a base backup.
    BackupItem {
        /// Request's id.
        id: u64,
        /// The part.
        item: BackupItem,
    },
    /// Changed blocks.
    Changed {
        /// Request's id.
        id: u64,
        /// Whether this is the last frame of the answer.
        last: bool,
        /// Relation forks with changes, in key order.
        relations: Vec<ChangedRelation>,
    },
    /// The LSN waited for is ingested.
    LsnReached {
        /// Request's id.
        id: u64,
        /// End of the last record ingested.
        last_record_lsn: Lsn,
    },
    /// Answer to [`Request::Manage`].
    Manage {
        /// Request's id.
        id: u64,
        /// Answer.
        reply: ManageReply,
    },
    /// A request failed; the connection goes on unless the code says otherwise.
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
    /// The hello was refused: version, token. The connection is closed.
    Refused = 1,
    /// The timeline does not exist here.
    TimelineNotFound = 2,
    /// The LSN is ahead of what was waited for, or below what is retained.
    LsnOutOfRange = 3,
    /// A block or relation does not exist at that LSN.
    NotFound = 4,
    /// The page exists and cannot be rebuilt: corrupt layer, unknown record.
    Unreadable = 5,
    /// Storage does not answer now.
    Unavailable = 6,
    /// The deadline passed.
    Timeout = 7,
    /// The request is malformed.
    Invalid = 8,
    /// The thing to be created exists with other properties, or is in use.
    Conflict = 9,
    /// Another page server has taken the timeline over.
    Fenced = 10,
    /// The lease on the LSN was lost: start again from a newer one.
    BaseLsnExpired = 11,
    /// Our own bug.
    Internal = 12,
}

impl ErrorCode {
    const ALL: [ErrorCode; 12] = [
        ErrorCode::Refused,
        ErrorCode::TimelineNotFound,
        ErrorCode::LsnOutOfRange,
        ErrorCode::NotFound,
        ErrorCode::Unreadable,
        ErrorCode::Unavailable,
        ErrorCode::Timeout,
        ErrorCode::Invalid,
        ErrorCode::Conflict,
        ErrorCode::Fenced,
        ErrorCode::BaseLsnExpired,
        ErrorCode::Internal,
    ];

    /// The code with this number.
    pub fn from_raw(raw: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u16 == raw)
    }

    /// Whether the same request may succeed a little later.
    pub fn is_retryable(self) -> bool {
        matches!(self, ErrorCode::Unavailable | ErrorCode::Timeout)
    }
}

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

/// A relation fork with changes in `(from, to]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedRelation {
    /// Relation fork.
    pub rel: RelTag,
    /// Size at `from`, absent if it did not exist.
    pub nblocks_from: Option<BlockNumber>,
    /// Size at `to`, absent if it does not exist any more.
    pub nblocks_to: Option<BlockNumber>,
    /// Blocks below `max(nblocks_from, nblocks_to)` that have a version in `(from, to]`, sorted, not touching. Blocks that
    /// are only gone (at or past `nblocks_to`) need not be listed.
    pub ranges: Vec<BlockRange>,
}

/// What an import needs to know before the first file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportSpec {
    /// Major version of the source.
    pub pg_major: u32,
    /// System identifier of the source.
    pub system_id: SystemId,
    /// Postgres's timeline id of the source.
    pub pg_tli: PgTli,
    /// WAL segment size of the source in bytes.
    pub wal_segment_size: WalSegmentSize,
    /// Whether the source has data checksums (`show data_checksums`): then pages up to `start_lsn` are checked on import.
    pub data_checksums: bool,
    /// The redo LSN from `backup_label`: WAL from here on makes the pages consistent.
    pub start_lsn: Lsn,
}

/// A management request. On a connection bound to a timeline it concerns that timeline; otherwise `timeline` names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum ManageRequest {
    /// Starts an import into a new root timeline (the connection's).
    ImportBegin {
        /// Facts about the source.
        spec: ImportSpec,
    },
    /// All files have been sent. WAL from `start_lsn` on follows through the safekeepers; the timeline can be read and branched from
    /// once WAL has reached `end_lsn`.
    ImportFinish {
        /// The backup's end.
        end_lsn: Lsn,
    },
    /// Makes a branch. Idempotent: the same call again gives the same answer.
    CreateBranch {
        /// Id of the new timeline.
        timeline: TimelineId,
        /// Its ancestor.
        ancestor: TimelineId,
        /// Where: the last record end at or below this; absent: the last record ingested.
        at: Option<Lsn>,
    },
    /// Forgets a timeline and gives its space back. Refused while it has children.
    DeleteTimeline {
        /// Which.
        timeline: TimelineId,
    },
    /// Facts about one timeline.
    TimelineStatus {
        /// Which.
        timeline: TimelineId,
    },
    /// All timelines of the tenant.
    ListTimelines,
    /// Receive this timeline's WAL from these safekeepers from now on.
    FollowWal {
        /// Which.
        timeline: TimelineId,
        /// Where its WAL is.
        safekeepers: Vec<ServiceAddr>,
    },
    /// Stop receiving this timeline's WAL once everything committed is ingested.
    UnfollowWal {
        /// Which.
        timeline: TimelineId,
    },
    /// The last commit at or before a time. Seconds since the Unix epoch.
    LsnForTimestamp {
        /// Which.
        timeline: TimelineId,
        /// Microseconds since the Unix epoch.
        timestamp_us: i64,
    },
    /// Pins an LSN against garbage collection, durably, until released or expired. The same name again renews.
    Lease {
        /// Which timeline.
        timeline: TimelineId,
        /// Unique per holder.
        name: String,
        /// What to pin.
        lsn: Lsn,
        /// For how long from now; 0 releases.
        ttl_s: u64,
    },
}

/// Answer to a [`ManageRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum ManageReply {
    /// Done, nothing to say.
    Done,
    /// The branch exists.
    Branch {
        /// Its branch point: a record end.
        lsn: Lsn,
        /// Start of the record that ends there.
        prev_lsn: Lsn,
    },
    /// One timeline.
    Timeline(TimelineStatus),
    /// All timelines.
    Timelines {
        /// In no order.
        timelines: Vec<TimelineStatus>,
    },
    /// Answer to [`ManageRequest::LsnForTimestamp`].
    LsnForTimestamp {
        /// End of the last record at or before the time.
        lsn: Lsn,
    },
}

/// Facts about a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineStatus {
    /// Id.
    pub timeline: TimelineId,
    /// Ancestor; absent for a root.
    pub ancestor: Option<TimelineId>,
    /// Where it branches off.
    pub ancestor_lsn: Lsn,
    /// End of the last record ingested.
    pub last_record_lsn: Lsn,
    /// Start of that record.
    pub prev_record_lsn: Lsn,
    /// Up to where the timeline survives a crash of the page server without WAL from a safekeeper.
    pub disk_consistent_lsn: Lsn,
    /// The oldest LSN that can still be branched from and read.
    pub retained_from_lsn: Lsn,
    /// Major version.
    pub pg_major: u32,
    /// Relation blocks at the head, in bytes; absent in lists and while importing.
    pub logical_size_bytes: Option<u64>,
    /// Bytes of this timeline's own layers in the store.
    pub stored_bytes: u64,
    /// For a root: reads and branches are possible only once `last_record_lsn` has reached this.
    pub consistent_from_lsn: Lsn,
    /// Whether its WAL is being received.
    pub following: bool,
    /// Commit time of the last commit ingested, microseconds since the Unix epoch.
    pub last_commit_us: Option<i64>,
    /// What keeps it from receiving WAL, if anything does.
    #[serde(default)]
    pub problem: Option<String>,
}

const HELLO: u8 = 0x01;
const GET_PAGES: u8 = 0x02;
const GET_REL_SIZE: u8 = 0x03;
const GET_BASE_BACKUP: u8 = 0x04;
const GET_CHANGED: u8 = 0x05;
const WAIT_LSN: u8 = 0x06;
const MANAGE: u8 = 0x07;
const IMPORT_FILE: u8 = 0x08;
const IMPORT_DATA: u8 = 0x09;
const REPLY: u8 = 0x80;
const ERROR: u8 = 0xFF;

const ITEM_HEADER: u8 = 0;
const ITEM_CONTROL_FILE: u8 = 1;
const ITEM_DIRECTORY: u8 = 2;
const ITEM_FILE: u8 = 3;
const ITEM_RELATIONS: u8 = 4;
const ITEM_PAGE: u8 = 5;
const ITEM_END: u8 = 6;

/// Stands for "does not exist" in size fields.
const NO_BLOCKS: u32 = u32::MAX;

fn put_rel(out: &mut BytesMut, rel: &RelTag) {
    out.put_u32_le(rel.spcnode);
    out.put_u32_le(rel.dbnode);
    out.put_u32_le(rel.relnode);
    out.put_u8(rel.fork as u8);
}

fn take_rel(fields: &mut Fields) -> Result<RelTag, DecodeError> {
    let (spcnode, dbnode, relnode) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let fork = ForkNumber::from_raw(fields.u8()?).ok_or_else(|| fields.bad("fork"))?;
    Ok(RelTag { spcnode, dbnode, relnode, fork })
}

fn put_ranges(out: &mut BytesMut, ranges: &[BlockRange]) {
    out.put_u32_le(u32::try_from(ranges.len()).expect("ranges fit a frame"));
    for range in ranges {
        out.put_u32_le(range.start);
        out.put_u32_le(range.count);
    }
}

fn take_ranges(fields: &mut Fields) -> Result<Vec<BlockRange>, DecodeError> {
    let count = fields.u32()? as usize;
    if count > fields.remaining() / 8 {
        return Err(fields.bad("number of ranges"));
    }
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let range = BlockRange { start: fields.u32()?, count: fields.u32()? };
        if range.count == 0 || range.start.checked_add(range.count).is_none() {
            return Err(fields.bad("range"));
        }
        ranges.push(range);
    }
    Ok(ranges)
}

fn take_lsn(fields: &mut Fields) -> Result<Lsn, DecodeError> {
    Ok(Lsn::new(fields.u64()?))
}

fn take_json<T: serde::de::DeserializeOwned>(fields: &mut Fields, field: &'static str) -> Result<T, DecodeError> {
    let text = fields.blob()?;
    serde_json::from_slice(&text).map_err(|_| fields.bad(field))
}

fn put_json(out: &mut BytesMut, value: &impl Serialize) {
    put_blob(out, &serde_json::to_vec(value).expect("messages are plain data"));
}

fn size_or_none(raw: u32) -> Option<BlockNumber> {
    (raw != NO_BLOCKS).then_some(raw)
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
            Request::GetPages { id, lsn, rel, ranges } => write_frame(out, GET_PAGES, |out| {
                out.put_u64_le(*id);
                out.put_u64_le(lsn.get());
                put_rel(out, rel);
                put_ranges(out, ranges);
            }),
            Request::GetRelSize { id, lsn, rel } => write_frame(out, GET_REL_SIZE, |out| {
                out.put_u64_le(*id);
                out.put_u64_le(lsn.get());
                put_rel(out, rel);
            }),
            Request::GetBaseBackup { id, lsn } => write_frame(out, GET_BASE_BACKUP, |out| {
                out.put_u64_le(*id);
                out.put_u64_le(lsn.get());
            }),
            Request::GetChanged { id, from, to } => write_frame(out, GET_CHANGED, |out| {
                out.put_u64_le(*id);
                out.put_u64_le(from.get());
                out.put_u64_le(to.get());
            }),
            Request::WaitLsn { id, lsn, timeout_ms } => write_frame(out, WAIT_LSN, |out| {
                out.put_u64_le(*id);
                out.put_u64_le(lsn.get());
                out.put_u32_le(*timeout_ms);
            }),
            Request::Manage { id, request } => write_frame(out, MANAGE, |out| {
                out.put_u64_le(*id);
                put_json(out, request);
            }),
            Request::ImportFile { path, length } => write_frame(out, IMPORT_FILE, |out| {
                put_blob(out, path.as_bytes());
                out.put_u64_le(*length);
            }),
            Request::ImportData { data } => write_frame(out, IMPORT_DATA, |out| out.put_slice(data)),
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
            GET_PAGES => Request::GetPages {
                id: fields.u64()?,
                lsn: take_lsn(&mut fields)?,
                rel: take_rel(&mut fields)?,
                ranges: {
                    let ranges = take_ranges(&mut fields)?;
                    let pages: u64 = ranges.iter().map(|range| u64::from(range.count)).sum();
                    if pages == 0 || pages > u64::from(PAGES_PER_REQUEST_MAX) {
                        return Err(fields.bad("number of pages"));
                    }
                    ranges
                },
            },
            GET_REL_SIZE => {
                Request::GetRelSize { id: fields.u64()?, lsn: take_lsn(&mut fields)?, rel: take_rel(&mut fields)? }
            }
            GET_BASE_BACKUP => Request::GetBaseBackup { id: fields.u64()?, lsn: take_lsn(&mut fields)? },
            GET_CHANGED => {
                Request::GetChanged { id: fields.u64()?, from: take_lsn(&mut fields)?, to: take_lsn(&mut fields)? }
            }
            WAIT_LSN => Request::WaitLsn { id: fields.u64()?, lsn: take_lsn(&mut fields)?, timeout_ms: fields.u32()? },
            MANAGE => Request::Manage { id: fields.u64()?, request: take_json(&mut fields, "management request")? },
            IMPORT_FILE => Request::ImportFile { path: fields.string("path")?, length: fields.u64()? },
            IMPORT_DATA => Request::ImportData { data: fields.remainder() },
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
            Response::Pages { id, pages } => write_frame(out, REPLY | GET_PAGES, |out| {
                out.put_u64_le(*id);
                out.put_slice(pages);
            }),
            Response::RelSize { id, nblocks } => write_frame(out, REPLY | GET_REL_SIZE, |out| {
                out.put_u64_le(*id);
                out.put_u32_le(nblocks.unwrap_or(NO_BLOCKS));
            }),
            Response::BackupItem { id, item } => write_frame(out, REPLY | GET_BASE_BACKUP, |out| {
                out.put_u64_le(*id);
                item.encode(out);
            }),
            Response::Changed { id, last, relations } => write_frame(out, REPLY | GET_CHANGED, |out| {
                out.put_u64_le(*id);
                out.put_u8(u8::from(*last));
                out.put_u32_le(u32::try_from(relations.len()).expect("relations fit a frame"));
                for relation in relations {
                    put_rel(out, &relation.rel);
                    out.put_u32_le(relation.nblocks_from.unwrap_or(NO_BLOCKS));
                    out.put_u32_le(relation.nblocks_to.unwrap_or(NO_BLOCKS));
                    put_ranges(out, &relation.ranges);
                }
            }),
            Response::LsnReached { id, last_record_lsn } => write_frame(out, REPLY | WAIT_LSN, |out| {
                out.put_u64_le(*id);
                out.put_u64_le(last_record_lsn.get());
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
            GET_PAGES => {
                let (id, pages) = (fields.u64()?, fields.remainder());
                if !pages.len().is_multiple_of(BLCKSZ) {
                    return Err(fields.bad("length of pages"));
                }
                Response::Pages { id, pages }
            }
            GET_REL_SIZE => Response::RelSize { id: fields.u64()?, nblocks: size_or_none(fields.u32()?) },
            GET_BASE_BACKUP => Response::BackupItem { id: fields.u64()?, item: BackupItem::decode(&mut fields)? },
            GET_CHANGED => {
                let (id, last) = (fields.u64()?, fields.u8()? != 0);
                let count = fields.u32()? as usize;
                let mut relations = Vec::with_capacity(count.min(fields.remaining() / 25));
                for _ in 0..count {
                    relations.push(ChangedRelation {
                        rel: take_rel(&mut fields)?,
                        nblocks_from: size_or_none(fields.u32()?),
                        nblocks_to: size_or_none(fields.u32()?),
                        ranges: take_ranges(&mut fields)?,
                    });
                }
                Response::Changed { id, last, relations }
            }
            WAIT_LSN => Response::LsnReached { id: fields.u64()?, last_record_lsn: take_lsn(&mut fields)? },
            MANAGE => Response::Manage { id: fields.u64()?, reply: take_json(&mut fields, "management reply")? },
            _ => return Err(DecodeError::UnknownKind(kind)),
        };
        fields.finish()?;
        Ok(response)
    }
}

impl BackupItem {
    fn encode(&self, out: &mut BytesMut) {
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

    fn decode(fields: &mut Fields) -> Result<BackupItem, DecodeError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rel() -> RelTag {
        RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Vm }
    }

    fn requests() -> Vec<Request> {
        vec![
            Request::Hello(Hello {
                version: 1,
                capabilities: 0,
                tenant: TenantId::from_bytes([3; 16]),
                timeline: TimelineId::NONE,
                token: "a.b".into(),
            }),
            Request::GetPages {
                id: 1,
                lsn: Lsn::new(99),
                rel: rel(),
                ranges: vec![BlockRange { start: 3, count: 2 }, BlockRange { start: 9, count: 1 }],
            },
            Request::GetRelSize { id: 2, lsn: Lsn::new(99), rel: rel() },
            Request::GetBaseBackup { id: 3, lsn: Lsn::new(99) },
            Request::GetChanged { id: 4, from: Lsn::new(1), to: Lsn::new(99) },
            Request::WaitLsn { id: 5, lsn: Lsn::new(99), timeout_ms: 10 },
            Request::Manage { id: 6, request: ManageRequest::ListTimelines },
            Request::ImportFile { path: "base/1/1259".into(), length: 8192 },
            Request::ImportData { data: Bytes::from_static(b"xyz") },
        ]
    }

    fn responses() -> Vec<Response> {
        let header = BaseBackupHeader {
            lsn: Lsn::new(99),
            prev_lsn: Lsn::new(50),
            system_id: SystemId::new(7),
            pg_tli: PgTli::new(1),
            wal_segment_size: WalSegmentSize::DEFAULT,
            pg_major: 15,
            checkpoint_hex: "00".into(),
        };
        let item = |item| Response::BackupItem { id: 3, item };
        vec![
            Response::HelloOk { version: 1, capabilities: 0 },
            Response::Pages { id: 1, pages: Bytes::from(vec![7; BLCKSZ]) },
            Response::RelSize { id: 2, nblocks: None },
            Response::RelSize { id: 2, nblocks: Some(0) },
            item(BackupItem::Header(header)),
            item(BackupItem::ControlFile(Bytes::from_static(b"c"))),
            item(BackupItem::Directory("base/9".into())),
            item(BackupItem::File { path: "PG_VERSION".into(), zstd: Bytes::from_static(b"z") }),
            item(BackupItem::Relations(vec![(rel(), 4)])),
            item(BackupItem::Page { rel: rel(), block: 1, page: Bytes::from(vec![1; BLCKSZ]) }),
            item(BackupItem::End),
            Response::Changed {
                id: 4,
                last: true,
                relations: vec![ChangedRelation {
                    rel: rel(),
                    nblocks_from: None,
                    nblocks_to: Some(3),
                    ranges: vec![BlockRange { start: 0, count: 3 }],
                }],
            },
            Response::LsnReached { id: 5, last_record_lsn: Lsn::new(100) },
            Response::Manage { id: 6, reply: ManageReply::Done },
            Response::Error { id: 7, code: ErrorCode::Unreadable, message: "gone".into() },
        ]
    }

    fn encoded(encode: impl FnOnce(&mut BytesMut)) -> Frame {
        let mut out = BytesMut::new();
        encode(&mut out);
        let frame = Frame::take(&mut out).expect("valid").expect("whole");
        assert!(out.is_empty());
        frame
    }

    #[test]
    fn messages_round_trip() {
        for request in requests() {
            assert_eq!(Request::decode(encoded(|out| request.encode(out))), Ok(request));
        }
        for response in responses() {
            assert_eq!(Response::decode(encoded(|out| response.encode(out))), Ok(response));
        }
    }

    #[test]
    fn every_truncation_is_an_error_or_a_shorter_message_never_a_panic() {
        for response in responses() {
            let frame = encoded(|out| response.encode(out));
            for length in 0..frame.payload.len().min(200) {
                let cut = Frame { kind: frame.kind, payload: frame.payload.slice(..length) };
                assert_ne!(Response::decode(cut), Ok(response.clone()));
            }
        }
        for request in requests() {
            let frame = encoded(|out| request.encode(out));
            for length in 0..frame.payload.len() {
                let cut = Frame { kind: frame.kind, payload: frame.payload.slice(..length) };
                assert_ne!(Request::decode(cut), Ok(request.clone()));
            }
        }
    }

    #[test]
    fn a_request_for_too_many_pages_is_refused() {
        let request = Request::GetPages {
            id: 1,
            lsn: Lsn::new(9),
            rel: rel(),
            ranges: vec![BlockRange { start: 0, count: PAGES_PER_REQUEST_MAX + 1 }],
        };
        let decoded = Request::decode(encoded(|out| request.encode(out)));
        assert_eq!(decoded, Err(DecodeError::BadField { kind: GET_PAGES, field: "number of pages" }));
    }
}
