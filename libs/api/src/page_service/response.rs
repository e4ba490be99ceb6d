//! What the page server answers, and its codec.

use bytes::{BufMut, Bytes, BytesMut};

use ardent_types::{BLCKSZ, BlockNumber, Lsn, RelTag};

use super::backup::BackupItem;
use super::codec::*;
use super::manage::ManageReply;
use super::{BlockRange, ErrorCode};
use crate::frame::{DecodeError, Fields, Frame, put_blob, put_json, take_json, take_lsn, write_frame};

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
    /// A part of what was kept.
    KeptPart {
        /// Request's id.
        id: u64,
        /// As it was given.
        data: Bytes,
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

impl Response {
    /// Appends the frame of a [`Response::Pages`] whose pages `fill` appends, so that they need not be gathered elsewhere first. On
    /// an error `out` is as it was.
    pub fn encode_pages<E>(
        out: &mut BytesMut,
        id: u64,
        fill: impl FnOnce(&mut BytesMut) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = out.len();
        let mut result = Ok(());
        write_frame(out, REPLY | GET_PAGES, |out| {
            out.put_u64_le(id);
            result = fill(out);
        });
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

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
            Response::KeptPart { id, data } => write_frame(out, REPLY | GET_KEPT_PART, |out| {
                out.put_u64_le(*id);
                out.put_slice(data);
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
            GET_KEPT_PART => Response::KeptPart { id: fields.u64()?, data: fields.remainder() },
            WAIT_LSN => Response::LsnReached { id: fields.u64()?, last_record_lsn: take_lsn(&mut fields)? },
            MANAGE => Response::Manage { id: fields.u64()?, reply: take_json(&mut fields, "management reply")? },
            _ => return Err(DecodeError::UnknownKind(kind)),
        };
        fields.finish()?;
        Ok(response)
    }
}
