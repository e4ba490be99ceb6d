//! Message tags, and the fields that several messages share.

use bytes::{BufMut, Bytes, BytesMut};

use ardent_types::Term;

use super::election::{RecordEnd, TermStart};
use super::{HISTORY_LEN_MAX, WAL_LEN_MAX};
use crate::frame::{DecodeError, Fields, take_lsn};

pub(super) const HELLO: u8 = 0x01;
pub(super) const VOTE: u8 = 0x02;
pub(super) const BEGIN: u8 = 0x03;
pub(super) const APPEND: u8 = 0x04;
pub(super) const READ_WAL: u8 = 0x05;
pub(super) const FOLLOW: u8 = 0x06;
pub(super) const POSITION: u8 = 0x07;
pub(super) const MANAGE: u8 = 0x08;
pub(super) const AWAIT: u8 = 0x09;
pub(super) const VOTE_IN: u8 = 0x0A;
pub(super) const RECEIVE: u8 = 0x0B;
/// Only as an answer: the second to a [`RECEIVE`].
pub(super) const RECEIVED: u8 = 0x0C;
pub(super) const REPLY: u8 = 0x80;
pub(super) const ERROR: u8 = 0xFF;

pub(super) fn take_term(fields: &mut Fields) -> Result<Term, DecodeError> {
    Ok(Term::new(fields.u64()?))
}

pub(super) fn put_record_end(out: &mut BytesMut, at: &RecordEnd) {
    out.put_u64_le(at.end.get());
    out.put_u64_le(at.start.get());
}

pub(super) fn take_record_end(fields: &mut Fields) -> Result<RecordEnd, DecodeError> {
    Ok(RecordEnd { end: take_lsn(fields)?, start: take_lsn(fields)? })
}

pub(super) fn put_history(out: &mut BytesMut, history: &[TermStart]) {
    out.put_u32_le(u32::try_from(history.len()).expect("a history fits a frame"));
    for entry in history {
        out.put_u64_le(entry.term.get());
        out.put_u64_le(entry.lsn.get());
    }
}

pub(super) fn take_history(fields: &mut Fields) -> Result<Vec<TermStart>, DecodeError> {
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

pub(super) fn take_wal(fields: &mut Fields) -> Result<Bytes, DecodeError> {
    let data = fields.remainder();
    if data.len() > WAL_LEN_MAX { Err(fields.bad("length of WAL")) } else { Ok(data) }
}
