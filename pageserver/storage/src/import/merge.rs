//! Goes over all pieces of an import in order.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use super::piece::{Packed, Piece, damaged_memory};
use super::run::RunReader;
use crate::error::CommitError;
use crate::stored_key::StoredKey;

/// Where pieces come from, in order.
pub(super) enum Origin {
    Run(RunReader),
    /// From this one on.
    Memory(Arc<Vec<Piece>>, usize),
}

struct Source {
    origin: Origin,
    /// What was taken from the origin already.
    ahead: VecDeque<Piece>,
}

impl Source {
    fn fill(&mut self) -> Result<(), CommitError> {
        if self.ahead.is_empty() {
            match &mut self.origin {
                Origin::Run(reader) => self.ahead.extend(reader.next()?),
                Origin::Memory(pieces, next) => {
                    self.ahead.extend(pieces.get(*next).cloned());
                    *next += 1;
                }
            }
        }
        Ok(())
    }

    /// Puts the values of a piece of its own in front of what comes.
    fn take_apart(&mut self, packed: &Packed) -> Result<(), CommitError> {
        let values = packed.unpack().map_err(|expected| match &self.origin {
            Origin::Run(reader) => reader.corrupt(expected),
            Origin::Memory(..) => damaged_memory(expected),
        })?;
        values.into_iter().rev().for_each(|loose| self.ahead.push_front(Piece::Loose(loose)));
        Ok(())
    }
}

/// Pieces by key, none of which has a key of another. Of two values of one key that of the source named last is given.
pub(super) struct Merge {
    sources: Vec<Source>,
    /// First keys of what each source has next. Later sources come first among equals.
    heap: BinaryHeap<Reverse<(StoredKey, Reverse<usize>)>>,
    last: Option<StoredKey>,
}

impl Merge {
    pub(super) fn new(origins: Vec<Origin>) -> Result<Merge, CommitError> {
        let sources = origins.into_iter().map(|origin| Source { origin, ahead: VecDeque::new() }).collect();
        let mut merge = Merge { sources, heap: BinaryHeap::new(), last: None };
        for index in 0..merge.sources.len() {
            merge.look_at(index)?;
        }
        Ok(merge)
    }

    fn look_at(&mut self, index: usize) -> Result<(), CommitError> {
        let source = &mut self.sources[index];
        source.fill()?;
        if let Some(piece) = source.ahead.front() {
            self.heap.push(Reverse((piece.first(), Reverse(index))));
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> Result<Option<Piece>, CommitError> {
        while let Some(Reverse((first, Reverse(index)))) = self.heap.pop() {
            let source = &mut self.sources[index];
            let piece = source.ahead.pop_front().expect("what is in the heap is ahead");
            let next_of_others = self.heap.peek().map(|Reverse((key, _))| *key);
            let was_given = self.last.is_some_and(|last| last >= first);
            if let Piece::Packed(packed) = &piece
                && (was_given || next_of_others.is_some_and(|key| key <= packed.last))
            {
                source.take_apart(packed)?;
                self.look_at(index)?;
                continue;
            }
            self.look_at(index)?;
            if !was_given {
                self.last = Some(piece.last());
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }
}
