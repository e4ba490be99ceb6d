//! A walsender's connection that its writer hands over to the safekeeper.

use bytes::{BufMut as _, Bytes, BytesMut};

use ardent_types::{Lsn, MemberGeneration, Term};

use super::RecordEnd;
use super::codec::{put_record_end, take_record_end, take_term};
use crate::frame::{DecodeError, Fields, put_blob, take_lsn};

/// From where on, and as whom, a safekeeper writes what it receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receive {
    /// The writer's term, which has begun.
    pub term: Term,
    /// Which members the writer goes by. They must be this safekeeper alone.
    pub generation: MemberGeneration,
    /// The end of the log, all of it committed.
    pub end: RecordEnd,
    /// What the writer has read of the walsender's messages already, cut anywhere.
    pub read: Bytes,
}

/// How the connection of a walsender ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// End of the log, durable.
    pub end_lsn: Lsn,
    /// How.
    pub end: StreamEnd,
    /// What there is to say of it. Empty at [`StreamEnd::Complete`].
    pub message: String,
}

/// How a walsender's stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamEnd {
    /// Postgres has stopped and said goodbye, which it does only after everything was confirmed.
    Complete = 0,
    /// It was lost, or Postgres ended it.
    Lost = 1,
    /// It is not what a walsender sends, or not WAL, or Postgres has the WAL no more that is to come. Trying again does not help.
    Malformed = 2,
}

impl Receive {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.term.get());
        out.put_u64_le(self.generation.get());
        put_record_end(out, &self.end);
        out.put_slice(&self.read);
    }

    pub(super) fn decode(fields: &mut Fields) -> Result<Receive, DecodeError> {
        Ok(Receive {
            term: take_term(fields)?,
            generation: MemberGeneration::new(fields.u64()?),
            end: take_record_end(fields)?,
            read: fields.remainder(),
        })
    }
}

impl Received {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.end_lsn.get());
        out.put_u8(self.end as u8);
        put_blob(out, self.message.as_bytes());
    }

    pub(super) fn decode(fields: &mut Fields) -> Result<Received, DecodeError> {
        let end_lsn = take_lsn(fields)?;
        let end = match fields.u8()? {
            0 => StreamEnd::Complete,
            1 => StreamEnd::Lost,
            2 => StreamEnd::Malformed,
            _ => return Err(fields.bad("end of stream")),
        };
        Ok(Received { end_lsn, end, message: fields.string("message")? })
    }
}
