//! What a client asks, and its codec.

use bytes::{BufMut, BytesMut};

use ardent_types::{Lsn, TenantId, Term, TimelineId};

use super::append::Append;
use super::codec::*;
use super::election::{Begin, ProposerId, Vote};
use super::manage::ManageRequest;
use super::members::Membership;
use super::receive::Receive;
use super::{Hello, MAGIC};
use crate::frame::{DecodeError, Fields, Frame, put_blob, put_json, take_json, take_lsn, write_frame};

/// A client's message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Bind the connection.
    Hello(Hello),
    /// Ask for a term. Needs write rights, as all of a writer's messages.
    Vote(Vote),
    /// The same of a writer that goes by these members; what it sends on this connection from here on counts in their generation. One that
    /// sends plain votes goes by generation 0. Only to a safekeeper with [`CAN_CHANGE_MEMBERS`](super::CAN_CHANGE_MEMBERS).
    VoteIn(Vote, Membership),
    /// Start writing in a term.
    Begin(Begin),
    /// Write. Answered when durable; not answered when it has no data.
    Append(Append),
    /// Write what a walsender sends. Answered by [`Response::Receiving`](super::Response::Receiving), upon which the client sends the walsender's
    /// connection as a descriptor; then by [`Response::Received`](super::Response::Received) when that has ended. Only to a safekeeper with
    /// [`CAN_RECEIVE`](super::CAN_RECEIVE), over a Unix socket, as the first of a writer's messages on a connection.
    Receive(Receive),
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
    /// A follower's: somebody waits for WAL up to here, which is not to be held back to be sent with more. Not answered. Only to a safekeeper
    /// with [`CAN_HURRY`](super::CAN_HURRY).
    Await {
        /// First byte that nobody waits for.
        lsn: Lsn,
    },
    /// Anything that is not on a hot path.
    Manage {
        /// Repeated by the reply.
        id: u64,
        /// What to do.
        request: ManageRequest,
    },
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
            Request::Vote(vote) => write_frame(out, VOTE, |out| put_vote(out, vote)),
            Request::VoteIn(vote, membership) => write_frame(out, VOTE_IN, |out| {
                put_vote(out, vote);
                membership.encode(out);
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
            Request::Receive(receive) => write_frame(out, RECEIVE, |out| receive.encode(out)),
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
            Request::Await { lsn } => write_frame(out, AWAIT, |out| out.put_u64_le(lsn.get())),
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
            VOTE => Request::Vote(take_vote(&mut fields)?),
            VOTE_IN => {
                let vote = take_vote(&mut fields)?;
                Request::VoteIn(vote, Membership::decode(&mut fields)?)
            }
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
            RECEIVE => Request::Receive(Receive::decode(&mut fields)?),
            READ_WAL => Request::ReadWal {
                id: fields.u64()?,
                term: take_term(&mut fields)?,
                from: take_lsn(&mut fields)?,
                to: take_lsn(&mut fields)?,
            },
            FOLLOW => Request::Follow { from: take_lsn(&mut fields)? },
            POSITION => Request::Position { durable_lsn: take_lsn(&mut fields)? },
            AWAIT => Request::Await { lsn: take_lsn(&mut fields)? },
            MANAGE => Request::Manage { id: fields.u64()?, request: take_json(&mut fields, "management request")? },
            unknown => return Err(DecodeError::UnknownKind(unknown)),
        };
        fields.finish()?;
        Ok(request)
    }
}

fn put_vote(out: &mut BytesMut, vote: &Vote) {
    out.put_u32_le(vote.attempt);
    out.put_u64_le(vote.term.get());
    out.put_u128_le(vote.proposer.get());
}

fn take_vote(fields: &mut Fields) -> Result<Vote, DecodeError> {
    Ok(Vote {
        attempt: fields.u32()?,
        term: take_term(fields)?,
        proposer: ProposerId::new(u128::from_le_bytes(fields.array()?)),
    })
}
