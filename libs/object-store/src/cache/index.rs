//! Which chunks of which objects are here, being read or being fetched, and which goes next.

use std::collections::{HashMap, VecDeque};
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use super::chunk_file::{chunk_count, chunk_len};
use super::fetch::Fetch;
use crate::name::ObjectName;
use crate::store::ObjectPart;

/// Most chunks in one request.
const REQUEST_CHUNKS_MAX: u32 = 16;
/// How far read-ahead goes, in requests: while a reader uses what one brought, so many are under way or wait to be used.
const WINDOWS_AHEAD: u32 = 3;
/// The newest requests whose bytes stay in memory, for readers that come to them: 10 MiB at most.
const RECENT_MAX: usize = 5;
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
    /// It was fetched so recently that its bytes are in memory.
    Recent(Arc<Fetch>),
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
    /// Newest last.
    recent: VecDeque<(u64, Arc<Fetch>)>,
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

    /// What to do to read the first of the chunks `wanted`, and if it has to be fetched, those of the others that can be with it.
    pub(crate) fn claim(&mut self, name: &ObjectName, wanted: RangeInclusive<u32>) -> Claim {
        let chunk = *wanted.start();
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
                return Claim::Wait(opening.clone());
            }
            let fetch = Arc::new(Fetch::new(chunk..chunk + 1));
            object.opening = Some(fetch.clone());
            return Claim::Fetch { number, fetch };
        };
        match object.chunks.get_mut(chunk as usize) {
            None => Claim::PastEnd { size_bytes },
            Some(Chunk::Here { is_checked, is_used, pins }) => {
                *is_used = true;
                let is_recent = |(of, fetch): &&(u64, Arc<Fetch>)| *of == number && fetch.chunks.contains(&chunk);
                if let Some((_, fetch)) = self.recent.iter().rev().find(is_recent) {
                    return Claim::Recent(fetch.clone());
                }
                *pins += 1;
                Claim::Here { number, size_bytes, is_checked: *is_checked }
            }
            // Answered already, and now being written.
            Some(Chunk::Fetching(fetch)) if fetch.done().is_some() => Claim::Recent(fetch.clone()),
            Some(Chunk::Fetching(fetch)) => Claim::Wait(fetch.clone()),
            Some(Chunk::Absent) => {
                let end = wanted.end().saturating_add(1).min(chunk.saturating_add(REQUEST_CHUNKS_MAX));
                Claim::Fetch { number, fetch: object.claim_absent(chunk..end) }
            }
        }
    }

    /// What to read ahead of a reader that has come to the chunks `read`.
    pub(crate) fn read_ahead(&mut self, name: &ObjectName, read: RangeInclusive<u32>) -> Option<Ahead> {
        let (_, object) = self.objects.get_mut(self.by_name.get(name)?)?;
        object.read_ahead(*read.start(), *read.end())
    }

    /// A request was answered. Its chunks have yet to be written; whoever wants them gets them from the answer.
    pub(crate) fn answered(&mut self, number: u64, fetch: &Arc<Fetch>, part: &ObjectPart) {
        // Of an object that was forgotten meanwhile nothing is used.
        let Some((_, object)) = self.objects.get_mut(&number) else { return };
        if object.size_bytes.is_none() {
            object.set_size(part.object_size_bytes);
            object.opening = None;
            for slot in object.chunks.iter_mut().take(fetch.chunks.end as usize).skip(fetch.chunks.start as usize) {
                *slot = Chunk::Fetching(fetch.clone());
            }
        }
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((number, fetch.clone()));
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
            self.forget_recent(number);
        }
        Some(Evicted { number, chunk, length, was_last })
    }

    fn forget_recent(&mut self, number: u64) {
        self.recent.retain(|(of, _)| *of != number);
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
        self.forget_recent(number);
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

    /// A request for those of `chunks` that are absent and follow each other from the first on, which is.
    fn claim_absent(&mut self, chunks: Range<u32>) -> Arc<Fetch> {
        let is_absent = |chunk: &u32| matches!(self.chunks.get(*chunk as usize), Some(Chunk::Absent));
        let end = chunks.clone().find(|chunk| !is_absent(chunk)).unwrap_or(chunks.end);
        let fetch = Arc::new(Fetch::new(chunks.start..end));
        for slot in &mut self.chunks[chunks.start as usize..end as usize] {
            *slot = Chunk::Fetching(fetch.clone());
        }
        fetch
    }

    /// Claims what a reader that came to the chunks from `first` to `last` in order will want next. Where it begins in the chunk in which
    /// it ended before, that is in order, too.
    fn read_ahead(&mut self, first: u32, last: u32) -> Option<Ahead> {
        let end = self.chunks.len() as u32;
        if first >= end {
            return None;
        }
        let last = last.min(end - 1);
        // It was here before, or just behind.
        if self.streams.iter().any(|stream| (last + 1..=last + 2).contains(&stream.next)) {
            return None;
        }
        let is_its = |stream: &Stream| stream.window > 0 && (stream.next == first || stream.next == first + 1);
        let Some(at) = self.streams.iter().position(is_its) else {
            self.streams[self.oldest_stream] = Stream { next: last + 1, asked_to: last + 1, window: 1 };
            self.oldest_stream = (self.oldest_stream + 1) % STREAMS;
            return None;
        };
        let stream = &mut self.streams[at];
        stream.next = last + 1;
        stream.window = (stream.window * 2).min(REQUEST_CHUNKS_MAX);
        let from = stream.asked_to.max(last + 1);
        // Asked for again when a window's worth is used up: the reader comes to it when it is here.
        if from - last > (WINDOWS_AHEAD - 1) * stream.window {
            return None;
        }
        let end = from.saturating_add(stream.window).min(self.chunks.len() as u32);
        let is_absent = |chunk: &u32| matches!(self.chunks.get(*chunk as usize), Some(Chunk::Absent));
        let absent = (from..end).find(is_absent);
        let fetch = absent.map(|absent| self.claim_absent(absent..end));
        self.streams[at].asked_to = fetch.as_ref().map_or(end, |fetch| fetch.chunks.end);
        Some(Ahead { number: self.number, fetch: fetch? })
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
        let Claim::Fetch { number, fetch } = index.claim(&a, 3..=3) else { panic!("the first fetches") };
        assert!(index.read_ahead(&a, 3..=3).is_none());
        assert!(matches!(index.claim(&a, 5..=5), Claim::Wait(_)), "nobody knows how long it is");
        index.fetched(number, &fetch, Some(10 * CHUNK_BYTES + 5), true);
        assert!(matches!(index.claim(&a, 3..=3), Claim::Here { is_checked: true, .. }));
        assert!(matches!(index.claim(&a, 7..=7), Claim::Fetch { .. }));
        assert!(matches!(index.claim(&a, 7..=7), Claim::Wait(_)));
        assert!(matches!(index.claim(&a, 11..=11), Claim::PastEnd { .. }));
        assert_eq!(index.bytes, CHUNK_BYTES);
    }

    #[test]
    fn an_object_whose_first_request_failed_is_forgotten() {
        let mut index = Index::default();
        let Claim::Fetch { number, fetch } = index.claim(&name("a"), 0..=0) else { panic!("the first fetches") };
        index.fetched(number, &fetch, None, false);
        assert!(!index.is_known(number));
        assert!(matches!(index.claim(&name("a"), 0..=0), Claim::Fetch { .. }));
    }

    #[test]
    fn what_is_read_in_order_is_read_ahead_of_in_growing_steps() {
        let mut index = Index::default();
        let a = name("a");
        let Claim::Fetch { number, fetch } = index.claim(&a, 0..=0) else { panic!("the first fetches") };
        index.fetched(number, &fetch, Some(100 * CHUNK_BYTES), true);
        let mut runs = Vec::new();
        for chunk in 0..60 {
            let (claim, ahead) = (index.claim(&a, chunk..=chunk), index.read_ahead(&a, chunk..=chunk));
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
        let Claim::Fetch { number, fetch } = index.claim(&a, 50..=50) else { panic!("the first fetches") };
        index.fetched(number, &fetch, Some(100 * CHUNK_BYTES), true);
        for chunk in [7, 3, 90, 20, 5, 70, 33] {
            index.claim(&a, chunk..=chunk);
            assert!(index.read_ahead(&a, chunk..=chunk).is_none(), "{chunk}");
        }
    }

    #[test]
    fn a_read_of_several_chunks_is_one_request_and_no_reason_to_read_ahead() {
        let mut index = all_here(1, 1);
        let (a, size_bytes) = (name("a"), Some(100 * CHUNK_BYTES));
        let Claim::Fetch { number, fetch } = index.claim(&a, 50..=50) else { panic!("the first fetches") };
        index.fetched(number, &fetch, size_bytes, true);
        let check = |index: &mut Index, read: RangeInclusive<u32>, expect: Range<u32>| {
            let Claim::Fetch { number, fetch } = index.claim(&a, read.clone()) else { panic!("{read:?} is not here") };
            assert_eq!(fetch.chunks, expect);
            assert!(index.read_ahead(&a, read).is_none());
            index.fetched(number, &fetch, size_bytes, true);
        };
        check(&mut index, 7..=8, 7..9);
        check(&mut index, 30..=32, 30..33);
        check(&mut index, 48..=52, 48..50);
        check(&mut index, 60..=88, 60..76);
        // Where the next read begins in the chunk in which the one before ended, it is read ahead of.
        check(&mut index, 91..=92, 91..93);
        let ahead = index.read_ahead(&a, 92..=93).expect("the second in order");
        assert_eq!(ahead.fetch.chunks, 94..96);
    }

    #[test]
    fn what_was_just_fetched_is_in_memory_until_others_were_or_it_is_forgotten() {
        let mut index = Index::default();
        let part = |size: u64| ObjectPart { body: bytes::Bytes::new(), object_size_bytes: size };
        let fetch_one = |index: &mut Index, object: &str, chunk: u32| {
            let Claim::Fetch { number, fetch } = index.claim(&name(object), chunk..=chunk) else { panic!("{chunk}") };
            index.answered(number, &fetch, &part(10 * CHUNK_BYTES));
            fetch.finish(Ok(part(10 * CHUNK_BYTES)));
            assert!(matches!(index.claim(&name(object), chunk..=chunk), Claim::Recent(_)), "while it is written");
            index.fetched(number, &fetch, Some(10 * CHUNK_BYTES), true);
        };
        fetch_one(&mut index, "a", 3);
        assert!(matches!(index.claim(&name("a"), 3..=3), Claim::Recent(_)));
        assert_eq!(index.unpin(1, 3, true), None, "nobody reads its file");
        for chunk in 0..RECENT_MAX as u32 {
            fetch_one(&mut index, "b", chunk);
        }
        assert!(matches!(index.claim(&name("a"), 3..=3), Claim::Here { .. }));
        assert!(matches!(index.claim(&name("b"), 0..=0), Claim::Recent(_)));
        index.forget(&name("b"));
        assert!(index.recent.is_empty());
        assert!(matches!(index.claim(&name("b"), 0..=0), Claim::Fetch { .. }));
    }

    #[test]
    fn what_was_not_used_goes_first_and_what_is_read_stays() {
        let mut index = all_here(2, 4);
        while index.evict().is_some_and(|evicted| evicted.chunk != 1) {}
        let used = index.claim(&name("2"), 2..=2);
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
        assert!(matches!(index.claim(&name("1"), 0..=0), Claim::Here { .. }));
        let gone = index.unpin(1, 0, false).unwrap();
        assert_eq!((gone.chunk, gone.was_last), (0, false));
        assert!(matches!(index.claim(&name("1"), 0..=0), Claim::Fetch { .. }));
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
