//! Lists that may be longer than memory holds: in memory while they are short, in a temporary file beyond.
//!
//! What all lists of a process hold in memory together is at most [`MEMORY_BYTES_MAX`], and besides, of each list that is just
//! being written or read, one block of [`BLOCK_BYTES`] or one item, whichever is larger. The file has no name and is gone with
//! the last list that has a part in it, or with the process.

use std::fmt;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};
use serde::ser::{Error as _, Serialize, SerializeSeq as _, Serializer};

use crate::change_set::{PageChange, RowChange};
use crate::pairing::RowValues;

/// Bytes of a part of a list that is read and written at once.
pub const BLOCK_BYTES: usize = 256 << 10;
/// Most bytes of finished blocks that all lists of the process keep in memory.
pub const MEMORY_BYTES_MAX: usize = 32 << 20;
/// A file that is this long gets no more: files are given back as a whole.
const FILE_BYTES_MAX: u64 = 1 << 30;

static IN_MEMORY: AtomicUsize = AtomicUsize::new(0);
static FOLDER: OnceLock<PathBuf> = OnceLock::new();
static CURRENT: Mutex<Weak<SpillFile>> = Mutex::new(Weak::new());

/// Where temporary files go from now on: a folder on a disk with room. Said once, before the first list grows; until then it is
/// `TMPDIR`, or `/var/tmp`, which is on a disk where `/tmp` may not be.
pub fn spill_into(folder: PathBuf) {
    // Said twice in one process, the first stays: both are folders of ours.
    let _ = FOLDER.set(folder);
}

/// A list could not be kept or read back.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The temporary file.
    #[error("a temporary file in {folder} cannot be written or read: is its disk full?")]
    File {
        /// Where it is.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What comes back is not what was written.
    #[error("a temporary file in {0} does not hold what was written to it")]
    Damaged(PathBuf),
}

/// What can be in a [`Spool`].
pub trait Item: Sized {
    /// Appends its bytes.
    fn put(&self, out: &mut Vec<u8>);
    /// Takes it off the front again; `None`: it is not there.
    fn take(bytes: &mut &[u8]) -> Option<Self>;
}

struct SpillFile {
    file: File,
    end: AtomicU64,
}

/// Bytes that count as memory while they live.
struct Counted(Bytes);

impl Drop for Counted {
    fn drop(&mut self) {
        IN_MEMORY.fetch_sub(self.0.len(), Ordering::Relaxed);
    }
}

#[derive(Clone)]
enum Place {
    Memory(Arc<Counted>),
    File { file: Arc<SpillFile>, offset: u64, len: usize },
}

#[derive(Clone)]
struct Block {
    place: Place,
    count: u64,
}

/// A list of items that is appended to and read from either end.
pub struct Spool<T> {
    blocks: Vec<Block>,
    open: Vec<u8>,
    open_count: u64,
    len: u64,
    items: PhantomData<fn() -> T>,
}

fn folder() -> PathBuf {
    let default = || std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    FOLDER.get().cloned().unwrap_or_else(default)
}

fn failed(source: io::Error) -> SpoolError {
    SpoolError::File { folder: folder(), source }
}

impl SpillFile {
    fn current() -> Result<Arc<SpillFile>, SpoolError> {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = current.upgrade().filter(|file| file.end.load(Ordering::Relaxed) < FILE_BYTES_MAX) {
            return Ok(file);
        }
        let file = tempfile::tempfile_in(folder()).map_err(failed)?;
        let file = Arc::new(SpillFile { file, end: AtomicU64::new(0) });
        *current = Arc::downgrade(&file);
        Ok(file)
    }
}

impl Place {
    fn keep(bytes: Vec<u8>) -> Result<Place, SpoolError> {
        let len = bytes.len();
        let with_it = |held: usize| held.checked_add(len).filter(|held| *held <= MEMORY_BYTES_MAX);
        if IN_MEMORY.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_it).is_ok() {
            return Ok(Place::Memory(Arc::new(Counted(Bytes::from(bytes)))));
        }
        let file = SpillFile::current()?;
        let offset = file.end.fetch_add(len as u64, Ordering::Relaxed);
        file.file.write_all_at(&bytes, offset).map_err(failed)?;
        Ok(Place::File { file, offset, len })
    }

    fn read(&self) -> Result<Bytes, SpoolError> {
        match self {
            Place::Memory(bytes) => Ok(bytes.0.clone()),
            Place::File { file, offset, len } => {
                let mut bytes = vec![0; *len];
                file.file.read_exact_at(&mut bytes, *offset).map_err(failed)?;
                Ok(Bytes::from(bytes))
            }
        }
    }
}

/// Bytes that finished blocks of all lists hold in memory at this moment.
pub fn memory_bytes() -> usize {
    IN_MEMORY.load(Ordering::Relaxed)
}

impl<T> Spool<T> {
    /// How many there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Ends the block that is being written: what is left of a list that is complete is counted, or goes to the file.
    pub fn seal(&mut self) -> Result<(), SpoolError> {
        if self.open_count > 0 {
            let mut bytes = std::mem::take(&mut self.open);
            bytes.shrink_to_fit();
            let block = Block { place: Place::keep(bytes)?, count: std::mem::take(&mut self.open_count) };
            self.blocks.push(block);
        }
        Ok(())
    }

    /// Puts all of `other` behind what is there.
    pub fn append(&mut self, mut other: Spool<T>) -> Result<(), SpoolError> {
        self.seal()?;
        other.seal()?;
        self.len += other.len;
        self.blocks.append(&mut other.blocks);
        Ok(())
    }
}

impl<T: Item> Spool<T> {
    /// Appends one.
    pub fn push(&mut self, item: &T) -> Result<(), SpoolError> {
        item.put(&mut self.open);
        self.open_count += 1;
        self.len += 1;
        if self.open.len() >= BLOCK_BYTES { self.seal() } else { Ok(()) }
    }

    /// A list of these.
    pub fn of(items: impl IntoIterator<Item = T>) -> Result<Spool<T>, SpoolError> {
        let mut spool = Spool::default();
        for item in items {
            spool.push(&item)?;
        }
        spool.seal()?;
        Ok(spool)
    }

    /// All, in order.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { spool: self, next: 0, bytes: Bytes::new(), left: 0 }
    }

    /// All, the last one first.
    pub fn reversed(&self) -> Result<Spool<T>, SpoolError> {
        let mut reversed = Spool::default();
        for number in (0..=self.blocks.len()).rev() {
            let (mut bytes, count) = self.block(number)?;
            let mut items = Vec::new();
            for _ in 0..count {
                items.push(take(&mut bytes)?);
            }
            for item in items.iter().rev() {
                reversed.push(item)?;
            }
        }
        reversed.seal()?;
        Ok(reversed)
    }

    /// All, so many at a time.
    pub fn chunks(&self, most: usize) -> impl Iterator<Item = Result<Vec<T>, SpoolError>> + '_ {
        let mut items = self.iter();
        std::iter::from_fn(move || {
            let chunk: Result<Vec<T>, SpoolError> = items.by_ref().take(most.max(1)).collect();
            chunk.map(|chunk| Some(chunk).filter(|chunk| !chunk.is_empty())).transpose()
        })
    }

    /// All at once: for lists that are known to be short.
    pub fn to_vec(&self) -> Result<Vec<T>, SpoolError> {
        self.iter().collect()
    }

    /// A finished block, or, past the last one, what is being written.
    fn block(&self, number: usize) -> Result<(Bytes, u64), SpoolError> {
        match self.blocks.get(number) {
            Some(block) => Ok((block.place.read()?, block.count)),
            None => Ok((Bytes::copy_from_slice(&self.open), self.open_count)),
        }
    }
}

fn take<T: Item>(bytes: &mut Bytes) -> Result<T, SpoolError> {
    let mut rest: &[u8] = bytes;
    let item = T::take(&mut rest).ok_or_else(|| SpoolError::Damaged(folder()))?;
    let used = bytes.len() - rest.len();
    bytes::Buf::advance(bytes, used);
    Ok(item)
}

/// See [`Spool::iter`].
pub struct Iter<'a, T> {
    spool: &'a Spool<T>,
    next: usize,
    bytes: Bytes,
    left: u64,
}

impl<T: Item> Iterator for Iter<'_, T> {
    type Item = Result<T, SpoolError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.left == 0 {
            if self.next > self.spool.blocks.len() {
                return None;
            }
            match self.spool.block(self.next) {
                Ok((bytes, count)) => (self.bytes, self.left) = (bytes, count),
                Err(error) => {
                    self.next = usize::MAX;
                    return Some(Err(error));
                }
            }
            self.next += 1;
        }
        self.left -= 1;
        Some(take(&mut self.bytes))
    }
}

/// See [`Spool::into_items`].
pub struct IntoItems<T> {
    spool: Spool<T>,
    next: usize,
    bytes: Bytes,
    left: u64,
}

impl<T: Item> Spool<T> {
    /// All, in order; each block is given back when it has been read.
    pub fn into_items(self) -> IntoItems<T> {
        IntoItems { spool: self, next: 0, bytes: Bytes::new(), left: 0 }
    }
}

impl<T: Item> Iterator for IntoItems<T> {
    type Item = Result<T, SpoolError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut items =
            Iter { spool: &self.spool, next: self.next, bytes: std::mem::take(&mut self.bytes), left: self.left };
        let item = items.next();
        (self.next, self.left, self.bytes) = (items.next, items.left, std::mem::take(&mut items.bytes));
        item
    }
}

impl<T> Default for Spool<T> {
    fn default() -> Self {
        Spool { blocks: Vec::new(), open: Vec::new(), open_count: 0, len: 0, items: PhantomData }
    }
}

impl<T> Clone for Spool<T> {
    fn clone(&self) -> Self {
        let (blocks, open) = (self.blocks.clone(), self.open.clone());
        Spool { blocks, open, open_count: self.open_count, len: self.len, items: PhantomData }
    }
}

impl<T: Item + PartialEq> PartialEq for Spool<T> {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (Result<T, SpoolError>, Result<T, SpoolError>)| matches!((a, b), (Ok(a), Ok(b)) if a == b);
        self.len == other.len && self.iter().zip(other.iter()).all(same)
    }
}

impl<T: Item + Eq> Eq for Spool<T> {}

impl<T: Item + fmt::Debug> fmt::Debug for Spool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        let mut list = f.debug_list();
        for item in self.iter().take(SHOWN).flatten() {
            list.entry(&item);
        }
        if self.len > SHOWN as u64 { list.finish_non_exhaustive() } else { list.finish() }
    }
}

impl<T: Item + Serialize> Serialize for Spool<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(usize::try_from(self.len).ok())?;
        for item in self.iter() {
            list.serialize_element(&item.map_err(S::Error::custom)?)?;
        }
        list.end()
    }
}

impl<'de, T: Item + Deserialize<'de>> Deserialize<'de> for Spool<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<fn() -> T>);

        impl<'de, T: Item + Deserialize<'de>> Visitor<'de> for Items<T> {
            type Value = Spool<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Spool<T>, A::Error> {
                let mut spool = Spool::default();
                while let Some(item) = items.next_element::<T>()? {
                    spool.push(&item).map_err(A::Error::custom)?;
                }
                spool.seal().map_err(A::Error::custom)?;
                Ok(spool)
            }
        }

        deserializer.deserialize_seq(Items(PhantomData))
    }
}

/// Stands for the length of what is not there.
const ABSENT: u32 = u32::MAX;

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*first))
}

impl Item for i64 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let (first, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(i64::from_le_bytes(*first))
    }
}

impl Item for Option<String> {
    fn put(&self, out: &mut Vec<u8>) {
        // Postgres's own limit of a value is 1 GiB.
        let len =
            self.as_ref().map_or(ABSENT, |text| u32::try_from(text.len()).expect("a value is shorter than 4 GiB"));
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(self.as_deref().unwrap_or_default().as_bytes());
    }

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        match take_u32(bytes)? {
            ABSENT => Some(None),
            len => {
                let (text, rest) = bytes.split_at_checked(len as usize)?;
                *bytes = rest;
                Some(Some(std::str::from_utf8(text).ok()?.to_owned()))
            }
        }
    }
}

impl Item for RowValues {
    fn put(&self, out: &mut Vec<u8>) {
        let count = u32::try_from(self.len()).expect("a row has 1600 columns at most");
        out.extend_from_slice(&count.to_le_bytes());
        self.iter().for_each(|value| value.put(out));
    }

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let count = take_u32(bytes)?;
        (0..count).map(|_| <Option<String> as Item>::take(bytes)).collect()
    }
}

impl<A: Item, B: Item> Item for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        Some((A::take(bytes)?, B::take(bytes)?))
    }
}

const INSERT: u32 = 1;
const UPDATE: u32 = 2;
const DELETE: u32 = 3;

impl Item for RowChange {
    fn put(&self, out: &mut Vec<u8>) {
        let mut put = |tag: u32, rows: [Option<&RowValues>; 2]| {
            out.extend_from_slice(&tag.to_le_bytes());
            rows.into_iter().flatten().for_each(|row| row.put(out));
        };
        match self {
            RowChange::Insert { new } => put(INSERT, [Some(new), None]),
            RowChange::Update { old, new } => put(UPDATE, [Some(old), Some(new)]),
            RowChange::Delete { old } => put(DELETE, [Some(old), None]),
        }
    }

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        match take_u32(bytes)? {
            INSERT => Some(RowChange::Insert { new: RowValues::take(bytes)? }),
            UPDATE => Some(RowChange::Update { old: RowValues::take(bytes)?, new: RowValues::take(bytes)? }),
            DELETE => Some(RowChange::Delete { old: RowValues::take(bytes)? }),
            _ => None,
        }
    }
}

impl Item for PageChange {
    fn put(&self, out: &mut Vec<u8>) {
        i64::from(self.number).put(out);
        self.old.put(out);
        self.new.put(out);
    }

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let number = i64::take(bytes)?.try_into().ok()?;
        Some(PageChange { number, old: Item::take(bytes)?, new: Item::take(bytes)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(number: usize) -> RowChange {
        let row = |text: &str| vec![Some(number.to_string()), None, Some(text.to_owned())];
        match number % 3 {
            0 => RowChange::Insert { new: row("") },
            1 => RowChange::Update { old: row("ü"), new: row("x") },
            _ => RowChange::Delete { old: row(&"long ".repeat(number % 700)) },
        }
    }

    #[test]
    fn what_goes_in_comes_out_and_memory_is_bounded() {
        let count = 120_000;
        let mut spool = Spool::default();
        let mut bytes = Vec::new();
        for number in 0..count {
            change(number).put(&mut bytes);
            spool.push(&change(number)).expect("written");
            assert!(spool.open.len() <= BLOCK_BYTES, "one block is open");
        }
        spool.seal().expect("written");
        assert!(bytes.len() > 2 * MEMORY_BYTES_MAX, "{} bytes are more than memory may hold", bytes.len());
        assert!(memory_bytes() <= MEMORY_BYTES_MAX, "{} bytes are in memory", memory_bytes());
        assert!(spool.blocks.iter().any(|block| matches!(block.place, Place::File { .. })), "some went to the file");
        assert_eq!(spool.len(), count as u64);
        for (number, item) in spool.iter().enumerate() {
            assert_eq!(item.expect("read"), change(number));
        }
        for (number, item) in spool.reversed().expect("read").iter().enumerate() {
            assert_eq!(item.expect("read"), change(count - 1 - number));
        }
        let chunks: Vec<usize> = spool.chunks(50_000).map(|chunk| chunk.expect("read").len()).collect();
        assert_eq!(chunks, [50_000, 50_000, 20_000]);
    }

    #[test]
    fn lists_join_and_go_through_json() {
        let mut first = Spool::of((0..10).map(change)).expect("written");
        let second = Spool::of((10..20).map(change)).expect("written");
        first.append(second).expect("written");
        assert_eq!(first, Spool::of((0..20).map(change)).expect("written"));
        let text = serde_json::to_string(&first).expect("plain data");
        assert_eq!(serde_json::from_str::<Spool<RowChange>>(&text).expect("the same"), first);
        assert_eq!(text, serde_json::to_string(&(0..20).map(change).collect::<Vec<_>>()).expect("plain data"));
    }

    #[test]
    fn damage_is_an_error() {
        let mut bytes = Vec::new();
        change(1).put(&mut bytes);
        for end in 0..bytes.len() {
            assert_eq!(RowChange::take(&mut &bytes[..end]), None, "cut at {end}");
        }
        bytes[0] = 9;
        assert_eq!(RowChange::take(&mut &bytes[..]), None);
    }
}
