//! What a client asks, and its codec.

use bytes::{BufMut, Bytes, BytesMut};

use ardent_types::{Lsn, RelTag, TenantId, TimelineId};

use super::codec::*;
use super::manage::ManageRequest;
use super::{BlockRange, Hello, KEPT_PART_LEN_MAX, KeptAt, MAGIC, PAGES_PER_REQUEST_MAX};
use crate::frame::{
    DecodeError, FRAME_HEADER_LEN, FRAME_LEN_MAX, Fields, Frame, put_blob, put_json, take_json, take_lsn, write_frame,
};

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
    /// A part of what a compute that was suspended leaves, see [`ManageRequest::KeepState`]; part 0 begins it. Answered by
    /// [`ManageReply::Done`].
    KeepPart {
        /// Repeated by the reply.
        id: u64,
        /// Whose.
        at: KeptAt,
        /// Counts from 0, without gaps.
        part: u32,
        /// At most [`KEPT_PART_LEN_MAX`] bytes.
        data: Bytes,
    },
    /// A part of what was kept. Answered by [`Response::KeptPart`].
    GetKeptPart {
        /// Repeated by the reply.
        id: u64,
        /// Which.
        at: KeptAt,
        /// Counts from 0.
        part: u32,
    },
}

impl Request {
    /// What goes before so many bytes of [`Request::ImportData`], for a sender that does not copy them. Panics where a frame can't be as
    /// long.
    pub fn import_data_header(length: usize) -> [u8; FRAME_HEADER_LEN] {
        let length = length + 1;
        assert!(length <= FRAME_LEN_MAX, "frame of {length} bytes");
        let mut header = [IMPORT_DATA; FRAME_HEADER_LEN];
        header[..4].copy_from_slice(&(length as u32).to_le_bytes());
        header
    }

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
            Request::KeepPart { id, at, part, data } => write_frame(out, KEEP_PART, |out| {
                out.put_u64_le(*id);
                put_kept_at(out, *at);
                out.put_u32_le(*part);
                out.put_slice(data);
            }),
            Request::GetKeptPart { id, at, part } => write_frame(out, GET_KEPT_PART, |out| {
                out.put_u64_le(*id);
                put_kept_at(out, *at);
                out.put_u32_le(*part);
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
            KEEP_PART => {
                let (id, at, part) = (fields.u64()?, take_kept_at(&mut fields)?, fields.u32()?);
                let data = fields.remainder();
                if data.len() > KEPT_PART_LEN_MAX {
                    return Err(fields.bad("length of a part"));
                }
                Request::KeepPart { id, at, part, data }
            }
            GET_KEPT_PART => {
                Request::GetKeptPart { id: fields.u64()?, at: take_kept_at(&mut fields)?, part: fields.u32()? }
            }
            unknown => return Err(DecodeError::UnknownKind(unknown)),
        };
        fields.finish()?;
        Ok(request)
    }
}
