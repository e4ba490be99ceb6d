//! Which chunks of which objects are here, being read or being fetched, and which goes next.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::chunk_file::{chunk_count, chunk_len};
use super::fetch::Fetch;
use crate::name::ObjectName;

/// Most chunks in one request of read-ahead.
const READ_AHEAD_CHUNKS_MAX: u32 = 16;
/// How many readers that go through one object in order are told apart.
const STREAMS: usize = 4;

/// A chunk.
#[derive(Clone, Debug, Default)]
enum Chunk {
    #[default]
    Absent,
    Fetching(Arc<Fetch>),
    Here {
        /// Its sum was checked, or it was written, by this process.
        is_checked: bool,
        /// It was used since the hand came by.
        is_used: bool,
        /// Readers that are at it.
        pins: u16,
    },
}

impl Chunk {
    fn is_fetched_by(&self, fetch: &Fetch) -> bool {
        matches!(self, Chunk::Fetching(by) if std::ptr::eq(Arc::as_ptr(by), fetch))
    }
}

/// A reader that goes through an object in order.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The chunk that comes next.
    next: u32,
    /// Chunks before this one were asked for.
    asked_to: u32,
    window: u32,
}

#[derive(Debug)]
struct Object {
    number: u64,
    /// Not known before the first chunk came.
    size_bytes: Option<u64>,
    opening: Option<Arc<Fetch>>,
    chunks: Vec<Chunk>,
    here: u32,
    streams: [Stream; STREAMS],
    oldest_stream: usize,
}

/// What a reader does about a chunk.
#[derive(Debug)]
pub(crate) enum Claim {
    /// Read it from object `number`'s file, then [`Index::unpin`].
    Here { number: u64, size_bytes: u64, is_checked: bool },
    /// Wait for somebody's request.
    Wait(Arc<Fetch>),
    /// Make this request, then [`Index::fetched`].
    Fetch { number: u64, fetch: Arc<Fetch> },
    /// The object has no such chunk.
    PastEnd { size_bytes: u64 },
}

/// Chunks to read ahead, claimed for whoever does it.
#[derive(Debug)]
pub(crate) struct Ahead {
    pub(crate) number: u64,
    pub(crate) fetch: Arc<Fetch>,
}

/// A chunk that must go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Evicted {
    pub(crate) number: u64,
    pub(crate) chunk: u32,
    pub(crate) length: u64,
    /// It was the last one: the files can go.
    pub(crate) was_last: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Index {
    by_name: HashMap<ObjectName, u64>,
    objects: HashMap<u64, (ObjectName, Object)>,
    /// Chunks in the order in which the hand visits them; may name some that are gone.
    ring: VecDeque<(u64, u32)>,
    next_number: u64,
    pub(crate) bytes: u64,
}

impl Index {
    /// A number for files that no other object has.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Adds an object with chunks that are here.
    pub(crate) fn add(&mut self, number: u64, name: &ObjectName, size_bytes: u64, chunks: &[u32], is_checked: bool) {
        self.next_number = self.next_number.max(number);
        let mut object = Object::new(number);
        object.set_size(size_bytes);
        self.by_name.insert(name.clone(), number);
        self.objects.insert(number, (name.clone(), object));
        for chunk in chunks {
            self.put(number, *chunk, is_checked);
        }
    }

    fn put(&mut self, number: u64, chunk: u32, is_checked: bool) {
        let Some((_, object)) = self.objects.get_mut(&number) else { return };
        let (Some(size_bytes), Some(slot)) = (object.size_bytes, object.chunks.get_mut(chunk as usize)) else { return };
        if !matches!(slot, Chunk::Here { .. }) {
            object.here += 1;
            self.bytes += chunk_len(size_bytes, chunk);
            self.ring.push_back((number, chunk));
        }
        *slot = Chunk::Here { is_checked, is_used: true, pins: 0 };
    }

    /// What to do to read `chunk`; and what to read ahead of it.
    pub(crate) fn claim(&mut self, name: &ObjectName, chunk: u32) -> (Claim, Option<Ahead>) {
        let number = match self.by_name.get(name) {
            Some(number) => *number,
            None => {
                let number = self.next_number();
                self.by_name.insert(name.clone(), number);
                self.objects.insert(number, (name.clone(), Object::new(number)));
                number
            }
        };
        let Some((_, object)) = self.objects.get_mut(&number) else {
            unreachable!("every name has its object");
        };
        let Some(size_bytes) = object.size_bytes else {
            // The first request of an object tells how long it is; the others wait for that.
            if let Some(opening) = &object.opening {
                return (Claim::Wait(opening.clone()), None);
            }
            let fetch = Arc::new(Fetch::new(chunk..chunk + 1));
            object.opening = Some(fetch.clone());
            return (Claim::Fetch { number, fetch }, None);
        };
        let claim = match object.chunks.get_mut(chunk as usize) {
            None => return (Claim::PastEnd { size_bytes }, None),
            Some(Chunk::Here { is_checked, is_used, pins }) => {
                *is_used = true;
                *pins += 1;
                Claim::Here { number, size_bytes, is_checked: *is_checked }
            }
            Some(Chunk::Fetching(fetch)) => Claim::Wait(fetch.clone()),
            Some(slot @ Chunk::Absent) => {
                let fetch = Arc::new(Fetch::new(chunk..chunk + 1));
                *slot = Chunk::Fetching(fetch.clone());
                Claim::Fetch { number, fetch }
            }
        };
        (claim, object.read_ahead(chunk))
    }

    /// A reader is done with a chunk that was [`Claim::Here`]. `is_good`: its sum is right.
    pub(crate) fn unpin(&mut self, number: u64, chunk: u32, is_good: bool) -> Option<Evicted> {
        let object = &mut self.objects.get_mut(&number)?.1;
        let Some(Chunk::Here { is_checked, pins, .. }) = object.chunks.get_mut(chunk as usize) else { return None };
        *pins = pins.saturating_sub(1);
        *is_checked |= is_good;
        if is_good || *pins > 0 { None } else { self.drop_chunk(number, chunk) }
    }

    /// A request has ended; `kept` if its chunks were written. `size_bytes` is the object's, if the store said it.
    pub(crate) fn fetched(&mut self, number: u64, fetch: &Fetch, size_bytes: Option<u64>, kept: bool) {
        let Some((name, object)) = self.objects.get_mut(&number) else { return };
        match size_bytes {
            Some(size_bytes) if object.size_bytes.is_none() => object.set_size(size_bytes),
            None if object.size_bytes.is_none() => {
                // Its first request failed: nothing is known of it.
                let name = name.clone();
                self.objects.remove(&number);
                self.by_name.remove(&name);
                return;
            }
            _ => {}
        }
        object.opening = None;
        for chunk in fetch.chunks.clone() {
            match object.chunks.get_mut(chunk as usize) {
                // Not another's request for the same chunk, made since.
                Some(slot) if slot.is_fetched_by(fetch) => *slot = Chunk::Absent,
                _ => {}
            }
        }
        if kept {
            for chunk in fetch.chunks.clone() {
                self.put(number, chunk, true);
            }
        }
    }

    /// Whether object `number` is still the one of its name.
    pub(crate) fn is_known(&self, number: u64) -> bool {
        self.objects.contains_key(&number)
    }

    /// The chunk that goes next, if any can.
    pub(crate) fn evict(&mut self) -> Option<Evicted> {
        // Twice round: the first time clears what was used.
        for _ in 0..self.ring.len() * 2 {
            let (number, chunk) = self.ring.pop_front()?;
            let slot = self.objects.get_mut(&number).and_then(|(_, object)| object.chunks.get_mut(chunk as usize));
            let Some(Chunk::Here { is_used, pins, .. }) = slot else { continue };
            if *is_used || *pins > 0 {
                *is_used = false;
                self.ring.push_back((number, chunk));
            } else if let Some(evicted) = self.drop_chunk(number, chunk) {
                return Some(evicted);
            }
        }
        None
    }

    fn drop_chunk(&mut self, number: u64, chunk: u32) -> Option<Evicted> {
        let (name, object) = self.objects.get_mut(&number)?;
        let size_bytes = object.size_bytes?;
        *object.chunks.get_mut(chunk as usize)? = Chunk::Absent;
        object.here -= 1;
        let length = chunk_len(size_bytes, chunk);
        self.bytes -= length;
        let is_busy = object.chunks.iter().any(|chunk| !matches!(chunk, Chunk::Absent));
        let was_last = object.here == 0 && !is_busy;
        if was_last {
            let name = name.clone();
            self.objects.remove(&number);
            self.by_name.remove(&name);
        }
        Some(Evicted { number, chunk, length, was_last })
    }

    /// Forgets object `number`.
    pub(crate) fn forget_number(&mut self, number: u64) {
        if let Some(name) = self.objects.get(&number).map(|(name, _)| name.clone()) {
            self.forget(&name);
        }
    }

    /// Forgets an object; the number of its files, if it was known.
    pub(crate) fn forget(&mut self, name: &ObjectName) -> Option<u64> {
        let number = self.by_name.remove(name)?;
        let (_, object) = self.objects.remove(&number)?;
        let size_bytes = object.size_bytes.unwrap_or_default();
        let here = object.chunks.iter().zip(0u32..).filter(|(chunk, _)| matches!(chunk, Chunk::Here { .. }));
        self.bytes -= here.map(|(_, chunk)| chunk_len(size_bytes, chunk)).sum::<u64>();
        Some(number)
    }
}

impl Object {
    fn new(number: u64) -> Self {
        Object {
            number,
            size_bytes: None,
            opening: None,
            chunks: Vec::new(),
            here: 0,
            streams: [Stream::default(); STREAMS],
            oldest_stream: 0,
        }
    }

    fn set_size(&mut self, size_bytes: u64) {
        self.size_bytes = Some(size_bytes);
        self.chunks = vec![Chunk::Absent; chunk_count(size_bytes) as usize];
    }

    /// Claims what a reader that came to `chunk` in order will want next.
    fn read_ahead(&mut self, chunk: u32) -> Option<Ahead> {
        if self.streams.iter().any(|stream| stream.next == chunk + 1) {
            return None;
        }
        let Some(stream) = self.streams.iter_mut().find(|stream| stream.window > 0 && stream.next == chunk) else {
            self.streams[self.oldest_stream] = Stream { next: chunk + 1, asked_to: chunk + 1, window: 1 };
            self.oldest_stream = (self.oldest_stream + 1) % STREAMS;
            return None;
        };
        stream.next = chunk + 1;
        stream.window = (stream.window * 2).min(READ_AHEAD_CHUNKS_MAX);
        let from = stream.asked_to.max(chunk + 1);
        // Asked for again when half of it is used up: the reader comes to it when it is here.
        if from - chunk > stream.window {
            return None;
        }
        let wanted = from..from.saturating_add(stream.window).min(self.chunks.len() as u32);
        let is_absent = |chunk: &u32| matches!(self.chunks.get(*chunk as usize), Some(Chunk::Absent));
        let run: Range<u32> = match wanted.clone().find(is_absent) {
            None => wanted.end..wanted.end,
            Some(first) => first..(first..wanted.end).find(|chunk| !is_absent(chunk)).unwrap_or(wanted.end),
        };
        stream.asked_to = if run.is_empty() { wanted.end } else { run.end };
        if run.is_empty() {
            return None;
        }
        let fetch = Arc::new(Fetch::new(run.clone()));
        for slot in &mut self.chunks[run.start as usize..run.end as usize] {
            *slot = Chunk::Fetching(fetch.clone());
        }
        Some(Ahead { number: self.number, fetch })
    }
}

#[cfg(test)]
mod tests {
    use super::super::CHUNK_BYTES;
    use super::*;

    fn name(text: &str) -> ObjectName {
        ObjectName::new(text).unwrap()
    }

    fn all_here(objects: u64, chunks: u32) -> Index {
        let mut index = Index::default();
        for number in 1..=objects {
            let all: Vec<u32> = (0..chunks).collect();
            index.add(number, &name(&number.to_string()), u64::from(chunks) * CHUNK_BYTES, &all, true);
        }
        index
    }

    #[test]
    fn one_reader_fetches_and_the_others_wait() {
        let mut index = Index::default();
        let a = name("a");
        let (Claim::Fetch { number, fetch }, None) = index.claim(&a, 3) else { panic!("the first fetches") };
        assert!(matches!(index.claim(&a, 5).0, Claim::Wait(_)), "nobody knows how long it is");
        index.fetched(number, &fetch, Some(10 * CHUNK_BYTES + 5), true);
        assert!(matches!(index.claim(&a, 3).0, Claim::Here { is_checked: true, .. }));
        assert!(matches!(index.claim(&a, 7).0, Claim::Fetch { .. }));
        assert!(matches!(index.claim(&a, 7).0, Claim::Wait(_)));
        assert!(matches!(index.claim(&a, 11).0, Claim::PastEnd { .. }));
        assert_eq!(index.bytes, CHUNK_BYTES);
    }

    #[test]
    fn an_object_whose_first_request_failed_is_forgotten() {
        let mut index = Index::default();
        let (Claim::Fetch { number, fetch }, _) = index.claim(&name("a"), 0) else { panic!("the first fetches") };
        index.fetched(number, &fetch, None, false);
        assert!(!index.is_known(number));
        assert!(matches!(index.claim(&name("a"), 0).0, Claim::Fetch { .. }));
    }

    #[test]
    fn what_is_read_in_order_is_read_ahead_of_in_growing_steps() {
        let mut index = Index::default();
        let a = name("a");
        let (Claim::Fetch { number, fetch }, _) = index.claim(&a, 0) else { panic!("the first fetches") };
        index.fetched(number, &fetch, Some(100 * CHUNK_BYTES), true);
        let mut runs = Vec::new();
        for chunk in 0..60 {
            let (claim, ahead) = index.claim(&a, chunk);
            if let Claim::Fetch { number, fetch } = claim {
                index.fetched(number, &fetch, Some(100 * CHUNK_BYTES), true);
            }
            if let Some(ahead) = ahead {
                runs.push(ahead.fetch.chunks.clone());
                index.fetched(ahead.number, &ahead.fetch, Some(100 * CHUNK_BYTES), true);
            }
        }
        assert_eq!(runs[..5], [2..4, 4..8, 8..16, 16..32, 32..48]);
        assert!(runs.windows(2).all(|pair| pair[0].end == pair[1].start), "{runs:?}");
    }

    #[test]
    fn reads_here_and_there_are_not_read_ahead_of() {
        let mut index = all_here(1, 1);
        let a = name("a");
        let (Claim::Fetch { number, fetch }, _) = index.claim(&a, 50) else { panic!("the first fetches") };
        index.fetched(number, &fetch, Some(100 * CHUNK_BYTES), true);
        for chunk in [7, 3, 90, 20, 5, 70, 33] {
            assert!(index.claim(&a, chunk).1.is_none(), "{chunk}");
        }
    }

    #[test]
    fn what_was_not_used_goes_first_and_what_is_read_stays() {
        let mut index = all_here(2, 4);
        while index.evict().is_some_and(|evicted| evicted.chunk != 1) {}
        let used = index.claim(&name("2"), 2).0;
        assert!(matches!(used, Claim::Here { .. }));
        let mut gone = Vec::new();
        while let Some(evicted) = index.evict() {
            gone.push((evicted.number, evicted.chunk));
        }
        assert!(!gone.contains(&(2, 2)), "it is being read");
        assert_eq!(index.bytes, CHUNK_BYTES);
        assert_eq!(index.unpin(2, 2, true), None);
        let last = index.evict().unwrap();
        assert_eq!((last.number, last.chunk, last.was_last, index.bytes), (2, 2, true, 0));
        assert!(!index.is_known(2));
    }

    #[test]
    fn a_chunk_with_a_wrong_sum_goes() {
        let mut index = all_here(1, 2);
        assert!(matches!(index.claim(&name("1"), 0).0, Claim::Here { .. }));
        let gone = index.unpin(1, 0, false).unwrap();
        assert_eq!((gone.chunk, gone.was_last), (0, false));
        assert!(matches!(index.claim(&name("1"), 0).0, Claim::Fetch { .. }));
    }

    #[test]
    fn a_forgotten_object_takes_its_bytes_along() {
        let mut index = all_here(2, 3);
        assert_eq!(index.forget(&name("1")), Some(1));
        assert_eq!(index.forget(&name("1")), None);
        assert_eq!(index.bytes, 3 * CHUNK_BYTES);
        assert_eq!(index.unpin(1, 0, true), None);
    }
}
