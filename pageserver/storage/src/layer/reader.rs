//! Reads layer files.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ardent_object_store::{ErrorKind, ObjectName, ObjectStore, StoreError};
use ardent_types::{KEY_LEN, Lsn};
use bytes::Bytes;
use parking_lot::RwLock;

use super::block::{BlockCache, Group, unpack};
use super::file::{LayerCorrupt, LayerError, Section, TRAILER_LEN, Trailer};
use super::filter::Filter;
use super::{LayerDesc, LayerKind};
use crate::position::{RecordPosition, decode_boundaries};
use crate::stored_key::{KeyRange, StoredKey};
use crate::version::{Gathered, Version, VersionKind};

/// Length of an index entry: first key, first LSN, offset, length.
const INDEX_ENTRY_LEN: usize = KEY_LEN + 8 + 8 + 4;

/// Most groups that [`Layer::load`] takes: 2 MiB of pages.
const LOAD_GROUPS_MAX: usize = 32;

/// Most bytes of a file that a cursor reads at once, unless a single group has more.
const AHEAD_BYTES_MAX: u64 = 256 << 10;
/// How many times as many groups it reads with each read.
const AHEAD_GROWS_BY: usize = 4;

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// The parts of a file that every read needs; loaded with the first one.
#[derive(Debug)]
struct Opened {
    trailer: Trailer,
    index: Bytes,
    filter: Filter,
}

impl Opened {
    fn groups(&self) -> usize {
        self.index.len() / INDEX_ENTRY_LEN
    }

    fn first(&self, group: usize) -> (StoredKey, Lsn) {
        let entry = &self.index[group * INDEX_ENTRY_LEN..];
        let key = StoredKey::from_bytes(entry[..KEY_LEN].try_into().expect("a key's length of bytes"));
        (key, Lsn::new(u64::from_le_bytes(entry[18..26].try_into().expect("8 bytes"))))
    }

    fn section(&self, group: usize) -> Section {
        let entry = &self.index[group * INDEX_ENTRY_LEN..];
        Section {
            offset: u64::from_le_bytes(entry[26..34].try_into().expect("8 bytes")),
            length: u32::from_le_bytes(entry[34..38].try_into().expect("4 bytes")),
        }
    }

    /// How many groups begin at or before `(key, lsn)`.
    fn groups_through(&self, key: &StoredKey, lsn: Lsn) -> usize {
        let (mut low, mut high) = (0, self.groups());
        while low < high {
            let middle = (low + high) / 2;
            if self.first(middle) > (*key, lsn) { high = middle } else { low = middle + 1 }
        }
        low
    }
}

/// What a layer file says of itself. Its level, and how many keys it has, only a manifest knows.
pub(crate) fn describe(store: &dyn ObjectStore, object: &ObjectName) -> Result<LayerDesc, LayerError> {
    let bytes = store.head(object)?.size_bytes;
    let corrupt =
        |offset, expected: String| LayerCorrupt { file: object.to_string(), offset, expected, keys: KeyRange::ALL };
    let Some(at) = bytes.checked_sub(TRAILER_LEN as u64) else {
        return Err(corrupt(0, "a file with a trailer".to_owned()).into());
    };
    let trailer = store.get_range(object, at..bytes)?;
    let trailer = Trailer::decode(&trailer).map_err(|expected| corrupt(at, expected.to_string()))?;
    Ok(LayerDesc {
        file: object.file_name().to_owned(),
        kind: trailer.kind,
        level: 1,
        keys: trailer.keys,
        after: trailer.after,
        upto: trailer.upto,
        bytes,
        entries: trailer.entries,
        key_count: 0,
        boundaries: trailer.boundaries.length > 0,
        holes: 0,
    })
}

/// A layer file that the manifest names, or named when the reader that still holds this began.
pub(crate) struct Layer {
    pub(crate) desc: LayerDesc,
    name: ObjectName,
    store: Arc<dyn ObjectStore>,
    cache: Arc<BlockCache>,
    number: u64,
    opened: RwLock<Option<Arc<Opened>>>,
    delete_on_drop: AtomicBool,
}

impl Layer {
    pub(crate) fn new(
        desc: LayerDesc,
        name: ObjectName,
        store: Arc<dyn ObjectStore>,
        cache: Arc<BlockCache>,
    ) -> Arc<Layer> {
        Arc::new(Layer {
            desc,
            name,
            store,
            cache,
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            opened: RwLock::new(None),
            delete_on_drop: AtomicBool::new(false),
        })
    }

    /// No manifest names the file any more: it goes when the last reader is done with it.
    pub(crate) fn delete_when_unused(&self) {
        self.delete_on_drop.store(true, Ordering::Release);
    }

    /// Whether the file is not in the store.
    pub(crate) fn is_missing(&self) -> Result<bool, StoreError> {
        match self.store.head(&self.name) {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Adds the versions of `key` in `(after, upto]` that a read needs. For an image layer: the version that it has of the key,
    /// whatever its LSN; false if that is a hole.
    pub(crate) fn gather(
        &self,
        key: &StoredKey,
        after: Lsn,
        upto: Lsn,
        out: &mut Gathered,
    ) -> Result<bool, LayerError> {
        let opened = self.opened()?;
        if !opened.filter.may_contain(key) {
            return Ok(true);
        }
        let upto = if self.desc.kind == LayerKind::Image { Lsn::MAX } else { upto };
        let mut groups = opened.groups_through(key, upto);
        while groups > 0 {
            groups -= 1;
            let group = self.group(&opened, groups)?;
            let mut at = group.count_through(key, upto);
            while at > 0 {
                at -= 1;
                if group.key(at) != *key {
                    return Ok(true);
                }
                let version = group.version(at);
                match version.kind {
                    VersionKind::Hole => return Ok(false),
                    _ if self.desc.kind == LayerKind::Delta && version.lsn <= after => return Ok(true),
                    kind => {
                        out.push(version);
                        if kind.ends_search() {
                            return Ok(true);
                        }
                    }
                }
            }
        }
        Ok(true)
    }

    /// Brings the groups that hold `keys` into the block cache with one read of the store. What fails here fails again, and is told,
    /// when it is read.
    pub(crate) fn load(&self, keys: &KeyRange) {
        let Ok(opened) = self.opened() else { return };
        let begin = opened.groups_through(&keys.first, Lsn::INVALID).saturating_sub(1);
        let end = opened.groups_through(&keys.last, Lsn::MAX).min(begin + LOAD_GROUPS_MAX);
        let missing = |group: &usize| !self.cache.contains(&(self.number, *group as u32));
        let (Some(first), Some(last)) = ((begin..end).find(missing), (begin..end).rev().find(missing)) else { return };
        let (start, end) = (opened.section(first).offset, opened.section(last));
        let Some(end) = end.offset.checked_add(u64::from(end.length)).filter(|end| *end <= self.desc.bytes) else {
            return;
        };
        if first == last || end < start {
            return;
        }
        let Ok(bytes) = self.read(start..end) else { return };
        for group in (first..=last).filter(missing) {
            let section = opened.section(group);
            let at = section.offset.checked_sub(start).and_then(|at| usize::try_from(at).ok());
            let block = at.and_then(|at| Some(at..at.checked_add(section.length as usize)?));
            let Some(block) = block.filter(|block| block.end <= bytes.len()) else { continue };
            if let Ok(parsed) = unpack(&bytes.slice(block)).and_then(Group::parse) {
                let weight = parsed.weight();
                self.cache.insert((self.number, group as u32), Arc::new(parsed), weight);
            }
        }
    }

    /// The keys in `range` with a version in `(after, upto]`, ascending, at most `limit`.
    pub(crate) fn keys(
        self: &Arc<Self>,
        range: &KeyRange,
        after: Lsn,
        upto: Lsn,
        limit: usize,
    ) -> Result<Vec<StoredKey>, LayerError> {
        let mut keys: Vec<StoredKey> = Vec::new();
        let mut cursor = self.cursor(range.first)?;
        while keys.len() < limit {
            let Some((key, version)) = cursor.next()? else { break };
            if key > range.last {
                break;
            }
            if version.lsn > after && version.lsn <= upto && keys.last() != Some(&key) {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// A cursor over all versions from `key` on, by key, then LSN.
    pub(crate) fn cursor(self: &Arc<Self>, key: StoredKey) -> Result<LayerCursor, LayerError> {
        self.cursor_with(key, CursorUse::Alone)
    }

    /// The same, with what it is for.
    pub(crate) fn cursor_with(self: &Arc<Self>, key: StoredKey, usage: CursorUse) -> Result<LayerCursor, LayerError> {
        let opened = self.opened()?;
        let group = opened.groups_through(&key, Lsn::INVALID).saturating_sub(1);
        let mut cursor = LayerCursor {
            layer: self.clone(),
            usage,
            opened,
            next_group: group,
            ahead: Ahead::default(),
            group: None,
            at: 0,
        };
        cursor.skip_to(key)?;
        Ok(cursor)
    }

    /// Record positions that the file holds, ascending.
    pub(crate) fn boundaries(&self) -> Result<Vec<RecordPosition>, LayerError> {
        let section = self.opened()?.trailer.boundaries;
        if section.length == 0 {
            return Ok(Vec::new());
        }
        let raw = self.block(section)?;
        decode_boundaries(&raw).ok_or_else(|| self.corrupt(section.offset, "a list of record boundaries"))
    }

    /// Reads and checks everything in the file.
    pub(crate) fn verify(self: &Arc<Self>) -> Result<u64, LayerError> {
        self.boundaries()?;
        let mut cursor = self.cursor(StoredKey::MIN)?;
        let (mut entries, mut last) = (0, None);
        while let Some((key, version)) = cursor.next()? {
            if last.is_some_and(|last| last >= (key, version.lsn)) {
                return Err(self.corrupt(0, "versions in order"));
            }
            last = Some((key, version.lsn));
            entries += 1;
        }
        if entries != self.desc.entries {
            return Err(self.corrupt(0, format!("{} versions, found {entries}", self.desc.entries)));
        }
        Ok(entries)
    }

    fn corrupt(&self, offset: u64, expected: impl Into<String>) -> LayerError {
        let file = self.name.to_string();
        LayerCorrupt { file, offset, expected: expected.into(), keys: self.desc.keys }.into()
    }

    /// Bytes of the file. One that is shorter than the manifest says, or gone, is corrupt: it isn't worth a retry.
    fn read(&self, range: Range<u64>) -> Result<Bytes, LayerError> {
        let offset = range.start;
        self.store.get_range(&self.name, range).map_err(|error| match error.kind() {
            ErrorKind::NotFound => self.corrupt(0, "the file, which is missing from the store"),
            ErrorKind::OutOfRange => self.corrupt(offset, format!("{} bytes of file", self.desc.bytes)),
            _ => error.into(),
        })
    }

    fn block(&self, section: Section) -> Result<Bytes, LayerError> {
        let end = section.offset.checked_add(u64::from(section.length));
        let Some(end) = end.filter(|end| *end <= self.desc.bytes) else {
            return Err(self.corrupt(section.offset, "a block inside the file"));
        };
        self.read_good(section.offset..end, unpack)
    }

    /// What `decode` makes of bytes of the file. If they are damaged and came from a nearer copy, they are read once more.
    fn read_good<T>(&self, range: Range<u64>, decode: impl Fn(&Bytes) -> Result<T, String>) -> Result<T, LayerError> {
        let offset = range.start;
        let first = decode(&self.read(range.clone())?);
        let decoded = match first {
            Err(_) if self.store.distrust(&self.name) => decode(&self.read(range)?),
            decoded => decoded,
        };
        decoded.map_err(|expected| self.corrupt(offset, expected))
    }

    fn opened(&self) -> Result<Arc<Opened>, LayerError> {
        if let Some(opened) = &*self.opened.read() {
            return Ok(opened.clone());
        }
        let mut slot = self.opened.write();
        if let Some(opened) = &*slot {
            return Ok(opened.clone());
        }
        let opened = Arc::new(self.open()?);
        *slot = Some(opened.clone());
        Ok(opened)
    }

    fn open(&self) -> Result<Opened, LayerError> {
        let Some(at) = self.desc.bytes.checked_sub(TRAILER_LEN as u64) else {
            return Err(self.corrupt(0, "a file with a trailer"));
        };
        let trailer = self.read_good(at..self.desc.bytes, |bytes| Trailer::decode(bytes))?;
        let LayerDesc { kind, keys, after, upto, entries, .. } = self.desc;
        if (trailer.kind, trailer.keys, trailer.after, trailer.upto, trailer.entries)
            != (kind, keys, after, upto, entries)
        {
            return Err(self.corrupt(at, "the layer that the manifest describes"));
        }
        let index = self.block(trailer.index)?;
        if index.len() % INDEX_ENTRY_LEN != 0 {
            return Err(self.corrupt(trailer.index.offset, "a whole index"));
        }
        let filter = Filter::from_bytes(self.block(trailer.filter)?)
            .ok_or_else(|| self.corrupt(trailer.filter.offset, "a filter"))?;
        Ok(Opened { trailer, index, filter })
    }

    fn group(&self, opened: &Opened, group: usize) -> Result<Arc<Group>, LayerError> {
        self.group_with(group, || self.group_uncached(opened, group))
    }

    /// A group from the block cache, or what `unpack_group` gives, which stays there.
    fn group_with(
        &self,
        group: usize,
        unpack_group: impl FnOnce() -> Result<Arc<Group>, LayerError>,
    ) -> Result<Arc<Group>, LayerError> {
        let key = (self.number, group as u32);
        if let Some(group) = self.cache.get(&key) {
            return Ok(group);
        }
        let unpacked = unpack_group()?;
        self.cache.insert(key, unpacked.clone(), unpacked.weight());
        Ok(unpacked)
    }

    fn group_uncached(&self, opened: &Opened, group: usize) -> Result<Arc<Group>, LayerError> {
        let section = opened.section(group);
        let raw = self.block(section)?;
        let parsed = Group::parse(raw).map_err(|expected| self.corrupt(section.offset, expected))?;
        Ok(Arc::new(parsed))
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        if *self.delete_on_drop.get_mut() {
            delete_object(&*self.store, &self.name);
        }
    }
}

fn delete_object(store: &dyn ObjectStore, name: &ObjectName) {
    let removed: Result<(), StoreError> = store.delete(name);
    if let Err(error) = removed {
        tracing::warn!(%error, "a layer that is not needed any more stays until the next start");
    }
}

/// Whether what a cursor unpacks is of use to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CursorUse {
    /// It reads past the block cache, so that a merge doesn't push out what readers use.
    Alone,
    /// The keys that it gives are read at once: what it unpacks is left in the block cache for that.
    KeysAreRead,
}

/// Goes over a layer's versions in order.
pub(crate) struct LayerCursor {
    layer: Arc<Layer>,
    usage: CursorUse,
    opened: Arc<Opened>,
    next_group: usize,
    ahead: Ahead,
    group: Option<Arc<Group>>,
    at: usize,
}

/// Packed groups that a cursor read from the file at once: first one, then more with each read.
#[derive(Default)]
struct Ahead {
    groups: Range<usize>,
    /// Where in the file `bytes` begin.
    start: u64,
    bytes: Bytes,
}

impl Ahead {
    /// The packed group, if its bytes were read.
    fn block(&self, opened: &Opened, group: usize) -> Option<Bytes> {
        let section = opened.section(group);
        let at = usize::try_from(section.offset.checked_sub(self.start)?).ok()?;
        let end = at.checked_add(section.length as usize).filter(|end| *end <= self.bytes.len())?;
        Some(self.bytes.slice(at..end))
    }

    /// A group that is not in the block cache.
    fn group(&mut self, layer: &Layer, opened: &Opened, group: usize) -> Result<Arc<Group>, LayerError> {
        if !self.groups.contains(&group) {
            self.read(layer, opened, group)?;
        }
        match self.block(opened, group).map(|block| unpack(&block).and_then(Group::parse)) {
            Some(Ok(unpacked)) => Ok(Arc::new(unpacked)),
            // A damaged one may be damaged in a nearer copy alone.
            Some(Err(_)) | None => layer.group_uncached(opened, group),
        }
    }

    /// Reads `group` and some of those that follow. Where only one would be read, or the file ends too early, nothing is: each is then read by
    /// itself, which tells what is wrong.
    fn read(&mut self, layer: &Layer, opened: &Opened, group: usize) -> Result<(), LayerError> {
        let most = (self.groups.len() * AHEAD_GROWS_BY).max(1);
        let start = opened.section(group).offset;
        let (mut groups, mut end) = (group..group + 1, start);
        for number in group..opened.groups().min(group + most) {
            let section = opened.section(number);
            let Some(next) = section.offset.checked_add(u64::from(section.length)) else { break };
            if next < end || next > layer.desc.bytes || next - start > AHEAD_BYTES_MAX {
                break;
            }
            (groups.end, end) = (number + 1, next);
        }
        let bytes = match groups.len() {
            1 => Bytes::new(),
            _ => match layer.read(start..end) {
                Err(LayerError::Corrupt(_)) => Bytes::new(),
                bytes => bytes?,
            },
        };
        *self = Ahead { groups, start, bytes };
        Ok(())
    }
}

impl LayerCursor {
    /// The next version and its key.
    pub(crate) fn next(&mut self) -> Result<Option<(StoredKey, Version)>, LayerError> {
        loop {
            if let Some(group) = self.group.as_ref().filter(|group| self.at < group.len()) {
                let found = (group.key(self.at), group.version(self.at));
                self.at += 1;
                return Ok(Some(found));
            }
            if self.next_group >= self.opened.groups() {
                return Ok(None);
            }
            self.take_next_group()?;
            self.at = 0;
        }
    }

    fn skip_to(&mut self, key: StoredKey) -> Result<(), LayerError> {
        if self.next_group >= self.opened.groups() {
            return Ok(());
        }
        // An entry with LSN 0 does not occur; without it, "through (key, 0)" is "before key".
        self.at = self.take_next_group()?.count_through(&key, Lsn::INVALID);
        Ok(())
    }

    fn take_next_group(&mut self) -> Result<&Group, LayerError> {
        let (layer, opened, number) = (&self.layer, &self.opened, self.next_group);
        let ahead = &mut self.ahead;
        let group = match self.usage {
            CursorUse::Alone => ahead.group(layer, opened, number)?,
            CursorUse::KeysAreRead => layer.group_with(number, || ahead.group(layer, opened, number))?,
        };
        self.next_group += 1;
        Ok(self.group.insert(group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock_cache::ClockCache;
    use crate::layer::{Effort, LayerWriter};
    use crate::position::RecordPosition;
    use crate::stored_key::KeyRange;
    use ardent_object_store::MemoryStore;
    use ardent_object_store::fault::FailPoints;
    use ardent_types::{ForkNumber, Key, RelTag};

    /// A file of format version 1 as it was written when that was new: every later program must read it.
    const GOLDEN: &[u8] = include_bytes!("../../golden/delta-v1.layer");

    fn key(block: u32) -> StoredKey {
        let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, fork: ForkNumber::Main };
        StoredKey::from(&Key::RelBlock(rel, block))
    }

    fn versions() -> Vec<(StoredKey, Lsn, VersionKind, Vec<u8>)> {
        let image: Vec<u8> = (0..8192u32).map(|at| if at % 100 < 60 { 0 } else { at.wrapping_mul(at) as u8 }).collect();
        let mut versions = vec![(StoredKey::from(&Key::Checkpoint), Lsn::new(0x110), VersionKind::Image, Vec::new())];
        for block in 0..20 {
            versions.push((key(block), Lsn::new(0x118), VersionKind::Image, image.clone()));
            versions.push((key(block), Lsn::new(0x120), VersionKind::Record, b"record".to_vec()));
            versions.push((key(block), Lsn::new(0x128), VersionKind::Delta, vec![block as u8]));
        }
        versions.push((key(99), Lsn::new(0x118), VersionKind::RecordInit, b"init".to_vec()));
        versions.push((key(99), Lsn::new(0x120), VersionKind::Unreadable, b"why".to_vec()));
        versions
    }

    const BOUNDARIES: [RecordPosition; 2] = [
        RecordPosition { end: Lsn::new(0x110), start: Lsn::new(0x100) },
        RecordPosition { end: Lsn::new(0x130), start: Lsn::new(0x110) },
    ];

    /// The layer that a file is.
    fn layer(file: &[u8]) -> Arc<Layer> {
        let trailer = Trailer::decode(&file[file.len() - TRAILER_LEN..]).unwrap();
        let desc = LayerDesc {
            file: "golden".to_owned(),
            kind: trailer.kind,
            level: 0,
            keys: trailer.keys,
            after: trailer.after,
            upto: trailer.upto,
            bytes: file.len() as u64,
            entries: trailer.entries,
            key_count: 22,
            boundaries: true,
            holes: 0,
        };
        let name = ObjectName::new("golden").unwrap();
        let store = Arc::new(MemoryStore::new());
        store.put(&name, file).unwrap();
        Layer::new(desc, name, store, Arc::new(ClockCache::new(1 << 20)))
    }

    /// Of a file, what a cursor gives before it ends or fails.
    fn given(file: &[u8], usage: CursorUse) -> (Vec<(StoredKey, Bytes)>, Option<LayerError>) {
        let mut cursor = layer(file).cursor_with(StoredKey::MIN, usage).unwrap();
        let mut given = Vec::new();
        loop {
            match cursor.next() {
                Ok(Some((key, version))) => given.push((key, version.bytes)),
                Ok(None) => return (given, None),
                Err(error) => return (given, Some(error)),
            }
        }
    }

    #[test]
    fn a_cursor_gives_everything_before_a_damaged_group_and_names_that() {
        let folder = tempfile::tempdir().unwrap();
        let faults = FailPoints::new();
        let mut writer =
            LayerWriter::create(&folder.path().join("f"), LayerKind::Delta, Effort::Usual, &faults).unwrap();
        let mut state = 1u64;
        let mut values = Vec::new();
        for block in 0..200 {
            // Noise, so that a few groups are as much as is read at once.
            let noise = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            let value = Bytes::from_iter((0..8192).map(noise));
            writer.add(&key(block), Lsn::new(0x110), VersionKind::Image, &value).unwrap();
            values.push((key(block), value));
        }
        let finished = writer.finish(None, None, Lsn::new(0x110), &[]).unwrap();
        let written = std::fs::read(finished.path).unwrap();
        let opened = layer(&written).opened().unwrap();
        assert!(opened.groups() > 80, "{} groups", opened.groups());
        for usage in [CursorUse::Alone, CursorUse::KeysAreRead] {
            let (all, error) = given(&written, usage);
            assert!(error.is_none() && all == values);
            for group in [0, 1, 2, 7, 50, opened.groups() - 1] {
                let mut damaged = written.clone();
                let offset = opened.section(group).offset;
                damaged[offset as usize + 100] ^= 1;
                if group == 0 {
                    assert!(layer(&damaged).cursor_with(StoredKey::MIN, usage).is_err());
                    continue;
                }
                let (before, error) = given(&damaged, usage);
                let keys = values.iter().take_while(|(key, _)| *key < opened.first(group).0).count();
                assert!(before == values[..keys], "group {group}: {} of {keys}", before.len());
                let Some(LayerError::Corrupt(corrupt)) = error else { panic!("group {group}: {error:?}") };
                assert_eq!(corrupt.offset, offset);
            }
        }
    }

    fn read_back(file: &[u8]) {
        let trailer = Trailer::decode(&file[file.len() - TRAILER_LEN..]).unwrap();
        assert_eq!((trailer.after, trailer.upto), (Lsn::new(0x100), Lsn::new(0x130)));
        assert_eq!(trailer.keys, KeyRange { first: StoredKey::from(&Key::Checkpoint), last: key(99) });
        let layer = layer(file);
        assert_eq!(layer.verify().unwrap(), versions().len() as u64);
        assert_eq!(layer.boundaries().unwrap(), BOUNDARIES);
        let mut cursor = layer.cursor(StoredKey::MIN).unwrap();
        for (key, lsn, kind, value) in versions() {
            let (found, version) = cursor.next().unwrap().unwrap();
            assert_eq!((found, version.lsn, version.kind, &version.bytes[..]), (key, lsn, kind, &value[..]));
        }
        let mut gathered = Gathered::default();
        layer.gather(&key(7), Lsn::INVALID, Lsn::new(0x120), &mut gathered).unwrap();
        assert_eq!((gathered.len(), gathered.newest()), (2, Some(Lsn::new(0x120))));
    }

    #[test]
    fn files_are_read_as_written_now_and_when_the_format_was_new() {
        let folder = tempfile::tempdir().unwrap();
        let faults = FailPoints::new();
        let mut writer =
            LayerWriter::create(&folder.path().join("f"), LayerKind::Delta, Effort::Usual, &faults).unwrap();
        for (key, lsn, kind, value) in versions() {
            writer.add(&key, lsn, kind, &value).unwrap();
        }
        let finished = writer.finish(None, Some(Lsn::new(0x100)), Lsn::new(0x130), &BOUNDARIES).unwrap();
        let written = std::fs::read(finished.path).unwrap();
        read_back(&written);
        read_back(GOLDEN);
    }
}
