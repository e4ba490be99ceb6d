//! Bytes that were fed and not yet read.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// A queue of byte slices, read from the front. What was taken out of the front one stays readable until the next one is looked at.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    front: Bytes,
    /// How much of the front was read.
    at: usize,
    rest: VecDeque<Bytes>,
    /// Bytes in `rest`.
    rest_len: usize,
}

impl Chunks {
    pub(super) fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.rest_len += bytes.len();
            self.rest.push_back(bytes);
        }
    }

    /// What can be read without joining chunks; empty only if nothing is there. Chunks that were read to their end are dropped.
    #[inline(always)]
    pub(super) fn front(&mut self) -> &[u8] {
        if self.at == self.front.len() {
            self.next_chunk();
        }
        &self.front[self.at..]
    }

    /// The next `length` bytes in one piece; `None` if fewer have come. Copies only where they lie in several chunks.
    #[inline(always)]
    pub(super) fn peek(&mut self, length: usize) -> Option<&[u8]> {
        if self.front.len() - self.at < length && !self.join(length) {
            return None;
        }
        Some(&self.front[self.at..self.at + length])
    }

    /// Moves past `length` bytes that [`Chunks::front`] or [`Chunks::peek`] showed, and says where they are.
    #[inline(always)]
    pub(super) fn take(&mut self, length: usize) -> Range<usize> {
        let start = self.at;
        self.at += length;
        assert!(self.at <= self.front.len(), "only what was seen is taken");
        start..self.at
    }

    /// Bytes taken out since the front was last looked at.
    #[inline(always)]
    pub(super) fn taken(&self, place: Range<usize>) -> &[u8] {
        &self.front[place]
    }

    #[cold]
    fn next_chunk(&mut self) {
        self.front = self.rest.pop_front().unwrap_or_default();
        self.rest_len -= self.front.len();
        self.at = 0;
    }

    /// Makes the front at least `length` bytes long, if there are that many.
    #[cold]
    fn join(&mut self, length: usize) -> bool {
        if self.at == self.front.len() {
            self.next_chunk();
        }
        let left = self.front.len() - self.at;
        let available = left + self.rest_len;
        if left >= length || available < length {
            return available >= length;
        }
        let mut joined = BytesMut::with_capacity(length);
        joined.extend_from_slice(&self.front[self.at..]);
        while joined.len() < length {
            let mut next = self.rest.pop_front().expect("there are enough bytes");
            let wanted = (length - joined.len()).min(next.len());
            self.rest_len -= wanted;
            joined.extend_from_slice(&next.split_to(wanted));
            if !next.is_empty() {
                self.rest.push_front(next);
            }
        }
        self.front = joined.freeze();
        self.at = 0;
        true
    }
}
