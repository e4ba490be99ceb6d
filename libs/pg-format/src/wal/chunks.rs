//! Bytes that were fed and not yet read.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

/// A queue of byte slices, read from the front.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    front: Bytes,
    rest: VecDeque<Bytes>,
}

impl Chunks {
    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        if self.front.is_empty() {
            self.front = bytes;
        } else {
            self.rest.push_back(bytes);
        }
    }

    /// What can be read without joining chunks.
    #[inline(always)]
    pub(super) fn front(&self) -> &[u8] {
        &self.front
    }

    /// The next `length` bytes in one piece; `None` if fewer have come. Copies only where they lie in several chunks.
    #[inline(always)]
    pub(super) fn peek(&mut self, length: usize) -> Option<&[u8]> {
        if self.front.len() < length && !self.join(length) {
            return None;
        }
        Some(&self.front[..length])
    }

    /// The next `length` bytes, taken out; `None` if fewer have come.
    #[inline(always)]
    pub(super) fn take(&mut self, length: usize) -> Option<Bytes> {
        if self.front.len() < length && !self.join(length) {
            return None;
        }
        let taken = self.front.split_to(length);
        self.refill();
        Some(taken)
    }

    /// Moves past `length` bytes of the front chunk.
    #[inline(always)]
    pub(super) fn advance_front(&mut self, length: usize) {
        self.front.advance(length);
        self.refill();
    }

    #[inline(always)]
    fn refill(&mut self) {
        if self.front.is_empty() {
            if let Some(next) = self.rest.pop_front() {
                self.front = next;
            }
        }
    }

    /// Makes the front at least `length` bytes long, if there are that many.
    #[cold]
    fn join(&mut self, length: usize) -> bool {
        let available = self.front.len() + self.rest.iter().map(Bytes::len).sum::<usize>();
        if available < length {
            return false;
        }
        let mut joined = BytesMut::with_capacity(length);
        joined.extend_from_slice(&self.front);
        while joined.len() < length {
            let mut next = self.rest.pop_front().expect("there are enough bytes");
            let wanted = (length - joined.len()).min(next.len());
            joined.extend_from_slice(&next.split_to(wanted));
            if !next.is_empty() {
                self.rest.push_front(next);
            }
        }
        self.front = joined.freeze();
        true
    }
}
