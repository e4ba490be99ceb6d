//! Content out: at any retained LSN, through redo, the caches and the ancestors.
//!
//! A key's content at an LSN is the newest base at or below it with the values after it applied. What a page cache entry
//! holds is a base too: a read at a newer LSN applies only what came since. Where a timeline has no version of a key, the
//! answer is its ancestor's, so branches share what their ancestors' reads have cached.

use std::ops::{Range, RangeInclusive};

use ardent_types::{BlockNumber, Key, Lsn, RelTag};
use bytes::Bytes;

use crate::error::{CommitError, ReadError};
use crate::layer_map::{LayerSet, ReadCost};
use crate::shared::CachedPage;
use crate::stats::count;
use crate::stored_key::{KeyRange, StoredKey};
use crate::timeline::Timeline;
use crate::version::Gathered;

/// What a cache entry costs beside its content.
const CACHE_ENTRY_BYTES: usize = 96;
/// Neighbouring blocks from which on a read counts as part of a sequential one.
const SEQUENTIAL_BLOCKS: usize = 8;
/// Keys that [`Timeline::scan`] takes at a time.
const SCAN_PART_KEYS: usize = 10_000;

/// Content as of some LSN.
#[derive(Clone)]
pub(crate) struct Content {
    /// Empty: absent.
    pub(crate) bytes: Bytes,
    /// The version that made it so.
    pub(crate) version: Lsn,
}

/// Whether a read leaves what it rebuilt in the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CacheUse {
    /// For readers.
    Keep,
    /// For sequential readers: what redo had to make is kept. Images are taken from their layers as quickly, and would push out
    /// what others use.
    KeepRebuilt,
    /// For compaction, which must not push out what readers use.
    LookOnly,
}

/// A part of what [`Timeline::scan_part`] found.
#[derive(Clone, Debug, Default)]
pub struct ScanPart {
    /// Keys with content, ascending.
    pub entries: Vec<(Key, Bytes)>,
    /// What to give as `after` for the next part; `None` at the end.
    pub resume: Option<Key>,
}

impl Timeline {
    /// The content of `key` at `lsn`; `None` if it is absent there. `lsn` is at most the last record's end.
    pub fn get(&self, key: &Key, lsn: Lsn) -> Result<Option<Bytes>, ReadError> {
        let content = self.read_at(lsn, || self.content(key, &StoredKey::from(key), lsn))?;
        Ok(content.map(|content| content.bytes).filter(|bytes| !bytes.is_empty()))
    }

    /// The LSN at which `key` was given what it holds at `lsn`, on this timeline or on those that it hangs on; `None` if it was never given
    /// anything.
    pub fn given_at(&self, key: &Key, lsn: Lsn) -> Result<Option<Lsn>, ReadError> {
        let content = self.read_at(lsn, || self.content(key, &StoredKey::from(key), lsn))?;
        Ok(content.map(|content| content.version))
    }

    /// What the content of `key` at `lsn` costs without any cache, on this timeline and those that it hangs on.
    pub fn read_cost(&self, key: &Key, lsn: Lsn) -> Result<ReadCost, ReadError> {
        self.read_at(lsn, || {
            let stored = StoredKey::from(key);
            let mut cost = ReadCost::default();
            let (mut timeline, mut lsn) = (self, lsn);
            loop {
                let mut gathered = Gathered::default();
                let found = timeline.layer_set().gather(&stored, Lsn::INVALID, lsn, &mut gathered)?;
                let is_complete = gathered.complete_from().is_some();
                cost.files += found.files;
                cost.deltas += gathered.len() - usize::from(is_complete);
                match timeline.parent_for_read(lsn)?.filter(|_| !is_complete) {
                    Some((parent, at)) => (timeline, lsn) = (parent, at),
                    None => return Ok(cost),
                }
            }
        })
    }

    /// The content of neighbouring blocks of `rel` at `lsn`, given to `each` in order. Stops at the first error; what `each` was
    /// given before an error is not to be used.
    pub fn get_pages<E: From<ReadError>>(
        &self,
        rel: RelTag,
        blocks: Range<BlockNumber>,
        lsn: Lsn,
        mut each: impl FnMut(BlockNumber, Option<Bytes>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.check_readable(lsn)?;
        let mut cache = CacheUse::Keep;
        if blocks.len() >= SEQUENTIAL_BLOCKS {
            cache = CacheUse::KeepRebuilt;
            let key = |block| StoredKey::from(&Key::RelBlock(rel, block));
            self.load_images(&KeyRange { first: key(blocks.start), last: key(blocks.end - 1) }, lsn)?;
        }
        for block in blocks {
            let key = Key::RelBlock(rel, block);
            let content = self.content_with(&key, &StoredKey::from(&key), lsn, cache)?;
            each(block, content.map(|content| content.bytes).filter(|bytes| !bytes.is_empty()))?;
        }
        // See `read_at`.
        Ok(self.check_readable(lsn)?)
    }

    /// Brings the parts of image layers that reads of `keys` at `lsn` will visit into the block cache, many with one read.
    fn load_images(&self, keys: &KeyRange, lsn: Lsn) -> Result<(), ReadError> {
        let (mut timeline, mut lsn) = (self, lsn);
        while !timeline.layer_set().files.load_images(keys, lsn) {
            match timeline.parent_for_read(lsn)? {
                Some((parent, at)) => (timeline, lsn) = (parent, at),
                None => break,
            }
        }
        Ok(())
    }

    /// All keys in `range` that have content at `lsn`, ascending, with it. For ranges of small values; see
    /// [`Timeline::scan_part`] for others.
    pub fn scan(&self, range: RangeInclusive<Key>, lsn: Lsn) -> Result<Vec<(Key, Bytes)>, ReadError> {
        let (mut entries, mut after) = (Vec::new(), None);
        loop {
            let mut part = self.scan_part(range.clone(), after, lsn, SCAN_PART_KEYS)?;
            entries.append(&mut part.entries);
            after = part.resume;
            if after.is_none() {
                return Ok(entries);
            }
        }
    }

    /// The same for the first `keys_max` keys with versions that come after `after`; fewer of them may have content.
    pub fn scan_part(
        &self,
        range: RangeInclusive<Key>,
        after: Option<Key>,
        lsn: Lsn,
        keys_max: usize,
    ) -> Result<ScanPart, ReadError> {
        self.read_at(lsn, || self.scan_unchecked(&range, after, lsn, keys_max.max(1)))
    }

    fn scan_unchecked(
        &self,
        range: &RangeInclusive<Key>,
        after: Option<Key>,
        lsn: Lsn,
        keys_max: usize,
    ) -> Result<ScanPart, ReadError> {
        let Some(keys) = part_of(range, after, |range| self.keys_with_versions(range, Lsn::INVALID, lsn, keys_max))?
        else {
            return Ok(ScanPart::default());
        };
        let resume = keys.last().filter(|_| keys.len() == keys_max).and_then(StoredKey::decode);
        let mut part = ScanPart { entries: Vec::new(), resume };
        for stored in keys {
            let Some(key) = stored.decode() else { continue };
            let content = self.content(&key, &stored, lsn)?.filter(|content| !content.bytes.is_empty());
            part.entries.extend(content.map(|content| (key, content.bytes)));
        }
        Ok(part)
    }

    /// The keys in `range` that were given a version in `(from, to]`, by this timeline or, for the part below where it hangs, by its
    /// ancestors. Ascending.
    pub fn changed_keys(&self, range: RangeInclusive<Key>, from: Lsn, to: Lsn) -> Result<Vec<Key>, ReadError> {
        let range = KeyRange::from(&range);
        let keys = self.read_at(to, || self.keys_with_versions(&range, from, to, usize::MAX))?;
        Ok(keys.iter().filter_map(StoredKey::decode).collect())
    }

    /// The same for the first `keys_max` such keys that come after `after`; fewer are the last ones.
    pub fn changed_keys_part(
        &self,
        range: RangeInclusive<Key>,
        after: Option<Key>,
        from: Lsn,
        to: Lsn,
        keys_max: usize,
    ) -> Result<Vec<Key>, ReadError> {
        let find = |range: &KeyRange| self.keys_with_versions(range, from, to, keys_max.max(1));
        let keys = self.read_at(to, || part_of(&range, after, find))?;
        Ok(keys.unwrap_or_default().iter().filter_map(StoredKey::decode).collect())
    }

    /// Runs `read`, of content at `lsn`, if that can be asked for. Asks again afterwards: had garbage collection given up the LSN in
    /// between, the layers that `read` found might have been those that are left. It moves the limit before it drops a layer.
    fn read_at<T>(&self, lsn: Lsn, read: impl FnOnce() -> Result<T, ReadError>) -> Result<T, ReadError> {
        self.check_readable(lsn)?;
        let found = read().map_err(|error| self.explained(error))?;
        self.check_readable(lsn)?;
        Ok(found)
    }

    pub(crate) fn explained(&self, error: ReadError) -> ReadError {
        match error {
            ReadError::Corrupt(file) => match self.why_corrupt(file) {
                CommitError::Fenced { timeline, generation } => ReadError::Fenced { timeline, generation },
                CommitError::Deleted { timeline } => ReadError::Deleted { timeline },
                CommitError::Corrupt(file) => ReadError::Corrupt(file),
                CommitError::Store(error) => ReadError::Store(error),
                other => ReadError::Ancestor(Box::new(other.into())),
            },
            other => other,
        }
    }

    /// Whether content at `lsn` can be asked for.
    fn check_readable(&self, lsn: Lsn) -> Result<(), ReadError> {
        self.touch();
        if self.is_importing() {
            return Err(ReadError::Importing { timeline: self.id() });
        }
        // A fenced timeline's history is still its history; a deleted one has none.
        if let Err(CommitError::Deleted { timeline }) = self.check_owned() {
            return Err(ReadError::Deleted { timeline });
        }
        let last = self.progress.end();
        if lsn > last {
            return Err(ReadError::NotYet { timeline: self.id(), lsn, last });
        }
        if let Some(ancestor) = self.ancestor.filter(|ancestor| lsn <= ancestor.point.lsn) {
            // The branch point itself is pinned. Before it, what the ancestor retains counts.
            let is_before = lsn < ancestor.point.lsn;
            return match self.parent_for_read(lsn)? {
                Some((parent, at)) if is_before => parent.check_readable(at),
                _ => Ok(()),
            };
        }
        let retained_from = self.retained_from();
        if lsn < retained_from && !self.is_leased(lsn) {
            return Err(ReadError::Retired { lsn, retained_from });
        }
        Ok(())
    }

    fn is_leased(&self, lsn: Lsn) -> bool {
        self.leases.read().values().any(|lease| lease.lsn == lsn)
    }

    pub(crate) fn keys_with_versions(
        &self,
        range: &KeyRange,
        from: Lsn,
        to: Lsn,
        limit: usize,
    ) -> Result<Vec<StoredKey>, ReadError> {
        let mut keys = self.layer_set().keys(range, from, to, limit)?;
        if let Some((parent, at)) = self.parent_for_read(to)?.filter(|(_, at)| *at > from) {
            keys.extend(parent.keys_with_versions(range, from, at, limit)?);
            keys.sort_unstable();
            keys.dedup();
            keys.truncate(limit);
        }
        Ok(keys)
    }

    /// The parent and the LSN at which a read at `lsn` goes on there.
    fn parent_for_read(&self, lsn: Lsn) -> Result<Option<(&Timeline, Lsn)>, ReadError> {
        let Some(ancestor) = self.ancestor else { return Ok(None) };
        let parent = self.parent().map_err(|error| ReadError::Ancestor(Box::new(error)))?;
        let Some(parent) = parent else { return Ok(None) };
        let at = lsn.min(ancestor.point.lsn);
        let last = parent.progress.end();
        if at > last {
            return Err(ReadError::NotYet { timeline: parent.id(), lsn: at, last });
        }
        Ok(Some((parent, at)))
    }

    /// The content of `key` at `lsn`, without asking whether it may be read there.
    fn content(&self, key: &Key, stored: &StoredKey, lsn: Lsn) -> Result<Option<Content>, ReadError> {
        self.content_with(key, stored, lsn, CacheUse::Keep)
    }

    pub(crate) fn content_with(
        &self,
        key: &Key,
        stored: &StoredKey,
        lsn: Lsn,
        cache: CacheUse,
    ) -> Result<Option<Content>, ReadError> {
        count(&self.shared.stats.reads, 1);
        let (mut timeline, mut lsn) = (self, lsn);
        loop {
            match timeline.own_content(key, stored, lsn, cache)? {
                Some(content) => return Ok(Some(content)),
                None => match timeline.parent_for_read(lsn)? {
                    Some((parent, at)) => (timeline, lsn) = (parent, at),
                    None => return Ok(None),
                },
            }
        }
    }

    /// The same; `None` if this timeline has no version of the key at or below `lsn`.
    fn own_content(
        &self,
        key: &Key,
        stored: &StoredKey,
        lsn: Lsn,
        cache: CacheUse,
    ) -> Result<Option<Content>, ReadError> {
        let cache_key = (self.instance, *stored);
        let cached = self.shared.pages.get(&cache_key).filter(|cached| cached.version <= lsn);
        if let Some(cached) = cached.as_ref().filter(|cached| lsn <= cached.valid_to) {
            count(&self.shared.stats.reads_cached, 1);
            return Ok(Some(Content { bytes: cached.content.clone(), version: cached.version }));
        }
        let known = cached.as_ref().map_or(Lsn::INVALID, |cached| cached.valid_to);
        let mut gathered = Gathered::default();
        let cost = LayerSet::gather(&self.layer_set(), stored, known, lsn, &mut gathered)?;
        count(&self.shared.stats.files_visited, cost.files as u64);
        let Some(version) = gathered.newest() else {
            return Ok(cached.map(|cached| {
                self.shared.pages.update(&cache_key, |entry| {
                    if entry.version == cached.version {
                        entry.valid_to = entry.valid_to.max(lsn);
                    }
                });
                Content { bytes: cached.content, version: cached.version }
            }));
        };
        let from_memory = cost.files == 0 && gathered.len() == 1;
        let plain = gathered.as_plain_image().map(|image| image.bytes.clone());
        let keeps = match cache {
            CacheUse::Keep => true,
            CacheUse::KeepRebuilt => plain.is_none(),
            CacheUse::LookOnly => false,
        };
        let bytes = match plain {
            Some(image) => image,
            None => {
                let base = if gathered.complete_from().is_some() {
                    None
                } else if let Some(cached) = cached {
                    Some(cached.content)
                } else {
                    self.ancestors_content(key, stored, lsn, cache)?
                };
                count(&self.shared.stats.values_replayed, gathered.len() as u64);
                let base = base.filter(|base| !base.is_empty());
                let rebuilt =
                    self.shared.config.redo.rebuild(self.facts.pg_major, key, base, &mut gathered.into_values());
                rebuilt.map_err(|source| ReadError::Rebuild { key: *key, lsn, source: Box::new(source) })?
            }
        };
        if !from_memory && keeps {
            // A copy: a slice would keep the whole group of a layer file in memory.
            let content = Bytes::copy_from_slice(&bytes);
            let weight = content.len() + CACHE_ENTRY_BYTES;
            self.shared.pages.insert(cache_key, CachedPage { version, valid_to: lsn, content }, weight);
        }
        Ok(Some(Content { bytes, version }))
    }

    fn ancestors_content(
        &self,
        key: &Key,
        stored: &StoredKey,
        lsn: Lsn,
        cache: CacheUse,
    ) -> Result<Option<Bytes>, ReadError> {
        let Some((parent, at)) = self.parent_for_read(lsn)? else { return Ok(None) };
        Ok(parent.content_with(key, stored, at, cache)?.map(|content| content.bytes))
    }
}

/// Runs `find` on what is left of `range` after the key `after`; `None` if nothing is.
fn part_of<T, E>(
    range: &RangeInclusive<Key>,
    after: Option<Key>,
    find: impl FnOnce(&KeyRange) -> Result<T, E>,
) -> Result<Option<T>, E> {
    let mut left = KeyRange::from(range);
    if let Some(after) = after {
        match StoredKey::from(&after).successor() {
            Some(next) => left.first = left.first.max(next),
            None => return Ok(None),
        }
    }
    if left.first > left.last { Ok(None) } else { find(&left).map(Some) }
}
