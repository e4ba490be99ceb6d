//! What an import is made of while it is sorted: neighbours that are packed already, and values by themselves.

use bytes::Bytes;

use crate::error::{CommitError, CorruptFile};
use crate::layer::{Group, unpack};
use crate::stored_key::StoredKey;
use crate::version::VersionKind;

/// Content of one key, or of some that follow each other.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    Packed(Packed),
    Loose(Loose),
}

/// A whole group of an image layer: each key from the first on, without a gap.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    pub(super) first: StoredKey,
    pub(super) last: StoredKey,
    pub(super) count: u32,
    /// As it is in the file.
    pub(super) block: Bytes,
}

/// One key's content.
#[derive(Clone, Debug)]
pub(super) struct Loose {
    pub(super) key: StoredKey,
    pub(super) kind: VersionKind,
    pub(super) bytes: Bytes,
}

impl Piece {
    pub(super) fn first(&self) -> StoredKey {
        match self {
            Piece::Packed(packed) => packed.first,
            Piece::Loose(loose) => loose.key,
        }
    }

    pub(super) fn last(&self) -> StoredKey {
        match self {
            Piece::Packed(packed) => packed.last,
            Piece::Loose(loose) => loose.key,
        }
    }

    /// Memory in bytes.
    pub(super) fn weight(&self) -> usize {
        let held = match self {
            Piece::Packed(packed) => packed.block.len(),
            Piece::Loose(loose) => loose.bytes.len(),
        };
        held + size_of::<(u64, Piece)>()
    }
}

impl Packed {
    /// `None` where there are no `count` keys from `first` on.
    pub(super) fn new(first: StoredKey, count: u32, block: Bytes) -> Option<Packed> {
        let last = first.checked_add(count.checked_sub(1)?)?;
        Some(Packed { first, last, count, block })
    }

    /// Its values by themselves; what was expected where the block is damaged.
    pub(super) fn unpack(&self) -> Result<Vec<Loose>, String> {
        unpack_group(&self.block)
    }
}

/// The values of a packed group; what was expected where it is damaged.
pub(super) fn unpack_group(block: &Bytes) -> Result<Vec<Loose>, String> {
    Ok(loose(&Group::parse(unpack(block)?)?))
}

/// The values of a group. They share its memory.
pub(super) fn loose(group: &Group) -> Vec<Loose> {
    let one = |at| Loose { key: group.key(at), kind: group.kind(at), bytes: group.value(at) };
    (0..group.len()).map(one).collect()
}

/// Pieces by key, none of which has a key of another. Each comes with a number: of two values of one key the one with the higher number
/// is kept. What was expected where a block is damaged.
pub(super) fn in_order(mut pieces: Vec<(u64, Piece)>) -> Result<Vec<Piece>, String> {
    pieces.sort_unstable_by_key(|(number, piece)| (piece.first(), *number));
    let mut sorted = Vec::with_capacity(pieces.len());
    let mut rest = pieces.into_iter().peekable();
    while let Some((number, piece)) = rest.next() {
        let mut last = piece.last();
        let mut tangled = Vec::new();
        while let Some(next) = rest.next_if(|(_, next)| next.first() <= last) {
            last = last.max(next.1.last());
            tangled.push(next);
        }
        if tangled.is_empty() {
            sorted.push(piece);
            continue;
        }
        let mut values = Vec::new();
        for (number, piece) in std::iter::once((number, piece)).chain(tangled) {
            match piece {
                Piece::Loose(loose) => values.push((number, loose)),
                Piece::Packed(packed) => values.extend(packed.unpack()?.into_iter().map(|loose| (number, loose))),
            }
        }
        // The newest of each key first, which is the one that `dedup` keeps.
        values.sort_unstable_by_key(|(number, loose)| (loose.key, std::cmp::Reverse(*number)));
        values.dedup_by_key(|(_, loose)| loose.key);
        sorted.extend(values.into_iter().map(|(_, loose)| Piece::Loose(loose)));
    }
    Ok(sorted)
}

/// What errors of it name as their file.
pub(crate) const PACKED_IN_MEMORY: &str = "what was packed in memory";

/// What was packed here can't be unpacked.
pub(super) fn damaged_memory(expected: String) -> CommitError {
    let (file, keys) = (PACKED_IN_MEMORY.to_owned(), "everything that is imported".to_owned());
    CommitError::Corrupt(CorruptFile { file, offset: 0, expected, keys })
}
