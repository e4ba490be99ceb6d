//! What a safekeeper answers, and its codec.

use bytes::{BufMut, Bytes, BytesMut};

use ardent_types::{Lsn, WalSegmentSize};

use super::ErrorCode;
use super::append::{AppendReply, WalChunk};
use super::codec::*;
use super::election::{BeginReply, VoteReply};
use super::manage::ManageReply;
use super::members::VoteSource;
use super::receive::Received;
use crate::frame::{DecodeError, Fields, Frame, put_blob, put_json, take_json, take_lsn, write_frame};

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
    /// Answer to [`Request::VoteIn`](super::Request::VoteIn).
    VoteIn(VoteReply, VoteSource),
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
    /// First answer to [`Request::Receive`](super::Request::Receive): the descriptor may come.
    Receiving,
    /// Last answer to [`Request::Receive`](super::Request::Receive).
    Received(Received),
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

impl Response {
    /// Appends the response's frame to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Response::HelloOk { version, capabilities } => write_frame(out, REPLY | HELLO, |out| {
                out.put_u16_le(*version);
                out.put_u32_le(*capabilities);
            }),
            Response::Vote(reply) => write_frame(out, REPLY | VOTE, |out| put_vote_reply(out, reply)),
            Response::VoteIn(reply, source) => write_frame(out, REPLY | VOTE_IN, |out| {
                source.encode(out);
                put_vote_reply(out, reply);
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
            Response::Receiving => write_frame(out, REPLY | RECEIVE, |_| {}),
            Response::Received(received) => write_frame(out, REPLY | RECEIVED, |out| received.encode(out)),
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
            VOTE => Response::Vote(take_vote_reply(&mut fields)?),
            VOTE_IN => {
                let source = VoteSource::decode(&mut fields)?;
                Response::VoteIn(take_vote_reply(&mut fields)?, source)
            }
            BEGIN => Response::Begin(BeginReply {
                attempt: fields.u32()?,
                term: take_term(&mut fields)?,
                flush_lsn: take_lsn(&mut fields)?,
            }),
            APPEND => {
                Response::Append(AppendReply { term: take_term(&mut fields)?, flush_lsn: take_lsn(&mut fields)? })
            }
            RECEIVE => Response::Receiving,
            RECEIVED => Response::Received(Received::decode(&mut fields)?),
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

fn put_vote_reply(out: &mut BytesMut, reply: &VoteReply) {
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
}

fn take_vote_reply(fields: &mut Fields) -> Result<VoteReply, DecodeError> {
    Ok(VoteReply {
        attempt: fields.u32()?,
        term: take_term(fields)?,
        granted: match fields.u8()? {
            0 => false,
            1 => true,
            _ => return Err(fields.bad("granted")),
        },
        flush_lsn: take_lsn(fields)?,
        commit: take_record_end(fields)?,
        start: take_record_end(fields)?,
        oldest_lsn: take_lsn(fields)?,
        pg_major: fields.u32()?,
        wal_segment_size: {
            let bytes = fields.u32()?;
            WalSegmentSize::new(bytes).map_err(|_| fields.bad("segment size"))?
        },
        history: take_history(fields)?,
    })
}
