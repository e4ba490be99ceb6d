//! Reads a message from front to back.

use ardent_types::Lsn;
use bytes::{Buf as _, Bytes};

use crate::error::DecodeError;

pub(crate) struct Fields {
    body: Bytes,
    length: usize,
}

impl Fields {
    pub(crate) fn new(body: Bytes) -> Fields {
        Fields { length: body.len(), body }
    }

    pub(crate) fn wrong(&self, expected: &'static str) -> DecodeError {
        DecodeError { offset: self.length - self.body.len(), expected }
    }

    fn need(&self, length: usize, expected: &'static str) -> Result<(), DecodeError> {
        if self.body.len() < length { Err(self.wrong(expected)) } else { Ok(()) }
    }

    pub(crate) fn u8(&mut self, expected: &'static str) -> Result<u8, DecodeError> {
        self.need(1, expected)?;
        Ok(self.body.get_u8())
    }

    pub(crate) fn u16(&mut self, expected: &'static str) -> Result<u16, DecodeError> {
        self.need(2, expected)?;
        Ok(self.body.get_u16())
    }

    pub(crate) fn u32(&mut self, expected: &'static str) -> Result<u32, DecodeError> {
        self.need(4, expected)?;
        Ok(self.body.get_u32())
    }

    pub(crate) fn i32(&mut self, expected: &'static str) -> Result<i32, DecodeError> {
        self.need(4, expected)?;
        Ok(self.body.get_i32())
    }

    pub(crate) fn i64(&mut self, expected: &'static str) -> Result<i64, DecodeError> {
        self.need(8, expected)?;
        Ok(self.body.get_i64())
    }

    pub(crate) fn lsn(&mut self, expected: &'static str) -> Result<Lsn, DecodeError> {
        self.need(8, expected)?;
        Ok(Lsn::new(self.body.get_u64()))
    }

    pub(crate) fn bytes(&mut self, length: usize, expected: &'static str) -> Result<Bytes, DecodeError> {
        self.need(length, expected)?;
        Ok(self.body.split_to(length))
    }

    /// A text up to its zero byte.
    pub(crate) fn text(&mut self, expected: &'static str) -> Result<String, DecodeError> {
        let length = self.body.iter().position(|&byte| byte == 0).ok_or_else(|| self.wrong(expected))?;
        let text = std::str::from_utf8(&self.body[..length]).map_err(|_| self.wrong(expected))?.to_owned();
        self.body.advance(length + 1);
        Ok(text)
    }

    /// How many more elements of at least `size` bytes there can be: what a count says is not believed before.
    pub(crate) fn at_most(&self, count: usize, size: usize) -> usize {
        count.min(self.body.len() / size.max(1))
    }

    pub(crate) fn end(&self) -> Result<(), DecodeError> {
        if self.body.is_empty() { Ok(()) } else { Err(self.wrong("the message's end")) }
    }
}
