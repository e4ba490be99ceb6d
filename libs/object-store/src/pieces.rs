//! A store read in large pieces, for whoever goes over whole objects in small steps.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::error::{ErrorKind, StoreError};
use crate::name::ObjectName;
use crate::store::{ListPage, ListRequest, ObjectMeta, ObjectPart, ObjectStore, UnfinishedUpload, part_inside};

/// What is asked for at once.
const PIECE_BYTES: u64 = 2 << 20;
/// Pieces that stay in memory: where a reader is, and an object's end, which says what is where.
const PIECES_KEPT: usize = 3;
/// Longer parts are asked for as they are.
const PART_BYTES_MAX: u64 = 2 * PIECE_BYTES;

/// A part of an object that begins at a multiple of [`PIECE_BYTES`].
#[derive(Clone, Debug)]
struct Piece {
    name: ObjectName,
    number: u64,
    part: ObjectPart,
}

/// A store in front of another that answers small ranges from pieces of 2 MiB, so that an object which is read from begin to end takes
/// few requests. It holds at most 6 MiB, and is meant for one reader: others wait for its requests.
#[derive(Debug)]
pub struct PieceStore {
    inner: Arc<dyn ObjectStore>,
    /// The newest is the last.
    pieces: Mutex<VecDeque<Piece>>,
}

impl PieceStore {
    /// Reads `inner` in pieces.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        PieceStore { inner, pieces: Mutex::default() }
    }

    fn piece(&self, name: &ObjectName, number: u64) -> Result<ObjectPart, StoreError> {
        let mut pieces = self.pieces.lock();
        let is_wanted = |piece: &Piece| piece.number == number && piece.name == *name;
        let piece = match pieces.iter().position(is_wanted).and_then(|at| pieces.remove(at)) {
            Some(piece) => piece,
            None => {
                let start = number * PIECE_BYTES;
                let part = self.inner.get_part(name, start..start.saturating_add(PIECE_BYTES))?;
                Piece { name: name.clone(), number, part }
            }
        };
        let part = piece.part.clone();
        while pieces.len() >= PIECES_KEPT {
            pieces.pop_front();
        }
        pieces.push_back(piece);
        Ok(part)
    }

    /// Has nothing of an object any more.
    fn forget(&self, name: &ObjectName) {
        self.pieces.lock().retain(|piece| piece.name != *name);
    }
}

impl ObjectStore for PieceStore {
    fn put(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        let put = self.inner.put(name, body);
        self.forget(name);
        put
    }

    fn put_if_absent(&self, name: &ObjectName, body: &[u8]) -> Result<(), StoreError> {
        let put = self.inner.put_if_absent(name, body);
        self.forget(name);
        put
    }

    fn put_file(&self, name: &ObjectName, path: &Path) -> Result<(), StoreError> {
        let put = self.inner.put_file(name, path);
        self.forget(name);
        put
    }

    fn get(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.inner.get(name)
    }

    fn get_part(&self, name: &ObjectName, range: Range<u64>) -> Result<ObjectPart, StoreError> {
        if range.is_empty() || range.end - range.start > PART_BYTES_MAX {
            return self.inner.get_part(name, range);
        }
        let object_size_bytes = match self.piece(name, range.start / PIECE_BYTES) {
            Ok(piece) => piece.object_size_bytes,
            // Asked for as it is, the error says which range it was.
            Err(error) if error.kind() == ErrorKind::OutOfRange => return self.inner.get_part(name, range),
            Err(error) => return Err(error),
        };
        let wanted = part_inside(name, &range, object_size_bytes)?;
        let mut body = BytesMut::with_capacity((wanted.end - wanted.start) as usize);
        let mut at = wanted.start;
        while at < wanted.end {
            let number = at / PIECE_BYTES;
            let start = number * PIECE_BYTES;
            let end = wanted.end.min(start.saturating_add(PIECE_BYTES));
            let piece = self.piece(name, number)?;
            let Some(bytes) = piece.body.get((at - start) as usize..(end - start) as usize) else {
                // Another object has its name meanwhile.
                self.forget(name);
                return self.inner.get_part(name, range);
            };
            body.extend_from_slice(bytes);
            at = end;
        }
        Ok(ObjectPart { body: body.freeze(), object_size_bytes })
    }

    fn head(&self, name: &ObjectName) -> Result<ObjectMeta, StoreError> {
        self.inner.head(name)
    }

    fn list(&self, request: &ListRequest) -> Result<ListPage, StoreError> {
        self.inner.list(request)
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let deleted = self.inner.delete(name);
        self.forget(name);
        deleted
    }

    fn delete_many(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        let deleted = self.inner.delete_many(names);
        names.iter().for_each(|name| self.forget(name));
        deleted
    }

    fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.inner.unfinished_uploads()
    }

    fn give_up_upload(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.inner.give_up_upload(upload)
    }

    fn distrust(&self, name: &ObjectName) -> bool {
        let is_nearer = self.inner.distrust(name);
        if is_nearer {
            self.forget(name);
        }
        is_nearer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CountedStore, MemoryStore, Operation, conformance};

    #[test]
    fn small_steps_over_an_object_take_a_request_for_each_piece() {
        let counted = Arc::new(CountedStore::new(Arc::new(MemoryStore::new())));
        let name = ObjectName::new("a/b").expect("a name");
        let body: Vec<u8> = (0..2 * PIECE_BYTES + 1000).map(|at| (at % 251) as u8).collect();
        counted.put(&name, &body).expect("put");
        let store = PieceStore::new(counted.clone());
        let end = body.len() as u64;
        // Its end first, as layer files are read, then all from the begin on, also across two pieces.
        let mut ranges = vec![end - 10..end];
        let starts: Vec<u64> = (0..end).step_by(60_000).collect();
        ranges.extend(starts.iter().map(|start| *start..(start + 60_000).min(end)));
        for range in ranges {
            let expect = &body[range.start as usize..range.end as usize];
            assert_eq!(&store.get_range(&name, range.clone()).expect("there")[..], expect, "{range:?}");
        }
        assert_eq!(counted.stats(Operation::GetPart).calls, 3, "the first, the second and the last piece");
        assert!(store.pieces.lock().len() <= PIECES_KEPT);
        store.get_range(&name, 0..PART_BYTES_MAX + 1).expect("a long part");
        assert_eq!(counted.stats(Operation::GetPart).bytes, end + PART_BYTES_MAX + 1, "which is asked for as it is");
    }

    #[test]
    fn an_object_that_is_replaced_through_it_is_read_anew() {
        let store = PieceStore::new(Arc::new(MemoryStore::new()));
        let name = ObjectName::new("a").expect("a name");
        for body in [&b"first"[..], b"and second"] {
            store.put(&name, body).expect("put");
            assert_eq!(&store.get_range(&name, 0..body.len() as u64).expect("there")[..], body);
        }
    }

    #[test]
    fn it_is_a_store_like_the_one_behind_it() {
        let scratch = tempfile::tempdir().expect("a folder");
        conformance::check(&PieceStore::new(Arc::new(MemoryStore::new())), scratch.path());
    }
}
